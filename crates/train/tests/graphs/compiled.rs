//! Compiled steps against the reference interpreter, over several steps.

use margay_driver::backend;
use margay_driver::build::jit_step;
use margay_ir::{Graph, Value, eval};
use margay_passes::parameter_names;
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, Tensor};
use margay_testkit::parse_with_random_constants;
use margay_train::loss::{self, IGNORED};
use margay_train::step::{State, TOTAL_STEPS, next};
use margay_train::{Optimizer, Schedule, TrainError, TrainingStep, Update};

use crate::support::{assert_near, floats, normal};

const ROWS: usize = 13;
const STEPS: usize = 5;

/// Two layers with a normalization between them.
const NETWORK: &str = "graph @network(%x: f32[N, 9]) -> (y: f32[N, 7]) {
  %0 = const #w1 : f32[9, 16]  // fc1.weight
  %1 = matmul %x, %0 : f32[N, 16]  // fc1
  %2 = const #b1 : f32[16]  // fc1.bias
  %3 = add %1, %2 : f32[N, 16]
  %4 = const #scale : f32[16]  // norm.weight
  %5 = const #shift : f32[16]  // norm.bias
  %6 = layer_norm %3, %4, %5 {axis = 1} : f32[N, 16]  // norm
  %7 = gelu %6 : f32[N, 16]
  %8 = const #w2 : f32[16, 7]  // fc2.weight
  %9 = matmul %7, %8 : f32[N, 7]  // fc2
  %10 = const #b2 : f32[7]  // fc2.bias
  %11 = add %9, %10 : f32[N, 7]
  return %11
}";

fn narrow(t: &Tensor) -> Tensor {
    Tensor::from_slice(t.shape(), &floats(t).iter().map(|&x| x as f32).collect::<Vec<_>>()).unwrap()
}

type Objective<'a> = &'a dyn Fn(&mut Graph) -> Result<Value, TrainError>;

/// Runs both for some steps and compares losses, norms and states.
fn compare(objective: Objective<'_>, update: &Update, data: &[(&str, &Tensor)]) {
    let (g, _) = parse_with_random_constants(NETWORK);
    let nodes: Vec<_> = parameter_names(&g).into_iter().map(|(n, _)| n).collect();
    let step = TrainingStep::new(&g, &nodes, objective, update).unwrap();
    let binding: Binding = [("N".into(), ROWS as i64)].into_iter().collect();
    for backend in backend::supported() {
        let executable =
            jit_step(&step.graph, &[binding.clone()].into(), &*backend, &step.form()).unwrap().executable;
        let mut session = Session::new(&executable, SessionOptions { threads: 2 }).unwrap();
        step.begin(&mut session).unwrap();
        session.set_state(TOTAL_STEPS, &Tensor::scalar(8f32)).unwrap();
        let state = |s: &'_ State| (s.name.clone(), session.state(&s.name).unwrap());
        let mut states: Vec<(String, Tensor)> = step.states.iter().map(state).collect();
        for t in 0..STEPS {
            let found = session.run(data).unwrap();
            let given: Vec<(&str, &Tensor)> =
                data.iter().copied().chain(states.iter().map(|(name, t)| (name.as_str(), t))).collect();
            let expected = eval::run(&step.graph, &given).unwrap();
            let expected = step.graph.outputs().iter().zip(expected);
            for (output, expected) in expected {
                let what = format!("step {t}, `{}`, {}", output.name, backend.target());
                match states.iter_mut().find(|(name, _)| *next(name) == *output.name) {
                    Some((name, state)) => {
                        assert_near(&what, &floats(&session.state(name).unwrap()), &floats(&expected), 2e-4);
                        *state = expected;
                    }
                    None => {
                        let (_, found) = found.iter().find(|(name, _)| **name == *output.name).unwrap();
                        assert_near(&what, &floats(found), &floats(&expected), 2e-5);
                    }
                }
            }
        }
    }
}

/// The objective of a loss that compares the output with an input `target` like it.
fn against_target(
    build: impl Fn(&mut Graph, Value, Value) -> Result<Value, TrainError>,
) -> impl Fn(&mut Graph) -> Result<Value, TrainError> {
    move |g| {
        let prediction = g.outputs()[0].value;
        let target = g.add_input("target", g.ty(prediction).clone());
        build(g, prediction, target)
    }
}

const ADAMW: Update = Update {
    optimizer: Optimizer::ADAMW,
    learning_rate: 0.01,
    schedule: Schedule::Cosine { warm_up: 0.25, floor: 0.05 },
    clip: Some(0.7),
};

#[test]
fn steps_of_every_optimizer() {
    let (x, target) = (narrow(&normal(&[ROWS, 9], 1)), narrow(&normal(&[ROWS, 7], 2)));
    let data = [("x", &x), ("target", &target)];
    let objective = against_target(|g, y, target| loss::mse(g, y, target, None));
    for optimizer in [Optimizer::Sgd { momentum: 0.0 }, Optimizer::SGD, Optimizer::ADAM, Optimizer::ADAMW] {
        compare(&objective, &Update { optimizer, ..ADAMW }, &data);
    }
    compare(
        &objective,
        &Update { schedule: Schedule::Constant { warm_up: 0.0 }, clip: None, ..ADAMW },
        &data,
    );
}

#[test]
fn steps_towards_targets() {
    let (x, target) = (narrow(&normal(&[ROWS, 9], 1)), narrow(&normal(&[ROWS, 7], 2)));
    let data = [("x", &x), ("target", &target)];
    compare(&against_target(|g, y, target| loss::cosine(g, y, target, None)), &ADAMW, &data);
    compare(&against_target(|g, y, target| loss::kl_divergence(g, y, target, 2.0, None)), &ADAMW, &data);
    let mask: Vec<i64> = (0..ROWS as i64).map(|i| i % 3).collect();
    let mask = Tensor::from_slice(&[ROWS], &mask).unwrap();
    let weighted = |g: &mut Graph| {
        let prediction = g.outputs()[0].value;
        let ty = g.ty(prediction).clone();
        let rows = margay_ir::TensorType::new(DType::I64, ty.shape[..1].to_vec());
        let (target, mask) = (g.add_input("target", ty), g.add_input("mask", rows));
        loss::mse(g, prediction, target, Some(mask))
    };
    compare(&weighted, &ADAMW, &[data[0], data[1], ("mask", &mask)]);
}

#[test]
fn steps_towards_labels() {
    let x = narrow(&normal(&[ROWS, 9], 1));
    let labels: Vec<i64> = (0..ROWS as i64).map(|i| if i % 4 == 3 { IGNORED } else { i % 7 }).collect();
    let labels = Tensor::from_slice(&[ROWS], &labels).unwrap();
    let objective = |g: &mut Graph| {
        let logits = g.outputs()[0].value;
        let rows = margay_ir::TensorType::new(DType::I64, g.ty(logits).shape[..1].to_vec());
        let labels = g.add_input("labels", rows);
        let accuracy = loss::accuracy(g, logits, labels, Some(IGNORED))?;
        g.add_output("accuracy", accuracy);
        loss::cross_entropy(g, logits, labels, Some(IGNORED), None)
    };
    compare(&objective, &ADAMW, &[("x", &x), ("labels", &labels)]);
}
