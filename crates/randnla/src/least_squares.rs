//! Least squares by a sketch and a few iterations.
//!
//! The triangle `R` of a sketch of `A` makes `A R⁻¹` well conditioned, whatever the condition of `A`; conjugate gradients on
//! the normal equations of `A R⁻¹`, without forming them, then gain the same factor with every step (Rokhlin and Tygert,
//! PNAS 2008; Avron, Maymounkov and Toledo, *Blendenpik*, SISC 2010). They start from the solution of the sketched problem,
//! which makes them forward stable (Epperly, *Fast and forward stable randomized algorithms for linear least-squares
//! problems*, SIMAX 2024), and are repeated once on what is left, which takes back rounding errors.

use faer::{Mat, MatRef};

use crate::cholesky_qr::embedding;
use crate::{Matrix, MatrixRef, RandnlaError, Scalar, dense};

/// How a least squares problem is sketched and solved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeastSquaresOptions {
    /// Rows of the sketch for each column, above 1. The error falls by about `1 / √rows_per_column` with every step.
    pub rows_per_column: f64,
    /// Entries in each column of the sparse sketch (SJLT).
    pub nonzeros: usize,
    /// `μ`, of which `μ ‖x‖²` is added to what is minimized.
    pub ridge: f64,
    /// The iterations end when the gradient, in the coordinates of the preconditioner, is this share of the right side, or
    /// `ε √columns` if that is more.
    pub tolerance: f64,
    /// The most steps.
    pub max_iterations: usize,
    /// Seed of the random stream.
    pub seed: u64,
    /// Number of the random stream.
    pub stream: u64,
}

impl Default for LeastSquaresOptions {
    /// 8 rows for each column, 8 entries, no ridge, to rounding errors or 100 steps, seed 0, stream 0.
    fn default() -> LeastSquaresOptions {
        LeastSquaresOptions {
            rows_per_column: 8.0,
            nonzeros: 8,
            ridge: 0.0,
            tolerance: 0.0,
            max_iterations: 100,
            seed: 0,
            stream: 0,
        }
    }
}

/// The solution of a least squares or saddle point problem.
#[derive(Clone, Debug, PartialEq)]
pub struct LeastSquares<T = f64> {
    /// `[columns, 1]`.
    pub x: Matrix<T>,
    /// `b - A x`: `[rows, 1]`.
    pub residual: Matrix<T>,
    /// Steps done.
    pub iterations: usize,
    /// The norm of `Aᵀ (b - A x) - μ x - c` over `‖A‖ ‖b - A x‖ + ‖c‖` (Frobenius norm of `A`), at the end.
    pub gradient: f64,
}

/// The `x` that minimizes `‖A x - b‖² + μ ‖x‖²`, for a tall `A`.
///
/// Directions in which the sketch of `A` vanishes to rounding get 0, which gives a solution, not the smallest, for a matrix
/// of deficient rank.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], [`RandnlaError::Parameter`], and [`RandnlaError::Shape`] for
/// fewer rows than columns or a right side of another length.
pub fn least_squares<'a, T: Scalar>(
    a: impl Into<MatrixRef<'a, T>>,
    b: &Matrix<T>,
    options: &LeastSquaresOptions,
) -> Result<LeastSquares<T>, RandnlaError> {
    let a = a.into();
    saddle_point(a, b, &Matrix::from_fn(a.columns(), 1, |_, _| T::ZERO), options)
}

