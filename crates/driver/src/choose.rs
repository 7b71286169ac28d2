//! From curves to choices under the user's goal.

use std::collections::BTreeMap;

use margay_loops::Backend;
use margay_passes::sketch::{Chosen, Selection};
use margay_plan::{AllocateError, Allocation, Candidate, Curve, Resource, allocate, uniform};

use crate::curves::Prospect;
use crate::{DriverError, Goal, ModuleReport};

/// A setting that is predicted to take more than this share of the dense time is not worth its error.
const MAX_SHARE: f64 = 0.95;

/// The curves of all modules, with what the goal rules out left out, and why.
pub(crate) struct Table {
    pub(crate) curves: Vec<Curve>,
    /// By module: why it has no candidate but dense.
    pub(crate) excluded: BTreeMap<String, String>,
}

/// Tables for an allocator. A setting whose predicted time is hardly better than dense is left out, unless bytes are what the
/// user asked to save.
pub(crate) fn table(prospects: &[Prospect], goal: &Goal, backend: &dyn Backend, threads: usize) -> Table {
    let mut excluded = BTreeMap::new();
    let mut curves = Vec::new();
    for p in prospects {
        let mut curve = p.curve(backend, threads);
        if curve.points.is_empty() {
            let (a, b) = (p.module.d_in, p.module.d_out);
            let message = format!("no rank of {a} x {b} stores fewer numbers than the weight");
            excluded.insert(curve.module.clone(), message);
        } else if !matches!(goal, Goal::Bytes(_)) {
            let worth = MAX_SHARE * curve.dense.seconds;
            let best = curve.points.iter().map(|c| c.seconds).fold(f64::INFINITY, f64::min);
            curve.points.retain(|c| c.seconds <= worth);
            if curve.points.is_empty() {
                let message = format!(
                    "the fastest rank would take {:.3} ms, dense takes {:.3} ms (predicted)",
                    best * 1e3,
                    curve.dense.seconds * 1e3
                );
                excluded.insert(curve.module.clone(), message);
            }
        }
        let resource = if matches!(goal, Goal::Bytes(_)) { Resource::Bytes } else { Resource::Seconds };
        curve.drop_dominated(resource);
        curves.push(curve);
    }
    Table { curves, excluded }
}

/// The choice for a byte or time budget. `fixed_seconds` is the predicted time of everything that is not a module.
pub(crate) fn within_budget(
    table: &Table,
    goal: &Goal,
    fixed_seconds: f64,
    weighed: bool,
) -> Result<Allocation, DriverError> {
    let dense_bytes: u64 = table.curves.iter().map(|c| c.dense.bytes).sum();
    match goal {
        Goal::Bytes(budget) => {
            let bytes = budget.resolve(dense_bytes);
            if !weighed {
                // Errors of different modules have no common unit without samples.
                let even = uniform(&table.curves, bytes as f64 / dense_bytes.max(1) as f64)?;
                if even.total_bytes <= bytes {
                    return Ok(even);
                }
            }
            let goal = margay_plan::Goal::LeastError { resource: Resource::Bytes, budget: bytes as f64 };
            Ok(allocate(&table.curves, goal)?)
        }
        Goal::Seconds(seconds) => {
            let modules = Resource::Seconds;
            let goal = margay_plan::Goal::LeastError { resource: modules, budget: seconds - fixed_seconds };
            // What people asked for is the time of the whole model.
            allocate(&table.curves, goal).map_err(|e| match e {
                AllocateError::Infeasible { best, .. } => {
                    DriverError::Budget { asked_ms: seconds * 1e3, best_ms: (best + fixed_seconds) * 1e3 }
                }
                e => e.into(),
            })
        }
        Goal::Dense | Goal::Error(_) => Ok(least_time(table, 0.0)?),
    }
}

/// The fastest choice whose predicted squared error stays below a limit.
pub(crate) fn least_time(table: &Table, limit: f64) -> Result<Allocation, DriverError> {
    let goal = margay_plan::Goal::LeastCost { resource: Resource::Seconds, limit };
    Ok(allocate(&table.curves, goal)?)
}

/// The choices of an allocation, ready to be applied.
pub(crate) fn selection(prospects: &[Prospect], choices: &BTreeMap<String, Candidate>) -> Selection {
    let mut out = Selection::default();
    for p in prospects {
        let Some(candidate) = choices.get(&p.module.name) else { continue };
        let offer = p.offers.iter().find(|o| o.scheme == candidate.choice.scheme);
        if let Some(offer) = offer {
            let chosen = Chosen { fitted: offer.fitted.clone(), rank: candidate.choice.rank };
            out.choices.insert(p.module.name.clone(), chosen);
        }
    }
    out
}

/// What became of every module, and why.
pub(crate) fn module_reports(
    prospects: &[Prospect],
    chosen: &Allocation,
    table: &Table,
    weighed: bool,
) -> Vec<ModuleReport> {
    prospects
        .iter()
        .zip(&table.curves)
        .map(|(p, curve)| {
            let candidate = chosen.choices.get(&p.module.name).unwrap_or(&curve.dense);
            let offer = p.offers.iter().find(|o| o.scheme == candidate.choice.scheme);
            let point = offer.and_then(|o| o.points.iter().find(|q| q.rank == candidate.choice.rank));
            let layer_error = point.map_or(0.0, |q| q.relative_error.sqrt());
            let why = match (point, table.excluded.get(&p.module.name)) {
                (Some(_), _) => format!(
                    "{} of {} bytes, predicted {:.3} of {:.3} ms, layer error {layer_error:.3}",
                    candidate.bytes,
                    curve.dense.bytes,
                    candidate.seconds * 1e3,
                    curve.dense.seconds * 1e3
                ),
                (None, Some(reason)) => reason.clone(),
                (None, None) => {
                    "kept dense: the goal is met with less error by sketching other layers".into()
                }
            };
            ModuleReport {
                name: p.module.name.clone(),
                kind: p.module.kind.name().into(),
                d_in: p.module.d_in,
                d_out: p.module.d_out,
                scheme: candidate.choice.scheme.clone(),
                rank: candidate.choice.rank,
                bytes_before: curve.dense.bytes,
                bytes_after: candidate.bytes,
                predicted_ms_before: curve.dense.seconds * 1e3,
                predicted_ms_after: candidate.seconds * 1e3,
                layer_error,
                output_error: weighed.then(|| candidate.error.sqrt()),
                why,
            }
        })
        .collect()
}
