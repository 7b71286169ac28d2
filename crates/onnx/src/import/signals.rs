//! Signals: Fourier transforms as products with matrices of cosines and sines, and windows.

use margay_ir::Value;
use margay_ir::ops::{Concat, Cos, Gather, MatMul, Number, Pad};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::call::{Call, Imported, Refusal, axis};
use super::elementwise::numbered_type;
use super::slices::slice_axes;

/// Longer transforms would take matrices that no model has room for.
const LONGEST: usize = 1 << 11;

/// The real and the imaginary part of a value whose last axis holds one or both.
fn parts(cx: &mut Importer, x: Value) -> Result<(Value, Option<Value>), Refusal> {
    let shape = cx.ty(x).shape.clone();
    let last = shape.len().saturating_sub(1);
    let part = |cx: &mut Importer, i: usize| {
        let cut = slice_axes(cx, x, &[last], &[Dim::from(i)], &[Dim::from(i + 1)], &[1])?;
        cx.shaped(cut, shape[..last].to_vec())
    };
    match shape.last() {
        Some(d) if d.is(1) => Ok((part(cx, 0)?, None)),
        Some(d) if d.is(2) => Ok((part(cx, 0)?, Some(part(cx, 1)?))),
        _ => Err(Refusal::Invalid(format!("expected a last axis of 1 or 2, found {}", cx.ty(x)))),
    }
}

/// cos and sin of 2π j k / n as matrices of `rows` j and `columns` k.
fn circle(
    cx: &mut Importer,
    dtype: DType,
    n: usize,
    rows: usize,
    columns: usize,
    factors: &[f64],
) -> Result<[Value; 2], Refusal> {
    // By whole turns, so that large products of positions lose nothing.
    let angle = |i: usize| {
        let turns = (i / columns) * (i % columns) % n;
        2.0 * std::f64::consts::PI * turns as f64 / n as f64
    };
    let of = |f: &dyn Fn(f64) -> f64| {
        (0..rows * columns).map(|i| f(angle(i)) * factors[i / columns]).collect::<Vec<f64>>()
    };
    Ok([cx.table(dtype, &[rows, columns], of(&f64::cos))?, cx.table(dtype, &[rows, columns], of(&f64::sin))?])
}

/// A transform along the last axis of the parts; the result has real and imaginary parts in a new last axis.
fn transformed(
    cx: &mut Importer,
    real: Value,
    imaginary: Option<Value>,
    n: usize,
    bins: usize,
    inverse: bool,
) -> Result<Value, Refusal> {
    let dtype = cx.ty(real).dtype;
    let factor = if inverse { 1.0 / n as f64 } else { 1.0 };
    let [cos, sin] = circle(cx, dtype, n, n, bins, &vec![factor; n])?;
    let multiply = |cx: &mut Importer, x: Value, m: Value| cx.add(MatMul, &[x, m]);
    // (a + ib) (cos ∓ i sin), with the upper sign forwards.
    let mut out = [multiply(cx, real, cos)?, multiply(cx, real, sin)?];
    if !inverse {
        out[1] = cx.negated(out[1])?;
    }
    if let Some(imaginary) = imaginary {
        let (c, s) = (multiply(cx, imaginary, cos)?, multiply(cx, imaginary, sin)?);
        out[0] = if inverse { cx.minus(out[0], s)? } else { cx.plus(out[0], s)? };
        out[1] = cx.plus(out[1], c)?;
    }
    let last = cx.ty(out[0]).ndim();
    let (re, im) = (cx.unsqueezed(out[0], last)?, cx.unsqueezed(out[1], last)?);
    cx.add(Concat { axis: last }, &[re, im])
}

/// A value with exactly so many elements along its last axis: cut off, or zeros behind.
fn fitted(cx: &mut Importer, x: Value, n: usize) -> Result<Value, Refusal> {
    let last = cx.ty(x).ndim() - 1;
    let found = cx.ty(x).shape[last].as_extent();
    let found =
        found.ok_or_else(|| Refusal::Unsupported("a signal of open length is not supported".into()))?;
    if found >= n {
        return slice_axes(cx, x, &[last], &[Dim::default()], &[Dim::from(n)], &[1]);
    }
    let mut after = vec![0; last + 1];
    after[last] = (n - found) as i64;
    cx.add(Pad { before: vec![0; last + 1], after, value: Number::float(0.0) }, &[x])
}

