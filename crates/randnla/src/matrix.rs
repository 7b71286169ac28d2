//! The matrices that go in and out of this crate.

use faer::{Mat, MatRef};

use crate::{MatrixRef, RandnlaError, Scalar, dense};

/// A dense matrix, of `f64` unless said otherwise.
///
/// Callers see rows: conversions from and to slices are row-major. Inside is a matrix of faer, which goes in and out by
/// [`From`] and [`as_faer`](Matrix::as_faer).
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix<T = f64>(Mat<T>);

impl Matrix {
    /// A matrix from row-major `f32`.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless there are `rows * columns` elements.
    pub fn from_row_major(rows: usize, columns: usize, data: &[f32]) -> Result<Matrix, RandnlaError> {
        check_length(rows, columns, data.len())?;
        Ok(Matrix::from_fn(rows, columns, |i, j| f64::from(data[i * columns + j])))
    }

    /// A matrix from row-major `f64`.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless there are `rows * columns` elements.
    pub fn from_row_major_f64(rows: usize, columns: usize, data: &[f64]) -> Result<Matrix, RandnlaError> {
        check_length(rows, columns, data.len())?;
        Ok(Matrix::from_fn(rows, columns, |i, j| data[i * columns + j]))
    }

    /// The entries, row-major, rounded to `f32`.
    pub fn to_row_major(&self) -> Vec<f32> {
        self.entries().map(|v| v as f32).collect()
    }

    /// The entries, row-major.
    pub fn to_row_major_f64(&self) -> Vec<f64> {
        self.entries().collect()
    }
}

impl<T: Scalar> Matrix<T> {
    /// The matrix whose entry at row `i` and column `j` is `entry(i, j)`.
    pub fn from_fn(rows: usize, columns: usize, entry: impl FnMut(usize, usize) -> T) -> Matrix<T> {
        Matrix(Mat::from_fn(rows, columns, entry))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.0.nrows()
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.0.ncols()
    }

    /// The entry at this row and column, which must exist.
    pub fn at(&self, row: usize, column: usize) -> T {
        self.0[(row, column)]
    }

    /// The matrix product `self · right`.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] unless `right` has as many rows as `self` has columns.
    pub fn product(&self, right: &Matrix<T>) -> Result<Matrix<T>, RandnlaError> {
        check_shape("the right factor", (self.columns(), right.columns()), right)?;
        Ok(Matrix(dense::product(self.as_ref(), right.as_ref())))
    }

    /// The transpose.
    pub fn transposed(&self) -> Matrix<T> {
        Matrix(self.0.transpose().to_owned())
    }

    /// The sum of the squares of all entries.
    pub fn squared_norm(&self) -> f64 {
        dense::squared_norm(self.as_ref())
    }

    /// The matrix as faer sees it.
    pub fn as_faer(&self) -> MatRef<'_, T> {
        self.0.as_ref()
    }

    /// The matrix as one of faer.
    pub fn into_faer(self) -> Mat<T> {
        self.0
    }

    pub(crate) fn new(inner: Mat<T>) -> Matrix<T> {
        Matrix(inner)
    }

    pub(crate) fn as_ref(&self) -> MatRef<'_, T> {
        self.0.as_ref()
    }

    fn entries(&self) -> impl Iterator<Item = T> {
        (0..self.rows()).flat_map(move |i| (0..self.columns()).map(move |j| self.0[(i, j)]))
    }
}

impl<T> From<Mat<T>> for Matrix<T> {
    fn from(inner: Mat<T>) -> Matrix<T> {
        Matrix(inner)
    }
}

/// An error unless `found` elements fill the shape.
pub(crate) fn check_length(rows: usize, columns: usize, found: usize) -> Result<(), RandnlaError> {
    match rows.checked_mul(columns) {
        Some(n) if n == found => Ok(()),
        n => Err(RandnlaError::Length { what: "the matrix", expected: n.unwrap_or(usize::MAX), found }),
    }
}

/// An error unless the matrix has this shape.
pub(crate) fn check_shape<T: Scalar>(
    what: &'static str,
    expected: (usize, usize),
    matrix: &Matrix<T>,
) -> Result<(), RandnlaError> {
    let found = (matrix.rows(), matrix.columns());
    if found != expected {
        return Err(RandnlaError::Shape { what, expected, found });
    }
    Ok(())
}

/// `row · m`.
pub(crate) fn row_times(row: &[f64], m: &Matrix) -> Vec<f64> {
    (0..m.columns()).map(|j| row.iter().enumerate().map(|(i, v)| v * m.at(i, j)).sum()).collect()
}

/// An error unless the matrix has entries and all of them are finite. Every decomposition asks this first:
/// NaN makes some of them fail, some loop and some return nonsense.
pub(crate) fn check_factorable<T: Scalar>(
    what: &'static str,
    matrix: &Matrix<T>,
) -> Result<(), RandnlaError> {
    MatrixRef::from(matrix).check(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_in_and_out() {
        let m = Matrix::from_row_major(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        assert_eq!(m.at(1, 0), 4.0);
        assert_eq!(m.to_row_major(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(m.transposed().to_row_major_f64(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(m.product(&m.transposed()).unwrap().to_row_major(), [14.0, 32.0, 32.0, 77.0]);
        assert_eq!(m.squared_norm(), 91.0);
    }

    #[test]
    fn sizes_must_fit() {
        let err = Matrix::from_row_major(2, 3, &[0.0; 5]).unwrap_err();
        assert_eq!(err.to_string(), "the matrix has the wrong length: expected 6, found 5");
        assert!(Matrix::from_row_major(usize::MAX, 2, &[]).is_err());
        let m = Matrix::from_fn(2, 3, |_, _| 1.0);
        assert_eq!(
            m.product(&m).unwrap_err().to_string(),
            "the right factor has the wrong shape: expected 3 x 3, found 2 x 3"
        );
    }
}
