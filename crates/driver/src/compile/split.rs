//! The samples that calibrate, and those that are held out.

use margay_ir::Graph;

use crate::samples::bound_batch;
use crate::{DriverError, Samples};

/// Samples in two halves.
pub(crate) struct Split {
    /// What the choice may look at.
    pub(crate) calibration: Samples,
    /// What the result is checked on.
    pub(crate) held_out: Samples,
}

/// Holds out every second sample.
///
/// # Errors
/// [`DriverError::Samples`] for too few of them.
pub(crate) fn split(g: &Graph, samples: &Samples) -> Result<Split, DriverError> {
    let (calibration, held_out) = samples.halves(bound_batch(g).unwrap_or(1))?;
    Ok(Split { calibration, held_out })
}
