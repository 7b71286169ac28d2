//! Element types of operands.

use std::fmt;

use margay_tensor::{DType, Storage};

use crate::text::{Field, fields};

/// Element types of a product: of matrices A · B = C, or of an image and the kernel of a convolution. Products are
/// summed in f32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProductTypes {
    /// The left operand in memory.
    pub left: DType,
    /// What elements of the left operand are rounded to before they are multiplied, ties to even; `left` where they are
    /// not. With `bf16`, subnormal operands and sums may count as zero.
    pub left_rounded: DType,
    /// The right operand: its type, or the storage of a packed constant, whose axes are those of the operand.
    pub right: Storage,
    /// The result, and bias and residual.
    pub result: DType,
}

fields!(ProductTypes { left = DType::F32, left_rounded = DType::F32, right = Storage::plain(DType::F32), result = DType::F32 });

impl Field for Storage {
    fn write(&self) -> String {
        self.to_string()
    }
    fn read(text: &str) -> Result<Self, String> {
        Storage::parse(text).ok_or_else(|| format!("`{text}` is not a storage"))
    }
}

impl ProductTypes {
    /// Everything in f32.
    pub const F32: ProductTypes = ProductTypes::of(DType::F32);

    /// Everything in one type.
    pub const fn of(dtype: DType) -> ProductTypes {
        ProductTypes { left: dtype, left_rounded: dtype, right: Storage::plain(dtype), result: dtype }
    }

    /// What elements of an operand are rounded to, if that is narrower than they are in memory.
    pub(super) fn rounds(&self, operand: usize) -> Option<DType> {
        Some(self.left_rounded).filter(|&to| operand == 0 && to != self.left)
    }
}

/// The type of operands as text; nothing for f32.
pub(super) fn dtype_text(dtype: DType) -> String {
    if dtype == DType::F32 { String::new() } else { format!(" {dtype}") }
}

impl fmt::Display for ProductTypes {
    /// Nothing for f32; else the left operand with what it is rounded to, the right one and the result, each where it
    /// is not f32.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.left != DType::F32 {
            write!(f, " left {}", self.left)?;
        }
        if self.left_rounded != self.left {
            write!(f, " left to {}", self.left_rounded)?;
        }
        if self.right != Storage::plain(DType::F32) {
            write!(f, " right {}", self.right)?;
        }
        match self.result {
            DType::F32 => Ok(()),
            dtype => write!(f, " result {dtype}"),
        }
    }
}
