//! Normalizations by mean and variance of the batch at hand that a file spells out by other operators, as what was exported of
//! a graph in training does.
//!
//! Found are differences `x - mean x` over all axes but that of channels, the second one, whose squares, or those of `x`,
//! are averaged over the same axes. Deliberately not looked at: graphs inside operators.

use margay_ir::ops::ReduceKind;
use margay_ir::{Graph, NodeId, Op, Value};

/// The nodes that subtract the mean of a batch, in order.
pub(crate) fn normalized_by_batch(g: &Graph) -> Vec<NodeId> {
    let means: Vec<(Value, Value, Vec<usize>)> = g.order().into_iter().filter_map(|n| mean(g, n)).collect();
    let centred = |n: &NodeId| {
        let Op::Sub(_) = g.op(*n) else { return false };
        let operands = g.inputs_of(*n);
        let (x, taken) = (operands[0], stretched(g, operands[1]));
        let Some((_, _, axes)) = means.iter().find(|(mean, of, _)| *mean == taken && *of == x) else {
            return false;
        };
        let bases = [x, (*n).into()];
        let is_variance = |(_, of, over): &(Value, Value, Vec<usize>)| {
            over == axes && square(g, *of).is_some_and(|base| bases.contains(&base))
        };
        by_channel(g, x, axes) && means.iter().any(is_variance)
    };
    g.order().into_iter().filter(centred).collect()
}

/// A mean: its value, what it is of, and over which axes.
fn mean(g: &Graph, n: NodeId) -> Option<(Value, Value, Vec<usize>)> {
    match g.op(n) {
        Op::Reduce(op) if op.kind == ReduceKind::Mean => Some((n.into(), g.inputs_of(n)[0], op.axes.clone())),
        _ => None,
    }
}

/// Whether axes are those of samples and places.
fn by_channel(g: &Graph, x: Value, axes: &[usize]) -> bool {
    let ty = g.ty(x);
    let others = (0..ty.ndim()).filter(|axis| *axis != 1);
    ty.ndim() > 1 && !ty.shape[0].is(1) && others.eq(axes.iter().copied())
}

/// What is repeated or has other axes of extent 1.
fn stretched(g: &Graph, v: Value) -> Value {
    match g.op(v.node) {
        Op::Broadcast(_) | Op::Reshape(_) => stretched(g, g.inputs_of(v.node)[0]),
        _ => v,
    }
}

/// What a value is the square of.
fn square(g: &Graph, v: Value) -> Option<Value> {
    let operands = g.inputs_of(v.node);
    match g.op(v.node) {
        Op::Mul(_) if operands[0] == operands[1] => Some(operands[0]),
        Op::Pow(_) => {
            let exponent = g.constant(operands[1])?.tensor().to_vec::<f32>().ok()?;
            exponent.iter().all(|e| *e == 2.0).then_some(operands[0])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use margay_ir::text::parse;

    use super::*;

    fn found(shape: &str, axes: &str, squared: &str, kept: &str) -> usize {
        let text = format!(
            "graph @g(%x: f32[{shape}]) -> (y: f32[{shape}], v: f32[{kept}]) {{
  %1 = reduce %x {{kind = mean, axes = [{axes}], keepdims = true}} : f32[{kept}]
  %2 = sub %x, %1 : f32[{shape}]
  %3 = mul {squared}, {squared} : f32[{shape}]
  %4 = reduce %3 {{kind = mean, axes = [{axes}], keepdims = true}} : f32[{kept}]
  return %2, %4
}}
"
        );
        normalized_by_batch(&parse(&text, &|_, _| None).unwrap_or_else(|e| panic!("{e}"))).len()
    }

    #[test]
    fn normalizations_by_the_batch_are_found_and_others_are_not() {
        assert_eq!(found("N, 3, 8, 8", "0, 2, 3", "%2", "1, 3, 1, 1"), 1);
        assert_eq!(found("N, 3, 8, 8", "0, 2, 3", "%x", "1, 3, 1, 1"), 1);
        assert_eq!(found("16, 3", "0", "%2", "1, 3"), 1);
        // Instances and layers; a batch of one.
        assert_eq!(found("N, 3, 8, 8", "2, 3", "%2", "N, 3, 1, 1"), 0);
        assert_eq!(found("N, 3", "1", "%2", "N, 1"), 0);
        assert_eq!(found("1, 3, 8, 8", "0, 2, 3", "%2", "1, 3, 1, 1"), 0);
    }
}
