//! Least squares between two streams of vectors, of full and of reduced rank.
//!
//! For rows `x` and targets `y` the weight `M` and the bias `b` with the least mean of `‖y - x M - b‖²` are
//! `M = C⁻¹ D`, `b = ȳ - x̄ M`, with the covariance `C` of `x` and the covariance `D` between `x` and `y`. Among
//! weights of rank `k` the best is the low-rank approximation of `M` whitened by `C` (Izenman, *Reduced-rank
//! regression for the multivariate linear model*, 1975); its factors are those of [`LowRank`](crate::LowRank). The estimate is
//! shrunk towards a weight that is known beforehand: where the sample says nothing, that one stays.
//!
//! Only second moments are kept, so that memory does not grow with the number of rows.

mod fit_errors;
mod reduced_rank;

use faer::{Mat, MatRef};

pub use self::fit_errors::{FitError, FitErrors};
pub use self::reduced_rank::ReducedRank;
use crate::matrix::row_times;
use crate::{
    Centring, Conditioning, Factors, LowRankOptions, Matrix, RandnlaError, RsvdOptions, Whitening, dense,
};

/// Rows per update.
const BLOCK_ROWS: usize = 2048;

/// Second moments of pairs of rows.
///
/// Products are summed in `f32` over at most 2048 rows and from there on in `f64`, about the mean of the first rows, so
/// that moments about the mean have a relative error of about 1e-6 however far the mean is from 0.
/// The bits depend on the rows, their order and the pieces in which they arrive. Memory is
/// `8 d_in (d_in + d_out)` bytes.
#[derive(Clone, Debug)]
pub struct Regression {
    count: u64,
    x: Stream,
    y: Stream,
    /// Sum of `xᵀ x` about the origin of `x`: lower triangle; what is above it is unspecified.
    xx: Mat<f64>,
    /// Sum of `xᵀ y` about both origins.
    xy: Mat<f64>,
    /// Sum of `‖y‖²` about the origin of `y`.
    yy: f64,
}

/// One of two streams of rows.
#[derive(Clone, Debug)]
struct Stream {
    /// What all sums are about: the mean of the rows that came first.
    origin: Vec<f64>,
    /// Sum of the rows about the origin.
    sum: Vec<f64>,
}

/// Rows about an origin, divided by a power of two that makes the greatest of their magnitudes about 1.
struct Block {
    rows: Vec<f32>,
    scale: f64,
    /// Sum of their squares, before the division.
    squares: f64,
}

impl Stream {
    fn new(dim: usize) -> Stream {
        Stream { origin: vec![0.0; dim], sum: vec![0.0; dim] }
    }

    fn dim(&self) -> usize {
        self.origin.len()
    }

    /// Begins with these rows.
    fn begin(&mut self, rows: &[f32]) {
        let share = (rows.len() / self.dim()) as f64;
        for row in rows.chunks_exact(self.dim()) {
            self.origin.iter_mut().zip(row).for_each(|(o, v)| *o += f64::from(*v) / share);
        }
    }

    /// Adds rows to their sum.
    fn take(&mut self, rows: &[f32]) -> Block {
        let (mut greatest, mut squares) = (0f64, 0f64);
        for row in rows.chunks_exact(self.dim()) {
            for ((sum, v), origin) in self.sum.iter_mut().zip(row).zip(&self.origin) {
                let about = f64::from(*v) - origin;
                *sum += about;
                squares += about * about;
                greatest = greatest.max(about.abs());
            }
        }
        let scale = if greatest == 0.0 { 1.0 } else { greatest.log2().ceil().exp2() };
        let inverse = scale.recip();
        let mut scaled = Vec::with_capacity(rows.len());
        for row in rows.chunks_exact(self.dim()) {
            let about = row.iter().zip(&self.origin).map(|(v, o)| ((f64::from(*v) - o) * inverse) as f32);
            scaled.extend(about);
        }
        Block { rows: scaled, scale, squares }
    }

