//! Places of the largest or smallest elements of rows.

use std::fmt;

use margay_tensor::DType;

use super::types::dtype_text;
use super::{Call, CallArg, Epilogue, product};
use crate::text::fields;

/// The places of the `k` largest elements along an axis, the largest first, as i64; of the smallest, the smallest first,
/// unless `largest`. Of equal elements the first one comes first; NaN counts as +∞.
///
/// Arguments: X, row-major \[outer, len, inner\]; Y, row-major i64 \[outer, k, inner\].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TopK {
    /// Element type of X, not bool.
    pub dtype: DType,
    /// Rows apart.
    pub outer: usize,
    /// Elements of a row.
    pub len: usize,
    /// Rows side by side.
    pub inner: usize,
    /// How many are chosen, at most `len`.
    pub k: usize,
    /// The largest rather than the smallest.
    pub largest: bool,
}

fields!(TopK { dtype = DType::F32, outer, len, inner, k, largest = true });

impl Call for TopK {
    const FAMILY: &'static str = "top_k";

    fn flops(&self) -> u64 {
        // Elements are read, and told apart once; those chosen are sorted.
        let comparisons = |n: usize| product(&[n, n.max(2).ilog2() as usize]);
        let row = product(&[4, self.len]).saturating_add(comparisons(self.k).saturating_mul(4));
        product(&[self.outer, self.inner]).saturating_mul(row)
    }

    fn args(&self) -> Vec<CallArg> {
        let axes = |n: usize| [(self.outer, n * self.inner), (n, self.inner), (self.inner, 1)];
        vec![CallArg::read(self.dtype, &axes(self.len)), CallArg::written(DType::I64, &axes(self.k))]
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

impl fmt::Display for TopK {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TopK { dtype, outer, len, inner, k, largest } = self;
        let which = if *largest { "largest" } else { "smallest" };
        write!(f, "top_k {outer}x[{len}]x{inner} {k} {which}{}", dtype_text(*dtype))
    }
}
