//! After its first run a session allocates nothing but the tensors it returns.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use margay_runtime::{Executable, Session, SessionOptions};
use margay_tensor::Tensor;

mod programs;
use programs::{COLUMNS, TERMS, assemble, linear, native, numbers};

/// Counts what is asked of the system's allocator, by all threads.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The fewest allocations, and the fewest bytes, that one of several attempts asks for: threads that are just starting
/// allocate at a time of their own.
fn fewest(mut work: impl FnMut()) -> (usize, usize) {
    let attempts = (0..10).map(|_| {
        let before = (CALLS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
        work();
        (CALLS.load(Ordering::Relaxed) - before.0, BYTES.load(Ordering::Relaxed) - before.1)
    });
    attempts.fold((usize::MAX, usize::MAX), |a, b| (a.0.min(b.0), a.1.min(b.1)))
}

#[test]
fn only_outputs_are_allocated() {
    const ROWS: usize = 300;
    let target = native();
    let parts = assemble(&target, &[linear(ROWS, &target), linear(2, &target)]).into_parts().unwrap();
    let executable = Executable::from_parts(parts).unwrap();
    let x = Tensor::from_slice(&[ROWS, TERMS], &numbers(ROWS * TERMS, 1)).unwrap();
    for threads in [1, 2] {
        let mut session = Session::new(&executable, SessionOptions { threads }).unwrap();
        let first = session.run(&[("x", &x)]).unwrap();
        let output = ROWS * COLUMNS * 4;
        let (calls, bytes) = fewest(|| assert_eq!(session.run(&[("x", &x)]).unwrap(), first));
        assert!(calls <= 8 && bytes < output + 512, "{calls} allocations of {bytes} bytes for {output}");
        let (calls, _) = fewest(|| {
            let outputs = session.run_in_place(&[("x", &x)]).unwrap();
            assert_eq!(outputs.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), output);
        });
        assert_eq!(calls, 0);
    }
}
