//! Which rows of the data count.
//!
//! Texts are padded to a common length; what a model computes on padding is of no use to anybody.

use margay_ir::{Graph, Op};
use margay_tensor::{DType, Tensor};

use crate::TrainError;

/// The input that marks padding, unless another is named.
pub const DEFAULT_MASK: &str = "attention_mask";

/// The input whose zeros mark rows that do not count, if there is one.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    input: Option<String>,
}

impl Mask {
    /// The input that is asked for; without one [`DEFAULT_MASK`], if the graph has such an input of two axes.
    ///
    /// # Errors
    /// [`TrainError::Options`] if the graph has no such input, or it has not two axes.
    pub fn find(g: &Graph, asked: Option<&str>) -> Result<Mask, TrainError> {
        let name = asked.unwrap_or(DEFAULT_MASK);
        let ty = g.inputs().iter().find_map(|n| match g.op(*n) {
            Op::Input(input) if *input.name == *name => Some(&input.ty),
            _ => None,
        });
        match (ty, asked) {
            (Some(ty), _) if ty.ndim() == 2 => Ok(Mask { input: Some(name.to_owned()) }),
            (Some(ty), Some(_)) => Err(TrainError::Options(format!(
                "the mask `{name}` is {ty}, expected two axes: samples and places"
            ))),
            (None, Some(_)) => {
                Err(TrainError::Options(format!("the model has no input `{name}` to mask by")))
            }
            (_, None) => Ok(Mask::default()),
        }
    }

    /// The name of the input.
    pub fn input(&self) -> Option<&str> {
        self.input.as_deref()
    }

    /// For each row of a batch whether it counts; `None` where all do.
    pub fn rows(&self, batch: &[(String, Tensor)]) -> Option<Vec<bool>> {
        let name = self.input.as_ref()?;
        let (_, tensor) = batch.iter().find(|(n, _)| n == name)?;
        marks(tensor)
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
