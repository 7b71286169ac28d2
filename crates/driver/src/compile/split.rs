//! The samples that calibrate, and those that are held out.

use margay_loops::Precision;

use super::Job;
use crate::samples::bound_batch;
use crate::{DriverError, Samples};

/// Samples in two halves.
pub(crate) struct Split {
    /// What the choice may look at.
    pub(crate) calibration: Samples,
    /// What the result is checked on.
    pub(crate) held_out: Samples,
}

/// Holds out every second sample. `None` without samples, and where numbers stay as they are.
///
/// # Errors
/// [`DriverError::Samples`] for too few of them.
pub(crate) fn split(job: &Job<'_>) -> Result<Option<Split>, DriverError> {
    let changes = job.options.sketches() || job.options.precision != Precision::F32;
    let Some(samples) = job.samples.as_ref().filter(|_| changes) else { return Ok(None) };
    let (calibration, held_out) = samples.halves(bound_batch(job.graph()).unwrap_or(1))?;
    Ok(Some(Split { calibration, held_out }))
}
