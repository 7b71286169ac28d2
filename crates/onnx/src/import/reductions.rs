//! Operators that join elements along axes, alone or composed.

use margay_ir::Value;
use margay_ir::ops::{Abs, Add, Exp, Less, Log, Mul, Reduce, ReduceKind, Select, Sub};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::call::{Call, Imported, Refusal, axes};
use super::statistics::root;

/// `ReduceSum`, whose axes became an input before those of the others.
pub(super) fn sum(cx: &mut Importer, call: &Call) -> Imported {
    let (x, join) = operands(cx, call, ReduceKind::Sum, 13)?;
    Ok(vec![cx.add(join, &[x])?])
}

/// Writes functions of operators that are one reduction.
macro_rules! reductions {
    ($($function:ident = $kind:ident),* $(,)?) => { $(
        pub(super) fn $function(cx: &mut Importer, call: &Call) -> Imported {
            let (x, join) = operands(cx, call, ReduceKind::$kind, 18)?;
            // Truth values as bytes, so that over none of them Max is false and Min is true.
            let dtype = cx.ty(x).dtype;
            let x = if dtype == DType::Bool { cx.cast(x, DType::U8)? } else { x };
            let y = cx.add(join, &[x])?;
            Ok(vec![cx.cast(y, dtype)?])
        }
    )* };
}
reductions! { max = Max, min = Min, prod = Prod }

/// `ReduceMean`; of integers the sum, which wraps, over the number of elements, rounded towards zero.
pub(super) fn mean(cx: &mut Importer, call: &Call) -> Imported {
    let (x, join) = operands(cx, call, ReduceKind::Mean, 18)?;
    let dtype = cx.ty(x).dtype;
    if dtype.is_float() {
        return Ok(vec![cx.add(join, &[x])?]);
    }
    let extent = |axis: &usize| cx.ty(x).shape[*axis].clone();
    let count = join.axes.iter().map(extent).fold(Dim::from(1usize), |n, d| &n * &d);
    let count = cx.extent(&count, dtype)?;
    let sum = cx.add(Reduce { kind: ReduceKind::Sum, ..join }, &[x])?;
    Ok(vec![cx.over(sum, count)?])
}

/// `ReduceL1`: Σ |x|.
pub(super) fn l1(cx: &mut Importer, call: &Call) -> Imported {
    let (x, join) = operands(cx, call, ReduceKind::Sum, 18)?;
    let sizes = cx.add(Abs, &[x])?;
    Ok(vec![cx.add(join, &[sizes])?])
}

/// `ReduceL2`: √Σ x².
pub(super) fn l2(cx: &mut Importer, call: &Call) -> Imported {
    let sum = sum_square(cx, call)?[0];
    Ok(vec![root(cx, sum, 2)?])
}

/// `ReduceSumSquare`: Σ x².
pub(super) fn sum_square(cx: &mut Importer, call: &Call) -> Imported {
    let (x, join) = operands(cx, call, ReduceKind::Sum, 18)?;
    let squares = cx.add(Mul, &[x, x])?;
    Ok(vec![cx.add(join, &[squares])?])
}

/// `ReduceLogSum`: log Σ x.
pub(super) fn log_sum(cx: &mut Importer, call: &Call) -> Imported {
    let (x, join) = operands(cx, call, ReduceKind::Sum, 18)?;
    let sum = cx.add(join, &[x])?;
    Ok(vec![cx.add(Log, &[sum])?])
}

/// `ReduceLogSumExp`: m + log Σ eˣ⁻ᵐ, where m is the largest x.
pub(super) fn log_sum_exp(cx: &mut Importer, call: &Call) -> Imported {
    let (x, join) = operands(cx, call, ReduceKind::Sum, 18)?;
    let kept = Reduce { keepdims: true, ..join.clone() };
    let largest = cx.add(Reduce { kind: ReduceKind::Max, ..kept.clone() }, &[x])?;
    // An infinite maximum is not taken away: infinity less itself is not a number.
    let size = cx.add(Abs, &[largest])?;
    let infinity = cx.number(x, f64::INFINITY)?;
    let finite = cx.add(Less, &[size, infinity])?;
    let zero = cx.number(x, 0.0)?;
    let largest = cx.add(Select, &[finite, largest, zero])?;
    let shifted = cx.add(Sub, &[x, largest])?;
    let powers = cx.add(Exp, &[shifted])?;
    let sum = cx.add(kept, &[powers])?;
    let logarithm = cx.add(Log, &[sum])?;
    let y = cx.add(Add, &[logarithm, largest])?;
    let axes = &join.axes;
    let shape = cx.ty(y).shape.iter().enumerate();
    let shape = shape.filter(|(i, _)| join.keepdims || !axes.contains(i)).map(|(_, d)| d.clone()).collect();
    cx.shaped(y, shape).map(|v| vec![v])
}

/// The operand and the reduction. Axes are an attribute before operator set `since` and an input from there on; none
/// mean all, or with `noop_with_empty_axes` none.
fn operands(
    cx: &mut Importer,
    call: &Call,
    kind: ReduceKind,
    since: i64,
) -> Result<(Value, Reduce), Refusal> {
    let x = call.input(0)?;
    let ndim = cx.ty(x).ndim();
    let keepdims = call.flag("keepdims", true)?;
    let given = if call.opset < since {
        call.ints("axes")?.map(<[i64]>::to_vec)
    } else {
        call.optional(1).map(|_| cx.const_ints(call, 1, "the list of axes")).transpose()?
    };
    let keep_all = call.flag("noop_with_empty_axes", false)?;
    let axes = match given.filter(|list| !list.is_empty()) {
        Some(list) => axes(&list, ndim)?,
        None if keep_all => Vec::new(),
        None => (0..ndim).collect(),
    };
    Ok((x, Reduce { kind, axes, keepdims }))
}
