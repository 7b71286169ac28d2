//! What calibration measured of some rows.

use std::sync::{Arc, OnceLock};

use margay_randnla::{Centring, Conditioning, Gram, Matrix, RandnlaError, Whitening};

use super::Context;

/// First and second moments of rows.
#[derive(Debug)]
pub struct Moments {
    gram: Gram,
    centring: Centring,
    conditioning: Conditioning,
    identity: String,
}

/// Of the same rows, as far as identities tell.
impl PartialEq for Moments {
    fn eq(&self, other: &Moments) -> bool {
        self.centring == other.centring && self.identity == other.identity
    }
}

impl Eq for Moments {}

impl Moments {
    /// How second moments of inputs are conditioned: against directions that the samples hardly show, a share of the mean
    /// variance is added to each.
    pub const INPUTS: Conditioning = Conditioning { shrinkage: 0.01, floor: 1e-8 };

    /// How those of gradients are.
    pub const GRADIENTS: Conditioning = Conditioning { shrinkage: 0.05, floor: 1e-8 };

    /// Sums of what goes into a layer. What `identity` says identifies them; it becomes a part of the names of derived
    /// constants. Second moments are taken about the mean.
    pub fn of_inputs(gram: Gram, identity: &str) -> Moments {
        Moments::new(gram, Centring::Centred, Moments::INPUTS, identity)
    }

    /// Sums of the gradients of the outputs of a model by what a layer gives. Second moments are taken about zero.
    pub fn of_gradients(gram: Gram, identity: &str) -> Moments {
        Moments::new(gram, Centring::Uncentred, Moments::GRADIENTS, identity)
    }

    fn new(gram: Gram, centring: Centring, conditioning: Conditioning, identity: &str) -> Moments {
        Moments { gram, centring, conditioning, identity: identity.to_owned() }
    }

    /// The sums.
    pub fn gram(&self) -> &Gram {
        &self.gram
    }

    /// A square root of the second moment. Every call computes it: that is little beside what is done with it, and it is as
    /// large as the moment.
    ///
    /// # Errors
    /// Of [`Whitening::from_gram`].
    pub fn whitening(&self) -> Result<Whitening, RandnlaError> {
        Whitening::from_gram(&self.gram, self.centring, &self.conditioning)
    }

    /// Identifies the sums: the same for moments of other rows only where these are the same.
    pub fn identity(&self) -> &str {
        &self.identity
    }
}

/// What was seen of a site of one weight: the moments of its inputs, and of the gradients by its outputs.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    inputs: Option<Arc<Moments>>,
    metric: Option<Arc<Moments>>,
    /// The triangular roots of both moments, once somebody asked for them.
    roots: [Once<Matrix>; 2],
}

type Once<T> = OnceLock<Result<T, RandnlaError>>;

/// What contents that are derived from a site depend on besides its weights, for their names: what was measured there. Two
/// sites with equal weights need not read the same.
pub(super) fn source(context: &Context<'_>) -> String {
    let inputs = context.moments.iter().flat_map(|all| all.iter()).map(|m| ("inputs", m));
    let all = inputs.chain(context.metric.map(|m| ("outputs", m)));
    all.map(|(what, moments)| format!(", {what} = {}", moments.identity())).collect()
}

impl Seen {
    pub(super) fn of(context: &Context<'_>) -> Seen {
        let inputs = context.moments.map(|m| m[0].clone());
        Seen { inputs, metric: context.metric.cloned(), roots: Default::default() }
    }

    /// Whether there were samples.
    pub(super) fn any(&self) -> bool {
        self.inputs.is_some()
    }

    /// The moments of the inputs.
    pub(super) fn inputs(&self) -> Option<&Moments> {
        self.inputs.as_deref()
    }

    /// What weighs the outputs, where that is known.
    pub(super) fn outputs(&self) -> Result<Option<Whitening>, RandnlaError> {
        self.metric.as_ref().map(|m| m.whitening()).transpose()
    }

    /// The mean squared output of a matrix in place of the weight, about its mean where inputs were seen, in the metric of the
    /// outputs where that is known.
    pub(super) fn squared_norm(&self, matrix: &Matrix) -> Result<f64, RandnlaError> {
        let root = |which: usize, moments: &Moments| {
            let root = self.roots[which].get_or_init(|| Ok(moments.whitening()?.triangle()));
            root.as_ref().map_err(Clone::clone)
        };
        let seen = match &self.inputs {
            Some(moments) => root(0, moments)?.product(matrix)?,
            None => matrix.clone(),
        };
        Ok(match &self.metric {
            Some(metric) => seen.product(&root(1, metric)?.transposed())?.squared_norm(),
            None => seen.squared_norm(),
        })
    }

    /// The mean output of a matrix in place of the weight; `None` without samples.
    pub(super) fn mean_output(&self, matrix: &Matrix) -> Result<Option<Vec<f32>>, RandnlaError> {
        let Some(inputs) = &self.inputs else { return Ok(None) };
        let mean = inputs.gram().mean()?;
        let mean = Matrix::from_row_major_f64(1, mean.len(), &mean)?;
        Ok(Some(mean.product(matrix)?.to_row_major()))
    }
}
