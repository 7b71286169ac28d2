//! Derivatives of every operator, by its own cases: the reference against finite differences in f64, and compiled code
//! against the reference.

use margay_driver::build::{bind, jit};
use margay_driver::{Dump, backend};
use margay_ir::ops::{Attention, Const};
use margay_ir::{Graph, Op, Origin, Payload, TensorType, Value, eval};
use margay_loops::{KernelCall, Precision, Program, Work};
use margay_lower::lower;
use margay_onnx::{Attribute, Model, OnnxDim, OnnxGraph, OnnxNode, OnnxValue};
use margay_passes::gradients;
use margay_runtime::{Session, SessionOptions};
use margay_tensor::random::Philox;
use margay_tensor::{Binding, DType, Tensor};
use margay_testkit::case_inputs;
use margay_tests::derivatives;

/// Operators whose derivative is refused, with the reason.
const WITHOUT: &[(&str, &str)] = &[
    ("if", "the derivative of a choice between two graphs is not written yet"),
    ("loop", "the derivative of a loop needs the values of every repetition, which are not kept"),
    ("attention_gradient", "second derivatives of attention are not taken"),
    ("conv_kernel_gradient", "second derivatives of convolutions are not taken"),
    ("max_pool_gradient", "second derivatives of pooling are not taken"),
    ("reduce", "there is no rule for products of elements"),
    ("cumulate", "there is no rule for products of elements"),
    ("scatter", "there is no rule for rows that are multiplied or compared"),
    ("conv", "there is no rule for channels last"),
    ("pool", "there is no rule for channels last"),
    ("recurrence", "a state that is rounded to 8 bits has no derivative"),
    ("feature_attention", "there is no rule for features that are made on the way"),
    ("pack", "there is no rule for a part whose extent a run decides"),
    ("non_max_suppression", "there is no rule for scores of boxes that are left"),
];

fn is_refused(op: &Op, message: &str) -> bool {
    WITHOUT.iter().any(|(name, why)| *name == op.name() && message.contains(why))
}

fn wide(t: &Tensor) -> Tensor {
    let values: Vec<f64> = t.as_slice::<f32>().unwrap().iter().map(|&x| f64::from(x)).collect();
    Tensor::from_slice(t.shape(), &values).unwrap()
}

fn narrow(t: &Tensor) -> Tensor {
    let values: Vec<f32> = t.to_vec::<f64>().unwrap().iter().map(|&x| x as f32).collect();
    Tensor::from_slice(t.shape(), &values).unwrap()
}

/// Numbers in -1..1, the same for the same operator.
fn weights(ty: &TensorType, seed: u64) -> Tensor {
    let shape = ty.extents().unwrap();
    let mut values = vec![0f64; shape.iter().product()];
    Philox::new(seed, 0).fill_uniform_f64(0, &mut values);
    values.iter_mut().for_each(|v| *v = *v * 2.0 - 1.0);
    Tensor::from_slice(&shape, &values).unwrap()
}

/// A graph of one node over inputs, its outputs, and the derivatives of a weighted sum of these by the operands.
struct Example {
    graph: Graph,
    outputs: usize,
    /// Operands with derivatives, and the number of the output that holds them.
    derived: Vec<(usize, usize)>,
}

