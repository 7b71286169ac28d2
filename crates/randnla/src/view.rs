//! What drivers read: dense and sparse matrices, and blocks and transposes of them.

use std::ops::Range;

use faer::{Mat, MatMut, MatRef};

use crate::panel::{self, Work};
use crate::sparse::SparseRef;
use crate::{Matrix, RandnlaError, Scalar, Sparse, dense, vector};

/// A matrix that is read: dense, in any layout, or sparse. Copying it copies no numbers.
///
/// Drivers and sketches take whatever converts into one: [`Matrix`], [`Sparse`], and matrices of faer.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a, T>(Storage<'a, T>);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Storage<'a, T> {
    Dense(MatRef<'a, T>),
    Sparse(SparseRef<'a, T>),
}

impl<'a, T: Scalar> From<&'a Matrix<T>> for MatrixRef<'a, T> {
    fn from(m: &'a Matrix<T>) -> Self {
        MatrixRef(Storage::Dense(m.as_ref()))
    }
}

impl<'a, T: Scalar> From<&'a Mat<T>> for MatrixRef<'a, T> {
    fn from(m: &'a Mat<T>) -> Self {
        MatrixRef(Storage::Dense(m.as_ref()))
    }
}

impl<'a, T: Scalar> From<MatRef<'a, T>> for MatrixRef<'a, T> {
    fn from(m: MatRef<'a, T>) -> Self {
        MatrixRef(Storage::Dense(m))
    }
}

impl<'a, T: Scalar> From<&'a Sparse<T>> for MatrixRef<'a, T> {
    fn from(m: &'a Sparse<T>) -> Self {
        MatrixRef(Storage::Sparse(m.as_ref()))
    }
}

impl<'a, T: Scalar> MatrixRef<'a, T> {
    /// A row-major slice as a matrix.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless there are `rows * columns` elements.
    pub fn from_row_major(rows: usize, columns: usize, data: &'a [T]) -> Result<Self, RandnlaError> {
        crate::matrix::check_length(rows, columns, data.len())?;
        Ok(MatRef::from_row_major_slice(data, rows, columns).into())
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.shape().0
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.shape().1
    }

    /// The transpose.
    pub fn transposed(self) -> Self {
        MatrixRef(match self.0 {
            Storage::Dense(m) => Storage::Dense(m.transpose()),
            Storage::Sparse(m) => Storage::Sparse(m.transposed()),
        })
    }

    /// The block of these rows and columns.
    ///
    /// # Errors
    /// [`RandnlaError::Window`] if they do not exist.
    pub fn block(self, rows: Range<usize>, columns: Range<usize>) -> Result<Self, RandnlaError> {
        check_window(&rows, self.rows())?;
        check_window(&columns, self.columns())?;
        Ok(self.part(rows, columns))
    }

    pub(crate) fn part(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        MatrixRef(match self.0 {
            Storage::Dense(m) => {
                Storage::Dense(m.submatrix(rows.start, columns.start, rows.len(), columns.len()))
            }
            Storage::Sparse(m) => Storage::Sparse(m.block(rows, columns)),
        })
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        match self.0 {
            Storage::Dense(m) => m.shape(),
            Storage::Sparse(m) => m.shape(),
        }
    }

    pub(crate) fn storage(&self) -> Storage<'a, T> {
        self.0
    }

    /// `self · x`.
    pub(crate) fn times(&self, x: MatRef<'_, T>) -> Mat<T> {
        let mut out = Mat::zeros(self.rows(), x.ncols());
        self.add_times(x, out.as_mut());
        out
    }

    /// `self · x` for one column, in as little time as it takes to read the matrix. Products are rounded before they are
    /// added.
    pub(crate) fn times_vector(&self, x: &Mat<T>) -> Mat<T> {
        match self.0 {
            Storage::Dense(m) if m.row_stride() == 1 || m.col_stride() == 1 => {
                let product = vector::product(m, x.col(0));
                MatRef::from_column_major_slice(&product, m.nrows(), 1).to_owned()
            }
            Storage::Dense(_) | Storage::Sparse(_) => self.times(x.as_ref()),
        }
    }

    /// Adds `self · x` to `out`.
    pub(crate) fn add_times(&self, x: MatRef<'_, T>, out: MatMut<'_, T>) {
        match self.0 {
            Storage::Dense(m) => dense::add_product(out, m, x),
            Storage::Sparse(m) => m.add_product(x, out),
        }
    }

    /// The sum of the squares of all entries.
    pub fn squared_norm(&self) -> f64 {
        match self.0 {
            Storage::Dense(m) if m.row_stride().unsigned_abs() <= m.col_stride().unsigned_abs() => {
                dense::squared_norm(m)
            }
            Storage::Dense(m) => dense::squared_norm(m.transpose()),
            Storage::Sparse(m) => m.entries().map(|(_, _, v)| v.to_f64().powi(2)).sum(),
        }
    }

    /// The matrix, dense.
    pub fn to_dense(&self) -> Matrix<T> {
        Matrix::new(match self.0 {
            Storage::Dense(m) => m.to_owned(),
            Storage::Sparse(m) => m.to_dense(),
        })
    }

    /// These columns, dense.
    pub(crate) fn select_columns(&self, columns: &[usize]) -> Mat<T> {
        let mut out = Mat::zeros(self.rows(), columns.len());
        for (to, &from) in columns.iter().enumerate() {
            match self.part(0..self.rows(), from..from + 1).0 {
                Storage::Dense(m) => out.col_mut(to).copy_from(m.col(0)),
                Storage::Sparse(m) => m.entries().for_each(|(i, _, v)| out[(i, to)] += v),
            }
        }
        out
    }

    /// An error unless the matrix has entries and all of them are finite. Every decomposition asks this first: NaN
    /// makes some of them fail, some loop and some return nonsense.
    pub(crate) fn check(&self, what: &'static str) -> Result<(), RandnlaError> {
        let (rows, columns) = self.shape();
        if rows == 0 || columns == 0 {
            return Err(RandnlaError::Empty { what, rows, columns });
        }
        let wrong = match self.0 {
            Storage::Dense(m) if all_finite(m) => None,
            Storage::Dense(m) => (0..columns)
                .flat_map(|j| (0..rows).map(move |i| (i, j, m[(i, j)])))
                .find(|(_, _, v)| !v.to_f64().is_finite()),
            Storage::Sparse(m) => m.entries().find(|(_, _, v)| !v.to_f64().is_finite()),
        };
        match wrong {
            None => Ok(()),
            Some((row, column, v)) => Err(RandnlaError::NonFinite { what, row, column, value: v.to_f64() }),
        }
    }

    /// [`squared_norm`](MatrixRef::squared_norm), and the errors of [`check`](MatrixRef::check), in one pass.
    pub(crate) fn checked_norm(&self, what: &'static str) -> Result<f64, RandnlaError> {
        let norm = self.squared_norm();
        // Squares may overflow, so that a norm that is not finite says nothing yet.
        let (rows, columns) = self.shape();
        if rows == 0 || columns == 0 || !norm.is_finite() {
            self.check(what)?;
        }
        Ok(norm)
    }

    /// An error unless the matrix has this shape.
    pub(crate) fn check_shape(
        &self,
        what: &'static str,
        expected: (usize, usize),
    ) -> Result<(), RandnlaError> {
        match self.shape() == expected {
            true => Ok(()),
            false => Err(RandnlaError::Shape { what, expected, found: self.shape() }),
        }
    }
}

