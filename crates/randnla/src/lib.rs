//! Randomized linear algebra on [faer]: sketches, and factorizations that use them.
//!
//! The crate knows nothing of graphs or models and may be used on its own. Drivers are written once for `f32` and `f64`,
//! and for dense and sparse matrices: they take whatever converts into a [`MatrixRef`] ([`Matrix`], [`Sparse`], matrices
//! of faer in any layout, row-major slices, and blocks and transposes of these), or a [`LinearOperator`] where products
//! are all they need.
//!
//! ```
//! use margay_randnla::{Distribution, Law, Matrix, RsvdOptions, Sketch, SketchedQrOptions, cqrrpt, rsvd};
//!
//! // 2000 x 60, of rank 5.
//! let wave = |i: usize, r: usize| (0.1 * (r * i) as f64).sin();
//! let a: Matrix = Matrix::from_fn(2000, 60, |i, j| (1..6).map(|r| wave(i, r) * wave(j, 2 * r)).sum::<f64>());
//!
//! // The leading singular values, and what they leave out.
//! let found = rsvd(&a, 5, &RsvdOptions::default())?;
//! assert!(found.tail < 1e-12 * a.squared_norm());
//!
//! // A pivoted QR decomposition, with the numerical rank.
//! let qr = cqrrpt(&a, &SketchedQrOptions::default())?;
//! assert_eq!(qr.rank(), 5);
//!
//! // A sketch is a value; a block of it is made alone, with the same bits.
//! let sketch = Sketch::new(Law::Sjlt { nonzeros: 4 }, 200, 2000, 7, 0)?;
//! let short = sketch.apply(&a)?;
//! assert!((short.squared_norm() / a.squared_norm() - 1.0).abs() < 0.5);
//! let (block, whole) = (sketch.window(10..12, 300..310)?.to_matrix::<f32>(), sketch.to_matrix::<f32>());
//! assert_eq!(block.at(1, 9), whole.at(11, 309));
//! # Ok::<(), margay_randnla::RandnlaError>(())
//! ```
//!
//! **Sketches.** [`Sketch`], with its [`Law`]: Gaussian, uniform and random signs; sparse columns (SJLT, CountSketch) and
//! rows (LESS); the subsampled randomized Hadamard transform; sampled rows; tensor sketches, Kronecker products, stacks.
//!
//! **Factorizations.**
//! - [`range_finder`], [`qb`], [`rsvd`], [`rsvd_to_tolerance`], [`abrik`]: leading singular values, by rank or tolerance.
//! - [`cqrrt`], [`cqrrpt`], [`shifted_cholesky_qr3`], [`bqrrp`]: QR decompositions, without and with pivots.
//! - [`interpolative`], [`cur`], [`leverage_scores`]: columns and rows of the matrix itself.
//! - [`nystrom`], [`revd2`], [`rpcholesky`], [`conjugate_gradients`]: positive semidefinite matrices.
//! - [`least_squares`], [`saddle_point`]: preconditioned by a sketch.
//! - [`hutch_plus_plus`], [`lanczos_trace`], [`lanczos_log_determinant`]: traces of what is known by its products.
//! - [`tt_svd`], [`tt_svd_to_rank`], [`hosvd`], [`hooi`], [`cp_als`]: tensors.
//! - [`spectral_norm_bound`] and [`RangeBasis::leave_one_out`]: how large an error is, from random vectors.
//!
//! **Weights**, row-major `f32` outside and `f64` inside: a weight matrix, and what was seen of the inputs it is applied
//! to, become factors of any rank together with the error each rank costs.
//! - [`Gram`]: streaming mean and second moment of vectors.
//! - [`Whitening`]: a square root of a second moment, and its inverse.
//! - [`LowRank`]: one decomposition of a weight, then factors and exact errors for every rank.
//! - [`lowrank_sparse`]: factors beside whole rows or single entries.
//! - [`Regression`]: factors fitted to pairs of inputs and outputs.
//! - [`Rounded`]: a weight rounded to a few bits, errors fed back into rows that are still to be rounded.
//! - [`IdentityGauge`]: a rank-`k` product in `k (d_in + d_out - k)` numbers.
//! - [`Subset`]: the coordinates that say most about the output.
//! - [`Structure`]: an algebra of structured matrices: products, sums, Kronecker products and blocks of factors.
//! - [`random_directions`], [`Proposal`]: what the random features of attention look along.
//! - [`panther`]: weights sketched with random signs that stay as they are.
//!
//! The same input gives the same bits on the same kind of processor: all work runs on the calling thread, and
//! random numbers are named by seed and stream. For speed, run several factorizations on several threads.
//!
//! `docs/randnla.md` has the law of every sketch and driver, its cost, and measured times. Deliberately absent: complex
//! numbers, distributed matrices, and drivers that use several threads.

#![forbid(unsafe_code)]

mod bqrrp;
mod bytes;
mod cholesky_qr;
mod dense;
mod error;
mod features;
mod gauge;
mod gram;
mod hadamard;
mod krylov;
mod least_squares;
mod linalg;
mod lowrank;
mod lowrank_sparse;
mod matrix;
mod normal;
mod panel;
pub mod panther;
mod psd;
mod range;
mod regression;
mod rounding;
mod rsvd;
mod scalar;
mod skeleton;
mod sketch;
mod sparse;
mod structured;
mod subset;
mod tensor;
mod test_matrix;
mod thin_root;
mod trace;
mod vector;
mod view;
mod whitening;

pub use bqrrp::{BqrrpOptions, bqrrp};
pub use cholesky_qr::{PivotedQr, Qr, SketchedQrOptions, cqrrpt, cqrrt, shifted_cholesky_qr3};
pub use error::RandnlaError;
pub use features::{Directions, Proposal, random_directions};
pub use gauge::{IdentityGauge, Side};
pub use gram::Gram;
pub use krylov::{AbrikOptions, abrik};
pub use least_squares::{LeastSquares, LeastSquaresOptions, least_squares, saddle_point};
pub use lowrank::{Factors, LowRank, LowRankOptions};
pub use lowrank_sparse::{LowRankSparse, Places, lowrank_sparse};
pub use matrix::Matrix;
pub use psd::{
    Eigen, PartialCholesky, Revd2Options, Solution, conjugate_gradients, nystrom, revd2, rpcholesky,
};
pub use range::{Qb, QbOptions, RangeBasis, Residual, qb, range_finder, spectral_norm_bound};
pub use regression::{FitError, FitErrors, ReducedRank, Regression};
pub use rounding::Rounded;
pub use rsvd::{RsvdOptions, Svd, rsvd, rsvd_to_tolerance, svd};
pub use scalar::Scalar;
pub use skeleton::{Cur, Interpolative, cur, interpolative, leverage_scores};
pub use sketch::{Draw, Law, Sketch};
pub use sparse::Sparse;
pub use structured::{Contents, Kind, Stored, Structure, StructureOptions};
pub use subset::Subset;
pub use tensor::{
    Cp, CpOptions, DenseTensor, TensorTrain, Tucker, cp_als, hooi, hosvd, hosvd_to_tolerance, tt_svd,
    tt_svd_to_rank,
};
pub use test_matrix::{Distribution, random_matrix};
pub use trace::{Estimate, LanczosOptions, hutch_plus_plus, lanczos_log_determinant, lanczos_trace};
pub use view::{LinearOperator, MatrixRef};
pub use whitening::{Centring, Conditioning, Whitening};
