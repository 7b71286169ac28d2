//! QR decompositions of tall matrices by products and small triangles.
//!
//! `A = Q R` with `Rᵀ R = Aᵀ A` costs one product and one triangular solution, and loses half of the digits twice: `Q` is
//! orthonormal to `ε κ(A)²`. A factor `R` of something close to `A`, divided out first, makes `κ` small:
//!
//! - [`shifted_cholesky_qr3`] takes the factor of `Aᵀ A + s I` and two rounds without a shift (Fukaya, Kannan, Nakatsukasa,
//!   Yamamoto and Yanagisawa, *Shifted Cholesky QR for computing the QR factorization of ill-conditioned matrices*, SISC
//!   2020);
//! - [`cqrrt`] and [`cqrrpt`] take that of a sketch (Fan, Guo and Lin 2021; Melnichenko, Balabanov, Murray, Demmel, Mahoney
//!   and Luszczek, *CholeskyQR with randomization and pivoting for tall matrices*, arXiv 2311.08316).
//!
//! A second round follows where the first shows that it was not enough, which makes the sketched ones as accurate in `f32`
//! as in `f64`, relative to the rounding error of either.

use faer::{Mat, MatRef};

use crate::{Law, Matrix, MatrixRef, RandnlaError, Scalar, Sketch, dense};

/// A decomposition `A = Q R`.
#[derive(Clone, Debug, PartialEq)]
pub struct Qr<T = f64> {
    /// Orthonormal columns: `[rows, columns]`.
    pub q: Matrix<T>,
    /// Upper triangular, with a positive diagonal: `[columns, columns]`.
    pub r: Matrix<T>,
}

/// A decomposition `A[:, pivots] = Q R` of numerical rank `r`.
#[derive(Clone, Debug, PartialEq)]
pub struct PivotedQr<T = f64> {
    /// Orthonormal columns: `[rows, r]`.
    pub q: Matrix<T>,
    /// Upper trapezoidal: `[r, columns]`.
    pub r: Matrix<T>,
    /// For each column of `r`, the column of `A` it stands for: `[columns]`.
    pub pivots: Vec<usize>,
}

impl<T: Scalar> PivotedQr<T> {
    /// The numerical rank.
    pub fn rank(&self) -> usize {
        self.q.columns()
    }
}

/// How a tall matrix is sketched for a QR decomposition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SketchedQrOptions {
    /// Rows of the sketch for each column, at least 1. More make a better conditioned basis, at a higher price of the
    /// decomposition of the sketch.
    pub rows_per_column: f64,
    /// Entries in each column of the sparse sketch (SJLT).
    pub nonzeros: usize,
    /// Columns are dependent where the diagonal of the triangle falls below this share of its first entry. `None` for
    /// `ε · columns`.
    pub rank_tolerance: Option<f64>,
    /// Seed of the random stream.
    pub seed: u64,
    /// Number of the random stream.
    pub stream: u64,
}

impl Default for SketchedQrOptions {
    /// 1.5 rows for each column, 4 entries, the tolerance of rounding, seed 0, stream 0.
    fn default() -> SketchedQrOptions {
        SketchedQrOptions { rows_per_column: 1.5, nonzeros: 4, rank_tolerance: None, seed: 0, stream: 0 }
    }
}

impl SketchedQrOptions {
    /// The sketch of a matrix, which stands for it where it is not much taller than wide.
    fn sketched<T: Scalar>(&self, a: MatrixRef<'_, T>) -> Result<Mat<T>, RandnlaError> {
        let SketchedQrOptions { rows_per_column: factor, nonzeros, seed, stream, .. } = *self;
        if !(factor >= 1.0 && factor.is_finite()) {
            let expected = "a finite number of at least 1";
            return Err(RandnlaError::Parameter { name: "rows_per_column", expected, found: factor });
        }
        let sketch = embedding(a.rows(), a.columns(), factor, nonzeros, seed, stream)?;
        Ok(sketch.map_or_else(|| Ok(a.to_dense()), |s| s.apply(a))?.into_faer())
    }

