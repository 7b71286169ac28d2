//! Operators that compute each element from the elements at the same place.

use margay_ir::ops::{
    Abs, Add, And, Atan, Ceil, Cos, Div, Equal, Erf, Exp, Floor, Less, LessOrEqual, Log, Max, Min, Mul, Neg,
    Not, Or, Pow, Reshape, Round, Select, Sin, Sqrt, Sub, Tanh,
};
use margay_ir::{Op, Value};
use margay_tensor::DType;

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::narrow::Beyond;
use crate::{Narrow, element_type};

/// Writes functions of operators that are those of the graph with one operand.
macro_rules! unary {
    ($($function:ident = $op:expr),* $(,)?) => { $(
        pub(super) fn $function(cx: &mut Importer, call: &Call) -> Imported {
            let x = call.input(0)?;
            Ok(vec![cx.add($op, &[x])?])
        }
    )* };
}
unary! {
    abs = Abs, atan = Atan, ceil = Ceil, cos = Cos, erf = Erf, exp = Exp, floor = Floor, log = Log, neg = Neg, not = Not,
    round = Round, sin = Sin, sqrt = Sqrt, tanh = Tanh,
}

/// Writes functions of operators that are those of the graph with two operands, in the given order.
macro_rules! binary {
    ($($function:ident = $op:expr, [$x:literal, $y:literal]);* $(;)?) => { $(
        pub(super) fn $function(cx: &mut Importer, call: &Call) -> Imported {
            let operands = pair(cx, call)?;
            Ok(vec![cx.add($op, &[operands[$x], operands[$y]])?])
        }
    )* };
}
binary! {
    add = Add, [0, 1];
    and = And, [0, 1];
    div = Div, [0, 1];
    equal = Equal, [0, 1];
    greater = Less, [1, 0];
    greater_or_equal = LessOrEqual, [1, 0];
    less = Less, [0, 1];
    less_or_equal = LessOrEqual, [0, 1];
    mul = Mul, [0, 1];
    or = Or, [0, 1];
    sub = Sub, [0, 1];
}

/// Two operands. Before operator set 7 the second one stands along the axes of the first from `axis` on, or along the
/// last ones, if it says that it broadcasts.
pub(super) fn pair(cx: &mut Importer, call: &Call) -> Result<[Value; 2], Refusal> {
    let (x, y) = (call.input(0)?, call.input(1)?);
    if call.opset >= 7 || !call.flag("broadcast", false)? {
        return Ok([x, y]);
    }
    let Some(at) = call.optional_int("axis")? else { return Ok([x, y]) };
    let at = super::call::axis(at, cx.ty(x).ndim())?;
    let mut shape = cx.ty(y).shape.clone();
    let behind = cx.ty(x).ndim().saturating_sub(at + shape.len());
    shape.extend(vec![margay_tensor::Dim::from(1usize); behind]);
    Ok([x, cx.shaped(y, shape)?])
}

/// `Pow`: the exponent may have another type than the base; powers of integers are taken in f64.
pub(super) fn pow(cx: &mut Importer, call: &Call) -> Imported {
    let [base, exponent] = pair(cx, call)?;
    let result = cx.ty(base).dtype;
    let within = if result.is_float() { result } else { DType::F64 };
    let base = cx.cast(base, within)?;
    let exponent = cx.cast(exponent, within)?;
    let power = cx.add(Pow, &[base, exponent])?;
    Ok(vec![cx.cast(power, result)?])
}

/// `Reciprocal`: 1 / x.
pub(super) fn reciprocal(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let one = cx.number(x, 1.0)?;
    Ok(vec![cx.add(Div, &[one, x])?])
}

/// `Where`.
pub(super) fn select(cx: &mut Importer, call: &Call) -> Imported {
    let operands = [call.input(0)?, call.input(1)?, call.input(2)?];
    Ok(vec![cx.add(Select, &operands)?])
}

