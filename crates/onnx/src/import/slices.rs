//! `Slice` and `Split`.
//!
//! ONNX clamps bounds to the operand; the graph does not. Where bound and extent are known they are clamped here.
//! Where symbols hide which is larger the bound is taken as it stands, unless it is known from the use of the model that it
//! lies outside: then the extent is taken for fixed. The graph reports it when the symbols get other values that make a
//! bound wrong: `x[:512]` of an axis `S` means that `S` is at least 512.

use margay_ir::Value;
use margay_ir::ops::{Slice, less_or_equal};
use margay_tensor::Dim;

use super::call::{Call, Imported, Refusal, axis};
use super::{Importer, Lengths};

/// Bounds from here on mean the end of the axis, whatever its extent.
const ENDLESS: i64 = 1_000_000_000;

/// `Slice`: bounds are attributes before operator set 10 and inputs since.
pub(super) fn slice(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let ndim = cx.ty(x).ndim();
    let missing = |name: &str| Refusal::Invalid(format!("expected attribute `{name}`, found none"));
    let dims = |list: &[i64]| list.iter().copied().map(Dim::from).collect::<Vec<Dim>>();
    if call.opset >= 10 && cx.lengths == Lengths::Decided {
        let bounds = [call.input(1)?, call.input(2)?];
        if bounds.iter().any(|v| cx.ints(*v).is_none()) {
            return super::decided::slice(cx, call, x, bounds);
        }
    }
    let (starts, ends, given, steps) = if call.opset < 10 {
        let starts = dims(call.ints("starts")?.ok_or_else(|| missing("starts"))?);
        let ends = dims(call.ints("ends")?.ok_or_else(|| missing("ends"))?);
        (starts, ends, call.ints("axes")?.map(<[i64]>::to_vec), None)
    } else {
        let starts = cx.known_ints(call, 1, "the start")?.values;
        let ends = cx.known_ints(call, 2, "the end")?.values;
        let given = call.optional(3).map(|_| cx.const_ints(call, 3, "the list of axes")).transpose()?;
        let steps = call.optional(4).map(|_| cx.const_ints(call, 4, "the step")).transpose()?;
        (starts, ends, given, steps)
    };
    let given = given.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    for (what, found) in [("ends", ends.len()), ("axes", given.len()), ("steps", steps.len())] {
        if found != starts.len() {
            return Err(Refusal::Invalid(format!("expected {} {what}, found {found}", starts.len())));
        }
    }
    let axes = given.iter().map(|&a| axis(a, ndim)).collect::<Result<Vec<_>, _>>()?;
    let shape = cx.ty(x).shape.clone();
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for (i, &axis) in axes.iter().enumerate() {
        let (start, end) = clamped(&starts[i], &ends[i], steps[i], &shape[axis]);
        if cx.is_outside(&start, &end, steps[i], &shape[axis]) {
            cx.values_of(&[shape[axis].clone(), starts[i].clone(), ends[i].clone()])?;
        }
        from.push(start);
        to.push(end);
    }
    slice_axes(cx, x, &axes, &from, &to, &steps).map(|v| vec![v])
}

/// A slice along some axes, with bounds inside the operand. Nothing is added where all is taken.
pub(super) fn slice_axes(
    cx: &mut Importer,
    x: Value,
    axes: &[usize],
    starts: &[Dim],
    ends: &[Dim],
    steps: &[i64],
) -> Result<Value, Refusal> {
    let shape = cx.ty(x).shape.clone();
    if let Some(axis) = axes.iter().find(|&&axis| axis >= shape.len()) {
        return Err(Refusal::Invalid(format!("expected more than {axis} axes, found {}", shape.len())));
    }
    let mut op =
        Slice { starts: vec![Dim::default(); shape.len()], ends: shape.clone(), steps: vec![1; shape.len()] };
    for (i, &axis) in axes.iter().enumerate() {
        op.starts[axis] = starts[i].clone();
        op.ends[axis] = ends[i].clone();
        op.steps[axis] = steps[i];
    }
    let whole = op.ends == shape && op.starts.iter().all(|s| s.is(0)) && op.steps.iter().all(|&s| s == 1);
    if whole { Ok(x) } else { cx.add(op, &[x]) }
}

/// The bounds along an axis, counted from its beginning and inside it as far as that is known.
fn clamped(start: &Dim, end: &Dim, step: i64, extent: &Dim) -> (Dim, Dim) {
    let [none, before, last] = [Dim::default(), Dim::from(-1i64), extent - &Dim::from(1i64)];
    if step > 0 {
        let start = clamp(&position(start, extent), &none, extent);
        let end = clamp(&position(end, extent), &none, extent);
        // An empty part.
        if less_or_equal(&end, &start) == Some(true) {
            return (start.clone(), start);
        }
        (start, end)
    } else {
        let start = clamp(&position(start, extent), &before, &last);
        let end = clamp(&position(end, extent), &before, &last);
        if less_or_equal(&start, &end) == Some(true) {
            return (start.clone(), start);
        }
        (start, end)
    }
}

