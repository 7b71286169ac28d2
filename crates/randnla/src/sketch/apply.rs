//! Products with sketches.
//!
//! Whatever the law, the matrix of a sketch is never held as a whole. Dense laws are made a few columns at a time; sparse
//! ones cost as many operations as entries meet; the SRHT transforms columns of its operand; a Kronecker product works on
//! one mode after the other. The right products are the left ones of the transposed operand.

use faer::prelude::ReborrowMut;
use faer::{Mat, MatMut, MatRef};

use super::{Kind, Law, Single, Sketch};
use crate::panel::{self, Kernel, Row};
use crate::view::Storage;
use crate::{Matrix, MatrixRef, RandnlaError, Scalar, dense, hadamard};

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
                Law::Srht => self.add_srht(single, a, out),
                Law::Sjlt { .. } | Law::Less { .. } | Law::Rows(_) | Law::Tensor { .. } => {
                    if let Some(s) = single.sparse::<T>(self.rows.clone(), self.columns.clone()) {
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
                Law::Srht => self.add_transposed_srht(single, a, out),
                Law::Sjlt { .. } | Law::Less { .. } | Law::Rows(_) | Law::Tensor { .. } => {
                    if let Some(s) = single.sparse::<T>(self.rows.clone(), self.columns.clone()) {
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

    fn add_srht<T: Scalar>(&self, single: &Single, a: MatrixRef<'_, T>, out: MatMut<'_, T>) {
        let padded = single.columns.next_power_of_two();
        by_dense_panels(a, padded, out, &mut Srht::new(self, single, false));
    }

    fn add_transposed_srht<T: Scalar>(&self, single: &Single, a: MatrixRef<'_, T>, out: MatMut<'_, T>) {
        let padded = single.columns.next_power_of_two();
        by_dense_panels(a, padded, out, &mut Srht::new(self, single, true));
    }
}

/// The product of an SRHT, or of its transpose, with panels.
struct Srht<T> {
    /// Rows of the Hadamard matrix.
    picked: Vec<usize>,
    signs: Vec<T>,
    /// The first column of the window.
    first: usize,
    scale: T,
    transposed: bool,
}

impl<T: Scalar> Srht<T> {
    fn new(sketch: &Sketch, single: &Single, transposed: bool) -> Srht<T> {
        Srht {
            picked: single.hadamard_rows(sketch.rows.clone()),
            signs: single.hadamard_signs(sketch.columns.clone()),
            first: sketch.columns.start,
            scale: T::from_f64(single.scale()),
            transposed,
        }
    }
}

impl<T: Scalar> Kernel<T> for Srht<T> {
    #[inline(always)]
    fn run<const L: usize>(&mut self, from: &mut [Row<T, L>], to: &mut [Row<T, L>]) {
        let n = self.signs.len();
        if self.transposed {
            let rows = from[..self.picked.len()].to_vec();
            from.fill([T::ZERO; L]);
            self.picked.iter().zip(rows).for_each(|(&i, row)| from[i] = row);
            hadamard::transform(from);
            let whole = from[self.first..self.first + n].iter().zip(&self.signs);
            to.iter_mut().zip(whole).for_each(|(to, (row, sign))| {
                panel::add_scaled(to, *sign * self.scale, row);
            });
            return;
        }
        for (row, sign) in from[..n].iter_mut().zip(&self.signs) {
            for v in row {
                *v *= *sign;
            }
        }
        if self.first > 0 {
            from[..self.first + n].rotate_right(self.first);
        }
        hadamard::transform_rows(from, &self.picked, self.scale, to);
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

/// [`panel::by_panels`] of an operand that may be sparse, of which some columns are dense at a time.
fn by_dense_panels<T: Scalar>(
    a: MatrixRef<'_, T>,
    padded: usize,
    mut out: MatMut<'_, T>,
    kernel: &mut impl Kernel<T>,
) {
    const CHUNK: usize = 16;
    match a.storage() {
        Storage::Dense(a) => panel::by_panels(a, padded, out, kernel),
        Storage::Sparse(sparse) => {
            let columns = sparse.by_columns();
            let columns = MatrixRef::from(&columns);
            for first in (0..a.columns()).step_by(CHUNK) {
                let count = CHUNK.min(a.columns() - first);
                let part = columns.part(0..a.rows(), first..first + count).to_dense();
                let to = out.rb_mut().subcols_mut(first, count);
                panel::by_panels(part.as_ref(), padded, to, kernel);
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
