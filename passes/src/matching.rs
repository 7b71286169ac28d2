//! Small questions that several recognizers ask.

use margay_ir::ops::Numbers;
use margay_ir::{Graph, Op, Value};

/// The value of a constant of one element; of an f32, the shortest decimal that rounds to it.
pub(crate) fn scalar(g: &Graph, v: Value) -> Option<f64> {
    let t = g.constant(v)?.tensor();
    if t.len() != 1 {
        return None;
    }
    if let Ok(x) = t.as_slice::<f32>() {
        return x[0].to_string().parse().ok();
    }
    Numbers::of(t).ok().map(Numbers::floats).and_then(|x| x.first().copied())
}

/// Whether a constant of one element is `x`: exactly where f32 has that number, else up to the rounding of f32.
pub(crate) fn is_number(g: &Graph, v: Value, x: f64) -> bool {
    let tolerance = if f64::from(x as f32) == x { 0.0 } else { 1e-6 * x.abs() };
    scalar(g, v).is_some_and(|y| (y - x).abs() <= tolerance)
}

/// The two operands in both orders.
pub(crate) fn both_orders(g: &Graph, v: Value) -> [[Value; 2]; 2] {
    let inputs = g.inputs_of(v.node);
    [[inputs[0], inputs[1]], [inputs[1], inputs[0]]]
}

/// The factors of a product of factors, through every multiplication nobody else reads; division by a constant of
/// one element counts as multiplication by its reciprocal. Constants of one element are gathered in the second
/// result.
pub(crate) fn factors(g: &Graph, root: Value) -> (Vec<Value>, f64) {
    let (mut out, mut constant, mut stack) = (Vec::new(), 1.0, vec![root]);
    while let Some(v) = stack.pop() {
        let inner = v == root || g.sole_user(v).is_some();
        let inputs = g.inputs_of(v.node);
        match g.op(v.node) {
            Op::Mul(_) if inner => stack.extend([inputs[1], inputs[0]]),
            Op::Div(_) if inner && scalar(g, inputs[1]).is_some_and(|c| c != 0.0) => {
                constant /= scalar(g, inputs[1]).unwrap_or(1.0);
                stack.push(inputs[0]);
            }
            _ => match scalar(g, v) {
                Some(c) => constant *= c,
                None => out.push(v),
            },
        }
    }
    (out, constant)
}