fn example(op: &Op, inputs: &[Tensor]) -> Result<Example, String> {
    let mut g = Graph::new(op.name());
    let operand = |(i, t): (usize, &Tensor)| g.add_input(&format!("x{i}"), TensorType::of(t));
    let operands: Vec<Value> = inputs.iter().enumerate().map(operand).collect();
    let v = g.add(op.clone(), &operands, Origin::named("node")).unwrap();
    let outs: Vec<Value> =
        (0..g.node(v.node).types.len() as u16).map(|out| Value { node: v.node, out }).collect();
    let seeds: Vec<(Value, Value)> = outs
        .iter()
        .filter(|y| g.ty(**y).dtype.is_float())
        .copied()
        .collect::<Vec<_>>()
        .into_iter()
        .map(|y| {
            let c = weights(g.ty(y), 7 + u64::from(y.out));
            let c = if g.ty(y).dtype == DType::F32 { narrow(&c) } else { c };
            (y, g.add(Const { payload: Payload::new(c) }, &[], Origin::default()).unwrap())
        })
        .collect();
    let float: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].dtype().is_float()).collect();
    let by: Vec<Value> = float.iter().map(|&i| operands[i]).collect();
    let found = gradients(&mut g, &seeds, &by).map_err(|e| e.to_string())?;
    for (i, y) in outs.iter().enumerate() {
        g.add_output(&format!("y{i}"), *y);
    }
    let mut derived = Vec::new();
    for (i, gradient) in float.into_iter().zip(found) {
        if let Some(value) = gradient {
            assert_eq!(g.ty(value), g.ty(operands[i]), "{op:?}: the type of derivative {i}");
            derived.push((i, outs.len() + derived.len()));
            g.add_output(&format!("dx{i}"), value);
        }
    }
    g.remove_dead();
    assert_eq!(g.verify(margay_ir::Stage::Imported), Ok(()));
    Ok(Example { graph: g, outputs: outs.len(), derived })
}

fn run(g: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let read = |name: &str| g.inputs().iter().any(|n| g.node(*n).origin.name() == name);
    let by_name: Vec<(&str, &Tensor)> =
        names.iter().map(String::as_str).zip(inputs).filter(|(name, _)| read(name)).collect();
    eval::run(g, &by_name).unwrap_or_else(|e| panic!("{}: {e}", g.name()))
}

/// The weighted sum of the outputs whose derivatives are taken.
fn total(outputs: &[Tensor]) -> f64 {
    let float = outputs.iter().enumerate().filter(|(_, t)| t.dtype().is_float());
    float
        .map(|(out, t)| {
            let c = weights(&TensorType::of(t), 7 + out as u64).to_vec::<f64>().unwrap();
            t.to_vec::<f64>().unwrap().iter().zip(c).map(|(y, c)| y * c).sum::<f64>()
        })
        .sum()
}

/// Whether one of the operands is a float, and the result too.
fn is_smooth(op: &Op, inputs: &[Tensor]) -> bool {
    let types: Vec<TensorType> = inputs.iter().map(TensorType::of).collect();
    let outputs = op.infer(&types.iter().collect::<Vec<_>>()).unwrap();
    inputs.iter().any(|t| t.dtype().is_float()) && outputs.iter().any(|t| t.dtype.is_float())
}

#[test]
fn derivatives_are_those_of_finite_differences() {
    let mut compared = 0;
    for (op, case) in Op::cases() {
        let narrow_inputs = case_inputs(&case);
        if !is_smooth(&op, &narrow_inputs) {
            continue;
        }
        // Regions take f32 only; they are refused below.
        let wide_enough = |t: &Tensor| t.dtype() == DType::F32 && op.regions().is_empty();
        let widened = |t: &Tensor| if wide_enough(t) { wide(t) } else { t.clone() };
        let wide: Vec<Tensor> = narrow_inputs.iter().map(widened).collect();
        let types: Vec<TensorType> = wide.iter().map(TensorType::of).collect();
        // Some take f32 alone, and have no derivative.
        let takes = op.infer(&types.iter().collect::<Vec<_>>()).is_ok();
        let inputs = if takes { wide } else { narrow_inputs };
        let e = match example(&op, &inputs) {
            Ok(e) => e,
            Err(message) => {
                assert!(is_refused(&op, &message), "{op:?}: {message}");
                continue;
            }
        };
        let found = run(&e.graph, &inputs);
        for &(i, out) in &e.derived {
            let gradient = found[out].to_vec::<f64>().unwrap();
            let start = inputs[i].to_vec::<f64>().unwrap();
            // Every element of small operands, evenly spread ones of large ones.
            let stride = start.len().div_ceil(60).max(1);
            let scale = gradient.iter().fold(1e-3f64, |m, g| m.max(g.abs()));
            for at in (0..start.len()).step_by(stride) {
                let step = 1e-5 * start[at].abs().max(1.0);
                let moved = |by: f64| {
                    let mut x = start.clone();
                    x[at] += by;
                    let mut inputs = inputs.clone();
                    inputs[i] = Tensor::from_slice(inputs[i].shape(), &x).unwrap();
                    total(&run(&e.graph, &inputs)[..e.outputs])
                };
                let expected = (moved(step) - moved(-step)) / (2.0 * step);
                let error = (gradient[at] - expected).abs() / scale;
                assert!(error <= 1e-6, "{op:?}: d/dx{i}[{at}] is {}, expected {expected}", gradient[at]);
                compared += 1;
            }
        }
    }
    assert!(compared > 3000, "{compared} derivatives compared");
}

