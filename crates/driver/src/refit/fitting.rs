//! New factors of layers, from what was seen of their data.

use std::borrow::Cow;
use std::sync::Arc;

use margay_ir::Graph;
use margay_randnla::{
    Centring, Conditioning, Factors, FitError, FitErrors, LowRankOptions, Matrix, RandnlaError, ReducedRank,
    Regression, RsvdOptions, Whitening,
};

use super::{Contents, Layer, LayerRefit};
use crate::{DriverError, Interruption, Silent, parallel};

/// Weights of the dense layer in the estimate that are tried, as shares of the mean variance of its inputs.
const SHRINKAGES: [f64; 4] = [0.003, 0.01, 0.03, 0.1];

/// What decides between shrinkages: a decomposition that is randomized wherever it may be.
const TRIAL: LowRankOptions = LowRankOptions {
    max_rank: None,
    exact_up_to: 0,
    rsvd: RsvdOptions { power_iterations: 1, ..RsvdOptions::DEFAULT },
};

/// The share of its square that a constant output varies by, at most: what `f32` rounds to.
const CONSTANT: f64 = 1e-12;

/// What was seen of layers, each in the same place as the layer: of the data to learn from, and of that held out.
pub(super) type Seen = [Vec<Regression>; 2];

/// What becomes of layers that do not depend on each other.
///
/// # Errors
/// [`DriverError::Interrupted`] and [`DriverError::Factorize`].
pub(super) fn fit_layers(
    g: &Graph,
    layers: &[Arc<Layer>],
    seen: &Seen,
    fit_to_both: bool,
    threads: usize,
    interruption: &Interruption,
) -> Result<Vec<(LayerRefit, Contents)>, DriverError> {
    let goes_on = || if interruption.asked() { Err(DriverError::Interrupted) } else { Ok(()) };
    let of =
        |layer: usize, error| DriverError::Factorize { module: layers[layer].module.name.clone(), error };
    let outputs = parallel(threads, layers.len(), &Silent, "", |i| {
        layers[i].metric.as_ref().map(|moments| moments.whitening()).transpose().map_err(|e| of(i, e))
    });
    let outputs: Vec<Option<Whitening>> = outputs.into_iter().collect::<Result<_, _>>()?;
    let fittings = parallel(threads, layers.len(), &Silent, "", |i| {
        goes_on()?;
        Fitting::new(g, &layers[i], [&seen[0][i], &seen[1][i]], outputs[i].as_ref()).map_err(|e| of(i, e))
    });
    let fittings: Vec<Fitting<'_>> = fittings.into_iter().collect::<Result<_, _>>()?;
    let trials = parallel(threads, layers.len() * SHRINKAGES.len(), &Silent, "", |i| {
        goes_on()?;
        let (layer, shrinkage) = (i / SHRINKAGES.len(), SHRINKAGES[i % SHRINKAGES.len()]);
        fittings[layer].trial(shrinkage).map_err(|e| of(layer, e))
    });
    let trials: Vec<FitError> = trials.into_iter().collect::<Result<_, _>>()?;
    let fitted = parallel(threads, layers.len(), &Silent, "", |i| {
        goes_on()?;
        let trials = &trials[i * SHRINKAGES.len()..][..SHRINKAGES.len()];
        fittings[i].finish(g, trials, fit_to_both).map_err(|e| of(i, e))
    });
    fitted.into_iter().collect()
}

/// A layer on its way to new factors.
struct Fitting<'a> {
    layer: &'a Layer,
    seen: [&'a Regression; 2],
    /// The weight that the estimate is shrunk towards.
    prior: Cow<'a, Matrix>,
    centring: Centring,
    outputs: Option<&'a Whitening>,
    /// On the data to learn from.
    problem: ReducedRank<'a>,
    /// On the data held out.
    errors: FitErrors<'a>,
    /// What the factors leave that the layer has.
    old: FitError,
}

impl<'a> Fitting<'a> {
    fn new(
        g: &Graph,
        layer: &'a Layer,
        seen: [&'a Regression; 2],
        outputs: Option<&'a Whitening>,
    ) -> Result<Fitting<'a>, RandnlaError> {
        let old = layer.module.stored.read(g);
        let prior = match &layer.prior {
            Some(prior) => Cow::Borrowed(prior),
            None => Cow::Owned(old.left.product(&old.right)?),
        };
        let centring = if old.bias.is_some() { Centring::Centred } else { Centring::Uncentred };
        let problem = seen[0].reduced_rank(&prior, centring, outputs)?;
        let errors = seen[1].fit_errors(outputs)?;
        let old = errors.of(&old.left, &old.right, old.bias.as_deref())?;
        Ok(Fitting { layer, seen, prior, centring, outputs, problem, errors, old })
    }

    fn error(&self, f: &Factors) -> Result<FitError, RandnlaError> {
        self.errors.of(&f.left, &f.right, f.bias.as_deref())
    }

    /// What factors leave that are fitted with a shrinkage.
    fn trial(&self, shrinkage: f64) -> Result<FitError, RandnlaError> {
        self.error(&self.problem.factors(self.layer.module.rank, &conditioning(shrinkage), &TRIAL)?)
    }

    /// New factors, where they are better than the old ones on held-out data.
    fn finish(
        &self,
        g: &Graph,
        trials: &[FitError],
        fit_to_both: bool,
    ) -> Result<(LayerRefit, Contents), RandnlaError> {
        let (best, shrinkage) = trials
            .iter()
            .zip(SHRINKAGES)
            .min_by(|a, b| a.0.weighed.total_cmp(&b.0.weighed))
            .expect("there is a shrinkage");
        // Outputs that never vary have no size about their mean but that of rounding errors.
        let least = (CONSTANT * self.seen[1].mean_square()?).max(f64::MIN_POSITIVE);
        let energy = self.seen[1].energy()?.max(least);
        let relative = |error: &FitError| (error.squared / energy).sqrt();
        let name = self.layer.module.name.clone();
        let before = relative(&self.old);
        let kept = LayerRefit { name, before, after: before, refitted: false };
        if best.weighed >= self.old.weighed {
            return Ok((kept, Contents::new()));
        }
        let rank = self.layer.module.rank;
        let factors = |problem: &ReducedRank<'_>| {
            problem.factors(rank, &conditioning(shrinkage), &LowRankOptions::default())
        };
        let (factors, after) = if fit_to_both {
            let mut both = self.seen[0].clone();
            both.merge(self.seen[1])?;
            (factors(&both.reduced_rank(&self.prior, self.centring, self.outputs)?)?, *best)
        } else {
            let factors = factors(&self.problem)?;
            let left = self.error(&factors)?;
            (factors, left)
        };
        Ok(match self.layer.module.stored.write(g, &factors) {
            Some(contents) => (LayerRefit { after: relative(&after), refitted: true, ..kept }, contents),
            None => (kept, Contents::new()),
        })
    }
}

fn conditioning(shrinkage: f64) -> Conditioning {
    Conditioning { shrinkage, ..Conditioning::default() }
}
