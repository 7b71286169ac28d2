//! Which coordinates of a vector say most about its image under a weight.
//!
//! For `y = h W` with `h` of second moment `C` and a set `S` of coordinates, the best weight for `h` of `S` alone is
//! `M = C_SS⁻¹ C_S: W`, and what is lost is the part of `y` that the coordinates of `S` do not determine linearly. The set
//! is grown by one coordinate at a time, by the one that lowers the loss most (orthogonal matching pursuit; see Chen,
//! Billings and Luo, *Orthogonal least squares methods*, 1989). With `R` the Schur complement of `C` after the coordinates
//! so far, that is the `i` of the greatest `‖(R W)_i‖² / R_ii`. A Cholesky decomposition `C = L Lᵀ` that is pivoted so keeps
//! `R` and `R W` up to date: its column `l` takes `l lᵀ` from `R` and `l y` from `R W`, where `y = lᵀ W` is the next row of
//! `Y = Lᵀ W`. The loss of the first `k` coordinates is `Σ_{i≥k} ‖Y_i‖²`, and `L_kᵀ M = Y_k` for the leading block `L_k`. One
//! decomposition serves every size. What whole blocks of columns take is taken by one product; inside of a block, squared
//! norms of rows of `R W` are corrected column by column.
//!
//! Deliberately absent: exchanging coordinates that were chosen early.

use faer::Mat;

use crate::bytes::{Reader, Writer};
use crate::matrix::{check_factorable, check_shape};
use crate::whitening::LEAST_VARIANCE;
use crate::{Matrix, RandnlaError, Whitening, dense};

/// Coordinates in the order of what they add, with errors and weights for every number of them.
#[derive(Clone, Debug)]
pub struct Subset {
    order: Vec<usize>,
    /// `L`: a row for each coordinate, a column for each place in the order.
    factor: Mat<f64>,
    /// `Yᵀ`: a column for each place in the order.
    image: Mat<f64>,
    squared_errors: Vec<f64>,
}

/// Columns that are taken by one product.
const BLOCK: usize = 32;

/// What is left after some blocks.
struct Rest {
    /// The coordinates that are not chosen yet, ascending.
    coordinates: Vec<usize>,
    /// `R`.
    schur: Mat<f64>,
    /// `(R W)ᵀ`.
    carried: Mat<f64>,
    /// Rounding must not turn a variance that is used up into a small or negative one.
    least: f64,
}

/// What a block takes.
struct Taken {
    order: Vec<usize>,
    /// Columns of `L`.
    columns: Mat<f64>,
    /// Columns of `Yᵀ`.
    image: Mat<f64>,
}

