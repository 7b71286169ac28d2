//! Approximations of symmetric positive semidefinite matrices.
//!
//! A Nyström approximation `A Ω (Ωᵀ A Ω)⁺ Ωᵀ A` needs one product with `A` and never exceeds it (Tropp, Yurtsever, Udell and
//! Cevher, *Fixed-rank approximation of a positive-semidefinite matrix from streaming data*, NeurIPS 2017). It is a good
//! preconditioner where eigenvalues fall fast (Frangella, Tropp and Udell, *Randomized Nyström preconditioning*, SIMAX
//! 2023). Randomly pivoted Cholesky reads some columns and the diagonal only (Chen, Epperly, Tropp and Webber, *Randomly
//! pivoted Cholesky*, CPAM 2025).

use faer::{Mat, MatRef};
use margay_tensor::random::Philox;

use crate::dense::ThinSvd;
use crate::view::check_square;
use crate::{
    Distribution, Law, LinearOperator, Matrix, RandnlaError, Scalar, Sketch, dense, spectral_norm_bound,
};

/// Leading eigenvalues and eigenvectors of a positive semidefinite matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Eigen<T = f64> {
    /// Descending, at least 0: `[rank]`.
    pub values: Vec<f64>,
    /// Orthonormal columns: `[n, rank]`.
    pub vectors: Matrix<T>,
}

impl<T: Scalar> Eigen<T> {
    /// Number of eigenvalues held.
    pub fn rank(&self) -> usize {
        self.values.len()
    }

    /// `V f(Λ) Vᵀ x`.
    fn times(&self, f: impl Fn(f64) -> f64, x: MatRef<'_, T>) -> Mat<T> {
        let mut inner = dense::product(self.vectors.as_ref().transpose(), x);
        let scale: Vec<f64> = self.values.iter().map(|v| f(*v)).collect();
        dense::scale_rows(&mut inner, &scale);
        dense::product(self.vectors.as_ref(), inner.as_ref())
    }
}

/// What an approximation of a positive semidefinite matrix leaves out.
struct Rest<'a, T, O> {
    operator: &'a O,
    eigen: &'a Eigen<T>,
}

impl<T: Scalar, O: LinearOperator<Scalar = T>> LinearOperator for Rest<'_, T, O> {
    type Scalar = T;

    fn shape(&self) -> (usize, usize) {
        self.operator.shape()
    }

    fn apply(&self, x: MatRef<'_, T>) -> Mat<T> {
        self.operator.apply(x) - self.eigen.times(|v| v, x)
    }

    fn apply_transposed(&self, x: MatRef<'_, T>) -> Mat<T> {
        self.apply(x)
    }
}

/// A Nyström approximation of this rank from `rank + oversampling` products with the matrix.
///
/// With `p` further vectors, `E ‖A - Â‖ ≤ (1 + k / (p - 1)) Σ_{i>k} λᵢ` in the nuclear norm, before truncation to the rank.
///
/// # Errors
/// [`RandnlaError::Shape`] unless the operator is square, [`RandnlaError::Rank`] unless the rank is between 1 and its size,
/// [`RandnlaError::NonFinite`] for products that are not finite, and [`RandnlaError::Indefinite`] if it is not positive
/// semidefinite.
pub fn nystrom<O: LinearOperator>(
    a: &O,
    rank: usize,
    oversampling: usize,
    seed: u64,
    stream: u64,
) -> Result<Eigen<O::Scalar>, RandnlaError> {
    let n = check_square("the operator", a)?;
    if rank == 0 || rank > n {
        return Err(RandnlaError::Rank { max: n, found: rank });
    }
    let size = rank.saturating_add(oversampling).min(n);
    let test = Sketch::new(Law::Dense(Distribution::Gaussian), size, n, seed, stream)?;
    // Orthonormal vectors keep the small matrix well conditioned.
    let test = dense::orthonormal_basis(test.to_matrix::<O::Scalar>().as_ref().transpose().to_owned());
    let mut image = a.apply(test.as_ref());
    check_image(&image)?;
    // A shift of the size of rounding errors keeps the small matrix positive definite; it is taken off at the end.
    let norm = dense::squared_norm(image.as_ref()).sqrt();
    let shift = O::Scalar::EPSILON * norm * (n as f64).sqrt();
    for j in 0..size {
        for i in 0..n {
            image[(i, j)] += O::Scalar::from_f64(shift) * test[(i, j)];
        }
    }
    let core = dense::product(test.transpose(), image.as_ref());
    let triangle = match norm == 0.0 {
        true => Mat::identity(size, size),
        false => dense::cholesky(core.as_ref())
            .map_err(|at| RandnlaError::Indefinite { found: core[(at, at)].to_f64() })?,
    };
    dense::divide_by_upper(image.as_mut(), triangle.as_ref());
    let ThinSvd { u, s, .. } = dense::thin_svd(image.as_ref())?;
    Ok(Eigen {
        values: s[..rank].iter().map(|s| (s * s - shift).max(0.0)).collect(),
        vectors: Matrix::new(u.subcols(0, rank).to_owned()),
    })
}

