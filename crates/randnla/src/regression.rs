//! Least squares between two streams of vectors, of full and of reduced rank.
//!
//! For rows `x` and targets `y` the weight `M` and the bias `b` with the least mean of `‖y - x M - b‖²` are
//! `M = C⁻¹ D`, `b = ȳ - x̄ M`, with the covariance `C` of `x` and the covariance `D` between `x` and `y`. Among
//! weights of rank `k` the best is the low-rank approximation of `M` whitened by `C` (Izenman, *Reduced-rank
//! regression for the multivariate linear model*, 1975); its factors are those of [`LowRank`]. The estimate is shrunk
//! towards a weight that is known beforehand: where the sample says nothing, that one stays.
//!
//! Only second moments are kept, so that memory does not grow with the number of rows.

use faer::{Mat, MatRef};

use crate::matrix::check_shape;
use crate::{
    Centring, Conditioning, Factors, LowRank, LowRankOptions, Matrix, RandnlaError, Whitening, dense,
};

/// Rows per update.
const BLOCK_ROWS: usize = 512;

/// Second moments of pairs of rows, in `f64`.
///
/// The bits depend on the rows, their order and the pieces in which they arrive. Memory is
/// `8 d_in (d_in + d_out)` bytes.
#[derive(Clone, Debug)]
pub struct Regression {
    count: u64,
    sum_x: Vec<f64>,
    sum_y: Vec<f64>,
    /// Sum of `xᵀ x`: lower triangle; what is above it is unspecified.
    xx: Mat<f64>,
    /// Sum of `xᵀ y`.
    xy: Mat<f64>,
    /// Sum of `‖y‖²`.
    yy: f64,
}

impl Regression {
    /// An accumulator for rows of these lengths, which has seen none.
    pub fn new(d_in: usize, d_out: usize) -> Regression {
        Regression {
            count: 0,
            sum_x: vec![0.0; d_in],
            sum_y: vec![0.0; d_out],
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
        let (d_in, d_out) = (self.sum_x.len(), self.sum_y.len());
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
            let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
            let (x, y) = (wide(x), wide(y));
            let rows = x.len() / d_in;
            add_sums(&mut self.sum_x, &x);
            add_sums(&mut self.sum_y, &y);
            self.yy += y.iter().map(|v| v * v).sum::<f64>();
            let x = MatRef::from_row_major_slice(&x, rows, d_in);
            let y = MatRef::from_row_major_slice(&y, rows, d_out);
            dense::add_gram(self.xx.as_mut(), x);
            dense::add_product(self.xy.as_mut(), x.transpose(), y);
            self.count += rows as u64;
        }
        Ok(())
    }

    /// Takes in all that `other` has seen.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless both have rows of the same lengths.
    pub fn merge(&mut self, other: &Regression) -> Result<(), RandnlaError> {
        for (expected, found) in
            [(self.sum_x.len(), other.sum_x.len()), (self.sum_y.len(), other.sum_y.len())]
        {
            if expected != found {
                let what = "a row of the other accumulator";
                return Err(RandnlaError::Length { what, expected, found });
            }
        }
        self.count += other.count;
        self.sum_x.iter_mut().zip(&other.sum_x).for_each(|(a, b)| *a += b);
        self.sum_y.iter_mut().zip(&other.sum_y).for_each(|(a, b)| *a += b);
        self.xx += &other.xx;
        self.xy += &other.xy;
        self.yy += other.yy;
        Ok(())
    }

