//! Progress bars on stderr for work that takes longer than a second; none when stderr is no terminal.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use margay_driver::Progress;

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
