//! Panther's layers as graphs: the weight that a sketch stands for, and derivatives against the formulas of its backward
//! passes (arXiv 2601.15473), which are written out here once more by plain loops.

mod attention;
mod causal;
mod derivatives;
mod favor;
mod features;
mod forms;
mod hybrid;
mod kernels;
mod layers;
mod lookups;
mod recurrences;
mod relative;
mod sketches;
mod structured;
mod torch;

use std::collections::HashMap;
use std::ops::Range;

use margay_driver::{backend, build::jit};
use margay_ir::ops::Numbers;
use margay_ir::{Graph, Op, Value, eval, text};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::random::Philox;
use margay_tensor::{Binding, DType, Tensor};
use margay_tests::derivatives;

fn random(shape: &[usize], stream: u64) -> Tensor {
    let mut values = vec![0f32; shape.iter().product()];
    Philox::new(11, stream).fill_normal_f32(0, &mut values);
    wide(&Tensor::from_slice(shape, &values).unwrap())
}

fn wide(t: &Tensor) -> Tensor {
    Numbers::of(t).unwrap().into_tensor(DType::F64, t.shape()).unwrap()
}

fn narrow(t: &Tensor) -> Tensor {
    Numbers::of(t).unwrap().into_tensor(DType::F32, t.shape()).unwrap()
}

fn floats(t: &Tensor) -> Vec<f64> {
    Numbers::of(t).unwrap().floats()
}

/// The same graph in f64.
fn widened(g: &Graph) -> Graph {
    let mut constants: HashMap<String, Tensor> = HashMap::new();
    for n in g.order() {
        if let Op::Const(c) = g.op(n) {
            let tensor = c.payload.tensor();
            let wide = if tensor.dtype() == DType::F32 { wide(tensor) } else { tensor.clone() };
            constants.insert(c.payload.key().to_string(), wide);
        }
    }
    let text = g.to_string().replace("f32", "f64");
    text::parse(&text, &|key, _| constants.get(key).cloned().map(Into::into))
        .unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Compares derivatives of the first output by values, given its cotangent: by the reference in f64, and compiled in f32.
fn check(
    what: &str,
    g: &Graph,
    by: &dyn Fn(&Graph) -> Vec<Value>,
    inputs: &[(&str, Tensor)],
    dy: &Tensor,
    expected: &[Vec<f64>],
) {
    let given = |f: &dyn Fn(&Tensor) -> Tensor| -> Vec<(String, Tensor)> {
        let mut all: Vec<_> = inputs.iter().map(|(name, t)| (name.to_string(), f(t))).collect();
        all.push(("dy".into(), f(dy)));
        all
    };
    let close = |how: &str, found: Vec<Tensor>, tolerance: f64| {
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let found = floats(found);
            assert_eq!(found.len(), expected.len(), "{what}: derivative {i}");
            let scale = expected.iter().fold(1e-3f64, |m, e| m.max(e.abs()));
            for (at, (f, e)) in found.iter().zip(expected).enumerate() {
                let error = (f - e).abs() / scale;
                assert!(error <= tolerance, "{what} {how}: d{i}[{at}] is {f}, by the formula {e}");
            }
        }
    };
    let wide_graph = widened(g);
    let wide_graph = derivatives(&wide_graph, &by(&wide_graph));
    let used = |g: &Graph, name: &str| g.inputs().iter().any(|n| g.node(*n).origin.name() == name);
    let all = given(&|t| t.clone());
    let by_name: Vec<(&str, &Tensor)> =
        all.iter().map(|(n, t)| (n.as_str(), t)).filter(|(n, _)| used(&wide_graph, n)).collect();
    close("in f64", eval::run(&wide_graph, &by_name).unwrap(), 1e-10);

    let graph = derivatives(g, &by(g));
    let all = given(&narrow);
    let by_name: Vec<(&str, &Tensor)> =
        all.iter().map(|(n, t)| (n.as_str(), t)).filter(|(n, _)| used(&graph, n)).collect();
    let executable =
        jit(&graph, &Binding::new(), &*backend::native()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut session = Session::new(&executable, SessionOptions { threads: 1 }).unwrap();
    let found = session.run(&by_name).unwrap().into_iter().map(|(_, t)| t).collect();
    close("compiled", found, 1e-4);
}

/// Compares derivatives of the only output of a graph in f64 by its first inputs with finite differences.
fn check_by_differences(what: &str, forward: &Graph, inputs: &[(&'static str, Tensor)], by: usize) {
    check_range_by_differences(what, forward, inputs, 0..by);
}

/// The same by other inputs.
fn check_range_by_differences(
    what: &str,
    forward: &Graph,
    inputs: &[(&'static str, Tensor)],
    by: Range<usize>,
) {
    let asked: Vec<Value> = forward.inputs()[by.clone()].iter().map(|n| (*n).into()).collect();
    let g = derivatives(forward, &asked);
    let run = |inputs: &[(&'static str, Tensor)]| {
        let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
        eval::run(forward, &given).unwrap().swap_remove(0)
    };
    let dy = random(run(inputs).shape(), 7);
    let mut given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
    given.push(("dy", &dy));
    let derivatives = eval::run(&g, &given).unwrap();
    let weights = floats(&dy);
    for (i, derivative) in by.zip(&derivatives) {
        let derivative = floats(derivative);
        let scale = derivative.iter().fold(0f64, |m, d| m.max(d.abs()));
        for at in (0..derivative.len()).step_by(7) {
            let moved = |by: f64| {
                let mut inputs = inputs.to_vec();
                let mut values = floats(&inputs[i].1);
                values[at] += by;
                inputs[i].1 = Tensor::from_slice(inputs[i].1.shape(), &values).unwrap();
                floats(&run(&inputs)).iter().zip(&weights).map(|(y, w)| y * w).sum::<f64>()
            };
            let step = 1e-5;
            let expected = (moved(step) - moved(-step)) / (2.0 * step);
            let error = (derivative[at] - expected).abs();
            assert!(error < 1e-6 * scale, "{what} by {i} at {at}: {} {expected}", derivative[at]);
        }
    }
}

/// `a [m, k]` times `b [k, n]`, added to `out`.
fn multiply(out: &mut [f64], a: &[f64], b: &[f64], [m, k, n]: [usize; 3]) {
    for i in 0..m {
        for l in 0..k {
            for j in 0..n {
                out[i * n + j] += a[i * k + l] * b[l * n + j];
            }
        }
    }
}

fn transposed(a: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..rows * columns).map(|i| a[i % rows * columns + i / rows]).collect()
}
