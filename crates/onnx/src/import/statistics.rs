//! Normalizations by means and norms of groups of elements.

use margay_ir::Value;
use margay_ir::ops::{Bits, ImageLayout, LayerNorm, Pool, PoolKind, Pow, ReduceKind};
use margay_tensor::Dim;

use super::Importer;
use super::call::{Call, Imported, Refusal, axes, axis};
use super::normalizations::channels;

/// (x - mean) / √(variance + ε) over the axes from `from` on.
fn standardized(cx: &mut Importer, x: Value, from: usize, epsilon: f64) -> Result<Value, Refusal> {
    let inner = cx.ty(x).shape[from..].to_vec();
    let (one, zero) = (cx.number(x, 1.0)?, cx.number(x, 0.0)?);
    let (ones, zeros) = (cx.spread(one, inner.clone())?, cx.spread(zero, inner)?);
    cx.add(LayerNorm { axis: from, epsilon: Bits::new(epsilon) }, &[x, ones, zeros])
}

/// x scale + bias, with numbers per channel.
fn per_channel(cx: &mut Importer, x: Value, scale: Value, bias: Value) -> Result<Value, Refusal> {
    let (scale, bias) = (channels(cx, scale, x)?, channels(cx, bias, x)?);
    let scaled = cx.times(x, scale)?;
    cx.plus(scaled, bias)
}

/// `InstanceNormalization`: each channel of each image by itself.
pub(super) fn instance_normalization(cx: &mut Importer, call: &Call) -> Imported {
    let (x, scale, bias) = (call.input(0)?, call.input(1)?, call.input(2)?);
    if cx.ty(x).ndim() < 3 {
        return Err(Refusal::Invalid(format!("expected at least 3 axes, found {}", cx.ty(x))));
    }
    let unit = standardized(cx, x, 2, call.float("epsilon", 1e-5)?)?;
    Ok(vec![per_channel(cx, unit, scale, bias)?])
}

/// `GroupNormalization`: groups of channels of each image. Scale and bias are per group before operator set 21, and per
/// channel since.
pub(super) fn group_normalization(cx: &mut Importer, call: &Call) -> Imported {
    let (x, scale, bias) = (call.input(0)?, call.input(1)?, call.input(2)?);
    call.ignore(&["stash_type"]);
    let groups = call.optional_int("num_groups")?;
    let groups =
        groups.ok_or_else(|| Refusal::Invalid("expected attribute `num_groups`, found none".into()))?;
    let shape = cx.ty(x).shape.clone();
    let Some(each) = shape.get(1).and_then(|c| c.floor_div(&Dim::from(groups))).filter(|_| groups > 0) else {
        return Err(Refusal::Invalid(format!("{groups} groups of {}", cx.ty(x))));
    };
    if &each * &Dim::from(groups) != shape[1] {
        return Err(Refusal::Unsupported(format!("{groups} groups of `{}` channels", shape[1])));
    }
    let split = [&shape[..1], &[Dim::from(groups), each], &shape[2..]].concat();
    let (dtype, wide) = (cx.ty(x).dtype, cx.wide(x));
    let grouped = cx.cast(x, wide)?;
    let grouped = cx.shaped(grouped, split)?;
    let mut unit = standardized(cx, grouped, 2, call.float("epsilon", 1e-5)?)?;
    let per_group = call.opset < 21 && cx.ty(scale).shape[..] == [Dim::from(groups)];
    let (scale, bias) = (cx.cast(scale, wide)?, cx.cast(bias, wide)?);
    if per_group {
        unit = per_channel(cx, unit, scale, bias)?;
    }
    let mut y = cx.shaped(unit, shape)?;
    if !per_group {
        y = per_channel(cx, y, scale, bias)?;
    }
    Ok(vec![cx.cast(y, dtype)?])
}