/// Whether all numbers are finite: a sum of zero multiples is 0 only then.
fn all_finite<T: Scalar>(m: MatRef<'_, T>) -> bool {
    let m = if m.row_stride().unsigned_abs() <= m.col_stride().unsigned_abs() { m } else { m.transpose() };
    let mut finite = true;
    panel::vectorized(AllFinite { m, finite: &mut finite });
    finite
}

struct AllFinite<'a, T> {
    m: MatRef<'a, T>,
    finite: &'a mut bool,
}

impl<T: Scalar> Work for AllFinite<'_, T> {
    #[inline(always)]
    fn run(self) {
        // Sums that do not wait for each other.
        const SUMS: usize = 32;
        for j in 0..self.m.ncols() {
            let mut sums = [T::ZERO; SUMS];
            if let Some(column) = self.m.col(j).try_as_col_major() {
                let (parts, rest) = column.as_slice().as_chunks::<SUMS>();
                for part in parts {
                    for k in 0..SUMS {
                        sums[k] += part[k] * T::ZERO;
                    }
                }
                for v in rest {
                    sums[0] += *v * T::ZERO;
                }
            } else {
                for i in 0..self.m.nrows() {
                    sums[0] += self.m[(i, j)] * T::ZERO;
                }
            }
            for sum in sums {
                *self.finite &= sum == T::ZERO;
            }
            if !*self.finite {
                return;
            }
        }
    }
}

/// An error unless the range lies in `0..extent`.
pub(crate) fn check_window(range: &Range<usize>, extent: usize) -> Result<(), RandnlaError> {
    match range.start <= range.end && range.end <= extent {
        true => Ok(()),
        false => Err(RandnlaError::Window { start: range.start, end: range.end, extent }),
    }
}

/// A linear map that is known by its products alone: a matrix, or whatever can be applied like one.
pub trait LinearOperator {
    /// The numbers it works on.
    type Scalar: Scalar;

    /// Rows and columns.
    fn shape(&self) -> (usize, usize);

    /// The product with `x`, which has as many rows as the operator has columns.
    fn apply(&self, x: MatRef<'_, Self::Scalar>) -> Mat<Self::Scalar>;

    /// The product of the transpose with `x`, which has as many rows as the operator.
    fn apply_transposed(&self, x: MatRef<'_, Self::Scalar>) -> Mat<Self::Scalar>;
}

impl<T: Scalar> LinearOperator for MatrixRef<'_, T> {
    type Scalar = T;

    fn shape(&self) -> (usize, usize) {
        MatrixRef::shape(self)
    }

    fn apply(&self, x: MatRef<'_, T>) -> Mat<T> {
        self.times(x)
    }

    fn apply_transposed(&self, x: MatRef<'_, T>) -> Mat<T> {
        self.transposed().times(x)
    }
}

macro_rules! operators {
    ($($matrix:ident),*) => {
        $(impl<T: Scalar> LinearOperator for $matrix<T> {
            type Scalar = T;

            fn shape(&self) -> (usize, usize) {
                MatrixRef::from(self).shape()
            }

            fn apply(&self, x: MatRef<'_, T>) -> Mat<T> {
                MatrixRef::from(self).times(x)
            }

            fn apply_transposed(&self, x: MatRef<'_, T>) -> Mat<T> {
                MatrixRef::from(self).transposed().times(x)
            }
        })*
    };
}

operators!(Matrix, Sparse);

/// An error unless the operator is square and not empty; its size.
pub(crate) fn check_square(
    what: &'static str,
    operator: &impl LinearOperator,
) -> Result<usize, RandnlaError> {
    match operator.shape() {
        (0, columns) => Err(RandnlaError::Empty { what, rows: 0, columns }),
        (n, columns) if n == columns => Ok(n),
        found => Err(RandnlaError::Shape { what, expected: (found.0, found.0), found }),
    }
}
