//! Products with sketches.
//!
//! Whatever the law, the matrix of a sketch is never held as a whole. Dense laws are made a few columns at a time; sparse
//! ones cost as many operations as entries meet; the SRHT transforms columns of its operand; a Kronecker product works on
//! one mode after the other. The right products are the left ones of the transposed operand.

use faer::prelude::ReborrowMut;
use faer::{Mat, MatMut, MatRef};

use super::srht::Srht;
use super::{Kind, Law, Sketch};
use crate::view::Storage;
use crate::{Matrix, MatrixRef, RandnlaError, Scalar, dense};

/// Columns of a dense law that are made at a time.
const CHUNK: usize = 256;

impl Sketch {
    /// `S · a`, `rows x a.columns()`.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] unless `a` has as many rows as the sketch has columns.
    pub fn apply<'a, T: Scalar>(&self, a: impl Into<MatrixRef<'a, T>>) -> Result<Matrix<T>, RandnlaError> {
        let a = a.into();
        a.check_shape("the operand", (self.columns(), a.columns()))?;
        let mut out = Mat::zeros(self.rows(), a.columns());
        self.add_product(a, out.as_mut());
        Ok(Matrix::new(out))
    }

    /// `Sᵀ · a`, `columns x a.columns()`.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] unless `a` has as many rows as the sketch.
    pub fn apply_transposed<'a, T: Scalar>(
        &self,
        a: impl Into<MatrixRef<'a, T>>,
    ) -> Result<Matrix<T>, RandnlaError> {
        let a = a.into();
        a.check_shape("the operand", (self.rows(), a.columns()))?;
        let mut out = Mat::zeros(self.columns(), a.columns());
        self.add_transposed_product(a, out.as_mut());
        Ok(Matrix::new(out))
    }

    /// `a · S`, `a.rows() x columns`.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] unless `a` has as many columns as the sketch has rows.
    pub fn apply_right<'a, T: Scalar>(
        &self,
        a: impl Into<MatrixRef<'a, T>>,
    ) -> Result<Matrix<T>, RandnlaError> {
        let a = a.into();
        a.check_shape("the operand", (a.rows(), self.rows()))?;
        let mut out = Mat::zeros(a.rows(), self.columns());
        self.add_transposed_product(a.transposed(), out.as_mut().transpose_mut());
        Ok(Matrix::new(out))
    }

    /// `a · Sᵀ`, `a.rows() x rows`.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] unless `a` has as many columns as the sketch.
    pub fn apply_right_transposed<'a, T: Scalar>(
        &self,
        a: impl Into<MatrixRef<'a, T>>,
    ) -> Result<Matrix<T>, RandnlaError> {
        let a = a.into();
        a.check_shape("the operand", (a.rows(), self.columns()))?;
        let mut out = Mat::zeros(a.rows(), self.rows());
        self.add_product(a.transposed(), out.as_mut().transpose_mut());
        Ok(Matrix::new(out))
    }

    /// Adds `S · a` to `out`.
    pub(crate) fn add_product<T: Scalar>(&self, a: MatrixRef<'_, T>, mut out: MatMut<'_, T>) {
        match &self.kind {
            Kind::Single(single) => match &single.law {
                Law::Dense(_) => {
                    for first in (0..self.columns()).step_by(CHUNK) {
                        let chunk = first..self.columns().min(first + CHUNK);
                        let block = self.dense::<T>(chunk.clone());
                        add_dense(block.as_ref(), a.part(chunk, 0..a.columns()), out.rb_mut());
                    }
                }
                Law::Srht => {
                    let s = Srht::new(self, single);
                    by_dense_columns(a, out, |a, out| s.add_product(a, out));
                }
                Law::Sjlt { .. } | Law::Less { .. } | Law::Rows(_) | Law::Tensor { .. } => {
                    let (rows, columns) = (self.rows.clone(), self.columns.clone());
                    if let Storage::Dense(a) = a.storage()
                        && let Some(s) = single.signed::<T>(rows.clone(), columns.clone())
                    {
                        s.add_product(a, out);
                    } else if let Some(s) = single.sparse::<T>(rows, columns) {
                        match a.storage() {
                            Storage::Dense(a) => s.as_ref().add_product(a, out),
                            Storage::Sparse(a) => s.as_ref().add_sparse_product(a, out),
                        }
                    }
                }
            },
            Kind::Kronecker(factors) => {
                let [s, t] = factors.as_ref();
                let inner = t.columns();
                by_column(a, self.columns.start, s.columns() * inner, |column, to| {
                    // The column, the second factor's index fastest, as a matrix `[inner, outer]`.
                    let x = MatRef::from_column_major_slice(column, inner, s.columns());
                    let mut tx = Mat::zeros(t.rows(), s.columns());
                    t.add_product(x.into(), tx.as_mut());
                    let mut whole = Mat::zeros(t.rows(), s.rows());
                    s.add_product(tx.transpose().into(), whole.as_mut().transpose_mut());
                    for (at, i) in self.rows.clone().enumerate() {
                        out[(at, to)] += whole[(i % t.rows(), i / t.rows())];
                    }
                });
            }
            Kind::Stacked(_) => {
                for (weight, part, rows) in self.parts() {
                    let mut product = Mat::zeros(rows.len(), a.columns());
                    part.add_product(a, product.as_mut());
                    let to = out.rb_mut().subrows_mut(rows.start, rows.len());
                    add_scaled(to, weight, product.as_ref());
                }
            }
        }
    }

    /// Adds `Sᵀ · a` to `out`.
    pub(crate) fn add_transposed_product<T: Scalar>(&self, a: MatrixRef<'_, T>, mut out: MatMut<'_, T>) {
        match &self.kind {
            Kind::Single(single) => match &single.law {
                Law::Dense(_) => {
                    for first in (0..self.columns()).step_by(CHUNK) {
                        let chunk = first..self.columns().min(first + CHUNK);
                        let block = self.dense::<T>(chunk.clone());
                        let to = out.rb_mut().subrows_mut(first, chunk.len());
                        add_dense(block.transpose(), a, to);
                    }
                }
                Law::Srht => {
                    let s = Srht::new(self, single);
                    by_dense_columns(a, out, |a, out| s.add_transposed_product(a, out));
                }
                Law::Sjlt { .. } | Law::Less { .. } | Law::Rows(_) | Law::Tensor { .. } => {
                    let (rows, columns) = (self.rows.clone(), self.columns.clone());
                    if let Storage::Dense(a) = a.storage()
                        && let Some(s) = single.signed::<T>(rows.clone(), columns.clone())
                    {
                        s.add_transposed_product(a, out);
                    } else if let Some(s) = single.sparse::<T>(rows, columns) {
                        match a.storage() {
                            Storage::Dense(a) => s.as_ref().transposed().add_product(a, out),
                            Storage::Sparse(a) => s.as_ref().transposed().add_sparse_product(a, out),
                        }
                    }
                }
            },
            Kind::Kronecker(factors) => {
                let [s, t] = factors.as_ref();
                by_column(a, self.rows.start, s.rows() * t.rows(), |column, to| {
                    let x = MatRef::from_column_major_slice(column, t.rows(), s.rows());
                    let mut tx = Mat::zeros(t.columns(), s.rows());
                    t.add_transposed_product(x.into(), tx.as_mut());
                    let mut whole = Mat::zeros(t.columns(), s.columns());
                    s.add_transposed_product(tx.transpose().into(), whole.as_mut().transpose_mut());
                    for (at, j) in self.columns.clone().enumerate() {
                        out[(at, to)] += whole[(j % t.columns(), j / t.columns())];
                    }
                });
            }
            Kind::Stacked(_) => {
                for (weight, part, rows) in self.parts() {
                    let mut product = Mat::zeros(self.columns(), a.columns());
                    part.add_transposed_product(a.part(rows, 0..a.columns()), product.as_mut());
                    add_scaled(out.rb_mut(), weight, product.as_ref());
                }
            }
        }
    }
}