fn check_image<T: Scalar>(image: &Mat<T>) -> Result<(), RandnlaError> {
    crate::MatrixRef::from(image).check("the product with the operator")
}

/// How the rank of an eigendecomposition is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Revd2Options {
    /// The greatest error, relative to the greatest eigenvalue, in the spectral norm.
    pub tolerance: f64,
    /// The rank that is tried first; it doubles until the error is small enough.
    pub first_rank: usize,
    /// The greatest rank; `None` for the size of the matrix.
    pub max_rank: Option<usize>,
    /// Vectors for the bound of the error, which is too small with a probability of at most `10^-vectors` for each rank.
    pub vectors: usize,
    /// Seed of the random stream.
    pub seed: u64,
    /// Number of the first of the random streams; one for each rank that is tried, and one for each bound.
    pub stream: u64,
}

impl Default for Revd2Options {
    /// Tolerance 0.01, from rank 16 to any, 6 vectors, seed 0, streams from 0.
    fn default() -> Revd2Options {
        Revd2Options { tolerance: 1e-2, first_rank: 16, max_rank: None, vectors: 6, seed: 0, stream: 0 }
    }
}

/// An eigendecomposition of a positive semidefinite matrix whose rank is found, and a bound of its error in the spectral
/// norm, by Nyström approximations of doubling rank (Frangella, Tropp and Udell 2023, algorithm 2, with the bound of
/// [`spectral_norm_bound`] in the place of an estimate by the power method, which comes from below).
///
/// The bound meets the tolerance unless the greatest rank is reached.
///
/// # Errors
/// Those of [`nystrom`], and [`RandnlaError::Parameter`] for a tolerance that is negative or not finite.
pub fn revd2<O: LinearOperator>(
    a: &O,
    options: &Revd2Options,
) -> Result<(Eigen<O::Scalar>, f64), RandnlaError> {
    let n = check_square("the operator", a)?;
    let Revd2Options { tolerance, vectors, seed, stream, .. } = *options;
    if !(tolerance >= 0.0 && tolerance.is_finite()) {
        let expected = "a finite number of at least 0";
        return Err(RandnlaError::Parameter { name: "tolerance", expected, found: tolerance });
    }
    let max_rank = options.max_rank.unwrap_or(n);
    if max_rank == 0 || max_rank > n {
        return Err(RandnlaError::Rank { max: n, found: max_rank });
    }
    let mut rank = options.first_rank.clamp(1, max_rank);
    for round in 0u64.. {
        let streams = [2 * round, 2 * round + 1].map(|s| stream.wrapping_add(s));
        let eigen = nystrom(a, rank, 0, seed, streams[0])?;
        let bound = spectral_norm_bound(&Rest { operator: a, eigen: &eigen }, vectors, seed, streams[1])?;
        if bound <= tolerance * eigen.values[0] || rank == max_rank {
            return Ok((eigen, bound));
        }
        rank = rank.saturating_mul(2).min(max_rank);
    }
    unreachable!("the rank grows until it is the greatest")
}

