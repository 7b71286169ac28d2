//! Quantized operators.
//!
//! Matrix products of 8-bit integers are products of the graph, `products` with what zero points add to them.
//! So are convolutions in one group with a constant kernel. Others are taken as convolutions of whole f32, which are exact
//! below 2²⁴: the image is split into parts small enough for the length of the sums, and the parts are put together as i32.

mod blocks;
mod functions;
mod kept;
mod products;

pub(super) use functions::*;

use margay_ir::ops::{Floor, MatMul, Round};
use margay_ir::{Builder, Value};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::call::{Call, Imported, Refusal, axis};
use super::convolutions::convolved;
use super::elementwise::numbered_type;
use super::narrow::Beyond;
use super::slices::slice_axes;
use crate::Narrow;
use products::{integer_product, known_terms};

/// The smallest and largest number of a type that values are quantized to.
fn bounds(dtype: DType) -> Result<(f64, f64), Refusal> {
    Ok(match dtype {
        DType::I8 => (-128.0, 127.0),
        DType::U8 => (0.0, 255.0),
        DType::I16 => (-32768.0, 32767.0),
        DType::U16 => (0.0, 65535.0),
        other => return Err(Refusal::Unsupported(format!("quantization to {other} is not supported"))),
    })
}

/// Scales or zero points shaped to broadcast to a value of a shape: one for all, one for each position of an axis, or
/// one for each run of `block` elements along it.
fn spread_scale(
    cx: &mut Importer,
    scale: Value,
    shape: &[Dim],
    at: i64,
    block: i64,
) -> Result<Value, Refusal> {
    let own = cx.ty(scale).shape.clone();
    if own.iter().all(|d| d.is(1)) {
        return cx.shaped(scale, Vec::new());
    }
    let at = axis(at, shape.len())?;
    if own.len() == 1 {
        return cx.along(scale, at, shape.len());
    }
    if own.len() != shape.len() || block < 1 {
        return Err(Refusal::Invalid(format!("scales {} in runs of {block}", cx.ty(scale))));
    }
    let wide = cx.unsqueezed(scale, at + 1)?;
    let mut split = cx.ty(wide).shape.clone();
    split[at + 1] = Dim::from(block);
    let wide = cx.spread(wide, split)?;
    let mut joined = own.clone();
    joined[at] = &own[at] * &Dim::from(block);
    let wide = cx.shaped(wide, joined)?;
    slice_axes(cx, wide, &[at], &[Dim::default()], &[shape[at].clone()], &[1])
}

/// round(x) + zero, cut off at the bounds of a type.
fn saturated(cx: &mut Importer, x: Value, zero: Option<Value>, to: DType) -> Result<Value, Refusal> {
    let (low, high) = bounds(to)?;
    let x = cx.cast(x, DType::F32)?;
    let mut y = cx.add(Round, &[x])?;
    if let Some(zero) = zero {
        let zero = cx.cast(zero, DType::F32)?;
        y = cx.plus(y, zero)?;
    }
    let y = cx.capped(y, high)?;
    let y = cx.floored(y, low)?;
    cx.cast(y, to)
}

/// x / scale, rounded, plus the zero point.
fn quantized(
    cx: &mut Importer,
    x: Value,
    scale: Value,
    zero: Option<Value>,
    to: DType,
) -> Result<Value, Refusal> {
    let x = cx.cast(x, cx.ty(scale).dtype)?;
    let quotient = cx.over(x, scale)?;
    saturated(cx, quotient, zero, to)
}

/// (x - zero) scale, in the type of the scale.
fn dequantized(cx: &mut Importer, x: Value, scale: Value, zero: Option<Value>) -> Result<Value, Refusal> {
    let dtype = cx.ty(scale).dtype;
    let centred = centred(cx, x, zero)?;
    let scale = cx.cast(scale, DType::F32)?;
    let y = cx.times(centred, scale)?;
    cx.cast(y, dtype)
}

/// x - zero as whole f32.
fn centred(cx: &mut Importer, x: Value, zero: Option<Value>) -> Result<Value, Refusal> {
    let x = cx.cast(x, DType::I32)?;
    let x = match zero {
        Some(zero) => {
            let zero = cx.cast(zero, DType::I32)?;
            cx.minus(x, zero)?
        }
        None => x,
    };
    cx.cast(x, DType::F32)
}

