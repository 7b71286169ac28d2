//! Which samples decide what is better, and which are learned from.

use margay_driver::{Samples, hold_out};

use super::RecoverOptions;
use crate::TrainError;

/// Samples that are held out, at most: more of them cost time at every evaluation and tell little more.
const MOST_HELD_OUT: usize = 512;

/// What is held out, for a checkpoint.
pub(super) fn held_out_words(options: &RecoverOptions) -> String {
    match options.held_out_rows.as_slice() {
        [] => options.held_out.to_string(),
        rows => format!("{} or {rows:?}", options.held_out),
    }
}

/// Samples to learn from, and a share of them that is held out: evenly spread, and enough for a batch.
pub(super) fn split(
    samples: &Samples,
    options: &RecoverOptions,
    batch: usize,
) -> Result<(Samples, Samples), TrainError> {
    let share = options.held_out;
    if !(share > 0.0 && share < 1.0) {
        return Err(TrainError::Options(format!("held out: expected above 0 and below 1, found {share}")));
    }
    let rows = samples.rows();
    let named = &options.held_out_rows;
    if named.len() >= batch && rows >= named.len() + batch && named.iter().all(|row| *row < rows) {
        let kept: Vec<usize> = (0..rows).filter(|row| !named.contains(row)).collect();
        return Ok((samples.part(&kept)?, samples.part(named)?));
    }
    let count = ((rows as f64 * share) as usize).clamp(batch, batch.max(MOST_HELD_OUT));
    if rows < count + batch {
        return Err(TrainError::Options(format!(
            "a batch to learn from and one to hold out: expected at least {} samples, found {rows}",
            2 * batch
        )));
    }
    let (kept, held_out) = hold_out(rows, count, rows);
    Ok((samples.part(&kept)?, samples.part(&held_out)?))
}
