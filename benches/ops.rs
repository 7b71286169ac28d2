//! Single operators by compiled code.

use criterion::{Criterion, criterion_group, criterion_main};
use margay_benches::{random, session};
use margay_ir::{TensorType, text};
use margay_tensor::Tensor;

/// A graph over one input `x`; named constants are random.
fn bench(c: &mut Criterion, name: &str, source: &str, shape: &[usize]) {
    let resolve = |_: &str, ty: &TensorType| Some(random(&ty.extents()?).into());
    let g = text::parse(source, &resolve).unwrap_or_else(|e| panic!("{e}"));
    let mut session = session(&g);
    let x = random(shape);
    let inputs: [(&str, &Tensor); 1] = [("x", &x)];
    c.bench_function(name, |b| {
        b.iter(|| session.run_in_place(&inputs).map(|_| ()).unwrap_or_else(|e| panic!("{e}")))
    });
}

fn linear(c: &mut Criterion, m: usize, k: usize, n: usize) {
    let source = format!(
        "graph @linear(%x: f32[{m}, {k}]) -> (y: f32[{m}, {n}]) {{
           %0 = const #w : f32[{k}, {n}]
           %1 = matmul %x, %0 : f32[{m}, {n}]
           return %1
         }}"
    );
    bench(c, &format!("op/matmul/{m}x{k}x{n}/native"), &source, &[m, k]);
}

fn rows(c: &mut Criterion, op: &str, attributes: &str) {
    let source = format!(
        "graph @rows(%x: f32[128, 3072]) -> (y: f32[128, 3072]) {{
           %0 = {op} %x {attributes}: f32[128, 3072]
           return %0
         }}"
    );
    bench(c, &format!("op/{op}/128x3072/native"), &source, &[128, 3072]);
}

fn ops(c: &mut Criterion) {
    linear(c, 128, 768, 768);
    linear(c, 128, 768, 96);
    linear(c, 1, 4096, 4096);
    rows(c, "gelu", "");
    rows(c, "softmax", "{axis = 1} ");
    rows(c, "tanh", "");
}

criterion_group!(benches, ops);
criterion_main!(benches);