/// `QuantizeLinear`.
pub(super) fn quantize_linear(cx: &mut Importer, call: &Call) -> Imported {
    let (x, scale, zero) = (call.input(0)?, call.input(1)?, call.optional(2));
    // About a precision that is never less than that of the scale.
    call.ignore(&["precision"]);
    let beyond = Beyond::of(call)?;
    let (at, block) = (call.int("axis", 1)?, call.int("block_size", 0)?);
    let number = call.int("output_dtype", 0)?;
    let narrow = match zero {
        Some(zero) => cx.narrow(zero),
        None => i32::try_from(number).ok().and_then(Narrow::numbered),
    };
    let to = match (zero, narrow, number) {
        (_, Some(narrow), _) => narrow.carrier(),
        (Some(zero), None, _) => cx.ty(zero).dtype,
        (None, None, 0) => DType::U8,
        (None, None, number) => numbered_type(number)?,
    };
    let shape = cx.ty(x).shape.clone();
    let scale = spread_scale(cx, scale, &shape, at, block)?;
    let zero = zero.map(|z| spread_scale(cx, z, &shape, at, block)).transpose()?;
    if let Some(narrow) = narrow {
        let x = cx.cast(x, cx.ty(scale).dtype)?;
        let quotient = cx.over(x, scale)?;
        return Ok(vec![cx.quantized_narrow(quotient, zero, narrow, beyond)?]);
    }
    Ok(vec![quantized(cx, x, scale, zero, to)?])
}

/// `DequantizeLinear`.
pub(super) fn dequantize_linear(cx: &mut Importer, call: &Call) -> Imported {
    let (x, scale, zero) = (call.input(0)?, call.input(1)?, call.optional(2));
    let (at, block) = (call.int("axis", 1)?, call.int("block_size", 0)?);
    let to = match call.int("output_dtype", 0)? {
        0 => cx.ty(scale).dtype,
        number => numbered_type(number)?,
    };
    let shape = cx.ty(x).shape.clone();
    if cx.narrow(x).is_some_and(Narrow::is_float) {
        // Their zero point is 0.
        let scale = spread_scale(cx, scale, &shape, at, block)?;
        let numbers = cx.widened(x)?;
        let wide = cx.cast(scale, DType::F32)?;
        let y = cx.times(numbers, wide)?;
        return Ok(vec![cx.cast(y, to)?]);
    }
    let is_one = |v: Value| cx.ty(v).shape.iter().all(|d| d.is(1));
    let all = is_one(scale) && zero.is_none_or(is_one);
    let position = if all { Ok(0) } else { axis(at, shape.len()) };
    if block == 0
        && let Ok(position) = position
        && let Some(kept) = cx.kept(x, zero, Some(scale), position)?
    {
        return Ok(vec![cx.cast(kept, to)?]);
    }
    if let (Ok(at), Ok(size @ 1..)) = (axis(at, shape.len()), usize::try_from(block))
        && let Some(kept) = cx.kept_blocks(x, zero, scale, [at, size])?
    {
        return Ok(vec![cx.cast(kept, to)?]);
    }
    let scale = spread_scale(cx, scale, &shape, at, block)?;
    let zero = zero.map(|z| spread_scale(cx, z, &shape, at, block)).transpose()?;
    let y = dequantized(cx, x, scale, zero)?;
    Ok(vec![cx.cast(y, to)?])
}

/// A matrix of integers with the terms first as numbers. It has one scale and zero point, or one of each for every column.
pub(super) fn dequantized_columns(
    cx: &mut Importer,
    q: Value,
    scale: Value,
    zero: Value,
) -> Result<Value, Refusal> {
    if let Some(kept) = cx.kept(q, Some(zero), Some(scale), 1)? {
        return Ok(kept);
    }
    let shape = cx.ty(q).shape.clone();
    let scale = spread_scale(cx, scale, &shape, 1, 0)?;
    let zero = spread_scale(cx, zero, &shape, 1, 0)?;
    dequantized(cx, q, scale, Some(zero))
}

/// The u8, the scale and the zero point that a value has by its smallest and largest element.
fn by_range(cx: &mut Importer, x: Value) -> Result<[Value; 3], Refusal> {
    let origin = cx.origin.clone();
    Ok(Builder::new(&mut cx.graph, origin).quantized_by_range(x)?)
}

/// `DynamicQuantizeLinear`.
pub(super) fn dynamic_quantize_linear(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    Ok(by_range(cx, x)?.to_vec())
}

/// The longest sums of products of numbers up to 255 that are exact in f32.
const WHOLE: usize = 258;
/// The same, where one of them is below 16.
const SPLIT: usize = 4112;

