//! Low-rank factors of a weight, best for the inputs it is applied to.
//!
//! For `y = x W` with inputs of second moment `C = Sᵀ S` the factors of rank `k` that lose the least output
//! energy come from `S W = U diag(s) Vᵀ`: left `S⁻¹ Uₖ`, right `diag(sₖ) Vₖᵀ`, and the mean of
//! `‖x W - x Wₖ‖²` is `Σ_{i>k} sᵢ²` (Wang and others, *SVD-LLM*, arXiv 2403.07378). If `C` is centred
//! about the mean `μ`, the output's mean is kept by adding `μ (W - Wₖ)` to the bias, and only the rest is approximated.
//!
//! A second whitening `G = Tᵀ T` may weigh the outputs, for instance by how much the model's result depends
//! on them: then `S W Tᵀ` is decomposed, and errors are means of `(x W - x Wₖ) G (x W - x Wₖ)ᵀ`.
//!
//! One decomposition serves every rank. Without whitenings it is the truncated singular value decomposition.

use faer::Mat;

use crate::bytes::{Reader, Writer};
use crate::matrix::{check_factorable, check_shape, row_times};
use crate::rsvd::{RsvdOptions, rsvd, svd};
use crate::{Matrix, RandnlaError, Whitening, dense};

/// How a weight is decomposed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRankOptions {
    /// The greatest rank that will be asked for. `None` for every rank.
    pub max_rank: Option<usize>,
    /// The decomposition is exact where the smaller dimension is at most this, where `max_rank` is `None`, or
    /// where it is at least half the smaller dimension; otherwise it is randomized.
    pub exact_up_to: usize,
    /// How a randomized decomposition is done.
    pub rsvd: RsvdOptions,
}

impl Default for LowRankOptions {
    /// Every rank, exact up to dimension 1024.
    fn default() -> LowRankOptions {
        LowRankOptions { max_rank: None, exact_up_to: 1024, rsvd: RsvdOptions::default() }
    }
}

/// A decomposed weight `W` of shape `[d_in, d_out]`: its factors and errors for every rank.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[d_in, max_rank]`, balanced against `right`.
    left: Matrix,
    /// `[d_out, max_rank]`: the right factor, transposed.
    right: Matrix,
    singular_values: Vec<f64>,
    /// By rank, from 0 to `max_rank`.
    squared_errors: Vec<f64>,
    /// The mean input, and its image under the weight.
    mean: Option<(Vec<f64>, Vec<f64>)>,
}

/// The factors of one rank `k`.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// `[d_in, k]`. Every entry is an `f32`, so converting to row-major `f32` loses nothing.
    pub left: Matrix,
    /// `[k, d_out]`. Every entry is an `f32`.
    pub right: Matrix,
    /// What to add to the bias so that the mean output is kept: `[d_out]`. `None` without a mean.
    pub bias: Option<Vec<f32>>,
}

impl LowRank {
    /// Decomposes a weight `[d_in, d_out]`.
    ///
    /// `input` whitens the inputs (dimension `d_in`), `output` weighs the outputs (dimension `d_out`; its
    /// mean is not used). Columns of the left and rows of the right factor have equal norms, and the entry
    /// of greatest magnitude in a row of the right factor is positive before rounding.
    ///
    /// # Errors
    /// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], [`RandnlaError::Shape`] for a whitening of
    /// another dimension, [`RandnlaError::Rank`] for a `max_rank` of 0 or above the smaller dimension, and
    /// [`RandnlaError::NoConvergence`].
    pub fn new(
        weight: &Matrix,
        input: Option<&Whitening>,
        output: Option<&Whitening>,
        options: &LowRankOptions,
    ) -> Result<LowRank, RandnlaError> {
        check_factorable("the weight", weight)?;
        let found =
            (input.map_or(weight.rows(), Whitening::dim), output.map_or(weight.columns(), Whitening::dim));
        check_shape("the weight", found, weight)?;
        let scaled = scale(weight, input, output);
        let shape = (weight.rows(), weight.columns());
        let found = LowRank::of_scaled(&scaled, shape, input, output, options)?;
        let mean = input.and_then(Whitening::mean).map(|mean| (mean.to_vec(), row_times(mean, weight)));
        Ok(LowRank { mean, ..found })
    }

