//! The few dense operations this crate needs, on the calling thread.

use faer::prelude::ReborrowMut;
use faer::{Mat, MatMut, MatRef};

use crate::panel::{self, Work};
use crate::{RandnlaError, Scalar};

/// `a · b`.
pub(crate) fn product<T: Scalar>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Mat<T> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    add_product(out.as_mut(), a, b);
    out
}

/// `triangle · m` for upper triangular `triangle`, of which only that part is read.
pub(crate) fn upper_product<T: Scalar>(triangle: MatRef<'_, T>, m: MatRef<'_, T>) -> Mat<T> {
    let mut out = Mat::zeros(triangle.nrows(), m.ncols());
    T::add_upper_product(out.as_mut(), triangle, m);
    out
}

/// Adds `xᵀ · x` to the lower triangle of `acc`.
pub(crate) fn add_gram<T: Scalar>(acc: MatMut<'_, T>, x: MatRef<'_, T>) {
    T::add_gram(acc, x);
}

/// `xᵀ · x`, in the lower triangle; zeros above it.
pub(crate) fn gram<T: Scalar>(x: MatRef<'_, T>) -> Mat<T> {
    let mut gram = Mat::zeros(x.ncols(), x.ncols());
    add_gram(gram.as_mut(), x);
    gram
}

/// Adds `a · b` to `acc`.
///
/// Where one of them is large and the other has few columns, or rows, the large one is read some rows, or columns, at a
/// time: what faer copies of it for its kernels then stays in the second cache.
pub(crate) fn add_product<T: Scalar>(mut acc: MatMut<'_, T>, a: MatRef<'_, T>, b: MatRef<'_, T>) {
    const PART: usize = 512;
    // How many times as long as wide a result is that is made in parts.
    const THIN: usize = 8;
    let (rows, columns) = acc.shape();
    if rows < columns {
        return add_product(acc.transpose_mut(), b.transpose(), a.transpose());
    }
    let part = if columns.saturating_mul(THIN) <= rows { PART } else { rows.max(1) };
    for first in (0..rows).step_by(part) {
        let count = part.min(rows - first);
        T::add_product(acc.rb_mut().subrows_mut(first, count), a.subrows(first, count), b, T::ONE);
    }
}

/// Takes `a · b` from `acc`.
pub(crate) fn subtract_product<T: Scalar>(acc: MatMut<'_, T>, a: MatRef<'_, T>, b: MatRef<'_, T>) {
    T::add_product(acc, a, b, -T::ONE);
}

/// The sum of squares, column by column.
pub(crate) fn squared_norm<T: Scalar>(a: MatRef<'_, T>) -> f64 {
    let mut sum = 0.0;
    panel::vectorized(SquaredNorm { a, sum: &mut sum });
    sum
}

/// The sum of squares of one column.
pub(crate) fn squared_column<T: Scalar>(a: MatRef<'_, T>, column: usize) -> f64 {
    squared_norm(a.subcols(column, 1))
}

struct SquaredNorm<'a, T> {
    a: MatRef<'a, T>,
    sum: &'a mut f64,
}

impl<T: Scalar> Work for SquaredNorm<'_, T> {
    #[inline(always)]
    fn run(self) {
        // Sums that do not wait for each other.
        const SUMS: usize = 32;
        for j in 0..self.a.ncols() {
            let mut sums = [0.0; SUMS];
            let mut last = 0.0;
            if let Some(column) = self.a.col(j).try_as_col_major() {
                let (parts, rest) = column.as_slice().as_chunks::<SUMS>();
                for part in parts {
                    for k in 0..SUMS {
                        sums[k] += part[k].to_f64() * part[k].to_f64();
                    }
                }
                for v in rest {
                    last += v.to_f64() * v.to_f64();
                }
            } else {
                for i in 0..self.a.nrows() {
                    last += self.a[(i, j)].to_f64() * self.a[(i, j)].to_f64();
                }
            }
            for sum in sums {
                last += sum;
            }
            *self.sum += last;
        }
    }
}

