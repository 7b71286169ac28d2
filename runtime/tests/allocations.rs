//! After its first run a session allocates nothing but the tensors it returns.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use margay_loops::{Backend, Outline, Program, generalize};
use margay_runtime::{Executable, Session, SessionOptions};
use margay_tensor::Tensor;

mod programs;
use programs::{COLUMNS, TERMS, assemble, linear, native, numbers};

/// Counts what is asked of the system's allocator, by all threads.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// Held by a test while it counts: others would be counted too.
static ALONE: Mutex<()> = Mutex::new(());

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
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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

/// The products of 20 to 30 rows as one program.
fn any_rows(target: &dyn Backend) -> Program {
    let closed: Vec<Program> = (20..=30).map(|rows| linear(rows, target)).collect();
    let outlines: Vec<Outline> =
        closed.iter().map(|p| p.outline(&target.preferences().extent_steps)).collect();
    let outlines: Vec<&Outline> = outlines.iter().collect();
    let (points, last): (Vec<Vec<i64>>, _) = ((20..=30).map(|rows| vec![rows]).collect(), &closed[10]);
    let mut open = generalize(&["rows".into()], &points, vec![vec![(20, 30)]], last, &outlines).unwrap();
    for (buffer, greatest) in open.buffers.iter_mut().zip(&last.buffers) {
        assert_eq!(buffer.bytes, greatest.bytes);
        buffer.place = greatest.place.clone();
    }
    open.arena_bytes = last.arena_bytes;
    open.verify().unwrap();
    open
}

#[test]
fn an_open_entry_allocates_for_new_extents_only() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let target = native();
    let parts = assemble(&target, &[any_rows(&target), linear(22, &target)]).into_parts().unwrap();
    let mut session =
        Session::new(&Executable::from_parts(parts).unwrap(), SessionOptions { threads: 1 }).unwrap();
    for rows in [25, 22, 30] {
        let x = Tensor::from_slice(&[rows, TERMS], &numbers(rows * TERMS, 1)).unwrap();
        let alone = assemble(&target, &[linear(rows, &target)]).into_parts().unwrap();
        let alone = Executable::from_parts(alone).unwrap();
        let expected =
            Session::new(&alone, SessionOptions { threads: 1 }).unwrap().run(&[("x", &x)]).unwrap();
        assert_eq!(session.run(&[("x", &x)]).unwrap(), expected);
        let (calls, _) = fewest(|| {
            let outputs = session.run_in_place(&[("x", &x)]).unwrap();
            assert_eq!(outputs.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), rows * COLUMNS * 4);
        });
        assert_eq!(calls, 0);
    }
}
