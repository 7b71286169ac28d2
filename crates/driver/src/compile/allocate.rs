//! From candidates to the choice that meets the user's goal.

use std::collections::BTreeMap;

use margay_passes::StoreConstants;
use margay_passes::sketch::Site;
use margay_plan::{
    AllocateError, Allocation, Candidate, Choice, Curve, Goal, Price, Resource, least_cost, least_error,
    uniform,
};

use super::Job;
use super::apply::{apply, pass_of};
use super::check::Checker;
use super::fit::Fit;
use super::price::Prices;
use crate::{DriverError, Dump};

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
    /// What the model uses without a sketch, its constants stored as those of the result.
    pub(crate) dense: Price,
    /// Bytes that the weights of the model take as they are: what shares are of.
    pub(crate) whole_bytes: u64,
    /// Whether errors of different sites can be compared.
    pub(crate) weighed: bool,
}

/// What is chosen, and what it was chosen from.
pub(crate) struct Chosen {
    pub(crate) candidates: Candidates,
    pub(crate) allocation: Allocation,
}

/// The choice that meets the goal, or the one of the plan. Without `weights` every site weighs the same; an error limit
/// is checked by `checker`.
pub(crate) fn allocate(
    job: &Job<'_>,
    fits: &[Fit],
    prices: &Prices,
    weights: Option<Vec<f64>>,
    checker: Option<&Checker>,
) -> Result<Chosen, DriverError> {
    let mut candidates = candidates(&job.sites, fits, prices, weights.as_deref())?;
    let allocation = match job.options.searched() {
        None => candidates.planned(),
        Some(goal) => {
            candidates.narrow(&job.sites, goal);
            meet(&candidates, goal, &|choice| error_of(job, fits, checker, choice))?
        }
    };
    Ok(Chosen { candidates, allocation })
}

/// The relative error of a choice on held-out samples.
fn error_of(
    job: &Job<'_>,
    fits: &[Fit],
    checker: Option<&Checker>,
    choice: &Allocation,
) -> Result<f64, DriverError> {
    if choice.choices.is_empty() && job.storage == StoreConstants::default() {
        return Ok(0.0);
    }
    let checker = checker.expect("an error limit without samples was refused");
    let sketched = apply(job, pass_of(&job.sites, fits, choice), &mut Dump::none())?;
    Ok(checker.measure(&sketched.graph, &job.backend, job.threads(), job.progress)?.relative_l2)
}

/// The candidates of all sites.
fn candidates(
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
            let choice = Choice {
                scheme: fit.scheme.to_owned(),
                settings: settings.clone(),
                storage: None,
                seed: None,
            };
            let candidate = Candidate { choice, squared_error: error * weight, price: *price };
            curves[fit.site].candidates.push(candidate);
        }
    }
    let whole_bytes = u64::try_from(prices.before.bytes).unwrap_or(0);
    let (excluded, dense) = (BTreeMap::new(), prices.stored);
    Ok(Candidates { curves, excluded, dense, whole_bytes, weighed: weights.is_some() })
}

impl Candidates {
    /// Leaves out what the goal rules out: candidates whose predicted time is hardly better than dense, unless bytes are
    /// what the user asked to save, and those that another one beats.
    fn narrow(&mut self, sites: &[Site], goal: &Goal) {
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

    /// The share of the bytes of the sites that is left where all weights may take so many bytes.
    fn share(&self, bytes: u64) -> f64 {
        let mut counted = Vec::new();
        let mut own = 0.0;
        for curve in &self.curves {
            if curve.covers.iter().all(|weight| !counted.contains(weight)) {
                counted.extend(&curve.covers);
                own += curve.dense.bytes as f64;
            }
        }
        (bytes as f64 - (self.dense.bytes as f64 - own)) / f64::max(own, 1.0)
    }

    /// What a plan says: the only candidate of each site.
    fn planned(&self) -> Allocation {
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
fn meet(
    candidates: &Candidates,
    goal: &Goal,
    measure: &dyn Fn(&Allocation) -> Result<f64, DriverError>,
) -> Result<Allocation, DriverError> {
    let Candidates { curves, dense, weighed, .. } = candidates;
    match goal {
        Goal::Dense => Ok(Allocation::dense(*dense)),
        Goal::Error(limit) => meet_error(candidates, *limit, measure),
        Goal::Bytes(budget) => {
            let bytes = budget.resolve(candidates.whole_bytes);
            if !weighed {
                // Errors of different sites have no common unit without samples.
                let even = uniform(curves, *dense, candidates.share(bytes))?;
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