    /// The mean of the rows, of which there are so many.
    fn mean(&self, count: f64) -> Vec<f64> {
        self.origin.iter().zip(&self.sum).map(|(o, s)| o + s / count).collect()
    }
}

impl Block {
    fn as_ref(&self, dim: usize) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.rows, self.rows.len() / dim, dim)
    }
}

impl Regression {
    /// An accumulator for rows of these lengths, which has seen none.
    pub fn new(d_in: usize, d_out: usize) -> Regression {
        Regression {
            count: 0,
            x: Stream::new(d_in),
            y: Stream::new(d_out),
            xx: Mat::zeros(d_in, d_in),
            xy: Mat::zeros(d_in, d_out),
            yy: 0.0,
        }
    }

    /// Pairs of rows seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Takes in rows and their targets, given one after another.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless there are as many whole rows as targets, and [`RandnlaError::NonFinite`], with
    /// the row counted within this call. After an error nothing has been taken in.
    pub fn add_rows(&mut self, x: &[f32], y: &[f32]) -> Result<(), RandnlaError> {
        let (d_in, d_out) = (self.x.dim(), self.y.dim());
        let count = x.len().checked_div(d_in).unwrap_or(0);
        for (what, expected, found) in
            [("the block of rows", count * d_in, x.len()), ("the block of targets", count * d_out, y.len())]
        {
            if expected != found {
                return Err(RandnlaError::Length { what, expected, found });
            }
        }
        check_finite("the block of rows", x, d_in)?;
        check_finite("the block of targets", y, d_out)?;
        if d_in == 0 || d_out == 0 {
            return Ok(());
        }
        for (x, y) in x.chunks(BLOCK_ROWS * d_in).zip(y.chunks(BLOCK_ROWS * d_out)) {
            if self.count == 0 {
                self.x.begin(x);
                self.y.begin(y);
            }
            let (x, y) = (self.x.take(x), self.y.take(y));
            let (rows, targets) = (x.as_ref(d_in), y.as_ref(d_out));
            let mut xx = Mat::<f32>::zeros(d_in, d_in);
            dense::add_gram(xx.as_mut(), rows);
            add_scaled(&mut self.xx, xx.as_ref(), x.scale * x.scale);
            let xy = dense::product(rows.transpose(), targets);
            add_scaled(&mut self.xy, xy.as_ref(), x.scale * y.scale);
            self.yy += y.squares;
            self.count += rows.nrows() as u64;
        }
        Ok(())
    }

    /// Takes in all that `other` has seen.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless both have rows of the same lengths.
    pub fn merge(&mut self, other: &Regression) -> Result<(), RandnlaError> {
        for (expected, found) in [(self.x.dim(), other.x.dim()), (self.y.dim(), other.y.dim())] {
            if expected != found {
                let what = "a row of the other accumulator";
                return Err(RandnlaError::Length { what, expected, found });
            }
        }
        if self.count == 0 {
            *self = other.clone();
            return Ok(());
        }
        // (x + u)ᵀ (y + v) = xᵀ y + uᵀ y + xᵀ v + uᵀ v, with the distances u, v between the origins.
        let n = other.count as f64;
        let between = |to: &Stream, from: &Stream| -> Vec<f64> {
            from.origin.iter().zip(&to.origin).map(|(from, to)| from - to).collect()
        };
        let (u, v) = (between(&self.x, &other.x), between(&self.y, &other.y));
        let (sum_x, sum_y) = (&other.x.sum, &other.y.sum);
        for j in 0..u.len() {
            for i in j..u.len() {
                self.xx[(i, j)] += other.xx[(i, j)] + u[i] * sum_x[j] + sum_x[i] * u[j] + n * u[i] * u[j];
            }
        }
        for j in 0..v.len() {
            for i in 0..u.len() {
                self.xy[(i, j)] += other.xy[(i, j)] + u[i] * sum_y[j] + sum_x[i] * v[j] + n * u[i] * v[j];
            }
        }
        self.yy += other.yy + sum_y.iter().zip(&v).map(|(s, v)| 2.0 * s * v + n * v * v).sum::<f64>();
        for (sum, (more, by)) in [(&mut self.x.sum, (sum_x, &u)), (&mut self.y.sum, (sum_y, &v))] {
            sum.iter_mut().zip(more.iter().zip(by)).for_each(|(a, (b, by))| *a += b + n * by);
        }
        self.count += other.count;
        Ok(())
    }

