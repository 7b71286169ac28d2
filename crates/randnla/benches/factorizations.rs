//! Randomized factorizations beside those of faer, and products with sketches.

use criterion::{Criterion, criterion_group, criterion_main};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::qr::{col_pivoting, no_pivoting};
use faer::{Mat, Par};
use margay_randnla::{
    BqrrpOptions, Distribution, Law, Matrix, RsvdOptions, Scalar, Sketch, SketchedQrOptions, bqrrp, cqrrpt,
    cqrrt, rsvd, shifted_cholesky_qr3, svd,
};

fn gaussian<T: Scalar>(rows: usize, columns: usize) -> Matrix<T> {
    let law = Law::Dense(Distribution::Gaussian);
    let sketch = Sketch::new(law, rows, columns, 1, 2).unwrap_or_else(|e| panic!("{e}"));
    sketch.unscaled().to_matrix()
}

/// faer's column-pivoted QR, without the orthogonal factor.
fn faer_pivoted(a: &Matrix) -> Mat<f64> {
    let (m, n) = (a.rows(), a.columns());
    let mut qr = a.as_faer().to_owned();
    let block = no_pivoting::factor::recommended_block_size::<f64>(m, n);
    let mut coefficients = Mat::zeros(block, m.min(n));
    let (mut forward, mut backward) = (vec![0usize; n], vec![0usize; n]);
    let scratch =
        col_pivoting::factor::qr_in_place_scratch::<usize, f64>(m, n, block, Par::Seq, Default::default());
    let memory = &mut MemBuffer::new(scratch);
    col_pivoting::factor::qr_in_place(
        qr.as_mut(),
        coefficients.as_mut(),
        &mut forward,
        &mut backward,
        Par::Seq,
        MemStack::new(memory),
        Default::default(),
    );
    qr
}

fn truncated(c: &mut Criterion) {
    let a: Matrix = gaussian(768, 768);
    c.bench_function("svd/faer/768x768", |b| b.iter(|| svd(&a)));
    c.bench_function("svd/rsvd/768x768/k=32", |b| b.iter(|| rsvd(&a, 32, &RsvdOptions::default())));
}

fn tall(c: &mut Criterion) {
    let a: Matrix = gaussian(8192, 128);
    c.bench_function("pivoted-qr/faer/8192x128", |b| b.iter(|| faer_pivoted(&a)));
    let options = SketchedQrOptions::default();
    c.bench_function("pivoted-qr/cqrrpt/8192x128", |b| b.iter(|| cqrrpt(&a, &options)));
    c.bench_function("qr/cqrrt/8192x128", |b| b.iter(|| cqrrt(&a, &options)));
    c.bench_function("qr/shifted-cholesky-3/8192x128", |b| b.iter(|| shifted_cholesky_qr3(&a)));
    let a: Matrix = gaussian(768, 768);
    c.bench_function("pivoted-qr/faer/768x768", |b| b.iter(|| faer_pivoted(&a)));
    c.bench_function("pivoted-qr/bqrrp/768x768", |b| b.iter(|| bqrrp(&a, &BqrrpOptions::default())));
}

fn sketches(c: &mut Criterion) {
    let a: Matrix<f32> = gaussian(16384, 64);
    for (name, law) in [
        ("gaussian", Law::Dense(Distribution::Gaussian)),
        ("rademacher", Law::Dense(Distribution::Sign)),
        ("srht", Law::Srht),
        ("sjlt-4", Law::Sjlt { nonzeros: 4 }),
        ("count", Law::Sjlt { nonzeros: 1 }),
    ] {
        let sketch = Sketch::new(law, 256, 16384, 0, 0).unwrap_or_else(|e| panic!("{e}"));
        c.bench_function(&format!("sketch/{name}/16384x64"), |b| b.iter(|| sketch.apply(&a)));
    }
}

criterion_group!(benches, truncated, tall, sketches);
criterion_main!(benches);
