//! Training steps on the emulator: forward, backward and update as one program, against the processor.

use margay_artifact::{ArtifactBuilder, Parts};
use margay_codegen_gpu::GpuBackend;
use margay_driver::build;
use margay_driver::{Dump, backend};
use margay_emulator::Emulator;
use margay_ir::{Graph, TensorType};
use margay_passes::parameter_names;
use margay_runtime::{Executable, Session, SessionOptions};
use margay_tensor::{Binding, DType, Tensor};
use margay_testkit::{Tolerance, assert_close, normal, parse_with_random_constants};
use margay_train::step::TOTAL_STEPS;
use margay_train::{Optimizer, Schedule, TrainError, TrainingStep, Update, loss};

use crate::{EMULATED, code_in, loaded};

const STEPS: usize = 3;
const ROWS: i64 = 6;
const CLASSES: i64 = 5;

const LAYERS: &str = "graph @layers(%x: f32[N, 9]) -> (y: f32[N, 5]) {
  %0 = const #w1 : f32[9, 40]  // fc1.weight
  %1 = matmul %x, %0 : f32[N, 40]  // fc1
  %2 = const #b1 : f32[40]  // fc1.bias
  %3 = add %1, %2 : f32[N, 40]
  %4 = const #scale : f32[40]  // norm.weight
  %5 = const #shift : f32[40]  // norm.bias
  %6 = layer_norm %3, %4, %5 {axis = 1} : f32[N, 40]  // norm
  %7 = gelu %6 : f32[N, 40]
  %8 = const #w2 : f32[40, 5]  // fc2.weight
  %9 = matmul %7, %8 : f32[N, 5]  // fc2
  return %9
}";

const IMAGES: &str = "graph @images(%x: f32[N, 3, 8, 8]) -> (y: f32[N, 5]) {
  %0 = const #w1 : f32[6, 3, 3, 3]  // conv1.weight
  %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 6, 8, 8]  // conv1
  %2 = relu %1 : f32[N, 6, 8, 8]
  %3 = const #w2 : f32[8, 6, 3, 3]  // conv2.weight
  %4 = conv %2, %3 {strides = [2, 2], pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 8, 4, 4]  // conv2
  %5 = relu %4 : f32[N, 8, 4, 4]
  %6 = reshape %5 {shape = [N, 128]} : f32[N, 128]
  %7 = const #w3 : f32[128, 5]  // fc.weight
  %8 = matmul %6, %7 : f32[N, 5]  // fc
  return %8
}";

const UPDATE: Update = Update {
    optimizer: Optimizer::ADAMW,
    learning_rate: 0.01,
    schedule: Schedule::Constant { warm_up: 0.0 },
    clip: Some(1.0),
};

/// The step that trains all parameters of a network to tell classes apart.
fn step_of(text: &str) -> TrainingStep {
    let (g, _) = parse_with_random_constants(text);
    let nodes: Vec<_> = parameter_names(&g).into_iter().map(|(n, _)| n).collect();
    let objective = |g: &mut Graph| -> Result<_, TrainError> {
        let logits = g.outputs()[0].value;
        let rows = TensorType::new(DType::I64, g.ty(logits).shape[..1].to_vec());
        let labels = g.add_input("labels", rows);
        loss::cross_entropy(g, logits, labels, None, None)
    };
    TrainingStep::new(&g, &nodes, &objective, &UPDATE).unwrap_or_else(|e| panic!("{e}"))
}

/// What steps leave behind: the loss of each, and all states after the last.
type Trace = (Vec<f32>, Vec<(String, Tensor)>);

fn run(step: &TrainingStep, executable: &Executable, data: &[(&str, &Tensor)]) -> Trace {
    let mut session = Session::new(executable, SessionOptions { threads: 1 }).expect("memory");
    step.begin(&mut session).unwrap_or_else(|e| panic!("{e}"));
    session.set_state(TOTAL_STEPS, &Tensor::scalar(STEPS as f32)).expect("a state");
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        let outputs = session.run(data).unwrap_or_else(|e| panic!("{e}"));
        let (_, loss) = outputs.iter().find(|(name, _)| **name == *"loss").expect("a loss");
        losses.push(loss.to_vec::<f32>().expect("f32")[0]);
    }
    let state = |name: &String| (name.clone(), session.state(name).expect("a state"));
    (losses, step.states.iter().map(|state| &state.name).map(state).collect())
}

/// A step compiled for a back end.
fn parts(step: &TrainingStep, backend: &GpuBackend) -> Parts {
    let binding: Binding = [("N".into(), ROWS)].into_iter().collect();
    let mut builder = ArtifactBuilder::new("step");
    build::add_step_entry(&mut builder, &step.graph, &binding, backend, &step.form(), &mut Dump::none())
        .unwrap_or_else(|e| panic!("{e}"));
    builder.into_parts().expect("parts")
}

/// The kernels of all steps for a back end.
pub(crate) fn kernels(backend: &GpuBackend) -> Vec<String> {
    [LAYERS, IMAGES].iter().flat_map(|text| code_in(&parts(&step_of(text), backend)).modules).collect()
}

/// Runs a step on the processor and on the emulator in several orders of threads.
fn compare(text: &str, x: &[usize]) {
    let step = step_of(text);
    let labels: Vec<i64> = (0..ROWS).map(|i| i % CLASSES).collect();
    let labels = Tensor::from_slice(&[ROWS as usize], &labels).expect("labels");
    let x = normal(x, 3, 0);
    let data = [("x", &x), ("labels", &labels)];
    let binding: Binding = [("N".into(), ROWS)].into_iter().collect();
    let form = step.form();
    let native = backend::native();
    let expected = build::jit_step(&step.graph, &[binding.clone()].into(), &*native, &form);
    let expected = expected.unwrap_or_else(|e| panic!("{e}")).executable;
    let (expected, expected_states) = run(&step, &expected, &data);
    assert!(expected[STEPS - 1] < expected[0], "the loss falls: {expected:?}");
    let mut first: Option<Trace> = None;
    for seed in [1, 2, 3, 5, 8] {
        let executable = loaded(parts(&step, &EMULATED), &Emulator::new(seed));
        let found = run(&step, &executable.unwrap_or_else(|e| panic!("{e}")), &data);
        for (found, expected) in found.0.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{found}, expected {expected}");
        }
        for ((name, found), (_, expected)) in found.1.iter().zip(&expected_states) {
            assert_close(name, found, expected, Tolerance { relative: 1e-3, absolute: 1e-4 });
        }
        let first = first.get_or_insert_with(|| found.clone());
        assert_eq!(*first, found, "the same bits in every order");
    }
    println!("losses {expected:?}");
}

#[test]
fn a_step_of_dense_layers_agrees_with_the_processor() {
    compare(LAYERS, &[ROWS as usize, 9]);
}

#[test]
fn a_step_of_convolutions_agrees_with_the_processor() {
    compare(IMAGES, &[ROWS as usize, 3, 8, 8]);
}
