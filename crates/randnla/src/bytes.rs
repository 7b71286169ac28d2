//! What was measured and decomposed, as bytes that are read back bit by bit: for whoever keeps it in files.
//!
//! Little-endian words of 64 bits, each list behind its length. Readers refuse what they did not write; they do not find out
//! whether numbers were changed, which is for a hash.

use faer::{Mat, MatRef};

use crate::Matrix;

/// Writes words.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn word(&mut self, n: u64) {
        self.0.extend(n.to_le_bytes());
    }

    pub(crate) fn size(&mut self, n: usize) {
        self.word(n as u64);
    }

    pub(crate) fn numbers(&mut self, numbers: &[f64]) {
        self.size(numbers.len());
        numbers.iter().for_each(|x| self.word(x.to_bits()));
    }

    pub(crate) fn floats(&mut self, numbers: &[f32]) {
        self.size(numbers.len());
        numbers.iter().for_each(|x| self.0.extend(x.to_le_bytes()));
    }

    /// Columns one after the other, each from the diagonal on where `is_lower`.
    pub(crate) fn columns(&mut self, a: MatRef<'_, f64>, is_lower: bool) {
        self.size(a.nrows());
        self.size(a.ncols());
        for j in 0..a.ncols() {
            let first = if is_lower { j.min(a.nrows()) } else { 0 };
            (first..a.nrows()).for_each(|i| self.word(a[(i, j)].to_bits()));
        }
    }

    pub(crate) fn matrix(&mut self, a: &Matrix) {
        self.columns(a.as_ref(), false);
    }
}

/// Reads what [`Writer`] wrote; `None` for anything else.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl Reader<'_> {
    pub(crate) fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }

    pub(crate) fn size(&mut self) -> Option<usize> {
        usize::try_from(self.word()?).ok()
    }

    fn number(&mut self) -> Option<f64> {
        self.word().map(f64::from_bits)
    }

    /// A number of elements of so many bytes that are there.
    fn count(&mut self, bytes: usize) -> Option<usize> {
        self.size().filter(|n| n.checked_mul(bytes).is_some_and(|n| n <= self.0.len()))
    }

    pub(crate) fn numbers(&mut self) -> Option<Vec<f64>> {
        (0..self.count(8)?).map(|_| self.number()).collect()
    }

    pub(crate) fn floats(&mut self) -> Option<Vec<f32>> {
        let count = self.count(4)?;
        let (all, rest) = self.0.split_at(4 * count);
        self.0 = rest;
        Some(all.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    pub(crate) fn columns(&mut self, is_lower: bool) -> Option<Mat<f64>> {
        let (rows, columns) = (self.size()?, self.size()?);
        let elements = rows.checked_mul(columns)?.checked_mul(8)?;
        // A triangle has about half of them.
        if elements > self.0.len().checked_mul(if is_lower { 2 } else { 1 })? {
            return None;
        }
        let mut a = Mat::zeros(rows, columns);
        for j in 0..columns {
            for i in if is_lower { j.min(rows) } else { 0 }..rows {
                a[(i, j)] = self.number()?;
            }
        }
        Some(a)
    }

    pub(crate) fn matrix(&mut self) -> Option<Matrix> {
        self.columns(false).map(Matrix::new)
    }

    /// The result, if nothing is left.
    pub(crate) fn end<T>(self, result: T) -> Option<T> {
        self.0.is_empty().then_some(result)
    }
}
