//! Progress on stderr for work that takes longer than a second: bars, or lines every few seconds where stderr is no terminal.
//! Training has a bar of its own, with the loss, writes the course of its error into a file, and ends early when it is
//! interrupted.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use margay::{Interruption, Observer, Point, Progress, TrainError};

use crate::interrupt::Interrupt;
use crate::note;
use crate::table::significant;

const QUIET: Duration = Duration::from_secs(1);

/// Between two lines, and before the first one.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// Lines of progress where stderr is no terminal.
struct Lines {
    is_on: bool,
    last: Cell<Instant>,
}

impl Lines {
    fn new() -> Lines {
        Lines { is_on: !std::io::stderr().is_terminal(), last: Cell::new(Instant::now()) }
    }

    /// Prints a line if the last one is old enough.
    fn say(&self, line: impl FnOnce() -> String) {
        if self.is_on && self.last.get().elapsed() >= BETWEEN_LINES {
            crate::tell(line());
            self.last.set(Instant::now());
        }
    }
}

/// Shows the work at hand. What is shown disappears when it is dropped.
pub(crate) struct Bars {
    start: Instant,
    shown: RefCell<Option<(String, ProgressBar)>>,
    lines: Lines,
}

impl Bars {
    pub(crate) fn new() -> Bars {
        Bars { start: Instant::now(), shown: RefCell::new(None), lines: Lines::new() }
    }

    fn clear(&self) {
        if let Some((_, bar)) = self.shown.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn at(&self, what: &str, done: usize, total: usize) {
        self.lines.say(|| format!("{what}: {done} of {total}"));
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
    lines: Lines,
    interrupt: Interrupt,
    /// What is minimized on held-out samples, in words.
    error: &'static str,
    loss: Option<f64>,
    held_out: String,
    history: Option<History>,
    /// Whether a failure was told: the same one may come again and again.
    told: bool,
}

/// A file of evaluations, which is opened with the first of them: a run that is refused changes no file.
struct History {
    path: PathBuf,
    goes_on: bool,
    file: Option<File>,
}

impl History {
    fn add(&mut self, point: &Point) -> std::io::Result<()> {
        let line = serde_json::to_string(point).map_err(std::io::Error::other)?;
        if self.file.is_none() {
            let mut how = File::options();
            how.create(true).write(true).append(self.goes_on).truncate(!self.goes_on);
            self.file = Some(how.open(&self.path)?);
        }
        self.file.as_mut().map_or(Ok(()), |file| writeln!(file, "{line}"))
    }
}

/// The share of the shown loss that the losses before the last one make.
const SMOOTH: f64 = 0.95;

impl TrainingBar {
    /// A bar, and from now on Ctrl-C ends the training instead of the program. Every evaluation becomes a line of JSON in
    /// the file `history`, if there is one: behind those of a run that goes on, else of a new file.
    pub(crate) fn new(
        error: &'static str,
        interrupt: Interrupt,
        history: Option<&Path>,
        goes_on: bool,
    ) -> TrainingBar {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}, {eta} left") {
            bar.set_style(style);
        }
        let history = history.map(|path| History { path: path.to_path_buf(), goes_on, file: None });
        let (lines, held_out) = (Lines::new(), String::new());
        TrainingBar { bar, lines, interrupt, error, loss: None, held_out, history, told: false }
    }

    fn tell(&mut self, message: String) {
        if !std::mem::replace(&mut self.told, true) {
            self.bar.suspend(|| note(message));
        }
    }
}

impl Observer for TrainingBar {
    fn stepped(&mut self, step: u64, total: u64, loss: f32, seconds: f64) {
        let loss = f64::from(loss);
        let shown = self.loss.map_or(loss, |before| SMOOTH * before + (1.0 - SMOOTH) * loss);
        self.loss = Some(shown);
        self.bar.set_length(total);
        self.bar.set_position(step);
        let message = format!("loss {}{}", significant(shown), self.held_out);
        self.lines.say(|| format!("step {step} of {total}, {seconds:.0} s, {message}"));
        self.bar.set_message(message);
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
        let written = self.history.as_mut().map(|history| history.add(point));
        if let Some(Err(error)) = written {
            self.tell(format!("the history cannot be written: {error}"));
        }
    }

    fn failed(&mut self, error: &TrainError) {
        self.tell(format!("{error}; training goes on, and the next checkpoint is tried in time"));
    }

    fn interruption(&self) -> Interruption {
        let interrupt = self.interrupt.clone();
        Interruption::new(move || interrupt.asked())
    }
}

impl Drop for TrainingBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
