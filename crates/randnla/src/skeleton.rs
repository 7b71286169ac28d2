//! Approximations by columns and rows of the matrix itself.
//!
//! A column interpolative decomposition writes all columns as combinations of a few of them; the coefficients contain an
//! identity. A CUR decomposition has columns and rows, and a small matrix between them. What is taken comes from pivots of a
//! sketch (Voronin and Martinsson, *Efficient algorithms for CUR and interpolative matrix decompositions*, Adv. Comput.
//! Math. 2017; Dong and Martinsson, *Simpler is better*, Adv. Comput. Math. 2023).

use faer::Mat;

use crate::cholesky_qr::{embedding, independent_triangle, numerical_rank};
use crate::range::check_rank;
use crate::{
    Distribution, Law, Matrix, MatrixRef, PivotedQr, RandnlaError, RsvdOptions, Scalar, Sketch,
    SketchedQrOptions, cqrrpt, dense,
};

/// `A ≈ A[:, columns] · coefficients`.
#[derive(Clone, Debug, PartialEq)]
pub struct Interpolative<T = f64> {
    /// The columns that are kept, most important first: `[rank]`.
    pub columns: Vec<usize>,
    /// `[rank, A.columns()]`; the identity at the columns that are kept.
    pub coefficients: Matrix<T>,
}

/// A column interpolative decomposition. For rows, decompose the transpose.
///
/// Columns are chosen by a pivoted decomposition of a sketch of `rank + oversampling` rows, after the power iterations of
/// `options`. If the matrix has a smaller rank, to rounding, fewer columns are kept. The error is at most
/// `√(1 + k (n - k))` times that of the best approximation for the usual pivots, and seldom more than a few times as large.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], [`RandnlaError::Rank`] unless the rank is between 1 and the
/// smaller dimension.
pub fn interpolative<'a, T: Scalar>(
    a: impl Into<MatrixRef<'a, T>>,
    rank: usize,
    options: &RsvdOptions,
) -> Result<Interpolative<T>, RandnlaError> {
    let a = a.into();
    a.check("the matrix")?;
    check_rank(&a, rank)?;
    let sketched = row_sketch(a, rank, options)?;
    let (triangle, pivots) = dense::pivoted_triangle(sketched.as_ref());
    let found = numerical_rank(triangle.as_ref(), T::EPSILON * a.columns() as f64);
    // A matrix of zeros keeps a column, so that there is a decomposition.
    let rank = found.min(rank).max(1);
    let rest = a.columns() - rank;
    let mut coefficients = Mat::zeros(rank, a.columns());
    (0..rank).for_each(|i| coefficients[(i, pivots[i])] = T::ONE);
    if found > 0 {
        let head = triangle.submatrix(0, 0, rank, rank);
        let solved = dense::solve_upper(head, triangle.submatrix(0, rank, rank, rest));
        for (from, &to) in pivots[rank..].iter().enumerate() {
            coefficients.col_mut(to).copy_from(solved.col(from));
        }
    }
    Ok(Interpolative { columns: pivots[..rank].to_vec(), coefficients: Matrix::new(coefficients) })
}

/// `S A` after power iterations, with orthonormal rows in between.
fn row_sketch<T: Scalar>(
    a: MatrixRef<'_, T>,
    rank: usize,
    options: &RsvdOptions,
) -> Result<Mat<T>, RandnlaError> {
    let size = rank.saturating_add(options.oversampling).min(a.rows().min(a.columns()));
    let law = Law::Dense(options.distribution);
    let sketch = Sketch::new(law, size, a.rows(), options.seed, options.stream)?;
    let mut sketched = sketch.apply(a)?.into_faer();
    for _ in 0..options.power_iterations {
        let basis = dense::orthonormal_basis(sketched.transpose().to_owned());
        let basis = dense::orthonormal_basis(a.times(basis.as_ref()));
        sketched = a.transposed().times(basis.as_ref()).transpose().to_owned();
    }
    Ok(sketched)
}

