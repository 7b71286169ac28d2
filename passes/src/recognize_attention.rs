//! Finds softmax attention in the pieces exporters write: `softmax(scale · q kᵀ + mask) v` on four axes, or on
//! three, where heads are a part of the batch, as torch writes its layer `MultiheadAttention` when it is asked
//! for probabilities.
//!
//! A mask that lets query i see exactly the keys j <= i + T - S, of at least as many keys as queries, makes the
//! attention causal. It is a constant addend of 0 where a key is seen, or a choice of the score there, by a constant
//! or by comparing positions. What is hidden is -∞ or, without another mask, a number of at most -10⁹. The
//! exponential of what is hidden is then 0 in f32, provided that no score is 10⁹ below another; a NaN or +∞ that is
//! hidden no longer spoils its row.
//!
//! Where another mask may hide all keys that a query sees, finite numbers that hide are equal to those of the other mask,
//! and the row is the mean over all keys. Such masks are joined and added: an addend as it is, a choice as the number in
//! place of the other mask where that number absorbs every score.
//!
//! Numbers that queries or keys are multiplied by become a part of the scale.
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

use margay_ir::ops::{Add, Attention, Const, Reshape, Select, Transpose};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    AddError, Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Origin, Pass, PassError, Patch,
    Payload, Value, Verdict,
};
use margay_tensor::Dim;

use crate::matching::{both_orders, factors, is_triangle, scalar, sees_earlier};

/// Finds attention.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecognizeAttention;

impl Pass for RecognizeAttention {
    fn name(&self) -> &'static str {
        "recognize-attention"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, self, &[Rule { name: "attention-from-softmax", apply: attention }])
    }
}

/// The scores of an attention: `scale · q kt` and masks, of keys that come no later if `causal`.
struct Scores {
    product: NodeId,
    scale: f64,
    /// Innermost first.
    masks: Vec<Mask>,
    causal: bool,
}

/// What hides scores.
enum Mask {
    /// Any addend.
    Added(Value),
    /// An addend that hides what is to come by finite numbers.
    Triangle(Value),
    /// A choice between scores, the operand of this number, and a finite number for what is to come.
    Chosen { node: NodeId, scores: usize },
}

/// Additions and choices between the product and the softmax: one of each kind of mask.
const MOST_MASKS: usize = 2;

/// The largest number that hides a score.
const HIDDEN: f32 = -1e9;

/// The largest number that absorbs every score it is added to, up to 2⁷⁴ in size.
const ABSORBING: f64 = -1e30;

