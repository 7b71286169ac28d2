//! Trigonometric and hyperbolic functions, composed.
//!
//! The formulas keep small arguments accurate: nothing subtracts numbers that are nearly equal.

use margay_ir::Value;
use margay_ir::ops::{Atan, Cos, Sin};

use super::Importer;
use super::call::{Call, Imported, Refusal};

/// `Tan`: sin x / cos x.
pub(super) fn tan(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let (sin, cos) = (cx.add(Sin, &[x])?, cx.add(Cos, &[x])?);
    Ok(vec![cx.over(sin, cos)?])
}

/// `Asin`: arctan(x / √((1 - x) (1 + x))).
pub(super) fn asin(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let one = cx.number(x, 1.0)?;
    let (left, right) = (cx.minus(one, x)?, cx.plus(one, x)?);
    let product = cx.times(left, right)?;
    let root = cx.sqrt(product)?;
    let tangent = cx.over(x, root)?;
    Ok(vec![cx.add(Atan, &[tangent])?])
}

/// `Acos`: 2 arctan √((1 - x) / (1 + x)).
pub(super) fn acos(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let one = cx.number(x, 1.0)?;
    let (left, right) = (cx.minus(one, x)?, cx.plus(one, x)?);
    let quotient = cx.over(left, right)?;
    let root = cx.sqrt(quotient)?;
    let half = cx.add(Atan, &[root])?;
    Ok(vec![cx.scaled(half, 2.0)?])
}

/// `Sinh`: (eˣ - e⁻ˣ) / 2, and its series near 0.
pub(super) fn sinh(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let negative = cx.negated(x)?;
    let (grown, shrunk) = (cx.exp(x)?, cx.exp(negative)?);
    let difference = cx.minus(grown, shrunk)?;
    let far = cx.scaled(difference, 0.5)?;
    // x (1 + x²/6 (1 + x²/20 (1 + x²/42 (1 + x²/72)))), of a bounded x so that its derivatives stay finite.
    let bounded = cx.capped(x, 1.0)?;
    let bounded = cx.floored(bounded, -1.0)?;
    let square = cx.times(bounded, bounded)?;
    let mut series = cx.number(x, 1.0)?;
    for divisor in [72.0, 42.0, 20.0, 6.0] {
        let term = cx.times(square, series)?;
        let term = cx.scaled(term, 1.0 / divisor)?;
        series = cx.offset(term, 1.0)?;
    }
    let near = cx.times(bounded, series)?;
    let size = cx.size(x)?;
    let small = cx.below(size, 1.0)?;
    Ok(vec![cx.chosen(small, near, far)?])
}

/// `Cosh`: (eˣ + e⁻ˣ) / 2.
pub(super) fn cosh(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let negative = cx.negated(x)?;
    let (grown, shrunk) = (cx.exp(x)?, cx.exp(negative)?);
    let sum = cx.plus(grown, shrunk)?;
    Ok(vec![cx.scaled(sum, 0.5)?])
}

/// `Asinh`: the sign of x times log(1 + a + a² / (1 + √(1 + a²))), where a = |x|.
pub(super) fn asinh(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let size = cx.size(x)?;
    let square = cx.times(size, size)?;
    let widened = cx.offset(square, 1.0)?;
    let root = cx.sqrt(widened)?;
    let root = cx.offset(root, 1.0)?;
    // a / (1 + √…) first: a² may be infinite where the quotient is not.
    let share = cx.over(size, root)?;
    let rest = cx.times(size, share)?;
    let u = cx.plus(size, rest)?;
    let grown = log_1p(cx, u)?;
    Ok(vec![with_sign_of(cx, x, grown)?])
}

/// `Acosh`: log(1 + u) with u = x - 1 + √((x - 1) (x + 1)).
pub(super) fn acosh(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let (left, right) = (cx.offset(x, -1.0)?, cx.offset(x, 1.0)?);
    let (left_root, right_root) = (cx.sqrt(left)?, cx.sqrt(right)?);
    let root = cx.times(left_root, right_root)?;
    let u = cx.plus(left, root)?;
    Ok(vec![log_1p(cx, u)?])
}

/// `Atanh`: half the sign of x times log(1 + 2a / (1 - a)), where a = |x|.
pub(super) fn atanh(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let size = cx.size(x)?;
    let one = cx.number(x, 1.0)?;
    let (double, rest) = (cx.scaled(size, 2.0)?, cx.minus(one, size)?);
    let u = cx.over(double, rest)?;
    let log = log_1p(cx, u)?;
    let half = cx.scaled(log, 0.5)?;
    Ok(vec![with_sign_of(cx, x, half)?])
}

fn with_sign_of(cx: &mut Importer, x: Value, size: Value) -> Result<Value, Refusal> {
    let negative = cx.below(x, 0.0)?;
    let turned = cx.negated(size)?;
    cx.chosen(negative, turned, size)
}

/// log(1 + u) for u >= 0: u log w / (w - 1), where w is 1 + u as it is rounded; u where w is 1; log w for large u.
fn log_1p(cx: &mut Importer, u: Value) -> Result<Value, Refusal> {
    let w = cx.offset(u, 1.0)?;
    let (log, rest) = (cx.log(w)?, cx.offset(w, -1.0)?);
    let nothing = cx.number(u, 0.0)?;
    let tiny = cx.equal(rest, nothing)?;
    let divisor = cx.number(u, 1.0)?;
    let divisor = cx.chosen(tiny, divisor, rest)?;
    let share = cx.over(u, divisor)?;
    let product = cx.times(log, share)?;
    let near = cx.chosen(tiny, u, product)?;
    let large = cx.above(u, 1.0)?;
    cx.chosen(large, log, near)
}