    /// Decomposes a weight of this shape of which `S W Tᵀ` is given, with the roots `S` of `input` and `T` of `output`; no
    /// mean is kept.
    pub(crate) fn of_scaled(
        scaled: &Matrix,
        (rows, columns): (usize, usize),
        input: Option<&Whitening>,
        output: Option<&Whitening>,
        options: &LowRankOptions,
    ) -> Result<LowRank, RandnlaError> {
        let smaller = rows.min(columns);
        let wanted = options.max_rank.unwrap_or(smaller);
        if wanted == 0 || wanted > smaller {
            return Err(RandnlaError::Rank { max: smaller, found: wanted });
        }
        let svd = if smaller <= options.exact_up_to || wanted >= smaller / 2 {
            svd(scaled)?
        } else {
            rsvd(scaled, wanted, &options.rsvd)?
        };
        let mut squared_errors = svd.squared_errors();
        squared_errors.truncate(wanted + 1);
        let mut singular_values = svd.singular_values;
        singular_values.truncate(wanted);
        let left = unscale(&svd.left, wanted, input);
        let right = unscale(&svd.right, wanted, output);
        let (left, right) = balance(left, right, &singular_values);
        Ok(LowRank { left, right, singular_values, squared_errors, mean: None })
    }

    /// All of it as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.matrix(&self.left);
        out.matrix(&self.right);
        out.numbers(&self.singular_values);
        out.numbers(&self.squared_errors);
        let (mean, image) = self.mean.as_ref().map_or((&[][..], &[][..]), |(m, i)| (m, i));
        out.word(u64::from(self.mean.is_some()));
        out.numbers(mean);
        out.numbers(image);
        out.0
    }

    /// The decomposition of which [`to_bytes`](LowRank::to_bytes) gave these bytes, to the last bit; `None` for others.
    pub fn from_bytes(bytes: &[u8]) -> Option<LowRank> {
        let mut read = Reader(bytes);
        let (left, right) = (read.matrix()?, read.matrix()?);
        let (singular_values, squared_errors) = (read.numbers()?, read.numbers()?);
        let has_mean = read.word()?;
        let (mean, image) = (read.numbers()?, read.numbers()?);
        let rank = singular_values.len();
        let fits = left.columns() == rank && right.columns() == rank && squared_errors.len() == rank + 1;
        let mean = match has_mean {
            0 if mean.is_empty() && image.is_empty() => None,
            1 if mean.len() == left.rows() && image.len() == right.rows() => Some((mean, image)),
            _ => return None,
        };
        read.end(LowRank { left, right, singular_values, squared_errors, mean }).filter(|_| fits)
    }

    /// The greatest rank available.
    pub fn max_rank(&self) -> usize {
        self.singular_values.len()
    }

    /// The singular values of the scaled weight, descending: `[max_rank]`.
    pub fn singular_values(&self) -> &[f64] {
        &self.singular_values
    }

    /// The error of every rank from 0 to [`max_rank`](LowRank::max_rank): mean squared output error per
    /// input, summed over outputs, in the whitenings' units. Entry 0 is the
    /// [`energy`](LowRank::energy); the entries never rise.
    ///
    /// They are exact, up to rounding, for the whitenings as conditioned: eigenvalues raised to a floor and
    /// shrinkage count as if the inputs had that much more variance. For a randomized decomposition they are
    /// exact for its own factors.
    pub fn squared_errors(&self) -> &[f64] {
        &self.squared_errors
    }

    /// The mean squared output per input, about its mean if the whitening is centred.
    pub fn energy(&self) -> f64 {
        self.squared_errors[0]
    }

    /// The factors of rank `k`.
    ///
    /// The bias makes up for the rounding of the factors to `f32`, too.
    ///
    /// # Errors
    /// [`RandnlaError::Rank`] unless `k` is between 1 and [`max_rank`](LowRank::max_rank).
    pub fn factors(&self, k: usize) -> Result<Factors, RandnlaError> {
        if k == 0 || k > self.max_rank() {
            return Err(RandnlaError::Rank { max: self.max_rank(), found: k });
        }
        let rounded = |v: f64| f64::from(v as f32);
        let left = Matrix::from_fn(self.left.rows(), k, |i, r| rounded(self.left.at(i, r)));
        let right = Matrix::from_fn(k, self.right.rows(), |r, j| rounded(self.right.at(j, r)));
        let bias = self.mean.as_ref().map(|(mean, image)| {
            let approximate = row_times(&row_times(mean, &left), &right);
            image.iter().zip(approximate).map(|(exact, found)| (exact - found) as f32).collect()
        });
        Ok(Factors { left, right, bias })
    }
}

