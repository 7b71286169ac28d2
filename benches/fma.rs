//! What this machine can do right now: operations per second of independent fused multiply-adds in the widest
//! registers, all threads together, by the clock. 0 where no such instruction is known.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const DURATION: Duration = Duration::from_millis(60);
const ROUNDS: u64 = 2_000;
const SUMS: usize = 24;

/// The best of three measurements.
pub fn operations_per_second(threads: usize) -> f64 {
    (0..3).map(|_| measure(threads)).fold(0.0, f64::max)
}

fn measure(threads: usize) -> f64 {
    let (barrier, stop, operations) = (Barrier::new(threads + 1), AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                barrier.wait();
                while !stop.load(Ordering::Relaxed) {
                    operations.fetch_add(multiply_add(), Ordering::Relaxed);
                }
            });
        }
        barrier.wait();
        let (start, before) = (Instant::now(), operations.load(Ordering::Relaxed));
        std::thread::sleep(DURATION);
        let done = operations.load(Ordering::Relaxed) - before;
        let seconds = start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        done as f64 / seconds
    })
}

/// Runs the loop for the widest registers of this processor; the operations it did.
#[cfg(target_arch = "x86_64")]
fn multiply_add() -> u64 {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512.
        unsafe { multiply_add_512() };
        ROUNDS * SUMS as u64 * 16 * 2
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has AVX2 and FMA.
        unsafe { multiply_add_256() };
        ROUNDS * SUMS_256 as u64 * 8 * 2
    } else {
        0
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_add() -> u64 {
    std::thread::yield_now();
    0
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_add_512() {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(std::hint::black_box(0.999)), _mm512_set1_ps(std::hint::black_box(1e-7)));
    let mut sums = [_mm512_set1_ps(1.0); SUMS];
    for _ in 0..ROUNDS {
        sums.iter_mut().for_each(|s| *s = _mm512_fmadd_ps(*s, a, b));
    }
    std::hint::black_box(sums);
}

/// As many as fit into sixteen registers beside the two factors.
#[cfg(target_arch = "x86_64")]
const SUMS_256: usize = 12;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_256() {
    use std::arch::x86_64::*;
    let (a, b) = (_mm256_set1_ps(std::hint::black_box(0.999)), _mm256_set1_ps(std::hint::black_box(1e-7)));
    let mut sums = [_mm256_set1_ps(1.0); SUMS_256];
    for _ in 0..ROUNDS {
        sums.iter_mut().for_each(|s| *s = _mm256_fmadd_ps(*s, a, b));
    }
    std::hint::black_box(sums);
}