/// A product of whole f32 up to 255, as i32: `product` multiplies a left operand, sums of `terms` terms.
fn exactly(
    cx: &mut Importer,
    x: Value,
    terms: usize,
    product: &mut dyn FnMut(&mut Importer, Value) -> Result<Value, Refusal>,
) -> Result<Value, Refusal> {
    if terms <= WHOLE {
        let sums = product(cx, x)?;
        return cx.cast(sums, DType::I32);
    }
    let scaled = cx.scaled(x, 1.0 / 16.0)?;
    let high = cx.add(Floor, &[scaled])?;
    let rest = cx.scaled(high, 16.0)?;
    let low = cx.minus(x, rest)?;
    let (high, low) = (product(cx, high)?, product(cx, low)?);
    let (high, low) = (cx.cast(high, DType::I32)?, cx.cast(low, DType::I32)?);
    let high = cx.scaled(high, 16.0)?;
    cx.plus(high, low)
}

/// `MatMulInteger`.
pub(super) fn matmul_integer(cx: &mut Importer, call: &Call) -> Imported {
    let operands = [call.input(0)?, call.input(1)?];
    let zeros = [call.optional(2), call.optional(3)];
    Ok(vec![integer_product(cx, operands, zeros)?])
}

/// A convolution of integers less their zero points, as i32.
fn integer_convolution(
    cx: &mut Importer,
    call: &Call,
    [x, k]: [Value; 2],
    [x_zero, k_zero]: [Option<Value>; 2],
) -> Result<Value, Refusal> {
    // Along at most two axes in one group, with a constant kernel.
    if call.int("group", 1)? == 1
        && cx.ty(x).ndim() <= 4
        && let Some((k, rest)) = cx.signed(k, k_zero, 0)?
    {
        let zero = x_zero.filter(|zero| !cx.is_zero(*zero));
        let zero = zero.map(|zero| cx.shaped(zero, Vec::new())).transpose()?;
        let sums = convolved(cx, call, [x, k], zero)?;
        return cx.less_zero(sums, rest, 1);
    }
    let x = centred(cx, x, x_zero)?;
    let k = match cx.kept(k, k_zero, None, 0)? {
        Some(kept) => kept,
        None => {
            let shape = cx.ty(k).shape.clone();
            let k_zero = k_zero.map(|z| spread_scale(cx, z, &shape, 0, 0)).transpose()?;
            centred(cx, k, k_zero)?
        }
    };
    let taps: Option<usize> = cx.ty(k).shape.iter().skip(1).map(Dim::as_extent).product();
    let terms = known_terms(taps)?;
    if terms > SPLIT {
        return Err(Refusal::Unsupported(format!("integer sums of {terms} terms are not supported")));
    }
    exactly(cx, x, terms, &mut |cx, x| convolved(cx, call, [x, k], None))
}

/// `ConvInteger`.
pub(super) fn conv_integer(cx: &mut Importer, call: &Call) -> Imported {
    let operands = [call.input(0)?, call.input(1)?];
    let zeros = [call.optional(2), call.optional(3)];
    Ok(vec![integer_convolution(cx, call, operands, zeros)?])
}

/// Sums of products as quantized numbers: times both scales, over that of the result.
fn requantized(
    cx: &mut Importer,
    sums: Value,
    [left, right, result]: [Value; 3],
    zero: Option<Value>,
    to: DType,
) -> Result<Value, Refusal> {
    let sums = cx.cast(sums, DType::F32)?;
    let [left, right, result] = [left, right, result].map(|s| cx.cast(s, DType::F32));
    let both = cx.times(left?, right?)?;
    let factor = cx.over(both, result?)?;
    let scaled = cx.times(sums, factor)?;
    saturated(cx, scaled, zero, to)
}

/// `QLinearMatMul`.
pub(super) fn qlinear_matmul(cx: &mut Importer, call: &Call) -> Imported {
    let [a, a_scale, a_zero] = [call.input(0)?, call.input(1)?, call.input(2)?];
    let [b, b_scale, b_zero] = [call.input(3)?, call.input(4)?, call.input(5)?];
    let (y_scale, y_zero) = (call.input(6)?, call.input(7)?);
    let sums = integer_product(cx, [a, b], [Some(a_zero), Some(b_zero)])?;
    let to = cx.ty(y_zero).dtype;
    Ok(vec![requantized(cx, sums, [a_scale, b_scale, y_scale], Some(y_zero), to)?])
}

