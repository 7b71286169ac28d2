//! Which samples decide what is better, and which are learned from.

use margay_driver::{Samples, hold_out};

use super::RecoverOptions;
use crate::TrainError;

/// Samples that are held out, at most: more of them cost time at every evaluation and tell little more.
const MOST_HELD_OUT: usize = 512;

/// The share that is held out unless something else is said.
const SHARE: f64 = 0.125;

/// Samples in two parts.
pub(super) struct Split {
    pub(super) train: Samples,
    pub(super) held_out: Samples,
    /// The numbers of those held out, where they are the ones that were named.
    pub(super) named: Vec<usize>,
}

/// What is held out, for a checkpoint.
pub(super) fn held_out_words(options: &RecoverOptions) -> String {
    match (options.held_out, options.held_out_rows.as_slice()) {
        (None, rows) if !rows.is_empty() => format!("{rows:?}"),
        (share, _) => share.unwrap_or(SHARE).to_string(),
    }
}

/// Samples to learn from, and those that are held out: the ones that are named, or a share, evenly spread and enough for a batch.
pub(super) fn split(samples: &Samples, options: &RecoverOptions, batch: usize) -> Result<Split, TrainError> {
    let share = options.held_out.unwrap_or(SHARE);
    if !(share > 0.0 && share < 1.0) {
        return Err(TrainError::Options(format!("held out: expected above 0 and below 1, found {share}")));
    }
    let rows = samples.rows();
    let named = &options.held_out_rows;
    if options.held_out.is_none()
        && named.len() >= batch
        && rows >= named.len() + batch
        && named.iter().all(|row| *row < rows)
    {
        let kept: Vec<usize> = (0..rows).filter(|row| !named.contains(row)).collect();
        return Ok(Split {
            train: samples.part(&kept)?,
            held_out: samples.part(named)?,
            named: named.clone(),
        });
    }
    let count = ((rows as f64 * share) as usize).clamp(batch, batch.max(MOST_HELD_OUT));
    if rows < count + batch {
        return Err(TrainError::Options(format!(
            "a batch to learn from and one to hold out: expected at least {} samples, found {rows}",
            2 * batch
        )));
    }
    let (kept, held_out) = hold_out(rows, count, rows);
    Ok(Split { train: samples.part(&kept)?, held_out: samples.part(&held_out)?, named: Vec::new() })
}