/// `Cast`.
pub(super) fn cast(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let beyond = Beyond::of(call)?;
    if call.opset < 6 {
        let name = call.text("to", "")?;
        let to = (1..17).find(|&n| element_type("value", "", n).is_ok_and(|d| onnx_name(d) == name));
        let to = to.ok_or_else(|| Refusal::Unsupported(format!("element type `{name}` is not supported")))?;
        return Ok(vec![cx.cast(x, numbered_type(to.into())?)?]);
    }
    let number = call.optional_int("to")?;
    let number = number.ok_or_else(|| Refusal::Invalid("expected attribute `to`, found none".into()))?;
    if let Some(narrow) = i32::try_from(number).ok().and_then(Narrow::numbered) {
        return Ok(vec![cx.narrowed(x, narrow, beyond)?]);
    }
    let (x, to) = (cx.widened(x)?, numbered_type(number)?);
    Ok(vec![cx.cast(x, to)?])
}

/// The element type with a number in ONNX.
pub(super) fn numbered_type(number: i64) -> Result<DType, Refusal> {
    let to = i32::try_from(number).ok().and_then(|n| element_type("value", "", n).ok());
    to.ok_or_else(|| Refusal::Unsupported(format!("element type number {number} is not supported")))
}

/// What ONNX calls an element type.
fn onnx_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "FLOAT16",
        DType::BF16 => "BFLOAT16",
        DType::F32 => "FLOAT",
        DType::F64 => "DOUBLE",
        DType::I8 => "INT8",
        DType::I16 => "INT16",
        DType::I32 => "INT32",
        DType::I64 => "INT64",
        DType::U8 => "UINT8",
        DType::U16 => "UINT16",
        DType::U32 => "UINT32",
        DType::U64 => "UINT64",
        DType::Bool => "BOOL",
    }
}

/// `CastLike`.
pub(super) fn cast_like(cx: &mut Importer, call: &Call) -> Imported {
    let (x, like) = (call.input(0)?, call.input(1)?);
    let beyond = Beyond::of(call)?;
    if let Some(narrow) = cx.narrow(like) {
        return Ok(vec![cx.narrowed(x, narrow, beyond)?]);
    }
    let (x, to) = (cx.widened(x)?, cx.ty(like).dtype);
    Ok(vec![cx.cast(x, to)?])
}

/// `Max` of one or more operands.
pub(super) fn max(cx: &mut Importer, call: &Call) -> Imported {
    join(cx, call, || Max.into())
}

/// `Min` of one or more operands.
pub(super) fn min(cx: &mut Importer, call: &Call) -> Imported {
    join(cx, call, || Min.into())
}

/// `Sum` of one or more operands.
pub(super) fn sum(cx: &mut Importer, call: &Call) -> Imported {
    join(cx, call, || Add.into())
}

/// `Mean` of one or more operands.
pub(super) fn mean(cx: &mut Importer, call: &Call) -> Imported {
    let sum = join(cx, call, || Add.into())?[0];
    let count = cx.number(sum, call.all()?.len() as f64)?;
    Ok(vec![cx.add(Div, &[sum, count])?])
}

fn join(cx: &mut Importer, call: &Call, op: fn() -> Op) -> Imported {
    let operands = call.all()?;
    let mut joined = operands[0];
    for &x in &operands[1..] {
        joined = cx.add(op(), &[joined, x])?;
    }
    Ok(vec![joined])
}

/// `Clip`: bounds are attributes before operator set 11 and inputs since; both are optional.
pub(super) fn clip(cx: &mut Importer, call: &Call) -> Imported {
    let mut x = call.input(0)?;
    let mut bounds = Vec::new();
    for (at, name) in [(1, "min"), (2, "max")] {
        bounds.push(if call.opset < 11 {
            // The outermost floats mean no bound.
            let number = call.optional_float(name)?.filter(|v| v.abs() < f64::from(f32::MAX));
            number.map(|v| cx.number(x, v)).transpose()?
        } else {
            call.optional(at).map(|v| scalar(cx, v)).transpose()?
        });
    }
    if let Some(low) = bounds[0] {
        x = cx.larger(x, low)?;
    }
    if let Some(high) = bounds[1] {
        x = cx.smaller(x, high)?;
    }
    Ok(vec![x])
}

/// A value of one element without its axes.
pub(super) fn scalar(cx: &mut Importer, v: Value) -> Result<Value, Refusal> {
    if cx.ty(v).ndim() == 0 { Ok(v) } else { cx.add(Reshape { shape: Vec::new() }, &[v]) }
}