    /// The search for the weights of reduced rank that fit best, shrunk towards the weight `prior` `[d_in, d_out]`.
    /// Centred, a bias is part of the fit; otherwise there is none. Errors of outputs are weighed by `outputs` (dimension
    /// `d_out`), where it is given.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`], [`RandnlaError::Shape`], [`RandnlaError::Empty`] or [`RandnlaError::NonFinite`].
    pub fn reduced_rank<'a>(
        &self,
        prior: &Matrix,
        centring: Centring,
        outputs: Option<&'a Whitening>,
    ) -> Result<ReducedRank<'a>, RandnlaError> {
        ReducedRank::new(self.moments(centring)?, prior, centring, outputs)
    }

    /// The factors `[d_in, k]` and `[k, d_out]` and the bias `[d_out]` that fit best, shrunk towards the weight `prior`
    /// `[d_in, d_out]`. Where the rank is at least half the smaller dimension or that is at most 1024 the approximation is
    /// exact, otherwise randomized with `seed`.
    ///
    /// # Errors
    /// Those of [`reduced_rank`](Regression::reduced_rank) and of [`ReducedRank::factors`].
    pub fn fit(
        &self,
        prior: &Matrix,
        rank: usize,
        centring: Centring,
        conditioning: &Conditioning,
        seed: u64,
    ) -> Result<Factors, RandnlaError> {
        let rsvd = RsvdOptions { seed, ..RsvdOptions::default() };
        let options = LowRankOptions { rsvd, ..LowRankOptions::default() };
        self.reduced_rank(prior, centring, None)?.factors(rank, conditioning, &options)
    }

    /// What weights leave unexplained of the pairs seen. Errors of outputs are also weighed by `outputs` (dimension
    /// `d_out`), where it is given.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`] or [`RandnlaError::Shape`].
    pub fn fit_errors<'a>(&self, outputs: Option<&'a Whitening>) -> Result<FitErrors<'a>, RandnlaError> {
        FitErrors::new(self.moments(Centring::Centred)?, outputs)
    }

    /// The mean of `‖y - ȳ‖²`.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`].
    pub fn energy(&self) -> Result<f64, RandnlaError> {
        let count = self.nonzero_count()?;
        let mean: f64 = self.y.sum.iter().map(|s| (s / count).powi(2)).sum();
        Ok((self.yy / count - mean).max(0.0))
    }

    /// The mean of `‖y‖²`.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`].
    pub fn mean_square(&self) -> Result<f64, RandnlaError> {
        let mean = self.y.mean(self.nonzero_count()?);
        Ok(self.energy()? + mean.iter().map(|m| m * m).sum::<f64>())
    }

    fn nonzero_count(&self) -> Result<f64, RandnlaError> {
        match self.count {
            0 => Err(RandnlaError::EmptySample { dim: self.x.dim() }),
            n => Ok(n as f64),
        }
    }

    fn moments(&self, centring: Centring) -> Result<Moments, RandnlaError> {
        let count = self.nonzero_count()?;
        let (mean_x, mean_y) = (self.x.mean(count), self.y.mean(count));
        // About the means, and from there about the origin of the coordinates.
        let (sum_x, sum_y) = (&self.x.sum, &self.y.sum);
        let about = match centring {
            Centring::Centred => 0.0,
            Centring::Uncentred => 1.0,
        };
        let (d_in, d_out) = (mean_x.len(), mean_y.len());
        let xx = Matrix::from_fn(d_in, d_in, |i, j| {
            let sum = self.xx[(i.max(j), i.min(j))] - sum_x[i] * sum_x[j] / count;
            sum / count + about * mean_x[i] * mean_x[j]
        });
        let xy = Mat::from_fn(d_in, d_out, |i, j| {
            let sum = self.xy[(i, j)] - sum_x[i] * sum_y[j] / count;
            sum / count + about * mean_x[i] * mean_y[j]
        });
        let yy = self.energy()? + about * mean_y.iter().map(|m| m * m).sum::<f64>();
        Ok(Moments { mean_x, mean_y, xx, xy, yy })
    }
}