    fn tolerance<T: Scalar>(&self, columns: usize) -> Result<f64, RandnlaError> {
        match self.rank_tolerance {
            None => Ok(T::EPSILON * columns as f64),
            Some(t) if (0.0..1.0).contains(&t) => Ok(t),
            Some(found) => {
                let expected = "0 to 1, without 1";
                Err(RandnlaError::Parameter { name: "rank_tolerance", expected, found })
            }
        }
    }
}

/// The triangle of a decomposition without pivots, none of whose diagonal entries is at most `tolerance` times the greatest.
pub(crate) fn independent_triangle<T: Scalar>(a: Mat<T>, tolerance: f64) -> Result<Mat<T>, RandnlaError> {
    let columns = a.ncols();
    let reflectors = dense::Reflectors::new(a.clone());
    let r = match reflectors.complete {
        true => reflectors.triangle(),
        false => shifted_cholesky_qr3(&a)?.r.into_faer(),
    };
    let diagonal = |i: usize| r[(i, i)].to_f64().abs();
    let greatest = (0..columns).map(diagonal).fold(0.0, f64::max);
    match (0..columns).all(|i| diagonal(i) > tolerance * greatest) {
        true => Ok(r),
        false => Err(RandnlaError::Dependent { columns }),
    }
}

/// A sparse sketch of `factor` rows for each column and 8 more, since few columns vary more from sketch to sketch; `None`
/// where that is more than half of the rows: a sketch that is hardly shorter saves nothing, and may lose rank.
pub(crate) fn embedding(
    rows: usize,
    columns: usize,
    factor: f64,
    nonzeros: usize,
    seed: u64,
    stream: u64,
) -> Result<Option<Sketch>, RandnlaError> {
    let size = ((factor * columns as f64).ceil() as usize).saturating_add(8);
    if size > rows / 2 {
        return Ok(None);
    }
    Sketch::new(Law::Sjlt { nonzeros: nonzeros.clamp(1, size) }, size, rows, seed, stream).map(Some)
}

/// QR decomposition of a tall matrix by a shifted and two plain Cholesky decompositions; no random numbers.
///
/// The shift is `11 ε n ‖A‖²`. Where a plain decomposition fails after it, for condition numbers beyond about `10⁻² / ε`,
/// there is a further shifted one. `Q` is orthonormal to a small multiple of the rounding error. It costs `6 m n²`
/// operations for an `m x n` matrix, and `2 m n²` for every further round.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], [`RandnlaError::Shape`] for fewer rows than columns, and
/// [`RandnlaError::Dependent`] if the columns are linearly dependent to rounding.
pub fn shifted_cholesky_qr3<'a, T: Scalar>(a: impl Into<MatrixRef<'a, T>>) -> Result<Qr<T>, RandnlaError> {
    const SHIFTED_ROUNDS: usize = 3;
    let a = a.into();
    check_tall(&a)?;
    let n = a.columns();
    let mut q = a.to_dense().into_faer();
    let mut r = Mat::identity(n, n);
    for _ in 0..SHIFTED_ROUNDS {
        let mut gram = dense::gram(q.as_ref());
        let trace: f64 = (0..n).map(|i| gram[(i, i)].to_f64()).sum();
        for i in 0..n {
            gram[(i, i)] += T::from_f64(11.0 * T::EPSILON * n as f64 * trace);
        }
        let triangle = dense::cholesky(gram.as_ref()).map_err(|_| RandnlaError::Dependent { columns: n })?;
        dense::divide_by_upper(q.as_mut(), triangle.as_ref());
        r = upper(dense::product(triangle.as_ref(), r.as_ref()));
        if let Ok((once, _)) = round(&mut q, &r) {
            let (r, _) = round(&mut q, &once).map_err(|_| RandnlaError::Dependent { columns: n })?;
            return Ok(Qr { q: Matrix::new(q), r: Matrix::new(r) });
        }
    }
    Err(RandnlaError::Dependent { columns: n })
}

