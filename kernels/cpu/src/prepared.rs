//! How a call is run: parallel regions of hand-written kernels.

use margay_loops::{Needs, ProductTypes};
use margay_tensor::DType;

/// One parallel region of a prepared call. Phases run one after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Phase {
    /// The kernel, by its name in the table of kernels.
    pub kernel: &'static str,
    /// The words handed to it.
    pub params: Vec<u64>,
    /// Number of work items.
    pub items: usize,
    /// Items a thread should claim at once.
    pub grain: usize,
}

/// How a processor class runs a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// Parallel regions, in order.
    pub phases: Vec<Phase>,
    /// Bytes of scratch each thread needs, without the header.
    pub scratch_bytes: usize,
    /// What it needs of the program.
    pub needs: Needs,
}

/// Refuses an operand of another type than f32.
pub(crate) fn expect_f32(dtype: DType) -> Result<(), String> {
    if dtype == DType::F32 { Ok(()) } else { Err(format!("operands are f32, found {dtype}")) }
}

/// Refuses operands of other types than f32.
pub(crate) fn expect_f32_operands(types: &ProductTypes) -> Result<(), String> {
    if *types == ProductTypes::F32 { Ok(()) } else { Err(format!("operands are f32, found{types}")) }
}