/// `S W Tᵀ`.
fn scale(weight: &Matrix, input: Option<&Whitening>, output: Option<&Whitening>) -> Matrix {
    let rows = match input {
        Some(s) => s.whiten(weight.as_ref()),
        None => weight.as_ref().to_owned(),
    };
    match output {
        Some(t) => Matrix::new(t.whiten(rows.transpose()).transpose().to_owned()),
        None => Matrix::new(rows),
    }
}

/// The first `rank` singular vectors, taken back through the whitening.
fn unscale(vectors: &Matrix, rank: usize, whitening: Option<&Whitening>) -> Mat<f64> {
    let kept = vectors.as_ref().subcols(0, rank).to_owned();
    match whitening {
        Some(w) => w.unwhiten(kept),
        None => kept,
    }
}

/// Spreads the singular values so that matching columns have equal norms, and fixes the signs.
fn balance(mut left: Mat<f64>, mut right: Mat<f64>, singular_values: &[f64]) -> (Matrix, Matrix) {
    let norms = |m: &Mat<f64>| -> Vec<f64> {
        (0..m.ncols()).map(|j| dense::squared_column(m.as_ref(), j).sqrt()).collect()
    };
    let (p, q) = (norms(&left), norms(&right));
    let signs: Vec<f64> = (0..right.ncols()).map(|j| sign_of_greatest(&right, j)).collect();
    dense::scale_columns(&mut left, |j| signs[j] * (singular_values[j] * q[j] / p[j]).sqrt());
    dense::scale_columns(&mut right, |j| signs[j] * (singular_values[j] * p[j] / q[j]).sqrt());
    (Matrix::new(left), Matrix::new(right))
}

