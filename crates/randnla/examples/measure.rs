//! Times factorizations and products, each once after a warm-up, in seconds of processor time of this thread.
//!
//! `measure [PART…]` runs the cases whose name contains one of the parts, or all, and prints `case seconds` lines, or
//! `case bytes_per_second` for those that end in `bandwidth`. `benches/peers/randnla.py` runs it beside other libraries.

use std::hint::black_box;

use faer::{Accum, Mat, Par};
use margay_randnla::{
    BqrrpOptions, Distribution, Law, LeastSquaresOptions, Matrix, MatrixRef, RsvdOptions, Scalar, Sketch,
    SketchedQrOptions, bqrrp, cqrrpt, cqrrt, least_squares, rsvd, shifted_cholesky_qr3, svd,
};

/// Seconds that this thread has run, from the scheduler's account.
fn processor_seconds() -> f64 {
    let account = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = account.split(' ').next().and_then(|word| word.parse::<u64>().ok());
    nanoseconds.map_or(f64::NAN, |n| n as f64 * 1e-9)
}

fn seconds<T>(work: impl FnOnce() -> T) -> f64 {
    let before = processor_seconds();
    black_box(work());
    processor_seconds() - before
}

fn gaussian<T: Scalar>(rows: usize, columns: usize) -> Matrix<T> {
    let law = Law::Dense(Distribution::Gaussian);
    let sketch = Sketch::new(law, rows, columns, 1, 2).expect("the shape is not empty");
    sketch.unscaled().to_matrix()
}

/// Columns scaled so that the matrix has a spectrum.
fn falling<T: Scalar>(rows: usize, columns: usize) -> Matrix<T> {
    let draw: Matrix<T> = gaussian(rows, columns);
    Matrix::from_fn(rows, columns, |i, j| draw.at(i, j) * T::from_f64(1.0 / (1.0 + j as f64)))
}

/// Runs the cases that were asked for.
struct Cases(Vec<String>);

impl Cases {
    fn asked(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|part| name.contains(part.as_str()))
    }

    /// Times `work`, the second time that it runs.
    fn time<T>(&self, name: &str, mut work: impl FnMut() -> T) {
        if self.asked(name) {
            black_box(work());
            println!("{name} {:.6}", seconds(&mut work));
        }
    }
}

/// Bytes that a copy moves in a second, read and written, of more numbers than a cache holds.
fn copy_bandwidth<T: Scalar>() -> f64 {
    const BYTES: usize = 1 << 29;
    let from = vec![T::ONE; BYTES / size_of::<T>()];
    let mut to = vec![T::ZERO; from.len()];
    let mut once = || 2.0 * BYTES as f64 / seconds(|| black_box(&mut to).copy_from_slice(black_box(&from)));
    once();
    once().max(once())
}

fn sketches<T: Scalar>(cases: &Cases, kind: &str) {
    const ROWS: usize = 16384;
    const COLUMNS: usize = 1024;
    const SIZE: usize = 1024;
    const TIMES: usize = 6;
    let laws = [
        ("srht", Law::Srht),
        ("sjlt1", Law::Sjlt { nonzeros: 1 }),
        ("sjlt4", Law::Sjlt { nonzeros: 4 }),
        ("sjlt8", Law::Sjlt { nonzeros: 8 }),
    ];
    let name = |law: &str, layout: &str| format!("{law}_{kind}_{layout}_bandwidth");
    if !laws.iter().any(|(law, _)| cases.asked(&name(law, "columns")) || cases.asked(&name(law, "rows"))) {
        return;
    }
    let a: Matrix<T> = Matrix::from_fn(ROWS, COLUMNS, |i, j| T::from_f64((i % 17) as f64 - (j % 5) as f64));
    let rows: Vec<T> =
        (0..ROWS).flat_map(|i| (0..COLUMNS).map(move |j| (i, j))).map(|(i, j)| a.at(i, j)).collect();
    println!("copy_{kind}_bandwidth {:.0}", copy_bandwidth::<T>());
    let bytes = ((ROWS + SIZE) * COLUMNS * size_of::<T>()) as f64;
    for (law_name, law) in laws {
        let sketch = Sketch::new(law, SIZE, ROWS, 0, 0).expect("the shape is not empty");
        let row_major = MatrixRef::from_row_major(ROWS, COLUMNS, &rows).expect("the length is right");
        for (layout, operand) in [("columns", MatrixRef::from(&a)), ("rows", row_major)] {
            let name = name(law_name, layout);
            if cases.asked(&name) {
                let mut best = f64::INFINITY;
                for _ in 0..3 {
                    // The account goes by ticks of the clock, which are not much shorter than a product.
                    let several = || (0..TIMES).for_each(|_| drop(black_box(sketch.apply(operand))));
                    best = best.min(seconds(several) / TIMES as f64);
                }
                println!("{name} {:.0}", bytes / best);
            }
        }
    }
}

