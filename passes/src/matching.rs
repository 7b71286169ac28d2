//! Small questions that several recognizers ask.

use margay_ir::ops::{Numbers, Range};
use margay_ir::{Graph, NodeId, Op, Value};
use margay_tensor::{Dim, Element};

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

/// Whether a constant is shared by all heads and tells the keys that each query of the scores sees from the others.
pub(crate) fn is_triangle<T: Element>(
    g: &Graph,
    mask: Value,
    scores: Value,
    seen: impl Fn(T) -> bool,
    hidden: impl Fn(T) -> bool,
) -> bool {
    let extents: Vec<_> = g.ty(scores).shape.iter().map(Dim::as_extent).collect();
    let [.., Some(queries), Some(keys)] = extents[..] else { return false };
    let Some(tensor) = g.constant(mask).map(|c| c.tensor()) else { return false };
    let (shape, Ok(elements)) = (tensor.shape(), tensor.as_slice::<T>()) else { return false };
    let fits = shape.ends_with(&[queries, keys]) && elements.len() == queries * keys;
    fits && keys >= queries
        && elements.iter().enumerate().all(|(at, &x)| {
            let (query, key) = (at / keys, at % keys);
            if key <= query + keys - queries { seen(x) } else { hidden(x) }
        })
}

/// Whether a test holds for the keys j <= i + T - S of query i of scores `[…, S, T]`, of at least as many keys as queries, and
/// for no others; `false` if it holds for all others instead. It is a constant, or compares positions. `None` for other tests.
pub(crate) fn sees_earlier(g: &Graph, test: Value, scores: Value) -> Option<bool> {
    let constant = |holds: bool| {
        let seen = |x: u8| (x != 0) == holds;
        is_triangle::<u8>(g, test, scores, seen, |x| !seen(x))
    };
    [true, false].into_iter().find(|&holds| constant(holds)).or_else(|| compares_positions(g, test, scores))
}

/// As [`sees_earlier`], of a test that compares positions of keys with those of queries.
fn compares_positions(g: &Graph, test: Value, scores: Value) -> Option<bool> {
    let [.., queries, keys] = &g.ty(scores).shape[..] else { return None };
    let strict = match g.op(test.node) {
        Op::Less(_) => true,
        Op::LessOrEqual(_) => false,
        _ => return None,
    };
    let [left, right] = both_orders(g, test)[0];
    // Positions along an axis from the end on, as many as there are; what is added to the first of them.
    let first =
        |v, axis, count: &Dim| positions(g, v, axis).filter(|(_, n)| n == count).map(|(first, _)| first);
    let seen = |key, query| Some((first(key, 0, keys)?, first(query, 1, queries)?));
    let one = Dim::from(1usize);
    // The last key that query 0 sees is at `last`.
    let (holds, last) = match (seen(left, right), seen(right, left)) {
        (Some((key, query)), _) if strict => (true, &(&query - &key) - &one),
        (Some((key, query)), _) => (true, &query - &key),
        (_, Some((key, query))) if strict => (false, &query - &key),
        (_, Some((key, query))) => (false, &(&query - &key) - &one),
        (None, None) => return None,
    };
    let enough = queries == keys || queries.as_extent()? <= keys.as_extent()?;
    (enough && last == keys - queries).then_some(holds)
}

/// The first of consecutive integers along an axis, counted from the last one, and their number; other axes have an extent of 1.
fn positions(g: &Graph, v: Value, axis: usize) -> Option<(Dim, Dim)> {
    let shape = &g.ty(v).shape;
    let at = shape.len().checked_sub(axis + 1)?;
    if shape.iter().enumerate().any(|(i, d)| i != at && !d.is(1)) {
        return None;
    }
    let count = shape[at].clone();
    let mut v = v;
    while let Op::Reshape(_) = g.op(v.node) {
        v = g.inputs_of(v.node)[0];
    }
    if let Op::Range(Range { start, step: 1, .. }) = g.op(v.node) {
        return Some((start.clone(), count));
    }
    let numbers = Numbers::of(g.constant(v)?.tensor()).ok()?.floats();
    let first = *numbers.first()?;
    let consecutive = numbers.iter().enumerate().all(|(i, x)| *x == first + i as f64);
    (consecutive && first.fract() == 0.0 && first.abs() < f64::from(u32::MAX))
        .then(|| (Dim::from(first as i64), count))
}

/// Whether a value is the product of two constants that recurrences read as the weights of their state, perhaps in another layout:
/// they multiply with one factor and then with the other.
pub(crate) fn is_weight_of_state(g: &Graph, n: NodeId) -> bool {
    let constants = g.inputs_of(n).iter().all(|v| g.constant(*v).is_some());
    matches!(g.op(n), Op::MatMul(_)) && constants && feeds_states(g, n.into())
}

/// Whether a value is read as the weights of the states of recurrences, and as nothing else.
fn feeds_states(g: &Graph, v: Value) -> bool {
    let users = g.users_of(v);
    let reads = |(user, slot): &(NodeId, u16)| match g.op(*user) {
        Op::Recurrence(_) => *slot == 1,
        Op::Transpose(_) | Op::Reshape(_) => feeds_states(g, (*user).into()),
        _ => false,
    };
    !users.is_empty() && users.iter().all(reads) && !g.is_output(v)
}
