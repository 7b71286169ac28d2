//! What weights leave unexplained of pairs of rows.

use faer::{Mat, MatRef};

use super::{Moments, check_outputs};
use crate::matrix::check_shape;
use crate::{Matrix, RandnlaError, Whitening, dense};

/// What weights leave unexplained of some pairs; see [`Regression`](super::Regression).
///
/// What does not depend on the weight is done once.
pub struct FitErrors<'a> {
    moments: Moments,
    outputs: Option<&'a Whitening>,
    /// `T Dᵀ`, with the covariance `D` of inputs and targets and the root `T` that weighs the outputs.
    weighed: Option<Mat<f64>>,
}

/// Means over pairs of rows `x` and `y` of what a weight and a bias leave, `e = y - x left right - bias`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct FitError {
    /// The mean of `‖e‖²`.
    pub squared: f64,
    /// The mean of `e G eᵀ` with the second moment `G` of the outputs, but for what the targets alone give: it compares
    /// weights for one sample, and may be negative. The mean of `‖e‖²` where outputs all weigh the same.
    pub weighed: f64,
}

impl<'a> FitErrors<'a> {
    pub(super) fn new(
        moments: Moments,
        outputs: Option<&'a Whitening>,
    ) -> Result<FitErrors<'a>, RandnlaError> {
        check_outputs(outputs, moments.xy.ncols())?;
        let weighed = outputs.map(|outputs| outputs.whiten(moments.xy.transpose()));
        Ok(FitErrors { moments, outputs, weighed })
    }

    /// What factors `[d_in, k]` and `[k, d_out]` and a bias `[d_out]` leave; without a bias it is taken as 0.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] or [`RandnlaError::Length`].
    pub fn of(&self, left: &Matrix, right: &Matrix, bias: Option<&[f32]>) -> Result<FitError, RandnlaError> {
        let (d_in, d_out) = self.moments.xy.shape();
        check_shape("the left factor", (d_in, left.columns()), left)?;
        check_shape("the right factor", (left.columns(), d_out), right)?;
        if let Some(bias) = bias.filter(|bias| bias.len() != d_out) {
            return Err(RandnlaError::Length { what: "the bias", expected: d_out, found: bias.len() });
        }
        let (l, r) = (left.as_ref(), right.as_ref());
        let image = dense::product(self.moments.xx.as_ref(), l);
        let gram = dense::product(l.transpose(), image.as_ref());
        // ⟨M, C M⟩ - 2 ⟨M, D⟩ for M = left right, of right factors and moments in the same metric.
        let spread = |right: MatRef<'_, f64>, xy: MatRef<'_, f64>| {
            let outer = dense::product(right, right.transpose());
            let cross = dense::product(l.transpose(), xy);
            inner(gram.as_ref(), outer.as_ref()) - 2.0 * inner(cross.as_ref(), right)
        };
        let offset: Vec<f64> = self.moments.exact_bias(left, right);
        let offset = Mat::from_fn(d_out, 1, |j, _| offset[j] - bias.map_or(0.0, |b| f64::from(b[j])));
        // What cancels may leave a negative rest.
        let squared = (self.moments.yy + spread(r, self.moments.xy.as_ref())).max(0.0)
            + dense::squared_column(offset.as_ref(), 0);
        let weighed = match (self.outputs, &self.weighed) {
            (Some(outputs), Some(xy)) => {
                let right = outputs.whiten(r.transpose());
                let offset = outputs.whiten(offset.as_ref());
                spread(right.transpose(), xy.transpose()) + dense::squared_column(offset.as_ref(), 0)
            }
            _ => squared,
        };
        Ok(FitError { squared, weighed })
    }
}

/// The sum of the products of entries.
fn inner(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
    (0..a.ncols()).map(|j| (0..a.nrows()).map(|i| a[(i, j)] * b[(i, j)]).sum::<f64>()).sum()
}
