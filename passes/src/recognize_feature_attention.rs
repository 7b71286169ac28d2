//! Finds linear attention whose features of queries and keys nobody else reads, and lets it make them: no array of features of all
//! positions is then there.
//!
//! Features are those of FAVOR+ (`sketch/favor.rs`), and of performers as exporters write them: the positive part of products with
//! directions, or exponentials of these, of keys below the greatest exponent or product of all keys, with or without norms of queries
//! and keys, a mask with a number for each key, and weights that queries and keys share. A factor of all features of queries or of
//! keys is a divisor of the number in the denominators.
//!
//! Required stage: canonical; for back ends that prefer it. Declines features with other readers, as graphs with derivatives have.
//! Leaves directions that differ between sequences, masks with a row for each query or a column for each feature, and types other
//! than f32.
//!
//! ```text
//! graph @before(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) -> (y: f32[B, 2, S, 4]) {
//!   %0 = const #w : f32[4, 6]  // att random
//!   %1 = matmul %q, %0 : f32[B, 2, S, 6]  // att left
//!   %2 = relu %1 : f32[B, 2, S, 6]  // att left
//!   %3 = const 0.001 : f32  // att random
//!   %4 = add %2, %3 : f32[B, 2, S, 6]  // att left
//!   %5 = matmul %k, %0 : f32[B, 2, S, 6]  // att left
//!   %6 = relu %5 : f32[B, 2, S, 6]  // att left
//!   %7 = add %6, %3 : f32[B, 2, S, 6]  // att left
//!   %8 = linear_attention %4, %7, %v {causal = true} : f32[B, 2, S, 4]  // att right
//!   return %8
//! }
//! graph @after(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) -> (y: f32[B, 2, S, 4]) {
//!   %0 = const #w : f32[4, 6]  // att random
//!   %1 = feature_attention %q, %k, %v, %0, %0 {map = relu, least = 0.001, causal = true} : f32[B, 2, S, 4]  // att right
//!   return %1
//! }
//! ```

use margay_ir::ops::{Bits, FeatureAttention, Reduce, ReduceKind};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Value, Verdict,
};
use margay_loops::FeatureMap;
use margay_tensor::DType;

use crate::matching::{both_orders, scalar};

/// Finds features that attention can make itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecognizeFeatureAttention;

impl Pass for RecognizeFeatureAttention {
    fn name(&self) -> &'static str {
        "recognize-feature-attention"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, self, &[Rule { name: "features-made-inside", apply }])
    }
}

fn apply(g: &Graph, n: NodeId, _: &RecognizeFeatureAttention) -> RuleResult {
    let Op::LinearAttention(op) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let [of_queries, of_keys, v] = g.inputs_of(n)[..] else { return Ok(Verdict::NoMatch) };
    if g.ty(v).dtype != DType::F32 {
        return Ok(Verdict::NoMatch);
    }
    let (Some(queries), Some(keys)) = (Found::queries(g, of_queries), Found::keys(g, of_keys)) else {
        return Ok(Verdict::NoMatch);
    };
    let same = queries.least == keys.least
        && queries.products.weights == keys.products.weights
        && (queries.map == FeatureMap::Relu) == (keys.map == FeatureMap::Relu)
        && !(op.causal && keys.map.sees_all_keys());
    if !same {
        return Ok(Verdict::NoMatch);
    }
    for (what, value) in [("queries", of_queries), ("keys", of_keys)] {
        if g.sole_user(value).is_none() {
            let readers = g.users_of(value).len() + usize::from(g.is_output(value));
            return Ok(Verdict::Declined(format!("the features of {what} have {readers} readers")));
        }
    }
    for (what, inner) in [("queries", &queries), ("keys", &keys)] {
        if let Some(read) = inner.inner.iter().find(|v| g.sole_user(**v).is_none()) {
            let readers = g.users_of(*read).len() + usize::from(g.is_output(*read));
            return Ok(Verdict::Declined(format!(
                "what features of {what} are made of has {readers} readers"
            )));
        }
    }
    let (mask, weights) = (keys.mask, keys.products.weights);
    let new = FeatureAttention {
        map: keys.map,
        query_norm: Bits::new(queries.norm),
        key_norm: Bits::new(keys.norm),
        least: Bits::new(keys.least),
        epsilon: Bits::new(op.epsilon.get() / (queries.factor * keys.factor)),
        causal: op.causal,
        masked: mask.is_some(),
        weighted: weights.is_some(),
    };
    let mut operands = vec![queries.products.x, keys.products.x, v];
    operands.extend([queries.products.directions, keys.products.directions]);
    operands.extend(mask.into_iter().chain(weights));
    let mut patch = Patch::new();
    // What its types do not admit stays as it is: directions of each sequence, operands that are repeated.
    let Ok(new) = patch.add(g, new, &operands, g.node(n).origin.clone()) else { return Ok(Verdict::NoMatch) };
    if patch.ty(g, new) != g.ty(n.into()) {
        return Ok(Verdict::NoMatch);
    }
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

/// Products with directions, and what is added to them.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Products {
    value: Value,
    x: Value,
    directions: Value,
    weights: Option<Value>,
}

