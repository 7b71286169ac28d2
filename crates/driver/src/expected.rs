//! Whether arrays are what a model takes. Every command that reads arrays asks here before it does any work, so that all
//! refuse the same and say it in the same words.

use std::collections::BTreeSet;

use margay_ir::TensorType;
use margay_ir::ops::Input;
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
        self.misfit_from(t, 1)
    }

    /// The same where the array is given once for all samples: its leading axis is that of the input.
    pub fn misfit_of_shared(&self, t: &Tensor) -> Option<String> {
        let why = self.misfit_from(t, 0)?;
        let of_rows = self.misfit_from(t, 1).is_none();
        Some(if of_rows { format!("{why}; it is given once for all samples") } else { why })
    }

    /// One or the other, by the names of what is given once.
    pub fn misfit_in(&self, t: &Tensor, shared: &BTreeSet<String>) -> Option<String> {
        if shared.contains(&self.name) { self.misfit_of_shared(t) } else { self.misfit(t) }
    }

    fn misfit_from(&self, t: &Tensor, first: usize) -> Option<String> {
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
        let axes = extents.iter().zip(t.shape()).enumerate().skip(first);
        let mut differing = axes.filter_map(|(axis, (expected, found))| {
            let expected = expected.filter(|e| e != found)?;
            Some(format!("axis {axis} is {found}, expected {expected}"))
        });
        differing.next().and_then(|axis| wrong(format!(": {axis}")))
    }
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
