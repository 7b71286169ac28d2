//! Canonical polyadic decompositions: sums of outer products.
//!
//! Alternating least squares solves for one mode's factor with the others fixed, a least squares problem with a row for
//! each combination of their indices. Only some rows are taken, drawn by the product of the leverage scores of the other
//! factors, which bounds their leverage in the problem from above (Battaglino, Ballard and Kolda, *A practical randomized
//! CP tensor decomposition*, SIMAX 2018; Larsen and Kolda, *Practical leverage-based sampling for low-rank tensor
//! decomposition*, SIMAX 2022).

use faer::{Mat, MatRef};
use margay_tensor::random::Philox;

use super::DenseTensor;
use crate::range::squared_residual;
use crate::{Distribution, Draw, Matrix, RandnlaError, Scalar, dense, random_matrix};

/// A sum of `rank` outer products: the element at `i₁ … i_d` is `Σᵣ wᵣ A₁[i₁, r] … A_d[i_d, r]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cp<T = f64> {
    /// `wᵣ`, at least 0: `[rank]`.
    pub weights: Vec<f64>,
    /// One for each mode, with columns of norm 1: `[extent, rank]`.
    pub factors: Vec<Matrix<T>>,
    /// `‖T - T̂‖ / ‖T‖` in the Frobenius norm, computed element by element.
    pub relative_error: f64,
}

/// How a canonical polyadic decomposition is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpOptions {
    /// Terms.
    pub rank: usize,
    /// Rounds over all modes.
    pub rounds: usize,
    /// Rows of each least squares problem; those of the whole where there are fewer.
    pub samples: usize,
    /// Seed of the random stream.
    pub seed: u64,
    /// Number of the first random stream: one for each factor, and one for samples.
    pub stream: u64,
}

/// A canonical polyadic decomposition by alternating least squares on sampled rows, from random factors.
///
/// It is not convex: other seeds may end elsewhere.
///
/// # Errors
/// [`RandnlaError::Length`] for a tensor of fewer than 2 modes, [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], and
/// [`RandnlaError::Parameter`] for a rank of 0 or fewer samples than the rank.
pub fn cp_als<T: Scalar>(tensor: &DenseTensor<T>, options: &CpOptions) -> Result<Cp<T>, RandnlaError> {
    tensor.check(2)?;
    let CpOptions { rank, samples, seed, stream, .. } = *options;
    if rank == 0 {
        return Err(RandnlaError::Parameter { name: "rank", expected: "at least 1", found: 0.0 });
    }
    if samples < rank {
        let (expected, found) = ("at least the rank", samples as f64);
        return Err(RandnlaError::Parameter { name: "samples", expected, found });
    }
    let modes = tensor.extents.len();
    let philox = Philox::new(seed, stream.wrapping_add(modes as u64));
    let mut factors: Vec<Mat<T>> = (0..modes)
        .map(|mode| {
            let stream = stream.wrapping_add(mode as u64);
            let draw = random_matrix(Distribution::Gaussian, tensor.extents[mode], rank, seed, stream);
            Mat::from_fn(tensor.extents[mode], rank, |i, j| T::from_f64(draw.at(i, j)))
        })
        .collect();
    let mut weights = vec![0.0; rank];
    let mut block = 0;
    for _ in 0..options.rounds.max(1) {
        for mode in 0..modes {
            let rows = Rows::draw(tensor, &factors, mode, samples, &philox, &mut block)?;
            let solved = rows.solve(tensor, &factors, mode);
            weights = (0..rank).map(|r| dense::squared_column(solved.as_ref(), r).sqrt()).collect();
            factors[mode] = solved;
            dense::scale_columns(
                &mut factors[mode],
                |r| if weights[r] > 0.0 { 1.0 / weights[r] } else { 0.0 },
            );
        }
    }
    let relative_error = relative_error(tensor, &weights, &factors);
    Ok(Cp { weights, factors: factors.into_iter().map(Matrix::new).collect(), relative_error })
}

/// Rows of a least squares problem: an index for each mode but one, and what the row is multiplied by.
struct Rows {
    indices: Vec<Vec<usize>>,
    weights: Vec<f64>,
}

