//! The error of a sketched graph on samples that nothing was chosen on.

use margay_ir::Graph;
use margay_kernels_cpu::CpuTarget;

use crate::compare::ErrorSum;
use crate::samples::{Arrays, bound_batch};
use crate::{DriverError, ErrorMeasure, Progress, Runner, Samples, calibrate};

/// Measures the error of a sketched graph on held-out samples.
pub(crate) struct Checker {
    /// Inputs, and the outputs of the dense model.
    batches: Vec<(Arrays, Arrays)>,
    batch: usize,
}

impl Checker {
    pub(crate) fn new(
        g: &Graph,
        held_out: &Samples,
        target: CpuTarget,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Checker, DriverError> {
        let batch = bound_batch(g).unwrap_or(calibrate::BATCH);
        let total = held_out.rows().div_ceil(batch);
        let mut dense = Runner::new(g.clone(), target, threads);
        let mut batches = Vec::new();
        for (i, inputs) in held_out.batches(batch).enumerate() {
            progress.at("running the dense model", i, total);
            let inputs = inputs?;
            let outputs = dense.run(&inputs)?;
            batches.push((inputs, outputs));
        }
        progress.at("running the dense model", total, total);
        Ok(Checker { batches, batch })
    }

    pub(crate) fn measure(
        &self,
        g: &Graph,
        target: CpuTarget,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<ErrorMeasure, DriverError> {
        let mut runner = Runner::new(g.clone(), target, threads);
        let mut sum = ErrorSum::default();
        for (i, (inputs, expected)) in self.batches.iter().enumerate() {
            progress.at("checking held-out samples", i, self.batches.len());
            let rows = inputs.first().and_then(|(_, t)| t.shape().first().copied()).unwrap_or(self.batch);
            sum.add(expected, &runner.run(inputs)?, rows)?;
        }
        progress.at("checking held-out samples", self.batches.len(), self.batches.len());
        if !sum.is_finite() {
            let message = "the outputs of the model are not finite on the held-out samples";
            return Err(DriverError::Measure(message.into()));
        }
        Ok(sum.measure())
    }
}