/// Second moments, about the means or about 0.
struct Moments {
    mean_x: Vec<f64>,
    mean_y: Vec<f64>,
    xx: Matrix,
    xy: Mat<f64>,
    yy: f64,
}

impl Moments {
    /// What makes up for the means: `ȳ - x̄ left right`.
    fn exact_bias(&self, left: &Matrix, right: &Matrix) -> Vec<f64> {
        let image = row_times(&row_times(&self.mean_x, left), right);
        self.mean_y.iter().zip(image).map(|(y, image)| y - image).collect()
    }
}

/// An error unless outputs of this length can be weighed.
fn check_outputs(outputs: Option<&Whitening>, d_out: usize) -> Result<(), RandnlaError> {
    match outputs.map_or(d_out, Whitening::dim) {
        dim if dim == d_out => Ok(()),
        dim => Err(RandnlaError::Shape {
            what: "the moment of the outputs",
            expected: (d_out, d_out),
            found: (dim, dim),
        }),
    }
}

/// Adds `by · more` to `acc`.
fn add_scaled(acc: &mut Mat<f64>, more: MatRef<'_, f32>, by: f64) {
    for j in 0..acc.ncols() {
        for i in 0..acc.nrows() {
            acc[(i, j)] += by * f64::from(more[(i, j)]);
        }
    }
}