impl Rest {
    /// Chooses so many coordinates.
    fn take(&mut self, count: usize) -> Taken {
        let (dim, d_out) = (self.schur.nrows(), self.carried.nrows());
        let mut variances: Vec<f64> = (0..dim).map(|i| self.schur[(i, i)].max(self.least)).collect();
        let mut norms: Vec<f64> =
            (0..dim).map(|i| dot(column(&self.carried, i), column(&self.carried, i))).collect();
        // The rows of the columns of `L`, one after another, so that a row of a coordinate lies together.
        let mut rows = vec![0.0; dim * count];
        let (mut order, mut images): (Vec<usize>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
        for step in 0..count {
            let gain = |i: usize| norms[self.coordinates[i]] / variances[self.coordinates[i]];
            let best =
                (1..self.coordinates.len()).fold(0, |best, i| if gain(i) > gain(best) { i } else { best });
            let at = self.coordinates.remove(best);
            let root = variances[at].sqrt();
            let own = rows[at * count..at * count + step].to_vec();
            let mut y = column(&self.carried, at).to_vec();
            for (l, before) in own.iter().zip(&images) {
                y.iter_mut().zip(before).for_each(|(y, b)| *y -= l * b);
            }
            y.iter_mut().for_each(|y| *y /= root);
            let before: Vec<f64> = images.iter().map(|b| dot(b, &y)).collect();
            let energy = dot(&y, &y);
            for &i in &self.coordinates {
                let row = &mut rows[i * count..(i + 1) * count];
                let l = (self.schur[(i, at)] - dot(&row[..step], &own)) / root;
                let along = dot(column(&self.carried, i), &y) - dot(&row[..step], &before);
                norms[i] = (norms[i] + l * (l * energy - 2.0 * along)).max(0.0);
                variances[i] = (variances[i] - l * l).max(self.least);
                row[step] = l;
            }
            rows[at * count + step] = root;
            order.push(at);
            images.push(y);
        }
        let columns = Mat::from_fn(dim, count, |i, step| rows[i * count + step]);
        let image = Mat::from_fn(d_out, count, |j, step| images[step][j]);
        let negative = Mat::from_fn(count, dim, |step, i| -rows[i * count + step]);
        dense::add_product(self.schur.as_mut(), columns.as_ref(), negative.as_ref());
        dense::add_product(self.carried.as_mut(), image.as_ref(), negative.as_ref());
        Taken { order, columns, image }
    }
}

impl Subset {
    /// Orders the coordinates of `h`: `moment` is `[dim, dim]` and symmetric, `weight` `[dim, d_out]`. `outputs` (dimension
    /// `d_out`) weighs the outputs, for the order and the errors; the best weight for some coordinates is the same in every
    /// metric. `shrinkage` is the share of the mean variance that is mixed into the moment, against trusting a small sample.
    ///
    /// # Errors
    /// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`] and [`RandnlaError::Shape`].
    pub fn new(
        moment: &Matrix,
        weight: &Matrix,
        outputs: Option<&Whitening>,
        shrinkage: f64,
    ) -> Result<Subset, RandnlaError> {
        check_factorable("the second moment", moment)?;
        check_factorable("the weight", weight)?;
        let (dim, d_out) = (weight.rows(), weight.columns());
        check_shape("the weight", (dim, outputs.map_or(d_out, Whitening::dim)), weight)?;
        let transposed = weight.as_ref().transpose();
        let scaled = outputs.map(|outputs| outputs.whiten(transposed));
        let scaled = scaled.as_ref().map_or(transposed, Mat::as_ref);
        check_shape("the second moment", (dim, dim), moment)?;
        let mean = (0..dim).map(|i| moment.at(i, i)).sum::<f64>() / dim as f64;
        // Under a moment of zero every order is as good; a small ridge keeps the decomposition defined.
        let ridge = (shrinkage * mean).max(1e-12 * mean).max(LEAST_VARIANCE);
        let schur = Mat::from_fn(dim, dim, |i, j| {
            (1.0 - shrinkage) * moment.at(i, j) + if i == j { ridge } else { 0.0 }
        });
        let carried = dense::product(scaled, schur.as_ref());
        let mut rest = Rest { coordinates: (0..dim).collect(), schur, carried, least: 1e-6 * ridge };
        let mut order = Vec::with_capacity(dim);
        // A root of few rows has more of them than the outputs.
        let (mut factor, mut image) = (Mat::zeros(dim, dim), Mat::zeros(scaled.nrows(), dim));
        while !rest.coordinates.is_empty() {
            let (first, count) = (order.len(), BLOCK.min(rest.coordinates.len()));
            let taken = rest.take(count);
            order.extend(taken.order);
            factor.as_mut().subcols_mut(first, count).copy_from(&taken.columns);
            image.as_mut().subcols_mut(first, count).copy_from(&taken.image);
        }
        let mut squared_errors = vec![0.0; dim + 1];
        for k in (0..dim).rev() {
            squared_errors[k] = squared_errors[k + 1] + dense::squared_column(image.as_ref(), k);
        }
        if outputs.is_some() {
            image = dense::product(transposed, factor.as_ref());
        }
        Ok(Subset { order, factor, image, squared_errors })
    }

