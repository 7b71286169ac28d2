//! Finds linear attention in the products exporters write: `φq (φkᵀ v) / (φq Σ φk + ε)` on four axes.
//!
//! The sum of the keys may be taken before or after they are transposed, with or without its axis of 1, and the
//! denominator may be a product of matrices or a sum of products. What the features φ are does not matter.
//!
//! The causal form is written as weights of all pairs, `φq φkᵀ` with 0 for later keys, by a choice or by a product with ones and
//! zeros; their product with the values is divided by their sums. Lengths may be open where positions are compared.
//!
//! Or it is written in chunks of positions, `[B, H, chunks, length of a chunk, …]`, of any length, known or open, filled up by
//! zeros behind the last position: `φq (Σ φkᵀ [v | 1])` with the sums over earlier chunks, and the weights of all pairs within a
//! chunk, with 0 for later keys, times `[v | 1]`. The last column of their sum divides the others.
//!
//! Required stage: imported. Declines when the product of keys and values, the weights, the sums, the numerator or the denominator
//! is read by somebody else.
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

use margay_ir::ops::{Bits, Cumulate, LinearAttention, Number, Reduce, ReduceKind, Reshape, Transpose};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    AddError, Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Value, Verdict,
};
use margay_tensor::{Dim, Shape};

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
            Rule { name: "causal-linear-attention-from-chunks", apply: in_chunks },
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
        None => {
            let mut patch = Patch::new();
            let k = keys(g, &mut patch, kt, products.node)?;
            linear(g, n, patch, [q, k, v], false, epsilon)
        }
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
        None => {
            let mut patch = Patch::new();
            let k = keys(g, &mut patch, kt, products.node)?;
            linear(g, n, patch, [q, k, v], true, epsilon)
        }
    }
}

fn in_chunks(g: &Graph, n: NodeId, _: &RecognizeLinearAttention) -> RuleResult {
    let Op::Div(_) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let [numerator, denominator] = both_orders(g, n.into())[0];
    let (column, epsilon) = with_epsilon(g, denominator);
    let Some(sums) = with_last_column(g, numerator, column) else { return Ok(Verdict::NoMatch) };
    let joined = first_rows(g, sums).unwrap_or(sums);
    let Op::Reshape(_) = g.op(joined.node) else { return Ok(Verdict::NoMatch) };
    let by_chunk = g.inputs_of(joined.node)[0];
    let Some(chunks) = Chunks::find(g, by_chunk) else { return Ok(Verdict::NoMatch) };
    if g.ty(joined).shape != without_chunks(g, by_chunk) {
        return Ok(Verdict::NoMatch);
    }
    let (mut patch, positions) = (Patch::new(), &g.ty(numerator).shape[2]);
    let mut of = |v| unfilled(g, &mut patch, v, positions);
    let [q, k, v] = [of(chunks.q)?, of(chunks.k)?, of(chunks.values)?];
    let v = v.and_then(|v| padded_by(g, v, 3, |number| number == 1.0));
    let (Some(q), Some(k), Some(v)) = (q, k, v) else { return Ok(Verdict::NoMatch) };
    let mut read = chunks.read;
    read.push(("sum of chunks", by_chunk, 1));
    if joined != sums {
        read.push(("sum over positions", joined, 1));
    }
    read.extend([("sum over positions", sums, 2), ("numerator", numerator, 1), ("sum", column, 1)]);
    match others_read(g, &read) {
        Some(declined) => Ok(declined),
        None => linear(g, n, patch, [q, k, v], true, epsilon),
    }
}

