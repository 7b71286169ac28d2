//! Times of layers with random signs, held as numbers and drawn where they are multiplied: runs of both take turns on one
//! thread, and what is told is how many times longer the drawn ones take, in time of the processor: what else runs on a core
//! does not count.
//!
//! Without arguments it prints the table of `docs/panther.md`; `--test` runs the smallest size once.

use std::time::Instant;

use margay_benches::random;
use margay_driver::{backend, build};
use margay_ir::{Cx, Graph, Pass, TensorType, text};
use margay_passes::FoldConstants;
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, Tensor};

const BATCHES: [usize; 4] = [1, 16, 64, 256];

/// A layer of `width` inputs and outputs with `half` signs on either side.
fn layer(rows: usize, width: usize, half: usize) -> Graph {
    let both = 2 * half;
    let source = format!(
        "graph @layer(%x: f32[{rows}, {width}]) -> (y: f32[{rows}, {width}]) {{
           %0 = const #s1 : f32[{width}, {half}]
           %1 = const random(7, 5, sign, 0.125) : f32[{width}, {half}]
           %2 = concat %0, %1 {{axis = 1}} : f32[{width}, {both}]
           %3 = const random(7, 6, sign, 0.125) : f32[{half}, {width}]
           %4 = const #s2 : f32[{half}, {width}]
           %5 = concat %3, %4 {{axis = 0}} : f32[{both}, {width}]
           %6 = matmul %x, %2 : f32[{rows}, {both}]
           %7 = matmul %6, %5 : f32[{rows}, {width}]
           return %7
         }}"
    );
    let resolve = |_: &str, ty: &TensorType| Some(random(&ty.extents()?).into());
    text::parse(&source, &resolve).unwrap_or_else(|e| panic!("{e}"))
}

/// A session of one thread, and the bytes of its constants.
fn session(g: &Graph) -> (Session, u64) {
    let backend = backend::native();
    let bound = build::bind(g, &Binding::new(), &*backend, &mut margay_driver::Dump::none())
        .unwrap_or_else(|e| panic!("{e}"));
    let program = margay_lower::lower(&bound, &*backend).unwrap_or_else(|e| panic!("{e}"));
    let executable = build::jit(g, &Binding::new(), &*backend).unwrap_or_else(|e| panic!("{e}"));
    let session = Session::new(&executable, SessionOptions { threads: 1 }).unwrap_or_else(|e| panic!("{e}"));
    (session, program.constant_bytes())
}

/// Seconds that this program has had a processor.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock is one of every Linux, and the time is writable.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "the clock of a program can be read");
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

fn seconds(session: &mut Session, x: &Tensor) -> f64 {
    let start = processor_seconds();
    session.run_in_place(&[("x", x)]).map(|_| ()).unwrap_or_else(|e| panic!("{e}"));
    processor_seconds() - start
}

/// The median of what drawn signs take of the time of held ones, run by run, and the bytes of both.
fn compared(rows: usize, width: usize, half: usize, least: f64) -> (f64, [u64; 2]) {
    let drawn = layer(rows, width, half);
    let mut held = drawn.clone();
    FoldConstants::default().run(&mut held, &mut Cx::default()).unwrap_or_else(|e| panic!("{e}"));
    let [(mut held, held_bytes), (mut drawn, drawn_bytes)] = [session(&held), session(&drawn)];
    let x = random(&[rows, width]);
    let (mut ratios, start) = (Vec::new(), Instant::now());
    seconds(&mut held, &x);
    seconds(&mut drawn, &x);
    while ratios.len() < 5 || start.elapsed().as_secs_f64() < least {
        let before = seconds(&mut held, &x);
        ratios.push(seconds(&mut drawn, &x) / before);
    }
    ratios.sort_by(f64::total_cmp);
    (ratios[ratios.len() / 2], [held_bytes, drawn_bytes])
}

fn main() {
    if std::env::args().any(|a| a == "--test") {
        let (ratio, [held, drawn]) = compared(1, 256, 16, 0.0);
        assert!(ratio > 0.0 && drawn < held);
        return;
    }
    println!(
        "| width | terms x rank | MiB held | MiB drawn | {} |",
        BATCHES.map(|b| format!("batch {b}")).join(" | ")
    );
    println!("|{}", "---|".repeat(4 + BATCHES.len()));
    for width in [1024, 8192] {
        for (terms, rank) in [1, 2, 3].into_iter().flat_map(|l| [16, 64, 128, 512].map(|k| (l, k))) {
            let half = terms * rank;
            // Where there are fewer numbers than the weight has.
            if 4 * half >= width {
                continue;
            }
            let found = BATCHES.map(|rows| compared(rows, width, half, 0.3));
            let [held, drawn] = found[0].1.map(|bytes| bytes as f64 / (1 << 20) as f64);
            let ratios = found.map(|(ratio, _)| format!("{ratio:.2}"));
            println!("| {width} | {terms} x {rank} | {held:.2} | {drawn:.2} | {} |", ratios.join(" | "));
        }
    }
}