/// The sign of the first entry of greatest magnitude in a column.
fn sign_of_greatest(m: &Mat<f64>, column: usize) -> f64 {
    let mut greatest = 0.0f64;
    for i in 0..m.nrows() {
        if m[(i, column)].abs() > greatest.abs() {
            greatest = m[(i, column)];
        }
    }
    if greatest < 0.0 { -1.0 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Centring, Conditioning, Distribution, Gram, random_matrix};

    const D_IN: usize = 24;
    const D_OUT: usize = 17;
    const COUNT: usize = 400;

    fn weight() -> Matrix {
        random_matrix(Distribution::Gaussian, D_IN, D_OUT, 1, 1)
    }

    /// Rows of very different scales along mixed directions, with a mean.
    fn inputs() -> Matrix {
        let noise = random_matrix(Distribution::Gaussian, COUNT, D_IN, 2, 1);
        let scaled = Matrix::from_fn(COUNT, D_IN, |i, j| noise.at(i, j) * 0.7f64.powi(j as i32));
        let mixed = scaled.product(&random_matrix(Distribution::Gaussian, D_IN, D_IN, 3, 1)).unwrap();
        let data: Vec<f32> =
            Matrix::from_fn(COUNT, D_IN, |i, j| mixed.at(i, j) + 2.0 * (j as f64).sin()).to_row_major();
        Matrix::from_row_major(COUNT, D_IN, &data).unwrap()
    }

    fn whitening(centring: Centring) -> Whitening {
        let mut gram = Gram::new(D_IN);
        gram.add_rows(&inputs().to_row_major()).unwrap();
        Whitening::from_gram(&gram, centring, &Conditioning { shrinkage: 0.0, floor: 1e-12 }).unwrap()
    }

    fn difference(a: &Matrix, b: &Matrix) -> Matrix {
        Matrix::from_fn(a.rows(), a.columns(), |i, j| a.at(i, j) - b.at(i, j))
    }

    /// Output errors on the sample: `[COUNT, D_OUT]`.
    fn output_error(factors: &Factors) -> Matrix {
        let lost = difference(&weight(), &factors.left.product(&factors.right).unwrap());
        let error = inputs().product(&lost).unwrap();
        let bias = |j| factors.bias.as_ref().map_or(0.0, |b: &Vec<f32>| f64::from(b[j]));
        Matrix::from_fn(COUNT, D_OUT, |i, j| error.at(i, j) - bias(j))
    }

    fn close(a: f64, b: f64, scale: f64) -> bool {
        (a - b).abs() <= 1e-6 * scale
    }

    #[test]
    fn full_rank_is_the_weight() {
        let w = weight();
        for white in [None, Some(whitening(Centring::Centred)), Some(whitening(Centring::Uncentred))] {
            let low = LowRank::new(&w, white.as_ref(), None, &LowRankOptions::default()).unwrap();
            assert_eq!(low.max_rank(), D_OUT);
            let f = low.factors(D_OUT).unwrap();
            let off = difference(&w, &f.left.product(&f.right).unwrap()).squared_norm();
            assert!(off < 1e-12 * w.squared_norm(), "{off}");
            assert_eq!(low.squared_errors()[D_OUT], 0.0);
            if let Some(bias) = f.bias {
                assert!(bias.iter().all(|b| b.abs() < 1e-4));
            }
        }
    }

    #[test]
    fn bytes_are_read_back_bit_by_bit() {
        for white in [None, Some(whitening(Centring::Centred))] {
            let options = LowRankOptions { max_rank: Some(6), ..LowRankOptions::default() };
            let low = LowRank::new(&weight(), white.as_ref(), None, &options).unwrap();
            let bytes = low.to_bytes();
            let read = LowRank::from_bytes(&bytes).unwrap();
            assert_eq!(read.to_bytes(), bytes);
            assert_eq!(read.factors(3).unwrap(), low.factors(3).unwrap());
            for n in (0..bytes.len()).step_by(7) {
                assert!(LowRank::from_bytes(&bytes[..n]).is_none(), "{n} of {} bytes", bytes.len());
            }
        }
    }

    #[test]
    fn errors_are_those_on_the_sample() {
        for centring in [Centring::Centred, Centring::Uncentred] {
            let white = whitening(centring);
            let low = LowRank::new(&weight(), Some(&white), None, &LowRankOptions::default()).unwrap();
            assert!(low.squared_errors().windows(2).all(|w| w[0] >= w[1]));
            for k in 1..=D_OUT {
                let f = low.factors(k).unwrap();
                let measured = output_error(&f).squared_norm() / COUNT as f64;
                let reported = low.squared_errors()[k];
                assert!(
                    close(measured, reported, reported + 1e-6 * low.energy()),
                    "{k}: {measured} {reported}"
                );
            }
        }
    }

    #[test]
    fn bias_keeps_the_mean_output() {
        let low =
            LowRank::new(&weight(), Some(&whitening(Centring::Centred)), None, &LowRankOptions::default())
                .unwrap();
        for k in [1, 5, D_OUT] {
            let error = output_error(&low.factors(k).unwrap());
            for j in 0..D_OUT {
                let mean = (0..COUNT).map(|i| error.at(i, j)).sum::<f64>() / COUNT as f64;
                assert!(mean.abs() < 1e-5, "rank {k}, output {j}: {mean}");
            }
        }
    }

    #[test]
    fn whitening_beats_the_plain_decomposition() {
        let options = LowRankOptions::default();
        let of = |white: Option<&Whitening>, k| {
            let low = LowRank::new(&weight(), white, None, &options).unwrap();
            output_error(&low.factors(k).unwrap()).squared_norm()
        };
        for k in [3, 6, 10] {
            let plain = of(None, k);
            let whitened = of(Some(&whitening(Centring::Uncentred)), k);
            let centred = of(Some(&whitening(Centring::Centred)), k);
            assert!(whitened < 0.5 * plain, "rank {k}: {whitened} and {plain}");
            assert!(centred <= whitened, "rank {k}: {centred} and {whitened}");
        }
    }

    #[test]
    fn outputs_can_be_weighed() {
        let g = random_matrix(Distribution::Gaussian, D_OUT, 40, 8, 1);
        let g = g.product(&g.transposed()).unwrap();
        let output = Whitening::new(&g, None, &Conditioning::default()).unwrap();
        let input = whitening(Centring::Centred);
        let options = LowRankOptions::default();
        let both = LowRank::new(&weight(), Some(&input), Some(&output), &options).unwrap();
        let one = LowRank::new(&weight(), Some(&input), None, &options).unwrap();
        let weighed = |f: &Factors| {
            let error = output_error(f);
            let outer = error.product(&g).unwrap();
            (0..COUNT).map(|i| (0..D_OUT).map(|j| outer.at(i, j) * error.at(i, j)).sum::<f64>()).sum::<f64>()
                / COUNT as f64
        };
        for k in [2, 8] {
            let measured = weighed(&both.factors(k).unwrap());
            assert!(close(measured, both.squared_errors()[k], measured));
            assert!(measured <= weighed(&one.factors(k).unwrap()));
        }
        let full = both.factors(D_OUT).unwrap();
        assert!(difference(&weight(), &full.left.product(&full.right).unwrap()).squared_norm() < 1e-9);
    }

    #[test]
    fn factors_are_balanced_and_signed() {
        let low =
            LowRank::new(&weight(), Some(&whitening(Centring::Centred)), None, &LowRankOptions::default())
                .unwrap();
        let f = low.factors(9).unwrap();
        for r in 0..9 {
            let left: f64 = (0..D_IN).map(|i| f.left.at(i, r).powi(2)).sum();
            let right: f64 = (0..D_OUT).map(|j| f.right.at(r, j).powi(2)).sum();
            assert!((left / right - 1.0).abs() < 1e-5);
            let row: Vec<f64> = (0..D_OUT).map(|j| f.right.at(r, j)).collect();
            assert!(row.iter().any(|v| *v > 0.0 && row.iter().all(|u| u.abs() <= *v)));
        }
        let prefix = low.factors(4).unwrap();
        assert!((0..4).all(|r| (0..D_IN).all(|i| prefix.left.at(i, r) == f.left.at(i, r))));
        assert_eq!(
            f.left.to_row_major().iter().map(|v| f64::from(*v)).collect::<Vec<_>>(),
            f.left.to_row_major_f64()
        );
    }

    #[test]
    fn randomized_path_reports_its_own_errors() {
        let white = whitening(Centring::Uncentred);
        let options = LowRankOptions {
            max_rank: Some(6),
            exact_up_to: 8,
            rsvd: RsvdOptions { oversampling: 3, ..RsvdOptions::default() },
        };
        let low = LowRank::new(&weight(), Some(&white), None, &options).unwrap();
        let again = LowRank::new(&weight(), Some(&white), None, &options).unwrap();
        assert_eq!(low.factors(6).unwrap(), again.factors(6).unwrap());
        let exact = LowRank::new(&weight(), Some(&white), None, &LowRankOptions::default()).unwrap();
        assert_eq!((low.max_rank(), low.squared_errors().len()), (6, 7));
        for k in 1..=6 {
            let measured = output_error(&low.factors(k).unwrap()).squared_norm() / COUNT as f64;
            let reported = low.squared_errors()[k];
            assert!(close(measured, reported, reported));
            let optimal = exact.squared_errors()[k];
            assert!(reported >= optimal * (1.0 - 1e-9) && reported.sqrt() < 1.04 * optimal.sqrt());
        }
        assert!(close(low.energy(), exact.energy(), 1e-6 * low.energy()));
    }

    #[test]
    fn inputs_that_never_vary_cost_nothing() {
        let mut gram = Gram::new(D_IN);
        (0..3).for_each(|_| gram.add_rows(&[0.5; D_IN]).unwrap());
        let white = Whitening::from_gram(&gram, Centring::Centred, &Conditioning::default()).unwrap();
        let low = LowRank::new(&weight(), Some(&white), None, &LowRankOptions::default()).unwrap();
        assert!(low.energy() < 1e-50);
        let f = low.factors(1).unwrap();
        assert!(f.left.to_row_major().iter().chain(&f.bias.unwrap()).all(|v| v.is_finite()));
        let zero = Matrix::from_fn(4, 3, |_, _| 0.0);
        let f = LowRank::new(&zero, None, None, &LowRankOptions::default()).unwrap().factors(2).unwrap();
        assert_eq!(f.left.product(&f.right).unwrap(), zero);
    }

    #[test]
    fn bad_input_is_named() {
        let white = whitening(Centring::Centred);
        let of = |w: &Matrix, output: Option<&Whitening>, max_rank| {
            let options = LowRankOptions { max_rank, ..LowRankOptions::default() };
            LowRank::new(w, Some(&white), output, &options).unwrap_err().to_string()
        };
        let inf = Matrix::from_fn(D_IN, 2, |i, _| if i == 3 { f64::NEG_INFINITY } else { 0.0 });
        assert_eq!(
            of(&inf, None, None),
            "the weight is not finite: expected a number at row 3, column 0, found -inf"
        );
        assert_eq!(
            of(&weight(), Some(&white), None),
            "the weight has the wrong shape: expected 24 x 24, found 24 x 17"
        );
        assert_eq!(of(&weight(), None, Some(18)), "rank is out of range: expected 1 to 17, found 18");
        assert_eq!(of(&weight(), None, Some(0)), "rank is out of range: expected 1 to 17, found 0");
        let low = LowRank::new(&weight(), None, None, &LowRankOptions::default()).unwrap();
        assert!(low.factors(0).is_err() && low.factors(18).is_err());
        assert!(low.factors(3).unwrap().bias.is_none());
    }

    /// Few long rows give the factors that their second moment gives.
    #[test]
    fn few_rows_are_as_good_as_their_moment() {
        let (d_in, d_out, count) = (60, 9, 12);
        let mut gram = Gram::new(d_in);
        gram.add_rows(&random_matrix(Distribution::Gaussian, count, d_in, 8, 1).to_row_major()).unwrap();
        let weight = random_matrix(Distribution::Gaussian, d_in, d_out, 8, 2);
        let conditioning = Conditioning { shrinkage: 0.01, floor: 1e-8 };
        let thin = Whitening::from_gram(&gram, Centring::Centred, &conditioning).unwrap();
        let (moment, mean) = (gram.covariance().unwrap(), gram.mean().unwrap());
        let whole = Whitening::new(&moment, Some(&mean), &conditioning).unwrap();
        let of = |w: &Whitening| LowRank::new(&weight, Some(w), None, &LowRankOptions::default()).unwrap();
        let (a, b) = (of(&thin), of(&whole));
        for k in 0..=d_out {
            let (found, expected) = (a.squared_errors()[k], b.squared_errors()[k]);
            assert!((found - expected).abs() < 1e-10 * b.energy(), "{k}: {found} and {expected}");
        }
        let (a, b) = (a.factors(4).unwrap(), b.factors(4).unwrap());
        let (a, b) = (a.left.product(&a.right).unwrap(), b.left.product(&b.right).unwrap());
        let off = Matrix::from_fn(d_in, d_out, |i, j| a.at(i, j) - b.at(i, j));
        assert!(off.squared_norm() < 1e-8 * b.squared_norm());
    }
}
