//! The threads of a session.
//!
//! A region is a number of items and a function that runs a range of them. The caller and the workers claim runs
//! of items from one counter until none is left, so that a thread that gets no processor time holds nobody up: the
//! caller does its share and waits only for what another thread has begun. That keeps a region near the time of a
//! single thread when the machine is busy, where a fixed split would wait for the scheduler again and again.
//!
//! Between regions workers spin for a while and then park: regions of one run follow each other within
//! microseconds, and waking a parked thread costs more than most of them.
//!
//! A pool is a value. It starts its threads in the first region that can use them and joins them when dropped.
//! Deliberately absent: nested regions (they borrow the pool mutably), priorities, affinity.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it parks.
const SPIN: Duration = Duration::from_micros(80);

/// A function that runs the items `begin..end` of a region as worker `worker`.
pub type Job<'a> = dyn Fn(usize, u64, u64) + Sync + 'a;

/// Threads that share the items of regions.
pub struct Pool {
    threads: usize,
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

/// A thread of the pool, other than the caller.
struct Worker {
    thread: JoinHandle<()>,
    parked: Arc<AtomicBool>,
}

/// What the threads of a pool share.
struct Shared {
    /// Odd while a region is open; counts up.
    epoch: Line<AtomicU64>,
    /// First item that nobody has claimed.
    next: Line<AtomicU64>,
    /// Workers that may be reading the region or running its items.
    active: Line<AtomicUsize>,
    /// Written only while no region is open and `active` is 0.
    region: UnsafeCell<Option<Region>>,
    /// What a job panicked with first.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

/// A cache line of its own.
#[repr(align(128))]
struct Line<T>(T);

#[derive(Clone, Copy)]
struct Region {
    job: *const Job<'static>,
    total: u64,
    grain: u64,
}

// SAFETY: the job is `Sync`, and `region` is read only by a worker that has counted itself in `active` and then
// seen its epoch still open; the caller closes the epoch and waits for `active` to be 0 before it writes again.
unsafe impl Sync for Shared {}

// SAFETY: as above; the pointer to the job is used only while the caller keeps it alive.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the caller among them; 0 counts as 1.
    pub fn new(threads: usize) -> Pool {
        let shared = Shared {
            epoch: Line(AtomicU64::new(0)),
            next: Line(AtomicU64::new(0)),
            active: Line(AtomicUsize::new(0)),
            region: UnsafeCell::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        };
        Pool { threads: threads.max(1), shared: Arc::new(shared), workers: Vec::new() }
    }

