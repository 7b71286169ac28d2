//! Products with sketches never hold the matrix of the sketch: peaks of allocated memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use margay_randnla::{Distribution, Draw, Law, Matrix, MatrixRef, Sketch, Sparse};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it is; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`, and `alloc` took the memory from the same allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were allocated at once during `work`, beyond what was before.
fn peak<T>(work: impl FnOnce() -> T) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    let peak = PEAK.load(Ordering::Relaxed);
    drop(result);
    peak - before
}

/// One test, since the counters are of the whole process.
#[test]
fn products_with_sketches_do_not_hold_them() {
    const ROWS: usize = 1000;
    const COLUMNS: usize = 20_000;
    let whole = ROWS * COLUMNS * size_of::<f32>();
    let a = Matrix::<f32>::from_fn(COLUMNS, 4, |i, j| (i % 7) as f32 - j as f32);
    let b = Matrix::<f32>::from_fn(ROWS, 4, |i, j| (i % 7) as f32 - j as f32);
    let triples: Vec<(usize, usize, f32)> = (0..COLUMNS).map(|i| (i, i % 4, 1.0)).collect();
    let sparse = Sparse::from_coo(COLUMNS, 4, &triples).unwrap();
    let kronecker = {
        let part = |rows, columns, stream| {
            Sketch::new(Law::Dense(Distribution::Gaussian), rows, columns, 0, stream).unwrap()
        };
        Sketch::kronecker(part(20, 100, 0), part(50, 200, 1)).unwrap()
    };
    let laws = [
        Law::Dense(Distribution::Gaussian),
        Law::Sjlt { nonzeros: 4 },
        Law::Less { nonzeros: 16, draw: Draw::UNIFORM },
        Law::Srht,
        Law::Rows(Draw::UNIFORM),
        Law::Tensor { extents: vec![100, 200] },
    ];
    let mut sketches: Vec<Sketch> =
        laws.into_iter().map(|law| Sketch::new(law, ROWS, COLUMNS, 0, 0).unwrap()).collect();
    sketches.push(kronecker);
    for sketch in sketches {
        for operand in [MatrixRef::from(&a), MatrixRef::from(&sparse)] {
            let left = peak(|| sketch.apply(operand).unwrap());
            assert!(left < whole / 8, "{sketch:?}: {left} bytes of {whole}");
        }
        let transposed = peak(|| sketch.apply_transposed(&b).unwrap());
        assert!(transposed < whole / 8, "{sketch:?}: {transposed} bytes of {whole}");
    }
    // The count itself works: the matrix of a sketch is as large as it is.
    let sketch = Sketch::new(Law::Sjlt { nonzeros: 4 }, ROWS, COLUMNS, 0, 0).unwrap();
    assert!(peak(|| sketch.to_matrix::<f32>()) >= whole);
}
