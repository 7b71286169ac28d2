//! Linear attention and derivatives of attention on the emulator, beyond the cases of the operators: several chunks, sums
//! that are split, 16-bit floats, heads that share keys, columns beyond a warp.

use margay_ir::Graph;
use margay_kernels_gpu::{Class, GpuTarget};
use margay_testkit::{Tolerance, parse_with_random_constants};

use crate::products::compare;

const SM80: GpuTarget = GpuTarget::emulated(Class::Sm80);

/// Graphs by their names.
const ROWS: &[(&str, &str)] = &[
    (
        "all keys, sums that are split",
        "graph @g(%q: f32[1, 2, 20, 12], %k: f32[1, 2, 900, 12], %v: f32[1, 2, 900, 40]) -> (y: f32[1, 2, 20, 40]) {
           %0 = exp %q : f32[1, 2, 20, 12]
           %1 = exp %k : f32[1, 2, 900, 12]
           %2 = linear_attention %0, %1, %v {epsilon = 0.5} : f32[1, 2, 20, 40]
           return %2
         }",
    ),
    (
        "one chunk",
        "graph @g(%q: f32[2, 1, 40, 5], %k: f32[2, 1, 40, 5], %v: f32[2, 1, 40, 7]) -> (y: f32[2, 1, 40, 7]) {
           %0 = exp %q : f32[2, 1, 40, 5]
           %1 = exp %k : f32[2, 1, 40, 5]
           %2 = linear_attention %0, %1, %v {causal = true} : f32[2, 1, 40, 7]
           return %2
         }",
    ),
    (
        "four chunks, the last one short",
        "graph @g(%q: f32[2, 2, 200, 6], %k: f32[2, 2, 200, 6], %v: f32[2, 2, 200, 33]) -> (y: f32[2, 2, 200, 33]) {
           %0 = exp %q : f32[2, 2, 200, 6]
           %1 = exp %k : f32[2, 2, 200, 6]
           %2 = linear_attention %0, %1, %v {causal = true} : f32[2, 2, 200, 33]
           return %2
         }",
    ),
    (
        "chunks of more positions, for many features",
        "graph @g(%q: f32[1, 1, 150, 100], %k: f32[1, 1, 150, 100], %v: f32[1, 1, 150, 5]) -> (y: f32[1, 1, 150, 5]) {
           %0 = exp %q : f32[1, 1, 150, 100]
           %1 = exp %k : f32[1, 1, 150, 100]
           %2 = linear_attention %0, %1, %v {causal = true} : f32[1, 1, 150, 5]
           return %2
         }",
    ),
    (
        "derivatives, heads that share keys",
        "graph @g(%q: f32[1, 4, 50, 40], %k: f32[1, 2, 70, 40], %v: f32[1, 2, 70, 33], %l: f32[1, 4, 50], %d: f32[1, 4, 50], %o: f32[1, 4, 50, 33]) -> (x: f32[1, 4, 50, 40], y: f32[1, 2, 70, 40], z: f32[1, 2, 70, 33]) {
           %0 = attention_gradient %q, %k, %v, %l, %d, %o {scale = 0.1} : f32[1, 4, 50, 40], f32[1, 2, 70, 40], f32[1, 2, 70, 33]
           return %0, %0.1, %0.2
         }",
    ),
    (
        "causal derivatives with a mask",
        "graph @g(%q: f32[2, 2, 40, 8], %k: f32[2, 2, 40, 8], %v: f32[2, 2, 40, 8], %l: f32[2, 2, 40], %d: f32[2, 2, 40], %o: f32[2, 2, 40, 8], %m: f32[2, 1, 1, 40]) -> (x: f32[2, 2, 40, 8], y: f32[2, 2, 40, 8], z: f32[2, 2, 40, 8]) {
           %0 = attention_gradient %q, %k, %v, %l, %d, %o, %m {scale = 0.3, causal = true} : f32[2, 2, 40, 8], f32[2, 2, 40, 8], f32[2, 2, 40, 8]
           return %0, %0.1, %0.2
         }",
    ),
];

fn parse(text: &str) -> Graph {
    parse_with_random_constants(text).0
}

/// The graphs, and those of linear attention in 16-bit floats.
pub(crate) fn graphs() -> Vec<Graph> {
    ROWS.iter().map(|(_, text)| parse(text)).chain(narrow().map(|(_, text)| parse(&text))).collect()
}

/// Linear attention in 16-bit floats. Derivatives take logarithms in f32 only.
fn narrow() -> impl Iterator<Item = (&'static str, String)> {
    let rows = ROWS.iter().filter(|(_, text)| text.contains("linear"));
    rows.flat_map(|(name, text)| ["bf16", "f16"].map(|dtype| (*name, text.replace("f32", dtype))))
}

#[test]
fn kernels_agree_with_the_reference_in_every_order_of_threads() {
    for (name, text) in ROWS {
        let error = compare(name, &parse(text), SM80, false, Tolerance::REDUCTION);
        println!("{name}: {error:.1e}");
    }
}

#[test]
fn ptx_of_kernels_agrees_with_the_reference() {
    for (name, text) in ROWS {
        let error = compare(name, &parse(text), GpuTarget::new(Class::Sm80), false, Tolerance::REDUCTION);
        println!("{name}: {error:.1e}");
    }
}

#[test]
fn halves_agree_with_the_reference() {
    // The reference rounds the exponentials, as the kernels do; sums are rounded once, at the end.
    let tolerance = Tolerance { relative: 1e-2, absolute: 1e-2 };
    for (name, text) in narrow() {
        let error = compare(name, &parse(&text), SM80, false, tolerance);
        println!("{name}: {error:.1e}");
    }
}
