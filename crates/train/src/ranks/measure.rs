//! What the loss of a model depends on at its pairs of factors.

use std::sync::Arc;

use margay_driver::{Backend, Runner};
use margay_ir::ops::Numbers;
use margay_ir::{Builder, Graph, Origin, Value};
use margay_passes::gradients;
use margay_passes::sketch::{FactorPair, Rows, Thinning};
use margay_randnla::Gram;
use margay_tensor::Tensor;

use crate::TrainError;
use crate::fit::Tensors;

/// What was seen of a pair, over some batches.
pub(crate) struct Measured {
    /// Moments of the rows `z` between the factors.
    pub gram: Gram,
    /// Rows of a batch: the mean over batches.
    pub rows: f64,
    /// `γ²`: the squared norm of the gradient of a batch's loss by all results of the pair, the mean over batches.
    pub squared_gradient: f64,
}

/// Measures the pairs of a graph whose parameters are constants. `loss` adds the loss, a scalar, to it. `None` where numbers are
/// not finite.
///
/// # Errors
/// What `loss` fails with, and what the compiler refuses.
pub(crate) fn measure(
    forward: &Graph,
    pairs: &[FactorPair],
    loss: &dyn Fn(&mut Graph) -> Result<Value, TrainError>,
    batches: &[Tensors],
    (backend, threads): (&Arc<dyn Backend>, usize),
) -> Result<Option<Vec<Measured>>, TrainError> {
    let probe = Probe::new(forward, pairs, loss)?;
    let mut runner = Runner::new(probe.graph.clone(), backend, threads);
    let mut found: Vec<Measured> = pairs
        .iter()
        .map(|pair| Measured { gram: Gram::new(pair.rank()), rows: 0.0, squared_gradient: 0.0 })
        .collect();
    for batch in batches {
        let outputs = runner.run(batch)?;
        let samples = batch.first().map_or(0, |(_, t)| t.shape().first().copied().unwrap_or(0));
        for (seen, places) in found.iter_mut().zip(&probe.places) {
            for place in places {
                if !place.add_to(seen, &outputs, samples, batches.len() as f64) {
                    return Ok(None);
                }
            }
        }
    }
    Ok(Some(found))
}

/// A graph that runs forward and backward, and where its outputs are.
struct Probe {
    graph: Graph,
    places: Vec<Vec<Place>>,
}

/// Numbers of the outputs of one place of a pair.
struct Place {
    rows: Rows,
    thin: usize,
    /// The squared norm of the gradient; `None` where the loss does not depend on the place.
    squared_gradient: Option<usize>,
}

impl Probe {
    fn new(
        forward: &Graph,
        pairs: &[FactorPair],
        loss: &dyn Fn(&mut Graph) -> Result<Value, TrainError>,
    ) -> Result<Probe, TrainError> {
        let mut g = forward.clone();
        let loss = loss(&mut g)?;
        let one = Builder::new(&mut g, Origin::named("loss")).number(loss, 1.0)?;
        let results: Vec<Value> = pairs.iter().flat_map(FactorPair::results).collect();
        let mut by_results = gradients(&mut g, &[(loss, one)], &results)?.into_iter();
        let mut wanted: Vec<(String, Value)> = Vec::new();
        let mut places = Vec::new();
        for pair in pairs {
            let mut of_pair = Vec::new();
            // One for each node: nothing else reads the rows between the factors.
            for (rows, gradient) in pair.thin(forward).into_iter().zip(by_results.by_ref()) {
                let thin = wanted.len();
                wanted.push((format!("thin {thin}"), rows.value));
                let mut squared_gradient = None;
                if let Some(gradient) = gradient {
                    let mut b = Builder::new(&mut g, Origin::named("squared gradient"));
                    let square = b.mul(gradient, gradient)?;
                    squared_gradient = Some(wanted.len());
                    wanted.push((format!("gradient {thin}"), b.sum_all(square)?));
                }
                of_pair.push(Place { rows, thin, squared_gradient });
            }
            places.push(of_pair);
        }
        Ok(Probe { graph: g.cut(&[], &wanted), places })
    }
}

impl Place {
    /// Adds what a batch gave; whether that is finite.
    fn add_to(
        &self,
        seen: &mut Measured,
        outputs: &[(String, Tensor)],
        samples: usize,
        batches: f64,
    ) -> bool {
        let thin = &outputs[self.thin].1;
        let added = seen.gram.add_rows(&self.rows.of(thin, Thinning::of(samples)));
        seen.rows += (thin.len() / self.rows.length.max(1)) as f64 / batches;
        if let Some(at) = self.squared_gradient {
            let number = Numbers::of(&outputs[at].1).map(|n| n.floats().first().copied());
            seen.squared_gradient += number.ok().flatten().unwrap_or(f64::NAN) / batches;
        }
        added.is_ok() && seen.squared_gradient.is_finite()
    }
}
