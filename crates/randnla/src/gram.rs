//! Streaming mean and second moment.

use faer::{Mat, MatRef};

use crate::{Matrix, RandnlaError, dense};

/// Rows per update. Large enough that the update runs at the speed of a matrix product.
const BLOCK_ROWS: usize = 256;

/// Accumulates count, sum and sum of outer products of rows `x` of length `dim`, in `f64`.
///
/// Rows are taken in fixed blocks whatever pieces they arrive in, so the bits depend on the rows and their
/// order only. Memory is `8 dim²` bytes and one block. Moments about the origin are kept, so a centred
/// covariance loses as many digits as the squared mean exceeds the variance by: of sixteen.
#[derive(Clone, Debug)]
pub struct Gram {
    dim: usize,
    /// Rows in `sum` and `outer`.
    count: u64,
    sum: Vec<f64>,
    /// Lower triangle; what is above it is unspecified.
    outer: Mat<f64>,
    /// Rows of an unfinished block.
    pending: Vec<f32>,
}

impl Gram {
    /// An accumulator for rows of this length, which has seen none.
    pub fn new(dim: usize) -> Gram {
        Gram { dim, count: 0, sum: vec![0.0; dim], outer: Mat::zeros(dim, dim), pending: Vec::new() }
    }

    /// An accumulator that has seen `count` rows with this sum (`[dim]`) and this sum of outer products
    /// (`[dim, dim]`, symmetric; its lower triangle is read).
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] or [`RandnlaError::NonFinite`].
    pub fn from_sums(count: u64, sum: &[f64], outer: &Matrix) -> Result<Gram, RandnlaError> {
        let dim = sum.len();
        crate::matrix::check_shape("the sum of outer products", (dim, dim), outer)?;
        if dim > 0 {
            crate::matrix::check_factorable("the sum of outer products", outer)?;
        }
        if let Some((column, &value)) = sum.iter().enumerate().find(|(_, v)| !v.is_finite()) {
            return Err(RandnlaError::NonFinite { what: "the sum of rows", row: 0, column, value });
        }
        Ok(Gram { dim, count, sum: sum.to_vec(), outer: outer.as_ref().to_owned(), pending: Vec::new() })
    }

    /// Length of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rows seen.
    pub fn count(&self) -> u64 {
        self.count + (self.pending.len() / self.dim.max(1)) as u64
    }

    /// Takes in rows, given one after another.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless the length is a multiple of `dim`, and [`RandnlaError::NonFinite`],
    /// with the row counted within this call. After an error nothing has been taken in.
    pub fn add_rows(&mut self, rows: &[f32]) -> Result<(), RandnlaError> {
        let dim = self.dim;
        let whole = rows.len().checked_div(dim).unwrap_or(0) * dim;
        if whole != rows.len() {
            return Err(RandnlaError::Length {
                what: "the last row",
                expected: dim,
                found: rows.len() - whole,
            });
        }
        if let Some((i, &value)) = rows.iter().enumerate().find(|(_, v)| !v.is_finite()) {
            let (row, column) = (i / dim, i % dim);
            return Err(RandnlaError::NonFinite { what: "the sample", row, column, value: value.into() });
        }
        let block = BLOCK_ROWS * dim;
        let mut rest = rows;
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(block - self.pending.len()));
            rest = tail;
            if head.len() == block {
                self.add_block(head);
                continue;
            }
            self.pending.extend_from_slice(head);
            if self.pending.len() == block {
                let full = std::mem::take(&mut self.pending);
                self.add_block(&full);
            }
        }
        Ok(())
    }

    /// Takes in all that `other` has seen.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless both have the same `dim`.
    pub fn merge(&mut self, other: &Gram) -> Result<(), RandnlaError> {
        if other.dim != self.dim {
            let what = "a row of the other accumulator";
            return Err(RandnlaError::Length { what, expected: self.dim, found: other.dim });
        }
        self.count += other.count;
        self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
        self.outer += &other.outer;
        self.add_rows(&other.pending)
    }

    /// The mean of the rows: `[dim]`.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`].
    pub fn mean(&self) -> Result<Vec<f64>, RandnlaError> {
        let count = self.nonzero_count()?;
        Ok(self.sums().0.into_iter().map(|s| s / count).collect())
    }

    /// The mean of `x xᵀ`: `[dim, dim]`, symmetric.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`].
    pub fn second_moment(&self) -> Result<Matrix, RandnlaError> {
        let count = self.nonzero_count()?;
        Ok(symmetric(&self.sums().1, |_, _, outer| outer / count))
    }

    /// The mean of `(x - mean)(x - mean)ᵀ`: `[dim, dim]`, symmetric. It divides by the count, not by one
    /// less, so that it measures this sample exactly.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`].
    pub fn covariance(&self) -> Result<Matrix, RandnlaError> {
        let count = self.nonzero_count()?;
        let (sum, outer) = self.sums();
        Ok(symmetric(&outer, |i, j, outer| (outer - sum[i] * sum[j] / count) / count))
    }

    fn nonzero_count(&self) -> Result<f64, RandnlaError> {
        match self.count() {
            0 => Err(RandnlaError::EmptySample { dim: self.dim }),
            n => Ok(n as f64),
        }
    }

    /// Sum and sum of outer products, with the unfinished block.
    fn sums(&self) -> (Vec<f64>, Mat<f64>) {
        let mut all = self.clone();
        let pending = std::mem::take(&mut all.pending);
        all.add_block(&pending);
        (all.sum, all.outer)
    }

    fn add_block(&mut self, rows: &[f32]) {
        if rows.is_empty() {
            return;
        }
        let wide: Vec<f64> = rows.iter().map(|&v| f64::from(v)).collect();
        for row in wide.chunks_exact(self.dim) {
            self.sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
        }
        let count = wide.len() / self.dim;
        dense::add_gram(self.outer.as_mut(), MatRef::from_row_major_slice(&wide, count, self.dim));
        self.count += count as u64;
    }
}