/// A partial Cholesky decomposition `A ≈ F Fᵀ`.
#[derive(Clone, Debug, PartialEq)]
pub struct PartialCholesky<T = f64> {
    /// `[n, rank]`.
    pub factor: Matrix<T>,
    /// The columns of `A` that were read, in order: `[rank]`.
    pub pivots: Vec<usize>,
    /// The trace of `A - F Fᵀ`, which bounds its norm.
    pub trace_error: f64,
}

impl<T: Scalar> PartialCholesky<T> {
    /// Eigenvalues and eigenvectors of `F Fᵀ`.
    ///
    /// # Errors
    /// [`RandnlaError::NoConvergence`].
    pub fn eigen(&self) -> Result<Eigen<T>, RandnlaError> {
        let ThinSvd { u, s, .. } = dense::thin_svd(self.factor.as_ref())?;
        Ok(Eigen { values: s.iter().map(|s| s * s).collect(), vectors: Matrix::new(u) })
    }
}

/// A partial Cholesky decomposition with random pivots, each with a probability proportional to what is left of the
/// diagonal. It reads the diagonal and `rank` columns, and costs `n k²` further operations. It ends early where nothing is
/// left.
///
/// # Errors
/// [`RandnlaError::Empty`]; [`RandnlaError::Rank`] unless the rank is between 1 and the size; [`RandnlaError::Length`] if
/// a column has another length; [`RandnlaError::NonFinite`]; and [`RandnlaError::Indefinite`] for a diagonal entry below 0.
pub fn rpcholesky<T: Scalar>(
    diagonal: &[T],
    mut column: impl FnMut(usize) -> Vec<T>,
    rank: usize,
    seed: u64,
    stream: u64,
) -> Result<PartialCholesky<T>, RandnlaError> {
    let n = diagonal.len();
    crate::MatrixRef::from_row_major(n, 1, diagonal)?.check("the diagonal")?;
    if rank == 0 || rank > n {
        return Err(RandnlaError::Rank { max: n, found: rank });
    }
    let mut left: Vec<f64> = diagonal.iter().map(|d| d.to_f64()).collect();
    if let Some(&found) = left.iter().find(|d| **d < 0.0) {
        return Err(RandnlaError::Indefinite { found });
    }
    let whole: f64 = left.iter().sum();
    let philox = Philox::new(seed, stream);
    let mut factor: Mat<T> = Mat::zeros(n, rank);
    let mut pivots = Vec::with_capacity(rank);
    for k in 0..rank {
        let total: f64 = left.iter().sum();
        if total <= T::EPSILON * whole {
            break;
        }
        let mut draw = [0.0];
        philox.fill_uniform_f64(k as u64, &mut draw);
        let mut rest = draw[0] * total;
        let hit = left.iter().position(|d| {
            rest -= d;
            rest < 0.0
        });
        let Some(pivot) = hit.or_else(|| left.iter().rposition(|d| *d > 0.0)) else { break };
        let read = column(pivot);
        if read.len() != n {
            return Err(RandnlaError::Length { what: "a column", expected: n, found: read.len() });
        }
        crate::MatrixRef::from_row_major(n, 1, &read)?.check("a column")?;
        let mut rest = MatRef::from_column_major_slice(&read, n, 1).to_owned();
        let known = factor.as_ref().subcols(0, k);
        dense::subtract_product(rest.as_mut(), known, known.subrows(pivot, 1).transpose());
        let found = rest[(pivot, 0)].to_f64();
        if found <= 0.0 {
            // What is left of the diagonal there is rounding.
            left[pivot] = 0.0;
            let kept = k;
            return Ok(partial(factor, pivots, left, kept));
        }
        let root = found.sqrt();
        for i in 0..n {
            let v = rest[(i, 0)].to_f64() / root;
            factor[(i, k)] = T::from_f64(v);
            left[i] = (left[i] - v * v).max(0.0);
        }
        left[pivot] = 0.0;
        pivots.push(pivot);
    }
    let kept = pivots.len();
    Ok(partial(factor, pivots, left, kept))
}

