//! Singular values from block Krylov spaces.
//!
//! Where [`rsvd`](crate::rsvd) keeps only the last image of its test matrix, a Krylov space keeps all of them, which gains
//! accuracy for the same number of products where singular values fall slowly, at the price of a larger basis (Musco and
//! Musco, *Randomized block Krylov methods for stronger and faster approximate singular value decomposition*, NeurIPS 2015).
//! The basis grows by a block of left vectors at a time, orthogonalized against all before, as in the algorithm ABRIK of
//! RandLAPACK, until the error in the Frobenius norm is small enough.

use faer::Mat;

use crate::dense::ThinSvd;
use crate::range::{check_rank, squared_residual};
use crate::{Distribution, Law, Matrix, MatrixRef, RandnlaError, Scalar, Sketch, Svd, dense};

/// How a Krylov space grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbrikOptions {
    /// Vectors of a block.
    pub block: usize,
    /// Blocks of left vectors. Each costs a product with `A` and one with its transpose.
    pub blocks: usize,
    /// Seed of the random stream.
    pub seed: u64,
    /// Number of the random stream.
    pub stream: u64,
}

/// A truncated singular value decomposition of this rank from a block Krylov space; the error in `tail` is exact up to
/// rounding.
///
/// Blocks are added until there are `options.blocks` of them, the space is complete, or the squared error is at most
/// `tolerance²` times the squared norm of `a`. The rank is smaller if the space is.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], [`RandnlaError::NoConvergence`], [`RandnlaError::Rank`] unless
/// the rank is between 1 and the smaller dimension, and [`RandnlaError::Parameter`] for blocks of 0 or a tolerance that is
/// negative or not finite.
pub fn abrik<'a, T: Scalar>(
    a: impl Into<MatrixRef<'a, T>>,
    rank: usize,
    tolerance: f64,
    options: &AbrikOptions,
) -> Result<Svd<T>, RandnlaError> {
    let a = a.into();
    a.check("the matrix")?;
    check_rank(&a, rank)?;
    for (name, value) in [("block", options.block), ("blocks", options.blocks)] {
        if value == 0 {
            return Err(RandnlaError::Parameter { name, expected: "at least 1", found: 0.0 });
        }
    }
    if !(tolerance >= 0.0 && tolerance.is_finite()) {
        let expected = "a finite number of at least 0";
        return Err(RandnlaError::Parameter { name: "tolerance", expected, found: tolerance });
    }
    let (m, n) = a.shape();
    let smaller = m.min(n);
    let block = options.block.min(smaller);
    let law = Law::Dense(Distribution::Gaussian);
    let test = Sketch::new(law, block, n, options.seed, options.stream)?;
    let mut right = test.to_matrix::<T>().as_ref().transpose().to_owned();
    let mut left: Mat<T> = Mat::zeros(m, 0);
    let mut image: Mat<T> = Mat::zeros(n, 0); // `Aᵀ left`
    let mut rest = a.squared_norm();
    let target = tolerance * tolerance * rest;
    for _ in 0..options.blocks {
        let size = right.ncols().min(smaller - left.ncols());
        if size == 0 || rest <= target {
            break;
        }
        let new = dense::orthonormal_beside(a.times(right.as_ref().subcols(0, size)), left.as_ref());
        let new_image = a.transposed().times(new.as_ref());
        rest -= dense::squared_norm(new_image.as_ref());
        left = dense::beside(&[left.as_ref(), new.as_ref()]);
        image = dense::beside(&[image.as_ref(), new_image.as_ref()]);
        // The next right vectors; what they share with those before adds nothing to the space of `A` times them.
        right = dense::orthonormal_basis(new_image);
    }
    let ThinSvd { u, mut s, v } = dense::thin_svd(image.transpose())?;
    s.truncate(rank);
    let rank = s.len();
    let kept: f64 = s.iter().rev().map(|s| s * s).sum();
    let whole = a.squared_norm();
    let vectors = dense::product(left.as_ref(), u.as_ref().subcols(0, rank));
    let right = v.subcols(0, rank).to_owned();
    let tail = whole - kept;
    let tail = if tail > 8.0 * T::EPSILON * whole {
        tail
    } else {
        let mut scaled = right.clone();
        dense::scale_columns(&mut scaled, |j| s[j]);
        squared_residual(a, vectors.as_ref(), scaled.transpose())
    };
    Ok(Svd { left: Matrix::new(vectors), singular_values: s, right: Matrix::new(right), tail })
}