fn product<T: Scalar>(cases: &Cases, kind: &str) {
    let name = format!("product_{kind}_2048");
    if cases.asked(&name) {
        let (a, b): (Matrix<T>, Matrix<T>) = (gaussian(2048, 2048), gaussian(2048, 2048));
        let mut c: Mat<T> = Mat::zeros(2048, 2048);
        cases.time(&name, || {
            let (a, b) = (a.as_faer(), b.as_faer());
            faer::linalg::matmul::matmul(c.as_mut(), Accum::Replace, a, b, T::ONE, Par::Seq);
        });
    }
}

fn tall<T: Scalar>(cases: &Cases, kind: &str) {
    let names = ["cqrrpt", "cqrrt", "scholqr3", "lstsq"].map(|n| format!("{n}_{kind}_16384x256"));
    if !names.iter().any(|name| cases.asked(name)) {
        return;
    }
    let a: Matrix<T> = falling(16384, 256);
    let b: Matrix<T> = gaussian(16384, 1);
    let options = SketchedQrOptions::default();
    cases.time(&names[0], || cqrrpt(&a, &options));
    cases.time(&names[1], || cqrrt(&a, &options));
    cases.time(&names[2], || shifted_cholesky_qr3(&a));
    cases.time(&names[3], || least_squares(&a, &b, &LeastSquaresOptions::default()));
}

fn main() {
    let cases = Cases(std::env::args().skip(1).collect());
    if ["rsvd_q2_f64_4096", "rsvd_q7_f64_4096"].iter().any(|name| cases.asked(name)) {
        let a: Matrix = falling(4096, 4096);
        for q in [2, 7] {
            let options = RsvdOptions { power_iterations: q, ..RsvdOptions::default() };
            cases.time(&format!("rsvd_q{q}_f64_4096"), || rsvd(&a, 64, &options));
        }
    }
    if cases.asked("rsvd_q2_f32_4096") {
        let a: Matrix<f32> = falling(4096, 4096);
        cases.time("rsvd_q2_f32_4096", || rsvd(&a, 64, &RsvdOptions::default()));
    }
    for n in [512, 1024, 2048, 4096] {
        let name = format!("svd_f64_{n}");
        // The largest takes minutes; it has to be asked for.
        if cases.asked(&name) && (n < 4096 || cases.0.contains(&name)) {
            let a: Matrix = falling(n, n);
            println!("{name} {:.6}", seconds(|| svd(&a)));
        }
    }
    if cases.asked("bqrrp_f64_2048") {
        let a: Matrix = gaussian(2048, 2048);
        cases.time("bqrrp_f64_2048", || bqrrp(&a, &BqrrpOptions::default()));
    }
    tall::<f64>(&cases, "f64");
    tall::<f32>(&cases, "f32");
    product::<f64>(&cases, "f64");
    product::<f32>(&cases, "f32");
    sketches::<f64>(&cases, "f64");
    sketches::<f32>(&cases, "f32");
}
