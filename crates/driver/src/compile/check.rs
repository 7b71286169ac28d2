//! The error of a sketched graph on samples that it was not calibrated on.

use std::sync::Arc;

use margay_ir::Graph;
use margay_loops::{Backend, Precision};
use margay_plan::Goal;

use super::Job;
use super::calibrate::BATCH;
use super::split::Split;
use crate::samples::Arrays;
use crate::{DriverError, ErrorMeasure, ErrorScope, ErrorSum, Progress, Runner, Samples};

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
    let checker =
        |s: &Split| Checker::new(job.graph(), &s.held_out, scope, &job.backend, job.threads(), job.progress);
    split.map(checker).transpose()
}

/// Whether there is an error limit and the sketched graph exceeds it.
///
/// # Errors
/// What running it says.
pub(crate) fn exceeds(
    job: &Job<'_>,
    checker: Option<&Checker>,
    sketched: &Graph,
) -> Result<bool, DriverError> {
    let (Some(Goal::Error(limit)), Some(checker)) = (job.options.searched(), checker) else {
        return Ok(false);
    };
    let error = checker.measure(sketched, &job.backend, job.threads(), job.progress)?.relative_l2;
    Ok(error.is_nan() || error > *limit)
}

/// The error of the sketched graph; `None` without samples.
///
/// # Errors
/// [`DriverError::Measure`] for outputs that are not finite, and for an error limit that is exceeded by rounding alone.
pub(crate) fn check(
    job: &Job<'_>,
    checker: Option<&Checker>,
    sketched: &Graph,
) -> Result<Option<ErrorMeasure>, DriverError> {
    let Some(checker) = checker else { return Ok(None) };
    let (mut error, options) =
        (checker.measure(sketched, &job.backend, job.threads(), job.progress)?, job.options);
    if matches!(options.searched(), Some(Goal::Error(_))) {
        // The limit was checked on these samples.
        error.bounds.clear();
    }
    if !error.relative_l2.is_finite() {
        let message = "the outputs of the sketched model are not finite on the held-out samples";
        return Err(DriverError::Measure(message.into()));
    }
    if let Some(Goal::Error(limit)) = options.searched()
        && options.precision != Precision::F32
        && error.relative_l2 > *limit
    {
        let (name, found) = (options.precision.name(), error.relative_l2);
        let message =
            format!("in {name} the relative error is {found:.2e} without any sketch, above {limit:.2e}");
        return Err(DriverError::Measure(message));
    }
    Ok(Some(error))
}
