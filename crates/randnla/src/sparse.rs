//! Sparse matrices, compressed by rows or by columns.

use std::ops::Range;

use faer::{Mat, MatMut, MatRef};

use crate::panel::{self, Kernel, Row};
use crate::{RandnlaError, Scalar};

/// A sparse matrix. Its entries are kept row by row or column by column, in ascending order within each.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse<T> {
    shape: (usize, usize),
    by: Major,
    /// Where the entries of each row (or column) begin, and the end of the last.
    offsets: Vec<usize>,
    /// The column (or row) of each entry.
    indices: Vec<usize>,
    values: Vec<T>,
}

/// What the entries are sorted by first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Major {
    Rows,
    Columns,
}

impl Major {
    fn other(self) -> Major {
        match self {
            Major::Rows => Major::Columns,
            Major::Columns => Major::Rows,
        }
    }
}

impl<T: Scalar> Sparse<T> {
    /// A matrix in compressed sparse rows: row `i` has the entries `offsets[i]..offsets[i + 1]`, of which `indices`
    /// holds the columns. Entries of a row may come in any order; those at the same place are added up.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless there are `rows + 1` offsets and as many indices as values, and
    /// [`RandnlaError::Structure`] if offsets fall or reach beyond the entries, or a column does not exist.
    pub fn from_csr(
        rows: usize,
        columns: usize,
        offsets: &[usize],
        indices: &[usize],
        values: &[T],
    ) -> Result<Sparse<T>, RandnlaError> {
        Sparse::compressed((rows, columns), Major::Rows, offsets, indices, values)
    }

    /// A matrix in compressed sparse columns: column `j` has the entries `offsets[j]..offsets[j + 1]`, of which
    /// `indices` holds the rows.
    ///
    /// # Errors
    /// Those of [`from_csr`](Sparse::from_csr).
    pub fn from_csc(
        rows: usize,
        columns: usize,
        offsets: &[usize],
        indices: &[usize],
        values: &[T],
    ) -> Result<Sparse<T>, RandnlaError> {
        Sparse::compressed((rows, columns), Major::Columns, offsets, indices, values)
    }

    /// A matrix of entries `(row, column, value)` in any order; those at the same place are added up.
    ///
    /// # Errors
    /// [`RandnlaError::Structure`] if a place does not exist.
    pub fn from_coo(
        rows: usize,
        columns: usize,
        entries: &[(usize, usize, T)],
    ) -> Result<Sparse<T>, RandnlaError> {
        let outside = entries.iter().find(|(i, j, _)| *i >= rows || *j >= columns);
        if let Some(&(row, column, _)) = outside {
            let limit = (rows, columns);
            let (found, limit) = if row >= rows { (row, limit.0) } else { (column, limit.1) };
            return Err(RandnlaError::Structure { what: "an index", limit, found });
        }
        Ok(Sparse::from_entries((rows, columns), Major::Rows, entries.iter().copied()))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.shape.0
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.shape.1
    }

    /// Number of entries that are stored.
    pub fn entries(&self) -> usize {
        self.values.len()
    }

    pub(crate) fn as_ref(&self) -> SparseRef<'_, T> {
        let minors = match self.by {
            Major::Rows => self.shape.1,
            Major::Columns => self.shape.0,
        };
        SparseRef {
            by: self.by,
            offsets: &self.offsets,
            indices: &self.indices,
            values: &self.values,
            first_minor: 0,
            minors,
            whole: true,
        }
    }

    fn compressed(
        shape: (usize, usize),
        by: Major,
        offsets: &[usize],
        indices: &[usize],
        values: &[T],
    ) -> Result<Sparse<T>, RandnlaError> {
        let (majors, minors) = match by {
            Major::Rows => shape,
            Major::Columns => (shape.1, shape.0),
        };
        let length = |what, expected, found| match expected == found {
            true => Ok(()),
            false => Err(RandnlaError::Length { what, expected, found }),
        };
        length("the list of offsets", majors.saturating_add(1), offsets.len())?;
        length("the list of values", indices.len(), values.len())?;
        let mut least = 0;
        for &offset in offsets {
            if offset < least || offset > indices.len() {
                let limit = indices.len() + 1;
                return Err(RandnlaError::Structure { what: "an offset", limit, found: offset });
            }
            least = offset;
        }
        if let Some(&found) = indices.iter().find(|&&i| i >= minors) {
            return Err(RandnlaError::Structure { what: "an index", limit: minors, found });
        }
        let entries = (0..majors).flat_map(|i| {
            (offsets[i]..offsets[i + 1]).map(move |at| match by {
                Major::Rows => (i, indices[at], values[at]),
                Major::Columns => (indices[at], i, values[at]),
            })
        });
        Ok(Sparse::from_entries(shape, by, entries))
    }

    /// Sorts entries that are in range, by minor and then by major coordinates with one counting sort each, and adds
    /// up those at the same place in the order in which they come.
    pub(crate) fn from_entries(
        shape: (usize, usize),
        by: Major,
        entries: impl Iterator<Item = (usize, usize, T)> + Clone,
    ) -> Sparse<T> {
        let entries = entries.map(|(i, j, v)| match by {
            Major::Rows => (i, j, v),
            Major::Columns => (j, i, v),
        });
        let (majors, minors) = match by {
            Major::Rows => shape,
            Major::Columns => (shape.1, shape.0),
        };
        let by_minor = counting_sort(minors, entries, |e| e.1).1;
        let (starts, sorted) = counting_sort(majors, by_minor.iter().copied(), |e| e.0);
        let (mut offsets, mut indices, mut values) = (Vec::with_capacity(majors + 1), Vec::new(), Vec::new());
        offsets.push(0);
        for i in 0..majors {
            let begin = indices.len();
            for &(_, minor, value) in &sorted[starts[i]..starts[i + 1]] {
                match values.last_mut() {
                    Some(last) if indices.len() > begin && indices.last() == Some(&minor) => *last += value,
                    _ => {
                        indices.push(minor);
                        values.push(value);
                    }
                }
            }
            offsets.push(indices.len());
        }
        Sparse { shape, by, offsets, indices, values }
    }
}

