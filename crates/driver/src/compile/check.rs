//! The error of a sketched graph on samples that it was not calibrated on.

use std::sync::Arc;

use margay_ir::Graph;
use margay_loops::{Backend, Precision};
use margay_plan::{ErrorLimit, Goal, percent};

use super::Job;
use super::calibrate::BATCH;
use super::split::Split;
use crate::samples::Arrays;
use crate::{
    DriverError, ErrorBound, ErrorMeasure, ErrorScope, ErrorSum, MetricReport, Progress, Runner, Samples,
};

/// Measures the error of a sketched graph on held-out samples.
pub(crate) struct Checker {
    /// Inputs, and the outputs of the dense model.
    batches: Vec<(Arrays, Arrays)>,
    /// What counts.
    scope: ErrorScope,
    /// See [`ErrorSum::relative_spread`].
    relative_spread: Option<f64>,
}

impl Checker {
    /// Runs the dense model on held-out samples.
    ///
    /// # Errors
    /// [`DriverError::Measure`] for outputs that are not finite.
    pub(crate) fn new(
        g: &Graph,
        held_out: &Samples,
        scope: &ErrorScope,
        backend: &Arc<dyn Backend>,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Checker, DriverError> {
        let runs = held_out.runs(g, BATCH);
        let total = runs.len();
        let mut dense = Runner::new(g.clone(), backend, threads);
        let mut batches = Vec::new();
        let mut sum = ErrorSum::new(scope);
        for (i, inputs) in runs.enumerate() {
            progress.at("running the dense model", i, total);
            let inputs = inputs?;
            let outputs = dense.run(&inputs)?;
            sum.add(&inputs, &outputs, &outputs)?;
            if !sum.is_finite() {
                let message = "the outputs of the model are not finite on the held-out samples";
                return Err(DriverError::Measure(message.into()));
            }
            batches.push((inputs, outputs));
        }
        progress.at("running the dense model", total, total);
        Ok(Checker { batches, scope: scope.clone(), relative_spread: sum.relative_spread() })
    }

    /// How much the outputs of the dense model differ between samples; see [`ErrorSum::relative_spread`].
    pub(crate) fn relative_spread(&self) -> Option<f64> {
        self.relative_spread
    }

    /// The inputs of some held-out samples.
    pub(crate) fn first_inputs(&self) -> Option<&Arrays> {
        self.batches.first().map(|(inputs, _)| inputs)
    }

    /// The error; not finite where the outputs are not.
    pub(crate) fn measure(
        &self,
        g: &Graph,
        backend: &Arc<dyn Backend>,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<ErrorMeasure, DriverError> {
        let mut runner = Runner::new(g.clone(), backend, threads);
        let mut sum = ErrorSum::new(&self.scope);
        for (i, (inputs, expected)) in self.batches.iter().enumerate() {
            progress.at("checking held-out samples", i, self.batches.len());
            sum.add(inputs, expected, &runner.run(inputs)?)?;
        }
        progress.at("checking held-out samples", self.batches.len(), self.batches.len());
        Ok(sum.measure())
    }
}

/// Runs the dense model on the samples that are held out; `None` without any.
///
/// # Errors
/// As [`Checker::new`].
pub(crate) fn checker(job: &Job<'_>, split: Option<&Split>) -> Result<Option<Checker>, DriverError> {
    let scope = &job.options.errors;
    let checker = |s: &Split| {
        Checker::new(job.graph(), &s.held_out, scope, &job.measures_on, job.threads(), job.progress)
    };
    split.map(checker).transpose()
}

/// What was measured of a sketched graph.
pub(crate) struct Judged {
    /// On the held-out samples.
    pub(crate) error: ErrorMeasure,
    /// By the user's metric, where the goal has one.
    pub(crate) metric: Option<MetricReport>,
}

/// Measures a sketched graph; `None` without samples.
///
/// # Errors
/// What running it, or the metric, says.
pub(crate) fn judge(
    job: &Job<'_>,
    checker: Option<&Checker>,
    sketched: &Graph,
) -> Result<Option<Judged>, DriverError> {
    let Some(checker) = checker else { return Ok(None) };
    let error = checker.measure(sketched, &job.measures_on, job.threads(), job.progress)?;
    let metric = job.metric.as_ref().map(|metric| metric.report(sketched)).transpose()?;
    Ok(Some(Judged { error, metric }))
}

impl Judged {
    /// Whether the goal has a limit that was exceeded.
    ///
    /// # Errors
    /// As [`limited`].
    pub(crate) fn exceeds(&self, job: &Job<'_>) -> Result<bool, DriverError> {
        let found = match &self.metric {
            Some(metric) => fall(metric.dense, metric.sketched),
            None => limited(job, &self.error)?,
        };
        Ok(limit_of(job).is_some_and(|limit| found.is_nan() || found > limit))
    }

    /// The same if it may be reported.
    ///
    /// # Errors
    /// [`DriverError::Measure`] for outputs that are not finite, and for an error limit that is exceeded.
    pub(crate) fn checked(mut self, job: &Job<'_>) -> Result<Judged, DriverError> {
        let options = job.options;
        let found = limited(job, &self.error)?;
        if matches!(options.searched(), Some(Goal::Error(_))) {
            // The limit was checked on these samples.
            self.error.bounds.clear();
            self.error.quantile = level_of(job).map(|level| ErrorBound { level, relative_l2: found });
        }
        if !self.error.relative_l2.is_finite() {
            let message = "the outputs of the sketched model are not finite on the held-out samples";
            return Err(DriverError::Measure(message.into()));
        }
        if let Some(Goal::Error(limit)) = options.searched()
            && found > limit.most
        {
            let most = limit.most;
            return Err(DriverError::Measure(match options.precision {
                Precision::F32 => format!("the relative error is {found:.2e}, above {most:.2e}"),
                other => {
                    let name = other.name();
                    format!(
                        "in {name} the relative error is {found:.2e} without any sketch, above {most:.2e}"
                    )
                }
            }));
        }
        Ok(self)
    }
}

/// How far a metric falls; 0 where it rises.
fn fall(dense: f64, sketched: f64) -> f64 {
    (dense - sketched).max(0.0)
}

/// The limit of the goal, if it has one.
fn limit_of(job: &Job<'_>) -> Option<f64> {
    match job.options.searched()? {
        Goal::Error(limit) => Some(limit.most),
        Goal::Drop(limit) => Some(*limit),
        Goal::Dense | Goal::Bytes(_) | Goal::Flops(_) | Goal::Seconds(_) => None,
    }
}

/// What the limit of the goal is for: the error on the held-out samples, or how far the user's metric falls. Nothing else is
/// measured.
///
/// # Errors
/// What running the graph, or the metric, says.
pub(crate) fn judged(job: &Job<'_>, checker: &Checker, sketched: &Graph) -> Result<f64, DriverError> {
    if let Some(metric) = &job.metric {
        return Ok(fall(metric.dense, metric.of(sketched)?));
    }
    limited(job, &checker.measure(sketched, &job.measures_on, job.threads(), job.progress)?)
}

/// The share of the samples that the limit of the goal is for, where it is not for all of them together.
fn level_of(job: &Job<'_>) -> Option<f64> {
    match job.options.searched()? {
        Goal::Error(ErrorLimit { level, .. }) => *level,
        _ => None,
    }
}

/// What a limit is for, of an error: that of all samples together, or the one that the share of samples asked for does
/// not exceed.
///
/// # Errors
/// [`DriverError::Samples`] where there are too few of them to say.
fn limited(job: &Job<'_>, error: &ErrorMeasure) -> Result<f64, DriverError> {
    let Some(level) = level_of(job) else { return Ok(error.relative_l2) };
    error.bound(level).ok_or_else(|| {
        let (percent, samples) = (percent(level), error.samples);
        DriverError::Samples(format!(
            "an error limit for {percent}% of the samples: expected at least {} held out, each with outputs of its own, \
             found {samples}",
            (level / (1.0 - level)).ceil()
        ))
    })
}
