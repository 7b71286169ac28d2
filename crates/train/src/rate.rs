//! A learning rate found by a short test: steps whose rate grows from one to the next, until the loss does.
//!
//! After Smith, *Cyclical learning rates for training neural networks*, 2015 (arXiv 1506.01186), section 3.3. A rate a tenth
//! of the one at which the loss was least is taken, since the loss falls on for some steps after the rate has become too large.
//! Losses are compared batch by batch with those before the test, so that batches may differ as they like.

use serde::Serialize;

use crate::{Batches, Task, TrainError, Trainer};

/// What a test of learning rates found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RateTest {
    /// The rate to be used.
    pub rate: f64,
    /// Whether some rate of the test made the loss smaller; where none did, `rate` is the one that was there before.
    pub improved: bool,
    /// Steps of the test.
    pub steps: u64,
}

/// Batches that the test goes through again and again.
const BATCHES: u64 = 4;
/// Steps of which each has a greater rate than the one before.
const GROWING: u64 = 44;
/// The first and the last rate.
const RATES: (f64, f64) = (1e-5, 1.0);
/// Steps of a test, at most.
pub const STEPS: u64 = BATCHES + GROWING;
/// How much larger than at first the loss has to be, to end the test.
const GROWN: f64 = 2.0;
/// The share of the rate with the least loss that is taken.
const SHARE: f64 = 0.1;

/// Finds a rate for a trainer whose states are as training is to begin; they are so again at the end, but for the rate, which is
/// the one that was found. `default` is taken where no rate makes the loss smaller. `over` is asked after every step, and
/// ends the test with the default.
///
/// # Errors
/// What a step fails with.
pub fn find_rate(
    trainer: &mut Trainer,
    task: &mut dyn Task,
    batches: &mut Batches,
    default: f64,
    over: &dyn Fn() -> bool,
) -> Result<RateTest, TrainError> {
    let states = trainer.states()?;
    // Far from the end of every schedule.
    trainer.set_total_steps(1 << 20)?;
    let growth = (RATES.1 / RATES.0).powf(1.0 / (GROWING - 1) as f64);
    let used = BATCHES.min(batches.per_epoch());
    let mut course = Course::default();
    let mut steps = 0;
    for step in 0..used + GROWING {
        // The loss of a step is that before its update.
        let rate = RATES.0 * growth.powf(step.saturating_sub(used) as f64);
        trainer.set_next_rate(if step < used { RATES.0 * 1e-6 } else { rate })?;
        let batch = task.batch(batches.batch(step % used))?;
        let result = trainer.step(&batch)?;
        steps += 1;
        let is_finite = result.loss.is_finite() && result.gradient_norm.is_finite();
        if !is_finite || over() || !course.goes_on(f64::from(result.loss), used as usize, rate) {
            break;
        }
    }
    trainer.restore(&states)?;
    let found = course.best.filter(|(change, _)| *change < 0.0 && !over()).map(|(_, rate)| SHARE * rate);
    let rate = found.unwrap_or(default);
    trainer.set_peak_rate(rate)?;
    Ok(RateTest { rate, improved: found.is_some(), steps })
}

/// The course of the loss.
#[derive(Default)]
struct Course {
    /// Of each batch before anything changed.
    first: Vec<f64>,
    /// How much larger the loss was than at first, step by step.
    changes: Vec<f64>,
    /// The least mean change over all batches, and the rate of its last step.
    best: Option<(f64, f64)>,
}

impl Course {
    /// Takes the loss of a step; whether the test is to go on.
    fn goes_on(&mut self, loss: f64, batches: usize, rate: f64) -> bool {
        if self.first.len() < batches {
            self.first.push(loss);
            return true;
        }
        self.changes.push(loss - self.first[self.changes.len() % batches]);
        let Some(last) = self.changes.len().checked_sub(batches).map(|from| &self.changes[from..]) else {
            return true;
        };
        let mean = last.iter().sum::<f64>() / batches as f64;
        if self.best.is_none_or(|(least, _)| mean < least) {
            self.best = Some((mean, rate));
        }
        let first = self.first.iter().sum::<f64>() / batches as f64;
        mean < (GROWN - 1.0) * first.abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loss_of_all_batches_counts() {
        let mut course = Course::default();
        // Two batches of very different losses; the one falls by 1 and then grows.
        for (loss, rate) in
            [(10.0, 0.0), (1.0, 0.0), (10.0, 0.1), (1.0, 0.2), (9.0, 0.3), (1.0, 0.4), (10.5, 0.5)]
        {
            assert!(course.goes_on(loss, 2, rate), "{rate}");
        }
        assert_eq!(course.best, Some((-0.5, 0.3)));
        assert!(!course.goes_on(30.0, 2, 0.6), "the mean is more than twice what it was");
    }
}
