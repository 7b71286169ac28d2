//! Functions of quantized numbers: operands become numbers, and results are quantized again.

use margay_ir::Value;
use margay_ir::ops::{ReduceKind, Softmax};

use super::super::Importer;
use super::super::call::{Call, Imported, Refusal, axis};
use super::super::pools::averaged;
use super::super::shapes::flatten_at;
use super::{dequantized, quantized};

/// Operands as numbers, and what `f` makes of them quantized again.
fn through_numbers(
    cx: &mut Importer,
    operands: &[[Value; 3]],
    [scale, zero]: [Value; 2],
    f: impl FnOnce(&mut Importer, &[Value]) -> Result<Value, Refusal>,
) -> Imported {
    let mut numbers = Vec::new();
    for &[x, scale, zero] in operands {
        let (scale, zero) = (cx.shaped(scale, Vec::new())?, cx.shaped(zero, Vec::new())?);
        numbers.push(dequantized(cx, x, scale, Some(zero))?);
    }
    let y = f(cx, &numbers)?;
    let to = cx.ty(zero).dtype;
    let (scale, zero) = (cx.shaped(scale, Vec::new())?, cx.shaped(zero, Vec::new())?);
    Ok(vec![quantized(cx, y, scale, Some(zero), to)?])
}

fn triple(call: &Call, at: usize) -> Result<[Value; 3], Refusal> {
    Ok([call.input(at)?, call.input(at + 1)?, call.input(at + 2)?])
}

/// `QLinearAdd`.
pub(in crate::import) fn qlinear_add(cx: &mut Importer, call: &Call) -> Imported {
    let operands = [triple(call, 0)?, triple(call, 3)?];
    through_numbers(cx, &operands, [call.input(6)?, call.input(7)?], |cx, x| cx.plus(x[0], x[1]))
}

/// `QLinearMul`.
pub(in crate::import) fn qlinear_mul(cx: &mut Importer, call: &Call) -> Imported {
    let operands = [triple(call, 0)?, triple(call, 3)?];
    through_numbers(cx, &operands, [call.input(6)?, call.input(7)?], |cx, x| cx.times(x[0], x[1]))
}

/// `QLinearSigmoid`.
pub(in crate::import) fn qlinear_sigmoid(cx: &mut Importer, call: &Call) -> Imported {
    let operand = [triple(call, 0)?];
    through_numbers(cx, &operand, [call.input(3)?, call.input(4)?], |cx, x| {
        cx.add(margay_ir::ops::Sigmoid, &[x[0]])
    })
}

/// `QLinearLeakyRelu`.
pub(in crate::import) fn qlinear_leaky_relu(cx: &mut Importer, call: &Call) -> Imported {
    let (operand, slope) = ([triple(call, 0)?], call.float("alpha", 0.01)?);
    through_numbers(cx, &operand, [call.input(3)?, call.input(4)?], |cx, x| {
        let below = cx.scaled(x[0], slope)?;
        let negative = cx.below(x[0], 0.0)?;
        cx.chosen(negative, below, x[0])
    })
}

/// Images of a call with channels second, and what `f` makes of them in the order that they have.
fn channels_second(
    cx: &mut Importer,
    call: &Call,
    x: Value,
    f: impl FnOnce(&mut Importer, Value) -> Result<Value, Refusal>,
) -> Result<Value, Refusal> {
    let ndim = cx.ty(x).ndim();
    if !call.flag("channels_last", false)? || ndim < 2 {
        return f(cx, x);
    }
    let to: Vec<usize> = [0, ndim - 1].into_iter().chain(1..ndim - 1).collect();
    let back: Vec<usize> = [0].into_iter().chain(2..ndim).chain([1]).collect();
    let x = cx.transposed(x, &to)?;
    let y = f(cx, x)?;
    cx.transposed(y, &back)
}

/// `QLinearAveragePool`.
pub(in crate::import) fn qlinear_average_pool(cx: &mut Importer, call: &Call) -> Imported {
    let operand = [triple(call, 0)?];
    through_numbers(cx, &operand, [call.input(3)?, call.input(4)?], |cx, x| {
        channels_second(cx, call, x[0], |cx, x| averaged(cx, call, x))
    })
}

/// `QLinearSoftmax`; before operator set 13 over all axes from one on.
pub(in crate::import) fn qlinear_softmax(cx: &mut Importer, call: &Call) -> Imported {
    let operand = [triple(call, 0)?];
    let opset = call.int("opset", 1)?;
    let at = call.int("axis", if opset < 13 { 1 } else { -1 })?;
    through_numbers(cx, &operand, [call.input(3)?, call.input(4)?], |cx, x| {
        let shape = cx.ty(x[0]).shape.clone();
        let at = axis(at, shape.len())?;
        if opset >= 13 || at + 1 == shape.len() {
            return cx.add(Softmax { axis: at }, &[x[0]]);
        }
        let flat = flatten_at(cx, x[0], at)?;
        let y = cx.add(Softmax { axis: 1 }, &[flat])?;
        cx.shaped(y, shape)
    })
}

/// `QLinearWhere`.
pub(in crate::import) fn qlinear_where(cx: &mut Importer, call: &Call) -> Imported {
    let (test, operands) = (call.input(0)?, [triple(call, 1)?, triple(call, 4)?]);
    through_numbers(cx, &operands, [call.input(7)?, call.input(8)?], |cx, x| cx.chosen(test, x[0], x[1]))
}

/// `QLinearGlobalAveragePool`.
pub(in crate::import) fn qlinear_global_average_pool(cx: &mut Importer, call: &Call) -> Imported {
    let operand = [triple(call, 0)?];
    through_numbers(cx, &operand, [call.input(3)?, call.input(4)?], |cx, x| {
        channels_second(cx, call, x[0], |cx, x| {
            let axes: Vec<usize> = (2..cx.ty(x).ndim()).collect();
            cx.joined(ReduceKind::Mean, x, &axes, true)
        })
    })
}

/// `QLinearConcat`.
pub(in crate::import) fn qlinear_concat(cx: &mut Importer, call: &Call) -> Imported {
    let result = [call.input(0)?, call.input(1)?];
    let mut operands = Vec::new();
    for at in (2..call.all()?.len()).step_by(3) {
        operands.push(triple(call, at)?);
    }
    let at = call.int("axis", 0)?;
    through_numbers(cx, &operands, result, |cx, parts| {
        let axis = axis(at, parts.first().map_or(0, |p| cx.ty(*p).ndim()))?;
        cx.add(margay_ir::ops::Concat { axis }, parts)
    })
}