/// `QGemm`: α A B + C of integers, with A and B transposed on demand, where C has the scale of the sums; as numbers, or
/// quantized again.
pub(super) fn qgemm(cx: &mut Importer, call: &Call) -> Imported {
    let [a, a_scale, a_zero] = [call.input(0)?, call.input(1)?, call.input(2)?];
    let [b, b_scale, b_zero] = [call.input(3)?, call.input(4)?, call.input(5)?];
    let (bias, y_scale, y_zero) = (call.optional(6), call.optional(7), call.optional(8));
    let alpha = call.float("alpha", 1.0)?;
    let mut operands = [a, b];
    for (v, name) in operands.iter_mut().zip(["transA", "transB"]) {
        if cx.ty(*v).ndim() != 2 {
            return Err(Refusal::Invalid(format!("expected a matrix, found {}", cx.ty(*v))));
        }
        if call.flag(name, false)? {
            *v = cx.turned(*v, &[1, 0])?;
        }
    }
    let mut sums = integer_product(cx, operands, [Some(a_zero), Some(b_zero)])?;
    if let Some(bias) = bias {
        sums = cx.plus(sums, bias)?;
    }
    let a_scale = cx.scaled(a_scale, alpha)?;
    match (y_scale, y_zero) {
        (Some(y_scale), zero) => {
            let to = zero.map_or(cx.ty(a).dtype, |zero| cx.ty(zero).dtype);
            Ok(vec![requantized(cx, sums, [a_scale, b_scale, y_scale], zero, to)?])
        }
        (None, _) => {
            let sums = cx.cast(sums, DType::F32)?;
            let factor = cx.times(a_scale, b_scale)?;
            Ok(vec![cx.times(sums, factor)?])
        }
    }
}

/// `QLinearConv`.
pub(super) fn qlinear_conv(cx: &mut Importer, call: &Call) -> Imported {
    let [x, x_scale, x_zero] = [call.input(0)?, call.input(1)?, call.input(2)?];
    let [k, k_scale, k_zero] = [call.input(3)?, call.input(4)?, call.input(5)?];
    let (y_scale, y_zero, bias) = (call.input(6)?, call.input(7)?, call.optional(8));
    let mut sums = integer_convolution(cx, call, [x, k], [Some(x_zero), Some(k_zero)])?;
    let shape = cx.ty(sums).shape.clone();
    if let Some(bias) = bias {
        let bias = cx.along(bias, 1, shape.len())?;
        sums = cx.plus(sums, bias)?;
    }
    let k_scale = spread_scale(cx, k_scale, &shape, 1, 0)?;
    let to = cx.ty(y_zero).dtype;
    Ok(vec![requantized(cx, sums, [x_scale, k_scale, y_scale], Some(y_zero), to)?])
}

/// `MatMulIntegerToFloat`: A B of integers, times both scales, plus a bias.
pub(super) fn matmul_integer_to_float(cx: &mut Importer, call: &Call) -> Imported {
    let operands = [call.input(0)?, call.input(1)?];
    let scales = [call.input(2)?, call.input(3)?];
    let (zeros, bias) = ([call.optional(4), call.optional(5)], call.optional(6));
    Ok(vec![scaled_product(cx, operands, scales, zeros, bias)?])
}

pub(super) fn scaled_product(
    cx: &mut Importer,
    operands: [Value; 2],
    [left, right]: [Value; 2],
    zeros: [Option<Value>; 2],
    bias: Option<Value>,
) -> Result<Value, Refusal> {
    let sums = integer_product(cx, operands, zeros)?;
    let sums = cx.cast(sums, DType::F32)?;
    let factor = cx.times(left, right)?;
    let y = cx.times(sums, factor)?;
    match bias {
        Some(bias) => cx.plus(y, bias),
        None => Ok(y),
    }
}

/// `DynamicQuantizeMatMul`: the left operand is quantized by its range first.
pub(super) fn dynamic_quantize_matmul(cx: &mut Importer, call: &Call) -> Imported {
    let (a, b, b_scale) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (b_zero, bias) = (call.optional(3), call.optional(4));
    Ok(vec![dynamic_product(cx, a, b, b_scale, b_zero, bias)?])
}

