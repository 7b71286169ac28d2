//! Which positions of inputs and outputs count: padding does not.
//!
//! Texts are padded to a common length; what a model computes on padding is of no use to anybody.

use std::fmt;

use margay_ir::{Graph, Op};
use margay_tensor::{DType, Tensor};

use crate::DriverError;

/// What exporters call the input that marks padding by zeros, the most usual name first. Names of masks that mark padding by
/// ones are not among them.
pub const MASK_NAMES: [&str; 4] = ["attention_mask", "input_mask", "attention_mask:0", "input_mask:0"];

/// Which input marks padding by zeros.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum MaskChoice {
    /// The first of [`MASK_NAMES`] that is an input of two axes, if any is.
    #[default]
    Default,
    /// None: every position counts.
    Nothing,
    /// The input of this name.
    Input(String),
}

impl fmt::Display for MaskChoice {
    /// As an option says it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MaskChoice::Default => "the usual one",
            MaskChoice::Nothing => "none",
            MaskChoice::Input(name) => name,
        })
    }
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
        let name = match choice {
            MaskChoice::Nothing => return Ok(Mask::default()),
            MaskChoice::Default => {
                let found = MASK_NAMES.iter().find(|name| ndim_of(name) == Some(2));
                return Ok(Mask { input: found.map(|name| (*name).to_owned()) });
            }
            MaskChoice::Input(name) => name,
        };
        match ndim_of(name) {
            Some(2) => Ok(Mask { input: Some(name.clone()) }),
            Some(ndim) => Err(DriverError::Options(format!(
                "the mask `{name}` has {ndim} axes, expected two: samples and places"
            ))),
            None => Err(DriverError::Options(format!("the model has no input `{name}` to mask by"))),
        }
    }

    /// Fails where all that is given is padding: nothing would be measured.
    ///
    /// # Errors
    /// [`DriverError::Options`] with the name of the mask.
    pub fn check(&self, arrays: &[(String, Tensor)]) -> Result<(), DriverError> {
        match (&self.input, self.marks(arrays)) {
            (Some(name), Some(marks)) if !marks.counts.contains(&true) && !marks.counts.is_empty() => {
                Err(DriverError::Options(format!(
                    "the mask `{name}` is zero everywhere: all {} places of the samples are padding, and nothing counts",
                    marks.counts.len()
                )))
            }
            _ => Ok(()),
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
    pub fn kept<T: Copy>(&self, rows: Vec<T>, length: usize) -> Vec<T> {
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
