//! Normalization and softmax.

use margay_ir::Value;
use margay_ir::ops::{Add, Bits, Broadcast, Div, LayerNorm, Mul, Reduce, ReduceKind, Softmax, Sqrt, Sub};
use margay_tensor::Dim;

use super::Importer;
use super::call::{Call, Imported, Refusal, axis};
use super::shapes::{broadcast_to, flatten_at};
use super::statistics::in_training;

/// `BatchNormalization` outside training: x s + (B - mean s), where s = scale / √(variance + ε).
pub(super) fn batch_normalization(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let [scale, bias, mean, variance] = [call.input(1)?, call.input(2)?, call.input(3)?, call.input(4)?];
    let epsilon = cx.number(variance, call.float("epsilon", 1e-5)?)?;
    let momentum = call.float("momentum", 0.9)?;
    if call.opset < 7 && !call.flag("is_test", false)? && call.wants(1) {
        return Err(Refusal::Unsupported("training before operator set 14 is not supported".into()));
    }
    if call.flag("training_mode", false)? {
        return in_training(cx, x, [scale, bias, mean, variance], epsilon, momentum);
    }
    if !call.flag("spatial", true)? {
        return Err(Refusal::Unsupported("normalization of each position is not supported".into()));
    }
    let widened = cx.add(Add, &[variance, epsilon])?;
    let deviation = cx.add(Sqrt, &[widened])?;
    let factor = cx.add(Div, &[scale, deviation])?;
    let centre = cx.add(Mul, &[mean, factor])?;
    let offset = cx.add(Sub, &[bias, centre])?;
    let [factor, offset] = [channels(cx, factor, x)?, channels(cx, offset, x)?];
    let scaled = cx.add(Mul, &[x, factor])?;
    Ok(vec![cx.add(Add, &[scaled, offset])?])
}

/// Numbers per channel, shaped to broadcast to `x`.
pub(super) fn channels(cx: &mut Importer, numbers: Value, x: Value) -> Result<Value, Refusal> {
    let mut shape = cx.ty(numbers).shape.clone();
    shape.extend(vec![Dim::from(1usize); cx.ty(x).ndim().saturating_sub(2)]);
    cx.shaped(numbers, shape)
}

/// `LayerNormalization`; mean and reciprocal deviation, where they are used, are computed apart.
pub(super) fn layer_normalization(cx: &mut Importer, call: &Call) -> Imported {
    let (x, scale, bias) = (call.input(0)?, call.input(1)?, call.optional(2));
    // The precision within.
    call.ignore(&["stash_type"]);
    let epsilon = Bits::new(call.float("epsilon", 1e-5)?);
    let axis = axis(call.int("axis", -1)?, cx.ty(x).ndim())?;
    let inner = cx.ty(x).shape[axis..].to_vec();
    let scale = broadcast_to(cx, scale, inner.clone())?;
    let bias = match bias {
        Some(bias) => broadcast_to(cx, bias, inner)?,
        None => {
            let zero = cx.number(x, 0.0)?;
            cx.add(Broadcast { shape: inner }, &[zero])?
        }
    };
    let mut outputs = vec![cx.add(LayerNorm { axis, epsilon }, &[x, scale, bias])?];
    if call.outputs() > 1 {
        let mean = Reduce { kind: ReduceKind::Mean, axes: (axis..cx.ty(x).ndim()).collect(), keepdims: true };
        let centre = cx.add(mean.clone(), &[x])?;
        let centred = cx.add(Sub, &[x, centre])?;
        let squares = cx.add(Mul, &[centred, centred])?;
        let variance = cx.add(mean, &[squares])?;
        let (epsilon, one) = (cx.number(x, epsilon.get())?, cx.number(x, 1.0)?);
        let widened = cx.add(Add, &[variance, epsilon])?;
        let deviation = cx.add(Sqrt, &[widened])?;
        outputs.extend([centre, cx.add(Div, &[one, deviation])?]);
    }
    Ok(outputs)
}

/// `Softmax`: along one axis since operator set 13, along all from `axis` on before.
pub(super) fn softmax(cx: &mut Importer, call: &Call) -> Imported {
    along_axis(cx, call, |cx, x, axis| cx.add(Softmax { axis }, &[x]))
}

/// `LogSoftmax`: z - log Σ eᶻ, where z = x - max x.
pub(super) fn log_softmax(cx: &mut Importer, call: &Call) -> Imported {
    along_axis(cx, call, log_softmax_of)
}

/// z - log Σ eᶻ along an axis, where z = x - max x.
pub(super) fn log_softmax_of(cx: &mut Importer, x: Value, axis: usize) -> Result<Value, Refusal> {
    let largest = cx.joined(ReduceKind::Max, x, &[axis], true)?;
    let shifted = cx.minus(x, largest)?;
    let powers = cx.exp(shifted)?;
    let sum = cx.joined(ReduceKind::Sum, powers, &[axis], true)?;
    let logarithm = cx.log(sum)?;
    cx.minus(shifted, logarithm)
}

/// What `f` makes of an operand along the axis of the call: along one axis since operator set 13, before along all from
/// it on as one.
pub(super) fn along_axis(
    cx: &mut Importer,
    call: &Call,
    f: impl FnOnce(&mut Importer, Value, usize) -> Result<Value, Refusal>,
) -> Imported {
    let x = call.input(0)?;
    let shape = cx.ty(x).shape.clone();
    let at = axis(call.int("axis", if call.opset < 13 { 1 } else { -1 })?, shape.len())?;
    if call.opset >= 13 || at + 1 == shape.len() {
        return Ok(vec![f(cx, x, at)?]);
    }
    let flat = flatten_at(cx, x, at)?;
    let y = f(cx, flat, 1)?;
    cx.shaped(y, shape).map(|v| vec![v])
}
