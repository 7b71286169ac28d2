//! From candidates to the choice that meets the user's goal.

use std::collections::BTreeMap;

use margay_passes::sketch::Site;
use margay_plan::{
    AllocateError, Allocation, Candidate, Choice, Curve, Goal, Price, Resource, least_cost, least_error,
    uniform,
};

use super::fit::Fit;
use super::price::Prices;
use crate::DriverError;

/// A candidate that is predicted to take more than this share of the dense time is not worth its error.
const MAX_SHARE: f64 = 0.95;

/// Allocations tried to meet an error limit.
const ERROR_TRIES: usize = 10;

/// What can be done to each site, in one unit of error.
pub(crate) struct Candidates {
    /// By site.
    pub(crate) curves: Vec<Curve>,
    /// By site: why it has no candidate.
    pub(crate) excluded: BTreeMap<String, String>,
    /// What the model uses as it is; bytes are those of the weights that can be sketched.
    pub(crate) dense: Price,
    /// Whether errors of different sites can be compared.
    pub(crate) weighed: bool,
}

/// The candidates of all sites, with what the goal rules out left out, and why. Without `weights` every site weighs the
/// same.
pub(crate) fn candidates(
    sites: &[Site],
    fits: &[Fit],
    prices: &Prices,
    weights: Option<&[f64]>,
) -> Result<Candidates, DriverError> {
    let mut weights_of: Vec<_> = sites.iter().flat_map(|s| s.weights.clone()).collect();
    weights_of.sort_unstable();
    weights_of.dedup();
    let number = |v| weights_of.binary_search(v).expect("every weight was listed");
    let mut curves: Vec<Curve> = sites
        .iter()
        .zip(&prices.dense)
        .map(|(site, dense)| Curve {
            site: site.name.clone(),
            covers: site.weights.iter().map(number).collect(),
            dense: *dense,
            candidates: Vec::new(),
        })
        .collect();
    for (fit, prices) in fits.iter().zip(&prices.candidates) {
        let weight = weights.map_or(1.0, |w| w[fit.site]);
        for (settings, price) in fit.settings.iter().zip(prices) {
            let error = fit.fitted.squared_error(settings).map_err(DriverError::Options)?;
            let choice = Choice { scheme: fit.scheme.to_owned(), settings: settings.clone(), seed: None };
            let candidate = Candidate { choice, squared_error: error * weight, price: *price };
            curves[fit.site].candidates.push(candidate);
        }
    }
    Ok(Candidates { curves, excluded: BTreeMap::new(), dense: prices.model, weighed: weights.is_some() })
}

impl Candidates {
    /// Leaves out what the goal rules out: candidates whose predicted time is hardly better than dense, unless bytes are
    /// what the user asked to save, and those that another one beats.
    pub(crate) fn narrow(&mut self, sites: &[Site], goal: &Goal) {
        for (site, curve) in sites.iter().zip(&mut self.curves) {
            if curve.candidates.is_empty() {
                let (a, b) = (site.d_in, site.d_out);
                let message = format!("no rank of {a} x {b} stores fewer numbers than the weight");
                self.excluded.insert(site.name.clone(), message);
            } else if goal.resource() != Resource::Bytes {
                let worth = MAX_SHARE * curve.dense.seconds;
                let best = curve.candidates.iter().map(|c| c.price.seconds).fold(f64::INFINITY, f64::min);
                curve.candidates.retain(|c| c.price.seconds <= worth);
                if curve.candidates.is_empty() {
                    let message = format!(
                        "the fastest rank would take {:.3} ms, dense takes {:.3} ms (predicted)",
                        best * 1e3,
                        curve.dense.seconds * 1e3
                    );
                    self.excluded.insert(site.name.clone(), message);
                }
            }
            curve.drop_dominated(goal.resource());
        }
    }

    /// What a plan says: the only candidate of each site.
    pub(crate) fn planned(&self) -> Allocation {
        let mut planned = Allocation::dense(self.dense);
        for curve in &self.curves {
            if let Some(candidate) = curve.candidates.first() {
                planned.choose(curve, candidate.clone());
            }
        }
        planned
    }
}

/// The choice that meets a goal. `measure` says the relative error of a choice on held-out samples; only an error limit
/// needs it.
pub(crate) fn allocate(
    candidates: &Candidates,
    goal: &Goal,
    measure: &dyn Fn(&Allocation) -> Result<f64, DriverError>,
) -> Result<Allocation, DriverError> {
    let Candidates { curves, dense, weighed, .. } = candidates;
    match goal {
        Goal::Dense => Ok(Allocation::dense(*dense)),
        Goal::Error(limit) => meet_error(candidates, *limit, measure),
        Goal::Bytes(budget) => {
            let whole = u64::try_from(dense.bytes).unwrap_or(0);
            let bytes = budget.resolve(whole);
            if !weighed {
                // Errors of different sites have no common unit without samples.
                let even = uniform(curves, *dense, bytes as f64 / whole.max(1) as f64)?;
                if u64::try_from(even.price.bytes).is_ok_and(|used| used <= bytes) {
                    return Ok(even);
                }
            }
            Ok(least_error(curves, *dense, Resource::Bytes, bytes as f64)?)
        }
        Goal::Seconds(seconds) => {
            least_error(curves, *dense, Resource::Seconds, *seconds).map_err(|e| match e {
                AllocateError::Infeasible { best, .. } => {
                    DriverError::Budget { asked_ms: seconds * 1e3, best_ms: best * 1e3 }
                }
                e => e.into(),
            })
        }
    }
}

/// The fastest choice whose measured error on held-out samples stays below a limit. The predicted error is a sum over
/// sites; how far the measured one is from it is found by bisection.
fn meet_error(
    candidates: &Candidates,
    limit: f64,
    measure: &dyn Fn(&Allocation) -> Result<f64, DriverError>,
) -> Result<Allocation, DriverError> {
    let fastest = |squared| least_cost(&candidates.curves, candidates.dense, Resource::Seconds, squared);
    let mut best = fastest(0.0)?;
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut asked = limit * limit;
    let mut measured: Option<(Allocation, f64)> = None;
    for _ in 0..ERROR_TRIES {
        let candidate = fastest(asked)?;
        let error = match measured.as_ref().filter(|(a, _)| a.choices == candidate.choices) {
            Some((_, e)) => *e,
            None => measure(&candidate)?,
        };
        measured = Some((candidate.clone(), error));
        if error <= limit {
            if candidate.price.seconds <= best.price.seconds {
                best = candidate;
            }
            low = asked;
        } else {
            high = asked;
        }
        // Towards the limit by the ratio of what was measured, inside the bracket.
        let scaled = if error.is_finite() && error > 0.0 {
            asked * (limit / error).powi(2) * 0.98
        } else {
            asked * 8.0
        };
        asked = match (low, high.is_finite()) {
            (_, false) => scaled.max(asked * 1.05),
            (l, true) if scaled > l && scaled < high => scaled,
            (l, true) => 0.5 * (l + high),
        };
        if high.is_finite() && high - low < 0.02 * high {
            break;
        }
    }
    Ok(best)
}
