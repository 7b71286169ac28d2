//! Pools: maxima, means and norms over windows.
//!
//! What the operator of the graph says becomes that. Where the maxima are, and means whose windows reach over padding
//! that counts, are computed from the windows themselves.

use margay_ir::Value;
use margay_ir::ops::{Bits, Im2col, ImageLayout, Number, Pad, Pool, PoolKind, Reduce, ReduceKind};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::convolutions::{Windows, decide, sizes, spatial};
use super::statistics::{power_of_size, root};

/// `MaxPool`, with the places of the maxima on demand.
pub(super) fn max_pool(cx: &mut Importer, call: &Call) -> Imported {
    let column_major = call.flag("storage_order", false)?;
    let x = call.input(0)?;
    let dtype = cx.ty(x).dtype;
    // Small integers are exact as f32.
    if !dtype.is_float() && dtype.bytes() > 1 {
        return Err(Refusal::Unsupported(format!("maxima of {dtype} are not supported")));
    }
    let x = if dtype.is_float() { x } else { cx.cast(x, DType::F32)? };
    let (kernel, windows) = windows(cx, call, x)?;
    let y = pooled(cx, x, PoolKind::Max, &kernel, &windows, false)?;
    let y = cx.cast(y, dtype)?;
    if !call.wants(1) {
        return Ok(vec![y]);
    }
    Ok(vec![y, places(cx, x, &kernel, &windows, column_major)?])
}

/// `AveragePool`.
pub(super) fn average_pool(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    Ok(vec![averaged(cx, call, x)?])
}

/// Means over windows, by the attributes of a call.
pub(super) fn averaged(cx: &mut Importer, call: &Call, x: Value) -> Result<Value, Refusal> {
    let counted = call.flag("count_include_pad", false)?;
    let (kernel, windows) = windows(cx, call, x)?;
    if !(counted && windows.overhang) {
        return pooled(cx, x, PoolKind::Average, &kernel, &windows, counted);
    }
    // Sums over windows that reach over the end, by how many of their elements lie in the image and its padding.
    let sums = sums(cx, x, &kernel, &windows)?;
    let dtype = cx.ty(x).dtype;
    let one = cx.scalar(dtype, 1.0)?;
    let plane = [&[Dim::from(1usize), Dim::from(1usize)], &spatial(cx, x)?[..]].concat();
    let ones = cx.spread(one, plane)?;
    let around = |pads: &[usize]| [0, 0].into_iter().chain(pads.iter().map(|&p| p as i64)).collect();
    let (before, after) = (around(&windows.before), around(&windows.given_after));
    let ones = cx.add(Pad { before, after, value: Number::float(1.0) }, &[ones])?;
    let rest = Windows {
        before: vec![0; kernel.len()],
        after: windows.after.iter().zip(&windows.given_after).map(|(a, g)| a.saturating_sub(*g)).collect(),
        ..windows
    };
    let counts = self::sums(cx, ones, &kernel, &rest)?;
    cx.over(sums, counts)
}

/// `LpPool`: (Σ |x|ᵖ)^(1/p) over windows.
pub(super) fn lp_pool(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let p = call.int("p", 2)?;
    let (kernel, windows) = windows(cx, call, x)?;
    let powers = power_of_size(cx, x, p)?;
    let sums = sums(cx, powers, &kernel, &windows)?;
    Ok(vec![root(cx, sums, p)?])
}

/// The sums over windows: means that count padding, times the elements of a window.
fn sums(cx: &mut Importer, x: Value, kernel: &[usize], windows: &Windows) -> Result<Value, Refusal> {
    let means = pooled(cx, x, PoolKind::Average, kernel, windows, true)?;
    cx.scaled(means, kernel.iter().product::<usize>() as f64)
}

fn windows(cx: &mut Importer, call: &Call, x: Value) -> Result<(Vec<usize>, Windows), Refusal> {
    let data = spatial(cx, x)?;
    let taps = call.ints("kernel_shape")?;
    let taps =
        taps.ok_or_else(|| Refusal::Invalid("expected attribute `kernel_shape`, found none".into()))?;
    let kernel = sizes("kernel_shape", taps, data.len())?;
    let taps: Vec<Dim> = kernel.iter().map(|&k| Dim::from(k)).collect();
    decide(cx, call, &data)?;
    let windows = Windows::new(call, &data, &taps, call.flag("ceil_mode", false)?)?;
    Ok((kernel, windows))
}

fn pooled(
    cx: &mut Importer,
    x: Value,
    kind: PoolKind,
    kernel: &[usize],
    windows: &Windows,
    count_include_pad: bool,
) -> Result<Value, Refusal> {
    let op = Pool {
        kind,
        kernel: kernel.to_vec(),
        strides: windows.strides.clone(),
        pads_before: windows.before.clone(),
        pads_after: windows.after.clone(),
        dilations: windows.dilations.clone(),
        count_include_pad,
        layout: ImageLayout::Nchw,
    };
    cx.add(op, &[x])
}

/// Where the first maximum of each window lies in the whole operand, counted in its order, or with the spatial axes in
/// the opposite one.
fn places(
    cx: &mut Importer,
    x: Value,
    kernel: &[usize],
    windows: &Windows,
    column_major: bool,
) -> Result<Value, Refusal> {
    let shape = cx.ty(x).shape.clone();
    let spatial = kernel.len();
    let op = Im2col {
        kernel: kernel.to_vec(),
        strides: windows.strides.clone(),
        pads_before: windows.before.clone(),
        pads_after: windows.after.clone(),
        dilations: windows.dilations.clone(),
        value: Bits::new(f64::NEG_INFINITY),
    };
    let elements = cx.add(op, &[x])?; // [N, C, taps…, places…]
    let ndim = 2 + 2 * spatial;
    let taps: Vec<usize> = (2..2 + spatial).collect();
    let largest = cx.joined(ReduceKind::Max, elements, &taps, true)?;
    let all = cx.ty(elements).shape.clone();
    let mut place = cx.scalar(DType::I64, 0.0)?;
    let order: Vec<usize> = if column_major { (0..spatial).rev().collect() } else { (0..spatial).collect() };
    for axis in order {
        let tap = cx.positions(&all, 2 + axis)?;
        let tap = cx.scaled(tap, windows.dilations[axis] as f64)?;
        let step = cx.positions(&all, 2 + spatial + axis)?;
        let step = cx.scaled(step, windows.strides[axis] as f64)?;
        let at = cx.plus(tap, step)?;
        let at = cx.offset(at, -(windows.before[axis] as f64))?;
        let extent = cx.extent(&shape[2 + axis], DType::I64)?;
        let outer = cx.times(place, extent)?;
        place = cx.plus(outer, at)?;
    }
    // Behind all that come before: channels of images.
    let (image, channel) = (cx.positions(&all, 0)?, cx.positions(&all, 1)?);
    let channels = cx.extent(&shape[1], DType::I64)?;
    let image = cx.times(image, channels)?;
    let channel = cx.plus(image, channel)?;
    let size = shape[2..].iter().fold(Dim::from(1usize), |n, d| &n * d);
    let size = cx.extent(&size, DType::I64)?;
    let first = cx.times(channel, size)?;
    let place = cx.plus(place, first)?;
    let here = cx.equal(elements, largest)?;
    let beyond = cx.number(place, f64::INFINITY)?;
    let candidates = cx.chosen(here, place, beyond)?;
    debug_assert_eq!(cx.ty(candidates).ndim(), ndim);
    cx.add(Reduce { kind: ReduceKind::Min, axes: taps, keepdims: false }, &[candidates])
}
