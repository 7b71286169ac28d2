//! How much an error of each site weighs in the outputs.
//!
//! Predicted errors of a scheme are relative to the site's own output. Each site is replaced alone, at about half its
//! numbers, and the model is run: the squared relative error of its outputs per unit of that of the site turns the
//! errors of all sites into one unit.

use margay_ir::Value;
use margay_plan::Settings;

use super::Job;
use super::apply::{alone, replaced};
use super::calibrate::BATCH;
use super::fit::Fit;
use super::split::Split;
use crate::rows::{measured, rows_of_a_sample};
use crate::{DriverError, Dump, ErrorSum, Runner, parallel};

/// Rows that sites are weighed with, about, of the layer that has the most.
const WEIGHING_ROWS: usize = 1 << 14;

/// The fewest and the most samples that this may be.
const WEIGHING_SAMPLES: [usize; 2] = [8, 32];

/// Squared relative error of the outputs per unit of squared relative error of each site, in the order of the sites. Sites
/// whose errors enter at the same value weigh the same. A site weighs 1 where nothing can be measured: no sketch whose errors
/// enter there has one, or the outputs have no size to be relative to. `None` without samples, or where a plan chooses.
pub(crate) fn weigh(
    job: &Job<'_>,
    fits: &[Fit],
    split: Option<&Split>,
) -> Result<Option<Vec<f64>>, DriverError> {
    let searched = job.options.sketches() && job.options.searched().is_some();
    let Some(split) = split.filter(|_| searched) else { return Ok(None) };
    let (g, sites, backend, samples) = (job.graph(), &job.sites, &job.measures_on, &split.calibration);
    let most = rows_of_a_sample(g, measured(sites), &job.mask, samples)?.into_iter().max().unwrap_or(0);
    let wanted = (WEIGHING_ROWS / most.max(1)).clamp(WEIGHING_SAMPLES[0], WEIGHING_SAMPLES[1]);
    let few = samples.spread(g, wanted, BATCH)?;
    let batches = few.runs(g, BATCH).collect::<Result<Vec<_>, _>>()?;
    // One site for each value that errors enter at: the first of the fewest weights that can be replaced with an error. One
    // whose spectrum is exhausted at this size shows none to divide by, though others that end there may.
    let mut probes: Vec<Probe<'_>> = Vec::new();
    let mut order: Vec<&Fit> = fits.iter().filter(|f| probe_error(f).is_some()).collect();
    order.sort_by_key(|f| sites[f.site].weights.len());
    for fit in order {
        let value = entry(job, fit.site);
        if probes.iter().all(|(known, _)| *known != value) {
            probes.push((value, fit));
        }
    }
    let key = weights_key(job, &probes, few.rows());
    if let Some(kept) = kept_weights(job, &key, probes.len()) {
        return Ok(Some(by_site(job, &probes, &kept)));
    }
    let mut dense = Runner::new(g.clone(), backend, 1);
    let reference = batches.iter().map(|b| dense.run(b)).collect::<Result<Vec<_>, _>>()?;
    let weights = parallel(job.threads(), probes.len(), job.progress, "weighing layers", |i| {
        let fit = probes[i].1;
        let (settings, error) = probe_error(fit).expect("the others were left out");
        let pass = alone(&sites[fit.site], fit, &settings);
        let graph = replaced(g, pass, &mut Dump::none())?.graph;
        let mut runner = Runner::new(graph, backend, 1);
        let mut sum = ErrorSum::new(&job.options.errors);
        for (batch, expected) in batches.iter().zip(&reference) {
            sum.add(batch, expected, &runner.run(batch)?)?;
        }
        let effect = sum.measure().relative_l2.powi(2);
        // Outputs that are all zero have no relative error.
        Ok::<f64, DriverError>(if effect.is_finite() { effect / error } else { 1.0 })
    });
    let weights = weights.into_iter().collect::<Result<Vec<f64>, _>>()?;
    if let Some(cache) = &job.cache {
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_bits().to_le_bytes()).collect();
        cache.put("weights", &key, &bytes);
    }
    Ok(Some(by_site(job, &probes, &weights)))
}

/// Squared relative errors up to this one are those of rounding.
const EXHAUSTED: f64 = 1e-12;

/// The settings at which a site is replaced, with their squared relative error, if they have one.
fn probe_error(fit: &Fit) -> Option<(Settings, f64)> {
    let settings = fit.fitted.probe()?;
    let error = fit.fitted.squared_error(&settings).ok()?;
    (error > EXHAUSTED).then_some((settings, error))
}

/// A value that errors enter at, and a sketch of a site there.
type Probe<'a> = (Option<Value>, &'a Fit);

fn entry(job: &Job<'_>, site: usize) -> Option<Value> {
    job.sites[site].nodes.last().map(|n| Value::from(*n))
}

/// The weight of every site, from those of the probes.
fn by_site(job: &Job<'_>, probes: &[Probe<'_>], weights: &[f64]) -> Vec<f64> {
    let weight = |site: usize| {
        let value = entry(job, site);
        let found = probes.iter().position(|(known, _)| *known == value);
        found.map_or(1.0, |i| weights[i])
    };
    (0..job.sites.len()).map(weight).collect()
}

/// What the weights of probes follow from.
fn weights_key(job: &Job<'_>, probes: &[Probe<'_>], samples: usize) -> String {
    let one = |(_, fit): &Probe<'_>| {
        let settings = fit.fitted.probe().map(|s| s.to_string());
        format!("{} {} {settings:?}\n", job.sites[fit.site].name, fit.scheme)
    };
    let probes: String = probes.iter().map(one).collect();
    format!("{:?}\n{probes}spread over {samples} samples\n{}", job.options.errors, job.basis)
}

fn kept_weights(job: &Job<'_>, key: &str, count: usize) -> Option<Vec<f64>> {
    let bytes = job.cache.as_ref()?.get("weights", key)?;
    let word = |b: &[u8]| Some(f64::from_bits(u64::from_le_bytes(b.try_into().ok()?)));
    bytes.chunks(8).map(word).collect::<Option<Vec<f64>>>().filter(|all| all.len() == count)
}