/// A B of numbers and integers, the numbers quantized by their range, plus a bias.
pub(super) fn dynamic_product(
    cx: &mut Importer,
    a: Value,
    b: Value,
    b_scale: Value,
    b_zero: Option<Value>,
    bias: Option<Value>,
) -> Result<Value, Refusal> {
    let [a, a_scale, a_zero] = by_range(cx, a)?;
    scaled_product(cx, [a, b], [a_scale, b_scale], [Some(a_zero), b_zero], bias)
}

/// `MatMulNBits`: a matrix of 4-bit or 8-bit numbers, each run of them along the terms with a scale of its own.
pub(super) fn matmul_n_bits(cx: &mut Importer, call: &Call) -> Imported {
    use margay_ir::ops::{And, Concat, ShiftRight};
    let (a, packed, scales) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (zeros, order, bias) = (call.optional(3), call.optional(4), call.optional(5));
    let count = |name: &'static str| -> Result<usize, Refusal> {
        let found = call.optional_int(name)?.and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0);
        found.ok_or_else(|| Refusal::Invalid(format!("expected attribute `{name}` of at least 1")))
    };
    let (terms, columns, block) = (count("K")?, count("N")?, count("block_size")?);
    let bits = call.int("bits", 4)?;
    // How exact the product has to be at least.
    call.ignore(&["accuracy_level"]);
    if order.is_some() {
        return Err(Refusal::Unsupported("another order of the terms is not supported".into()));
    }
    if !matches!(bits, 4 | 8) {
        return Err(Refusal::Unsupported(format!("numbers of {bits} bits are not supported")));
    }
    let dtype = cx.ty(a).dtype;
    let kept =
        if bits == 4 { cx.kept_columns(packed, scales, zeros, [terms, columns, block])? } else { None };
    if let Some(weights) = kept {
        let weights = cx.cast(weights, dtype)?;
        let y = cx.add(MatMul, &[a, weights])?;
        return Ok(vec![bias.map_or(Ok(y), |bias| cx.plus(y, bias))?]);
    }
    let blocks = terms.div_ceil(block);
    // Pairs of 4 bits, the lower ones first, as numbers in rows.
    let unpacked = |cx: &mut Importer, v: Value, row: usize| -> Result<Value, Refusal> {
        let shape = vec![Dim::from(columns), Dim::from(row)];
        if bits == 8 {
            return cx.shaped(v, shape);
        }
        let (mask, four) = (cx.number(v, 15.0)?, cx.number(v, 4.0)?);
        let (low, high) = (cx.add(And, &[v, mask])?, cx.add(ShiftRight, &[v, four])?);
        let last = cx.ty(v).ndim();
        let (low, high) = (cx.unsqueezed(low, last)?, cx.unsqueezed(high, last)?);
        let pairs = cx.add(Concat { axis: last }, &[low, high])?;
        let padded = row.div_ceil(2) * 2;
        let rows = cx.shaped(pairs, vec![Dim::from(columns), Dim::from(padded)])?;
        slice_axes(cx, rows, &[1], &[Dim::default()], &[Dim::from(row)], &[1])
    };
    let numbers = unpacked(cx, packed, blocks * block)?;
    let numbers = cx.cast(numbers, DType::F32)?;
    let zeros = match zeros {
        None => cx.scalar(DType::F32, f64::from(1u32 << (bits - 1)))?,
        Some(zeros) => {
            let zeros = match cx.ty(zeros).dtype {
                DType::U8 => unpacked(cx, zeros, blocks)?,
                _ => cx.shaped(zeros, vec![Dim::from(columns), Dim::from(blocks)])?,
            };
            let zeros = cx.cast(zeros, DType::F32)?;
            cx.unsqueezed(zeros, 2)?
        }
    };
    let scales = cx.cast(scales, DType::F32)?;
    let scales = cx.shaped(scales, [columns, blocks, 1].map(Dim::from).to_vec())?;
    let numbers = cx.shaped(numbers, [columns, blocks, block].map(Dim::from).to_vec())?;
    let moved = cx.minus(numbers, zeros)?;
    let weights = cx.times(moved, scales)?;
    let weights = cx.shaped(weights, [columns, blocks * block].map(Dim::from).to_vec())?;
    let weights = slice_axes(cx, weights, &[1], &[Dim::default()], &[Dim::from(terms)], &[1])?;
    let weights = cx.transposed(weights, &[1, 0])?;
    let weights = cx.cast(weights, dtype)?;
    let y = cx.add(MatMul, &[a, weights])?;
    match bias {
        Some(bias) => Ok(vec![cx.plus(y, bias)?]),
        None => Ok(vec![y]),
    }
}