/// Divides the triangle of `q` out of it and multiplies it into `r`. Also gives the ratio of the greatest and smallest
/// entries of the triangle's diagonal. Leaves `q` alone and gives the size of the leading independent columns if not all
/// are independent.
fn round<T: Scalar>(q: &mut Mat<T>, r: &Mat<T>) -> Result<(Mat<T>, f64), usize> {
    let triangle = dense::cholesky(dense::gram(q.as_ref()).as_ref())?;
    dense::divide_by_upper(q.as_mut(), triangle.as_ref());
    let diagonal = (0..triangle.nrows()).map(|i| triangle[(i, i)].to_f64());
    let (least, greatest) = diagonal.fold((f64::INFINITY, 0.0f64), |(l, g), d| (l.min(d), g.max(d)));
    Ok((upper(dense::product(triangle.as_ref(), r.as_ref())), greatest / least))
}

/// The matrix with zeros below the diagonal.
fn upper<T: Scalar>(mut r: Mat<T>) -> Mat<T> {
    for j in 0..r.ncols() {
        (j + 1..r.nrows()).for_each(|i| r[(i, j)] = T::ZERO);
    }
    r
}

/// A well conditioned basis of the range of a tall matrix: what a sketch of it makes of the matrix. It costs `m n²`
/// operations.
///
/// # Errors
/// The matrix, if it is hardly taller than wide, or its columns are dependent to rounding.
pub(crate) fn conditioned<T: Scalar>(mut a: Mat<T>) -> Result<Mat<T>, Mat<T>> {
    // A stream of its own, so that the sketch has nothing to do with what the matrix was made with.
    const STREAM: u64 = u64::MAX - 16;
    let Ok(Some(sketch)) = embedding(a.nrows(), a.ncols(), 2.0, 8, 0, STREAM) else { return Err(a) };
    let Ok(short) = sketch.apply(&a) else { return Err(a) };
    let reflectors = dense::Reflectors::new(short.into_faer());
    let triangle = reflectors.triangle();
    if !reflectors.complete || (0..a.ncols()).any(|i| triangle[(i, i)] == T::ZERO) {
        return Err(a);
    }
    dense::divide_by_upper(a.as_mut(), triangle.as_ref());
    Ok(a)
}

/// An orthonormal basis of a space that contains the range of `a`, by products where that can be.
pub(crate) fn orthonormal_basis<T: Scalar>(a: Mat<T>) -> Mat<T> {
    let columns = a.ncols();
    match conditioned(a) {
        Ok(basis) => {
            let (basis, _) = orthonormalize(basis, Mat::identity(columns, columns));
            match basis.ncols() == columns {
                true => basis,
                false => dense::orthonormal_basis(basis),
            }
        }
        Err(a) => dense::orthonormal_basis(a),
    }
}

/// Rounds until the last one changed nothing but rounding errors. Columns from the one on that turns out dependent, if
/// any, are cut off: what is returned is `r` for the columns that are left.
fn orthonormalize<T: Scalar>(mut q: Mat<T>, mut r: Mat<T>) -> (Mat<T>, Mat<T>) {
    // A basis of condition κ is orthonormal to ε κ² after a round: one more where that is not a small multiple of ε.
    const ENOUGH: f64 = 3.0;
    for _ in 0..3 {
        match round(&mut q, &r) {
            Ok((product, ratio)) => {
                r = product;
                if ratio <= ENOUGH {
                    break;
                }
            }
            Err(size) => {
                q = q.subcols(0, size).to_owned();
                r = r.submatrix(0, 0, size, r.ncols()).to_owned();
                if size == 0 {
                    break;
                }
            }
        }
    }
    (q, r)
}

fn check_tall<T: Scalar>(a: &MatrixRef<'_, T>) -> Result<(), RandnlaError> {
    a.check("the matrix")?;
    if a.rows() < a.columns() {
        let expected = (a.columns(), a.columns());
        return Err(RandnlaError::Shape { what: "a tall matrix", expected, found: a.shape() });
    }
    Ok(())
}