/// `DFT`: the axis is an attribute before operator set 20 and an input since.
pub(super) fn dft(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let ndim = cx.ty(x).ndim();
    let at = match call.opset < 20 {
        true => call.int("axis", 1)?,
        false => match call.optional(2) {
            None => -2,
            Some(_) => match cx.const_ints(call, 2, "the axis")?.as_slice() {
                [at] => *at,
                all => return Err(Refusal::Invalid(format!("expected one axis, found {}", all.len()))),
            },
        },
    };
    let at = axis(at, ndim)?;
    if at + 1 == ndim {
        return Err(Refusal::Invalid("a transform along the parts of numbers".into()));
    }
    let (inverse, onesided) = (call.flag("inverse", false)?, call.flag("onesided", false)?);
    let given = match call.optional(1) {
        None => None,
        Some(_) => match cx.const_ints(call, 1, "the length")?.as_slice() {
            [n] => usize::try_from(*n).ok(),
            _ => None,
        },
    };
    let own = cx.ty(x).shape[at].as_extent();
    let of_half = |bins: usize| if onesided && inverse { 2 * (bins.max(1) - 1) } else { bins };
    let n = given.or_else(|| own.map(of_half)).filter(|n| (1..=LONGEST).contains(n));
    let n = n.ok_or_else(|| {
        Refusal::Unsupported(format!(
            "a transform of more than {LONGEST} or of an open number of elements is not supported"
        ))
    })?;
    let dtype = cx.ty(x).dtype;
    let wide = cx.wide(x);
    let x = cx.cast(x, wide)?;
    let (real, imaginary) = parts(cx, x)?;
    let mut perm: Vec<usize> = (0..ndim - 1).filter(|&a| a != at).collect();
    perm.push(at);
    let mut back: Vec<usize> =
        (0..ndim - 1).map(|a| perm.iter().position(|&p| p == a).unwrap_or(a)).collect();
    back.push(ndim - 1);
    let transposed = |cx: &mut Importer, v: Value| cx.transposed(v, &perm);
    let real = transposed(cx, real)?;
    let imaginary = imaginary.map(|v| transposed(cx, v)).transpose()?;
    let y = if onesided && inverse {
        // Of half a spectrum, the rest of which is its mirror image, the signal is real.
        let bins = n / 2 + 1;
        let real = fitted(cx, real, bins)?;
        let weight = |k: usize| if k == 0 || 2 * k == n { 1.0 } else { 2.0 };
        let factors: Vec<f64> = (0..bins).map(|k| weight(k) / n as f64).collect();
        let [cos, sin] = circle(cx, wide, n, bins, n, &factors)?;
        let mut y = cx.add(MatMul, &[real, cos])?;
        if let Some(imaginary) = imaginary {
            let imaginary = fitted(cx, imaginary, bins)?;
            let other = cx.add(MatMul, &[imaginary, sin])?;
            y = cx.minus(y, other)?;
        }
        let last = cx.ty(y).ndim();
        cx.unsqueezed(y, last)?
    } else {
        let real = fitted(cx, real, n)?;
        let imaginary = imaginary.map(|v| fitted(cx, v, n)).transpose()?;
        let bins = if onesided { n / 2 + 1 } else { n };
        transformed(cx, real, imaginary, n, bins, inverse)?
    };
    let y = cx.transposed(y, &back)?;
    Ok(vec![cx.cast(y, dtype)?])
}

