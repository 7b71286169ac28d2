//! From a graph to machine code.

use criterion::{Criterion, criterion_group, criterion_main};
use margay_benches::demo;
use margay_driver::{backend, build::jit};

fn compile(c: &mut Criterion) {
    let source = demo();
    let binding = [("batch".into(), 1)].into_iter().collect();
    c.bench_function("compile/demo", |b| {
        b.iter(|| jit(&source.graph, &binding, &*backend::native()).unwrap_or_else(|e| panic!("{e}")));
    });
}

criterion_group!(benches, compile);
criterion_main!(benches);