impl Products {
    fn of(g: &Graph, value: Value) -> Option<Products> {
        let product = |v: Value| {
            let Op::MatMul(_) = g.op(v.node) else { return None };
            let [x, directions] = both_orders(g, v)[0];
            // Operands that broadcast are not those of as many heads.
            let same = g.ty(x).ndim() == 4 && g.ty(x).shape[..3] == g.ty(v).shape[..3];
            same.then_some([x, directions])
        };
        if let Some([x, directions]) = product(value) {
            return Some(Products { value, x, directions, weights: None });
        }
        if !matches!(g.op(value.node), Op::Add(_)) {
            return None;
        }
        both_orders(g, value).into_iter().find_map(|[inner, weights]| {
            let [x, directions] = product(inner).filter(|_| g.ty(inner) == g.ty(value))?;
            is_row(g, weights, value).then_some(Products { value, x, directions, weights: Some(weights) })
        })
    }
}

/// Whether a value has a number for each feature, the same for all rows.
fn is_row(g: &Graph, v: Value, of: Value) -> bool {
    let (row, features) = (&g.ty(v).shape, &g.ty(of).shape[3]);
    row.last() == Some(features) && row.iter().rev().nth(1).is_none_or(|rows| rows.is(1))
}

/// Features as nodes make them.
struct Found {
    map: FeatureMap,
    products: Products,
    norm: f64,
    least: f64,
    /// Multiplies all of them.
    factor: f64,
    mask: Option<Value>,
    /// Arrays of as many numbers, each read once.
    inner: Vec<Value>,
}

/// What an addition adds: the operands in both orders.
fn sums(g: &Graph, v: Value) -> Vec<[Value; 2]> {
    if matches!(g.op(v.node), Op::Add(_)) { both_orders(g, v).to_vec() } else { Vec::new() }
}

/// A value that is multiplied or divided by numbers above 0, and what that multiplies it by.
fn unscaled(g: &Graph, mut v: Value) -> (Value, f64) {
    let mut factor = 1.0;
    while let Some((x, by)) = scaled_once(g, v) {
        (v, factor) = (x, factor * by);
    }
    (v, factor)
}

fn scaled_once(g: &Graph, v: Value) -> Option<(Value, f64)> {
    let by = |[x, number]: [Value; 2]| {
        let by = scalar(g, number).filter(|by| *by > 0.0 && by.is_finite())?;
        (g.ty(x) == g.ty(v)).then_some((x, by))
    };
    match g.op(v.node) {
        Op::Mul(_) => both_orders(g, v).into_iter().find_map(by),
        Op::Div(_) => by(both_orders(g, v)[0]).map(|(x, divisor)| (x, 1.0 / divisor)),
        _ => None,
    }
}

