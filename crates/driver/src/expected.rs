//! Whether arrays are what a model takes. Every command that reads arrays asks here before it does any work, so that all
//! refuse the same and say it in the same words.

use margay_ir::TensorType;
use margay_ir::ops::{Input, Numbers};
use margay_tensor::{DType, Tensor};

/// What a model takes as an input, as far as it is known.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The name of the input.
    pub name: String,
    /// Its element type.
    pub dtype: Option<DType>,
    /// Its extents, with `None` for those that are open; `None` where not even their number is known.
    pub extents: Option<Vec<Option<usize>>>,
    /// The type as it is printed.
    pub text: String,
}

impl Expected {
    /// What an input of a graph takes.
    pub fn of(input: &Input) -> Expected {
        Expected {
            name: input.name.to_string(),
            dtype: Some(input.ty.dtype),
            extents: Some(input.ty.shape.iter().map(|d| d.as_extent()).collect()),
            text: input.ty.to_string(),
        }
    }

    /// Why an array is not that, with the axis or the conversion. Its leading axis is that of samples, of which a run takes
    /// some: it may have any extent.
    pub fn misfit(&self, t: &Tensor) -> Option<String> {
        let (name, found) = (&self.name, TensorType::of(t));
        let wrong = |why: String| Some(format!("`{name}` is {found}, expected {}{why}", self.text));
        if let Some(dtype) = self.dtype.filter(|dtype| *dtype != t.dtype()) {
            return wrong(
                numpy_name(dtype)
                    .map_or(String::new(), |to| format!(": in numpy, `{name}.astype(\"{to}\")` converts it")),
            );
        }
        let extents = self.extents.as_ref()?;
        if extents.len() != t.shape().len() {
            return wrong(format!(": it has {} axes instead of {}", t.shape().len(), extents.len()));
        }
        let axes = extents.iter().zip(t.shape()).enumerate().skip(1);
        let mut differing = axes.filter_map(|(axis, (expected, found))| {
            let expected = expected.filter(|e| e != found)?;
            Some(format!("axis {axis} is {found}, expected {expected}"))
        });
        differing.next().and_then(|axis| wrong(format!(": {axis}")))
    }
}

/// Where an array is not a finite number, if it is so anywhere: `` `x` is NaN in row 6, at [6, 3] ``. Arrays of zeros and
/// -∞ alone are masks that are added, and as they should be.
pub fn not_finite(name: &str, t: &Tensor) -> Option<String> {
    if !t.dtype().is_float() {
        return None;
    }
    let (at, value) = first_not_finite(t)?;
    let (mut left, mut index) = (at, Vec::new());
    for extent in t.shape().iter().rev() {
        index.push(left % extent);
        left /= extent;
    }
    index.reverse();
    let row = index.first().map_or(String::new(), |row| format!(" in row {row}, at {index:?}"));
    Some(format!("`{name}` is {value}{row}"))
}

fn first_not_finite(t: &Tensor) -> Option<(usize, f64)> {
    let numbers = match t.dtype() {
        DType::F32 => {
            // Most arrays are of this type, and large ones are looked at without a copy.
            let values = t.as_slice::<f32>().ok()?;
            let at = values.iter().position(|v| !v.is_finite())?;
            let is_mask = values.iter().all(|v| *v == 0.0 || *v == f32::NEG_INFINITY);
            return (!is_mask).then(|| (at, f64::from(values[at])));
        }
        _ => Numbers::of(t).ok()?.floats(),
    };
    let at = numbers.iter().position(|v| !v.is_finite())?;
    let is_mask = numbers.iter().all(|v| *v == 0.0 || *v == f64::NEG_INFINITY);
    (!is_mask).then(|| (at, numbers[at]))
}

/// What numpy calls a type, if it has it.
fn numpy_name(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F32 => "float32",
        DType::F64 => "float64",
        DType::F16 => "float16",
        DType::BF16 => return None,
        DType::I8 => "int8",
        DType::U8 => "uint8",
        DType::I16 => "int16",
        DType::U16 => "uint16",
        DType::I32 => "int32",
        DType::U32 => "uint32",
        DType::I64 => "int64",
        DType::U64 => "uint64",
        DType::Bool => "bool",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_told_by_its_place() {
        let of = |values: &[f32]| not_finite("x", &Tensor::from_slice(&[2, 3], values).unwrap());
        let inf = f32::INFINITY;
        assert_eq!(of(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), None);
        assert_eq!(of(&[0.0, 1.0, 2.0, 3.0, f32::NAN, inf]).unwrap(), "`x` is NaN in row 1, at [1, 1]");
        assert_eq!(of(&[0.0, 1.0, -inf, 3.0, 4.0, inf]).unwrap(), "`x` is -inf in row 0, at [0, 2]");
        assert_eq!(of(&[0.0, 0.0, -inf, 0.0, -inf, -inf]), None, "a mask that is added");
        let wide = Tensor::from_slice(&[1, 2], &[0.0f64, f64::INFINITY]).unwrap();
        assert_eq!(not_finite("x", &wide).unwrap(), "`x` is inf in row 0, at [0, 1]");
    }
}
