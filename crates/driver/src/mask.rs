//! Which rows of the data count.
//!
//! Texts are padded to a common length; what a model computes on padding is of no use to anybody.

use margay_ir::{Graph, Op};
use margay_tensor::{DType, Tensor};

use crate::DriverError;

/// The input that marks padding, unless another is named.
const DEFAULT_MASK: &str = "attention_mask";

/// The input whose zeros mark places that do not count, if there is one.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    input: Option<String>,
}

impl Mask {
    /// The input that is asked for; without one `attention_mask`, if the graph has such an input of two axes.
    ///
    /// # Errors
    /// [`DriverError::Options`] if the graph has no such input, or it has not two axes.
    pub fn find(g: &Graph, asked: Option<&str>) -> Result<Mask, DriverError> {
        let name = asked.unwrap_or(DEFAULT_MASK);
        let ty = g.inputs().iter().find_map(|n| match g.op(*n) {
            Op::Input(input) if *input.name == *name => Some(&input.ty),
            _ => None,
        });
        match (ty, asked) {
            (Some(ty), _) if ty.ndim() == 2 => Ok(Mask { input: Some(name.to_owned()) }),
            (Some(ty), Some(_)) => Err(DriverError::Options(format!(
                "the mask `{name}` is {ty}, expected two axes: samples and places"
            ))),
            (None, Some(_)) => {
                Err(DriverError::Options(format!("the model has no input `{name}` to mask by")))
            }
            (_, None) => Ok(Mask::default()),
        }
    }

    /// The name of the input.
    pub fn input(&self) -> Option<&str> {
        self.input.as_deref()
    }

    /// What it says of a batch; `None` where all rows count.
    pub fn marks(&self, batch: &[(String, Tensor)]) -> Option<Marks> {
        let name = self.input.as_ref()?;
        let (_, tensor) = batch.iter().find(|(n, _)| n == name)?;
        let &[samples, places] = tensor.shape() else { return None };
        Some(Marks { samples, places, counts: marks(tensor)? })
    }
}

/// Which places of the samples of a batch count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marks {
    samples: usize,
    places: usize,
    /// By sample, then by place.
    counts: Vec<bool>,
}

impl Marks {
    /// The rows of `length` numbers that count, where there is one for every place; otherwise all.
    pub fn kept(&self, rows: Vec<f32>, length: usize) -> Vec<f32> {
        if rows.len() != self.counts.len() * length {
            return rows;
        }
        let counted = rows.chunks_exact(length.max(1)).zip(&self.counts).filter(|(_, counts)| **counts);
        counted.flat_map(|(row, _)| row.iter().copied()).collect()
    }

    /// By sample, then by place: whether it counts.
    pub fn counts(&self) -> &[bool] {
        &self.counts
    }

    /// Zeros in the places that do not count, among the numbers of a tensor whose first two axes are samples and places. Any
    /// other shape leaves the numbers as they are.
    pub fn blank(&self, shape: &[usize], numbers: &mut [f32]) {
        let fits = shape.get(..2) == Some(&[self.samples, self.places]);
        let width = numbers.len().checked_div(self.counts.len()).unwrap_or(0);
        if fits && width > 0 {
            let rows = numbers.chunks_exact_mut(width).zip(&self.counts);
            rows.filter(|(_, counts)| !**counts).for_each(|(row, _)| row.fill(0.0));
        }
    }
}

fn marks(t: &Tensor) -> Option<Vec<bool>> {
    match t.dtype() {
        DType::F32 => Some(t.as_slice::<f32>().ok()?.iter().map(|v| *v != 0.0).collect()),
        DType::I64 => Some(t.as_slice::<i64>().ok()?.iter().map(|v| *v != 0).collect()),
        DType::I32 => Some(t.as_slice::<i32>().ok()?.iter().map(|v| *v != 0).collect()),
        DType::Bool | DType::U8 => Some(t.bytes().iter().map(|v| *v != 0).collect()),
        _ => None,
    }
}
