//! The few dense operations this crate needs, on the calling thread.
//!
//! faer's convenient methods read a process-wide thread count, which another crate may change and which
//! changes the bits of the result. The functions here pass [`Par::Seq`] down instead. They are not generic,
//! so that an unoptimised caller still gets compiled-once code.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj,
};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::qr::{col_pivoting, no_pivoting};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Accum, Conj, Mat, MatMut, MatRef, Par};

use crate::RandnlaError;

/// `a · b`.
pub(crate) fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    faer::linalg::matmul::matmul(out.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    out
}

/// Adds `xᵀ · x` to the lower triangle of `acc`.
pub(crate) fn add_gram(acc: MatMut<'_, f64>, x: MatRef<'_, f64>) {
    triangular::matmul(
        acc,
        BlockStructure::TriangularLower,
        Accum::Add,
        x.transpose(),
        BlockStructure::Rectangular,
        x,
        BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
}

/// Adds `a · b` to `acc`.
pub(crate) fn add_product(acc: MatMut<'_, f64>, a: MatRef<'_, f64>, b: MatRef<'_, f64>) {
    faer::linalg::matmul::matmul(acc, Accum::Add, a, b, 1.0, Par::Seq);
}

/// The sum of squares, column by column.
pub(crate) fn squared_norm(a: MatRef<'_, f64>) -> f64 {
    (0..a.ncols()).map(|j| squared_column(a, j)).sum()
}

/// The sum of squares of one column.
pub(crate) fn squared_column(a: MatRef<'_, f64>, column: usize) -> f64 {
    (0..a.nrows()).map(|i| a[(i, column)] * a[(i, column)]).sum()
}

/// Multiplies column `j` by `scale(j)`.
pub(crate) fn scale_columns(a: &mut Mat<f64>, scale: impl Fn(usize) -> f64) {
    for j in 0..a.ncols() {
        let by = scale(j);
        for i in 0..a.nrows() {
            a[(i, j)] *= by;
        }
    }
}

/// Eigenvalues, ascending, and eigenvectors (columns) of a symmetric matrix; reads its lower triangle.
pub(crate) fn symmetric_eigen(a: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>), RandnlaError> {
    let n = a.nrows();
    let mut vectors = Mat::zeros(n, n);
    let mut values = Diag::zeros(n);
    let scratch = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    self_adjoint_evd(
        a,
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| RandnlaError::NoConvergence { what: "eigendecomposition", rows: n, columns: n })?;
    Ok((values.column_vector().iter().copied().collect(), vectors))
}

/// A thin singular value decomposition `u · diag(s) · vᵀ`, `s` descending.
pub(crate) struct ThinSvd {
    pub(crate) u: Mat<f64>,
    pub(crate) s: Vec<f64>,
    pub(crate) v: Mat<f64>,
}

/// The thin singular value decomposition of `a`.
pub(crate) fn thin_svd(a: MatRef<'_, f64>) -> Result<ThinSvd, RandnlaError> {
    let (rows, columns) = a.shape();
    let size = rows.min(columns);
    let (mut u, mut v) = (Mat::zeros(rows, size), Mat::zeros(columns, size));
    let mut s = Diag::zeros(size);
    let thin = ComputeSvdVectors::Thin;
    let scratch = svd_scratch::<f64>(rows, columns, thin, thin, Par::Seq, Default::default());
    svd(
        a,
        s.as_mut(),
        Some(u.as_mut()),
        Some(v.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| RandnlaError::NoConvergence { what: "singular value decomposition", rows, columns })?;
    Ok(ThinSvd { u, s: s.column_vector().iter().copied().collect(), v })
}

/// An orthonormal basis, as columns, of a space that contains the range of `a`. Consumes `a`.
pub(crate) fn orthonormal_basis(mut a: Mat<f64>) -> Mat<f64> {
    let (rows, columns) = a.shape();
    let size = rows.min(columns);
    let block = no_pivoting::factor::recommended_block_size::<f64>(rows, columns);
    let mut coefficients = Mat::zeros(block, size);
    let scratch =
        no_pivoting::factor::qr_in_place_scratch::<f64>(rows, columns, block, Par::Seq, Default::default());
    no_pivoting::factor::qr_in_place(
        a.as_mut(),
        coefficients.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    let mut basis = Mat::identity(rows, size);
    let scratch = apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(rows, block, size);
    apply_block_householder_sequence_on_the_left_in_place_with_conj(
        a.as_ref().subcols(0, size),
        coefficients.as_ref(),
        Conj::No,
        basis.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
    );
    basis
}

/// The upper triangular `r` with `rᵀ r = aᵀ a`, for `a` with at least as many rows as columns. Consumes `a`.
pub(crate) fn triangle(mut a: Mat<f64>) -> Mat<f64> {
    let (rows, columns) = a.shape();
    let block = no_pivoting::factor::recommended_block_size::<f64>(rows, columns);
    let mut coefficients = Mat::zeros(block, columns);
    let scratch =
        no_pivoting::factor::qr_in_place_scratch::<f64>(rows, columns, block, Par::Seq, Default::default());
    no_pivoting::factor::qr_in_place(
        a.as_mut(),
        coefficients.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    Mat::from_fn(columns, columns, |i, j| if i <= j { a[(i, j)] } else { 0.0 })
}

/// Column-pivoted QR of `a`: the upper trapezoidal factor, and for each of its columns the column of `a` it
/// stands for. The diagonal of the factor falls in magnitude.
pub(crate) fn pivoted_triangle(a: MatRef<'_, f64>) -> (Mat<f64>, Vec<usize>) {
    let (rows, columns) = a.shape();
    let size = rows.min(columns);
    let mut qr = a.to_owned();
    let block = no_pivoting::factor::recommended_block_size::<f64>(rows, columns);
    let mut coefficients = Mat::zeros(block, size);
    let (mut forward, mut backward) = (vec![0usize; columns], vec![0usize; columns]);
    let scratch = col_pivoting::factor::qr_in_place_scratch::<usize, f64>(
        rows,
        columns,
        block,
        Par::Seq,
        Default::default(),
    );
    col_pivoting::factor::qr_in_place(
        qr.as_mut(),
        coefficients.as_mut(),
        &mut forward,
        &mut backward,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    let triangle = Mat::from_fn(size, columns, |i, j| if i <= j { qr[(i, j)] } else { 0.0 });
    (triangle, forward)
}

/// The lower triangular factor `l` with `l · lᵀ = a`, for a positive definite `a` of which the lower triangle is read and
/// what is above it is zero; `None` for any other.
pub(crate) fn cholesky(mut a: Mat<f64>) -> Option<Mat<f64>> {
    let scratch = cholesky_in_place_scratch::<f64>(a.nrows(), Par::Seq, Default::default());
    let stack = &mut MemBuffer::new(scratch);
    let stack = MemStack::new(stack);
    let done = cholesky_in_place(a.as_mut(), Default::default(), Par::Seq, stack, Default::default());
    // A factor of what is not finite is none.
    done.ok().filter(|_| (0..a.nrows()).all(|i| a[(i, i)].is_finite())).map(|_| a)
}

/// `triangle · m` for upper triangular `triangle`.
pub(crate) fn triangular_product(triangle: MatRef<'_, f64>, m: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(triangle.nrows(), m.ncols());
    triangular::matmul(
        out.as_mut(),
        BlockStructure::Rectangular,
        Accum::Replace,
        triangle,
        BlockStructure::TriangularUpper,
        m,
        BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
    out
}

/// Solves `triangle · x = right` for lower triangular `triangle`.
pub(crate) fn solve_lower(triangle: MatRef<'_, f64>, mut right: Mat<f64>) -> Mat<f64> {
    solve_lower_triangular_in_place(triangle, right.as_mut(), Par::Seq);
    right
}

/// Solves `triangle · x = right` for upper triangular `triangle`.
pub(crate) fn solve_upper(triangle: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut x = right.to_owned();
    solve_upper_triangular_in_place(triangle, x.as_mut(), Par::Seq);
    x
}
