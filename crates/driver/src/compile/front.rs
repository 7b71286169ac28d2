//! What error is paid for what saving: many budgets from one fit.
//!
//! Calibration, factorizations, prices and weights are the same for all budgets. For each the choice of least predicted
//! error is made, the model sketched, and its error measured on the held-out samples.

use margay_plan::{Allocation, Goal, Plan, Price, Resource};
use serde::Serialize;

use super::allocate::along;
use super::apply::{Finish, apply, pass_of};
use super::price::after;
use super::{CompileOptions, Job, Prepared, report, widened};
use crate::{DriverError, Dump, ErrorMeasure, Model, Progress, Samples};

/// What a front is made of.
#[derive(Clone, Copy, Debug)]
pub struct FrontOptions {
    /// What is saved.
    pub resource: Resource,
    /// Choices, at most.
    pub points: usize,
    /// Whether factors are refitted before the error is measured, as by a compilation. It takes most of the time of one.
    pub refit: bool,
}

/// One choice.
#[derive(Clone, Debug, Serialize)]
pub struct FrontPoint {
    /// Layers that are sketched.
    pub sketched: usize,
    /// Stored bytes of the weights of products and convolutions.
    pub bytes: u64,
    /// Their multiplications and additions.
    pub flops: u64,
    /// Predicted milliseconds of a run.
    pub predicted_ms: f64,
    /// Predicted relative L2 error of the outputs.
    pub predicted_error: f64,
    /// The error on the held-out samples.
    pub held_out: ErrorMeasure,
    /// Whether another point errs less and takes less of what is saved.
    pub dominated: bool,
    /// The choice, to be replayed.
    #[serde(skip)]
    pub plan: Plan,
}

impl FrontPoint {
    /// How much it takes of a resource: bytes, operations, seconds.
    pub fn of(&self, resource: Resource) -> f64 {
        match resource {
            Resource::Bytes => self.bytes as f64,
            Resource::Flops => self.flops as f64,
            Resource::Seconds => self.predicted_ms * 1e-3,
        }
    }
}

/// Choices from one fit, the ones that save least first.
#[derive(Clone, Debug, Serialize)]
pub struct Front {
    /// The model's name.
    pub model: String,
    /// The processor class that times are predicted for.
    pub target_cpu: String,
    /// Threads that they are predicted for.
    pub threads: usize,
    /// What is saved: `bytes`, `operations` or `time`.
    pub resource: &'static str,
    /// Whether factors were refitted before errors were measured.
    pub refitted: bool,
    /// Bytes of the weights, operations and predicted milliseconds of the dense model.
    pub dense: DenseCost,
    /// The choices.
    pub points: Vec<FrontPoint>,
}

/// What the dense model takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DenseCost {
    /// Stored bytes of the weights of products and convolutions.
    pub bytes: u64,
    /// Their multiplications and additions.
    pub flops: u64,
    /// Predicted milliseconds of a run.
    pub predicted_ms: f64,
}

/// The choices that budgets between the dense model and the smallest sketch get, with their errors. The goal of the
/// options does not matter.
///
/// # Errors
/// Those of [`compile`](super::compile), and [`DriverError::Options`] for a plan.
pub fn front(
    source: &Model,
    samples: &Samples,
    options: &CompileOptions,
    asked: &FrontOptions,
    progress: &dyn Progress,
) -> Result<Front, DriverError> {
    if options.plan.is_some() {
        return Err(DriverError::Options("a front is searched: a plan does not apply to it".into()));
    }
    // All candidates are fitted, as for any goal.
    let options = CompileOptions { goal: Goal::Error(0.0.into()), ..options.clone() };
    let source = &*widened(source, &options, &mut Dump::none())?;
    let job = Job::new(source, Some(samples), &options, progress)?;
    let prepared = Prepared::new(&job)?;
    let refit = if asked.refit { prepared.refit(&job)? } else { None };
    let Prepared { split, fits, prices, weights, checker, .. } = &prepared;
    let finish = Finish { split: split.as_ref(), refit: refit.as_ref() };
    let weights = weights.as_deref();
    let choices = along(&job, fits, prices, weights, asked.resource, asked.points)?;
    let checker = checker.as_ref().expect("there are samples");
    let amount = |n: i64| u64::try_from(n).unwrap_or(0);
    let point = |choice: &Allocation| {
        let pass = pass_of(&job.sites, fits, choice);
        let sketched = apply(&job, pass, finish, &mut Dump::none())?;
        let price: Price = after(&job, prices, &sketched.graph)?;
        Ok::<FrontPoint, DriverError>(FrontPoint {
            sketched: choice.choices.len(),
            bytes: amount(price.bytes),
            flops: amount(price.flops),
            predicted_ms: price.seconds * 1e3,
            predicted_error: choice.squared_error.sqrt(),
            held_out: checker.measure(&sketched.graph, &job.measures_on, job.threads(), progress)?,
            dominated: false,
            plan: report::plan(&job, choice),
        })
    };
    let mut points = choices.iter().map(point).collect::<Result<Vec<_>, _>>()?;
    mark_dominated(&mut points, asked.resource);
    let before = prices.before;
    Ok(Front {
        model: source.name.clone(),
        target_cpu: job.backend.target().into(),
        threads: options.predict_threads,
        resource: asked.resource.name(),
        refitted: refit.is_some(),
        dense: DenseCost {
            bytes: amount(before.bytes),
            flops: amount(before.flops),
            predicted_ms: before.seconds * 1e3,
        },
        points,
    })
}

fn mark_dominated(points: &mut [FrontPoint], resource: Resource) {
    let seen: Vec<(f64, f64)> = points.iter().map(|p| (p.of(resource), p.held_out.relative_l2)).collect();
    for (point, (amount, error)) in points.iter_mut().zip(&seen) {
        let better = |(a, e): &(f64, f64)| a <= amount && e <= error && (a < amount || e < error);
        point.dominated = error.is_nan() || seen.iter().any(better);
    }
}
