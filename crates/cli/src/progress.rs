//! Progress bars on stderr for work that takes longer than a second; none when stderr is no terminal. Training has a bar
//! of its own, with the loss, and ends early when it is interrupted.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use margay::Progress;
use margay::{Observer, Point};

use crate::interrupt::Interrupt;
use crate::table::significant;

const QUIET: Duration = Duration::from_secs(1);

/// Shows the work at hand. What is shown disappears when it is dropped.
pub(crate) struct Bars {
    start: Instant,
    shown: RefCell<Option<(String, ProgressBar)>>,
}

impl Bars {
    pub(crate) fn new() -> Bars {
        Bars { start: Instant::now(), shown: RefCell::new(None) }
    }

    fn clear(&self) {
        if let Some((_, bar)) = self.shown.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn at(&self, what: &str, done: usize, total: usize) {
        if self.start.elapsed() < QUIET {
            return;
        }
        if self.shown.borrow().as_ref().is_none_or(|(shown, _)| shown != what) {
            self.clear();
            let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{msg:28} {bar:32} {pos}/{len}") {
                bar.set_style(style);
            }
            bar.set_message(what.to_string());
            *self.shown.borrow_mut() = Some((what.to_string(), bar));
        }
        if let Some((_, bar)) = &*self.shown.borrow() {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Shows how training goes, and ends it when the user asks for that.
pub(crate) struct TrainingBar {
    bar: ProgressBar,
    interrupt: Interrupt,
    /// What is minimized on held-out samples, in words.
    error: &'static str,
    loss: Option<f64>,
    held_out: String,
}

/// The share of the shown loss that the losses before the last one make.
const SMOOTH: f64 = 0.95;

impl TrainingBar {
    /// A bar, and from now on Ctrl-C ends the training instead of the program.
    pub(crate) fn new(error: &'static str, interrupt: Interrupt) -> TrainingBar {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}, {eta} left") {
            bar.set_style(style);
        }
        TrainingBar { bar, interrupt, error, loss: None, held_out: String::new() }
    }
}

impl Observer for TrainingBar {
    fn stepped(&mut self, step: u64, total: u64, loss: f32, _: f64) {
        let loss = f64::from(loss);
        let shown = self.loss.map_or(loss, |before| SMOOTH * before + (1.0 - SMOOTH) * loss);
        self.loss = Some(shown);
        self.bar.set_length(total);
        self.bar.set_position(step);
        self.bar.set_message(format!("loss {}{}", significant(shown), self.held_out));
    }

    fn evaluated(&mut self, point: &Point, _: bool) {
        let measures = point.measures.iter().map(|(name, v)| format!(", {name} {}", significant(*v)));
        self.held_out = format!(
            ", held out: {} {}{}",
            self.error,
            significant(point.error),
            measures.collect::<String>()
        );
        self.bar.set_message(self.held_out.trim_start_matches(", ").to_string());
    }

    fn interrupted(&self) -> bool {
        self.interrupt.asked()
    }
}

impl Drop for TrainingBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
