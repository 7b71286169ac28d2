//! Streaming mean and second moment.

use std::sync::Arc;

use faer::{Mat, MatRef};
use margay_tensor::random::Philox;

use crate::bytes::{Reader, Writer};
use crate::thin_root::ThinRoot;
use crate::{Matrix, RandnlaError, dense};

/// Rows per update. Large enough that the update runs at the speed of a matrix product.
const BLOCK_ROWS: usize = 256;

/// Names the signs and buckets of a count sketch.
const SKETCH_SEED: u64 = 0x6772_616d;

/// Accumulates count, sum and sum of outer products of rows `x` of length `dim`, in `f64`.
///
/// The bits depend on the rows and their order only, not on the pieces they arrive in. Moments about the origin are kept,
/// so a centred covariance loses as many digits as the squared mean exceeds the variance by: of sixteen.
///
/// Few rows are kept as they are, `4 dim` bytes each. Of more than a quarter of `dim` the sum of outer products is kept in
/// `8 dim²` bytes, up to [`Gram::MOST_DENSE`]. Beyond, rows are sketched to [`Gram::SKETCHED_ROWS`]: each is added with a
/// random sign to one of as many, in f32 (a count sketch; Charikar, Chen and Farach-Colton, 2002), so that the outer products
/// sum up to what they are on average, with a relative error of about `1 / √SKETCHED_ROWS` in any direction.
///
/// Rows of zeros with a single one, which look up the rows of a table, are counted by the place of the one: the sum of their
/// outer products is diagonal.
#[derive(Clone, Debug)]
pub struct Gram {
    dim: usize,
    count: u64,
    sum: Vec<f64>,
    store: Store,
}

/// What stands for the sum of outer products.
#[derive(Clone, Debug)]
enum Store {
    /// All rows.
    Rows(Arc<Vec<f32>>),
    /// The lower triangle of the sum, and rows of an unfinished block that are not in it. What is above is unspecified.
    Dense { outer: Mat<f64>, pending: Vec<f32> },
    /// Sums of rows with signs, one for each bucket, and sums of the signs.
    Sketched { sums: Arc<Vec<f32>>, signs: Vec<f64> },
    /// Nothing: rows have a single one each, and the sum of outer products has the sum on its diagonal.
    Ones,
}

impl Gram {
    /// The greatest length of rows whose outer products are summed.
    pub const MOST_DENSE: usize = 4096;

    /// The rows that longer ones are sketched to.
    pub const SKETCHED_ROWS: usize = 2048;

    /// An accumulator for rows of this length, which has seen none.
    pub fn new(dim: usize) -> Gram {
        Gram { dim, count: 0, sum: vec![0.0; dim], store: Store::Rows(Arc::default()) }
    }

    /// An accumulator for rows of this length that have a single one each, which has seen none.
    pub fn of_ones(dim: usize) -> Gram {
        Gram { store: Store::Ones, ..Gram::new(dim) }
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
        let store = Store::Dense { outer: outer.as_ref().to_owned(), pending: Vec::new() };
        Ok(Gram { dim, count, sum: sum.to_vec(), store })
    }