/// `RMSNormalization`: x / √(mean x² + ε) scale over the axes from `axis` on.
pub(super) fn rms_normalization(cx: &mut Importer, call: &Call) -> Imported {
    let (x, scale) = (call.input(0)?, call.input(1)?);
    call.ignore(&["stash_type"]);
    let from = axis(call.int("axis", -1)?, cx.ty(x).ndim())?;
    let (y, _) = root_mean_square(cx, x, scale, from, call.float("epsilon", 1e-5)?)?;
    Ok(vec![y])
}

/// x / √(mean x² + ε) scale, and the reciprocal root. Halves are computed in f32.
pub(super) fn root_mean_square(
    cx: &mut Importer,
    x: Value,
    scale: Value,
    from: usize,
    epsilon: f64,
) -> Result<(Value, Value), Refusal> {
    let (dtype, wide) = (cx.ty(x).dtype, cx.wide(x));
    let over: Vec<usize> = (from..cx.ty(x).ndim()).collect();
    let x = cx.cast(x, wide)?;
    let squares = cx.times(x, x)?;
    let mean = cx.joined(ReduceKind::Mean, squares, &over, true)?;
    let widened = cx.offset(mean, epsilon)?;
    let root = cx.sqrt(widened)?;
    let one = cx.number(root, 1.0)?;
    let factor = cx.over(one, root)?;
    let unit = cx.times(x, factor)?;
    let unit = cx.cast(unit, dtype)?;
    let scale = cx.cast(scale, dtype)?;
    Ok((cx.times(unit, scale)?, factor))
}

/// `LpNormalization`: x over its 1-norm or 2-norm along an axis; rows of zeros stay.
pub(super) fn lp_normalization(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let over = [axis(call.int("axis", -1)?, cx.ty(x).ndim())?];
    let norm = norm(cx, x, &over, call.int("p", 2)?, true)?;
    Ok(vec![over_norm(cx, x, norm)?])
}

/// x over a norm, where that is not 0.
pub(super) fn over_norm(cx: &mut Importer, x: Value, norm: Value) -> Result<Value, Refusal> {
    let (zero, one) = (cx.number(norm, 0.0)?, cx.number(norm, 1.0)?);
    let none = cx.equal(norm, zero)?;
    let divisor = cx.chosen(none, one, norm)?;
    cx.over(x, divisor)
}

/// (Σ |x|ᵖ)^(1/p) along axes.
pub(super) fn norm(
    cx: &mut Importer,
    x: Value,
    over: &[usize],
    p: i64,
    keepdims: bool,
) -> Result<Value, Refusal> {
    let powers = power_of_size(cx, x, p)?;
    let sum = cx.joined(ReduceKind::Sum, powers, over, keepdims)?;
    root(cx, sum, p)
}

/// |x|ᵖ.
pub(super) fn power_of_size(cx: &mut Importer, x: Value, p: i64) -> Result<Value, Refusal> {
    match p {
        1 => cx.size(x),
        2 => cx.times(x, x),
        p if p > 0 => {
            let (size, p) = (cx.size(x)?, cx.number(x, p as f64)?);
            cx.add(Pow, &[size, p])
        }
        p => Err(Refusal::Invalid(format!("expected a positive power, found {p}"))),
    }
}

/// x^(1/p) of sums of powers, x >= 0. The derivative at 0 is 0: that of a norm is taken for 0 where its operands are.
pub(super) fn root(cx: &mut Importer, x: Value, p: i64) -> Result<Value, Refusal> {
    if p == 1 {
        return Ok(x);
    }
    let (zero, one) = (cx.number(x, 0.0)?, cx.number(x, 1.0)?);
    let none = cx.equal(x, zero)?;
    let base = cx.chosen(none, one, x)?;
    let root = if p == 2 {
        cx.sqrt(base)?
    } else {
        let p = cx.number(x, 1.0 / p as f64)?;
        cx.add(Pow, &[base, p])?
    };
    cx.chosen(none, zero, root)
}

/// `GlobalLpPool`: the norm of each channel.
pub(super) fn global_lp_pool(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    super::convolutions::spatial(cx, x)?;
    let over: Vec<usize> = (2..cx.ty(x).ndim()).collect();
    Ok(vec![norm(cx, x, &over, call.int("p", 2)?, true)?])
}

