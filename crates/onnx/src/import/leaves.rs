//! Constants, extents as data, and operators that do nothing.

use margay_ir::Value;
use margay_ir::ops::{self, Bits, Numbers, Range, less_or_equal};
use margay_tensor::{DType, Dim, Tensor};

use super::call::{Call, Imported, Refusal, shortest};
use super::shapes::broadcast_to;
use super::values::{MAX_KNOWN, open};
use super::{Dropout, Importer};

/// Ranges with more elements are refused.
const MAX_RANGE: usize = 1 << 20;

/// `Constant`, in any of the ways to write one.
pub(super) fn constant(cx: &mut Importer, call: &Call) -> Imported {
    let made =
        |t: Result<Tensor, _>| t.map_err(|e: margay_tensor::TensorError| Refusal::Invalid(e.to_string()));
    if let Some((narrow, tensor)) = call.narrow_tensor("value") {
        return super::narrow::constant(cx, narrow, tensor.clone());
    }
    let tensor = if let Some(tensor) = call.tensor("value")? {
        tensor.clone()
    } else if let Some(v) = call.optional_float("value_float")? {
        Tensor::scalar(v as f32)
    } else if let Some(v) = call.optional_int("value_int")? {
        Tensor::scalar(v)
    } else if let Some(v) = call.floats("value_floats")? {
        made(Tensor::from_slice(&[v.len()], v))?
    } else if let Some(v) = call.ints("value_ints")? {
        made(Tensor::from_slice(&[v.len()], v))?
    } else {
        return Err(Refusal::Unsupported("a constant that is no tensor of numbers is not supported".into()));
    };
    let origin = cx.origin.clone();
    Ok(vec![cx.leaf(tensor, origin)?])
}

/// `ConstantOfShape`: one number, repeated.
pub(super) fn constant_of_shape(cx: &mut Importer, call: &Call) -> Imported {
    let shape = cx.known_ints(call, 0, "the shape")?.values;
    let element = call.tensor("value")?.cloned().unwrap_or_else(|| Tensor::scalar(0f32));
    let element = element.reshaped(&[]).map_err(|e| Refusal::Invalid(format!("attribute `value`: {e}")))?;
    let element = cx.constant(element)?;
    broadcast_to(cx, element, shape).map(|v| vec![v])
}

/// `Dropout`: all elements stay, but where a model is imported to be trained.
pub(super) fn dropout(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    call.ignore(&["seed"]);
    if call.opset < 7 {
        call.ignore(&["is_test"]);
    }
    let ratio = dropout_ratio(cx, call)?;
    let (training, shape) = (call.optional(2), cx.ty(x).shape.clone());
    let y = match cx.dropout {
        None => {
            if let Some(training) = training
                && ratio != Some(0.0)
                && cx.ints(training).is_none_or(|t| t.values.iter().any(|v| !v.is(0)))
            {
                return Err(Refusal::Unsupported(
                    "training with a ratio that is not 0 is not supported where a model is not trained"
                        .into(),
                ));
            }
            x
        }
        Some(dropout) => dropped(cx, call, x, ratio, dropout)?,
    };
    if call.outputs() < 2 {
        return Ok(vec![y]);
    }
    let kept = cx.scalar(DType::Bool, 1.0)?;
    let mask = broadcast_to(cx, kept, shape)?;
    Ok(vec![y, mask])
}

/// The ratio of a `Dropout`; `None` where only a run knows it.
fn dropout_ratio(cx: &Importer, call: &Call) -> Result<Option<f64>, Refusal> {
    const DEFAULT: f64 = 0.5;
    let attribute = call.float("ratio", DEFAULT)?;
    Ok(match call.optional(1) {
        None => Some(attribute),
        Some(ratio) => cx.one_number(ratio).map(|number| match cx.ty(ratio).dtype {
            DType::F32 => shortest(number as f32),
            _ => number,
        }),
    })
}

/// A `Dropout` of a model that is to be trained. Those in graphs of operators run any number of times in a step.
fn dropped(
    cx: &mut Importer,
    call: &Call,
    x: Value,
    ratio: Option<f64>,
    dropout: Dropout,
) -> Result<Value, Refusal> {
    let ratio = match dropout {
        Dropout::Model => {
            ratio.ok_or_else(|| Refusal::Unsupported("the ratio is computed at run time".into()))?
        }
        Dropout::None => 0.0,
        Dropout::Ratio(ratio) => ratio,
    };
    if ratio == 0.0 || cx.depth > 0 {
        return Ok(x);
    }
    if call.named(1).is_some_and(|mask| cx.is_read(mask)) {
        return Err(Refusal::Unsupported(
            "training with a mask that other nodes read is not supported".into(),
        ));
    }
    let stream = cx.dropped;
    cx.dropped += 1;
    cx.add(ops::Dropout { ratio: Bits::new(ratio), stream }, &[x])
}