    /// All that it has seen, as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.size(self.dim);
        out.word(self.count);
        out.numbers(&self.sum);
        match &self.store {
            Store::Rows(rows) => {
                out.word(0);
                out.floats(rows);
            }
            Store::Dense { outer, pending } => {
                out.word(1);
                out.columns(outer.as_ref(), true);
                out.floats(pending);
            }
            Store::Sketched { sums, signs } => {
                out.word(3);
                out.floats(sums);
                out.numbers(signs);
            }
            Store::Ones => out.word(4),
        }
        out.0
    }

    /// The accumulator of which [`to_bytes`](Gram::to_bytes) gave these bytes, to the last bit; `None` for others.
    pub fn from_bytes(bytes: &[u8]) -> Option<Gram> {
        let mut read = Reader(bytes);
        let (dim, count, sum) = (read.size()?, read.word()?, read.numbers()?);
        let whole = |rows: &[f32]| rows.len().checked_rem(dim).unwrap_or(rows.len()) == 0;
        let (store, fits) = match read.word()? {
            0 => {
                let rows = read.floats()?;
                let fits = whole(&rows) && rows.len() as u64 == count.checked_mul(dim as u64)?;
                (Store::Rows(Arc::new(rows)), fits)
            }
            1 => {
                let (outer, pending) = (read.columns(true)?, read.floats()?);
                let fits = outer.nrows() == dim && outer.ncols() == dim && whole(&pending);
                (Store::Dense { outer, pending }, fits)
            }
            3 => {
                let (sums, signs) = (read.floats()?, read.numbers()?);
                let rows = Gram::SKETCHED_ROWS;
                let fits = rows.checked_mul(dim) == Some(sums.len()) && signs.len() == rows;
                (Store::Sketched { sums: Arc::new(sums), signs }, fits)
            }
            4 => {
                let counts = sum.iter().all(|n| *n >= 0.0 && n.fract() == 0.0);
                (Store::Ones, counts && sum.iter().sum::<f64>() == count as f64)
            }
            _ => return None,
        };
        if !fits || sum.len() != dim {
            return None;
        }
        read.end(Gram { dim, count, sum, store })
    }

    /// Length of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rows seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Takes in rows, given one after another.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless the length is a multiple of `dim`, and [`RandnlaError::NonFinite`],
    /// with the row counted within this call. After an error nothing has been taken in.
    ///
    /// # Panics
    /// For an accumulator of rows with a single one, which [`add_ones`](Gram::add_ones) takes in.
    pub fn add_rows(&mut self, rows: &[f32]) -> Result<(), RandnlaError> {
        let dim = self.dim;
        assert!(self.places().is_none() || rows.is_empty(), "rows with a single one are given by its place");
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
        let first = self.count;
        for row in rows.chunks_exact(dim.max(1)) {
            self.sum.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
        }
        self.count += (rows.len() / dim.max(1)) as u64;
        self.take(rows, first);
        Ok(())
    }

    /// Takes in rows that have a single one each, given by its place.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] for a place that is not below `dim`. After an error nothing has been taken in.
    ///
    /// # Panics
    /// For an accumulator of other rows.
    pub fn add_ones(&mut self, places: &[usize]) -> Result<(), RandnlaError> {
        assert!(self.places().is_some(), "an accumulator of rows of any numbers");
        if let Some(&found) = places.iter().find(|place| **place >= self.dim) {
            return Err(RandnlaError::Length { what: "the rows up to a place", expected: self.dim, found });
        }
        places.iter().for_each(|place| self.sum[*place] += 1.0);
        self.count += places.len() as u64;
        Ok(())
    }

    /// For rows that have a single one each, by place, how often it was there; `None` for other rows.
    pub fn places(&self) -> Option<&[f64]> {
        matches!(self.store, Store::Ones).then_some(&self.sum)
    }

    /// Takes rows into the store, the first of which has this number.
    fn take(&mut self, rows: &[f32], first: u64) {
        let dim = self.dim;
        match &mut self.store {
            Store::Rows(kept) => {
                Arc::make_mut(kept).extend_from_slice(rows);
                let most = if dim <= Gram::MOST_DENSE { dim / 4 } else { Gram::SKETCHED_ROWS };
                if kept.len() <= most * dim {
                    return;
                }
                let all = std::mem::take(kept);
                self.store = match dim <= Gram::MOST_DENSE {
                    true => Store::Dense { outer: Mat::zeros(dim, dim), pending: Vec::new() },
                    false => Store::Sketched {
                        sums: Arc::new(vec![0.0; Gram::SKETCHED_ROWS * dim]),
                        signs: vec![0.0; Gram::SKETCHED_ROWS],
                    },
                };
                self.take(&all, self.count - (all.len() / dim) as u64);
            }
            Store::Dense { outer, pending } => {
                let block = BLOCK_ROWS * dim;
                let mut rest = rows;
                while !rest.is_empty() {
                    let (head, tail) = rest.split_at(rest.len().min(block - pending.len()));
                    rest = tail;
                    if head.len() == block {
                        add_block(outer, head);
                        continue;
                    }
                    pending.extend_from_slice(head);
                    if pending.len() == block {
                        add_block(outer, &std::mem::take(pending));
                    }
                }
            }
            Store::Sketched { sums, signs } => {
                let draw = Philox::new(SKETCH_SEED, dim as u64);
                let sums = Arc::make_mut(sums);
                for (i, row) in rows.chunks_exact(dim).enumerate() {
                    let words = draw.block(first + i as u64);
                    let bucket = words[0] as usize % Gram::SKETCHED_ROWS;
                    let sign = if words[1] & 1 == 0 { 1.0 } else { -1.0 };
                    signs[bucket] += f64::from(sign);
                    sums[bucket * dim..][..dim].iter_mut().zip(row).for_each(|(sum, v)| *sum += sign * v);
                }
            }
            Store::Ones => {}
        }
    }

    /// Takes in all that `other` has seen.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless both have the same `dim`.
    ///
    /// # Panics
    /// Unless both are of rows with a single one, or none is.
    pub fn merge(&mut self, other: &Gram) -> Result<(), RandnlaError> {
        if other.dim != self.dim {
            let what = "a row of the other accumulator";
            return Err(RandnlaError::Length { what, expected: self.dim, found: other.dim });
        }
        assert_eq!(self.places().is_some(), other.places().is_some(), "rows of two kinds");
        if let Store::Rows(rows) = &other.store {
            return self.add_rows(rows);
        }
        if let Store::Rows(rows) = &mut self.store {
            let rows = std::mem::take(rows);
            *self = other.clone();
            return self.add_rows(&rows);
        }
        let dim = self.dim;
        match (&mut self.store, &other.store) {
            (Store::Dense { outer, .. }, Store::Dense { outer: more, .. }) => *outer += more,
            (Store::Sketched { sums, signs }, Store::Sketched { sums: more, signs: others }) => {
                // Signs of their own, so that what meets in a bucket has nothing to do with each other.
                let draw = Philox::new(SKETCH_SEED, dim as u64 + 1);
                let sums = Arc::make_mut(sums);
                for (bucket, other) in others.iter().enumerate() {
                    let word = draw.block(self.count ^ (bucket as u64) << 32)[0];
                    let sign = if word & 1 == 0 { 1.0 } else { -1.0 };
                    signs[bucket] += f64::from(sign) * other;
                    let (sums, more) = (&mut sums[bucket * dim..][..dim], &more[bucket * dim..][..dim]);
                    sums.iter_mut().zip(more).for_each(|(sum, v)| *sum += sign * v);
                }
            }
            (Store::Ones, Store::Ones) => {}
            // Rows of one length go over to one of the first two.
            _ => unreachable!("a length has one store for many rows"),
        }
        self.count += other.count;
        self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
        if let Store::Dense { pending, .. } = &other.store {
            let first = self.count;
            self.take(pending, first);
        }
        Ok(())
    }

    /// The mean of the rows: `[dim]`.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`].
    pub fn mean(&self) -> Result<Vec<f64>, RandnlaError> {
        let count = self.nonzero_count()?;
        Ok(self.sum.iter().map(|s| s / count).collect())
    }

    /// The mean of `x xᵀ`: `[dim, dim]`, symmetric.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`].
    pub fn second_moment(&self) -> Result<Matrix, RandnlaError> {
        let count = self.nonzero_count()?;
        Ok(symmetric(&self.outer(), |_, _, outer| outer / count))
    }

    /// The principal axes of the second moment, as columns, each divided by `(λ / λ̄ + shrinkage)^power`: `[dim, dim]`, where
    /// `λ` is the moment along the axis and `λ̄` the mean of all. With power ½ the rows `x S` have about the same moment
    /// in all directions.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`] and [`RandnlaError::NoConvergence`].
    pub fn scaled_axes(&self, shrinkage: f64, power: f64) -> Result<Matrix, RandnlaError> {
        let moment = self.second_moment()?;
        let (values, axes) = crate::dense::symmetric_eigen(moment.as_ref())?;
        let mean = (values.iter().sum::<f64>() / values.len().max(1) as f64).max(f64::MIN_POSITIVE);
        let scales: Vec<f64> =
            values.iter().map(|value| (value.max(0.0) / mean + shrinkage).powf(-power)).collect();
        Ok(Matrix::from_fn(self.dim, self.dim, |i, j| axes[(i, j)] * scales[j]))
    }

    /// The mean of `(x - mean)(x - mean)ᵀ`: `[dim, dim]`, symmetric. It divides by the count, not by one
    /// less, so that it measures this sample. Variances are raised by what rounding may have taken from the matrix,
    /// `2⁻⁵² dim (count + 16)` times the square of the mean, so that inputs that never vary leave it positive semidefinite.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`].
    pub fn covariance(&self) -> Result<Matrix, RandnlaError> {
        let count = self.nonzero_count()?;
        let sum = &self.sum;
        // A matrix of entries at most `e mᵢ mⱼ` is below `e dim` times the diagonal matrix of `mᵢ²`.
        let relative = self.dim as f64 * (16.0 + count) * f64::EPSILON;
        let rounding = |i: usize| relative * (sum[i] / count).powi(2);
        Ok(symmetric(&self.outer(), |i, j, outer| {
            (outer - sum[i] * sum[j] / count) / count + if i == j { rounding(i) } else { 0.0 }
        }))
    }

    /// Fewer rows than half their length with the same second moment, about the mean if `centred`; `None` where there are
    /// more.
    pub(crate) fn thin_root(&self, centred: bool) -> Result<Option<ThinRoot>, RandnlaError> {
        let (count, mean) = (self.nonzero_count()?, self.mean()?);
        let scale = count.sqrt().recip();
        let (numbers, mut means) = match &self.store {
            Store::Rows(kept) if 2 * self.count <= self.dim as u64 => {
                (kept, vec![1.0; kept.len() / self.dim.max(1)])
            }
            Store::Sketched { sums, signs } if 2 * Gram::SKETCHED_ROWS <= self.dim => (sums, signs.clone()),
            _ => return Ok(None),
        };
        if !centred {
            means.fill(0.0);
        }
        Ok(Some(ThinRoot::new(numbers.clone(), means, mean, scale)))
    }

    fn nonzero_count(&self) -> Result<f64, RandnlaError> {
        match self.count {
            0 => Err(RandnlaError::EmptySample { dim: self.dim }),
            n => Ok(n as f64),
        }
    }

    /// The sum of outer products: its lower triangle.
    fn outer(&self) -> Mat<f64> {
        let mut all = Mat::zeros(self.dim, self.dim);
        match &self.store {
            Store::Rows(rows) | Store::Sketched { sums: rows, .. } => {
                rows.chunks(BLOCK_ROWS * self.dim.max(1)).for_each(|b| add_block(&mut all, b))
            }
            Store::Dense { outer, pending } => {
                all = outer.clone();
                add_block(&mut all, pending);
            }
            Store::Ones => (0..self.dim).for_each(|i| all[(i, i)] = self.sum[i]),
        }
        all
    }
}

fn add_block(outer: &mut Mat<f64>, rows: &[f32]) {
    let dim = outer.nrows();
    let wide: Vec<f64> = rows.iter().map(|&v| f64::from(v)).collect();
    let count = wide.len().checked_div(dim).unwrap_or(0);
    if count > 0 {
        dense::add_gram(outer.as_mut(), MatRef::from_row_major_slice(&wide, count, dim));
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
mod tests;
