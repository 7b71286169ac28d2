//! Work that is spread over threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    #[test]
    fn results_are_in_order() {
        let squares = |threads| parallel(threads, 5, &Silent, "", |i| i * i);
        assert_eq!(squares(1), [0, 1, 4, 9, 16]);
        assert_eq!(squares(3), squares(1));
        assert!(parallel(2, 0, &Silent, "", |i| i).is_empty());
    }
}