impl Rows {
    fn draw<T: Scalar>(
        tensor: &DenseTensor<T>,
        factors: &[Mat<T>],
        mode: usize,
        samples: usize,
        philox: &Philox,
        block: &mut u64,
    ) -> Result<Rows, RandnlaError> {
        let (outer, inner) = tensor.around(mode);
        let others: Vec<usize> = (0..factors.len()).filter(|other| *other != mode).collect();
        let count = outer * inner;
        if count <= samples {
            let index = |mut rest: usize| {
                let mut index = vec![0; factors.len()];
                for &other in others.iter().rev() {
                    index[other] = rest % tensor.extents[other];
                    rest /= tensor.extents[other];
                }
                index
            };
            return Ok(Rows { indices: (0..count).map(index).collect(), weights: vec![1.0; count] });
        }
        let draws: Vec<Draw> = others
            .iter()
            .map(|&other| {
                // A little of the uniform distribution keeps every row possible.
                let basis = dense::orthonormal_basis(factors[other].clone());
                let floor = 1e-3 * basis.ncols() as f64 / basis.nrows() as f64;
                let scores: Vec<f64> =
                    (0..basis.nrows()).map(|i| floor + dense::squared_column(basis.transpose(), i)).collect();
                Draw::weighted(&scores)
            })
            .collect::<Result<_, _>>()?;
        let (mut indices, mut weights) = (Vec::with_capacity(samples), Vec::with_capacity(samples));
        for _ in 0..samples {
            let (mut index, mut p) = (vec![0; factors.len()], 1.0);
            for (&other, draw) in others.iter().zip(&draws) {
                let words = philox.block(*block);
                *block += 1;
                let bits = u64::from(words[0]) | u64::from(words[1]) << 32;
                let (i, share) = draw.index(bits, tensor.extents[other]);
                index[other] = i;
                p *= share;
            }
            indices.push(index);
            weights.push(1.0 / (p * samples as f64).sqrt());
        }
        Ok(Rows { indices, weights })
    }

    /// The factor that fits these rows best: `[extent, rank]`.
    fn solve<T: Scalar>(&self, tensor: &DenseTensor<T>, factors: &[Mat<T>], mode: usize) -> Mat<T> {
        let rank = factors[0].ncols();
        let (_, inner) = tensor.around(mode);
        let extent = tensor.extents[mode];
        let count = self.indices.len();
        let mut design: Mat<T> = Mat::zeros(count, rank);
        let mut right: Mat<T> = Mat::zeros(count, extent);
        for (row, (index, weight)) in self.indices.iter().zip(&self.weights).enumerate() {
            for r in 0..rank {
                let others = factors.iter().enumerate().filter(|(other, _)| *other != mode);
                let product = others.map(|(other, f)| f[(index[other], r)].to_f64()).product::<f64>();
                design[(row, r)] = T::from_f64(weight * product);
            }
            let first = index.iter().zip(&tensor.extents).fold(0, |at, (i, e)| at * e + i);
            for i in 0..extent {
                right[(row, i)] = T::from_f64(*weight) * tensor.data[first + i * inner];
            }
        }
        least_squares(design, right).transpose().to_owned()
    }
}

/// The `x` that minimizes `‖design x - right‖`, 0 along directions that vanish: by the semi-normal equations of a pivoted
/// decomposition, corrected once (Björck, *Stability analysis of the method of seminormal equations*, 1987).
fn least_squares<T: Scalar>(design: Mat<T>, right: Mat<T>) -> Mat<T> {
    let (columns, outputs) = (design.ncols(), right.ncols());
    let (triangle, pivots) = dense::pivoted_triangle(design.as_ref());
    let rank = crate::cholesky_qr::numerical_rank(triangle.as_ref(), T::EPSILON * columns as f64);
    let mut x: Mat<T> = Mat::zeros(columns, outputs);
    let picked = Mat::from_fn(design.nrows(), rank, |i, j| design[(i, pivots[j])]);
    let r = triangle.submatrix(0, 0, rank, rank);
    let mut rest = right;
    for _ in 0..2 {
        let gradient = dense::product(picked.transpose(), rest.as_ref());
        let half = dense::solve_upper_transposed(r, gradient.as_ref());
        let step = dense::solve_upper(r, half.as_ref());
        dense::subtract_product(rest.as_mut(), picked.as_ref(), step.as_ref());
        for (from, &to) in pivots[..rank].iter().enumerate() {
            (0..outputs).for_each(|j| x[(to, j)] += step[(from, j)]);
        }
    }
    x
}

fn relative_error<T: Scalar>(tensor: &DenseTensor<T>, weights: &[f64], factors: &[Mat<T>]) -> f64 {
    let mut first = factors[0].clone();
    dense::scale_columns(&mut first, |r| weights[r]);
    // Rows of the Khatri–Rao product of the other factors, the last varying fastest.
    let mut rest: Mat<T> = Mat::from_fn(1, weights.len(), |_, _| T::ONE);
    for factor in &factors[1..] {
        let extent = factor.nrows();
        rest = Mat::from_fn(rest.nrows() * extent, rest.ncols(), |i, r| {
            rest[(i / extent, r)] * factor[(i % extent, r)]
        });
    }
    let whole = tensor.squared_norm();
    let unfolding = MatRef::from_row_major_slice(&tensor.data, first.nrows(), rest.nrows());
    let left = squared_residual(unfolding.into(), first.as_ref(), rest.transpose());
    if whole > 0.0 { (left / whole).sqrt() } else { left.sqrt() }
}
