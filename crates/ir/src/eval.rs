//! The reference interpreter: every node by its operator's `eval`, slow and obvious.
//!
//! Compiled code, passes and exports are compared with it. Symbols are bound from the shapes of the inputs.

use std::collections::HashMap;

use margay_tensor::{Binding, Dim, Tensor, TensorError, is_decided, may_be_empty};

use crate::ops::EvalError;
use crate::{Graph, NodeId, Op, Value};

/// The inputs given to a graph do not fit it, or an operator failed on them.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RunError {
    /// An input was not given (the caller's fault).
    #[error("input `{0}` is missing")]
    Missing(String),
    /// An input has the wrong type or shape (the caller's fault).
    #[error("input `{name}`: expected {expected}, found {found}")]
    Input {
        /// Its name.
        name: String,
        /// The type the graph declares.
        expected: String,
        /// The type given.
        found: String,
    },
    /// A dimension has two values, or none, or one below 1 (the caller's fault).
    #[error("{0}")]
    Dimension(String),
    /// A node failed on its inputs.
    #[error("`{op}` at `{name}`: {error}")]
    Node {
        /// The operator.
        op: &'static str,
        /// Origin of the node.
        name: String,
        /// Why.
        error: EvalError,
    },
}

/// Finds the values of symbols from the shapes of named inputs. Inputs that are not given bind nothing.
pub fn bind_symbols<'a>(
    g: &Graph,
    shapes: impl Fn(&str) -> Option<&'a [usize]>,
) -> Result<Binding, RunError> {
    let mut binding = Binding::new();
    let mut pending: Vec<(String, Dim, usize)> = Vec::new();
    for &n in g.inputs() {
        let Op::Input(input) = g.op(n) else { continue };
        let Some(shape) = shapes(&input.name) else { continue };
        if shape.len() != input.ty.ndim() {
            return Err(RunError::Input {
                name: input.name.to_string(),
                expected: input.ty.to_string(),
                found: format!("{shape:?}"),
            });
        }
        for (dim, &extent) in input.ty.shape.iter().zip(shape) {
            match dim.as_symbol() {
                Some(symbol) => match binding.insert(symbol.clone(), extent as i64) {
                    Some(old) if old != extent as i64 => {
                        return Err(RunError::Dimension(format!(
                            "dimension `{symbol}` is {old} in one input and {extent} in `{}`{}",
                            input.name,
                            guarded(g, dim)
                        )));
                    }
                    _ => {}
                },
                None => pending.push((input.name.to_string(), dim.clone(), extent)),
            }
        }
    }
    for (name, dim, extent) in pending {
        if dim.eval(&binding).is_ok_and(|v| v != extent as i64) {
            return Err(RunError::Dimension(format!(
                "input `{name}`: expected extent `{dim}`, found {extent}{}",
                guarded(g, &dim)
            )));
        }
    }
    if let Some((symbol, v)) = binding.iter().find(|(s, v)| **v < 1 && !may_be_empty(s)) {
        return Err(RunError::Dimension(format!("dimension `{symbol}` is {v}, expected at least 1")));
    }
    Ok(binding)
}

/// Why inputs share an extent which the model gives several names, for the end of a message.
fn guarded(g: &Graph, dim: &Dim) -> String {
    let guards = g.guards().iter().filter(|guard| guard.value == *dim);
    guards.map(|guard| format!("; `{}` needs `{}` = {}", guard.node, guard.symbol, guard.value)).collect()
}

/// Runs the graph on inputs by name and returns its outputs in order, but for those that count others: what is counted
/// has the extents that they say.
pub fn run(g: &Graph, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, RunError> {
    let find = |name: &str| inputs.iter().find(|(n, _)| *n == name).map(|(_, t)| *t);
    let mut binding = bind_symbols(g, |name| find(name).map(Tensor::shape))?;
    let mut values: HashMap<Value, Tensor> = HashMap::new();
    for n in g.order() {
        let node = g.node(n);
        if let Op::Input(input) = &node.op {
            let given = find(&input.name).ok_or_else(|| RunError::Missing(input.name.to_string()))?;
            if given.dtype() != input.ty.dtype {
                return Err(RunError::Input {
                    name: input.name.to_string(),
                    expected: input.ty.to_string(),
                    found: format!("{}{:?}", given.dtype(), given.shape()),
                });
            }
            values.insert(n.into(), given.clone());
            continue;
        }
        let operands: Vec<&Tensor> = g.inputs_of(n).iter().map(|v| &values[v]).collect();
        for (out, tensor) in eval_node(g, n, &binding, &operands)?.into_iter().enumerate() {
            learn(&mut binding, &node.types[out], tensor.shape());
            values.insert(Value { node: n, out: out as u16 }, tensor);
        }
    }
    let given = g.outputs().iter().filter(|o| o.counts.is_none());
    given.map(|o| counted(g, &o.name, &values[&o.value], &values)).collect()
}

/// The values of symbols that a run decides, from what a node gave.
fn learn(binding: &mut Binding, ty: &crate::TensorType, shape: &[usize]) {
    for (dim, extent) in ty.shape.iter().zip(shape) {
        if let Some(symbol) = dim.as_symbol().filter(|s| is_decided(s)) {
            binding.entry(symbol).or_insert(*extent as i64);
        }
    }
}

/// An output with the extents that others count.
fn counted(g: &Graph, name: &str, t: &Tensor, values: &HashMap<Value, Tensor>) -> Result<Tensor, RunError> {
    let mut shape = t.shape().to_vec();
    for other in g.outputs() {
        let Some(counts) = other.counts.as_ref().filter(|c| *c.output == *name) else { continue };
        let count = values[&other.value].to_vec::<i64>().ok().and_then(|v| v.first().copied());
        let (Some(extent), Some(count)) = (shape.get_mut(counts.axis), count) else { continue };
        *extent = count.clamp(0, *extent as i64) as usize;
    }
    let bytes = shape.iter().product::<usize>() * t.dtype().bytes();
    let failed =
        |error: TensorError| RunError::Node { op: "output", name: name.to_owned(), error: error.into() };
    Tensor::from_bytes(t.dtype(), &shape, &t.bytes()[..bytes]).map_err(failed)
}

/// Runs one node.
fn eval_node(g: &Graph, n: NodeId, binding: &Binding, operands: &[&Tensor]) -> Result<Vec<Tensor>, RunError> {
    let op = g.op(n).bind(binding);
    let failed = |error| RunError::Node { op: op.name(), name: g.node(n).origin.name().into(), error };
    let types: Vec<crate::TensorType> = operands.iter().map(|t| crate::TensorType::of(t)).collect();
    op.infer(&types.iter().collect::<Vec<_>>()).map_err(|e| failed(e.into()))?;
    op.eval(operands).map_err(failed)
}
