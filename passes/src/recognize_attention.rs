//! Finds softmax attention in the pieces exporters write: `softmax(scale · q kᵀ + mask) v` on four axes.
//!
//! Required stage: imported. Declines when the probabilities are read by somebody else.
//!
//! ```text
//! graph @before(%q: f32[B, 2, S, 4], %k: f32[B, 2, 4, S], %v: f32[B, 2, S, 4], %m: f32[B, 1, 1, S]) -> (y: f32[B, 2, S, 4]) {
//!   %0 = matmul %q, %k : f32[B, 2, S, S]  // att/MatMul
//!   %1 = const 2.0 : f32
//!   %2 = div %0, %1 : f32[B, 2, S, S]  // att/Div
//!   %3 = add %2, %m : f32[B, 2, S, S]  // att/Add
//!   %4 = softmax %3 {axis = 3} : f32[B, 2, S, S]  // att/Softmax
//!   %5 = matmul %4, %v : f32[B, 2, S, 4]  // att/MatMul_1
//!   return %5
//! }
//! graph @after(%q: f32[B, 2, S, 4], %k: f32[B, 2, 4, S], %v: f32[B, 2, S, 4], %m: f32[B, 1, 1, S]) -> (y: f32[B, 2, S, 4]) {
//!   %0 = transpose %k {perm = [0, 1, 3, 2]} : f32[B, 2, S, 4]  // att/MatMul
//!   %1 = attention %q, %0, %v, %m {scale = 0.5} : f32[B, 2, S, 4]  // att/MatMul_1
//!   return %1
//! }
//! ```

use margay_ir::ops::{Attention, Bits, Transpose};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{Changed, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Value, Verdict};

use crate::matching::{both_orders, factors};

/// Finds attention.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecognizeAttention;

impl Pass for RecognizeAttention {
    fn name(&self) -> &'static str {
        "recognize-attention"
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, self, &[Rule { name: "attention-from-softmax", apply: attention }])
    }
}

/// The scores of an attention: `scale · q kt + mask`.
struct Scores {
    product: NodeId,
    scale: f64,
    mask: Option<Value>,
}

fn attention(g: &Graph, n: NodeId, _: &RecognizeAttention) -> RuleResult {
    let Op::MatMul(_) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let [weights, v] = both_orders(g, n.into())[0];
    let Op::Softmax(softmax) = g.op(weights.node) else { return Ok(Verdict::NoMatch) };
    if g.ty(v).ndim() != 4 || g.ty(weights).ndim() != 4 || softmax.axis != 3 {
        return Ok(Verdict::NoMatch);
    }
    if g.sole_user(weights).is_none() {
        let readers = g.users_of(weights).len() + usize::from(g.is_output(weights));
        return Ok(Verdict::Declined(format!("the attention weights have {readers} readers")));
    }
    let Some(scores) = find_scores(g, g.inputs_of(weights.node)[0]) else { return Ok(Verdict::NoMatch) };
    let [q, kt] = both_orders(g, scores.product.into())[0];
    let heads = |x: Value| g.ty(x).shape.get(..2).map(<[_]>::to_vec);
    if g.ty(q).ndim() != 4 || g.ty(kt).ndim() != 4 || heads(q) != heads(v) || heads(q) != heads(kt) {
        return Ok(Verdict::NoMatch);
    }
    let mut patch = Patch::new();
    let swap = Transpose { perm: vec![0, 1, 3, 2] };
    let k = patch.add(g, swap, &[kt], g.node(scores.product).origin.clone())?;
    let operands: Vec<Value> = [q, k, v].into_iter().chain(scores.mask).collect();
    let op = Attention { scale: Bits::new(scores.scale) };
    let new = patch.add(g, op, &operands, g.node(n).origin.clone())?;
    if patch.ty(g, new) != g.ty(n.into()) {
        return Ok(Verdict::NoMatch);
    }
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

fn find_scores(g: &Graph, v: Value) -> Option<Scores> {
    g.sole_user(v)?;
    if let Some((product, scale)) = scaled_product(g, v) {
        return Some(Scores { product, scale, mask: None });
    }
    if !matches!(g.op(v.node), Op::Add(_)) {
        return None;
    }
    both_orders(g, v).into_iter().find_map(|[scores, mask]| {
        g.sole_user(scores)?;
        let (product, scale) = scaled_product(g, scores)?;
        (g.ty(scores) == g.ty(v)).then_some(Scores { product, scale, mask: Some(mask) })
    })
}

/// A product of activations times a number.
fn scaled_product(g: &Graph, v: Value) -> Option<(NodeId, f64)> {
    let (parts, scale) = factors(g, v);
    let [product] = parts.as_slice() else { return None };
    let unread = *product == v || g.sole_user(*product).is_some();
    let activations = g.inputs_of(product.node).iter().all(|x| g.constant(*x).is_none());
    (matches!(g.op(product.node), Op::MatMul(_)) && unread && activations).then_some((product.node, scale))
}