/// `MeanVarianceNormalization`: (x - mean) / (deviation + 1e-9).
pub(super) fn mean_variance_normalization(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let over = axes(call.ints("axes")?.unwrap_or(&[0, 2, 3]), cx.ty(x).ndim())?;
    let mean = cx.joined(ReduceKind::Mean, x, &over, true)?;
    let centred = cx.minus(x, mean)?;
    let squares = cx.times(centred, centred)?;
    let variance = cx.joined(ReduceKind::Mean, squares, &over, true)?;
    let deviation = root(cx, variance, 2)?;
    let divisor = cx.offset(deviation, 1e-9)?;
    Ok(vec![cx.over(centred, divisor)?])
}

/// `LRN`: x / (bias + α Σ x² / size)^β, where the sum runs over `size` channels around each one.
pub(super) fn lrn(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let (alpha, beta, bias) =
        (call.float("alpha", 1e-4)?, call.float("beta", 0.75)?, call.float("bias", 1.0)?);
    let size = call.optional_int("size")?.and_then(|s| usize::try_from(s).ok()).filter(|&s| s > 0);
    let size = size.ok_or_else(|| Refusal::Invalid("expected attribute `size` of at least 1".into()))?;
    let shape = cx.ty(x).shape.clone();
    if shape.len() < 2 {
        return Err(Refusal::Invalid(format!("expected at least 2 axes, found {}", shape.len())));
    }
    let squares = cx.times(x, x)?;
    let inner = shape[2..].iter().fold(Dim::from(1usize), |n, d| &n * d);
    // Images whose rows are the channels: the mean of a column of a window, with zeros around, is the sum over its size.
    let squares = cx.shaped(squares, vec![shape[0].clone(), Dim::from(1usize), shape[1].clone(), inner])?;
    let window = Pool {
        kind: PoolKind::Average,
        kernel: vec![size, 1],
        strides: vec![1, 1],
        pads_before: vec![(size - 1) / 2, 0],
        pads_after: vec![size / 2, 0],
        dilations: vec![1, 1],
        count_include_pad: true,
        layout: ImageLayout::Nchw,
    };
    let means = cx.add(window, &[squares])?;
    let means = cx.shaped(means, shape)?;
    let scaled = cx.scaled(means, alpha)?;
    let base = cx.offset(scaled, bias)?;
    let exponent = cx.number(x, beta)?;
    let divisor = cx.add(Pow, &[base, exponent])?;
    Ok(vec![cx.over(x, divisor)?])
}

/// `BatchNormalization` in training: by the mean and variance of what is given, and the running ones moved towards
/// them.
pub(super) fn in_training(
    cx: &mut Importer,
    x: Value,
    [scale, bias, mean, variance]: [Value; 4],
    epsilon: Value,
    momentum: f64,
) -> Imported {
    let over: Vec<usize> = (0..cx.ty(x).ndim()).filter(|&a| a != 1).collect();
    let centre = cx.joined(ReduceKind::Mean, x, &over, true)?;
    let centred = cx.minus(x, centre)?;
    let squares = cx.times(centred, centred)?;
    let spread = cx.joined(ReduceKind::Mean, squares, &over, true)?;
    let epsilon = cx.cast(epsilon, cx.ty(x).dtype)?;
    let widened = cx.plus(spread, epsilon)?;
    let deviation = cx.sqrt(widened)?;
    let unit = cx.over(centred, deviation)?;
    let y = per_channel(cx, unit, scale, bias)?;
    let mut moved = |old: Value, new: Value| {
        let shape = cx.ty(old).shape.clone();
        let new = cx.shaped(new, shape)?;
        let new = cx.cast(new, cx.ty(old).dtype)?;
        let (kept, added) = (cx.scaled(old, momentum)?, cx.scaled(new, 1.0 - momentum)?);
        cx.plus(kept, added)
    };
    Ok(vec![y, moved(mean, centre)?, moved(variance, spread)?])
}
