//! `GroupQueryAttention` of onnxruntime: attention of more heads of queries than of keys, with a cache of keys and values.
//!
//! For each sentence an operand says how many keys there are in all, less one. What is kept of earlier keys stands from the
//! beginning of the cache on, and the new ones behind it: at different places for sentences of different lengths. Without a
//! cache all keys are new, and what stands behind the end of a sentence means nothing.

use margay_ir::Value;
use margay_ir::ops::{Concat, Gather};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::attention::{Attend, join_heads, rotated, split_heads};
use super::call::{Call, Imported, Refusal};
use super::slices::slice_axes;

/// `GroupQueryAttention`.
pub(super) fn group_query_attention(cx: &mut Importer, call: &Call) -> Imported {
    let query = call.input(0)?;
    let (key, value) = (call.optional(1), call.optional(2));
    let past = [call.optional(3), call.optional(4)];
    let (last, _total) = (call.input(5)?, call.optional(6));
    let tables = [call.optional(7), call.optional(8)];
    let (positions, scores) = (call.optional(9), call.optional(10));
    let (heads, kv_heads) = (call.int("num_heads", 0)?, call.int("kv_num_heads", 0)?);
    let (window, softcap) = (call.int("local_window_size", -1)?, call.float("softcap", 0.0)?);
    if call.flag("smooth_softmax", false)? {
        return Err(Refusal::Unsupported("a smooth softmax is not supported".into()));
    }
    if cx.ty(query).ndim() != 3 || heads < 1 || kv_heads < 1 {
        let found = cx.ty(query);
        return Err(Refusal::Invalid(format!("{heads} heads and {kv_heads} of keys and values of {found}")));
    }
    let parts = match (key, value) {
        (Some(key), Some(value)) => [(query, heads), (key, kv_heads), (value, kv_heads)],
        _ => side_by_side(cx, query, heads, kv_heads)?,
    };
    let [mut q, mut k, v] = parts.map(|(x, heads)| split_heads(cx, x, heads));
    let (rows, batch) =
        (cx.ty(q.as_ref().map_or(query, |q| *q)).shape.clone(), cx.ty(query).shape[0].clone());
    let new = rows.get(2).cloned().unwrap_or_default();
    // The place of the first new key of each sentence, with a cache or without one.
    let kept = past[0].map_or_else(Dim::default, |p| cx.ty(p).shape.get(2).cloned().unwrap_or_default());
    let one = Dim::from(1usize);
    let start = match kept.is(0) {
        true => None,
        false => {
            let last = cx.shaped(last, vec![batch.clone(), one.clone()])?;
            let last = cx.cast(last, DType::I64)?;
            let fresh = cx.extent(&(&new - &one), DType::I64)?;
            Some(cx.minus(last, fresh)?)
        }
    };
    // Of every new row, [B or 1, S].
    let own = cx.iota(&new)?;
    let mut at = cx.unsqueezed(own, 0)?;
    if let Some(start) = start {
        at = cx.plus(at, start)?;
    }
    if call.flag("do_rotary", false)? {
        let [Some(cos), Some(sin)] = tables else {
            return Err(Refusal::Invalid("expected tables of angles, found none".into()));
        };
        let places = match positions {
            Some(positions) => positions,
            None => cx.spread(at, vec![batch.clone(), new.clone()])?,
        };
        let [cos, sin] = [cos, sin].map(|table| cx.add(Gather { axis: 0 }, &[table, places]));
        let (cos, sin) = (cos?, sin?);
        let interleaved = call.flag("rotary_interleaved", false)?;
        q = rotated(cx, q?, cos, sin, 0, interleaved);
        k = rotated(cx, k?, cos, sin, 0, interleaved);
    }
    let (q, k, v) = (q?, k?, v?);
    let (k, v) = (placed(cx, past[0], k, start)?, placed(cx, past[1], v, start)?);
    let size = cx.ty(q).shape[3].as_extent();
    let scale = match (call.float("scale", 0.0)?, size) {
        (scale, _) if scale != 0.0 => scale,
        (_, Some(size)) => 1.0 / (size as f64).sqrt(),
        (_, None) => return Err(Refusal::Unsupported("heads of unknown size are not supported".into())),
    };
    let causal = start.is_none() && window < 0;
    let mut bias = scores;
    if !causal {
        let seen = seen(cx, at, &cx.ty(k).shape[2].clone(), window)?;
        let (zero, hidden) = (cx.number(q, 0.0)?, cx.number(q, f64::NEG_INFINITY)?);
        let mask = cx.chosen(seen, zero, hidden)?;
        bias = Some(match scores {
            Some(scores) => cx.plus(scores, mask)?,
            None => mask,
        });
    }
    let attend = Attend { scale, softcap, causal, bias, may_be_blind: false };
    let y = attend.apply(cx, q, k, v)?;
    Ok(vec![join_heads(cx, y)?, k, v])
}

