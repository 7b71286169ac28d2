//! Training that only made things worse begins again, with a smaller learning rate.

use serde::{Deserialize, Serialize};

use super::Run;
use crate::{TrainError, Trainer};

/// A new beginning with a smaller learning rate.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Restart {
    /// Steps done before it.
    pub step: u64,
    /// The largest learning rate from there on.
    pub learning_rate: f64,
}

/// By how much the error has to be larger than at the beginning, for [`FitOptions::lower_rate`].
const WORSE: f64 = 1.05;

/// What the learning rate is multiplied by then.
const LOWERED: f64 = 0.25;

/// How often, at most.
const MOST_RESTARTS: usize = 3;

impl Run<'_> {
    /// Steps of the schedule, which begins with the last restart.
    pub(super) fn scheduled(&self) -> u64 {
        let begun = self.record.restarts.last().map_or(0, |last| last.step);
        self.record.total_steps.saturating_sub(begun).max(1)
    }

    /// Whether training may begin again: nothing since the last beginning is better than what was there.
    pub(super) fn may_restart(&self) -> bool {
        let begun = self.record.restarts.last().map_or(0, |last| last.step);
        self.options.lower_rate
            && self.record.restarts.len() < MOST_RESTARTS
            && self.record.best_step <= begun
    }

    /// Whether it should.
    pub(super) fn is_worse(&self) -> bool {
        let best = self.record.history.iter().find(|p| p.step == self.record.best_step);
        let last = self.record.history.last().filter(|p| p.step == self.record.step);
        self.may_restart()
            && best
                .zip(last)
                .is_some_and(|(best, last)| last.error.is_nan() || last.error > WORSE * best.error)
    }

    /// Begins again from the best parameters with a smaller rate. Samples come in the order in which they would have come.
    pub(super) fn restart(&mut self, trainer: &mut Trainer) -> Result<(), TrainError> {
        let learning_rate = LOWERED * trainer.peak_rate();
        self.record.restarts.push(Restart { step: self.record.step, learning_rate });
        trainer.begin_again(&self.best)?;
        trainer.set_peak_rate(learning_rate)?;
        trainer.set_total_steps(self.scheduled())
    }
}
