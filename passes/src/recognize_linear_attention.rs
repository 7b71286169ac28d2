//! Finds linear attention in the products exporters write: `φq (φkᵀ v) / (φq Σ φk + ε)` on four axes.
//!
//! The sum of the keys may be taken before or after they are transposed, with or without its axis of 1, and the
//! denominator may be a product of matrices or a sum of products. What the features φ are does not matter.
//!
//! The causal form is written as weights of all pairs, `φq φkᵀ` with 0 for later keys, by a choice or by a product with ones and
//! zeros; their product with the values is divided by their sums. Lengths may be open where positions are compared.
//!
//! Required stage: imported. Declines when the product of keys and values, the weights, the numerator or the denominator is
//! read by somebody else.
//!
//! ```text
//! graph @before(%q: f32[B, 2, S, 6], %k: f32[B, 2, S, 6], %v: f32[B, 2, S, 4]) -> (y: f32[B, 2, S, 4]) {
//!   %0 = transpose %k {perm = [0, 1, 3, 2]} : f32[B, 2, 6, S]  // att/Transpose
//!   %1 = matmul %0, %v : f32[B, 2, 6, 4]  // att/MatMul
//!   %2 = matmul %q, %1 : f32[B, 2, S, 4]  // att/MatMul_1
//!   %3 = reduce %k {kind = sum, axes = [2], keepdims = true} : f32[B, 2, 1, 6]  // att/ReduceSum
//!   %4 = transpose %3 {perm = [0, 1, 3, 2]} : f32[B, 2, 6, 1]  // att/Transpose_1
//!   %5 = matmul %q, %4 : f32[B, 2, S, 1]  // att/MatMul_2
//!   %6 = const 0.5 : f32
//!   %7 = add %5, %6 : f32[B, 2, S, 1]  // att/Add
//!   %8 = div %2, %7 : f32[B, 2, S, 4]  // att/Div
//!   return %8
//! }
//! graph @after(%q: f32[B, 2, S, 6], %k: f32[B, 2, S, 6], %v: f32[B, 2, S, 4]) -> (y: f32[B, 2, S, 4]) {
//!   %0 = linear_attention %q, %k, %v {epsilon = 0.5} : f32[B, 2, S, 4]  // att/Div
//!   return %0
//! }
//! ```

use margay_ir::ops::{Bits, LinearAttention, Reduce, ReduceKind, Transpose};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Value, Verdict,
};

use crate::matching::{both_orders, is_number, is_triangle, scalar, sees_earlier};

/// Finds linear attention.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecognizeLinearAttention;

impl Pass for RecognizeLinearAttention {
    fn name(&self) -> &'static str {
        "recognize-linear-attention"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let rules = [
            Rule { name: "linear-attention-from-products", apply: whole },
            Rule { name: "causal-linear-attention-from-weights", apply: causal },
        ];
        rewrite(self.name(), g, cx, self, &rules)
    }
}

fn whole(g: &Graph, n: NodeId, _: &RecognizeLinearAttention) -> RuleResult {
    let Op::Div(_) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let [numerator, denominator] = both_orders(g, n.into())[0];
    let Some([q, products]) = product(g, numerator) else { return Ok(Verdict::NoMatch) };
    let Some([kt, v]) = product(g, products) else { return Ok(Verdict::NoMatch) };
    let (sums, epsilon) = with_epsilon(g, denominator);
    let four = [q, kt, v, sums].iter().all(|&x| g.ty(x).ndim() == 4);
    if !four || !is_sum_of_weights(g, sums, q, kt) {
        return Ok(Verdict::NoMatch);
    }
    let read = [("product of keys and values", products, 1), ("numerator", numerator, 1), ("sum", sums, 1)];
    match others_read(g, &read) {
        Some(declined) => Ok(declined),
        None => linear(g, [n, products.node], [q, kt, v], false, epsilon),
    }
}

fn causal(g: &Graph, n: NodeId, _: &RecognizeLinearAttention) -> RuleResult {
    let Op::Div(_) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let [numerator, denominator] = both_orders(g, n.into())[0];
    let Some([weights, v]) = product(g, numerator) else { return Ok(Verdict::NoMatch) };
    let (sums, epsilon) = with_epsilon(g, denominator);
    let Some(products) = unmasked(g, weights) else { return Ok(Verdict::NoMatch) };
    let Some([q, kt]) = product(g, products) else { return Ok(Verdict::NoMatch) };
    let four = [q, kt, v, sums].iter().all(|&x| g.ty(x).ndim() == 4);
    if !four || g.ty(q).shape[2] != g.ty(kt).shape[3] || !is_sum_of_rows(g, sums, weights) {
        return Ok(Verdict::NoMatch);
    }
    let read = [
        ("product of queries and keys", products, 1),
        ("matrix of weights", weights, 2),
        ("numerator", numerator, 1),
        ("sum", sums, 1),
    ];
    match others_read(g, &read) {
        Some(declined) => Ok(declined),
        None => linear(g, [n, products.node], [q, kt, v], true, epsilon),
    }
}

/// Says of the first value that somebody else reads how many read it; each has as many readers as it should.
fn others_read(g: &Graph, values: &[(&str, Value, usize)]) -> Option<Verdict> {
    values.iter().find_map(|&(what, value, expected)| {
        let readers = g.users_of(value).len() + usize::from(g.is_output(value));
        (readers != expected || g.is_output(value))
            .then(|| Verdict::Declined(format!("the {what} of linear attention has {readers} readers")))
    })
}

