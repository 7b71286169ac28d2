//! The reference interpreter: every node by its operator's `eval`, slow and obvious.
//!
//! Compiled code, passes and exports are compared with it. Symbols are bound from the shapes of the inputs.

use std::collections::HashMap;

use margay_tensor::{Binding, Dim, Tensor};

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
    if let Some((symbol, v)) = binding.iter().find(|(_, v)| **v < 1) {
        return Err(RunError::Dimension(format!("dimension `{symbol}` is {v}, expected at least 1")));
    }
    Ok(binding)
}

/// Why inputs share an extent which the model gives several names, for the end of a message.
fn guarded(g: &Graph, dim: &Dim) -> String {
    let guards = g.guards().iter().filter(|guard| guard.value == *dim);
    guards.map(|guard| format!("; `{}` needs `{}` = {}", guard.node, guard.symbol, guard.value)).collect()
}

/// Runs the graph on inputs by name and returns its outputs in order.
pub fn run(g: &Graph, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, RunError> {
    let find = |name: &str| inputs.iter().find(|(n, _)| *n == name).map(|(_, t)| *t);
    let binding = bind_symbols(g, |name| find(name).map(Tensor::shape))?;
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
            values.insert(Value { node: n, out: out as u16 }, tensor);
        }
    }
    Ok(g.outputs().iter().map(|o| values[&o.value].clone()).collect())
}

/// Runs one node.
fn eval_node(g: &Graph, n: NodeId, binding: &Binding, operands: &[&Tensor]) -> Result<Vec<Tensor>, RunError> {
    let op = g.op(n).bind(binding);
    let failed = |error| RunError::Node { op: op.name(), name: g.node(n).origin.name().into(), error };
    let types: Vec<crate::TensorType> = operands.iter().map(|t| crate::TensorType::of(t)).collect();
    op.infer(&types.iter().collect::<Vec<_>>()).map_err(|e| failed(e.into()))?;
    op.eval(operands).map_err(failed)
}
