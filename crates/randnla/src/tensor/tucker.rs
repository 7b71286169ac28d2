//! Tucker decompositions: a small core times a matrix along each mode.
//!
//! Modes are truncated one after the other, each on what the ones before left (Vannieuwenhoven, Vandebril and Meerbergen,
//! *A new truncation strategy for the higher-order singular value decomposition*, SISC 2012), for given ranks by randomized
//! decompositions (Minster, Saibaba and Kilmer, *Randomized algorithms for low-rank tensor decompositions in the Tucker
//! format*, SIMODS 2020). Orthogonal iteration improves the factors in turn (De Lathauwer, De Moor and Vandewalle, *On the
//! best rank-1 and rank-(R1, R2, …, RN) approximation of higher-order tensors*, SIMAX 2000).

use super::{DenseTensor, check_tolerance, smallest_rank};
use crate::dense::ThinSvd;
use crate::{Matrix, RandnlaError, RsvdOptions, Scalar, dense, rsvd};

/// A core times a matrix with orthonormal columns along each mode.
#[derive(Clone, Debug, PartialEq)]
pub struct Tucker<T = f64> {
    /// Its extents are the ranks.
    pub core: DenseTensor<T>,
    /// One for each mode: `[extent, rank]`.
    pub factors: Vec<Matrix<T>>,
}

impl<T: Scalar> Tucker<T> {
    /// The whole tensor.
    pub fn to_tensor(&self) -> DenseTensor<T> {
        let whole = self.core.clone();
        self.factors.iter().enumerate().fold(whole, |t, (mode, f)| t.along(mode, f.as_ref()))
    }

    /// Ranks of the modes.
    pub fn ranks(&self) -> &[usize] {
        self.core.extents()
    }
}

/// A Tucker decomposition of these ranks. Its squared error is at most the sum, over modes, of what the best approximation
/// of that mode's unfolding leaves out, times what the randomized decompositions lose.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::NonFinite`], [`RandnlaError::Length`] and [`RandnlaError::Rank`] unless there
/// is a rank for each mode, between 1 and its extent and the product of the others, and [`RandnlaError::NoConvergence`].
pub fn hosvd<T: Scalar>(
    tensor: &DenseTensor<T>,
    ranks: &[usize],
    options: &RsvdOptions,
) -> Result<Tucker<T>, RandnlaError> {
    tensor.check_ranks(ranks)?;
    let mut core = tensor.clone();
    let mut factors = Vec::with_capacity(ranks.len());
    for (mode, &rank) in ranks.iter().enumerate() {
        let options = RsvdOptions { stream: options.stream.wrapping_add(mode as u64), ..*options };
        let factor = rsvd(&core.unfolding(mode), rank, &options)?.left;
        core = core.along(mode, factor.as_ref().transpose());
        factors.push(factor);
    }
    Ok(Tucker { core, factors })
}

/// A Tucker decomposition with `‖T - T̂‖ ≤ tolerance ‖T‖` (Frobenius norm), of the smallest ranks for which every mode
/// takes its share of the error.
///
/// # Errors
/// [`RandnlaError::Length`] for a tensor without modes, [`RandnlaError::Empty`], [`RandnlaError::NonFinite`],
/// [`RandnlaError::Parameter`] for a tolerance that is negative or not finite, and [`RandnlaError::NoConvergence`].
pub fn hosvd_to_tolerance<T: Scalar>(
    tensor: &DenseTensor<T>,
    tolerance: f64,
) -> Result<Tucker<T>, RandnlaError> {
    tensor.check(1)?;
    check_tolerance(tolerance)?;
    let modes = tensor.extents.len();
    let squared = tolerance * tolerance * tensor.squared_norm() / modes as f64;
    let mut core = tensor.clone();
    let mut factors = Vec::with_capacity(modes);
    for mode in 0..modes {
        let ThinSvd { u, s, .. } = dense::thin_svd(core.unfolding(mode).as_ref())?;
        let rank = smallest_rank(&s, squared);
        let factor = Matrix::new(u.subcols(0, rank).to_owned());
        core = core.along(mode, factor.as_ref().transpose());
        factors.push(factor);
    }
    Ok(Tucker { core, factors })
}

/// [`hosvd`], then so many rounds of orthogonal iteration: each mode's factor is the best for those of the others. The
/// error never rises from round to round, up to rounding and what randomized decompositions lose.
///
/// # Errors
/// Those of [`hosvd`], and [`RandnlaError::Rank`] for a rank above the product of the others.
pub fn hooi<T: Scalar>(
    tensor: &DenseTensor<T>,
    ranks: &[usize],
    rounds: usize,
    options: &RsvdOptions,
) -> Result<Tucker<T>, RandnlaError> {
    let mut tucker = hosvd(tensor, ranks, options)?;
    for round in 0..rounds {
        for mode in 0..ranks.len() {
            let mut rest = tensor.clone();
            for (other, factor) in tucker.factors.iter().enumerate().filter(|(other, _)| *other != mode) {
                rest = rest.along(other, factor.as_ref().transpose());
            }
            let draw = (ranks.len() * (round + 1) + mode) as u64;
            let options = RsvdOptions { stream: options.stream.wrapping_add(draw), ..*options };
            let factor = rsvd(&rest.unfolding(mode), ranks[mode], &options)?.left;
            tucker.core = rest.along(mode, factor.as_ref().transpose());
            tucker.factors[mode] = factor;
        }
    }
    Ok(tucker)
}
