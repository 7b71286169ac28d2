//! What calibration measured of some rows.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use margay_randnla::{Centring, Conditioning, Gram, Matrix, RandnlaError, Whitening};

use super::{Context, Layer};

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
    ///
    /// Of rows that have a single one each they are taken about zero, which leaves them diagonal. Places are then as frequent
    /// as by Laplace's rule, which adds one to the times that each was seen: those that samples never show count, too.
    pub fn of_inputs(gram: Gram, identity: &str) -> Moments {
        if gram.places().is_none() {
            return Moments::new(gram, Centring::Centred, Moments::INPUTS, identity);
        }
        let (places, count) = (gram.dim() as f64, gram.count() as f64);
        let conditioning = Conditioning { shrinkage: places / (places + count), ..Moments::INPUTS };
        Moments::new(gram, Centring::Uncentred, conditioning, identity)
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

    /// Those of `count` equal parts of each row.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`].
    fn parts(&self, count: usize) -> Result<Vec<Moments>, RandnlaError> {
        let (rows, mean, moment) = (self.gram.count(), self.gram.mean()?, self.gram.second_moment()?);
        let each = mean.len() / count;
        let part = |at: Range<usize>| {
            let sum: Vec<f64> = at.clone().map(|i| mean[i] * rows as f64).collect();
            let outer =
                Matrix::from_fn(each, each, |i, j| moment.at(at.start + i, at.start + j) * rows as f64);
            let gram = Gram::from_sums(rows, &sum, &outer)?;
            Ok(Moments { gram, identity: format!("{}[{at:?}]", self.identity), ..*self })
        };
        (0..count).map(|k| part(k * each..(k + 1) * each)).collect()
    }

    /// Whether second moments are taken about the mean, which a bias then keeps.
    pub fn is_centred(&self) -> bool {
        self.centring == Centring::Centred
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
    /// The roots of both moments, once somebody asked for them.
    roots: [Once<Whitening>; 2],
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

    /// The same, with the second moments of inputs about zero: where no correction of the bias keeps the mean output.
    pub(super) fn about_zero(context: &Context<'_>) -> Seen {
        let seen = Seen::of(context);
        let about_zero = |m: Arc<Moments>| {
            let Moments { gram, conditioning, identity, .. } = &*m;
            Arc::new(Moments::new(gram.clone(), Centring::Uncentred, *conditioning, identity))
        };
        Seen { inputs: seen.inputs.map(about_zero), ..seen }
    }

    /// By group of a layer, what was seen of it.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`].
    pub(super) fn of_groups(context: &Context<'_>, layer: &Layer) -> Result<Vec<Seen>, RandnlaError> {
        let groups = layer.groups();
        if groups == 1 {
            return Ok(vec![Seen::of(context)]);
        }
        let metrics = context.metric.map(|metric| metric.parts(groups)).transpose()?;
        let mut metrics = metrics.into_iter().flatten().map(Arc::new);
        let of = |group: usize| {
            let inputs = context.moments.map(|m| m[group].clone());
            Seen { inputs, metric: metrics.next(), roots: Default::default() }
        };
        Ok((0..groups).map(of).collect())
    }

    /// Whether the mean output is kept by a correction of the bias.
    pub(super) fn corrects(&self) -> bool {
        self.inputs.as_ref().is_some_and(|moments| moments.is_centred())
    }

    /// The moments of the inputs.
    pub(super) fn inputs(&self) -> Option<&Moments> {
        self.inputs.as_deref()
    }

    /// The root of the moments of the inputs, where there were samples.
    pub(super) fn whitening(&self) -> Result<Option<Whitening>, RandnlaError> {
        self.inputs.as_ref().map(|m| m.whitening()).transpose()
    }

    /// What weighs the outputs, where that is known.
    pub(super) fn outputs(&self) -> Result<Option<Whitening>, RandnlaError> {
        self.metric.as_ref().map(|m| m.whitening()).transpose()
    }

    /// The mean squared output of a matrix in place of the weight, about its mean where inputs were seen, in the metric of the
    /// outputs where that is known.
    pub(super) fn squared_norm(&self, matrix: &Matrix) -> Result<f64, RandnlaError> {
        let root = |which: usize, moments: &Moments| {
            let root = self.roots[which].get_or_init(|| moments.whitening());
            root.as_ref().map_err(Clone::clone)
        };
        let seen = match &self.inputs {
            Some(moments) => root(0, moments)?.product(matrix)?,
            None => matrix.clone(),
        };
        Ok(match &self.metric {
            Some(metric) => root(1, metric)?.product(&seen.transposed())?.squared_norm(),
            None => seen.squared_norm(),
        })
    }

    /// The mean output of a matrix in place of the weight; `None` where no bias is corrected.
    pub(super) fn mean_output(&self, matrix: &Matrix) -> Result<Option<Vec<f32>>, RandnlaError> {
        let Some(inputs) = self.inputs.as_ref().filter(|_| self.corrects()) else { return Ok(None) };
        let mean = inputs.gram().mean()?;
        let mean = Matrix::from_row_major_f64(1, mean.len(), &mean)?;
        Ok(Some(mean.product(matrix)?.to_row_major()))
    }
}