impl Found {
    fn queries(g: &Graph, features: Value) -> Option<Found> {
        let (v, factor) = unscaled(g, features);
        sums(g, v).into_iter().find_map(|[positive, number]| {
            let least = scalar(g, number).filter(|_| g.ty(positive) == g.ty(v))?;
            let inner = if v == features { vec![positive] } else { vec![v, positive] };
            if let Op::Relu(_) = g.op(positive.node) {
                let products = Products::of(g, g.inputs_of(positive.node)[0])?;
                return Some(Found {
                    map: FeatureMap::Relu,
                    products,
                    norm: 0.0,
                    least,
                    factor,
                    mask: None,
                    inner,
                });
            }
            let exponents = exponential(g, positive)?;
            let [before, most] = difference(g, exponents)?;
            let (products, norm) = with_norm(g, before)?;
            (greatest(g, most, &[3])? == products.value).then_some(Found {
                map: FeatureMap::Exp,
                products,
                norm,
                least,
                factor,
                mask: None,
                inner,
            })
        })
    }

    fn keys(g: &Graph, features: Value) -> Option<Found> {
        let (v, factor) = unscaled(g, features);
        let inner = if v == features { vec![] } else { vec![v] };
        // `(max(x, 0) + least) exp(m)`.
        if matches!(g.op(v.node), Op::Mul(_)) {
            return both_orders(g, v).into_iter().find_map(|[sum, seen]| {
                let mask = column(g, exponential(g, seen)?)?;
                let found = Found::keys_in(g, sum, v, factor, [inner.as_slice(), &[sum]].concat())?;
                (found.map == FeatureMap::Relu && found.mask.is_none())
                    .then_some(Found { mask: Some(mask), ..found })
            });
        }
        Found::keys_in(g, v, v, factor, inner)
    }

    /// Of a sum; `of` has the type of the features.
    fn keys_in(g: &Graph, sum: Value, of: Value, factor: f64, inner: Vec<Value>) -> Option<Found> {
        sums(g, sum).into_iter().find_map(|[positive, least]| {
            if g.ty(positive) != g.ty(of) {
                return None;
            }
            let inner = [inner.as_slice(), &[positive]].concat();
            if let Op::Relu(_) = g.op(positive.node) {
                let (least, products) = (scalar(g, least)?, Products::of(g, g.inputs_of(positive.node)[0])?);
                return Some(Found {
                    map: FeatureMap::Relu,
                    products,
                    norm: 0.0,
                    least,
                    factor,
                    mask: None,
                    inner,
                });
            }
            let (seen, least) = match scalar(g, least) {
                Some(least) => (None, least),
                None => seen_times(g, least)?,
            };
            let exponents = exponential(g, positive)?;
            let with = |exponents: Value, map: FeatureMap| {
                let (products, norm, mask) = key_exponents(g, exponents)?;
                let found = Found { map, products, norm, least, factor, mask, inner: inner.clone() };
                (mask == seen).then_some(found)
            };
            if let Some([before, most]) = difference(g, exponents)
                && let Some(map) = shift(g, before, most)
            {
                return with(before, map);
            }
            with(exponents, FeatureMap::Exp)
        })
    }
}

/// What is subtracted from the exponents of keys.
fn shift(g: &Graph, exponents: Value, most: Value) -> Option<FeatureMap> {
    let (products, norm, mask) = key_exponents(g, exponents)?;
    if greatest(g, most, &[2, 3]) == Some(products.value) {
        return Some(FeatureMap::ExpByProducts);
    }
    if greatest(g, most, &[2, 3]) == Some(exponents) {
        return Some(FeatureMap::ExpByExponents);
    }
    let rows = greatest(g, most, &[2])?;
    if greatest(g, rows, &[3]) == Some(products.value) && (norm != 0.0 || mask.is_some()) {
        return Some(FeatureMap::ExpByProducts);
    }
    // The same of the greatest product of each key.
    let (row_mask, rows) = masked(g, rows);
    let (row_norm, rows) = match difference(g, rows) {
        Some([rows, norms]) => (Some(norms), rows),
        None => (None, rows),
    };
    let (_, unmasked) = masked(g, exponents);
    let norms = difference(g, unmasked).map(|[_, norms]| norms);
    let same = row_mask == mask && row_norm == norms && greatest(g, rows, &[3]) == Some(products.value);
    same.then_some(FeatureMap::ExpByExponents)
}

