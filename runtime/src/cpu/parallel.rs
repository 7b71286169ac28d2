//! The parallel function that compiled drivers call for every step.

use std::time::{Duration, Instant};

use margay_kernels_cpu::abi::{KernelFn, ROW_TABLE_AT, SCALAR_TABLE_AT};
use margay_kernels_cpu::math::{RowTable, SCALARS, ScalarTable};

use super::Pool;

/// What a driver's context points at during a run.
pub(crate) struct Context<'a> {
    /// Threads.
    pub(crate) pool: &'a mut Pool,
    /// Scratch of the first thread; a header and the kernels' bytes.
    pub(crate) scratch: *mut u8,
    /// Distance between the scratch of two threads.
    pub(crate) stride: usize,
    /// Number of threads.
    pub(crate) threads: usize,
    /// How long each parallel region took in all its runs, if they are timed; in the order of their numbers.
    pub(crate) times: Option<&'a mut [Duration]>,
    /// The first fault of the run, as [`margay_kernels_cpu::abi::fault_word`] encodes it; 0 for none.
    pub(crate) fault: u64,
}

impl Context<'_> {
    /// The fault word of a thread's scratch header.
    fn fault_word(&self, thread: usize) -> *mut u64 {
        self.scratch.wrapping_add(thread * self.stride).cast()
    }

    /// Forgets the faults of earlier runs, and tells kernels where the functions of rows and scalars are.
    pub(crate) fn write_headers(&mut self, rows: &'static RowTable) {
        self.fault = 0;
        for thread in 0..self.threads {
            let header = self.fault_word(thread);
            // SAFETY: every thread's scratch begins with a header, aligned to 64 bytes, and no kernel is running.
            unsafe {
                header.write(0);
                header.byte_add(ROW_TABLE_AT).cast::<*const RowTable>().write(rows);
                header.byte_add(SCALAR_TABLE_AT).cast::<*const ScalarTable>().write(&raw const SCALARS);
            }
        }
    }

    /// The fault that any thread reported in the step that has just ended. All of them name that step.
    fn reported_fault(&self) -> u64 {
        // SAFETY: as in `write_headers`; the pool has ended all work of the step, and what its threads wrote is seen.
        (0..self.threads).map(|t| unsafe { self.fault_word(t).read() }).max().unwrap_or(0)
    }
}

/// One step as all threads see it.
struct Task {
    function: KernelFn,
    params: *const u64,
    args: *const *mut u8,
    scratch: *mut u8,
    stride: usize,
}

// SAFETY: threads only copy the pointers; what they do with the memory behind is the contract of `KernelFn`: items
// never write the same byte, and each thread has its own scratch.
unsafe impl Sync for Task {}

impl Task {
    /// Runs a range of items on a thread.
    ///
    /// # Safety
    /// The step's memory is valid, and no other call uses the same thread's scratch meanwhile.
    unsafe fn run(&self, thread: usize, begin: u64, end: u64) {
        // SAFETY: the pointers are those the driver made for this step; the caller promises the rest.
        unsafe {
            let scratch = self.scratch.add(thread * self.stride);
            (self.function)(self.params, self.args, scratch, begin, end);
        }
    }
}

/// Runs the items of a step on the threads of a session, and says whether one of them reported a fault: the run ends
/// then, so that the fault is that of the first step that failed, however the items were spread.
///
/// # Safety
/// The contract of [`margay_kernels_cpu::abi::ParallelFn`], with a context that points at a [`Context`].
pub(crate) unsafe extern "C" fn parallel(
    context: *mut u8,
    function: KernelFn,
    params: *const u64,
    args: *const *mut u8,
    total: u64,
    grain: u64,
    region: u64,
) -> u64 {
    // SAFETY: a session hands its own context to the driver and does not touch it while the driver runs.
    let context = unsafe { &mut *context.cast::<Context<'_>>() };
    let task = Task { function, params, args, scratch: context.scratch, stride: context.stride };
    let task = &task;
    let start = context.times.is_some().then(Instant::now);
    context.pool.run(total, grain, &|thread, begin, end| {
        // SAFETY: the pool gives every thread a number of its own below the number of threads, and returns only when
        // all calls have ended.
        unsafe { task.run(thread, begin, end) };
    });
    if let (Some(start), Some(times)) = (start, &mut context.times) {
        times[region as usize] += start.elapsed();
    }
    context.fault = context.reported_fault();
    context.fault
}