/// Which keys `[B or 1, 1, S, T]` a row at a place sees: those up to its own, and no more than a window of them.
fn seen(cx: &mut Importer, at: Value, keys: &Dim, window: i64) -> Result<Value, Refusal> {
    let at = cx.unsqueezed(at, 1)?;
    let at = cx.unsqueezed(at, 3)?;
    let key = cx.iota(keys)?;
    let seen = cx.at_most(key, at)?;
    if window < 0 {
        return Ok(seen);
    }
    let first = cx.offset(at, -(window as f64))?;
    let near = cx.less(first, key)?;
    cx.both(seen, near)
}

/// Queries, keys and values that stand side by side in the last axis, with their numbers of heads.
fn side_by_side(
    cx: &mut Importer,
    x: Value,
    heads: i64,
    kv_heads: i64,
) -> Result<[(Value, i64); 3], Refusal> {
    let width = cx.ty(x).shape.last().and_then(Dim::as_const);
    let all = heads.saturating_add(kv_heads.saturating_mul(2));
    let size = width.filter(|w| all > 0 && w % all == 0).map(|w| w / all);
    let size = size.ok_or_else(|| Refusal::Invalid(format!("{all} heads side by side in {}", cx.ty(x))))?;
    let axis = cx.ty(x).ndim() - 1;
    let mut from = 0;
    let mut part = |heads: i64| {
        let (start, end) = (Dim::from(from), Dim::from(from + heads * size));
        from += heads * size;
        Ok::<_, Refusal>((slice_axes(cx, x, &[axis], &[start], &[end], &[1])?, heads))
    };
    Ok([part(heads)?, part(kv_heads)?, part(kv_heads)?])
}

/// What was kept and what is new along the third axis, the new ones from a place of their own in each sentence on.
fn placed(
    cx: &mut Importer,
    past: Option<Value>,
    new: Value,
    start: Option<Value>,
) -> Result<Value, Refusal> {
    let (Some(past), Some(start)) = (past, start) else { return Ok(new) };
    if cx.ty(past).ndim() != 4 {
        return Err(Refusal::Invalid(format!("expected a cache of 4 axes, found {}", cx.ty(past))));
    }
    let kept = cx.ty(past).shape[2].clone();
    let both = cx.add(Concat { axis: 2 }, &[past, new])?;
    let shape = cx.ty(both).shape.clone();
    // A place before the new ones is a place in the cache; the others follow from the first new one.
    let place = cx.iota(&shape[2])?;
    let place = cx.unsqueezed(place, 0)?;
    let shift = cx.extent(&kept, DType::I64)?;
    let shift = cx.minus(shift, start)?;
    let moved = cx.plus(place, shift)?;
    let before = cx.less(place, start)?;
    let from = cx.chosen(before, place, moved)?;
    let last = cx.extent(&(&shape[2] - &Dim::from(1usize)), DType::I64)?;
    let from = cx.smaller(from, last)?;
    let from = cx.unsqueezed(from, 1)?;
    let from = cx.unsqueezed(from, 3)?;
    let from = cx.spread(from, shape)?;
    cx.elements(both, from, 2)
}
