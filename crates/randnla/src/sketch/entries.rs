//! The entries of a sketch, in blocks.
//!
//! Numbers of the stream are used as follows. Dense laws: entry `(i, j)` is element `i · n + j` of the whole matrix. Other
//! laws use words of blocks, one block of four words for each draw: the first two words are a position, the lowest bit of
//! the third a sign. Draw `k` of column `j` (SJLT), of row `i` (LESS, rows) is block `j · nonzeros + k` or
//! `i · nonzeros + k`; that of index `j` of factor `k` of a tensor sketch is block `k · 2⁴⁰ + j`; the SRHT draws row `i` by
//! block `i` and takes signs from bits of blocks from `2⁴⁰` on.

use std::ops::Range;

use faer::{Mat, MatRef};
use margay_tensor::random::{Philox, below};

use super::signed::Signed;
use super::{Kind, Law, Single, Sketch};
use crate::{Scalar, Sparse};

impl Single {
    /// The block, row-major, of a dense law.
    pub(super) fn dense<T: Scalar>(
        &self,
        distribution: crate::Distribution,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Vec<T> {
        let (philox, scale) = (self.philox(), T::from_f64(self.scale()));
        let mut block = vec![T::ZERO; rows.len() * columns.len()];
        for (i, row) in rows.zip(block.chunks_exact_mut(columns.len().max(1))) {
            T::fill(distribution, &philox, (i * self.columns + columns.start) as u64, row);
            row.iter_mut().for_each(|v| *v *= scale);
        }
        block
    }

    /// The entries of the block, for a law that is sparse. Costs as much as there are entries in these columns, or in
    /// these rows for laws that draw rows.
    pub(super) fn sparse<T: Scalar>(&self, rows: Range<usize>, columns: Range<usize>) -> Option<Sparse<T>> {
        let (philox, scale) = (self.philox(), self.scale());
        let mut entries: Vec<(usize, usize, T)> = Vec::new();
        let mut push = |i: usize, j: usize, v: f64| {
            if rows.contains(&i) && columns.contains(&j) {
                entries.push((i - rows.start, j - columns.start, T::from_f64(v * scale)));
            }
        };
        match &self.law {
            Law::Dense(_) | Law::Srht => return None,
            Law::Sjlt { nonzeros } => {
                let mut column = vec![(0, 0.0); *nonzeros];
                for j in columns.clone() {
                    self.draw_column(&philox, j, &mut column);
                    column.iter().for_each(|&(i, sign)| push(i, j, sign));
                }
            }
            Law::Less { nonzeros, draw: law } => {
                for i in rows.clone() {
                    for k in 0..*nonzeros {
                        let (bits, sign) = philox.draw((i * nonzeros + k) as u64);
                        let (j, p) = law.index(bits, self.columns);
                        push(i, j, sign / p.sqrt());
                    }
                }
            }
            Law::Rows(law) => {
                for i in rows.clone() {
                    let (j, p) = law.index(philox.draw(i as u64).0, self.columns);
                    push(i, j, 1.0 / p.sqrt());
                }
            }
            Law::Tensor { .. } => {
                let mut column = [(0, 0.0)];
                for j in columns.clone() {
                    self.draw_column(&philox, j, &mut column);
                    column.iter().for_each(|&(i, sign)| push(i, j, sign));
                }
            }
        }
        let shape = (rows.len(), columns.len());
        Some(Sparse::from_entries(shape, crate::sparse::Major::Columns, entries.iter().copied()))
    }

    /// The block, for a law with the same number of entries of the same magnitude in each column, or nothing.
    pub(super) fn signed<T: Scalar>(&self, rows: Range<usize>, columns: Range<usize>) -> Option<Signed<T>> {
        let nonzeros = match &self.law {
            Law::Sjlt { nonzeros } => *nonzeros,
            Law::Tensor { .. } => 1,
            Law::Dense(_) | Law::Less { .. } | Law::Srht | Law::Rows(_) => return None,
        };
        let philox = self.philox();
        let draw = |j, column: &mut [_]| self.draw_column(&philox, j, column);
        Signed::new(rows, columns, nonzeros, self.scale(), draw)
    }

    /// Rows and signs of the entries of a column of a law that draws columns.
    fn draw_column(&self, philox: &Philox, j: usize, column: &mut [(usize, f64)]) {
        if let Law::Tensor { extents } = &self.law {
            let (mut rest, mut row, mut sign) = (j, 0, 1.0);
            for (k, extent) in extents.iter().enumerate().rev() {
                let (bits, s) = philox.draw(Philox::SECOND * k as u64 + (rest % extent) as u64);
                row = (row + below(bits, self.rows)) % self.rows;
                (rest, sign) = (rest / extent, sign * s);
            }
            column.fill((row, sign));
            return;
        }
        philox.draw_set(j, self.rows, column);
    }

    /// The rows of the Hadamard matrix that rows `rows` of an SRHT are.
    pub(super) fn hadamard_rows(&self, rows: Range<usize>) -> Vec<usize> {
        self.philox().draw_order(self.columns.next_power_of_two(), rows)
    }

    /// The signs `D` of these columns of an SRHT.
    pub(super) fn hadamard_signs<T: Scalar>(&self, columns: Range<usize>) -> Vec<T> {
        let mut signs = vec![T::ZERO; columns.len()];
        let first = Philox::SECOND * 128 + columns.start as u64;
        T::fill(crate::Distribution::Sign, &self.philox(), first, &mut signs);
        signs
    }
}

impl Sketch {
    /// All rows of these columns, which are counted from the first of the window.
    pub(super) fn dense<T: Scalar>(&self, columns: Range<usize>) -> Mat<T> {
        let columns = self.columns.start + columns.start..self.columns.start + columns.end;
        let (rows, shape) = (self.rows.clone(), (self.rows(), columns.len()));
        match &self.kind {
            Kind::Single(single) => match &single.law {
                Law::Dense(distribution) => {
                    let block: Vec<T> = single.dense(*distribution, rows, columns);
                    MatRef::from_row_major_slice(&block, shape.0, shape.1).to_owned()
                }
                Law::Srht => {
                    let scale = T::from_f64(single.scale());
                    let picked = single.hadamard_rows(rows);
                    let signs = single.hadamard_signs::<T>(columns.clone());
                    Mat::from_fn(shape.0, shape.1, |i, j| {
                        let odd = (picked[i] & (columns.start + j)).count_ones() & 1 == 1;
                        if odd { -signs[j] * scale } else { signs[j] * scale }
                    })
                }
                Law::Sjlt { .. } | Law::Less { .. } | Law::Rows(_) | Law::Tensor { .. } => {
                    let sparse = single.sparse(rows, columns);
                    sparse.map_or_else(|| Mat::zeros(shape.0, shape.1), |s| s.as_ref().to_dense())
                }
            },
            Kind::Kronecker(factors) => {
                let [a, b] = factors.as_ref();
                let outer = columns.start / b.columns()..columns.end.div_ceil(b.columns());
                let (a, b) = (a.dense::<T>(outer.clone()), b.dense::<T>(0..b.columns()));
                Mat::from_fn(shape.0, shape.1, |i, j| {
                    let (i, j) = (rows.start + i, columns.start + j);
                    let outer = a[(i / b.nrows(), j / b.ncols() - outer.start)];
                    outer * b[(i % b.nrows(), j % b.ncols())]
                })
            }
            Kind::Stacked(_) => {
                let mut out = Mat::zeros(shape.0, shape.1);
                for (weight, part, to) in self.parts() {
                    let local = columns.start - self.columns.start..columns.end - self.columns.start;
                    let block = part.dense::<T>(local);
                    let weight = T::from_f64(weight);
                    for j in 0..block.ncols() {
                        for i in 0..block.nrows() {
                            out[(to.start + i, j)] = weight * block[(i, j)];
                        }
                    }
                }
                out
            }
        }
    }

    /// The parts of a stack that the window meets, cut to it, with their weights and their rows in the window.
    pub(super) fn parts(&self) -> Vec<(f64, Sketch, Range<usize>)> {
        let Kind::Stacked(parts) = &self.kind else { return Vec::new() };
        let mut found = Vec::new();
        let mut first = 0;
        for (weight, part) in parts {
            let begin = self.rows.start.clamp(first, first + part.rows());
            let end = self.rows.end.clamp(first, first + part.rows());
            if begin < end {
                let cut = part.part(begin - first..end - first, self.columns.clone());
                found.push((*weight, cut, begin - self.rows.start..end - self.rows.start));
            }
            first += part.rows();
        }
        found
    }
}