/// The operator in place of a quotient; the second node is the one that reads the transposed keys.
fn linear(
    g: &Graph,
    [n, reader]: [NodeId; 2],
    [q, kt, v]: [Value; 3],
    causal: bool,
    epsilon: f64,
) -> RuleResult {
    // Extents that broadcast are no attention.
    let heads = |x: Value| g.ty(x).shape[..2].to_vec();
    if heads(q) != heads(kt) || heads(q) != heads(v) {
        return Ok(Verdict::NoMatch);
    }
    let mut patch = Patch::new();
    let k = match transposed(g, kt) {
        Some(k) => k,
        None => {
            let swap = Transpose { perm: vec![0, 1, 3, 2] };
            patch.add(g, swap, &[kt], g.node(reader).origin.clone())?
        }
    };
    let op = LinearAttention { causal, epsilon: Bits::new(epsilon) };
    let new = patch.add(g, op, &[q, k, v], g.node(n).origin.clone())?;
    if patch.ty(g, new) != g.ty(n.into()) {
        return Ok(Verdict::NoMatch);
    }
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

/// The products of queries and keys, of weights that are 0 for later keys.
fn unmasked(g: &Graph, weights: Value) -> Option<Value> {
    let inputs = g.inputs_of(weights.node);
    let products = match g.op(weights.node) {
        Op::Select(_) => {
            let (products, other) = if sees_earlier(g, inputs[0], weights)? { (1, 2) } else { (2, 1) };
            is_number(g, inputs[other], 0.0).then_some(inputs[products])
        }
        Op::Mul(_) => both_orders(g, weights).into_iter().find_map(|[products, mask]| {
            let of_numbers = is_triangle::<f32>(g, mask, weights, |x| x == 1.0, |x| x == 0.0);
            let of_tests = || {
                matches!(g.op(mask.node), Op::Cast(_))
                    && sees_earlier(g, g.inputs_of(mask.node)[0], weights) == Some(true)
            };
            (of_numbers || of_tests()).then_some(products)
        }),
        _ => None,
    }?;
    (g.ty(products) == g.ty(weights)).then_some(products)
}

/// Whether a value `[B, H, S, 1]` holds the sums of weights over their last axis.
fn is_sum_of_rows(g: &Graph, v: Value, weights: Value) -> bool {
    let summed = if is_reshape_by_ones(g, v) { g.inputs_of(v.node)[0] } else { v };
    g.ty(v).shape[3].is(1) && matches!(sum(g, summed), Some((x, 3, _)) if x == weights)
}

/// The operands of a matrix product.
fn product(g: &Graph, v: Value) -> Option<[Value; 2]> {
    matches!(g.op(v.node), Op::MatMul(_)).then(|| both_orders(g, v)[0])
}

/// What has its last two axes exchanged to give a value.
fn transposed(g: &Graph, v: Value) -> Option<Value> {
    match g.op(v.node) {
        Op::Transpose(t) if t.perm == [0, 1, 3, 2] => Some(g.inputs_of(v.node)[0]),
        _ => None,
    }
}

/// A denominator without the number added to it.
fn with_epsilon(g: &Graph, v: Value) -> (Value, f64) {
    if matches!(g.op(v.node), Op::Add(_)) && g.sole_user(v).is_some() {
        for [x, number] in both_orders(g, v) {
            if let Some(epsilon) = scalar(g, number).filter(|_| g.ty(x) == g.ty(v)) {
                return (x, epsilon);
            }
        }
    }
    (v, 0.0)
}

/// Whether a value `[B, H, S, 1]` is the product of queries `[B, H, S, M]` and the sum of transposed keys
/// `[B, H, M, T]` over the last axis.
fn is_sum_of_weights(g: &Graph, v: Value, q: Value, keys: Value) -> bool {
    if let Some([left, column]) = product(g, v) {
        let shape = &g.ty(column).shape;
        return left == q && shape[3].is(1) && is_sum_of_keys(g, column, keys);
    }
    let Some((weighted, 3, true)) = sum(g, v) else { return false };
    matches!(g.op(weighted.node), Op::Mul(_))
        && both_orders(g, weighted).into_iter().any(|[left, row]| {
            let shape = &g.ty(row).shape;
            left == q && shape.len() == 4 && shape[2].is(1) && is_sum_of_keys(g, row, keys)
        })
}

/// Whether a value holds the sums of transposed keys over their last axis; it has an axis of 1 besides.
fn is_sum_of_keys(g: &Graph, v: Value, keys: Value) -> bool {
    let mut v = v;
    // The axis of 1 may have been moved or added; the others keep their order.
    if let Op::Transpose(_) | Op::Reshape(_) = g.op(v.node)
        && (transposed(g, v).is_some() || is_reshape_by_ones(g, v))
    {
        v = g.inputs_of(v.node)[0];
    }
    match sum(g, v) {
        Some((x, 3, _)) => x == keys,
        Some((x, 2, _)) => transposed(g, keys) == Some(x),
        _ => false,
    }
}

/// Whether a reshape adds or removes axes of 1 only.
fn is_reshape_by_ones(g: &Graph, v: Value) -> bool {
    let wide = |x: Value| g.ty(x).shape.iter().filter(|d| !d.is(1)).cloned().collect::<Vec<_>>();
    matches!(g.op(v.node), Op::Reshape(_)) && wide(v) == wide(g.inputs_of(v.node)[0])
}

/// The operand of a sum over one axis, the axis, and whether it stays as an axis of 1.
fn sum(g: &Graph, v: Value) -> Option<(Value, usize, bool)> {
    match g.op(v.node) {
        Op::Reduce(Reduce { kind: ReduceKind::Sum, axes, keepdims }) => match axes[..] {
            [axis] if g.ty(g.inputs_of(v.node)[0]).ndim() == 4 => {
                Some((g.inputs_of(v.node)[0], axis, *keepdims))
            }
            _ => None,
        },
        _ => None,
    }
}
