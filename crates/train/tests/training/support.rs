//! What the tests of training share: settings, and an observer that interrupts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use margay_driver::{Interruption, backend};
use margay_train::{
    FitOptions, Length, Objective, Observer, Optimizer, Point, Schedule, Selection, Supervised, TrainError,
    Update,
};

/// All parameters, so many steps of 16 samples, 4 evaluations on a fifth of the samples.
pub(crate) fn supervised(objective: Objective, steps: u64) -> Supervised {
    Supervised {
        objective,
        output: None,
        weights: None,
        selection: Selection::All,
        update: Update {
            optimizer: Optimizer::ADAMW,
            learning_rate: 0.01,
            schedule: Schedule::Cosine { warm_up: 0.1, floor: 0.0 },
            clip: Some(1.0),
        },
        fit: FitOptions { length: Length::Steps(steps), batch: 16, evaluations: 4, ..FitOptions::default() },
        held_out: 0.2,
        ranks: None,
        redraw: None,
        max_saved_bytes: None,
        threads: 1,
        backend: backend::native(),
    }
}

/// Stops after so many steps.
pub(crate) struct StopAfter(Arc<AtomicU64>);

impl StopAfter {
    pub(crate) fn steps(steps: u64) -> StopAfter {
        StopAfter(Arc::new(AtomicU64::new(steps)))
    }
}

impl Observer for StopAfter {
    fn stepped(&mut self, _: u64, _: u64, _: f32, _: f64) {
        let left = self.0.load(Ordering::Relaxed).saturating_sub(1);
        self.0.store(left, Ordering::Relaxed);
    }

    fn evaluated(&mut self, _: &Point, _: bool) {}

    fn failed(&mut self, error: &TrainError) {
        panic!("{error}");
    }

    fn interruption(&self) -> Interruption {
        let left = Arc::clone(&self.0);
        Interruption::new(move || left.load(Ordering::Relaxed) == 0)
    }
}
