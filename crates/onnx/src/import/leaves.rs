//! Constants, extents as data, and operators that do nothing.

use margay_ir::Value;
use margay_ir::ops::Numbers;
use margay_tensor::{DType, Tensor};

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::shapes::broadcast_to;

/// Ranges with more elements are refused.
const MAX_RANGE: usize = 1 << 20;

/// `Constant`, in any of the ways to write one.
pub(super) fn constant(cx: &mut Importer, call: &Call) -> Imported {
    let made =
        |t: Result<Tensor, _>| t.map_err(|e: margay_tensor::TensorError| Refusal::Invalid(e.to_string()));
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

/// `Identity`.
pub(super) fn identity(_: &mut Importer, call: &Call) -> Imported {
    Ok(vec![call.input(0)?])
}

/// `Dropout`, which does nothing outside training: all elements stay.
pub(super) fn dropout(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    call.ignore(&["ratio", "seed"]);
    if call.opset < 7 {
        call.ignore(&["is_test"]);
    }
    let nothing_dropped = call.optional(1).and_then(|ratio| cx.one_number(ratio)) == Some(0.0);
    if let Some(training) = call.optional(2)
        && !nothing_dropped
        && cx.ints(training).is_none_or(|t| t.values.iter().any(|v| !v.is(0)))
    {
        return Err(Refusal::Unsupported("training with a ratio that is not 0 is not supported".into()));
    }
    if call.outputs() < 2 {
        return Ok(vec![x]);
    }
    let shape = cx.ty(x).shape.clone();
    let kept = cx.scalar(DType::Bool, 1.0)?;
    let mask = broadcast_to(cx, kept, shape)?;
    Ok(vec![x, mask])
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

/// `Range` between constants.
pub(super) fn range(cx: &mut Importer, call: &Call) -> Imported {
    let bounds = [call.input(0)?, call.input(1)?, call.input(2)?];
    let dtype = cx.ty(bounds[0]).dtype;
    let numbers = match dtype.is_float() {
        true => float_range(cx, bounds)?,
        false => {
            let mut values = [0; 3];
            for (at, value) in values.iter_mut().enumerate() {
                *value = match cx.const_ints(call, at, "the range")?.as_slice() {
                    [v] => *v,
                    _ => return Err(Refusal::Invalid(format!("expected input {at} to be one number"))),
                };
            }
            int_range(values)?
        }
    };
    let count = match &numbers {
        Numbers::Float(v) => v.len(),
        Numbers::Int(v) => v.len(),
    };
    let tensor = numbers.into_tensor(dtype, &[count]).map_err(|e| Refusal::Invalid(e.to_string()))?;
    let origin = cx.origin.clone();
    Ok(vec![cx.leaf(tensor, origin)?])
}

fn int_range([start, limit, step]: [i64; 3]) -> Result<Numbers, Refusal> {
    let span = i128::from(limit) - i128::from(start);
    let step = i128::from(step);
    let count = match step {
        0 => return Err(Refusal::Invalid("a range with step 0".into())),
        1.. => (span + step - 1) / step,
        _ => (-span - step - 1) / -step,
    };
    let count = range_count(count.max(0) as f64)?;
    Ok(Numbers::Int((0..count).map(|i| i128::from(start) + i as i128 * step).collect()))
}

fn float_range(cx: &Importer, bounds: [Value; 3]) -> Result<Numbers, Refusal> {
    let number = |v: Value| {
        let tensor = cx.graph.constant(v).map(|p| p.tensor()).filter(|t| t.len() == 1)?;
        Numbers::of(tensor).ok()?.floats().pop()
    };
    let [Some(start), Some(limit), Some(step)] = bounds.map(number) else {
        return Err(Refusal::Unsupported("the range is computed at run time".into()));
    };
    let count = range_count(((limit - start) / step).ceil().max(0.0))?;
    Ok(Numbers::Float((0..count).map(|i| start + i as f64 * step).collect()))
}

fn range_count(count: f64) -> Result<usize, Refusal> {
    if count <= MAX_RANGE as f64 {
        return Ok(count as usize);
    }
    Err(Refusal::Unsupported(format!("a range of {count} elements, more than {MAX_RANGE}, is not supported")))
}
