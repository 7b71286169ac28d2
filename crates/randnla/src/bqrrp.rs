//! Blocked QR with column pivoting, of which a sketch finds the pivots.
//!
//! Pivoting column by column spends its time on products of a matrix with a vector. Here the pivots of a whole block come
//! from a small sketch of what is left of the matrix; the block is then factored, and the rest updated, by products of
//! matrices. The sketch itself is updated, not drawn again (Duersch and Gu, *Randomized QR with column pivoting*, SISC 2017;
//! Melnichenko, Murray, Killian, Demmel, Mahoney and Luszczek, *Anatomy of high-performance column-pivoted QR
//! decomposition*, 2025).

use faer::prelude::ReborrowMut;
use faer::{Mat, MatRef};

use crate::cholesky_qr::numerical_rank;
use crate::dense::Reflectors;
use crate::{Distribution, Law, Matrix, MatrixRef, PivotedQr, RandnlaError, Scalar, Sketch, dense};

/// How a blocked pivoted decomposition works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BqrrpOptions {
    /// Columns that are chosen at a time.
    pub block: usize,
    /// Rows of the sketch beyond the block.
    pub oversampling: usize,
    /// Columns are dependent where the diagonal of the triangle falls below this share of its first entry. `None` for
    /// `ε · columns`.
    pub rank_tolerance: Option<f64>,
    /// Seed of the random stream.
    pub seed: u64,
    /// Number of the random stream.
    pub stream: u64,
}

impl Default for BqrrpOptions {
    /// Blocks of 64, 32 further rows, the tolerance of rounding, seed 0, stream 0.
    fn default() -> BqrrpOptions {
        BqrrpOptions { block: 64, oversampling: 32, rank_tolerance: None, seed: 0, stream: 0 }
    }
}

/// QR decomposition with column pivoting of a matrix of any shape.
///
/// It costs about as much as one without pivoting: `4 m n² - 4 n³ / 3` operations with the orthogonal factor, for an
/// `m x n` matrix with `m ≥ n`. It ends at the first column of a block that is dependent on those before, to the tolerance.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], and [`RandnlaError::Parameter`] for a block of 0 or a tolerance
/// outside of 0 to 1.
pub fn bqrrp<'a, T: Scalar>(
    a: impl Into<MatrixRef<'a, T>>,
    options: &BqrrpOptions,
) -> Result<PivotedQr<T>, RandnlaError> {
    let a = a.into();
    a.check("the matrix")?;
    let (m, n) = a.shape();
    if options.block == 0 {
        return Err(RandnlaError::Parameter { name: "block", expected: "at least 1", found: 0.0 });
    }
    let tolerance = options.rank_tolerance.unwrap_or(T::EPSILON * n as f64);
    if !(0.0..1.0).contains(&tolerance) {
        let expected = "0 to 1, without 1";
        return Err(RandnlaError::Parameter { name: "rank_tolerance", expected, found: tolerance });
    }
    let block = options.block.min(m).min(n);
    let size = block.saturating_add(options.oversampling).min(m);
    let sketch = Sketch::new(Law::Dense(Distribution::Gaussian), size, m, options.seed, options.stream)?;
    let mut sketched = sketch.apply(a)?.into_faer();
    let mut work = a.to_dense().into_faer();
    let mut pivots: Vec<usize> = (0..n).collect();
    let mut blocks: Vec<Reflectors<T>> = Vec::new();
    let (mut rank, mut greatest) = (0, 0.0);
    while rank < m.min(n) {
        let width = block.min(m.min(n) - rank);
        let (triangle, order) = dense::pivoted_triangle(sketched.as_ref());
        let reordered: Vec<usize> = order.iter().map(|&j| pivots[rank + j]).collect();
        pivots[rank..].copy_from_slice(&reordered);
        let tail = work.as_ref().subcols(rank, n - rank).to_owned();
        for (to, &from) in order.iter().enumerate() {
            work.col_mut(rank + to).copy_from(tail.col(from));
        }
        let width = numerical_rank(triangle.as_ref(), T::EPSILON * T::EPSILON).min(width);
        let panel =
            |width| Panel::new(work.as_ref().submatrix(rank, rank, m - rank, width), triangle.as_ref());
        let mut factored = panel(width);
        if rank == 0 && width > 0 {
            greatest = factored.triangle[(0, 0)].to_f64().abs();
        }
        let useful = factored.independent(tolerance * greatest);
        if useful == 0 {
            break;
        }
        if useful < width {
            factored = panel(useful);
        }
        let Panel { reflectors, triangle: r11, .. } = factored;
        let (mut head, mut rest) =
            work.as_mut().submatrix_mut(rank, rank, m - rank, n - rank).split_at_col_mut(useful);
        head.fill(T::ZERO);
        head.rb_mut().subrows_mut(0, useful).copy_from(r11.as_ref());
        reflectors.apply_transposed(rest.rb_mut());
        blocks.push(reflectors);
        rank += useful;
        if useful < width || rank == m.min(n) {
            break;
        }
        sketched = updated(triangle.as_ref(), useful, r11.as_ref(), rest.as_ref().subrows(0, useful));
    }
    let mut q = Mat::identity(m, rank);
    let mut first = rank;
    for reflectors in blocks.iter().rev() {
        first -= reflectors.size();
        reflectors.apply(q.as_mut().submatrix_mut(first, first, m - first, rank - first));
    }
    let at = |i, j| if i <= j { work[(i, j)] } else { T::ZERO };
    Ok(PivotedQr { q: Matrix::new(q), r: Matrix::from_fn(rank, n, at), pivots })
}

