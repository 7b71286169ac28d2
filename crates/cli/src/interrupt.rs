//! Ctrl-C for work that has something to keep: the first one asks it to end, the second one ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Failure;
use crate::note;

/// The exit code of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Whether the user has asked the work to end.
#[derive(Clone)]
pub(crate) struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens from now on; once in a program.
    pub(crate) fn listen() -> Result<Interrupt, Failure> {
        let asked = Arc::new(AtomicBool::new(false));
        let flag = asked.clone();
        let heard = move || {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED);
            }
            note("ending after this step; press Ctrl-C again to end at once");
        };
        ctrlc::set_handler(heard).map_err(|e| Failure::usage(format!("cannot listen to Ctrl-C: {e}")))?;
        Ok(Interrupt { asked })
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}
