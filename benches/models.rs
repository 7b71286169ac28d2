//! Whole models, dense and sketched, interleaved by criterion's order.

use criterion::{Criterion, criterion_group, criterion_main};
use margay_benches::{demo, noise, sketched_demo};
use margay_driver::{Runner, backend};

fn models(c: &mut Criterion) {
    for batch in [1usize, 8] {
        let inputs = noise(batch).row(0, batch).unwrap_or_else(|e| panic!("{e}"));
        let mut dense = Runner::new(demo().graph, &backend::native(), 1);
        let mut sketched = sketched_demo(batch as i64).runner(1);
        for (name, runner) in [("dense", &mut dense), ("bytes-40", &mut sketched)] {
            runner.session(&inputs).unwrap_or_else(|e| panic!("{e}"));
            c.bench_function(&format!("model/demo/{batch}/{name}"), |b| {
                b.iter(|| runner.run(&inputs).unwrap_or_else(|e| panic!("{e}")));
            });
        }
    }
}

criterion_group!(benches, models);
criterion_main!(benches);