#[test]
fn compiled_derivatives_agree_with_the_reference() {
    let mut compared = 0;
    for (op, case) in Op::cases() {
        let inputs = case_inputs(&case);
        if !is_smooth(&op, &inputs) || inputs.iter().any(|t| t.dtype() == DType::F64) {
            continue;
        }
        let mut e = match example(&op, &inputs) {
            Ok(e) => e,
            Err(message) => {
                assert!(is_refused(&op, &message), "{op:?}: {message}");
                continue;
            }
        };
        let outputs = e.graph.outputs().to_vec();
        e.graph.set_outputs(outputs[e.outputs..].to_vec());
        e.graph.remove_dead();
        if e.derived.is_empty() {
            continue;
        }
        let expected = run(&e.graph, &inputs);
        let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
        let read = |name: &str| e.graph.inputs().iter().any(|n| e.graph.node(*n).origin.name() == name);
        let by_name: Vec<(&str, &Tensor)> =
            names.iter().map(String::as_str).zip(&inputs).filter(|(name, _)| read(name)).collect();
        for backend in backend::supported() {
            let executable = jit(&e.graph, &Binding::new(), &*backend)
                .unwrap_or_else(|error| panic!("{op:?}: {error}\n{}", e.graph));
            let mut session = Session::new(&executable, SessionOptions { threads: 2 }).unwrap();
            let found = session.run(&by_name).unwrap();
            for ((name, found), expected) in found.iter().zip(&expected) {
                let (found, expected) = (found.to_vec::<f32>().unwrap(), expected.to_vec::<f32>().unwrap());
                // Cotangents have a size of 1, and so has what cancels where a function saturates.
                let scale = expected.iter().fold(1e-2f32, |m, g| m.max(g.abs()));
                for (f, e) in found.iter().zip(&expected) {
                    assert!(
                        (f - e).abs() <= 1e-4 * scale,
                        "{op:?} {name} on {}: {f}, expected {e}",
                        backend.target()
                    );
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 3000, "{compared} derivatives compared");
}

/// Attention of `length` queries and keys, and its derivatives by all operands but the mask.
fn attention_step(length: usize, causal: bool, masked: bool) -> Program {
    let mut g = Graph::new("step");
    let mut operands: Vec<Value> = ["q", "k", "v"]
        .map(|name| g.add_input(name, TensorType::known(DType::F32, &[1, 2, length, 32])))
        .to_vec();
    let by = operands.clone();
    if masked {
        operands.push(g.add_input("mask", TensorType::known(DType::F32, &[1, 1, 1, length])));
    }
    let op = Attention { causal, ..Attention::new(0.5) };
    let y = g.add(op, &operands, Origin::named("attention")).unwrap();
    let seed = g.add_input("cotangent", TensorType::known(DType::F32, &[1, 2, length, 32]));
    let found = gradients(&mut g, &[(y, seed)], &by).unwrap();
    g.add_output("y", y);
    found.into_iter().flatten().enumerate().for_each(|(i, v)| g.add_output(&format!("d{i}"), v));
    let backend = backend::named("cpu", "x86-64-v4", Precision::F32).unwrap();
    let bound = bind(&g, &Binding::new(), &*backend, &mut Dump::none()).unwrap();
    lower(&bound, &*backend).unwrap()
}

#[test]
fn attention_under_training_takes_memory_for_rows_not_for_pairs() {
    for (causal, masked) in [(false, false), (true, true)] {
        let [short, long] = [2048, 4096].map(|length| attention_step(length, causal, masked));
        let families: Vec<&str> = long
            .steps()
            .filter_map(|(_, step)| match &step.work {
                Work::Call { call, .. } => Some(KernelCall::family(call)),
                _ => None,
            })
            .collect();
        assert_eq!(families, ["attention", "attention_gradient"], "the forward pass runs once");
        assert!(long.arena_bytes <= 2 * short.arena_bytes + 4096, "{} bytes", long.arena_bytes);
    }
}

/// The derivatives by the inputs of the sum of the elements of `%y`, an expression over inputs, each times 1, 2, 3, ….
fn derived(inputs: &[(&str, &[usize], &[f32])], nodes: &str, ty: &str) -> Vec<Vec<f32>> {
    let list: Vec<String> = inputs.iter().map(|(name, shape, _)| format!("%{name}: f32{shape:?}")).collect();
    let source = format!("graph @ties({}) -> (y: {ty}) {{\n{nodes}\nreturn %y\n}}", list.join(", "));
    let mut g = margay_ir::text::parse(&source, &|_, _| None).unwrap_or_else(|e| panic!("{e}\n{source}"));
    let by = inputs.iter().map(|(name, ..)| (*name).to_string()).collect();
    let pass = margay_passes::Differentiate { output: "y".into(), by };
    margay_ir::Pass::run(&pass, &mut g, &mut margay_ir::Cx::default()).unwrap();
    let y = g.ty(g.outputs()[0].value).extents().unwrap();
    let weights: Vec<f32> = (1..=y.iter().product::<usize>()).map(|i| i as f32).collect();
    let mut tensors: Vec<(&str, Tensor)> =
        inputs.iter().map(|(name, shape, x)| (*name, Tensor::from_slice(shape, x).unwrap())).collect();
    if !y.is_empty() {
        tensors.push(("cotangent", Tensor::from_slice(&y, &weights).unwrap()));
    }
    let by_name: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, t)| (*name, t)).collect();
    let expected = eval::run(&g, &by_name).unwrap();
    let executable = jit(&g, &Binding::new(), &*backend::native()).unwrap();
    let found = Session::new(&executable, SessionOptions { threads: 1 }).unwrap().run(&by_name).unwrap();
    let floats = |t: &Tensor| t.to_vec::<f32>().unwrap();
    expected.iter().zip(&found).for_each(|(e, f)| assert_eq!(floats(e), floats(&f.1), "{source}"));
    expected[1..].iter().map(floats).collect()
}

#[test]
fn ties_share_but_in_windows_the_first_takes_all() {
    let x: (&str, &[usize], &[f32]) = ("x", &[3, 4], &[1., 3., 3., 0., 2., 2., 2., 2., -1., -3., -2., -3.]);
    let max = derived(&[x], "%y = reduce %x {kind = max, axes = [1]} : f32[3]", "f32[3]");
    assert_eq!(max, [[0., 0.5, 0.5, 0., 0.5, 0.5, 0.5, 0.5, 3., 0., 0., 0.]]);
    let min =
        derived(&[x], "%y = reduce %x {kind = min, axes = [1], keepdims = true} : f32[3, 1]", "f32[3, 1]");
    assert_eq!(min, [[0., 0., 0., 1., 0.5, 0.5, 0.5, 0.5, 0., 1.5, 0., 1.5]]);
    let all = derived(&[x], "%y = reduce %x {kind = max, axes = [0, 1]} : f32", "f32");
    assert_eq!(all, [[0., 0.5, 0.5, 0., 0., 0., 0., 0., 0., 0., 0., 0.]]);

    let a: (&str, &[usize], &[f32]) = ("a", &[3], &[1., 2., 3.]);
    let b: (&str, &[usize], &[f32]) = ("b", &[3], &[2., 2., 1.]);
    assert_eq!(derived(&[a, b], "%y = max %a, %b : f32[3]", "f32[3]"), [[0., 1., 3.], [1., 1., 0.]]);
    assert_eq!(derived(&[a, b], "%y = min %a, %b : f32[3]", "f32[3]"), [[1., 1., 0.], [0., 1., 3.]]);

    let z: (&str, &[usize], &[f32]) = ("x", &[3], &[-1., 0., 1.]);
    assert_eq!(derived(&[z], "%y = relu %x : f32[3]", "f32[3]"), [[0., 0., 3.]]);
    assert_eq!(derived(&[z], "%y = abs %x : f32[3]", "f32[3]"), [[-1., 0., 3.]]);

    let image: (&str, &[usize], &[f32]) = ("x", &[1, 1, 2, 4], &[1., 1., 5., 0., 1., 0., 5., 5.]);
    let pool = "%y = pool %x {kind = max, kernel = [2, 2], strides = [2, 2]} : f32[1, 1, 1, 2]";
    let expected = [1., 0., 2., 0., 0., 0., 0., 0.];
    assert_eq!(derived(&[image], pool, "f32[1, 1, 1, 2]"), [expected]);
}

#[test]
fn what_a_choice_leaves_out_has_no_derivative() {
    // Where each function and its derivative are numbers that f32 has; elsewhere the derivative is infinite or no number.
    let functions: [(&str, f32, f32); 14] = [
        ("log", 1.0, 1.0),
        ("sqrt", 1.0, 0.5),
        ("exp", 0.0, 1.0),
        ("sin", 0.0, 1.0),
        ("cos", 0.0, 0.0),
        ("tanh", 0.0, 1.0),
        ("sigmoid", 0.0, 0.25),
        ("softplus", 0.0, 0.5),
        ("silu", 0.0, 0.5),
        ("gelu", 0.0, 0.5),
        ("atan", 0.0, 1.0),
        ("relu", 1.0, 1.0),
        ("abs", 1.0, 1.0),
        ("neg", 1.0, -1.0),
    ];
    let chosen = "%c = const [true, false, false, false, false] : bool[5]\n%z = const 0.0 : f32\n";
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0];
    for (name, x, slope) in functions {
        let x = [&[x][..], &bad].concat();
        let nodes = format!("{chosen}%f = {name} %x : f32[5]\n%y = select %c, %f, %z : f32[5]");
        assert_eq!(derived(&[("x", &[5], &x)], &nodes, "f32[5]"), [[slope, 0., 0., 0., 0.]], "{name}");
    }
    let (x, y) = ([&[2.0][..], &bad].concat(), [&[4.0][..], &bad].concat());
    for (name, by_a, by_b) in [("mul", 4.0, 2.0), ("div", 0.25, -0.125)] {
        let nodes = format!("{chosen}%f = {name} %a, %b : f32[5]\n%y = select %c, %f, %z : f32[5]");
        let found = derived(&[("a", &[5], &x), ("b", &[5], &y)], &nodes, "f32[5]");
        assert_eq!(found, [[by_a, 0., 0., 0., 0.], [by_b, 0., 0., 0., 0.]], "{name}");
    }
    // Rows whose weights are no numbers.
    let rows: (&str, &[usize], &[f32]) = ("x", &[2, 2], &[0.0, 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
    let nodes = "%c = const [true, false] : bool[2]\n%r = reshape %c {shape = [2, 1]} : bool[2, 1]\n\
        %z = const 0.0 : f32\n%f = softmax %x {axis = 1} : f32[2, 2]\n%y = select %r, %f, %z : f32[2, 2]";
    assert_eq!(derived(&[rows], nodes, "f32[2, 2]"), [[-0.25, 0.25, 0., 0.]]);
}

#[test]
fn powers_have_derivatives_at_zero() {
    let x: (&str, &[usize], &[f32]) = ("a", &[4], &[0., 0., 1., 2.]);
    let y: (&str, &[usize], &[f32]) = ("b", &[4], &[2., 0., 3., 0.]);
    let found = derived(&[x, y], "%y = pow %a, %b : f32[4]", "f32[4]");
    assert_eq!(found[0], [0., 0., 9., 0.]);
    assert_eq!(found[1][..3], [0., 0., 0.]);
    assert!((found[1][3] - 4.0 * std::f32::consts::LN_2).abs() < 1e-6, "{found:?}");
}

/// The derivative by x of the sum of the results of an operator of ONNX, with its attributes and further operands.
fn derived_onnx(op: &str, attributes: &[(&str, Attribute)], x: &Tensor, constants: &[f32]) -> Vec<f32> {
    let names: Vec<String> = (0..constants.len()).map(|i| format!("c{i}")).collect();
    let dims = x.shape().iter().map(|&d| OnnxDim::Value(d as i64)).collect();
    let value =
        |name: &str, dims| OnnxValue { name: name.to_owned(), dtype: Some(DType::F32), narrow: None, dims };
    let node = OnnxNode {
        op_type: op.to_owned(),
        inputs: std::iter::once("x".to_owned()).chain(names.iter().cloned()).collect(),
        outputs: vec!["y".to_owned()],
        attributes: attributes.iter().map(|(name, a)| ((*name).to_owned(), a.clone())).collect(),
        ..OnnxNode::default()
    };
    let graph = OnnxGraph {
        inputs: vec![value("x", Some(dims))],
        outputs: vec![value("y", None)],
        initializers: names.into_iter().zip(constants.iter().map(|&c| Tensor::scalar(c))).collect(),
        nodes: vec![node],
        ..OnnxGraph::default()
    };
    let g = margay_onnx::import(&Model::new(17, graph)).unwrap_or_else(|e| panic!("{op}: {e}"));
    let shape = g.ty(g.outputs()[0].value).extents().unwrap();
    let ones = Tensor::from_slice(&shape, &vec![1f32; shape.iter().product()]).unwrap();
    let g = derivatives(&g, &[g.inputs()[0].into()]);
    eval::run(&g, &[("x", x), ("dy", &ones)]).unwrap()[0].to_vec::<f32>().unwrap()
}

#[test]
fn operators_of_onnx_have_derivatives_at_their_corners() {
    let row = |x: &[f32]| Tensor::from_slice(&[x.len()], x).unwrap();
    let edges = row(&[-2., -1., 0., 1., 2.]);
    assert_eq!(derived_onnx("Clip", &[], &edges, &[-1.0, 1.0]), [0., 1., 1., 1., 0.]);
    // Norms of rows of zeros.
    let rows = Tensor::from_slice(&[2, 2], &[0f32, 0., 3., 4.]).unwrap();
    let axes = ("axes", Attribute::Ints(vec![1]));
    assert_eq!(derived_onnx("ReduceL2", std::slice::from_ref(&axes), &rows, &[]), [0., 0., 0.6, 0.8]);
    assert_eq!(derived_onnx("ReduceL1", &[axes], &rows, &[]), [0., 0., 1., 1.]);
    let along = ("axis", Attribute::Int(1));
    let unit = derived_onnx("LpNormalization", &[along], &rows, &[]);
    assert!(unit.iter().all(|d| d.is_finite()), "{unit:?}");
    // Far out the derivative is that of the asymptote.
    let far = row(&[1e14, -1e14]);
    assert_eq!(derived_onnx("Elu", &[], &far, &[]), [1., 0.]);
    assert_eq!(derived_onnx("Softplus", &[], &far, &[]), [1., 0.]);
}