/// A bound counted from the beginning; bounds far outside go to infinity.
fn position(bound: &Dim, extent: &Dim) -> Bound {
    match bound.as_const() {
        Some(v) if v >= ENDLESS => Bound::After,
        Some(v) if v <= -ENDLESS => Bound::Before,
        Some(v) if v < 0 => Bound::At(extent + bound),
        // Negative whatever the symbols are.
        None if less_or_equal(bound, &Dim::from(-1i64)) == Some(true) => Bound::At(extent + bound),
        _ => Bound::At(bound.clone()),
    }
}

enum Bound {
    Before,
    At(Dim),
    After,
}

fn clamp(bound: &Bound, low: &Dim, high: &Dim) -> Dim {
    match bound {
        Bound::Before => low.clone(),
        Bound::After => high.clone(),
        Bound::At(v) if less_or_equal(high, v) == Some(true) => high.clone(),
        Bound::At(v) if less_or_equal(v, low) == Some(true) => low.clone(),
        Bound::At(v) => v.clone(),
    }
}

/// `Split`: the lengths are given, or equal but for a shorter last one.
pub(super) fn split(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let axis = axis(call.int("axis", 0)?, cx.ty(x).ndim())?;
    let extent = cx.ty(x).shape[axis].clone();
    let given = if call.opset < 13 {
        call.ints("split")?.map(|list| list.iter().copied().map(Dim::from).collect())
    } else {
        match call.optional(1) {
            Some(_) => Some(cx.known_ints(call, 1, "the length of the parts")?.values),
            None => None,
        }
    };
    if let Some(parts) = call.optional_int("num_outputs")?
        && parts != call.outputs() as i64
    {
        return Err(Refusal::Invalid(format!("expected {parts} outputs, found {}", call.outputs())));
    }
    let lengths = match given {
        Some(lengths) => lengths,
        None => equal_lengths(&extent, call.outputs())?,
    };
    let mut parts = Vec::new();
    let mut start = Dim::default();
    for length in &lengths {
        let end = &start + length;
        let (from, to) = (std::slice::from_ref(&start), std::slice::from_ref(&end));
        parts.push(slice_axes(cx, x, &[axis], from, to, &[1])?);
        start = end;
    }
    cx.assume_equal(&start, &extent)?;
    if (&start - &extent).as_const().is_some_and(|rest| rest != 0) {
        return Err(Refusal::Invalid(format!(
            "expected parts of `{extent}` elements together, found `{start}`"
        )));
    }
    Ok(parts)
}

fn equal_lengths(extent: &Dim, parts: usize) -> Result<Vec<Dim>, Refusal> {
    let count = Dim::from(parts);
    if let Some(all) = extent.as_extent().filter(|_| parts > 0) {
        let length = all.div_ceil(parts);
        let lengths = (0..parts).map(|i| all.saturating_sub(i * length).min(length));
        return Ok(lengths.map(Dim::from).collect());
    }
    // As many elements in each part as in the first, but for the last one, which has what is left.
    let rounded = &(extent + &count) - &Dim::from(1usize);
    let length = rounded.floor_div(&count).filter(|_| parts > 0);
    let length = length.ok_or_else(|| Refusal::Invalid("expected at least one output".into()))?;
    let exact = extent.floor_div(&count).filter(|d| &(d * &count) == extent);
    if let Some(length) = exact {
        return Ok(vec![length; parts]);
    }
    let last = extent - &(&length * &Dim::from(parts - 1));
    let mut lengths = vec![length; parts - 1];
    lengths.push(last);
    Ok(lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(start: &str, end: &str, step: i64, extent: &str) -> String {
        let [start, end, extent] = [start, end, extent].map(|t| Dim::parse(t).unwrap());
        let (start, end) = clamped(&start, &end, step, &extent);
        format!("{start}..{end}")
    }

    #[test]
    fn bounds_are_clamped_where_they_are_known() {
        assert_eq!(bounds("1", "9223372036854775807", 1, "5"), "1..5");
        assert_eq!(bounds("-3", "-1", 1, "5"), "2..4");
        assert_eq!(bounds("-9", "2", 1, "5"), "0..2");
        assert_eq!(bounds("7", "9", 1, "5"), "5..5");
        assert_eq!(bounds("3", "1", 1, "5"), "3..3");
        assert_eq!(bounds("-1", "-9223372036854775807", -1, "5"), "4..-1");
        assert_eq!(bounds("9", "1", -2, "5"), "4..1");
        assert_eq!(bounds("0", "5", -1, "0"), "-1..-1");
    }

    #[test]
    fn bounds_with_symbols_are_taken_as_they_stand() {
        assert_eq!(bounds("0", "S", 1, "512"), "0..S");
        assert_eq!(bounds("0", "512", 1, "S"), "0..512");
        assert_eq!(bounds("0", "-1", 1, "S"), "0..S - 1");
        assert_eq!(bounds("-1", "9223372036854775807", 1, "S"), "S - 1..S");
        assert_eq!(bounds("0", "S + 3", 1, "S"), "0..S");
        assert_eq!(bounds("0", "-S", 1, "S + T"), "0..T");
        assert_eq!(bounds("-1", "-9223372036854775807", -1, "S"), "S - 1..-1");
    }
}
