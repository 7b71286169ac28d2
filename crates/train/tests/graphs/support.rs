//! What the tests of this crate share: graphs in f64, run by the reference interpreter.

use margay_ir::ops::{Const, Numbers};
use margay_ir::{Graph, Origin, Payload, TensorType, Value, eval};
use margay_tensor::Tensor;
use margay_tensor::random::Philox;

/// Standard normal numbers, the same for the same stream.
pub(crate) fn normal(shape: &[usize], stream: u64) -> Tensor {
    let mut values = vec![0f64; shape.iter().product()];
    Philox::new(11, stream).fill_normal_f64(0, &mut values);
    Tensor::from_slice(shape, &values).unwrap()
}

/// The elements of any tensor.
pub(crate) fn floats(t: &Tensor) -> Vec<f64> {
    Numbers::of(t).unwrap().floats()
}

/// Adds a constant with a name.
pub(crate) fn constant(g: &mut Graph, name: &str, t: &Tensor) -> Value {
    let op = Const { payload: Payload::new(t.clone()) };
    g.add(op, &[], Origin::named(name)).unwrap()
}

/// Adds an input like a tensor.
pub(crate) fn input(g: &mut Graph, name: &str, t: &Tensor) -> Value {
    g.add_input(name, TensorType::of(t))
}

/// Runs a graph; the outputs by name.
pub(crate) fn run(g: &Graph, inputs: &[(&str, &Tensor)]) -> Vec<(String, Tensor)> {
    let outputs = eval::run(g, inputs).unwrap_or_else(|e| panic!("{e}"));
    g.outputs().iter().map(|o| o.name.to_string()).zip(outputs).collect()
}

/// An output by its name.
pub(crate) fn output<'a>(outputs: &'a [(String, Tensor)], name: &str) -> &'a Tensor {
    &outputs.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no output `{name}`")).1
}

/// Panics unless all numbers are close.
pub(crate) fn assert_near(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        assert!((x - y).abs() <= tolerance * y.abs().max(1.0), "{what}: element {i} is {x}, expected {y}");
    }
}