/// Multiplies column `j` by `scale(j)`.
pub(crate) fn scale_columns<T: Scalar>(a: &mut Mat<T>, scale: impl Fn(usize) -> f64) {
    for j in 0..a.ncols() {
        let by = T::from_f64(scale(j));
        for i in 0..a.nrows() {
            a[(i, j)] *= by;
        }
    }
}

/// Multiplies row `i` by `scale[i]`.
pub(crate) fn scale_rows<T: Scalar>(a: &mut Mat<T>, scale: &[f64]) {
    for j in 0..a.ncols() {
        for (i, by) in scale.iter().enumerate() {
            a[(i, j)] *= T::from_f64(*by);
        }
    }
}

/// Matrices side by side.
pub(crate) fn beside<T: Scalar>(parts: &[MatRef<'_, T>]) -> Mat<T> {
    let rows = parts.first().map_or(0, |p| p.nrows());
    let mut out = Mat::zeros(rows, parts.iter().map(|p| p.ncols()).sum());
    let mut first = 0;
    for part in parts {
        out.as_mut().subcols_mut(first, part.ncols()).copy_from(part);
        first += part.ncols();
    }
    out
}

/// Eigenvalues, ascending, and eigenvectors (columns) of a symmetric matrix; reads its lower triangle.
pub(crate) fn symmetric_eigen<T: Scalar>(a: MatRef<'_, T>) -> Result<(Vec<f64>, Mat<T>), RandnlaError> {
    let n = a.nrows();
    let no = RandnlaError::NoConvergence { what: "eigendecomposition", rows: n, columns: n };
    let (values, vectors) = T::eigen(a).ok_or(no)?;
    Ok((values.into_iter().map(T::to_f64).collect(), vectors))
}

/// A thin singular value decomposition `u · diag(s) · vᵀ`, `s` descending.
pub(crate) struct ThinSvd<T> {
    pub(crate) u: Mat<T>,
    pub(crate) s: Vec<f64>,
    pub(crate) v: Mat<T>,
}

/// The thin singular value decomposition of `a`.
pub(crate) fn thin_svd<T: Scalar>(a: MatRef<'_, T>) -> Result<ThinSvd<T>, RandnlaError> {
    let (rows, columns) = a.shape();
    if rows < columns {
        let ThinSvd { u, s, v } = thin_svd(a.transpose())?;
        return Ok(ThinSvd { u: v, s, v: u });
    }
    let no = RandnlaError::NoConvergence { what: "singular value decomposition", rows, columns };
    let values = |s: Vec<T>| s.into_iter().map(T::to_f64).collect();
    if rows < 2 * columns {
        let (u, s, v) = T::svd(a).ok_or(no)?;
        return Ok(ThinSvd { u, s: values(s), v });
    }
    // The triangle has the same singular values. faer would take it, too, but of a decomposition that leaves out columns.
    let reflectors = Reflectors::complete(a.to_owned());
    let (inner, s, right) = T::svd(reflectors.triangle().as_ref()).ok_or(no)?;
    let mut u = Mat::zeros(rows, columns);
    u.as_mut().subrows_mut(0, columns).copy_from(inner);
    reflectors.apply(u.as_mut());
    let mut v = Mat::zeros(columns, columns);
    for (from, &to) in reflectors.order.iter().enumerate() {
        v.as_mut().subrows_mut(to, 1).copy_from(right.as_ref().subrows(from, 1));
    }
    Ok(ThinSvd { u, s: values(s), v })
}

/// An orthonormal basis, as columns, of a space that contains the range of `a`. Consumes `a`.
pub(crate) fn orthonormal_basis<T: Scalar>(a: Mat<T>) -> Mat<T> {
    Reflectors::complete(a).basis()
}

/// An orthonormal basis of a space that contains the part of the range of `y` orthogonal to that of `q`, orthogonal to
/// the orthonormal columns of `q`. There must be room: `q` and `y` together have at most as many columns as rows.
pub(crate) fn orthonormal_beside<T: Scalar>(y: Mat<T>, q: MatRef<'_, T>) -> Mat<T> {
    let mut y = project_out(y, q);
    // What is left after one projection may be rounding errors of the space that was taken out; a basis of them is not
    // orthogonal to it. Each further round squares that error.
    for _ in 0..4 {
        y = orthonormal_basis(y);
        if q.ncols() == 0 {
            break;
        }
        let overlap = product(q.transpose(), y.as_ref());
        if squared_norm(overlap.as_ref()) <= (4.0 * T::EPSILON).powi(2) * y.ncols() as f64 {
            break;
        }
        subtract_product(y.as_mut(), q, overlap.as_ref());
    }
    y
}

/// `y - q qᵀ y`.
pub(crate) fn project_out<T: Scalar>(mut y: Mat<T>, q: MatRef<'_, T>) -> Mat<T> {
    if q.ncols() > 0 {
        let overlap = product(q.transpose(), y.as_ref());
        subtract_product(y.as_mut(), q, overlap.as_ref());
    }
    y
}

/// A QR decomposition by Householder reflectors, which keeps the orthogonal factor as reflectors.
pub(crate) struct Reflectors<T> {
    /// The triangle, and below it the reflectors.
    packed: Mat<T>,
    coefficients: Mat<T>,
    /// For each column of the triangle, the column it stands for.
    pub(crate) order: Vec<usize>,
    /// Whether there is a reflector for each column. If not, what is left of some columns was small beside their norms, and
    /// neither the triangle nor the range of the basis is right.
    pub(crate) complete: bool,
}

impl<T: Scalar> Reflectors<T> {
    /// Factors `a` without pivots.
    ///
    /// faer gives no reflector to a column of which less than `16 m ε` is independent of those before. That is much for a
    /// tall matrix in single precision.
    pub(crate) fn new(mut a: Mat<T>) -> Reflectors<T> {
        let (coefficients, rank) = T::qr(a.as_mut());
        let order = (0..a.ncols()).collect();
        Reflectors { packed: a, complete: rank == coefficients.ncols(), coefficients, order }
    }

    /// Factors `a`, with pivots where a decomposition without them leaves columns out.
    pub(crate) fn complete(a: Mat<T>) -> Reflectors<T> {
        let found = Reflectors::new(a.clone());
        if found.complete || squared_norm(a.as_ref()) == 0.0 {
            return found;
        }
        let mut packed = a;
        let (coefficients, order) = T::pivoted_qr(packed.as_mut());
        Reflectors { packed, coefficients, order, complete: true }
    }

    /// Columns of the thin orthogonal factor.
    pub(crate) fn size(&self) -> usize {
        self.coefficients.ncols()
    }

    /// The orthogonal factor, thin.
    pub(crate) fn basis(&self) -> Mat<T> {
        let mut basis = Mat::identity(self.packed.nrows(), self.size());
        self.apply(basis.as_mut());
        basis
    }

    /// The triangular factor, upper trapezoidal.
    pub(crate) fn triangle(&self) -> Mat<T> {
        let at = |i, j| if i <= j { self.packed[(i, j)] } else { T::ZERO };
        Mat::from_fn(self.size(), self.packed.ncols(), at)
    }

    /// Replaces `x` by `Q x`, with the square orthogonal factor.
    pub(crate) fn apply(&self, x: MatMut<'_, T>) {
        let reflectors = self.packed.as_ref().subcols(0, self.size());
        T::apply_q(reflectors, self.coefficients.as_ref(), x, false);
    }

    /// Replaces `x` by `Qᵀ x`, with the square orthogonal factor.
    pub(crate) fn apply_transposed(&self, x: MatMut<'_, T>) {
        let reflectors = self.packed.as_ref().subcols(0, self.size());
        T::apply_q(reflectors, self.coefficients.as_ref(), x, true);
    }
}

/// The upper triangular `r` with `rᵀ r = aᵀ a`, for `a` with at least as many rows as columns. Consumes `a`.
pub(crate) fn triangle<T: Scalar>(a: Mat<T>) -> Mat<T> {
    Reflectors::new(a).triangle()
}

/// Column-pivoted QR of `a`: the upper trapezoidal factor, and for each of its columns the column of `a` it
/// stands for. The diagonal of the factor falls in magnitude.
///
/// faer updates the norms of columns from step to step, which leaves errors of `√ε` of the greatest norm: below that, a
/// column that is all but dependent may be taken for a large one, or the reverse. So what is left where the diagonal has
/// fallen to the root of that is factored anew, with its own norms.
pub(crate) fn pivoted_triangle<T: Scalar>(a: MatRef<'_, T>) -> (Mat<T>, Vec<usize>) {
    let (rows, columns) = a.shape();
    let size = rows.min(columns);
    let mut pivots: Vec<usize> = (0..columns).collect();
    let mut triangle = Mat::zeros(size, columns);
    let mut rest = a.to_owned();
    let (mut first, mut least) = (0, 0.0);
    while squared_norm(rest.as_ref()) > 0.0 {
        let (_, order) = T::pivoted_qr(rest.as_mut());
        let before = pivots[first..].to_vec();
        let above = triangle.as_ref().submatrix(0, first, first, columns - first).to_owned();
        for (to, &from) in order.iter().enumerate() {
            pivots[first + to] = before[from];
            triangle.as_mut().submatrix_mut(0, first + to, first, 1).copy_from(above.subcols(from, 1));
        }
        let at = |i, j| if i <= j { rest[(i, j)] } else { T::ZERO };
        let found = Mat::from_fn(size - first, columns - first, at);
        let diagonal = |i: usize| found[(i, i)].to_f64().abs();
        if first == 0 {
            least = T::EPSILON * diagonal(0);
        }
        let floor = (T::EPSILON.sqrt().sqrt() * diagonal(0)).max(least);
        triangle.as_mut().submatrix_mut(first, first, size - first, columns - first).copy_from(&found);
        match (1..size - first).find(|&i| diagonal(i) <= floor) {
            Some(next) if diagonal(0) > least => {
                rest = found.submatrix(next, next, size - first - next, columns - first - next).to_owned();
                first += next;
            }
            _ => break,
        }
    }
    (triangle, pivots)
}

/// Solves `triangle · x = right` for upper triangular `triangle`.
pub(crate) fn solve_upper<T: Scalar>(triangle: MatRef<'_, T>, right: MatRef<'_, T>) -> Mat<T> {
    let mut x = right.to_owned();
    T::solve_upper(triangle, x.as_mut());
    x
}

/// Solves `triangleᵀ · x = right` for upper triangular `triangle`.
pub(crate) fn solve_upper_transposed<T: Scalar>(triangle: MatRef<'_, T>, right: MatRef<'_, T>) -> Mat<T> {
    let mut x = right.to_owned();
    T::solve_lower(triangle.transpose(), x.as_mut());
    x
}

/// Solves `rootᵀ root · x = right` for upper triangular `root`.
pub(crate) fn solve_positive<T: Scalar>(root: MatRef<'_, T>, right: MatRef<'_, T>) -> Mat<T> {
    let half = solve_upper_transposed(root, right);
    solve_upper(root, half.as_ref())
}

/// Replaces `x` by `x · triangle⁻¹` for upper triangular `triangle`: some rows at a time, which stay in the second cache
/// while one part of the columns after the other is solved for and taken from the rest.
pub(crate) fn divide_by_upper<T: Scalar>(mut x: MatMut<'_, T>, triangle: MatRef<'_, T>) {
    const BYTES: usize = 1 << 19;
    const LEAST: usize = 256;
    let height = (BYTES / size_of::<T>() / x.ncols().max(1)).max(LEAST);
    for first in (0..x.nrows()).step_by(height) {
        let count = height.min(x.nrows() - first);
        T::solve_lower(triangle.transpose(), x.rb_mut().subrows_mut(first, count).transpose_mut());
    }
}

/// The upper triangular `R` with `Rᵀ R = a`, of which the lower triangle is read.
///
/// # Errors
/// The size of the leading block that is positive definite, if that is not all of `a`.
pub(crate) fn cholesky<T: Scalar>(a: MatRef<'_, T>) -> Result<Mat<T>, usize> {
    let n = a.nrows();
    let mut lower = a.to_owned();
    T::cholesky(lower.as_mut())?;
    Ok(Mat::from_fn(n, n, |i, j| if i <= j { lower[(j, i)] } else { T::ZERO }))
}