/// `A ≈ A[:, columns] · core · A[rows, :]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cur<T = f64> {
    /// The columns that are kept.
    pub columns: Vec<usize>,
    /// The rows that are kept.
    pub rows: Vec<usize>,
    /// `[columns.len(), rows.len()]`: the best matrix for these columns and rows.
    pub core: Matrix<T>,
}

/// A CUR decomposition: columns and rows by [`interpolative`] of the matrix and of its transpose, and `C⁺ A R⁺` between.
///
/// # Errors
/// Those of [`interpolative`].
pub fn cur<'a, T: Scalar>(
    a: impl Into<MatrixRef<'a, T>>,
    rank: usize,
    options: &RsvdOptions,
) -> Result<Cur<T>, RandnlaError> {
    let a = a.into();
    let columns = interpolative(a, rank, options)?.columns;
    let rows = interpolative(a.transposed(), rank, options)?.columns;
    let (c, r) = (a.select_columns(&columns), a.transposed().select_columns(&rows));
    // Columns that are independent in the sketch to rounding may be dependent.
    let qr = SketchedQrOptions { seed: options.seed, stream: options.stream, ..SketchedQrOptions::default() };
    let (c, r) = (cqrrpt(&c, &qr)?, cqrrpt(&r, &qr)?);
    let inner = dense::product(c.q.as_ref().transpose(), a.times(r.q.as_ref()).as_ref());
    let triangle = |qr: &PivotedQr<T>| qr.r.as_ref().subcols(0, qr.rank()).to_owned();
    let half = dense::solve_upper(triangle(&c).as_ref(), inner.as_ref());
    let core = dense::solve_upper(triangle(&r).as_ref(), half.transpose()).transpose().to_owned();
    let kept = |from: &[usize], qr: &PivotedQr<T>| qr.pivots[..qr.rank()].iter().map(|&i| from[i]).collect();
    let (columns, rows) = (kept(&columns, &c), kept(&rows, &r));
    Ok(Cur { columns, rows, core: Matrix::new(core) })
}

impl<T: Scalar> Interpolative<T> {
    /// The approximation of the matrix, which has to be the one decomposed.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] unless it has as many columns.
    pub fn approximation<'a>(&self, a: impl Into<MatrixRef<'a, T>>) -> Result<Matrix<T>, RandnlaError> {
        let a = a.into();
        a.check_shape("the matrix", (a.rows(), self.coefficients.columns()))?;
        let kept = a.select_columns(&self.columns);
        Ok(Matrix::new(dense::product(kept.as_ref(), self.coefficients.as_ref())))
    }
}

/// Leverage scores of the rows of a tall matrix of full column rank, estimated with sketches: row `i` has `‖eᵢᵀ A R⁻¹ G‖²`
/// with `R` the triangle of a sketch of `A` and `G` Gaussian (Drineas, Magdon-Ismail, Mahoney and Woodruff, *Fast
/// approximation of matrix coherence and statistical leverage*, JMLR 2012). Their sum is about the number of columns.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], [`RandnlaError::Shape`] for fewer rows than columns, and
/// [`RandnlaError::Dependent`] if the columns are linearly dependent to rounding.
pub fn leverage_scores<'a, T: Scalar>(
    a: impl Into<MatrixRef<'a, T>>,
    seed: u64,
    stream: u64,
) -> Result<Vec<f64>, RandnlaError> {
    let a = a.into();
    a.check("the matrix")?;
    let (m, n) = a.shape();
    if m < n {
        return Err(RandnlaError::Shape { what: "a tall matrix", expected: (n, n), found: (m, n) });
    }
    let sketch = embedding(m, n, 4.0, 8, seed, stream)?;
    let sketched = sketch.map_or_else(|| Ok(a.to_dense()), |s| s.apply(a))?;
    let r = independent_triangle(sketched.into_faer(), T::EPSILON * n as f64)?;
    let vectors = n.min(32);
    let law = Law::Dense(Distribution::Gaussian);
    let test = Sketch::new(law, vectors, n, seed, stream.wrapping_add(1))?.to_matrix::<T>();
    let mixed = dense::solve_upper(r.as_ref(), test.as_ref().transpose());
    let image = a.times(mixed.as_ref());
    Ok((0..m).map(|i| dense::squared_column(image.transpose(), i)).collect())
}
