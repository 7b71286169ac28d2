//! Directions of random features (Choromanski and others, *Rethinking Attention with Performers*, arXiv 2009.14794).
//!
//! For a direction `w` of independent standard normal entries, `E[exp(w·x - ‖x‖²/2) exp(w·y - ‖y‖²/2)] = exp(x·y)`: means
//! over directions are unbiased estimates of the exponential of a product of queries and keys, made of positive numbers.
//! With directions at right angles to each other the estimate stays unbiased, and its variance is smaller.
//!
//! [`Proposal`] draws directions from another normal law, fitted to queries and keys, and weighs them by the quotient of the
//! densities, which keeps the estimate unbiased: dense exponential features (Likhosherstov and others, *FAVOR#: Sharp Attention
//! Kernel Approximations via New Classes of Positive Random Features*, arXiv 2302.00787), written by the law of the directions.

use margay_tensor::random::stream_of;

use crate::{Distribution, Gram, Matrix, RandnlaError, dense, random_matrix};

/// How directions are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Directions {
    /// Independent, with standard normal entries.
    Independent,
    /// At right angles in blocks of as many as the dimension, with the lengths of independent ones. The last block may be
    /// shorter.
    #[default]
    Orthogonal,
    /// At right angles, all of length `√dim`: the regularized kernel, which estimates another function of `x` and `y` close
    /// to the exponential, with less variance.
    Regularized,
}

/// `count` random directions as the columns of a matrix `[dim, count]`, named by seed and stream.
///
/// The matrix of more directions begins with that of fewer, but for [`Directions::Orthogonal`] and
/// [`Directions::Regularized`] within the last block.
pub fn random_directions(kind: Directions, dim: usize, count: usize, seed: u64, stream: u64) -> Matrix {
    let drawn = random_matrix(Distribution::Gaussian, count, dim, seed, stream);
    if kind == Directions::Independent || dim == 0 || count == 0 {
        return drawn.transposed();
    }
    let lengths = random_matrix(Distribution::Gaussian, count, dim, seed, stream ^ stream_of("lengths"));
    let length = |at: usize| match kind {
        Directions::Regularized => (dim as f64).sqrt(),
        _ => (0..dim).map(|i| lengths.at(at, i).powi(2)).sum::<f64>().sqrt(),
    };
    let bases: Vec<Matrix> = (0..count)
        .step_by(dim)
        .map(|first| {
            let size = dim.min(count - first);
            let block = Matrix::from_fn(dim, size, |i, j| drawn.at(first + j, i));
            let basis = Matrix::new(dense::orthonormal_basis(block.clone().into_faer()));
            // Reflectors leave the sign of a column to one of its entries. Vectors towards the drawn ones are uniform.
            let along = |j: usize| (0..dim).map(|i| block.at(i, j) * basis.at(i, j)).sum::<f64>();
            let signs: Vec<f64> = (0..size).map(|j| along(j).signum()).collect();
            Matrix::from_fn(dim, size, |i, j| signs[j] * basis.at(i, j))
        })
        .collect();
    let lengths: Vec<f64> = (0..count).map(length).collect();
    Matrix::from_fn(dim, count, |i, at| lengths[at] * bases[at / dim].at(i, at % dim))
}

/// A normal law of directions, fitted to queries `x` and keys `y` whose product is to be estimated.
///
/// Products stay the same for `Bᵀ x` and `B⁻¹ y`, so that first a matrix `B` is taken for which the covariances of both are the
/// same, which is where that of their sum `z` is least. For directions `w = μ + L u` of normal `u` the estimate
///
/// ```text
/// exp(x·y) = E[ exp(w·x - ‖x‖²/2 + b) exp(w·y - ‖y‖²/2 + b) ]  with  b = ¼ log|L Lᵀ| + ¼ (‖u‖² - ‖w‖²)
/// ```
///
/// is unbiased for any `μ` and `L`. The logarithm of its relative second moment is on average least for `μ = E[z]` and `L Lᵀ` with
/// the eigenvectors of the covariance of `z`, where an eigenvalue m becomes `(3 + 2m + √((3 + 2m)² - 8)) / 4`: at least 1, and
/// the more the more `z` varies.
#[derive(Clone, Debug)]
pub struct Proposal {
    balance: Matrix,
    inverse: Matrix,
    mean: Vec<f64>,
    root: Matrix,
    /// `¼ log|L Lᵀ|`.
    offset: f64,
}

/// The share of the mean variance that is added to each variance: rows that never vary in some direction have an inverse then.
const VARIANCE_SHARE: f64 = 1e-3;

/// The least variance that is told from none.
const LEAST_VARIANCE: f64 = 1e-10;

