//! Spaces that nearly contain the range of a matrix, and how nearly.
//!
//! The image of a few random vectors spans such a space (Halko, Martinsson and Tropp, *Finding structure with randomness*,
//! SIAM Review 2011, algorithms 4.1 and 4.4). With `Q` an orthonormal basis of it, `A - Q Qᵀ A` and `Q Qᵀ A` are
//! orthogonal, so that the Frobenius norm of the error follows from that of `B = Qᵀ A`, and a basis may grow until the
//! error is small enough (Yu, Gu and Li, *Efficient randomized algorithms for the fixed-precision low-rank matrix
//! approximation*, SIMAX 2018, algorithm 2).

use faer::{Mat, MatRef};

use crate::dense::Reflectors;
use crate::{
    Distribution, Law, LinearOperator, Matrix, MatrixRef, RandnlaError, Scalar, Sketch, cholesky_qr, dense,
};

/// A basis found by [`range_finder`].
#[derive(Clone, Debug, PartialEq)]
pub struct RangeBasis<T = f64> {
    /// Orthonormal columns: `[rows, size]`.
    pub basis: Matrix<T>,
    /// The leave-one-out estimate of `‖A - Q Qᵀ A‖` (Frobenius norm): the root mean square, over the random vectors, of
    /// the error at one of them of the basis that the others give (Epperly and Tropp, *Efficient error and variance
    /// estimation for randomized matrix computations*, SISC 2024). It costs nothing. Its square is an unbiased estimate for
    /// a basis with one vector less, if the entries of the sketch are independent. `None` after power iterations, and where the
    /// images are linearly dependent to `16 m ε`, that is, where there is no error to speak of.
    pub leave_one_out: Option<f64>,
}

/// An orthonormal basis of the image of `sketchᵀ` after `power_iterations` further products with `A Aᵀ`.
///
/// `sketch` has a row for each vector of the basis and as many columns as `a`. With a Gaussian sketch of `k + p` rows,
/// `p ≥ 2`, and without power iterations, `E ‖A - Q Qᵀ A‖² ≤ (1 + k / (p - 1)) Σ_{i>k} σᵢ²`. The power iterations
/// divide the triangle of a sketch out after every product, which leaves a well conditioned basis, and orthonormalize the
/// last.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], [`RandnlaError::Shape`] unless the sketch has as many columns as
/// `a`, and [`RandnlaError::Rank`] if it has more rows than the smaller dimension.
pub fn range_finder<'a, T: Scalar>(
    a: impl Into<MatrixRef<'a, T>>,
    sketch: &Sketch,
    power_iterations: usize,
) -> Result<RangeBasis<T>, RandnlaError> {
    let a = a.into();
    a.check("the matrix")?;
    if sketch.columns() != a.columns() {
        let (expected, found) = ((sketch.rows(), a.columns()), (sketch.rows(), sketch.columns()));
        return Err(RandnlaError::Shape { what: "the sketch", expected, found });
    }
    check_rank(&a, sketch.rows())?;
    found_range(a, sketch, power_iterations)
}

/// [`range_finder`] of what was checked.
pub(crate) fn found_range<T: Scalar>(
    a: MatrixRef<'_, T>,
    sketch: &Sketch,
    power_iterations: usize,
) -> Result<RangeBasis<T>, RandnlaError> {
    let image = sketch.apply_right_transposed(a)?.into_faer();
    if power_iterations > 0 {
        let mut image = image;
        for _ in 0..power_iterations {
            let other = a.transposed().times(conditioned_basis(image).as_ref());
            image = a.times(conditioned_basis(other).as_ref());
        }
        let basis = Matrix::new(cholesky_qr::orthonormal_basis(image));
        return Ok(RangeBasis { basis, leave_one_out: None });
    }
    let reflectors = Reflectors::complete(image);
    let basis = reflectors.basis();
    let pivoted = reflectors.order.windows(2).any(|pair| pair[0] > pair[1]);
    let leave_one_out = if pivoted { None } else { leave_one_out(reflectors.triangle().as_ref()) };
    let leave_one_out = leave_one_out.map(|error| error / sketch.entry_variance().sqrt());
    Ok(RangeBasis { basis: Matrix::new(basis), leave_one_out })
}

/// A well conditioned basis of the range of `a`, which is all that a further product needs.
fn conditioned_basis<T: Scalar>(a: Mat<T>) -> Mat<T> {
    cholesky_qr::conditioned(a).unwrap_or_else(dense::orthonormal_basis)
}