/// Sums over positions `[B, H, chunks, length of a chunk, …]`.
struct Chunks {
    q: Value,
    k: Value,
    /// Values with ones.
    values: Value,
    /// What is computed on the way, with its name and the number of its readers.
    read: Vec<(&'static str, Value, usize)>,
}

impl Chunks {
    /// What a sum adds up: within each chunk and over earlier chunks.
    fn find(g: &Graph, sum: Value) -> Option<Chunks> {
        let Op::Add(_) = g.op(sum.node) else { return None };
        both_orders(g, sum).into_iter().find_map(|[inside, outside]| {
            let [weights, values] = product(g, inside)?;
            let pairs = unmasked(g, weights)?;
            let [q, kt] = product(g, pairs)?;
            let [queries, before] = product(g, outside)?;
            let earlier = uncast(g, before);
            let Op::Cumulate(Cumulate { axis: 2, product: false, exclusive: true, reverse: false }) =
                g.op(earlier.node)
            else {
                return None;
            };
            let moments = uncast(g, g.inputs_of(earlier.node)[0]);
            let k = match g.op(kt.node) {
                Op::Transpose(t) if t.perm == [0, 1, 2, 4, 3] => g.inputs_of(kt.node)[0],
                _ => return None,
            };
            // Extents that broadcast are no chunks.
            let alike = [q, k, values]
                .iter()
                .all(|&x| g.ty(x).ndim() == 5 && g.ty(x).shape[..4] == g.ty(q).shape[..4]);
            let same = queries == q && product(g, moments)? == [kt, values];
            (same && alike).then(|| Chunks {
                q,
                k,
                values,
                read: vec![
                    ("product of queries and keys", pairs, 1),
                    ("matrix of weights", weights, 1),
                    ("product of keys and values", moments, 1),
                    ("sum over earlier chunks", before, 1),
                    ("sum within chunks", inside, 1),
                    ("product of queries and earlier chunks", outside, 1),
                ],
            })
        })
    }
}

/// The shape of a value with its chunks one after the other.
fn without_chunks(g: &Graph, v: Value) -> Shape {
    let mut shape = g.ty(v).shape.clone();
    let joined = &shape[2] * &shape[3];
    shape.splice(2..4, [joined]);
    shape
}

/// The positions of a value in chunks, without fillers behind the last one. What they are does not matter if it is finite: no
/// earlier position sees them.
fn unfilled(g: &Graph, patch: &mut Patch, v: Value, positions: &Dim) -> Result<Option<Value>, AddError> {
    let shape = without_chunks(g, v);
    let from = match g.op(v.node) {
        Op::Reshape(_) => Some(g.inputs_of(v.node)[0]).filter(|x| g.ty(*x).shape == shape),
        _ => None,
    };
    let filled = from.and_then(|x| padded_by(g, first_rows(g, x).unwrap_or(x), 2, f64::is_finite));
    if let Some(x) = filled.filter(|x| g.ty(*x).shape[2] == *positions) {
        return Ok(Some(x));
    }
    match from {
        _ if shape[2] != *positions => Ok(None),
        Some(x) => Ok(Some(x)),
        None => Ok(Some(patch.add(g, Reshape { shape }, &[v], g.node(v.node).origin.clone())?)),
    }
}

/// What a value has the first rows of, along the third of four axes.
fn first_rows(g: &Graph, v: Value) -> Option<Value> {
    let (x, [starts, ends]) = slice(g, v)?;
    let whole = |axis: usize| starts[axis].is(0) && (axis == 2 || ends[axis] == g.ty(x).shape[axis]);
    (0..4).all(whole).then_some(x)
}

/// What both sides of a quotient have the first rows of: the one all columns but the last, the other the last.
fn with_last_column(g: &Graph, numerator: Value, column: Value) -> Option<Value> {
    let (x, [starts, ends]) = slice(g, numerator)?;
    let (y, [column_starts, column_ends]) = slice(g, column)?;
    let shape = &g.ty(x).shape;
    let heads = |ends: &[Dim]| ends[..2] == shape[..2];
    let rows = starts.iter().chain(&column_starts[..3]).all(|start| start.is(0))
        && ends[2] == column_ends[2]
        && heads(ends)
        && heads(column_ends);
    let last = column_starts[3] == ends[3] && column_ends[3] == shape[3] && g.ty(column).shape[3].is(1);
    (x == y && rows && last).then_some(x)
}

/// The operand of a slice by steps of 1 of four axes, where it starts, and where it ends.
fn slice(g: &Graph, v: Value) -> Option<(Value, [&[Dim]; 2])> {
    match g.op(v.node) {
        Op::Slice(op) if op.steps == [1; 4] => {
            Some((g.inputs_of(v.node)[0], [op.starts.as_slice(), op.ends.as_slice()]))
        }
        _ => None,
    }
}

/// What has copies of a number after it along one axis.
fn padded_by(g: &Graph, v: Value, axis: usize, is: impl Fn(f64) -> bool) -> Option<Value> {
    let Op::Pad(op) = g.op(v.node) else { return None };
    let others = op.after.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, copies)| copies);
    let number = match op.value {
        Number::Float(number) => number.get(),
        Number::Int(number) => number as f64,
    };
    let fits = op.before.iter().chain(others).all(|copies| *copies == 0) && is(number);
    fits.then(|| g.inputs_of(v.node)[0])
}

/// What became a value by a conversion between floats, the value itself if there was none.
fn uncast(g: &Graph, v: Value) -> Value {
    let Op::Cast(_) = g.op(v.node) else { return v };
    let x = g.inputs_of(v.node)[0];
    if g.ty(x).dtype.is_float() && g.ty(v).dtype.is_float() { x } else { v }
}

/// Says of the first value that somebody else reads how many read it; each has as many readers as it should.
fn others_read(g: &Graph, values: &[(&str, Value, usize)]) -> Option<Verdict> {
    values.iter().find_map(|&(what, value, expected)| {
        let readers = g.users_of(value).len() + usize::from(g.is_output(value));
        (readers != expected || g.is_output(value))
            .then(|| Verdict::Declined(format!("the {what} of linear attention has {readers} readers")))
    })
}

/// The operator in place of a quotient.
fn linear(
    g: &Graph,
    n: NodeId,
    mut patch: Patch,
    [q, k, v]: [Value; 3],
    causal: bool,
    epsilon: f64,
) -> RuleResult {
    // Extents that broadcast are no attention.
    let heads = |x: Value| patch.ty(g, x).shape[..2].to_vec();
    if heads(q) != heads(k) || heads(q) != heads(v) {
        return Ok(Verdict::NoMatch);
    }
    let op = LinearAttention { causal, epsilon: Bits::new(epsilon) };
    let new = patch.add(g, op, &[q, k, v], g.node(n).origin.clone())?;
    if patch.ty(g, new) != g.ty(n.into()) {
        return Ok(Verdict::NoMatch);
    }
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

/// Keys, of transposed ones that a node reads.
fn keys(g: &Graph, patch: &mut Patch, kt: Value, reader: NodeId) -> Result<Value, AddError> {
    match transposed(g, kt) {
        Some(k) => Ok(k),
        None => {
            let swap = Transpose { perm: vec![0, 1, 3, 2] };
            patch.add(g, swap, &[kt], g.node(reader).origin.clone())
        }
    }
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
