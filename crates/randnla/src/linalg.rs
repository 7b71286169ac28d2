//! What is taken from faer, compiled once for each scalar.
//!
//! faer's routines are generic and large. Behind the methods of a trait with an implementation for each scalar they are
//! compiled with this crate, optimised, and not again in every crate that calls a driver. All run on the calling thread:
//! faer's convenient methods read a process-wide thread count, which another crate may change and which changes the bits
//! of the result, so [`Par::Seq`] is passed down instead.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj,
    apply_block_householder_sequence_transpose_on_the_left_in_place_scratch,
    apply_block_householder_sequence_transpose_on_the_left_in_place_with_conj,
};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::qr::{col_pivoting, no_pivoting};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::traits::RealField;
use faer::{Accum, Conj, Mat, MatMut, MatRef, Par};

/// Linear algebra on one type of numbers. Public for the sake of [`Scalar`](crate::Scalar), which it seals.
pub trait Linalg: RealField {
    /// `acc += by · a · b`.
    fn add_product(acc: MatMut<'_, Self>, a: MatRef<'_, Self>, b: MatRef<'_, Self>, by: Self);

    /// Adds `xᵀ · x` to the lower triangle of `acc`.
    fn add_gram(acc: MatMut<'_, Self>, x: MatRef<'_, Self>);

    /// Adds `triangle · m` to `acc`, of which `triangle` is upper triangular.
    fn add_upper_product(acc: MatMut<'_, Self>, triangle: MatRef<'_, Self>, m: MatRef<'_, Self>);

    /// Eigenvalues, ascending, and eigenvectors of a symmetric matrix; reads its lower triangle.
    fn eigen(a: MatRef<'_, Self>) -> Option<(Vec<Self>, Mat<Self>)>;

    /// Thin singular value decomposition: left vectors, values, right vectors.
    fn svd(a: MatRef<'_, Self>) -> Option<(Mat<Self>, Vec<Self>, Mat<Self>)>;

    /// Householder QR in place: the coefficients of the blocks of reflectors, and the number of columns that are not
    /// dependent on those before, to `16 m ε` of their norms. Dependent ones get no reflector.
    fn qr(a: MatMut<'_, Self>) -> (Mat<Self>, usize);

    /// Column-pivoted Householder QR in place: coefficients, and for each place the column it stands for. Not for zeros.
    fn pivoted_qr(a: MatMut<'_, Self>) -> (Mat<Self>, Vec<usize>);

    /// Replaces `x` by `Q x`, or by `Qᵀ x`, of reflectors and coefficients.
    fn apply_q(
        reflectors: MatRef<'_, Self>,
        coefficients: MatRef<'_, Self>,
        x: MatMut<'_, Self>,
        transposed: bool,
    );

    /// Replaces `x` by the solution for a lower triangle.
    fn solve_lower(triangle: MatRef<'_, Self>, x: MatMut<'_, Self>);

    /// Replaces `x` by the solution for an upper triangle.
    fn solve_upper(triangle: MatRef<'_, Self>, x: MatMut<'_, Self>);

    /// Lower Cholesky factor in place, or the size of the leading block that is positive definite.
    fn cholesky(a: MatMut<'_, Self>) -> Result<(), usize>;
}

macro_rules! linalg {
    ($($scalar:ty),*) => {
        $(impl Linalg for $scalar {
            fn add_product(acc: MatMut<'_, Self>, a: MatRef<'_, Self>, b: MatRef<'_, Self>, by: Self) {
                faer::linalg::matmul::matmul(acc, Accum::Add, a, b, by, Par::Seq);
            }

            fn add_gram(acc: MatMut<'_, Self>, x: MatRef<'_, Self>) {
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

            fn add_upper_product(acc: MatMut<'_, Self>, triangle: MatRef<'_, Self>, m: MatRef<'_, Self>) {
                triangular::matmul(
                    acc,
                    BlockStructure::Rectangular,
                    Accum::Add,
                    triangle,
                    BlockStructure::TriangularUpper,
                    m,
                    BlockStructure::Rectangular,
                    1.0,
                    Par::Seq,
                );
            }

            fn eigen(a: MatRef<'_, Self>) -> Option<(Vec<Self>, Mat<Self>)> {
                let n = a.nrows();
                let mut vectors = Mat::zeros(n, n);
                let mut values = Diag::zeros(n);
                let yes = ComputeEigenvectors::Yes;
                let scratch = self_adjoint_evd_scratch::<Self>(n, yes, Par::Seq, Default::default());
                self_adjoint_evd(
                    a,
                    values.as_mut(),
                    Some(vectors.as_mut()),
                    Par::Seq,
                    MemStack::new(&mut MemBuffer::new(scratch)),
                    Default::default(),
                )
                .ok()?;
                Some((values.column_vector().iter().copied().collect(), vectors))
            }

            fn svd(a: MatRef<'_, Self>) -> Option<(Mat<Self>, Vec<Self>, Mat<Self>)> {
                let (rows, columns) = a.shape();
                let size = rows.min(columns);
                let (mut u, mut v) = (Mat::zeros(rows, size), Mat::zeros(columns, size));
                let mut s = Diag::zeros(size);
                let thin = ComputeSvdVectors::Thin;
                let scratch =
                    svd_scratch::<Self>(rows, columns, thin, thin, Par::Seq, Default::default());
                svd(
                    a,
                    s.as_mut(),
                    Some(u.as_mut()),
                    Some(v.as_mut()),
                    Par::Seq,
                    MemStack::new(&mut MemBuffer::new(scratch)),
                    Default::default(),
                )
                .ok()?;
                Some((u, s.column_vector().iter().copied().collect(), v))
            }

            fn qr(mut a: MatMut<'_, Self>) -> (Mat<Self>, usize) {
                let (rows, columns) = a.shape();
                let block = no_pivoting::factor::recommended_block_size::<Self>(rows, columns);
                let mut coefficients = Mat::zeros(block, rows.min(columns));
                let scratch = no_pivoting::factor::qr_in_place_scratch::<Self>(
                    rows,
                    columns,
                    block,
                    Par::Seq,
                    Default::default(),
                );
                let found = no_pivoting::factor::qr_in_place(
                    a.as_mut(),
                    coefficients.as_mut(),
                    Par::Seq,
                    MemStack::new(&mut MemBuffer::new(scratch)),
                    Default::default(),
                );
                (coefficients, found.rank)
            }

            fn pivoted_qr(mut a: MatMut<'_, Self>) -> (Mat<Self>, Vec<usize>) {
                let (rows, columns) = a.shape();
                let block = no_pivoting::factor::recommended_block_size::<Self>(rows, columns);
                let mut coefficients = Mat::zeros(block, rows.min(columns));
                let (mut forward, mut backward) = (vec![0usize; columns], vec![0usize; columns]);
                let scratch = col_pivoting::factor::qr_in_place_scratch::<usize, Self>(
                    rows,
                    columns,
                    block,
                    Par::Seq,
                    Default::default(),
                );
                col_pivoting::factor::qr_in_place(
                    a.as_mut(),
                    coefficients.as_mut(),
                    &mut forward,
                    &mut backward,
                    Par::Seq,
                    MemStack::new(&mut MemBuffer::new(scratch)),
                    Default::default(),
                );
                (coefficients, forward)
            }

            fn apply_q(
                reflectors: MatRef<'_, Self>,
                coefficients: MatRef<'_, Self>,
                x: MatMut<'_, Self>,
                transposed: bool,
            ) {
                let (rows, block, columns) = (reflectors.nrows(), coefficients.nrows(), x.ncols());
                if transposed {
                    let scratch = apply_block_householder_sequence_transpose_on_the_left_in_place_scratch::<
                        Self,
                    >(rows, block, columns);
                    apply_block_householder_sequence_transpose_on_the_left_in_place_with_conj(
                        reflectors,
                        coefficients,
                        Conj::No,
                        x,
                        Par::Seq,
                        MemStack::new(&mut MemBuffer::new(scratch)),
                    );
                } else {
                    let scratch = apply_block_householder_sequence_on_the_left_in_place_scratch::<Self>(
                        rows, block, columns,
                    );
                    apply_block_householder_sequence_on_the_left_in_place_with_conj(
                        reflectors,
                        coefficients,
                        Conj::No,
                        x,
                        Par::Seq,
                        MemStack::new(&mut MemBuffer::new(scratch)),
                    );
                }
            }

            fn solve_lower(triangle: MatRef<'_, Self>, x: MatMut<'_, Self>) {
                solve_lower_triangular_in_place(triangle, x, Par::Seq);
            }

            fn solve_upper(triangle: MatRef<'_, Self>, x: MatMut<'_, Self>) {
                solve_upper_triangular_in_place(triangle, x, Par::Seq);
            }

            fn cholesky(mut a: MatMut<'_, Self>) -> Result<(), usize> {
                let scratch = llt::factor::cholesky_in_place_scratch::<Self>(
                    a.nrows(),
                    Par::Seq,
                    Default::default(),
                );
                llt::factor::cholesky_in_place(
                    a.as_mut(),
                    Default::default(),
                    Par::Seq,
                    MemStack::new(&mut MemBuffer::new(scratch)),
                    Default::default(),
                )
                .map(|_| ())
                .map_err(|llt::factor::LltError::NonPositivePivot { index }| index)
            }
        })*
    };
}

linalg!(f32, f64);
