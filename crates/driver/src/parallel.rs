//! Work that is spread over threads.

use std::sync::Mutex;

use crate::Progress;

/// Runs `work` for every number below `total` on some threads; results in order.
pub fn parallel<T: Send>(
    threads: usize,
    total: usize,
    progress: &dyn Progress,
    what: &str,
    work: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let results: Mutex<Vec<Option<T>>> = Mutex::new((0..total).map(|_| None).collect());
    let claim = || next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let run = |report: Option<&dyn Progress>| {
        loop {
            let i = claim();
            if i >= total {
                break;
            }
            let result = work(i);
            results.lock().unwrap_or_else(|e| e.into_inner())[i] = Some(result);
            if let Some(p) = report {
                p.at(what, next.load(std::sync::atomic::Ordering::Relaxed).min(total), total);
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
