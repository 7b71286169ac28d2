//! The derivative of a recurrence: a loop over time in the opposite order (backpropagation through time; Werbos 1990).
//!
//! The states before every time are computed once more, by a loop that keeps them. At each time the step is computed again from
//! these, and derived as any graph is; what it depends on besides the states is summed along the way.

use super::repeated::{At, Body, Weights, finish, flipped, mirrored, trips};
use super::{Operands, Recurrence};
use crate::graph::AddError;
use crate::ops::{Gather, MatMul};
use crate::vjp::{DerivativeError, Grad, GradResult, Vjp, derivatives};
use crate::{Builder, Patch, Value};

/// The rule.
pub(super) fn adjoint(op: &Recurrence, cx: &mut Vjp<'_>) -> GradResult {
    let all: Vec<Value> = (0..cx.arity()).map(|i| cx.input(i)).collect();
    let given = op.operands(&all).map_err(|error| AddError { op: "recurrence", error })?;
    let states = given.states.len();
    let shown = cx.cotangent_of(0);
    let mut begin = Vec::new();
    for (i, state) in given.states.iter().enumerate() {
        begin.push(match cx.cotangent_of(1 + i) {
            Some(v) => v,
            None => cx.filled(*state, 0.0)?,
        });
    }
    // What is summed: derivatives by operands that all times read.
    let summed: Vec<Value> = [Some(given.r), given.bias, given.peepholes].into_iter().flatten().collect();
    for v in &summed {
        begin.push(cx.filled(*v, 0.0)?);
    }
    let before = op.states_before(cx, &given)?;
    let trips = trips(cx, given.x)?;
    let mut body = Body::new(cx, &begin).with_constants_outside();
    let (next, row) = match times(op, cx, &mut body, &given, (before.as_slice(), shown, trips)) {
        Ok(found) => found,
        Err(DerivativeError::Add { error, .. }) => return Err(*error),
        Err(none @ DerivativeError::None { .. }) => return Grad::none(none.to_string()),
    };
    let results = finish(cx, body, given.x, trips, &begin, &next, &[row])?;
    let dx = results[next.len()];
    // Times were taken from the last one that the recurrence took.
    let dx = if op.reverse { dx } else { flipped(cx, dx)? };
    let mut found = vec![Some(dx), Some(results[states])];
    found.extend(results[..states].iter().copied().map(Some));
    found.extend(results[states + 1..next.len()].iter().copied().map(Some));
    found.extend(given.lengths.map(|_| None));
    Ok(Grad::Inputs(found))
}

/// What the loop backwards computes at a time: its carried values, and the derivative by what the inputs contribute.
fn times(
    op: &Recurrence,
    b: &Builder<'_>,
    body: &mut Body,
    given: &Operands<Value>,
    (before, shown, trips): (&[Value], Option<Value>, Value),
) -> Result<(Vec<Value>, Value), DerivativeError> {
    let carried = body.states.clone();
    let states = given.states.len();
    let origin = b.origin().clone();
    let at = origin.name().to_string();
    let failed =
        |error: AddError| DerivativeError::Add { op: "recurrence", at: at.clone(), error: error.into() };
    let step = |body: &mut Body| -> Result<_, AddError> {
        let total = body.read(b, trips)?;
        let kept = before.iter().map(|v| body.read(b, *v)).collect::<Result<Vec<_>, _>>()?;
        let shown = shown.map(|v| body.read(b, v)).transpose()?;
        let r = body.read(b, given.r)?;
        let number = body.number;
        let mut inner = Builder::new(&mut body.graph, origin.clone());
        let number = mirrored(&mut inner, total, number)?;
        let of_time = |inner: &mut Builder<'_>, v: Value, at: Value| inner.op(Gather { axis: 0 }, &[v, at]);
        let before = kept.iter().map(|v| of_time(&mut inner, *v, number)).collect::<Result<Vec<_>, _>>()?;
        let product = inner.op(MatMul, &[before[0], r])?;
        let of = At { number, states: &before, product, r: Weights::Whole(r) };
        let time = op.time_of(b, body, given, trips, of)?;
        let mut inner = Builder::new(&mut body.graph, origin.clone());
        let shown = shown.map(|v| of_time(&mut inner, v, time.at)).transpose()?;
        Ok((time, before, shown, r))
    };
    let (time, before, shown, r) = step(body).map_err(failed)?;
    let mut seeds: Vec<(Value, Value)> = time.next.iter().copied().zip(carried.iter().copied()).collect();
    seeds.extend(shown.map(|v| (time.row, v)));
    let mut by = vec![time.now];
    by.extend(&before);
    by.extend([Some(r), time.bias, time.peepholes].into_iter().flatten());
    let mut patch = Patch::new();
    let found = derivatives(&body.graph, &mut patch, &seeds, &by)?;
    let applied = body.graph.apply(patch).expect("derivatives are new nodes");
    let found = found.into_iter().map(|v| v.map(|v| applied.value(v)));
    let mut inner = Builder::new(&mut body.graph, origin.clone());
    let mut zero_or = |(v, of): (Option<Value>, &Value)| match v {
        Some(v) => Ok(v),
        None => inner.filled(*of, 0.0),
    };
    let found: Vec<Value> = found.zip(&by).map(&mut zero_or).collect::<Result<_, _>>().map_err(failed)?;
    let mut next = found[1..1 + states].to_vec();
    for (sum, more) in carried[states..].iter().zip(&found[1 + states..]) {
        next.push(inner.add(*sum, *more).map_err(failed)?);
    }
    Ok((next, found[0]))
}