    /// Everything, as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.size(self.order.len());
        self.order.iter().for_each(|i| out.size(*i));
        out.columns(self.factor.as_ref(), false);
        out.columns(self.image.as_ref(), false);
        out.numbers(&self.squared_errors);
        out.0
    }

    /// What [`to_bytes`](Subset::to_bytes) gave these bytes, to the last bit; `None` for others.
    pub fn from_bytes(bytes: &[u8]) -> Option<Subset> {
        let mut read = Reader(bytes);
        let dim = read.size().filter(|dim| *dim <= bytes.len())?;
        let order = (0..dim).map(|_| read.size()).collect::<Option<Vec<usize>>>()?;
        let (factor, image) = (read.columns(false)?, read.columns(false)?);
        let squared_errors = read.numbers()?;
        let mut all = order.clone();
        all.sort_unstable();
        let fits = all.into_iter().eq(0..dim)
            && (factor.nrows(), factor.ncols(), image.ncols()) == (dim, dim, dim)
            && squared_errors.len() == dim + 1;
        read.end(Subset { order, factor, image, squared_errors }).filter(|_| fits)
    }

    /// The first `k` coordinates, ascending.
    ///
    /// # Errors
    /// [`RandnlaError::Rank`] unless `k` is between 1 and the dimension.
    pub fn coordinates(&self, k: usize) -> Result<Vec<usize>, RandnlaError> {
        self.check(k)?;
        let mut chosen = self.order[..k].to_vec();
        chosen.sort_unstable();
        Ok(chosen)
    }

    /// The weight `[k, d_out]` for the first `k` coordinates, in the order of [`coordinates`](Subset::coordinates).
    ///
    /// # Errors
    /// [`RandnlaError::Rank`] unless `k` is between 1 and the dimension.
    pub fn weight(&self, k: usize) -> Result<Matrix, RandnlaError> {
        self.check(k)?;
        let upper = Mat::from_fn(k, k, |i, j| if i <= j { self.factor[(self.order[j], i)] } else { 0.0 });
        let solved = dense::solve_upper(upper.as_ref(), self.image.as_ref().subcols(0, k).transpose());
        let mut ascending: Vec<usize> = (0..k).collect();
        ascending.sort_unstable_by_key(|&i| self.order[i]);
        Ok(Matrix::from_fn(k, self.image.nrows(), |i, j| solved[(ascending[i], j)]))
    }

    /// The mean squared error of the output for every number of coordinates, from 0 to all, for the moment with its
    /// shrinkage. Entry 0 is the mean squared output; the entries never rise.
    pub fn squared_errors(&self) -> &[f64] {
        &self.squared_errors
    }

    fn check(&self, k: usize) -> Result<(), RandnlaError> {
        match (1..=self.order.len()).contains(&k) {
            true => Ok(()),
            false => Err(RandnlaError::Rank { max: self.order.len(), found: k }),
        }
    }
}

/// A column, which lies together.
fn column(m: &Mat<f64>, j: usize) -> &[f64] {
    m.col_as_slice(j)
}

