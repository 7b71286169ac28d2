//! Random parameters to begin from, by what reads them: He, Zhang, Ren and Sun, *Delving Deep into Rectifiers*, 2015
//! (arXiv 1502.01852).
//!
//! | read as | begins as |
//! |---|---|
//! | the matrix of a product, the kernel of a convolution | normal, variance 2 / fan-in before an activation, else 1 / fan-in |
//! | a table that is looked up, a table that is added | normal, deviation 0.02 |
//! | the scale of a normalization, a factor | 1 |
//! | a bias, the shift of a normalization, anything else | 0 |
//!
//! What is random is named by the seed and the position of the parameter among all constants of the graph.

use margay_ir::ops::{Numbers, Parameter, Symbolic};
use margay_ir::{Graph, NodeId, Value};
use margay_passes::parameter_names;
use margay_tensor::Tensor;
use margay_tensor::random::Philox;

use crate::TrainError;
use crate::fit::Tensors;

/// Deviation of tables.
const TABLE: f64 = 0.02;

/// Streams of random numbers begin here; those below are the orders of epochs.
const STREAMS: u64 = 2 << 32;

/// Operators that are looked through for an activation behind a product.
const LOOKED_THROUGH: usize = 4;

/// First values of constants of a graph, by name.
///
/// # Errors
/// [`TrainError::Options`] for a node that is no constant of floats.
pub fn initial(g: &Graph, constants: &[NodeId], seed: u64) -> Result<Tensors, TrainError> {
    let names = parameter_names(g);
    let first = |n: &NodeId| {
        let position = names.iter().position(|(known, _)| known == n);
        let position = position.ok_or_else(|| {
            TrainError::Options(format!("`{}` is no constant of floats", g.node(*n).origin.name()))
        })?;
        let stream = Philox::new(seed, STREAMS + position as u64);
        Ok((names[position].1.clone(), filled(g, *n, &stream)?))
    };
    constants.iter().map(first).collect()
}

fn filled(g: &Graph, n: NodeId, stream: &Philox) -> Result<Tensor, TrainError> {
    let ty = g.ty(n.into());
    let shape = ty.extents().unwrap_or_default();
    let count = shape.iter().product();
    let values = match start(g, n.into(), &shape) {
        Start::Constant(x) => vec![x; count],
        Start::Normal(deviation) => {
            let mut values = vec![0f64; count];
            stream.fill_normal_f64(0, &mut values);
            values.iter_mut().for_each(|v| *v *= deviation);
            values
        }
    };
    let tensor = Numbers::Float(values).into_tensor(ty.dtype, &shape);
    tensor.map_err(|e| TrainError::Options(e.to_string()))
}

enum Start {
    Constant(f64),
    Normal(f64),
}

/// How a constant begins, by the first node that reads it.
fn start(g: &Graph, v: Value, shape: &[usize]) -> Start {
    let Some((user, slot)) = g.users_of(v).first().copied() else { return Start::Constant(0.0) };
    let normal = |fan_in: usize| {
        let gain = if is_activated(g, user.into()) { 2.0 } else { 1.0 };
        Start::Normal((gain / fan_in.max(1) as f64).sqrt())
    };
    let elementwise = g.op(user).facts().elementwise.is_some();
    let several = shape.iter().filter(|&&d| d > 1).count() > 1;
    match parameter(g, user, slot) {
        Some(Parameter::Weight(terms)) if !shape.is_empty() => normal(terms(shape)),
        Some(Parameter::Table) => Start::Normal(TABLE),
        // One row per place, such as those of positions.
        Some(Parameter::Shift) if elementwise && several => Start::Normal(TABLE),
        Some(Parameter::Scale) => Start::Constant(1.0),
        _ => Start::Constant(0.0),
    }
}

fn parameter(g: &Graph, user: NodeId, slot: u16) -> Option<Parameter> {
    g.op(user).facts().parameters.get(usize::from(slot)).copied().flatten()
}

/// Whether a product is followed by an activation, behind its bias, a scale, a normalization or a change of shape.
fn is_activated(g: &Graph, product: Value) -> bool {
    let mut v = product;
    for _ in 0..LOOKED_THROUGH {
        let Some(user) = g.sole_user(v) else { return false };
        let facts = g.op(user).facts();
        if facts.elementwise.and_then(|e| e.activation).is_some_and(|a| a.rectifies()) {
            return true;
        }
        let scaled = |p: &Option<Parameter>| matches!(p, Some(Parameter::Scale | Parameter::Shift));
        let moved = matches!(facts.symbolic, Some(Symbolic::Moves([])));
        if !moved && !facts.parameters.iter().any(scaled) {
            return false;
        }
        v = user.into();
    }
    false
}
