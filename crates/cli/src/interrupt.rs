//! Ctrl-C for work that has something to keep: the first one asks it to end, the second one ends the program. As long as the
//! work has not asked whether it is to end, there is nothing to keep, and the first one ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use margay::TrainError;

use crate::error::Failure;
use crate::note;

/// The exit code of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Ends the program where there is nothing to keep.
fn nothing_learned() -> ! {
    note("interrupted: nothing was learned yet, and nothing is written");
    std::process::exit(INTERRUPTED);
}

/// What work gave. Ends the program where it was given up before there was anything to keep.
pub(crate) fn learned<T>(result: Result<T, TrainError>) -> Result<T, TrainError> {
    match result {
        Err(error) if error.is_interruption() => nothing_learned(),
        other => other,
    }
}

/// Whether the user has asked the work to end.
#[derive(Clone)]
pub(crate) struct Interrupt {
    asked: Arc<AtomicBool>,
    /// Whether the work has come as far as to look at `asked`.
    heeded: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens from now on; once in a program.
    pub(crate) fn listen() -> Result<Interrupt, Failure> {
        let (asked, heeded) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (flag, is_heeded) = (asked.clone(), heeded.clone());
        let heard = move || {
            if !is_heeded.load(Ordering::Relaxed) {
                nothing_learned();
            }
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED);
            }
            note("ending with the best so far; press Ctrl-C again to end at once");
        };
        ctrlc::set_handler(heard).map_err(|e| Failure::usage(format!("cannot listen to Ctrl-C: {e}")))?;
        Ok(Interrupt { asked, heeded })
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn asked(&self) -> bool {
        self.heeded.store(true, Ordering::Relaxed);
        self.asked.load(Ordering::Relaxed)
    }
}
