//! Work that is spread over threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::Progress;

/// Runs `work` for every number below `total` on some threads; results in order.
pub fn parallel<T: Send>(
    threads: usize,
    total: usize,
    progress: &dyn Progress,
    what: &str,
    work: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<T>>> = Mutex::new((0..total).map(|_| None).collect());
    let claim = || next.fetch_add(1, Ordering::Relaxed);
    let run = |report: Option<&dyn Progress>| {
        loop {
            let i = claim();
            if i >= total {
                break;
            }
            let result = work(i);
            results.lock().unwrap_or_else(|e| e.into_inner())[i] = Some(result);
            if let Some(p) = report {
                p.at(what, next.load(Ordering::Relaxed).min(total), total);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(|| run(None));
        }
        run(Some(progress));
    });
    let results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    results.into_iter().map(|r| r.expect("every number was claimed once")).collect()
}

/// How often it is asked whether work is to be abandoned.
const ASKED_EVERY: Duration = Duration::from_millis(20);

/// As [`parallel`], for work that nobody can interrupt, such as a decomposition. When `over` says so it is abandoned: the threads
/// are left to themselves, and there is no result.
pub(crate) fn parallel_until<T: Send + 'static>(
    threads: usize,
    total: usize,
    over: &dyn Fn() -> bool,
    work: impl Fn(usize) -> T + Send + Sync + 'static,
) -> Option<Vec<T>> {
    let shared = Arc::new((work, AtomicUsize::new(0)));
    let (done, results) = channel();
    for _ in 0..threads.clamp(1, total.max(1)) {
        let (shared, done) = (Arc::clone(&shared), done.clone());
        std::thread::spawn(move || {
            let (work, next) = &*shared;
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                // Nobody listens any more where it was abandoned.
                if i >= total || done.send((i, work(i))).is_err() {
                    break;
                }
            }
        });
    }
    drop(done);
    let mut found: Vec<Option<T>> = (0..total).map(|_| None).collect();
    let mut left = total;
    while left > 0 {
        match results.recv_timeout(ASKED_EVERY) {
            Ok((i, result)) => {
                found[i] = Some(result);
                left -= 1;
            }
            Err(RecvTimeoutError::Timeout) if over() => return None,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => panic!("a thread has ended without its result"),
        }
    }
    Some(found.into_iter().map(|r| r.expect("every number was claimed once")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order() {
        let squares = |threads| parallel_until(threads, 5, &|| false, |i| i * i);
        assert_eq!(squares(1), Some(vec![0, 1, 4, 9, 16]));
        assert_eq!(squares(3), squares(1));
        assert_eq!(parallel_until(2, 0, &|| false, |i| i), Some(vec![]));
    }

    #[test]
    fn work_that_does_not_end_is_abandoned() {
        let (never, waits) = channel::<()>();
        let waits = Mutex::new(waits);
        let found = parallel_until(2, 3, &|| true, move |i| {
            if i == 1 {
                _ = waits.lock().map(|w| w.recv());
            }
            i
        });
        assert_eq!(found, None);
        drop(never);
    }
}