/// The solution of `[I A; Aᵀ -μ I] [y; x] = [b; c]`, for a tall `A`: `x` minimizes `‖A x - b‖² + μ ‖x‖² + 2 cᵀ x`, and `y`
/// is the residual. With `b = 0` and `μ = 0`, `y` is the shortest vector with `Aᵀ y = c`.
///
/// # Errors
/// Those of [`least_squares`], and [`RandnlaError::Shape`] for a `c` of another length.
pub fn saddle_point<'a, T: Scalar>(
    a: impl Into<MatrixRef<'a, T>>,
    b: &Matrix<T>,
    c: &Matrix<T>,
    options: &LeastSquaresOptions,
) -> Result<LeastSquares<T>, RandnlaError> {
    let a = a.into();
    let norm = a.checked_norm("the matrix")?.sqrt();
    let (m, n) = a.shape();
    if m < n {
        return Err(RandnlaError::Shape { what: "a tall matrix", expected: (n, n), found: (m, n) });
    }
    for (what, side, length) in [("the right side", b, m), ("the second right side", c, n)] {
        crate::matrix::check_shape(what, (length, 1), side)?;
        MatrixRef::from(side).check(what)?;
    }
    let LeastSquaresOptions { ridge, rows_per_column, .. } = *options;
    if !(ridge >= 0.0 && ridge.is_finite()) {
        let expected = "a finite number of at least 0";
        return Err(RandnlaError::Parameter { name: "ridge", expected, found: ridge });
    }
    if !(rows_per_column > 1.0 && rows_per_column.is_finite()) {
        let expected = "a finite number above 1";
        return Err(RandnlaError::Parameter { name: "rows_per_column", expected, found: rows_per_column });
    }
    Problem { a, norm, b: b.as_ref(), c: c.as_ref(), ridge: T::from_f64(ridge) }.solve(options)
}

struct Problem<'a, T> {
    a: MatrixRef<'a, T>,
    /// The Frobenius norm of `a`.
    norm: f64,
    b: MatRef<'a, T>,
    c: MatRef<'a, T>,
    ridge: T,
}

/// `R⁻¹`, with zeros for directions that vanish.
struct Preconditioner<T> {
    /// Leading triangle of the pivoted decomposition.
    triangle: Mat<T>,
    pivots: Vec<usize>,
    columns: usize,
}

impl<T: Scalar> Preconditioner<T> {
    /// `R⁻¹ z`.
    fn divide(&self, z: MatRef<'_, T>) -> Mat<T> {
        let solved = dense::solve_upper(self.triangle.as_ref(), z);
        let mut x = Mat::zeros(self.columns, 1);
        self.pivots.iter().enumerate().for_each(|(i, &to)| x[(to, 0)] = solved[(i, 0)]);
        x
    }

    /// `R⁻ᵀ g`.
    fn divide_transposed(&self, g: MatRef<'_, T>) -> Mat<T> {
        let picked = Mat::from_fn(self.pivots.len(), 1, |i, _| g[(self.pivots[i], 0)]);
        dense::solve_upper_transposed(self.triangle.as_ref(), picked.as_ref())
    }
}

