//! The samples that calibrate, and those that are held out.

use margay_loops::Precision;
use margay_passes::sketch::MAX_ROWS;
use margay_tensor::random::{Philox, stream_of};

use super::Job;
use crate::rows::{measured, needed};
use crate::{DriverError, Samples};

/// One of so many samples is held out.
const EVERY: usize = 4;

/// Samples that are held out, at most: more of them cost time at every measurement and tell little more.
const MOST_HELD_OUT: usize = 512;

/// Samples in two parts; some may be in neither.
pub(crate) struct Split {
    /// What the choice may look at: as many as layers need rows of.
    pub(crate) calibration: Samples,
    /// What the result is checked on.
    pub(crate) held_out: Samples,
    /// The numbers of these.
    pub(crate) held_out_rows: Vec<usize>,
}

/// Holds out a part of the samples. `None` without samples, and where numbers stay as they are.
///
/// # Errors
/// [`DriverError::Samples`] for too few of them.
pub(crate) fn split(job: &Job<'_>) -> Result<Option<Split>, DriverError> {
    let changes = job.options.sketches() || job.options.precision != Precision::F32;
    let Some(samples) = job.samples.as_ref().filter(|_| changes) else { return Ok(None) };
    let batch = samples.bound_batch(job.graph()).unwrap_or(1);
    let rows = samples.rows();
    if rows < 2 * batch.max(1) {
        return Err(DriverError::Samples(format!(
            "some calibrate and others check: expected at least {}, found {rows}",
            2 * batch.max(1),
        )));
    }
    let count = (rows / EVERY).clamp(1, MOST_HELD_OUT).max(batch);
    let (kept, held_out_rows) = drawn(rows, count, job.options.seed(), "held out");
    let calibration = enough(job, &samples.part(&kept)?, MAX_ROWS)?;
    Ok(Some(Split { calibration, held_out: samples.part(&held_out_rows)?, held_out_rows }))
}

/// As many samples, evenly spread, as give every site about so many rows to measure.
///
/// # Errors
/// Those of extents that samples have.
pub(crate) fn enough(job: &Job<'_>, samples: &Samples, rows: usize) -> Result<Samples, DriverError> {
    let needed = needed(job.graph(), measured(&job.sites), &job.mask, samples, rows)?;
    samples.spread(job.graph(), needed, 1)
}

/// The numbers of samples to keep, and of `count` to hold out: one at random of each of as many equal stretches, so that
/// sorted data is split evenly, and data that repeats is not split by what repeats. `name` tells draws of one seed apart.
pub(crate) fn drawn(rows: usize, count: usize, seed: u64, name: &str) -> (Vec<usize>, Vec<usize>) {
    let mut uniform = vec![0f64; count];
    Philox::new(seed, stream_of(name)).fill_uniform_f64(0, &mut uniform);
    let border = |stretch: usize| stretch * rows / count.max(1);
    let one = |(i, u): (usize, &f64)| {
        let (first, length) = (border(i), border(i + 1) - border(i));
        first + ((u * length as f64) as usize).min(length.saturating_sub(1))
    };
    let held_out: Vec<usize> = uniform.iter().enumerate().map(one).collect();
    let kept = (0..rows).filter(|row| held_out.binary_search(row).is_err()).collect();
    (kept, held_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_give_one_sample_each_and_no_pattern() {
        for (rows, count) in [(2, 1), (7, 3), (256, 64), (1000, 250), (12, 12)] {
            let (kept, held_out) = drawn(rows, count, 5, "x");
            assert_eq!((kept.len(), held_out.len()), (rows - count, count));
            let stretch = |i: usize| i * rows / count..(i + 1) * rows / count;
            assert!(held_out.iter().enumerate().all(|(i, row)| stretch(i).contains(row)));
        }
        let (_, held_out) = drawn(256, 64, 5, "x");
        let places: std::collections::BTreeSet<usize> = held_out.iter().map(|row| row % 4).collect();
        assert_eq!(places.len(), 4);
        assert_ne!(held_out, drawn(256, 64, 6, "x").1);
        assert_ne!(held_out, drawn(256, 64, 5, "y").1);
        assert_eq!(held_out, drawn(256, 64, 5, "x").1);
    }
}
