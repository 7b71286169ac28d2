//! Randomized and low-rank factorizations.
//!
//! The crate turns a weight matrix, and what was seen of the inputs it is applied to, into factors of any
//! rank together with the error each rank costs. It knows nothing of graphs or models and may be used on its
//! own. Numbers come in as row-major `f32`, are `f64` inside, and go out as `f32`.
//!
//! - [`Gram`]: streaming mean and second moment of vectors.
//! - [`Whitening`]: a square root of a second moment, and its inverse.
//! - [`LowRank`]: one decomposition of a weight, then factors and exact errors for every rank.
//! - [`Regression`]: factors fitted to pairs of inputs and outputs.
//! - [`Rounded`]: a weight rounded to a few bits, errors fed back into rows that are still to be rounded.
//! - [`IdentityGauge`]: a rank-`k` product in `k (d_in + d_out - k)` numbers.
//! - [`svd`], [`rsvd`]: thin and randomized singular value decomposition.
//! - [`panther`]: weights sketched with random signs that stay as they are.
//! - [`random_matrix`], [`sketch`]: test matrices from counter-based random streams.
//!
//! The same input gives the same bits on the same kind of processor: all work runs on the calling thread, and
//! random numbers are named by seed and stream. For speed, run several factorizations on several threads.
//!
//! Deliberately absent: sparse and structured test matrices (they help only sketches without power
//! iterations), adaptive rank finding (one spectrum gives the error of every rank), and complex numbers.

#![forbid(unsafe_code)]

mod dense;
mod error;
mod gauge;
mod gram;
mod lowrank;
mod matrix;
pub mod panther;
mod regression;
mod rounding;
mod rsvd;
mod subset;
mod test_matrix;
mod whitening;

pub use error::RandnlaError;
pub use gauge::{IdentityGauge, Side};
pub use gram::Gram;
pub use lowrank::{Factors, LowRank, LowRankOptions};
pub use matrix::Matrix;
pub use regression::Regression;
pub use rounding::Rounded;
pub use rsvd::{RsvdOptions, Svd, rsvd, svd};
pub use subset::Subset;
pub use test_matrix::{Distribution, random_matrix, sketch};
pub use whitening::{Centring, Conditioning, Whitening};
