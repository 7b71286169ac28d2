//! Walsh–Hadamard transforms.

use std::fmt;

use margay_tensor::DType;

use super::{Call, CallArg, Epilogue, product};
use crate::text::fields;

/// The Walsh–Hadamard transform of every row in f32: `Y[r] = H X[r] / √len`, where `H[i][j] = (-1)^(number of bits that i
/// and j share)`.
///
/// Arguments: X, Y, both row-major \[rows, len\].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Hadamard {
    /// Rows.
    pub rows: usize,
    /// Length of a row, a power of two.
    pub len: usize,
}

fields!(Hadamard { rows, len });

impl Call for Hadamard {
    const FAMILY: &'static str = "hadamard";

    fn flops(&self) -> u64 {
        product(&[self.rows, self.len]) * u64::from(self.len.max(1).ilog2() + 1)
    }

    fn args(&self) -> Vec<CallArg> {
        let axes = [(self.rows, self.len), (self.len, 1)];
        vec![CallArg::read(DType::F32, &axes), CallArg::written(DType::F32, &axes)]
    }

    fn rounds(&self, _: usize) -> Option<DType> {
        None
    }

    fn epilogue(&mut self) -> Option<&mut Epilogue> {
        None
    }

    fn packed(&mut self) -> Option<(usize, &mut bool)> {
        None
    }

    fn sums_of_integers(&mut self) -> Option<&mut DType> {
        None
    }

    fn transposable(&mut self, _: usize) -> Option<&mut [usize; 3]> {
        None
    }
}

impl fmt::Display for Hadamard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hadamard {}x[{}]", self.rows, self.len)
    }
}
