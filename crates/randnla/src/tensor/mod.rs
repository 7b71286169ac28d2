//! Tensors and their decompositions: [tensor trains](tt_svd), [Tucker](hosvd) and [canonical polyadic](cp_als).

mod cp;
mod train;
mod tucker;

use faer::{Mat, MatRef};

use crate::{Matrix, RandnlaError, Scalar, dense};

pub use cp::{Cp, CpOptions, cp_als};
pub use train::{TensorTrain, tt_svd, tt_svd_to_rank};
pub use tucker::{Tucker, hooi, hosvd, hosvd_to_tolerance};

/// A dense tensor, the last index varying fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseTensor<T = f64> {
    extents: Vec<usize>,
    data: Vec<T>,
}

impl<T: Scalar> DenseTensor<T> {
    /// A tensor with these elements.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless there are as many as the product of the extents.
    pub fn new(extents: Vec<usize>, data: Vec<T>) -> Result<DenseTensor<T>, RandnlaError> {
        let expected = extents.iter().try_fold(1usize, |n, e| n.checked_mul(*e)).unwrap_or(usize::MAX);
        if expected != data.len() {
            return Err(RandnlaError::Length { what: "the tensor", expected, found: data.len() });
        }
        Ok(DenseTensor { extents, data })
    }

    /// The tensor with `element(index)` at every index.
    pub fn from_fn(extents: Vec<usize>, mut element: impl FnMut(&[usize]) -> T) -> DenseTensor<T> {
        let count = extents.iter().product();
        let mut index = vec![0; extents.len()];
        let mut data = Vec::with_capacity(count);
        for _ in 0..count {
            data.push(element(&index));
            for axis in (0..extents.len()).rev() {
                index[axis] += 1;
                if index[axis] < extents[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        DenseTensor { extents, data }
    }

    /// The extents of the modes.
    pub fn extents(&self) -> &[usize] {
        &self.extents
    }

    /// The elements, the last index varying fastest.
    pub fn data(&self) -> &[T] {
        &self.data
    }

    /// The sum of the squares of all elements.
    pub fn squared_norm(&self) -> f64 {
        self.data.iter().map(|v| v.to_f64().powi(2)).sum()
    }

    /// Products of the extents before and after a mode.
    fn around(&self, mode: usize) -> (usize, usize) {
        (self.extents[..mode].iter().product(), self.extents[mode + 1..].iter().product())
    }

    /// The unfolding `[extent, rest]` of a mode: the other indices in their order.
    fn unfolding(&self, mode: usize) -> Mat<T> {
        let (outer, inner) = self.around(mode);
        let extent = self.extents[mode];
        Mat::from_fn(extent, outer * inner, |i, rest| {
            self.data[((rest / inner) * extent + i) * inner + rest % inner]
        })
    }

    /// The product with `m`, `[rows, extent]`, along a mode: `m` times its unfolding.
    ///
    /// # Errors
    /// [`RandnlaError::Window`] for a mode that does not exist, and [`RandnlaError::Shape`] unless `m` has a column for
    /// each index of the mode.
    pub fn mode_product(&self, mode: usize, m: &Matrix<T>) -> Result<DenseTensor<T>, RandnlaError> {
        let ndim = self.extents.len();
        if mode >= ndim {
            return Err(RandnlaError::Window { start: mode, end: mode + 1, extent: ndim });
        }
        crate::matrix::check_shape("the factor", (m.rows(), self.extents[mode]), m)?;
        Ok(self.along(mode, m.as_ref()))
    }

    fn along(&self, mode: usize, m: MatRef<'_, T>) -> DenseTensor<T> {
        let (outer, inner) = self.around(mode);
        let (extent, rows) = (self.extents[mode], m.nrows());
        let mut data = vec![T::ZERO; outer * rows * inner];
        for o in 0..outer {
            let from = &self.data[o * extent * inner..(o + 1) * extent * inner];
            let to = &mut data[o * rows * inner..(o + 1) * rows * inner];
            let to = faer::MatMut::from_row_major_slice_mut(to, rows, inner);
            dense::add_product(to, m, MatRef::from_row_major_slice(from, extent, inner));
        }
        let mut extents = self.extents.clone();
        extents[mode] = rows;
        DenseTensor { extents, data }
    }

    /// An error unless there are at least `ndim` modes, elements, and all of them are finite.
    fn check(&self, ndim: usize) -> Result<(), RandnlaError> {
        if self.extents.len() < ndim {
            let found = self.extents.len();
            return Err(RandnlaError::Length { what: "the list of extents", expected: ndim, found });
        }
        crate::MatrixRef::from_row_major(1, self.data.len(), &self.data)?.check("the tensor")
    }

    /// The same with `ranks`, one for each mode, each between 1 and its extent.
    fn check_ranks(&self, ranks: &[usize]) -> Result<(), RandnlaError> {
        self.check(1)?;
        if ranks.len() != self.extents.len() {
            let (expected, found) = (self.extents.len(), ranks.len());
            return Err(RandnlaError::Length { what: "the list of ranks", expected, found });
        }
        match self.extents.iter().zip(ranks).find(|(e, r)| **r == 0 || r > e) {
            Some((&max, &found)) => Err(RandnlaError::Rank { max, found }),
            None => Ok(()),
        }
    }
}

/// An error unless the tolerance is a number of at least 0.
fn check_tolerance(tolerance: f64) -> Result<(), RandnlaError> {
    match tolerance >= 0.0 && tolerance.is_finite() {
        true => Ok(()),
        false => {
            let expected = "a finite number of at least 0";
            Err(RandnlaError::Parameter { name: "tolerance", expected, found: tolerance })
        }
    }
}

/// The smallest number of leading singular values, at least 1, of which the others have at most this sum of squares.
fn smallest_rank(singular_values: &[f64], squared: f64) -> usize {
    let mut sum = 0.0;
    let dropped = singular_values.iter().rev().take_while(|s| {
        sum += *s * *s;
        sum <= squared
    });
    (singular_values.len() - dropped.count()).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfoldings_and_mode_products_agree() {
        let t = DenseTensor::from_fn(vec![2, 3, 4], |i| (i[0] * 100 + i[1] * 10 + i[2]) as f64);
        assert_eq!(t.unfolding(1)[(2, 5)], 121.0);
        for mode in 0..3 {
            let m = Matrix::from_fn(5, t.extents()[mode], |i, j| (i * 3 + j) as f64);
            let product = t.mode_product(mode, &m).unwrap();
            assert_eq!(product.unfolding(mode), dense::product(m.as_ref(), t.unfolding(mode).as_ref()));
        }
        let err = t.mode_product(1, &Matrix::from_fn(2, 2, |_, _| 1.0)).unwrap_err();
        assert_eq!(err.to_string(), "the factor has the wrong shape: expected 2 x 3, found 2 x 2");
        assert!(t.mode_product(3, &Matrix::from_fn(2, 2, |_, _| 1.0)).is_err());
    }

    #[test]
    fn ranks_are_the_smallest() {
        assert_eq!(smallest_rank(&[3.0, 2.0, 1.0], 0.9), 3);
        assert_eq!(smallest_rank(&[3.0, 2.0, 1.0], 1.0), 2);
        assert_eq!(smallest_rank(&[3.0, 2.0, 1.0], 100.0), 1);
    }
}