    /// The number of threads, the caller among them; a job's `worker` is below it.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs the items `0..total`, claimed in runs of `grain` (0 counts as 1), and returns when all have been run.
    ///
    /// The caller is worker 0. Each item is run exactly once; ranges are in no particular order. A region of one
    /// run, or a pool of one thread, calls the job once with all items. If a job panics, no further items
    /// are claimed, and the panic goes on in the caller once every thread has left the region.
    pub fn run(&mut self, total: u64, grain: u64, job: &Job<'_>) {
        let grain = grain.max(1);
        if total == 0 {
            return;
        }
        if self.threads == 1 || total <= grain {
            return job(0, 0, total);
        }
        self.start_workers();
        let shared = &*self.shared;
        let epoch = shared.epoch.0.load(Ordering::Relaxed) + 1;
        // SAFETY: no region is open and no worker is active: `run` borrows the pool mutably and leaves it so. The
        // job outlives the region, which ends below; only the lifetime in its type changes.
        unsafe {
            let job = std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job);
            *shared.region.get() = Some(Region { job, total, grain });
        }
        shared.next.0.store(0, Ordering::Relaxed);
        shared.epoch.0.store(epoch, Ordering::SeqCst);
        let helpers = usize::try_from(total.div_ceil(grain) - 1).unwrap_or(usize::MAX);
        for worker in self.workers.iter().take(helpers) {
            // A worker says that it is parked before it looks at the epoch for the last time.
            if worker.parked.load(Ordering::SeqCst) && worker.parked.swap(false, Ordering::SeqCst) {
                worker.thread.thread().unpark();
            }
        }
        shared.claim(0, job, total, grain);
        shared.epoch.0.store(epoch + 1, Ordering::SeqCst);
        let mut spins = 0u32;
        while shared.active.0.load(Ordering::SeqCst) != 0 {
            spins += 1;
            if spins < 2000 { std::hint::spin_loop() } else { thread::yield_now() }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Starts the threads that are missing. If the system refuses one, the pool works with those it has.
    fn start_workers(&mut self) {
        while self.workers.len() + 1 < self.threads {
            let index = self.workers.len() + 1;
            let (shared, parked) = (Arc::clone(&self.shared), Arc::new(AtomicBool::new(false)));
            let flag = Arc::clone(&parked);
            let thread = thread::Builder::new()
                .name(format!("margay-{index}"))
                .spawn(move || shared.work(index, &flag));
            match thread {
                Ok(thread) => self.workers.push(Worker { thread, parked }),
                Err(_) => self.threads = index,
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread.thread().unpark();
            // A worker catches the panics of jobs; it has none of its own.
            let _ = worker.thread.join();
        }
    }
}

impl Shared {
    /// Runs items until none is left to claim. Keeps the first panic.
    fn claim(&self, worker: usize, job: &Job<'_>, total: u64, grain: u64) {
        let items = || loop {
            let begin = self.next.0.fetch_add(grain, Ordering::Relaxed);
            if begin >= total {
                return;
            }
            job(worker, begin, total.min(begin.saturating_add(grain)));
        };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(items)) {
            self.next.0.fetch_max(total, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    /// The life of a worker.
    fn work(&self, worker: usize, parked: &AtomicBool) {
        let mut seen = 0;
        while let Some(epoch) = self.wait(seen, parked) {
            seen = epoch;
            self.active.0.fetch_add(1, Ordering::SeqCst);
            if self.epoch.0.load(Ordering::SeqCst) == epoch {
                // SAFETY: the region was open after this worker counted itself, so the caller waits for it
                // before it writes the region again or lets go of the job.
                unsafe {
                    if let Some(region) = *self.region.get() {
                        self.claim(worker, &*region.job, region.total, region.grain);
                    }
                }
            }
            self.active.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Waits for an open region other than `seen`; `None` when the pool is dropped.
    fn wait(&self, seen: u64, parked: &AtomicBool) -> Option<u64> {
        let open = |epoch: u64| epoch % 2 == 1 && epoch != seen;
        loop {
            let start = Instant::now();
            loop {
                for _ in 0..32 {
                    let epoch = self.epoch.0.load(Ordering::SeqCst);
                    if open(epoch) {
                        return Some(epoch);
                    }
                    std::hint::spin_loop();
                }
                if self.stop.load(Ordering::Relaxed) {
                    return None;
                }
                if start.elapsed() > SPIN {
                    break;
                }
            }
            parked.store(true, Ordering::SeqCst);
            while parked.load(Ordering::SeqCst)
                && !open(self.epoch.0.load(Ordering::SeqCst))
                && !self.stop.load(Ordering::SeqCst)
            {
                thread::park();
            }
            parked.store(false, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once_on_any_number_of_threads() {
        for threads in [0, 1, 2, 3, 8] {
            let mut pool = Pool::new(threads);
            for total in [0u64, 1, 2, 7, 64, 1000] {
                for grain in [0, 1, 3, 64, u64::MAX] {
                    let counts: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
                    let most = pool.threads();
                    pool.run(total, grain, &|worker, begin, end| {
                        assert!(worker < most && begin < end);
                        (begin..end).for_each(|i| {
                            counts[i as usize].fetch_add(1, Ordering::Relaxed);
                        });
                    });
                    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn results_are_seen_by_the_next_region() {
        let mut pool = Pool::new(4);
        let values: Vec<AtomicU64> = (0..100).map(AtomicU64::new).collect();
        for _ in 0..2000 {
            // Plain loads and stores: the end of a region is what orders them.
            pool.run(100, 1, &|_, begin, end| {
                for i in begin..end {
                    let v = &values[i as usize];
                    v.store(v.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                }
            });
        }
        for (i, v) in values.iter().enumerate() {
            assert_eq!(v.load(Ordering::Relaxed), i as u64 + 2000);
        }
    }

    #[test]
    fn a_slow_worker_does_not_hold_items_back() {
        let mut pool = Pool::new(2);
        let by_worker = AtomicUsize::new(0);
        pool.run(400, 1, &|worker, _, _| {
            if worker == 0 {
                thread::sleep(Duration::from_micros(50));
            } else {
                by_worker.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        });
        assert!(by_worker.load(Ordering::Relaxed) < 50, "a fixed split would give it 200");
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(3);
        for culprit in [0, 1, 2] {
            // The others wait until the one that panics has claimed an item.
            let came = AtomicBool::new(false);
            let region = AssertUnwindSafe(|| {
                pool.run(300, 1, &|worker, _, _| {
                    if worker == culprit {
                        came.store(true, Ordering::Relaxed);
                        panic!("worker {worker}");
                    }
                    while !came.load(Ordering::Relaxed) {
                        thread::yield_now();
                    }
                });
            });
            let payload = catch_unwind(region).expect_err("every worker has a part");
            let message = payload.downcast_ref::<String>().map(String::as_str);
            assert_eq!(message, Some(&*format!("worker {culprit}")));
            let sum = AtomicU64::new(0);
            pool.run(100, 1, &|_, begin, end| {
                sum.fetch_add((begin..end).sum(), Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn parked_workers_wake() {
        let mut pool = Pool::new(2);
        for _ in 0..20 {
            let workers = [AtomicUsize::new(0), AtomicUsize::new(0)];
            pool.run(200, 1, &|worker, _, _| {
                workers[worker].fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(100));
            });
            assert!(workers[1].load(Ordering::Relaxed) > 0, "200 sleeps leave time to wake");
            thread::sleep(2 * SPIN + Duration::from_millis(1));
        }
    }

    #[test]
    fn a_busy_machine_does_not_make_regions_collapse() {
        let processors = thread::available_parallelism().map_or(2, usize::from);
        let stop = AtomicBool::new(false);
        let work = |_, begin: u64, end: u64| (begin..end).for_each(|_| spin_work());
        let time = |pool: &mut Pool| {
            let start = Instant::now();
            pool.run(32, 1, &work);
            start.elapsed()
        };
        thread::scope(|scope| {
            for _ in 0..2 * processors {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop()
                    }
                });
            }
            let (mut one, mut all) = (Pool::new(1), Pool::new(processors));
            let (mut alone, mut shared) = (Vec::new(), Vec::new());
            for _ in 0..100 {
                alone.push(time(&mut one));
                shared.push(time(&mut all));
            }
            stop.store(true, Ordering::Relaxed);
            let mean = |times: &[Duration]| times.iter().sum::<Duration>() / times.len() as u32;
            let (alone, shared) = (mean(&alone), mean(&shared));
            println!("busy machine: one thread {alone:?}, {processors} threads {shared:?}, means");
            assert!(shared < 5 * alone + Duration::from_millis(5));
        });
    }

    /// Some tens of microseconds of arithmetic, not of waiting.
    fn spin_work() {
        let mut x = 1.0f64;
        for _ in 0..10_000 {
            x = std::hint::black_box(x * 1.000_000_1);
        }
    }

    #[test]
    fn threads_start_in_the_first_region_that_can_use_them() {
        let mut pool = Pool::new(3);
        for (total, grain) in [(0, 1), (1, 1), (40, 40), (40, u64::MAX)] {
            pool.run(total, grain, &|worker, begin, end| assert_eq!((worker, begin, end), (0, 0, total)));
            assert!(pool.workers.is_empty(), "a region of one run needs no other thread");
        }
        pool.run(40, 39, &|_, _, _| {});
        assert_eq!(pool.workers.len(), 2);
        let mut alone = Pool::new(1);
        alone.run(40, 1, &|worker, begin, end| assert_eq!((worker, begin, end), (0, 0, 40)));
        assert!(alone.workers.is_empty());
    }
}