/// Adds `block · a` to `out`.
fn add_dense<T: Scalar>(block: MatRef<'_, T>, a: MatrixRef<'_, T>, mut out: MatMut<'_, T>) {
    match a.storage() {
        Storage::Dense(a) => dense::add_product(out, block, a),
        Storage::Sparse(a) => {
            for (j, to, v) in a.entries() {
                for i in 0..block.nrows() {
                    out[(i, to)] += v * block[(i, j)];
                }
            }
        }
    }
}

fn add_scaled<T: Scalar>(mut to: MatMut<'_, T>, by: f64, x: MatRef<'_, T>) {
    let by = T::from_f64(by);
    for j in 0..x.ncols() {
        for i in 0..x.nrows() {
            to[(i, j)] += by * x[(i, j)];
        }
    }
}

/// Calls `work` with the operand and `out`, or, if it is sparse, with some columns at a time, dense.
fn by_dense_columns<T: Scalar>(
    a: MatrixRef<'_, T>,
    mut out: MatMut<'_, T>,
    mut work: impl FnMut(MatRef<'_, T>, MatMut<'_, T>),
) {
    const CHUNK: usize = 16;
    match a.storage() {
        Storage::Dense(a) => work(a, out),
        Storage::Sparse(sparse) => {
            let columns = sparse.by_columns();
            let columns = MatrixRef::from(&columns);
            for first in (0..a.columns()).step_by(CHUNK) {
                let count = CHUNK.min(a.columns() - first);
                let part = columns.part(0..a.rows(), first..first + count).to_dense();
                work(part.as_ref(), out.rb_mut().subcols_mut(first, count));
            }
        }
    }
}

/// Calls `work` with every column of the operand, placed at `first` in a column of `length` rows, and its number.
fn by_column<T: Scalar>(a: MatrixRef<'_, T>, first: usize, length: usize, mut work: impl FnMut(&[T], usize)) {
    let sorted = match a.storage() {
        Storage::Dense(_) => None,
        Storage::Sparse(s) => Some(s.by_columns()),
    };
    let a = sorted.as_ref().map_or(a, MatrixRef::from);
    let mut column = vec![T::ZERO; length];
    for j in 0..a.columns() {
        column.fill(T::ZERO);
        match a.part(0..a.rows(), j..j + 1).storage() {
            Storage::Dense(m) => (0..m.nrows()).for_each(|i| column[first + i] = m[(i, 0)]),
            Storage::Sparse(m) => m.entries().for_each(|(i, _, v)| column[first + i] += v),
        }
        work(&column, j);
    }
}