/// Entries in ascending order of `key` below `keys`, stable, and where those of each key begin.
fn counting_sort<T: Copy + Default>(
    keys: usize,
    entries: impl Iterator<Item = (usize, usize, T)> + Clone,
    key: impl Fn(&(usize, usize, T)) -> usize,
) -> (Vec<usize>, Vec<(usize, usize, T)>) {
    let mut starts = vec![0usize; keys + 1];
    entries.clone().for_each(|e| starts[key(&e) + 1] += 1);
    for k in 0..keys {
        starts[k + 1] += starts[k];
    }
    let mut next = starts.clone();
    let mut sorted = vec![(0, 0, T::default()); starts[keys]];
    for e in entries {
        let at = &mut next[key(&e)];
        sorted[*at] = e;
        *at += 1;
    }
    (starts, sorted)
}

/// A block of a sparse matrix, or of its transpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SparseRef<'a, T> {
    by: Major,
    offsets: &'a [usize],
    indices: &'a [usize],
    values: &'a [T],
    first_minor: usize,
    minors: usize,
    /// Whether all minor coordinates belong to the block.
    whole: bool,
}

impl<'a, T: Scalar> SparseRef<'a, T> {
    fn majors(self) -> usize {
        self.offsets.len() - 1
    }

    pub(crate) fn shape(self) -> (usize, usize) {
        match self.by {
            Major::Rows => (self.majors(), self.minors),
            Major::Columns => (self.minors, self.majors()),
        }
    }

    pub(crate) fn transposed(self) -> SparseRef<'a, T> {
        SparseRef { by: self.by.other(), ..self }
    }

    /// The entries with rows and columns in these ranges, which must exist.
    pub(crate) fn block(self, rows: Range<usize>, columns: Range<usize>) -> SparseRef<'a, T> {
        let (majors, minors) = match self.by {
            Major::Rows => (rows, columns),
            Major::Columns => (columns, rows),
        };
        SparseRef {
            offsets: &self.offsets[majors.start..majors.end + 1],
            first_minor: self.first_minor + minors.start,
            minors: minors.len(),
            whole: self.whole && minors.len() == self.minors,
            ..self
        }
    }

    /// Minor coordinates and values of the entries with major coordinate `i`.
    #[inline(always)]
    fn vector(self, i: usize) -> impl Iterator<Item = (usize, T)> + Clone {
        let range = self.offsets[i]..self.offsets[i + 1];
        let (mut indices, mut values) = (&self.indices[range.clone()], &self.values[range]);
        if !self.whole {
            let begin = indices.partition_point(|&j| j < self.first_minor);
            let end = indices.partition_point(|&j| j < self.first_minor + self.minors);
            (indices, values) = (&indices[begin..end], &values[begin..end]);
        }
        let shift = self.first_minor;
        indices.iter().map(move |&j| j - shift).zip(values.iter().copied())
    }

    /// All entries, as row, column and value.
    pub(crate) fn entries(self) -> impl Iterator<Item = (usize, usize, T)> + Clone {
        (0..self.majors()).flat_map(move |i| {
            self.vector(i).map(move |(j, v)| match self.by {
                Major::Rows => (i, j, v),
                Major::Columns => (j, i, v),
            })
        })
    }

    /// The same entries, sorted by columns first.
    pub(crate) fn by_columns(self) -> Sparse<T> {
        Sparse::from_entries(self.shape(), Major::Columns, self.entries())
    }

    /// Adds `self · x` to `out`.
    pub(crate) fn add_product(self, x: MatRef<'_, T>, out: MatMut<'_, T>) {
        panel::by_panels(x, out, &mut Product(self));
    }

    /// Adds `self · right` to `out`, for a sparse right factor. Costs a few operations per pair of entries that meet.
    pub(crate) fn add_sparse_product(self, right: SparseRef<'_, T>, mut out: MatMut<'_, T>) {
        let left = self.by_columns();
        for (j, c, v) in right.entries() {
            for (r, s) in left.as_ref().vector(j) {
                out[(r, c)] += s * v;
            }
        }
    }

    pub(crate) fn to_dense(self) -> Mat<T> {
        let (rows, columns) = self.shape();
        let mut dense = Mat::zeros(rows, columns);
        self.entries().for_each(|(i, j, v)| dense[(i, j)] += v);
        dense
    }
}

