//! How long work is given up: whoever does it asks an [`Interruption`] between two parts, and hands to a thread of its own what
//! cannot ask.

use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::DriverError;

/// Work that ends this long after it was to be given up still counts.
const GRACE: Duration = Duration::from_millis(250);

/// How often it is asked whether work is to be given up that does not ask itself.
const ASKED_EVERY: Duration = Duration::from_millis(20);

type Question = dyn Fn() -> bool + Send + Sync;

/// Whether work is to be given up. Copies ask the same question.
#[derive(Clone, Default)]
pub struct Interruption(Option<Arc<Asked>>);

struct Asked {
    question: Box<Question>,
    /// When the answer was yes for the first time.
    since: OnceLock<Instant>,
}

impl Interruption {
    /// Work that is never given up.
    pub fn never() -> Interruption {
        Interruption::default()
    }

    /// Work that is given up once the answer to a question is yes, which it stays.
    pub fn new(question: impl Fn() -> bool + Send + Sync + 'static) -> Interruption {
        Interruption(Some(Arc::new(Asked { question: Box::new(question), since: OnceLock::new() })))
    }

    /// Whether nothing more is to be begun.
    pub fn asked(&self) -> bool {
        let Some(asked) = &self.0 else { return false };
        let yes = asked.since.get().is_some() || (asked.question)();
        if yes {
            asked.since.get_or_init(Instant::now);
        }
        yes
    }

    /// Whether work is to be left as it is: it had a moment to come to its end.
    fn over(&self) -> bool {
        let since = |asked: &Arc<Asked>| asked.since.get().is_some_and(|since| since.elapsed() >= GRACE);
        self.asked() && self.0.as_ref().is_some_and(since)
    }

    /// Asked between two parts of long work.
    ///
    /// # Errors
    /// [`DriverError::Interrupted`] where it is given up.
    pub fn check(&self) -> Result<(), DriverError> {
        if self.over() { Err(DriverError::Interrupted) } else { Ok(()) }
    }

    /// Does work that does not ask, such as compiling. When it is given up, its thread is left to itself.
    ///
    /// # Errors
    /// [`DriverError::Interrupted`] where it is given up.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, DriverError> {
        if self.0.is_none() {
            return Ok(work());
        }
        let (done, results) = channel();
        // Nobody listens any more where it was given up.
        let thread = std::thread::spawn(move || _ = done.send(work()));
        loop {
            match results.recv_timeout(ASKED_EVERY) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) => self.check()?,
                Err(RecvTimeoutError::Disconnected) => match thread.join() {
                    Err(panic) => std::panic::resume_unwind(panic),
                    Ok(()) => panic!("a thread has ended without its result"),
                },
            }
        }
    }
}

impl fmt::Debug for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Interruption" } else { "Interruption::never()" })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn work_that_does_not_end_is_given_up() {
        let (never, waits) = channel::<()>();
        let begin = Instant::now();
        let waits = Mutex::new(waits);
        let found = Interruption::new(|| true).run(move || _ = waits.lock().map(|w| w.recv()));
        assert!(matches!(found, Err(DriverError::Interrupted)) && begin.elapsed() < 20 * GRACE);
        drop(never);
    }

    #[test]
    fn work_has_a_moment_to_end() {
        let interruption = Interruption::new(|| true);
        assert_eq!(interruption.run(|| 3).ok(), Some(3));
        assert!(interruption.asked() && interruption.check().is_ok());
        std::thread::sleep(GRACE);
        assert!(interruption.clone().check().is_err());
        let never = Interruption::never();
        assert!(!never.asked() && never.check().is_ok() && never.run(|| 3).is_ok());
    }
}