/// With `A Ω = Q R`, leaving out vector `i` takes from the basis the direction `Q tᵢ` with `tᵢ` along row `i` of `R⁻¹`.
/// Then the error at that vector is `|tᵢᵀ R eᵢ| = 1 / ‖eᵢᵀ R⁻¹‖`.
fn leave_one_out<T: Scalar>(r: MatRef<'_, T>) -> Option<f64> {
    let n = r.ncols();
    if (0..n).any(|i| r[(i, i)] == T::ZERO) {
        return None;
    }
    let inverse = dense::solve_upper(r, Mat::identity(n, n).as_ref());
    let squared = (0..n).map(|i| 1.0 / dense::squared_column(inverse.transpose(), i)).sum::<f64>();
    Some((squared / n as f64).sqrt())
}

/// An error unless the rank is between 1 and the smaller dimension.
pub(crate) fn check_rank<T: Scalar>(a: &MatrixRef<'_, T>, rank: usize) -> Result<(), RandnlaError> {
    let max = a.rows().min(a.columns());
    match (1..=max).contains(&rank) {
        true => Ok(()),
        false => Err(RandnlaError::Rank { max, found: rank }),
    }
}

/// How a basis grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QbOptions {
    /// The relative error `‖A - Q B‖ / ‖A‖` in the Frobenius norm at which to stop.
    pub tolerance: f64,
    /// The greatest rank; `None` for the smaller dimension.
    pub max_rank: Option<usize>,
    /// Vectors that are added at a time.
    pub block: usize,
    /// Products with `A Aᵀ` beyond the first with `A`, for each block.
    pub power_iterations: usize,
    /// Entries of the test matrix.
    pub distribution: Distribution,
    /// Seed of the random stream.
    pub seed: u64,
    /// Number of the random stream.
    pub stream: u64,
}

impl Default for QbOptions {
    /// Tolerance 0.01, any rank, blocks of 32, one power iteration, Gaussian, seed 0, stream 0.
    fn default() -> QbOptions {
        QbOptions {
            tolerance: 1e-2,
            max_rank: None,
            block: 32,
            power_iterations: 1,
            distribution: Distribution::Gaussian,
            seed: 0,
            stream: 0,
        }
    }
}

/// An approximation `basis · coefficients`.
#[derive(Clone, Debug, PartialEq)]
pub struct Qb<T = f64> {
    /// Orthonormal columns: `[rows, rank]`.
    pub basis: Matrix<T>,
    /// The basis, transposed, times the matrix: `[rank, columns]`.
    pub coefficients: Matrix<T>,
    /// The squared Frobenius norm of what is left out.
    pub squared_error: f64,
    /// Whether the tolerance was met.
    pub converged: bool,
}

/// An approximation whose rank is found: vectors are added until the error is at most the tolerance.
///
/// The error is exact up to rounding: a difference of squared norms while that is accurate, and computed entry by entry
/// where the tolerance asks for less than the root of the rounding error. The smallest number of vectors of the last block
/// that meets the tolerance is kept. The result for a smaller tolerance begins with that for a greater one.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], [`RandnlaError::Rank`] for a greatest rank of 0 or above the
/// smaller dimension, and [`RandnlaError::Parameter`] for a block of 0 or a tolerance that is negative or not finite.
pub fn qb<'a, T: Scalar>(a: impl Into<MatrixRef<'a, T>>, options: &QbOptions) -> Result<Qb<T>, RandnlaError> {
    let a = a.into();
    a.check("the matrix")?;
    let QbOptions { tolerance, block, .. } = *options;
    if !(tolerance >= 0.0 && tolerance.is_finite()) {
        let expected = "a finite number of at least 0";
        return Err(RandnlaError::Parameter { name: "tolerance", expected, found: tolerance });
    }
    if block == 0 {
        return Err(RandnlaError::Parameter { name: "block", expected: "at least 1", found: 0.0 });
    }
    let smaller = a.rows().min(a.columns());
    let max_rank = options.max_rank.unwrap_or(smaller);
    check_rank(&a, max_rank)?;
    let law = Law::Dense(options.distribution);
    let test = Sketch::new(law, smaller, a.columns(), options.seed, options.stream)?.unscaled();
    let whole = a.squared_norm();
    let target = tolerance * tolerance * whole;
    let mut q: Mat<T> = Mat::zeros(a.rows(), 0);
    let mut b: Mat<T> = Mat::zeros(a.columns(), 0); // transposed
    let mut squared_error = whole;
    while q.ncols() < max_rank && squared_error > target {
        let first = q.ncols();
        let size = block.min(max_rank - first);
        let omega = test.window(first..first + size, 0..a.columns())?;
        let mut y = omega.apply_right_transposed(a)?.into_faer();
        for _ in 0..options.power_iterations {
            y = dense::orthonormal_beside(y, q.as_ref());
            let z = dense::orthonormal_basis(a.transposed().times(y.as_ref()));
            y = a.times(z.as_ref());
        }
        let new = dense::orthonormal_beside(y, q.as_ref());
        let image = a.transposed().times(new.as_ref());
        let before = squared_error;
        let gains: Vec<f64> = (0..size).map(|j| dense::squared_column(image.as_ref(), j)).collect();
        squared_error = (before - gains.iter().sum::<f64>()).max(0.0);
        let mut kept = size;
        let accurate = squared_error > T::EPSILON * whole * 8.0;
        if accurate && squared_error <= target {
            let mut left = before;
            let enough = gains.iter().position(|g| {
                left -= g;
                left <= target
            });
            kept = enough.map_or(size, |at| at + 1);
            squared_error = before - gains[..kept].iter().sum::<f64>();
        }
        q = dense::beside(&[q.as_ref(), new.as_ref().subcols(0, kept)]);
        b = dense::beside(&[b.as_ref(), image.as_ref().subcols(0, kept)]);
        if !accurate {
            squared_error = squared_residual(a, q.as_ref(), b.transpose());
        }
    }
    Ok(Qb {
        basis: Matrix::new(q),
        coefficients: Matrix::new(b.transpose().to_owned()),
        squared_error,
        converged: squared_error <= target,
    })
}