impl<T: Scalar> Problem<'_, T> {
    fn solve(&self, options: &LeastSquaresOptions) -> Result<LeastSquares<T>, RandnlaError> {
        let (m, n) = self.a.shape();
        let LeastSquaresOptions { rows_per_column, nonzeros, seed, stream, .. } = *options;
        let (sketched, right) = match embedding(m, n, rows_per_column, nonzeros, seed, stream)? {
            Some(sketch) => (sketch.apply(self.a)?, sketch.apply(self.b)?),
            None => (self.a.to_dense(), Matrix::new(self.b.to_owned())),
        };
        let (sketched, right, size) = (sketched.as_ref(), right.as_ref(), sketched.rows());
        // The ridge, as further rows.
        let root = T::from_f64(self.ridge.to_f64().sqrt());
        let extra = if root > T::ZERO { n } else { 0 };
        let whole = Mat::from_fn(size + extra, n + 1, |i, j| match (i < size, j < n) {
            (true, true) => sketched[(i, j)],
            (true, false) => right[(i, 0)],
            (false, _) => {
                if i - size == j {
                    root
                } else {
                    T::ZERO
                }
            }
        });
        let left = whole.as_ref().subcols(0, n);
        // The triangle has the same inner products, and pivots are found at its price.
        let reflectors = dense::Reflectors::new(left.to_owned());
        let (triangle, pivots) = match reflectors.complete && left.nrows() >= n {
            true => dense::pivoted_triangle(reflectors.triangle().as_ref()),
            false => dense::pivoted_triangle(left),
        };
        let rank = crate::cholesky_qr::numerical_rank(triangle.as_ref(), T::EPSILON * n as f64);
        let preconditioner = Preconditioner {
            triangle: triangle.submatrix(0, 0, rank, rank).to_owned(),
            pivots: pivots[..rank].to_vec(),
            columns: n,
        };
        let mut state = self.start(&preconditioner, whole.as_ref());
        let mut iterations = 0;
        // Once from the solution of the sketched problem, and once more from what that gives.
        for _ in 0..2 {
            let left = options.max_iterations - iterations;
            let (next, steps) = self.descend(&preconditioner, state, left, options.tolerance);
            state = next;
            iterations += steps;
        }
        let residual = self.residual(&state);
        let gradient = self.gradient(&state, self.a.transposed().times(residual.as_ref()));
        let norm = |v: &Mat<T>| dense::squared_norm(v.as_ref()).sqrt();
        let scale = self.norm * norm(&residual) + dense::squared_norm(self.c).sqrt();
        let gradient = if scale > 0.0 { norm(&gradient) / scale } else { 0.0 };
        Ok(LeastSquares { x: Matrix::new(state), residual: Matrix::new(residual), iterations, gradient })
    }

    /// The solution of the sketched problem: `R⁻¹ (R⁻ᵀ (Ãᵀ b̃ - c))`.
    fn start(&self, by: &Preconditioner<T>, whole: MatRef<'_, T>) -> Mat<T> {
        let n = self.a.columns();
        let picked = Mat::from_fn(whole.nrows(), by.pivots.len(), |i, j| whole[(i, by.pivots[j])]);
        let mut basis = picked;
        dense::divide_by_upper(basis.as_mut(), by.triangle.as_ref());
        let z = dense::product(basis.transpose(), whole.subcols(n, 1)) - by.divide_transposed(self.c);
        by.divide(z.as_ref())
    }

    fn residual(&self, x: &Mat<T>) -> Mat<T> {
        self.b - self.a.times(x.as_ref())
    }

    /// `Aᵀ r - μ x - c` for `Aᵀ r`.
    fn gradient(&self, x: &Mat<T>, product: Mat<T>) -> Mat<T> {
        product - faer::Scale(self.ridge) * x - self.c
    }

    /// Steps of conjugate gradients in the coordinates `z = R x`, until the gradient is small or no longer falls.
    fn descend(&self, by: &Preconditioner<T>, mut x: Mat<T>, most: usize, tolerance: f64) -> (Mat<T>, usize) {
        let squared = |v: &Mat<T>| dense::squared_norm(v.as_ref());
        let scaled = |s: f64, v: &Mat<T>| faer::Scale(T::from_f64(s)) * v;
        let mut r = self.residual(&x);
        let product = self.a.transposed().times(r.as_ref());
        let mut g = by.divide_transposed(self.gradient(&x, product).as_ref());
        let mut p = g.clone();
        let mut gamma = squared(&g);
        let unit = dense::squared_norm(self.b).max(squared(&by.divide_transposed(self.c)));
        // What rounding makes of sums of products with a residual of that size.
        let rounding = T::EPSILON * (by.pivots.len() as f64).sqrt();
        let target = tolerance.max(rounding).powi(2) * unit;
        let (mut steps, mut least, mut idle) = (0, gamma, 0);
        while steps < most && gamma > target && idle < 3 {
            let dx = by.divide(p.as_ref());
            let image = self.a.times_vector(&dx);
            let curvature = squared(&image) + self.ridge.to_f64() * squared(&dx);
            if curvature <= 0.0 || !curvature.is_finite() {
                break;
            }
            let step = gamma / curvature;
            x += scaled(step, &dx);
            r -= scaled(step, &image);
            let product = self.a.transposed().times_vector(&r);
            g = by.divide_transposed(self.gradient(&x, product).as_ref());
            let next = squared(&g);
            p = &g + scaled(next / gamma, &p);
            gamma = next;
            steps += 1;
            idle = if gamma < 0.5 * least { 0 } else { idle + 1 };
            least = least.min(gamma);
        }
        (x, steps)
    }
}