fn partial<T: Scalar>(factor: Mat<T>, pivots: Vec<usize>, left: Vec<f64>, kept: usize) -> PartialCholesky<T> {
    let trace_error = left.iter().sum();
    PartialCholesky { factor: Matrix::new(factor.subcols(0, kept).to_owned()), pivots, trace_error }
}

/// Solves `(A + μ I) x = b` by conjugate gradients, preconditioned by an approximation of `A`:
/// `P⁻¹ = (λₖ + μ) V (Λ + μ)⁻¹ Vᵀ + (I - V Vᵀ)` (Frangella, Tropp and Udell 2023).
///
/// It ends when the residual is `tolerance` times the norm of `b`, or after `max_iterations`.
///
/// # Errors
/// [`RandnlaError::Shape`] unless the operator is square and `b` has a row for each of its rows;
/// [`RandnlaError::Parameter`] for a negative `μ`.
pub fn conjugate_gradients<O: LinearOperator>(
    a: &O,
    shift: f64,
    b: &Matrix<O::Scalar>,
    preconditioner: Option<&Eigen<O::Scalar>>,
    tolerance: f64,
    max_iterations: usize,
) -> Result<Solution<O::Scalar>, RandnlaError> {
    let n = check_square("the operator", a)?;
    crate::matrix::check_shape("the right side", (n, 1), b)?;
    if let Some(eigen) = preconditioner {
        crate::matrix::check_shape("the preconditioner", (n, eigen.rank()), &eigen.vectors)?;
    }
    if !(shift >= 0.0 && shift.is_finite()) {
        let expected = "a finite number of at least 0";
        return Err(RandnlaError::Parameter { name: "shift", expected, found: shift });
    }
    let norm = |v: &Mat<O::Scalar>| dense::squared_norm(v.as_ref()).sqrt();
    let divided = |r: &Mat<O::Scalar>| match preconditioner {
        Some(eigen) if !eigen.values.is_empty() => {
            let last = eigen.values[eigen.rank() - 1];
            let floor = last.max(O::Scalar::EPSILON * eigen.values[0]);
            r + eigen.times(|v| (last + shift) / (v.max(floor) + shift) - 1.0, r.as_ref())
        }
        _ => r.clone(),
    };
    let scaled = |by: f64, v: &Mat<O::Scalar>| faer::Scale(O::Scalar::from_f64(by)) * v;
    let mut x = Mat::zeros(n, 1);
    let mut r = b.as_ref().to_owned();
    let target = tolerance * norm(&r);
    let mut z = divided(&r);
    let mut p = z.clone();
    let mut rz = inner(&r, &z);
    let mut iterations = 0;
    while iterations < max_iterations && norm(&r) > target && rz > 0.0 {
        let ap = a.apply(p.as_ref()) + scaled(shift, &p);
        let curvature = inner(&p, &ap);
        if curvature <= 0.0 || !curvature.is_finite() {
            break;
        }
        let step = rz / curvature;
        x += scaled(step, &p);
        r -= scaled(step, &ap);
        z = divided(&r);
        let next = inner(&r, &z);
        p = &z + scaled(next / rz, &p);
        rz = next;
        iterations += 1;
    }
    let residual = b.as_ref() - (a.apply(x.as_ref()) + scaled(shift, &x));
    Ok(Solution { x: Matrix::new(x), iterations, residual: norm(&residual) })
}

fn inner<T: Scalar>(a: &Mat<T>, b: &Mat<T>) -> f64 {
    (0..a.nrows()).map(|i| a[(i, 0)].to_f64() * b[(i, 0)].to_f64()).sum()
}

/// What an iteration found.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution<T = f64> {
    /// The solution, a column.
    pub x: Matrix<T>,
    /// Iterations done.
    pub iterations: usize,
    /// The norm of the residual, computed anew from the solution.
    pub residual: f64,
}