/// `‖A - L R‖²`, some columns at a time.
pub(crate) fn squared_residual<T: Scalar>(
    a: MatrixRef<'_, T>,
    left: MatRef<'_, T>,
    right: MatRef<'_, T>,
) -> f64 {
    const CHUNK: usize = 64;
    let mut sum = 0.0;
    for first in (0..a.columns()).step_by(CHUNK) {
        let count = CHUNK.min(a.columns() - first);
        let mut rest = a.part(0..a.rows(), first..first + count).to_dense().into_faer();
        dense::subtract_product(rest.as_mut(), left, right.subcols(first, count));
        sum += dense::squared_norm(rest.as_ref());
    }
    sum
}

/// What an approximation `left · right` of a matrix leaves out, as a linear operator.
#[derive(Clone, Debug)]
pub struct Residual<'a, T> {
    matrix: MatrixRef<'a, T>,
    left: &'a Matrix<T>,
    right: &'a Matrix<T>,
}

impl<'a, T: Scalar> Residual<'a, T> {
    /// The difference of `matrix` and `left · right`.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] if the shapes do not fit.
    pub fn new(
        matrix: impl Into<MatrixRef<'a, T>>,
        left: &'a Matrix<T>,
        right: &'a Matrix<T>,
    ) -> Result<Residual<'a, T>, RandnlaError> {
        let matrix = matrix.into();
        MatrixRef::from(left).check_shape("the left factor", (matrix.rows(), left.columns()))?;
        MatrixRef::from(right).check_shape("the right factor", (left.columns(), matrix.columns()))?;
        Ok(Residual { matrix, left, right })
    }
}

impl<T: Scalar> LinearOperator for Residual<'_, T> {
    type Scalar = T;

    fn shape(&self) -> (usize, usize) {
        self.matrix.shape()
    }

    fn apply(&self, x: MatRef<'_, T>) -> Mat<T> {
        let mut y = self.matrix.times(x);
        let inner = dense::product(self.right.as_ref(), x);
        dense::subtract_product(y.as_mut(), self.left.as_ref(), inner.as_ref());
        y
    }

    fn apply_transposed(&self, x: MatRef<'_, T>) -> Mat<T> {
        let mut y = self.matrix.transposed().times(x);
        let inner = dense::product(self.left.as_ref().transpose(), x);
        dense::subtract_product(y.as_mut(), self.right.as_ref().transpose(), inner.as_ref());
        y
    }
}

/// A bound of the spectral norm of an operator: `10 √(2/π) max ‖E ωᵢ‖` over `vectors` standard normal `ωᵢ`, which is too
/// small with a probability of at most `10^-vectors` (Halko, Martinsson and Tropp 2011, lemma 4.1).
///
/// # Errors
/// [`RandnlaError::Empty`] for an operator without rows or columns, [`RandnlaError::Parameter`] for 0 vectors.
pub fn spectral_norm_bound<O: LinearOperator>(
    operator: &O,
    vectors: usize,
    seed: u64,
    stream: u64,
) -> Result<f64, RandnlaError> {
    let (rows, columns) = operator.shape();
    if rows == 0 || columns == 0 {
        return Err(RandnlaError::Empty { what: "the operator", rows, columns });
    }
    if vectors == 0 {
        return Err(RandnlaError::Parameter { name: "vectors", expected: "at least 1", found: 0.0 });
    }
    let omega = Sketch::new(Law::Dense(Distribution::Gaussian), vectors, columns, seed, stream)?.unscaled();
    let omega = omega.to_matrix::<O::Scalar>();
    let image = operator.apply(omega.as_ref().transpose());
    let greatest = (0..vectors).map(|j| dense::squared_column(image.as_ref(), j)).fold(0.0, f64::max);
    Ok(10.0 * (2.0 / std::f64::consts::PI).sqrt() * greatest.sqrt())
}
