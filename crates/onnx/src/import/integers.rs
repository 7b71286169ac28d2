//! Operators on bits, signs and remainders.

use margay_ir::Value;
use margay_ir::ops::{And, Ceil, Floor, Or, ShiftLeft, ShiftRight, Xor};
use margay_tensor::DType;

use super::Importer;
use super::call::{Call, Imported, Refusal};

/// `Xor` and `BitwiseXor`.
pub(super) fn xor(cx: &mut Importer, call: &Call) -> Imported {
    let operands = super::elementwise::pair(cx, call)?;
    cx.one(Xor, &operands)
}

/// `BitwiseAnd`.
pub(super) fn bitwise_and(cx: &mut Importer, call: &Call) -> Imported {
    let operands = [call.input(0)?, call.input(1)?];
    cx.one(And, &operands)
}

/// `BitwiseOr`.
pub(super) fn bitwise_or(cx: &mut Importer, call: &Call) -> Imported {
    let operands = [call.input(0)?, call.input(1)?];
    cx.one(Or, &operands)
}

/// `BitwiseNot`: exclusive or with ones.
pub(super) fn bitwise_not(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let ones = match cx.ty(x).dtype {
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => -1.0,
        _ => f64::INFINITY,
    };
    let ones = cx.number(x, ones)?;
    cx.one(Xor, &[x, ones])
}

/// `BitShift`.
pub(super) fn bit_shift(cx: &mut Importer, call: &Call) -> Imported {
    let (x, by) = (call.input(0)?, call.input(1)?);
    let left = match call.text("direction", "")? {
        "LEFT" => true,
        "RIGHT" => false,
        other => return Err(Refusal::Invalid(format!("expected direction LEFT or RIGHT, found `{other}`"))),
    };
    let signed = cx.ty(x).dtype;
    let bits = match signed {
        DType::I8 => DType::U8,
        DType::I16 => DType::U16,
        DType::I32 => DType::U32,
        DType::I64 => DType::U64,
        _ if left => return cx.one(ShiftLeft, &[x, by]),
        _ => return cx.one(ShiftRight, &[x, by]),
    };
    let by = cx.cast(by, bits)?;
    if left {
        let x = cx.cast(x, bits)?;
        let shifted = cx.add(ShiftLeft, &[x, by])?;
        return Ok(vec![cx.cast(shifted, signed)?]);
    }
    // Rounded down: what is negative is turned around, bit by bit, before and after.
    let ones = cx.number(x, -1.0)?;
    let (negative, turned) = (cx.below(x, 0.0)?, cx.add(Xor, &[x, ones])?);
    let size = cx.chosen(negative, turned, x)?;
    let size = cx.cast(size, bits)?;
    let shifted = cx.add(ShiftRight, &[size, by])?;
    let shifted = cx.cast(shifted, signed)?;
    let turned = cx.add(Xor, &[shifted, ones])?;
    Ok(vec![cx.chosen(negative, turned, shifted)?])
}

/// `Sign`: -1, 0 or 1; NaN for NaN.
pub(super) fn sign(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let (one, minus) = (cx.number(x, 1.0)?, cx.number(x, -1.0)?);
    let (positive, negative) = (cx.above(x, 0.0)?, cx.below(x, 0.0)?);
    let low = cx.chosen(negative, minus, x)?;
    Ok(vec![cx.chosen(positive, one, low)?])
}

/// `IsNaN`: what is not equal to itself.
pub(super) fn is_nan(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let same = cx.equal(x, x)?;
    Ok(vec![cx.not(same)?])
}

/// `IsInf`, of one sign or both.
pub(super) fn is_inf(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let (negative, positive) = (call.flag("detect_negative", true)?, call.flag("detect_positive", true)?);
    let looked_at = match (negative, positive) {
        (true, true) => cx.size(x)?,
        (true, false) => cx.negated(x)?,
        (false, true) => x,
        (false, false) => {
            let no = cx.scalar(DType::Bool, 0.0)?;
            let shape = cx.ty(x).shape.clone();
            return Ok(vec![cx.spread(no, shape)?]);
        }
    };
    let infinite = cx.number(x, f64::INFINITY)?;
    Ok(vec![cx.equal(looked_at, infinite)?])
}

/// `Mod`: the remainder with the sign of the divisor; with `fmod`, that of the dividend.
pub(super) fn modulo(cx: &mut Importer, call: &Call) -> Imported {
    let (x, y) = (call.input(0)?, call.input(1)?);
    let truncated = call.flag("fmod", false)?;
    Ok(vec![remainder(cx, x, y, truncated)?])
}

/// x - q y, where q is x / y rounded towards zero if `truncated`, else down. Floats are computed in f64, where the
/// remainder is exact for f32 as long as the quotient is below 2²⁹.
pub(super) fn remainder(cx: &mut Importer, x: Value, y: Value, truncated: bool) -> Result<Value, Refusal> {
    let dtype = cx.ty(x).dtype;
    if !dtype.is_float() {
        let quotient = cx.over(x, y)?;
        let whole = cx.times(quotient, y)?;
        let rest = cx.minus(x, whole)?;
        return if truncated { Ok(rest) } else { signed_as(cx, rest, y) };
    }
    let (x, y) = (cx.cast(x, DType::F64)?, cx.cast(y, DType::F64)?);
    let quotient = cx.over(x, y)?;
    let down = cx.add(Floor, &[quotient])?;
    let up = cx.add(Ceil, &[quotient])?;
    let negative = cx.below(quotient, 0.0)?;
    let whole = cx.chosen(negative, up, down)?;
    let product = cx.times(whole, y)?;
    let rest = cx.minus(x, product)?;
    // A finite number is its own remainder by infinity, where the product is NaN.
    let size = cx.size(y)?;
    let infinite = cx.number(y, f64::INFINITY)?;
    let infinite = cx.equal(size, infinite)?;
    let mut rest = cx.chosen(infinite, x, rest)?;
    if !truncated {
        rest = signed_as(cx, rest, y)?;
    }
    cx.cast(rest, dtype)
}

/// A remainder, plus the divisor where their signs differ.
fn signed_as(cx: &mut Importer, rest: Value, divisor: Value) -> Result<Value, Refusal> {
    let (below, negative) = (cx.below(rest, 0.0)?, cx.below(divisor, 0.0)?);
    let nothing = cx.number(rest, 0.0)?;
    let none = cx.equal(rest, nothing)?;
    let same = cx.equal(below, negative)?;
    let fits = cx.either(none, same)?;
    let moved = cx.plus(rest, divisor)?;
    cx.chosen(fits, rest, moved)
}