fn attention(g: &Graph, n: NodeId, _: &RecognizeAttention) -> RuleResult {
    let Op::MatMul(_) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let [weights, v] = both_orders(g, n.into())[0];
    let Op::Softmax(softmax) = g.op(weights.node) else { return Ok(Verdict::NoMatch) };
    let axes = g.ty(v).ndim();
    if !(3..=4).contains(&axes) || g.ty(weights).ndim() != axes || softmax.axis != axes - 1 {
        return Ok(Verdict::NoMatch);
    }
    if g.sole_user(weights).is_none() {
        let readers = g.users_of(weights).len() + usize::from(g.is_output(weights));
        return Ok(Verdict::Declined(format!("the attention weights have {readers} readers")));
    }
    let Some(scores) = find_scores(g, g.inputs_of(weights.node)[0], MOST_MASKS) else {
        return Ok(Verdict::NoMatch);
    };
    let [(q, by_query), (kt, by_key)] = both_orders(g, scores.product.into())[0].map(|x| unscaled(g, x));
    let heads = |x: Value| g.ty(x).shape.get(..axes - 2).map(<[_]>::to_vec);
    if g.ty(q).ndim() != axes || g.ty(kt).ndim() != axes || heads(q) != heads(v) || heads(q) != heads(kt) {
        return Ok(Verdict::NoMatch);
    }
    let mut patch = Patch::new();
    let mut perm: Vec<usize> = (0..axes).collect();
    perm.swap(axes - 2, axes - 1);
    let k = patch.add(g, Transpose { perm }, &[kt], g.node(scores.product).origin.clone())?;
    let Some((mask, causal)) = join_masks(g, &mut patch, &scores)? else { return Ok(Verdict::NoMatch) };
    let mut operands: Vec<Value> = [q, k, v].into_iter().chain(mask).collect();
    if axes == 3 {
        // One head, of as many samples as there were heads.
        for x in &mut operands {
            let mut shape = patch.ty(g, *x).shape.clone();
            if shape.len() == 3 {
                shape.insert(1, Dim::from(1usize));
                *x = patch.add(g, Reshape { shape }, &[*x], g.node(n).origin.clone())?;
            }
        }
    }
    let op = Attention { causal, ..Attention::new(scores.scale * by_query * by_key) };
    let mut new = patch.add(g, op, &operands, g.node(n).origin.clone())?;
    if axes == 3 {
        let shape = g.ty(n.into()).shape.clone();
        new = patch.add(g, Reshape { shape }, &[new], g.node(n).origin.clone())?;
    }
    if patch.ty(g, new) != g.ty(n.into()) {
        return Ok(Verdict::NoMatch);
    }
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

/// One addend for all masks, if there is any, and whether the attention is causal besides; `None` where masks cannot be
/// joined.
fn join_masks(
    g: &Graph,
    patch: &mut Patch,
    scores: &Scores,
) -> Result<Option<(Option<Value>, bool)>, AddError> {
    if let [Mask::Triangle(_) | Mask::Chosen { .. }] = scores.masks[..] {
        return Ok(Some((None, true)));
    }
    let mut joined: Option<Value> = None;
    for mask in &scores.masks {
        joined = Some(match (mask, joined) {
            (Mask::Added(mask) | Mask::Triangle(mask), None) => *mask,
            (Mask::Added(mask) | Mask::Triangle(mask), Some(before)) => {
                patch.add(g, Add, &[before, *mask], g.node(mask.node).origin.clone())?
            }
            (Mask::Chosen { node, scores }, before) => {
                let (mut operands, origin) = (g.inputs_of(*node).to_vec(), g.node(*node).origin.clone());
                if scalar(g, operands[3 - scores]).is_none_or(|number| number > ABSORBING) {
                    return Ok(None);
                }
                let zero = Const { payload: Payload::number(g.ty(operands[*scores]).dtype, 0.0) };
                operands[*scores] = before.map_or_else(|| patch.add(g, zero, &[], Origin::default()), Ok)?;
                patch.add(g, Select, &operands, origin)?
            }
        });
    }
    Ok(Some((joined, scores.causal)))
}

fn find_scores(g: &Graph, v: Value, masks: usize) -> Option<Scores> {
    g.sole_user(v)?;
    if let Some((product, scale)) = scaled_product(g, v) {
        return Some(Scores { product, scale, masks: Vec::new(), causal: false });
    }
    let masks = masks.checked_sub(1)?;
    let is_causal = |s: &Scores| s.causal || s.masks.iter().any(|m| !matches!(m, Mask::Added(_)));
    if let Some((scores, finite)) = without_future(g, v) {
        let operands = g.inputs_of(v.node);
        let seen = operands[scores];
        let mut inner = find_scores(g, seen, masks).filter(|s| !is_causal(s) && g.ty(seen) == g.ty(v))?;
        match g.op(v.node) {
            _ if !finite => inner.causal = true,
            Op::Add(_) => inner.masks.push(Mask::Triangle(operands[1 - scores])),
            _ => inner.masks.push(Mask::Chosen { node: v.node, scores }),
        }
        return Some(inner);
    }
    if !matches!(g.op(v.node), Op::Add(_)) {
        return None;
    }
    both_orders(g, v).into_iter().find_map(|[scores, mask]| {
        let added = |m: &Mask| matches!(m, Mask::Added(_));
        let inner = find_scores(g, scores, masks).filter(|s| !s.masks.iter().any(added));
        let mut inner = inner.filter(|_| g.ty(scores) == g.ty(v))?;
        inner.masks.push(Mask::Added(mask));
        Some(inner)
    })
}

/// Which operand is what is left of scores when a causal mask is taken off, and whether it hides by finite numbers.
fn without_future(g: &Graph, v: Value) -> Option<(usize, bool)> {
    let hides = |x: f32| x <= HIDDEN;
    match g.op(v.node) {
        Op::Add(_) => [(0, 1), (1, 0)].into_iter().find_map(|(scores, mask)| {
            let mask = g.inputs_of(v.node)[mask];
            let infinite = |x: f32| x == f32::NEG_INFINITY;
            let triangle = |hides: &dyn Fn(f32) -> bool| is_triangle::<f32>(g, mask, v, |x| x == 0.0, hides);
            triangle(&hides).then(|| (scores, !triangle(&infinite)))
        }),
        Op::Select(_) => {
            let inputs = g.inputs_of(v.node);
            let (scores, other) = if sees_earlier(g, inputs[0], v)? { (1, 2) } else { (2, 1) };
            let hidden = scalar(g, inputs[other]).filter(|x| hides(*x as f32))?;
            Some((scores, hidden.is_finite()))
        }
        _ => None,
    }
}

/// What is left of queries or keys when a number they are multiplied by is taken out, and the number.
fn unscaled(g: &Graph, v: Value) -> (Value, f64) {
    match factors(g, v) {
        (parts, number) if number.is_finite() && number != 0.0 => match parts[..] {
            [x] if g.ty(x) == g.ty(v) => (x, number),
            _ => (v, 1.0),
        },
        _ => (v, 1.0),
    }
}

/// A product of activations times a number.
fn scaled_product(g: &Graph, v: Value) -> Option<(NodeId, f64)> {
    let (parts, scale) = factors(g, v);
    let [product] = parts.as_slice() else { return None };
    let unread = *product == v || g.sole_user(*product).is_some();
    let activations = g.inputs_of(product.node).iter().all(|x| g.constant(*x).is_none());
    (matches!(g.op(product.node), Op::MatMul(_)) && unread && activations).then_some((product.node, scale))
}