fn check_finite(what: &'static str, rows: &[f32], dim: usize) -> Result<(), RandnlaError> {
    match rows.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        Some((i, &value)) => {
            Err(RandnlaError::NonFinite { what, row: i / dim, column: i % dim, value: value.into() })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Distribution, random_matrix};

    const ROWS: usize = 700;

    fn gaussian(rows: usize, columns: usize, seed: u64) -> Matrix {
        random_matrix(Distribution::Gaussian, rows, columns, seed, 1)
    }

    /// Rows with a mean and unequal scales, and what a weight and an offset make of them.
    fn sample() -> (Matrix, Matrix, Matrix) {
        let noise = gaussian(ROWS, 9, 1);
        let x =
            Matrix::from_fn(ROWS, 9, |i, j| f64::from((noise.at(i, j) * 0.6f64.powi(j as i32) + 0.5) as f32));
        let weight = gaussian(9, 6, 2);
        let y = x.product(&weight).unwrap();
        let y = Matrix::from_fn(ROWS, 6, |i, j| f64::from((y.at(i, j) + j as f64) as f32));
        (x, weight, y)
    }

    fn seen(x: &Matrix, y: &Matrix) -> Regression {
        let mut all = Regression::new(x.columns(), y.columns());
        all.add_rows(&x.to_row_major(), &y.to_row_major()).unwrap();
        all
    }

    fn measured(x: &Matrix, y: &Matrix, f: &Factors) -> f64 {
        let found = x.product(&f.left.product(&f.right).unwrap()).unwrap();
        let bias = |j| f.bias.as_ref().map_or(0.0, |b: &Vec<f32>| f64::from(b[j]));
        Matrix::from_fn(ROWS, y.columns(), |i, j| y.at(i, j) - found.at(i, j) - bias(j)).squared_norm()
            / ROWS as f64
    }

    const EXACT: Conditioning = Conditioning { shrinkage: 0.0, floor: 1e-14 };

    #[test]
    fn full_rank_recovers_weight_and_offset() {
        let (x, weight, y) = sample();
        let zero = Matrix::from_fn(9, 6, |_, _| 0.0);
        let f = seen(&x, &y).fit(&zero, 6, Centring::Centred, &EXACT, 0).unwrap();
        let found = f.left.product(&f.right).unwrap();
        let off = Matrix::from_fn(9, 6, |i, j| found.at(i, j) - weight.at(i, j)).squared_norm();
        assert!(off < 1e-9 * weight.squared_norm(), "{off}");
        let bias = f.bias.unwrap();
        assert!(bias.iter().enumerate().all(|(j, b)| (f64::from(*b) - j as f64).abs() < 1e-4), "{bias:?}");
    }

    #[test]
    fn errors_are_those_on_the_sample() {
        let (x, weight, y) = sample();
        let all = seen(&x, &y);
        for (centring, k) in [(Centring::Centred, 2), (Centring::Uncentred, 3), (Centring::Centred, 6)] {
            let f = all.fit(&weight, k, centring, &EXACT, 0).unwrap();
            assert_eq!(f.bias.is_some(), centring == Centring::Centred);
            let error = all.fit_errors(None).unwrap().of(&f.left, &f.right, f.bias.as_deref()).unwrap();
            let reported = error.squared;
            let found = measured(&x, &y, &f);
            assert!((reported - found).abs() < 1e-6 * (found + all.energy().unwrap()), "{reported} {found}");
        }
    }

    /// No neighbour of the factors does better: the fit is a minimum over all factors of its rank.
    #[test]
    fn reduced_rank_is_the_best_of_its_rank() {
        let (x, weight, mut y) = sample();
        let noise = gaussian(ROWS, 6, 5);
        y = Matrix::from_fn(ROWS, 6, |i, j| f64::from((y.at(i, j) + 0.3 * noise.at(i, j)) as f32));
        let all = seen(&x, &y);
        let f = all.fit(&weight, 2, Centring::Centred, &EXACT, 0).unwrap();
        let errors = all.fit_errors(None).unwrap();
        let error = |l: &Matrix, r: &Matrix| {
            let best = all.moments(Centring::Centred).unwrap().exact_bias(l, r);
            let best: Vec<f32> = best.into_iter().map(|b| b as f32).collect();
            errors.of(l, r, Some(&best)).unwrap().squared
        };
        let least = error(&f.left, &f.right);
        for seed in 10..30 {
            let (dl, dr) = (gaussian(9, 2, seed), gaussian(2, 6, seed + 100));
            let l = Matrix::from_fn(9, 2, |i, j| f.left.at(i, j) + 1e-2 * dl.at(i, j));
            let r = Matrix::from_fn(2, 6, |i, j| f.right.at(i, j) + 1e-2 * dr.at(i, j));
            assert!(error(&l, &r) > least, "seed {seed}");
        }
    }

    #[test]
    fn what_was_not_seen_stays_as_it_was() {
        let (x, weight, _) = sample();
        let flat = Matrix::from_fn(ROWS, 9, |i, j| if j < 4 { x.at(i, j) } else { 0.0 });
        let known = flat.product(&weight).unwrap();
        let known = Matrix::from_fn(ROWS, 6, |i, j| f64::from(known.at(i, j) as f32));
        let conditioning = Conditioning { shrinkage: 0.01, floor: 1e-8 };
        let f = seen(&flat, &known).fit(&weight, 6, Centring::Centred, &conditioning, 0).unwrap();
        let found = f.left.product(&f.right).unwrap();
        for i in 0..9 {
            for j in 0..6 {
                assert!((found.at(i, j) - weight.at(i, j)).abs() < 1e-4, "{i} {j}");
            }
        }
    }

    /// However far the estimate is shrunk, it lies between the prior and what fits best.
    #[test]
    fn shrinking_never_overshoots() {
        let noise = gaussian(ROWS, 9, 1);
        let scale = |j: usize| if j == 0 { 10.0 } else { 0.1 };
        let x = Matrix::from_fn(ROWS, 9, |i, j| f64::from((noise.at(i, j) * scale(j)) as f32));
        let constant = |value: f64| Matrix::from_fn(9, 1, |_, _| value);
        let y = x.product(&constant(2.0)).unwrap();
        let all = seen(&x, &Matrix::from_fn(ROWS, 1, |i, _| f64::from(y.at(i, 0) as f32)));
        for shrinkage in [0.003, 0.1, 0.5, 1.0] {
            let conditioning = Conditioning { shrinkage, floor: 1e-12 };
            let f = all.fit(&constant(1.0), 1, Centring::Centred, &conditioning, 0).unwrap();
            let found = f.left.product(&f.right).unwrap();
            assert!(
                (0..9).all(|i| (0.9..2.001).contains(&found.at(i, 0))),
                "{shrinkage}: {:?}",
                found.to_row_major()
            );
        }
    }

    /// An offset of the targets, however large, is no energy.
    #[test]
    fn the_energy_is_that_about_the_means() {
        let (x, _, y) = sample();
        for offset in [0.0, 3.0, -100.0] {
            let y = Matrix::from_fn(ROWS, 6, |i, j| f64::from((y.at(i, j) + offset) as f32));
            let mean = |j: usize| (0..ROWS).map(|i| y.at(i, j)).sum::<f64>() / ROWS as f64;
            let means: Vec<f64> = (0..6).map(mean).collect();
            let centred = Matrix::from_fn(ROWS, 6, |i, j| y.at(i, j) - means[j]);
            let (found, expected) = (seen(&x, &y).energy().unwrap(), centred.squared_norm() / ROWS as f64);
            assert!(
                (found - expected).abs() < 1e-9 * expected * (1.0 + offset * offset),
                "{found} {expected}"
            );
        }
    }

    /// Moments about the mean keep their digits however far the mean is, and however large or small the numbers are.
    #[test]
    fn neither_means_nor_scales_cost_digits() {
        let (x, weight, y) = sample();
        let zero = Matrix::from_fn(9, 6, |_, _| 0.0);
        let spread = 0.6f64.powi(8);
        for (offset, scale) in [(0.0, 1.0), (1e3, 1.0), (0.0, 1e24), (0.0, 1e-24)] {
            let x = Matrix::from_fn(ROWS, 9, |i, j| f64::from(((x.at(i, j) + offset) * scale) as f32));
            let conditioning = Conditioning { shrinkage: 0.0, floor: 1e-12 };
            let f = seen(&x, &y).fit(&zero, 6, Centring::Centred, &conditioning, 0).unwrap();
            let found = f.left.product(&f.right).unwrap();
            let off = Matrix::from_fn(9, 6, |i, j| found.at(i, j) * scale - weight.at(i, j)).squared_norm();
            // Rows are `f32`, and so is what is left of them beside the offset.
            let allowed = (1e-5 + 1e-7 * offset / spread).powi(2);
            assert!(off <= allowed * weight.squared_norm(), "{offset} {scale}: {off}");
        }
    }

    #[test]
    fn weighed_errors_are_those_on_the_sample() {
        let (x, weight, y) = sample();
        let metric = Matrix::from_fn(6, 6, |i, j| if i == j { 1.0 + i as f64 } else { 0.3 });
        let outputs = Whitening::new(&metric, None, &EXACT).unwrap();
        let all = seen(&x, &y);
        let errors = all.fit_errors(Some(&outputs)).unwrap();
        let found = |k: usize, offset: f32| {
            let f = all.fit(&weight, k, Centring::Centred, &EXACT, 0).unwrap();
            let bias: Vec<f32> = f.bias.unwrap().iter().map(|b| b + offset).collect();
            let f = Factors { bias: Some(bias), ..f };
            let image = x.product(&f.left.product(&f.right).unwrap()).unwrap();
            let error =
                |i: usize, j: usize| y.at(i, j) - image.at(i, j) - f64::from(f.bias.as_ref().unwrap()[j]);
            let of_row = |i: usize| -> f64 {
                let terms = (0..6).flat_map(|j| (0..6).map(move |k| (j, k)));
                terms.map(|(j, k)| error(i, j) * metric.at(j, k) * error(i, k)).sum()
            };
            let measured = (0..ROWS).map(of_row).sum::<f64>() / ROWS as f64;
            (errors.of(&f.left, &f.right, f.bias.as_deref()).unwrap().weighed, measured)
        };
        let (one, three, off) = (found(1, 0.0), found(3, 0.0), found(3, 0.5));
        for (a, b) in [(one, three), (off, three)] {
            let (reported, measured) = (a.0 - b.0, a.1 - b.1);
            assert!((reported - measured).abs() < 1e-5 * one.1, "{reported} {measured}");
        }
    }

    /// What is fitted where outputs weigh differently is the best in that metric.
    #[test]
    fn fits_are_best_in_the_metric_of_the_outputs() {
        let (x, weight, y) = sample();
        let metric = Matrix::from_fn(6, 6, |i, j| if i == j { 100f64.powi(i as i32 / 2) } else { 0.0 });
        let outputs = Whitening::new(&metric, None, &EXACT).unwrap();
        let all = seen(&x, &y);
        let errors = all.fit_errors(Some(&outputs)).unwrap();
        let weighed = |f: &Factors| errors.of(&f.left, &f.right, f.bias.as_deref()).unwrap().weighed;
        let problem = all.reduced_rank(&weight, Centring::Centred, Some(&outputs)).unwrap();
        let best = problem.factors(2, &EXACT, &LowRankOptions::default()).unwrap();
        let plain = all.fit(&weight, 2, Centring::Centred, &EXACT, 0).unwrap();
        assert!(weighed(&best) < weighed(&plain));
        for seed in 10..20 {
            let (dl, dr) = (gaussian(9, 2, seed), gaussian(2, 6, seed + 100));
            let left = Matrix::from_fn(9, 2, |i, j| best.left.at(i, j) + 1e-3 * dl.at(i, j));
            let right = Matrix::from_fn(2, 6, |i, j| best.right.at(i, j) + 1e-3 * dr.at(i, j));
            let bias = all.moments(Centring::Centred).unwrap().exact_bias(&left, &right);
            let bias = Some(bias.into_iter().map(|b| b as f32).collect());
            assert!(weighed(&Factors { left, right, bias }) > weighed(&best), "seed {seed}");
        }
    }

    #[test]
    fn pieces_add_up() {
        let (x, weight, y) = sample();
        let (x, y) = (x.to_row_major(), y.to_row_major());
        let mut parts = Regression::new(9, 6);
        parts.add_rows(&x[..9 * 100], &y[..6 * 100]).unwrap();
        let mut rest = Regression::new(9, 6);
        rest.add_rows(&x[9 * 100..], &y[6 * 100..]).unwrap();
        parts.merge(&rest).unwrap();
        assert_eq!(parts.count(), ROWS as u64);
        let mut all = Regression::new(9, 6);
        all.add_rows(&x, &y).unwrap();
        let of = |r: &Regression| {
            let f = r.fit(&weight, 3, Centring::Centred, &EXACT, 0).unwrap();
            r.fit_errors(None).unwrap().of(&f.left, &f.right, f.bias.as_deref()).unwrap().squared
        };
        let energy = all.energy().unwrap();
        assert!((of(&parts) - of(&all)).abs() < 1e-6 * energy, "{} {}", of(&parts), of(&all));
    }

    #[test]
    fn bad_input_is_named() {
        let mut r = Regression::new(2, 1);
        let message = |e: Result<(), RandnlaError>| e.unwrap_err().to_string();
        assert_eq!(
            message(r.add_rows(&[1.0; 3], &[1.0])),
            "the block of rows has the wrong length: expected 2, found 3"
        );
        assert_eq!(
            message(r.add_rows(&[1.0; 4], &[1.0])),
            "the block of targets has the wrong length: expected 2, found 1"
        );
        assert!(message(r.add_rows(&[1.0, f32::NAN], &[1.0])).starts_with("the block of rows is not finite"));
        assert!(
            message(r.add_rows(&[1.0; 2], &[f32::INFINITY]))
                .starts_with("the block of targets is not finite")
        );
        assert!(message(r.merge(&Regression::new(2, 2))).starts_with("a row of the other accumulator"));
        assert_eq!(r.energy(), Err(RandnlaError::EmptySample { dim: 2 }));
    }
}
