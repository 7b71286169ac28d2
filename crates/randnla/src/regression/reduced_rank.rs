//! Weights of reduced rank that fit second moments.

use faer::Mat;

use super::{Moments, check_outputs};
use crate::matrix::{check_factorable, check_shape};
use crate::{
    Centring, Conditioning, Factors, LowRank, LowRankOptions, Matrix, RandnlaError, Whitening, dense,
};

/// The search for the weights of reduced rank that fit some pairs best; see [`Regression`](super::Regression).
///
/// What does not depend on rank and conditioning is done once.
pub struct ReducedRank<'a> {
    moments: Moments,
    centring: Centring,
    outputs: Option<&'a Whitening>,
    /// Shape of the weight.
    shape: (usize, usize),
    /// `P Tᵀ`, with the weight `P` that is known beforehand and the root `T` that weighs the outputs.
    prior: Mat<f64>,
    /// `(D - C P) Tᵀ`, with the moments `C` and `D` as they were seen.
    rest: Mat<f64>,
}

impl<'a> ReducedRank<'a> {
    pub(super) fn new(
        moments: Moments,
        prior: &Matrix,
        centring: Centring,
        outputs: Option<&'a Whitening>,
    ) -> Result<ReducedRank<'a>, RandnlaError> {
        let shape = moments.xy.shape();
        check_shape("the prior weight", shape, prior)?;
        check_factorable("the prior weight", prior)?;
        check_outputs(outputs, shape.1)?;
        let rest = &moments.xy - dense::product(moments.xx.as_ref(), prior.as_ref());
        let weighed = |m: Mat<f64>| match outputs {
            Some(outputs) => outputs.whiten(m.transpose()).transpose().to_owned(),
            None => m,
        };
        let (prior, rest) = (weighed(prior.as_ref().to_owned()), weighed(rest));
        Ok(ReducedRank { moments, centring, outputs, shape, prior, rest })
    }

    /// The best factors `[d_in, k]` and `[k, d_out]` of a rank, and the bias `[d_out]`, once the moment of the inputs is
    /// conditioned. `options` say when the approximation is exact and how it is randomized; their greatest rank is not
    /// used.
    ///
    /// # Errors
    /// [`RandnlaError::Rank`], [`RandnlaError::Parameter`] or [`RandnlaError::NoConvergence`].
    pub fn factors(
        &self,
        rank: usize,
        conditioning: &Conditioning,
        options: &LowRankOptions,
    ) -> Result<Factors, RandnlaError> {
        let white = Whitening::new(&self.moments.xx, None, conditioning)?;
        // The moment is mixed with a share `a` of the identity, and what is left to explain with as much of nothing, so that M lies
        // between the prior and the least squares: M = P + (1 - a) C⁻¹ (D - C₀ P), C conditioned and C₀ as it was seen.
        let explained = (1.0 - conditioning.shrinkage) * white.whiten_inverse(&self.rest);
        let scaled = white.whiten(self.prior.as_ref()) + explained;
        let options = LowRankOptions { max_rank: Some(rank), ..*options };
        let found =
            LowRank::of_scaled(&Matrix::new(scaled), self.shape, Some(&white), self.outputs, &options)?;
        let mut factors = found.factors(rank)?;
        factors.bias = match self.centring {
            Centring::Centred => {
                let bias = self.moments.exact_bias(&factors.left, &factors.right);
                Some(bias.into_iter().map(|b| b as f32).collect())
            }
            Centring::Uncentred => None,
        };
        Ok(factors)
    }
}