/// The columns of a block, factored.
struct Panel<T> {
    reflectors: Reflectors<T>,
    /// The upper triangular factor.
    triangle: Mat<T>,
    /// Diagonal of the factor after the sketch's triangle was divided out.
    preconditioned: Vec<f64>,
}

impl<T: Scalar> Panel<T> {
    /// Divides out the leading triangle of the sketch first: what is left is well conditioned, and is factored alike well
    /// whatever the condition of the columns.
    fn new(columns: MatRef<'_, T>, sketched: MatRef<'_, T>) -> Panel<T> {
        let width = columns.ncols();
        let by = sketched.submatrix(0, 0, width, width);
        let mut even = columns.to_owned();
        dense::divide_by_upper(even.as_mut(), by);
        let reflectors = Reflectors::new(even);
        let inner = reflectors.triangle();
        let preconditioned = (0..width).map(|i| inner[(i, i)].to_f64().abs()).collect();
        let product = dense::product(inner.as_ref(), by);
        let at = |i, j| if i <= j { product[(i, j)] } else { T::ZERO };
        Panel { reflectors, triangle: Mat::from_fn(width, width, at), preconditioned }
    }

    /// How many leading columns are independent: the sketch orders them but may be off by a factor, so it is seen on the
    /// columns themselves.
    fn independent(&self, least: f64) -> usize {
        // Of an embedding the diagonal is near 1. Where it is not, the columns are rounding errors.
        const FAR: f64 = 1e-2;
        let columns = self.preconditioned.iter().enumerate();
        let independent =
            |(i, d): &(usize, &f64)| **d > FAR && self.triangle[(*i, *i)].to_f64().abs() > least;
        columns.take_while(independent).count()
    }
}

/// The sketch of what is left, from the triangle `[S₁₁ S₁₂; 0 S₂₂]` of the sketch before and the rows `[R₁₁ R₁₂]` that
/// were taken out: `[S₁₂ - S₁₁ R₁₁⁻¹ R₁₂; S₂₂]`.
fn updated<T: Scalar>(
    triangle: MatRef<'_, T>,
    taken: usize,
    r11: MatRef<'_, T>,
    r12: MatRef<'_, T>,
) -> Mat<T> {
    let mut next = triangle.subcols(taken, triangle.ncols() - taken).to_owned();
    let solved = dense::solve_upper(r11, r12);
    let top = next.as_mut().subrows_mut(0, taken);
    dense::subtract_product(top, triangle.submatrix(0, 0, taken, taken), solved.as_ref());
    next
}