    /// For each of some conditionings the factors `[d_in, k]` and `[k, d_out]` and the bias `[d_out]` that fit best,
    /// shrunk towards the weight `prior` `[d_in, d_out]`. Centred, the bias is part of the fit; otherwise there is none.
    /// Errors of outputs are weighed by `outputs` (dimension `d_out`), where it is given. Where the rank is at least half
    /// the smaller dimension or that is at most 1024 the approximation is exact, otherwise randomized with `seed`.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`], [`RandnlaError::Shape`], [`RandnlaError::Rank`],
    /// [`RandnlaError::Parameter`] or [`RandnlaError::NoConvergence`].
    pub fn fits(
        &self,
        prior: &Matrix,
        rank: usize,
        centring: Centring,
        outputs: Option<&Whitening>,
        conditionings: &[Conditioning],
        seed: u64,
    ) -> Result<Vec<Factors>, RandnlaError> {
        check_shape("the prior weight", (self.sum_x.len(), self.sum_y.len()), prior)?;
        let moments = self.moments(centring)?;
        // C₀ and D are what was seen, C is conditioned: M = P + C⁻¹ (D - C₀ P).
        let rest = &moments.xy - dense::product(moments.xx.as_ref(), prior.as_ref());
        let rsvd = crate::RsvdOptions { seed, ..Default::default() };
        let options = LowRankOptions { max_rank: Some(rank), rsvd, ..LowRankOptions::default() };
        let mut all = Vec::with_capacity(conditionings.len());
        for conditioning in conditionings {
            let white = Whitening::new(&moments.xx, None, conditioning)?;
            let weight = Matrix::new(prior.as_ref() + white.solve(rest.clone()));
            let mut factors = LowRank::new(&weight, Some(&white), outputs, &options)?.factors(rank)?;
            if centring == Centring::Centred {
                factors.bias = Some(moments.bias(&factors.left.product(&factors.right)?));
            }
            all.push(factors);
        }
        Ok(all)
    }

    /// As [`fits`](Regression::fits), for one conditioning and outputs that all weigh the same.
    ///
    /// # Errors
    /// As there.
    pub fn fit(
        &self,
        prior: &Matrix,
        rank: usize,
        centring: Centring,
        conditioning: &Conditioning,
        seed: u64,
    ) -> Result<Factors, RandnlaError> {
        let mut all = self.fits(prior, rank, centring, None, &[*conditioning], seed)?;
        Ok(all.remove(0))
    }

