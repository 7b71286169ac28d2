//! Which positions of inputs and outputs count: padding does not.
//!
//! Texts are padded to a common length; what a model computes on padding is of no use to anybody.

use margay_ir::{Graph, Op};
use margay_tensor::{DType, Tensor};

use crate::DriverError;

/// The input that marks padding, unless another is named.
pub const DEFAULT_MASK: &str = "attention_mask";

/// Which input marks padding by zeros.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum MaskChoice {
    /// [`DEFAULT_MASK`], where there is such an input of two axes.
    #[default]
    Default,
    /// None: every position counts.
    Nothing,
    /// The input of this name.
    Input(String),
}

impl MaskChoice {
    /// Reads the name of an input, or `none`.
    pub fn parse(text: &str) -> MaskChoice {
        match text {
            "none" => MaskChoice::Nothing,
            name => MaskChoice::Input(name.to_owned()),
        }
    }
}

/// The input whose zeros mark positions that do not count, if there is one: `[samples, places]`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mask {
    input: Option<String>,
}

impl Mask {
    /// The input of a graph that is chosen.
    ///
    /// # Errors
    /// [`DriverError::Options`] if the graph has no input of a name that was given, or it has not two axes.
    pub fn find(g: &Graph, choice: &MaskChoice) -> Result<Mask, DriverError> {
        let ndim_of = |name: &str| {
            g.inputs().iter().find_map(|n| match g.op(*n) {
                Op::Input(input) if *input.name == *name => Some(input.ty.ndim()),
                _ => None,
            })
        };
        Mask::among(choice, &ndim_of)
    }

    /// The input that is chosen among some; `ndim_of` says how many axes one has.
    ///
    /// # Errors
    /// As [`find`](Mask::find).
    pub fn among(choice: &MaskChoice, ndim_of: &dyn Fn(&str) -> Option<usize>) -> Result<Mask, DriverError> {
        let (name, asked) = match choice {
            MaskChoice::Nothing => return Ok(Mask::default()),
            MaskChoice::Default => (DEFAULT_MASK, false),
            MaskChoice::Input(name) => (name.as_str(), true),
        };
        match ndim_of(name) {
            Some(2) => Ok(Mask { input: Some(name.to_owned()) }),
            Some(ndim) if asked => Err(DriverError::Options(format!(
                "the mask `{name}` has {ndim} axes, expected two: samples and places"
            ))),
            None if asked => Err(DriverError::Options(format!("the model has no input `{name}` to mask by"))),
            _ => Ok(Mask::default()),
        }
    }

    /// The name of the input.
    pub fn input(&self) -> Option<&str> {
        self.input.as_deref()
    }

    /// What it says of a batch; `None` where every position counts.
    pub fn marks(&self, batch: &[(String, Tensor)]) -> Option<Marks> {
        let name = self.input.as_ref()?;
        let (_, tensor) = batch.iter().find(|(n, _)| n == name)?;
        Some(Marks { shape: tensor.shape().try_into().ok()?, counts: not_zero(tensor)? })
    }
}

/// Which positions of the samples of a batch count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marks {
    shape: [usize; 2],
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

    /// By sample, then by position: whether it counts.
    pub fn counts(&self) -> &[bool] {
        &self.counts
    }

    /// Whether they are those of a tensor: its first axes are samples and positions.
    pub fn apply_to(&self, shape: &[usize]) -> bool {
        shape.starts_with(&self.shape)
    }

    /// Zeros in the positions that do not count, among the numbers of a tensor whose first two axes are samples and positions. Any
    /// other shape leaves the numbers as they are.
    pub fn blank(&self, shape: &[usize], numbers: &mut [f32]) {
        let width = numbers.len().checked_div(self.counts.len()).unwrap_or(0);
        if self.apply_to(shape) && width > 0 {
            let rows = numbers.chunks_exact_mut(width).zip(&self.counts);
            rows.filter(|(_, counts)| !**counts).for_each(|(row, _)| row.fill(0.0));
        }
    }
}

fn not_zero(t: &Tensor) -> Option<Vec<bool>> {
    match t.dtype() {
        DType::F32 => Some(t.as_slice::<f32>().ok()?.iter().map(|v| *v != 0.0).collect()),
        DType::I64 => Some(t.as_slice::<i64>().ok()?.iter().map(|v| *v != 0).collect()),
        DType::I32 => Some(t.as_slice::<i32>().ok()?.iter().map(|v| *v != 0).collect()),
        DType::Bool | DType::U8 => Some(t.bytes().iter().map(|v| *v != 0).collect()),
        _ => None,
    }
}