/// QR decomposition of a tall matrix of full rank, preconditioned by a sketch, without pivoting.
///
/// It costs `4 m n²` operations where one round is enough, and `7 m n²` where not.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], [`RandnlaError::Shape`] for fewer rows than columns,
/// [`RandnlaError::Parameter`], and [`RandnlaError::Dependent`] if the columns are linearly dependent to rounding.
pub fn cqrrt<'a, T: Scalar>(
    a: impl Into<MatrixRef<'a, T>>,
    options: &SketchedQrOptions,
) -> Result<Qr<T>, RandnlaError> {
    let a = a.into();
    check_tall(&a)?;
    let n = a.columns();
    let tolerance = options.tolerance::<T>(n)?;
    let sketched = options.sketched(a)?;
    let r = independent_triangle(sketched, tolerance)?;
    let mut q = a.to_dense().into_faer();
    dense::divide_by_upper(q.as_mut(), r.as_ref());
    let (q, r) = orthonormalize(q, r);
    if q.ncols() < n {
        return Err(RandnlaError::Dependent { columns: n });
    }
    let signs: Vec<f64> = (0..n).map(|i| if r[(i, i)] < T::ZERO { -1.0 } else { 1.0 }).collect();
    let (mut q, mut r) = (q, r);
    dense::scale_columns(&mut q, |j| signs[j]);
    dense::scale_rows(&mut r, &signs);
    Ok(Qr { q: Matrix::new(q), r: Matrix::new(r) })
}

/// QR decomposition of a tall matrix with column pivoting, of which the pivots and a preconditioner come from a sketch.
///
/// The pivots are those of a column-pivoted decomposition of the sketch. The numerical rank is the number of leading
/// diagonal entries of its triangle above the tolerance, relative to the first. `A[:, pivots] - Q R` is at the level of
/// rounding errors in the first `rank` columns, and of the tolerance in the others. Costs are those of [`cqrrt`], with the
/// numerical rank in the place of `n`, and a column-pivoted decomposition of the sketch.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], [`RandnlaError::Parameter`], and [`RandnlaError::Shape`] for
/// fewer rows than columns.
pub fn cqrrpt<'a, T: Scalar>(
    a: impl Into<MatrixRef<'a, T>>,
    options: &SketchedQrOptions,
) -> Result<PivotedQr<T>, RandnlaError> {
    let a = a.into();
    check_tall(&a)?;
    let n = a.columns();
    let tolerance = options.tolerance::<T>(n)?;
    let sketched = options.sketched(a)?;
    let (triangle, pivots) = dense::pivoted_triangle(sketched.as_ref());
    let rank = numerical_rank(triangle.as_ref(), tolerance);
    let mut q = a.select_columns(&pivots[..rank]);
    let head = triangle.submatrix(0, 0, rank, rank).to_owned();
    dense::divide_by_upper(q.as_mut(), head.as_ref());
    let (q, head) = orthonormalize(q, head);
    let rank = q.ncols();
    let rest = a.select_columns(&pivots[rank..]);
    let mut r = Mat::zeros(rank, n);
    r.as_mut().subcols_mut(0, rank).copy_from(head.as_ref().subcols(0, rank));
    r.as_mut().subcols_mut(rank, n - rank).copy_from(dense::product(q.transpose(), rest.as_ref()));
    Ok(PivotedQr { q: Matrix::new(q), r: Matrix::new(r), pivots })
}

/// How many leading diagonal entries exceed the tolerance, relative to the first.
pub(crate) fn numerical_rank<T: Scalar>(triangle: MatRef<'_, T>, tolerance: f64) -> usize {
    let size = triangle.nrows().min(triangle.ncols());
    let diagonal = |i: usize| triangle[(i, i)].to_f64().abs();
    (0..size).take_while(|&i| diagonal(i) > tolerance * diagonal(0) && diagonal(i) > 0.0).count()
}