    /// The mean of `‖y - x left right - bias‖²` over the pairs seen; without a bias it is taken as zero.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`] or [`RandnlaError::Shape`].
    pub fn squared_error(
        &self,
        left: &Matrix,
        right: &Matrix,
        bias: Option<&[f32]>,
    ) -> Result<f64, RandnlaError> {
        let weight = left.product(right)?;
        check_shape("the product of the factors", (self.sum_x.len(), self.sum_y.len()), &weight)?;
        let moments = self.moments(Centring::Centred)?;
        let m = weight.as_ref();
        let image = dense::product(moments.xx.as_ref(), m);
        let inner = |a: MatRef<'_, f64>| -> f64 {
            (0..m.ncols()).map(|j| (0..m.nrows()).map(|i| m[(i, j)] * a[(i, j)]).sum::<f64>()).sum()
        };
        let spread = moments.yy - 2.0 * inner(moments.xy.as_ref()) + inner(image.as_ref());
        let best = moments.exact_bias(&weight);
        let offset: f64 = best
            .iter()
            .enumerate()
            .map(|(j, b)| (b - bias.map_or(0.0, |bias| f64::from(bias[j]))).powi(2))
            .sum();
        // What cancels may leave a negative rest.
        Ok(spread.max(0.0) + offset)
    }

    /// The mean of `e G eᵀ` with `e = y - x left right - bias` and the second moment `G = Tᵀ T` of `outputs`, but for
    /// what the targets alone give: it compares weights for one sample, and may be negative. Without a bias it is taken
    /// as zero.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`] or [`RandnlaError::Shape`].
    pub fn loss(
        &self,
        left: &Matrix,
        right: &Matrix,
        bias: Option<&[f32]>,
        outputs: &Whitening,
    ) -> Result<f64, RandnlaError> {
        let weight = left.product(right)?;
        check_shape("the product of the factors", (self.sum_x.len(), outputs.dim()), &weight)?;
        let moments = self.moments(Centring::Centred)?;
        let m = weight.as_ref();
        let image = dense::product(moments.xx.as_ref(), m);
        let rest = &image - &moments.xy - &moments.xy;
        let (m, rest) = (outputs.whiten(m.transpose()), outputs.whiten(rest.transpose()));
        let spread: f64 =
            (0..m.ncols()).map(|j| (0..m.nrows()).map(|i| m[(i, j)] * rest[(i, j)]).sum::<f64>()).sum();
        let best = moments.exact_bias(&weight);
        let offset = |j: usize| best[j] - bias.map_or(0.0, |bias| f64::from(bias[j]));
        let offset = outputs.whiten(Mat::from_fn(best.len(), 1, |j, _| offset(j)).as_ref());
        Ok(spread + dense::squared_column(offset.as_ref(), 0))
    }

    /// The mean of `‖y - ȳ‖²`.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`].
    pub fn energy(&self) -> Result<f64, RandnlaError> {
        let count = self.nonzero_count()?;
        let mean: f64 = self.sum_y.iter().map(|s| (s / count).powi(2)).sum();
        Ok((self.yy / count - mean).max(0.0))
    }

    fn nonzero_count(&self) -> Result<f64, RandnlaError> {
        match self.count {
            0 => Err(RandnlaError::EmptySample { dim: self.sum_x.len() }),
            n => Ok(n as f64),
        }
    }

    fn moments(&self, centring: Centring) -> Result<Moments, RandnlaError> {
        let count = self.nonzero_count()?;
        let mean = |sum: &[f64]| -> Vec<f64> { sum.iter().map(|s| s / count).collect() };
        let (mean_x, mean_y) = (mean(&self.sum_x), mean(&self.sum_y));
        let about = match centring {
            Centring::Centred => 1.0,
            Centring::Uncentred => 0.0,
        };
        let (d_in, d_out) = (mean_x.len(), mean_y.len());
        let xx = Matrix::from_fn(d_in, d_in, |i, j| {
            self.xx[(i.max(j), i.min(j))] / count - about * mean_x[i] * mean_x[j]
        });
        let xy = Mat::from_fn(d_in, d_out, |i, j| self.xy[(i, j)] / count - about * mean_x[i] * mean_y[j]);
        let yy = self.yy / count - about * mean_y.iter().map(|m| m * m).sum::<f64>();
        Ok(Moments { mean_x, mean_y, xx, xy, yy })
    }
}

/// Second moments, about the means or about the origin.
struct Moments {
    mean_x: Vec<f64>,
    mean_y: Vec<f64>,
    xx: Matrix,
    xy: Mat<f64>,
    yy: f64,
}

impl Moments {
    /// What makes up for the means: `ȳ - x̄ M`.
    fn exact_bias(&self, weight: &Matrix) -> Vec<f64> {
        let image =
            |j: usize| -> f64 { self.mean_x.iter().enumerate().map(|(i, m)| m * weight.at(i, j)).sum() };
        self.mean_y.iter().enumerate().map(|(j, y)| y - image(j)).collect()
    }

    fn bias(&self, weight: &Matrix) -> Vec<f32> {
        self.exact_bias(weight).into_iter().map(|b| b as f32).collect()
    }
}

fn add_sums(sums: &mut [f64], rows: &[f64]) {
    for row in rows.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += v);
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
            let reported = all.squared_error(&f.left, &f.right, f.bias.as_deref()).unwrap();
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
        let error = |l: &Matrix, r: &Matrix| {
            let best = all.moments(Centring::Centred).unwrap().bias(&l.product(r).unwrap());
            all.squared_error(l, r, Some(&best)).unwrap()
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
            r.squared_error(&f.left, &f.right, f.bias.as_deref()).unwrap()
        };
        assert!((of(&parts) - of(&all)).abs() < 1e-9 * of(&all));
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