/// The inner product, in eight sums side by side.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a.zip(b) {
        sums.iter_mut().zip(x.iter().zip(y)).for_each(|(s, (x, y))| *s += x * y);
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Centring, Conditioning, Distribution, Gram, random_matrix};

    const DIM: usize = 21;
    const D_OUT: usize = 6;
    const ROWS: usize = 300;

    fn rows() -> Matrix {
        let noise = random_matrix(Distribution::Gaussian, ROWS, DIM, 3, 1);
        let mixed = noise.product(&random_matrix(Distribution::Gaussian, DIM, DIM, 4, 1)).unwrap();
        let data = Matrix::from_fn(ROWS, DIM, |i, j| mixed.at(i, j) * 0.8f64.powi(j as i32)).to_row_major();
        Matrix::from_row_major(ROWS, DIM, &data).unwrap()
    }

    fn weight() -> Matrix {
        random_matrix(Distribution::Gaussian, DIM, D_OUT, 5, 1)
    }

    fn moment() -> Matrix {
        let mut gram = Gram::new(DIM);
        gram.add_rows(&rows().to_row_major()).unwrap();
        gram.second_moment().unwrap()
    }

    /// The mean squared error of a weight on some coordinates of the rows.
    fn measured(chosen: &[usize], refit: &Matrix) -> f64 {
        let h = rows();
        let kept = Matrix::from_fn(ROWS, chosen.len(), |i, j| h.at(i, chosen[j])).product(refit).unwrap();
        let all = h.product(&weight()).unwrap();
        Matrix::from_fn(ROWS, D_OUT, |i, j| all.at(i, j) - kept.at(i, j)).squared_norm() / ROWS as f64
    }

    #[test]
    fn what_is_written_is_read_to_the_bit() {
        let subset = Subset::new(&moment(), &weight(), None, 0.0).unwrap();
        let bytes = subset.to_bytes();
        let read = Subset::from_bytes(&bytes).unwrap();
        assert_eq!(read.to_bytes(), bytes);
        assert_eq!(read.weight(4).unwrap(), subset.weight(4).unwrap());
        for n in (0..bytes.len()).step_by(7) {
            assert!(Subset::from_bytes(&bytes[..n]).is_none(), "{n} of {} bytes", bytes.len());
        }
        // A coordinate twice.
        let twice = [&bytes[..8], &bytes[8..16], &bytes[8..16], &bytes[24..]].concat();
        assert!(Subset::from_bytes(&twice).is_none());
    }

    #[test]
    fn errors_are_those_on_the_sample() {
        let subset = Subset::new(&moment(), &weight(), None, 0.0).unwrap();
        let energy = subset.squared_errors()[0];
        assert!(subset.squared_errors().windows(2).all(|w| w[0] >= w[1]));
        for k in 1..=DIM {
            let found = measured(&subset.coordinates(k).unwrap(), &subset.weight(k).unwrap());
            let expected = subset.squared_errors()[k];
            assert!((found - expected).abs() <= 1e-6 * energy, "{k}: {found} and {expected}");
        }
    }

    /// Each coordinate is the best one to follow those before it, and no smaller weight than the fitted one does better.
    #[test]
    fn every_step_is_the_best_one() {
        let (c, w) = (moment(), weight());
        let subset = Subset::new(&c, &w, None, 0.0).unwrap();
        // The least loss with some coordinates, by a subset of these alone.
        let loss = |chosen: &[usize]| {
            let k = chosen.len();
            let block = Matrix::from_fn(k, k, |i, j| c.at(chosen[i], chosen[j]));
            let image = c.product(&w).unwrap();
            // `C_SS⁻¹ (C W)_S` as the weight that has this image: pursuit over all coordinates of the block is exact.
            let right = Matrix::from_fn(k, D_OUT, |i, j| image.at(chosen[i], j));
            let mut solved: Vec<Vec<f64>> =
                (0..k).map(|i| (0..D_OUT).map(|j| right.at(i, j)).collect()).collect();
            let mut a: Vec<Vec<f64>> = (0..k).map(|i| (0..k).map(|j| block.at(i, j)).collect()).collect();
            for i in 0..k {
                let (pivot, scale) = (a[i].clone(), a[i][i]);
                let value = solved[i].clone();
                for r in (0..k).filter(|r| *r != i) {
                    let share = a[r][i] / scale;
                    a[r].iter_mut().zip(&pivot).for_each(|(x, p)| *x -= share * p);
                    solved[r].iter_mut().zip(&value).for_each(|(x, p)| *x -= share * p);
                }
            }
            measured(chosen, &Matrix::from_fn(k, D_OUT, |i, j| solved[i][j] / a[i][i]))
        };
        for k in 1..6 {
            let before = &subset.order[..k - 1];
            let losses = (0..DIM).filter(|i| !before.contains(i)).map(|i| {
                let chosen: Vec<usize> = before.iter().copied().chain([i]).collect();
                (loss(&chosen), i)
            });
            let (least, best) = losses.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
            assert_eq!(best, subset.order[k - 1], "step {k}");
            assert!((least - subset.squared_errors()[k]).abs() < 1e-6 * subset.squared_errors()[0]);
        }
    }

    #[test]
    fn all_coordinates_have_the_weight_itself() {
        for shrinkage in [0.0, 0.01] {
            let all = Subset::new(&moment(), &weight(), None, shrinkage).unwrap().weight(DIM).unwrap();
            let off = Matrix::from_fn(DIM, D_OUT, |i, j| all.at(i, j) - weight().at(i, j)).squared_norm();
            assert!(off < 1e-12 * weight().squared_norm(), "{off}");
        }
    }

    #[test]
    fn coordinates_that_say_nothing_come_last() {
        // Independent coordinates, of which two thirds are not read.
        let unit = Matrix::from_fn(DIM, DIM, |i, j| if i == j { 1.0 } else { 0.0 });
        let used = Matrix::from_fn(DIM, D_OUT, |i, j| if i % 3 == 0 { weight().at(i, j) } else { 0.0 });
        let subset = Subset::new(&unit, &used, None, 0.0).unwrap();
        assert_eq!(subset.coordinates(7).unwrap(), [0, 3, 6, 9, 12, 15, 18]);
        assert!(subset.squared_errors()[7] <= 1e-9 * subset.squared_errors()[0]);
        assert!(subset.coordinates(0).is_err() && subset.weight(DIM + 1).is_err());
    }

    /// Outputs that few rows were seen of weigh as their whole moment does.
    #[test]
    fn outputs_of_few_rows_weigh_as_their_moment() {
        let mut gram = Gram::new(D_OUT);
        gram.add_rows(&random_matrix(Distribution::Gaussian, 2, D_OUT, 8, 1).to_row_major()).unwrap();
        let conditioning = Conditioning { shrinkage: 0.0, floor: 1e-6 };
        let thin = Whitening::from_gram(&gram, Centring::Uncentred, &conditioning).unwrap();
        let whole = Whitening::new(&gram.second_moment().unwrap(), None, &conditioning).unwrap();
        let of = |outputs: &Whitening| Subset::new(&moment(), &weight(), Some(outputs), 0.01).unwrap();
        let (thin, whole) = (of(&thin), of(&whole));
        assert_eq!(thin.order, whole.order);
        for (a, b) in thin.squared_errors().iter().zip(whole.squared_errors()) {
            assert!((a - b).abs() <= 1e-9 * whole.squared_errors()[0], "{a} {b}");
        }
    }

    /// What never varies says nothing, and leaves weights that are no larger than the whole one.
    #[test]
    fn coordinates_that_never_vary_blow_nothing_up() {
        let mut gram = Gram::new(DIM);
        let row: Vec<f32> = (0..DIM).map(|i| 1.0 / 3.0 + i as f32).collect();
        (0..1000).for_each(|_| gram.add_rows(&row).unwrap());
        let subset = Subset::new(&gram.covariance().unwrap(), &weight(), None, 0.01).unwrap();
        for k in 1..=DIM {
            let norm = subset.weight(k).unwrap().squared_norm();
            assert!(norm <= 10.0 * weight().squared_norm(), "{k}: {norm}");
        }
    }

    #[test]
    fn bad_input_is_named() {
        let nan = Matrix::from_fn(DIM, D_OUT, |_, _| f64::NAN);
        let of = |c: &Matrix, w: &Matrix| Subset::new(c, w, None, 0.0).unwrap_err().to_string();
        assert!(of(&moment(), &nan).starts_with("the weight is not finite"));
        assert_eq!(
            of(&weight(), &weight()),
            "the second moment has the wrong shape: expected 21 x 21, found 21 x 6"
        );
        // A moment of nothing at all is no error.
        let zero = Matrix::from_fn(DIM, DIM, |_, _| 0.0);
        assert!(
            Subset::new(&zero, &weight(), None, 0.01).unwrap().weight(3).unwrap().squared_norm().is_finite()
        );
    }
}