/// Exponents of keys as products, the number that squared norms are multiplied by, and the mask.
fn key_exponents(g: &Graph, exponents: Value) -> Option<(Products, f64, Option<Value>)> {
    if let Some((products, norm)) = with_norm(g, exponents) {
        return Some((products, norm, None));
    }
    let (mask, exponents) = masked(g, exponents);
    let (products, norm) = with_norm(g, exponents)?;
    Some((products, norm, Some(mask?)))
}

/// Products less squared norms times a number.
fn with_norm(g: &Graph, v: Value) -> Option<(Products, f64)> {
    let Some([products, norms]) = difference(g, v) else { return Some((Products::of(g, v)?, 0.0)) };
    let products = Products::of(g, products)?;
    let (norms, by) = unscaled(g, norms);
    let Op::Reduce(Reduce { kind: ReduceKind::Sum, axes, keepdims: true }) = g.op(norms.node) else {
        return None;
    };
    let squares = g.inputs_of(norms.node)[0];
    let [x, y] = match g.op(squares.node) {
        Op::Mul(_) => both_orders(g, squares)[0],
        Op::Pow(_) if scalar(g, both_orders(g, squares)[0][1]) == Some(2.0) => {
            [both_orders(g, squares)[0][0]; 2]
        }
        _ => return None,
    };
    (axes[..] == [3] && x == products.x && y == products.x).then_some((products, by))
}

/// A value without a column that is added to it.
fn masked(g: &Graph, v: Value) -> (Option<Value>, Value) {
    let found = sums(g, v).into_iter().find_map(|[x, mask]| {
        let mask = column(g, mask).filter(|_| g.ty(x) == g.ty(v) && scalar(g, mask).is_none())?;
        Some((Some(mask), x))
    });
    found.unwrap_or((None, v))
}

/// A value whose last axis is 1, of two axes or more.
fn column(g: &Graph, v: Value) -> Option<Value> {
    let shape = &g.ty(v).shape;
    (shape.len() >= 2 && shape.last().is_some_and(|extent| extent.is(1))).then_some(v)
}

/// `exp(m)` times a number: the mask, and the number.
fn seen_times(g: &Graph, v: Value) -> Option<(Option<Value>, f64)> {
    if !matches!(g.op(v.node), Op::Mul(_)) {
        return None;
    }
    both_orders(g, v).into_iter().find_map(|[seen, number]| {
        let mask = column(g, exponential(g, seen)?)?;
        Some((Some(mask), scalar(g, number)?))
    })
}

fn exponential(g: &Graph, v: Value) -> Option<Value> {
    matches!(g.op(v.node), Op::Exp(_)).then(|| g.inputs_of(v.node)[0])
}

/// The operands of a difference of the type of the first.
fn difference(g: &Graph, v: Value) -> Option<[Value; 2]> {
    let [x, y] = matches!(g.op(v.node), Op::Sub(_)).then(|| both_orders(g, v)[0])?;
    (g.ty(x) == g.ty(v)).then_some([x, y])
}

/// What a value is the maximum of over these axes, which stay.
fn greatest(g: &Graph, v: Value, over: &[usize]) -> Option<Value> {
    match g.op(v.node) {
        Op::Reduce(Reduce { kind: ReduceKind::Max, axes, keepdims: true }) if axes == over => {
            Some(g.inputs_of(v.node)[0])
        }
        _ => None,
    }
}