/// `STFT`: transforms of windows along a signal `[B, L, 1]` or `[B, L, 2]`.
pub(super) fn stft(cx: &mut Importer, call: &Call) -> Imported {
    let (x, window) = (call.input(0)?, call.optional(2));
    let number = |cx: &mut Importer, at: usize, what: &str| -> Result<usize, Refusal> {
        let list = cx.const_ints(call, at, what)?;
        let one = list.first().copied().and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0);
        one.ok_or_else(|| Refusal::Invalid(format!("{what} is {list:?}")))
    };
    let step = number(cx, 1, "the step")?;
    let n = match (call.optional(3), window) {
        (Some(_), _) => Some(number(cx, 3, "the length of windows")?),
        (None, Some(window)) => cx.ty(window).shape.first().and_then(Dim::as_extent),
        (None, None) => None,
    };
    let n = n.filter(|n| (1..=LONGEST).contains(n));
    let n = n.ok_or_else(|| Refusal::Unsupported("windows of unknown length are not supported".into()))?;
    let onesided = call.flag("onesided", true)?;
    let (real, imaginary) = parts(cx, x)?;
    if cx.ty(real).ndim() != 2 {
        return Err(Refusal::Invalid(format!("expected a signal with 3 axes, found {}", cx.ty(x))));
    }
    let length = cx.ty(real).shape[1].clone();
    let frames = (&length - &Dim::from(n)).floor_div(&Dim::from(step));
    let frames = frames.map(|f| &f + &Dim::from(1usize));
    let frames = frames.ok_or_else(|| Refusal::Invalid("a step of 0".into()))?;
    let (start, offset) = (cx.iota(&frames)?, cx.iota(&Dim::from(n))?);
    let start = cx.scaled(start, step as f64)?;
    let (start, offset) = (cx.along(start, 0, 2)?, cx.along(offset, 1, 2)?);
    let at = cx.plus(start, offset)?;
    let framed = |cx: &mut Importer, v: Value| {
        let frames = cx.add(Gather { axis: 1 }, &[v, at])?; // [B, frames, n]
        match window {
            Some(window) => cx.times(frames, window),
            None => Ok(frames),
        }
    };
    let real = framed(cx, real)?;
    let imaginary = imaginary.map(|v| framed(cx, v)).transpose()?;
    let bins = if onesided { n / 2 + 1 } else { n };
    Ok(vec![transformed(cx, real, imaginary, n, bins, false)?])
}

/// `HannWindow`.
pub(super) fn hann_window(cx: &mut Importer, call: &Call) -> Imported {
    window(cx, call, [0.5, 0.5, 0.0])
}

/// `HammingWindow`.
pub(super) fn hamming_window(cx: &mut Importer, call: &Call) -> Imported {
    window(cx, call, [25.0 / 46.0, 21.0 / 46.0, 0.0])
}

/// `BlackmanWindow`.
pub(super) fn blackman_window(cx: &mut Importer, call: &Call) -> Imported {
    window(cx, call, [0.42, 0.5, 0.08])
}

/// a - b cos t + c cos 2t, where t goes once around.
fn window(cx: &mut Importer, call: &Call, [a, b, c]: [f64; 3]) -> Imported {
    let dtype = numbered_type(call.int("output_datatype", 1)?)?;
    let periodic = call.flag("periodic", true)?;
    let size = match cx.known_ints(call, 0, "the size")?.values.as_slice() {
        [size] => size.clone(),
        all => return Err(Refusal::Invalid(format!("expected one size, found {}", all.len()))),
    };
    let around = if periodic { size.clone() } else { &size - &Dim::from(1usize) };
    let positions = cx.iota(&size)?;
    let positions = cx.cast(positions, DType::F32)?;
    let around = cx.extent(&around, DType::F32)?;
    let turns = cx.over(positions, around)?;
    let cosine = |cx: &mut Importer, times: f64, factor: f64| {
        let angle = cx.scaled(turns, times * 2.0 * std::f64::consts::PI)?;
        let cos = cx.add(Cos, &[angle])?;
        cx.scaled(cos, factor)
    };
    let first = cosine(cx, 1.0, -b)?;
    let mut y = cx.offset(first, a)?;
    if c != 0.0 {
        let second = cosine(cx, 2.0, c)?;
        y = cx.plus(y, second)?;
    }
    Ok(vec![cx.cast(y, dtype)?])
}