/// The symmetric matrix whose entry at `i >= j` is `entry(i, j, lower[i, j])`.
fn symmetric(lower: &Mat<f64>, entry: impl Fn(usize, usize, f64) -> f64) -> Matrix {
    Matrix::from_fn(lower.nrows(), lower.ncols(), |i, j| {
        let (i, j) = (i.max(j), i.min(j));
        entry(i, j, lower[(i, j)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Distribution, random_matrix};

    fn rows(count: usize, dim: usize, seed: u64) -> Vec<f32> {
        let noise = random_matrix(Distribution::Gaussian, count, dim, seed, 9);
        noise.to_row_major().iter().enumerate().map(|(i, v)| v * (1.0 + (i % dim) as f32) + 3.0).collect()
    }

    fn assert_close(a: &Matrix, b: &Matrix, tolerance: f64) {
        for (a, b) in a.to_row_major_f64().into_iter().zip(b.to_row_major_f64()) {
            assert!((a - b).abs() <= tolerance, "{a} and {b}");
        }
    }

    #[test]
    fn moments_are_those_of_the_sample() {
        let (count, dim) = (700, 5);
        let x = rows(count, dim, 1);
        let mut gram = Gram::new(dim);
        gram.add_rows(&x).unwrap();
        assert_eq!(gram.count(), 700);
        let x = Matrix::from_row_major(count, dim, &x).unwrap();
        let n = count as f64;
        let mean: Vec<f64> = (0..dim).map(|j| (0..count).map(|i| x.at(i, j)).sum::<f64>() / n).collect();
        for (found, expected) in gram.mean().unwrap().iter().zip(&mean) {
            assert!((found - expected).abs() < 1e-12);
        }
        let centred = Matrix::from_fn(count, dim, |i, j| x.at(i, j) - mean[j]);
        for (found, x) in [(gram.second_moment(), &x), (gram.covariance(), &centred)] {
            let outer = x.transposed().product(x).unwrap();
            assert_close(&found.unwrap(), &Matrix::from_fn(dim, dim, |i, j| outer.at(i, j) / n), 1e-11);
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_pieces() {
        let dim = 3;
        let x = rows(1000, dim, 2);
        let of = |piece: usize| {
            let mut gram = Gram::new(dim);
            x.chunks(piece * dim).for_each(|rows| gram.add_rows(rows).unwrap());
            (gram.count(), gram.mean().unwrap(), gram.second_moment().unwrap())
        };
        for piece in [1, 7, 255, 256, 257, 600] {
            assert_eq!(of(piece), of(1000), "pieces of {piece} rows");
        }
    }

    #[test]
    fn merging_is_seeing_both() {
        let x = rows(900, 4, 3);
        let mut whole = Gram::new(4);
        whole.add_rows(&x).unwrap();
        let (mut left, mut right) = (Gram::new(4), Gram::new(4));
        left.add_rows(&x[..4 * 100]).unwrap();
        right.add_rows(&x[4 * 100..]).unwrap();
        left.merge(&right).unwrap();
        assert_eq!(left.count(), 900);
        assert_close(&left.covariance().unwrap(), &whole.covariance().unwrap(), 1e-11);
        let (sum, outer) = whole.sums();
        let restored = Gram::from_sums(900, &sum, &Matrix::new(outer)).unwrap();
        assert_eq!(restored.covariance().unwrap(), whole.covariance().unwrap());
        assert_eq!(
            left.merge(&Gram::new(3)).unwrap_err().to_string(),
            "a row of the other accumulator has the wrong length: expected 4, found 3"
        );
    }

    #[test]
    fn bad_samples_are_named() {
        let mut gram = Gram::new(2);
        assert_eq!(
            gram.mean().unwrap_err().to_string(),
            "the sample is empty: expected at least 1 row of length 2, found 0"
        );
        assert_eq!(
            gram.add_rows(&[1.0, 2.0, 3.0]).unwrap_err().to_string(),
            "the last row has the wrong length: expected 2, found 1"
        );
        assert_eq!(
            gram.add_rows(&[1.0, 2.0, 3.0, f32::INFINITY]).unwrap_err().to_string(),
            "the sample is not finite: expected a number at row 1, column 1, found inf"
        );
        assert_eq!(gram.count(), 0);
        let outer = Matrix::from_fn(2, 2, |_, _| f64::NAN);
        assert!(matches!(Gram::from_sums(1, &[0.0; 2], &outer), Err(RandnlaError::NonFinite { .. })));
        let mut none = Gram::new(0);
        assert!(none.add_rows(&[]).is_ok() && none.add_rows(&[1.0]).is_err());
    }
}