/// The product of a sparse matrix with panels.
struct Product<'a, T>(SparseRef<'a, T>);

impl<T: Scalar> Kernel<T> for Product<'_, T> {
    #[inline(always)]
    fn run<const L: usize>(&mut self, from: &[Row<T, L>], to: &mut [Row<T, L>]) {
        match self.0.by {
            Major::Rows => {
                for (i, to) in to.iter_mut().enumerate() {
                    let mut sum = *to;
                    for (j, v) in self.0.vector(i) {
                        panel::add_scaled(&mut sum, v, &from[j]);
                    }
                    *to = sum;
                }
            }
            Major::Columns => {
                for (i, row) in from.iter().enumerate() {
                    for (j, v) in self.0.vector(i) {
                        panel::add_scaled(&mut to[j], v, row);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_agree() {
        let entries = [(2, 0, 5.0), (0, 1, 1.0), (2, 3, -2.0), (0, 1, 2.0), (1, 2, 4.0)];
        let coo = Sparse::from_coo(3, 4, &entries).unwrap();
        let csr = Sparse::from_csr(3, 4, &[0, 1, 2, 4], &[1, 2, 3, 0], &[3.0, 4.0, -2.0, 5.0]).unwrap();
        let csc = Sparse::from_csc(3, 4, &[0, 1, 2, 3, 4], &[2, 0, 1, 2], &[5.0, 3.0, 4.0, -2.0]).unwrap();
        assert_eq!(coo, csr);
        assert_eq!(csr.entries(), 4);
        let dense = Mat::from_fn(3, 4, |i, j| [[0., 3., 0., 0.], [0., 0., 4., 0.], [5., 0., 0., -2.]][i][j]);
        for s in [&csr, &csc] {
            assert_eq!(s.as_ref().to_dense(), dense);
            assert_eq!(s.as_ref().transposed().to_dense(), dense.transpose().to_owned());
            assert_eq!(s.as_ref().block(1..3, 0..3).to_dense(), dense.submatrix(1, 0, 2, 3).to_owned());
            assert_eq!(s.as_ref().by_columns(), csc);
            assert_eq!(s.as_ref().transposed().by_columns().as_ref().transposed().to_dense(), dense);
        }
    }

    #[test]
    fn wrong_structures_are_named() {
        let of = |offsets: &[usize], indices: &[usize], values: &[f32]| {
            Sparse::from_csr(2, 3, offsets, indices, values).unwrap_err().to_string()
        };
        assert_eq!(
            of(&[0, 1], &[0], &[1.0]),
            "the list of offsets has the wrong length: expected 3, found 2"
        );
        assert_eq!(of(&[0, 1, 1], &[0], &[]), "the list of values has the wrong length: expected 1, found 0");
        assert_eq!(
            of(&[0, 2, 1], &[0, 1], &[1.0, 1.0]),
            "an offset of a sparse matrix is out of order or range: expected less than 3, found 1"
        );
        assert_eq!(
            of(&[0, 1, 1], &[3], &[1.0]),
            "an index of a sparse matrix is out of order or range: expected less than 3, found 3"
        );
        let err = Sparse::from_coo(2, 3, &[(0, 0, 1.0), (2, 1, 1.0)]).unwrap_err();
        assert_eq!(
            err.to_string(),
            "an index of a sparse matrix is out of order or range: expected less than 2, found 2"
        );
    }
}