/// `Shape`, or a part of it.
pub(super) fn shape(cx: &mut Importer, call: &Call) -> Imported {
    let shape = cx.ty(call.input(0)?).shape.clone();
    let ndim = shape.len() as i64;
    let place = |v: i64| (if v < 0 { v.saturating_add(ndim) } else { v }).clamp(0, ndim) as usize;
    let start = place(call.int("start", 0)?);
    let end = place(call.int("end", i64::MAX)?).max(start);
    Ok(vec![cx.dims(shape[start..end].to_vec())?])
}

/// `Size`: the number of elements.
pub(super) fn size(cx: &mut Importer, call: &Call) -> Imported {
    let elements = cx.ty(call.input(0)?).elements();
    Ok(vec![cx.dim(elements)?])
}

/// `Range`. Integers may depend on extents; so may floats that are whole numbers.
pub(super) fn range(cx: &mut Importer, call: &Call) -> Imported {
    let bounds = [call.input(0)?, call.input(1)?, call.input(2)?];
    let dtype = cx.ty(bounds[0]).dtype;
    for (at, v) in bounds.iter().enumerate() {
        if cx.ty(*v).extents().is_some_and(|e| e.iter().product::<usize>() != 1) {
            return Err(Refusal::Invalid(format!("expected input {at} to be one number")));
        }
    }
    let whole: Vec<Option<Dim>> = bounds.iter().map(|v| cx.whole(*v)).collect();
    if let [Some(start), Some(limit), Some(step)] = whole.as_slice() {
        let v = whole_range(cx, start, limit, step)?;
        return Ok(vec![cx.cast(v, dtype)?]);
    }
    let numbers = float_range(cx, bounds)?;
    let tensor = Numbers::Float(numbers.clone()).into_tensor(dtype, &[numbers.len()]);
    let origin = cx.origin.clone();
    Ok(vec![cx.leaf(tensor.map_err(|e| Refusal::Invalid(e.to_string()))?, origin)?])
}

fn whole_range(cx: &mut Importer, start: &Dim, limit: &Dim, step: &Dim) -> Result<Value, Refusal> {
    let step = cx.value_of(step)?.ok_or_else(|| open("the step of the range", step))?;
    let one = Dim::from(1usize);
    let (span, divisor) = match step {
        0 => return Err(Refusal::Invalid("a range with step 0".into())),
        1.. => (limit - start, Dim::from(step)),
        _ => (start - limit, Dim::from(step.saturating_neg())),
    };
    let rounded = &(&span + &divisor) - &one;
    let count = rounded.floor_div(&divisor).unwrap_or_default();
    // A range that ends before it starts is empty.
    let count = if less_or_equal(&count, &Dim::default()) == Some(true) { Dim::default() } else { count };
    match count.as_extent() {
        Some(count) if count <= MAX_KNOWN => {
            let at = |i: usize| start + &(&Dim::from(step) * &Dim::from(i));
            cx.dims((0..count).map(at).collect())
        }
        Some(count) if count > MAX_RANGE => Err(Refusal::Unsupported(format!(
            "a range of {count} elements, more than {MAX_RANGE}, is not supported"
        ))),
        _ => cx.add(Range { start: start.clone(), step, count }, &[]),
    }
}

fn float_range(cx: &Importer, bounds: [Value; 3]) -> Result<Vec<f64>, Refusal> {
    let number = |v: Value| {
        let tensor = cx.graph.constant(v).map(|p| p.tensor()).filter(|t| t.len() == 1)?;
        Numbers::of(tensor).ok()?.floats().pop()
    };
    let [Some(start), Some(limit), Some(step)] = bounds.map(number) else {
        return Err(Refusal::Unsupported("the range is computed at run time".into()));
    };
    let count = ((limit - start) / step).ceil().max(0.0);
    if count <= MAX_RANGE as f64 {
        return Ok((0..count as usize).map(|i| start + i as f64 * step).collect());
    }
    Err(Refusal::Unsupported(format!("a range of {count} elements, more than {MAX_RANGE}, is not supported")))
}