impl Proposal {
    /// The law for queries and keys of one length with these moments.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`], [`RandnlaError::Length`] for rows of different lengths, and
    /// [`RandnlaError::NoConvergence`].
    pub fn fitted(queries: &Gram, keys: &Gram) -> Result<Proposal, RandnlaError> {
        if queries.dim() != keys.dim() {
            return Err(RandnlaError::Length { what: "a key", expected: queries.dim(), found: keys.dim() });
        }
        let of = |gram: &Gram| {
            let mut c = gram.covariance()?;
            let dim = gram.dim();
            let more = VARIANCE_SHARE * (0..dim).map(|i| c.at(i, i)).sum::<f64>() / dim.max(1) as f64;
            c = Matrix::from_fn(dim, dim, |i, j| {
                c.at(i, j) + if i == j { more + LEAST_VARIANCE } else { 0.0 }
            });
            Ok::<_, RandnlaError>(c)
        };
        let (cx, cy) = (of(queries)?, of(keys)?);
        // S = B Bᵀ solves S Cx S = Cy.
        let (root, back) = (power(&cx, 0.5)?, power(&cx, -0.5)?);
        let inner = power(&conjugated(&cy, &root)?, 0.5)?;
        let s = conjugated(&inner, &back)?;
        let (balance, inverse) = (power(&s, 0.5)?, power(&s, -0.5)?);
        let cz = Matrix::from_fn(cx.rows(), cx.rows(), {
            let (a, b) = (conjugated(&cx, &balance)?, conjugated(&cy, &inverse)?);
            move |i, j| a.at(i, j) + b.at(i, j)
        });
        let spread = |m: f64| {
            let linear = 3.0 + 2.0 * m.max(0.0);
            (linear + (linear * linear - 8.0).sqrt()) / 4.0
        };
        let (variances, axes) = dense::symmetric_eigen(cz.as_faer())?;
        let spreads: Vec<f64> = variances.into_iter().map(spread).collect();
        let (x, y) = (queries.mean()?, keys.mean()?);
        let dim = x.len();
        let along = |m: &Matrix, x: &[f64], i: usize| (0..dim).map(|j| m.at(i, j) * x[j]).sum::<f64>();
        let mean = (0..dim).map(|i| along(&balance, &x, i) + along(&inverse, &y, i)).collect();
        let root = of_eigen(&spreads, &Matrix::new(axes), f64::sqrt);
        let offset = 0.25 * spreads.iter().map(|s| s.ln()).sum::<f64>();
        Ok(Proposal { balance, inverse, mean, root, offset })
    }

    /// `B`, symmetric: rows of queries are multiplied by it.
    pub fn of_queries(&self) -> &Matrix {
        &self.balance
    }

    /// `B⁻¹`, symmetric: rows of keys are multiplied by it.
    pub fn of_keys(&self) -> &Matrix {
        &self.inverse
    }

    /// The directions `w` for standard normal ones `u`, both the columns of a matrix, and `b` for each.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] for columns of another length.
    pub fn directions(&self, u: &Matrix) -> Result<(Matrix, Vec<f64>), RandnlaError> {
        let w = self.root.product(u)?;
        let w = Matrix::from_fn(w.rows(), w.columns(), |i, j| self.mean[i] + w.at(i, j));
        let squared = |m: &Matrix, j: usize| (0..m.rows()).map(|i| m.at(i, j).powi(2)).sum::<f64>();
        let weights =
            (0..u.columns()).map(|j| self.offset + 0.25 * (squared(u, j) - squared(&w, j))).collect();
        Ok((w, weights))
    }
}

/// A power of a symmetric matrix without negative eigenvalues.
fn power(m: &Matrix, exponent: f64) -> Result<Matrix, RandnlaError> {
    let (values, vectors) = dense::symmetric_eigen(m.as_faer())?;
    let least = LEAST_VARIANCE * values.last().copied().unwrap_or(0.0).max(LEAST_VARIANCE);
    Ok(of_eigen(&values, &Matrix::new(vectors), |v| v.max(least).powf(exponent)))
}

/// `vectors · diag(f(values)) · vectorsᵀ`.
fn of_eigen(values: &[f64], vectors: &Matrix, f: impl Fn(f64) -> f64) -> Matrix {
    let scaled: Vec<f64> = values.iter().map(|v| f(*v)).collect();
    let dim = scaled.len();
    Matrix::from_fn(dim, dim, |i, j| (0..dim).map(|l| vectors.at(i, l) * scaled[l] * vectors.at(j, l)).sum())
}

/// `by · m · by` of symmetric matrices.
fn conjugated(m: &Matrix, by: &Matrix) -> Result<Matrix, RandnlaError> {
    by.product(m)?.product(by)
}
