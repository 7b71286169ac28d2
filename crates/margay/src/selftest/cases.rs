//! The cases: a small graph each, with the limit of its error.

use super::Family;

/// A case of the test.
pub(super) struct Case {
    pub(super) family: Family,
    pub(super) kernel: &'static str,
    pub(super) shape: &'static str,
    pub(super) limit: f64,
    /// Too large for an emulator.
    pub(super) large: bool,
    pub(super) text: &'static str,
}

/// Sums in another order.
const SUMS: f64 = 1e-5;
/// Factors of f32 that are rounded to tf32.
pub(super) const ROUNDED: f64 = 2e-3;
/// 16-bit floats, which are rounded once more at the end.
const HALVES: f64 = 1e-2;

/// A row of the table.
const fn case(
    family: Family,
    kernel: &'static str,
    shape: &'static str,
    limit: f64,
    large: bool,
    text: &'static str,
) -> Case {
    Case { family, kernel, shape, limit, large, text }
}

/// The cases, the most telling first.
pub(super) const CASES: &[Case] = &[
    case(
        Family::Loops,
        "gelu",
        "4000",
        SUMS,
        false,
        "graph @g(%x: f32[4000]) -> (y: f32[4000]) {
           %0 = gelu %x : f32[4000]
           return %0
         }",
    ),
    case(
        Family::Loops,
        "sum of a transposed matrix",
        "70x50",
        SUMS,
        false,
        "graph @g(%x: f32[70, 50], %z: f32[50, 70]) -> (y: f32[50, 70]) {
           %0 = transpose %x {perm = [1, 0]} : f32[50, 70]
           %1 = add %0, %z : f32[50, 70]
           return %1
         }",
    ),
    case(
        Family::Loops,
        "gelu",
        "4096x4096",
        SUMS,
        true,
        "graph @g(%x: f32[4096, 4096]) -> (y: f32[4096, 4096]) {
           %0 = gelu %x : f32[4096, 4096]
           return %0
         }",
    ),
    case(
        Family::Reductions,
        "softmax",
        "3x1000",
        SUMS,
        false,
        "graph @g(%x: f32[3, 1000]) -> (y: f32[3, 1000]) {
           %0 = softmax %x {axis = 1} : f32[3, 1000]
           return %0
         }",
    ),
    case(
        Family::Reductions,
        "layer norm",
        "64x384",
        SUMS,
        false,
        "graph @g(%x: f32[64, 384], %w: f32[384], %b: f32[384]) -> (y: f32[64, 384]) {
           %0 = layer_norm %x, %w, %b {axis = 1} : f32[64, 384]
           return %0
         }",
    ),
    case(
        Family::Reductions,
        "layer norm",
        "16384x1024",
        SUMS,
        true,
        "graph @g(%x: f32[16384, 1024], %w: f32[1024], %b: f32[1024]) -> (y: f32[16384, 1024]) {
           %0 = layer_norm %x, %w, %b {axis = 1} : f32[16384, 1024]
           return %0
         }",
    ),
    case(
        Family::Products,
        "product of one row",
        "1x300x70",
        SUMS,
        false,
        "graph @g(%x: f32[1, 300], %w: f32[300, 70]) -> (y: f32[1, 70]) {
           %0 = matmul %x, %w : f32[1, 70]
           return %0
         }",
    ),
    case(
        Family::Products,
        "product",
        "70x40x50",
        SUMS,
        false,
        "graph @g(%x: f32[70, 40], %w: f32[40, 50]) -> (y: f32[70, 50]) {
           %0 = matmul %x, %w : f32[70, 50]
           return %0
         }",
    ),
    case(
        Family::Products,
        "product of transposed factors",
        "70x45x66",
        SUMS,
        false,
        "graph @g(%x: f32[45, 70], %w: f32[66, 45]) -> (y: f32[70, 66]) {
           %0 = transpose %x {perm = [1, 0]} : f32[70, 45]
           %1 = transpose %w {perm = [1, 0]} : f32[45, 66]
           %2 = matmul %0, %1 : f32[70, 66]
           return %2
         }",
    ),
    case(
        Family::Products,
        "product of many terms, bias, gelu",
        "70x1000x50",
        SUMS,
        false,
        "graph @g(%x: f32[70, 1000], %w: f32[1000, 50], %b: f32[50]) -> (y: f32[70, 50]) {
           %0 = matmul %x, %w : f32[70, 50]
           %1 = add %0, %b : f32[70, 50]
           %2 = gelu %1 : f32[70, 50]
           return %2
         }",
    ),
    case(
        Family::Products,
        "products of a batch",
        "6x20x64x18",
        SUMS,
        false,
        "graph @g(%x: f32[2, 3, 20, 64], %w: f32[3, 64, 18]) -> (y: f32[2, 3, 20, 18]) {
           %0 = matmul %x, %w : f32[2, 3, 20, 18]
           return %0
         }",
    ),
    case(
        Family::Products,
        "product of bf16",
        "70x40x50",
        HALVES,
        false,
        "graph @g(%x: bf16[70, 40], %w: bf16[40, 50]) -> (y: bf16[70, 50]) {
           %0 = matmul %x, %w : bf16[70, 50]
           return %0
         }",
    ),
    case(
        Family::Products,
        "product of f16",
        "70x40x50",
        HALVES,
        false,
        "graph @g(%x: f16[70, 40], %w: f16[40, 50]) -> (y: f16[70, 50]) {
           %0 = matmul %x, %w : f16[70, 50]
           return %0
         }",
    ),
    case(
        Family::Products,
        "convolution",
        "2x6x9x9, 10 kernels of 3x3",
        SUMS,
        false,
        "graph @g(%x: f32[2, 6, 9, 9], %w: f32[10, 6, 3, 3]) -> (y: f32[2, 10, 9, 9]) {
           %0 = conv %x, %w {pads_before = [1, 1], pads_after = [1, 1]} : f32[2, 10, 9, 9]
           return %0
         }",
    ),
    case(
        Family::Attention,
        "attention",
        "2 heads, 20 queries, 70 keys of 32",
        SUMS,
        false,
        "graph @g(%q: f32[1, 2, 20, 32], %k: f32[1, 2, 70, 32], %v: f32[1, 2, 70, 32]) -> (y: f32[1, 2, 20, 32]) {
           %0 = attention %q, %k, %v {scale = 0.18} : f32[1, 2, 20, 32]
           return %0
         }",
    ),
    case(
        Family::Attention,
        "linear attention",
        "2 heads, 70 positions, 20 features",
        SUMS,
        false,
        "graph @g(%q: f32[1, 2, 70, 20], %k: f32[1, 2, 70, 20], %v: f32[1, 2, 70, 32]) -> (y: f32[1, 2, 70, 32]) {
           %0 = exp %q : f32[1, 2, 70, 20]
           %1 = exp %k : f32[1, 2, 70, 20]
           %2 = linear_attention %0, %1, %v : f32[1, 2, 70, 32]
           return %2
         }",
    ),
    case(
        Family::Attention,
        "causal linear attention",
        "2 heads, 150 positions, 20 features",
        SUMS,
        false,
        "graph @g(%q: f32[1, 2, 150, 20], %k: f32[1, 2, 150, 20], %v: f32[1, 2, 150, 32]) -> (y: f32[1, 2, 150, 32]) {
           %0 = exp %q : f32[1, 2, 150, 20]
           %1 = exp %k : f32[1, 2, 150, 20]
           %2 = linear_attention %0, %1, %v {causal = true} : f32[1, 2, 150, 32]
           return %2
         }",
    ),
    case(
        Family::Attention,
        "attention by random features",
        "2 heads, 70 positions, 20 features",
        SUMS,
        false,
        "graph @g(%q: f32[1, 2, 70, 8], %k: f32[1, 2, 70, 8], %v: f32[1, 2, 70, 32], %w: f32[8, 20]) -> (y: f32[1, 2, 70, 32]) {
           %0 = feature_attention %q, %k, %v, %w, %w {map = exp-by-exponents, key_norm = 0.5, least = 0.01} : f32[1, 2, 70, 32]
           return %0
         }",
    ),
    case(
        Family::Attention,
        "attention",
        "8x12 heads, 512 keys of 64",
        SUMS,
        true,
        "graph @g(%q: f32[8, 12, 512, 64], %k: f32[8, 12, 512, 64], %v: f32[8, 12, 512, 64]) -> (y: f32[8, 12, 512, 64]) {
           %0 = attention %q, %k, %v {scale = 0.125} : f32[8, 12, 512, 64]
           return %0
         }",
    ),
    case(
        Family::Sketches,
        "low rank",
        "20x96x96, rank 8",
        SUMS,
        false,
        "graph @g(%x: f32[20, 96], %a: f32[96, 8], %b: f32[8, 96], %c: f32[96]) -> (y: f32[20, 96]) {
           %0 = matmul %x, %a : f32[20, 8]
           %1 = matmul %0, %b : f32[20, 96]
           %2 = add %1, %c : f32[20, 96]
           return %2
         }",
    ),
    case(
        Family::Sketches,
        "two terms of random signs",
        "20x96x96, rank 8",
        SUMS,
        false,
        "graph @g(%x: f32[20, 96], %s: f32[96, 8], %u: f32[8, 96], %v: f32[96, 8], %t: f32[8, 96]) -> (y: f32[20, 96]) {
           %0 = matmul %x, %s : f32[20, 8]
           %1 = matmul %0, %u : f32[20, 96]
           %2 = matmul %x, %v : f32[20, 8]
           %3 = matmul %2, %t : f32[20, 96]
           %4 = add %1, %3 : f32[20, 96]
           return %4
         }",
    ),
    case(
        Family::Sketches,
        "low rank",
        "64x8192x8192, rank 64",
        SUMS,
        true,
        "graph @g(%x: f32[64, 8192], %a: f32[8192, 64], %b: f32[64, 8192]) -> (y: f32[64, 8192]) {
           %0 = matmul %x, %a : f32[64, 64]
           %1 = matmul %0, %b : f32[64, 8192]
           return %1
         }",
    ),
    case(
        Family::Sketches,
        "the product that it stands for",
        "64x8192x8192",
        SUMS,
        true,
        "graph @g(%x: f32[64, 8192], %w: f32[8192, 8192]) -> (y: f32[64, 8192]) {
           %0 = matmul %x, %w : f32[64, 8192]
           return %0
         }",
    ),
    case(
        Family::Sketches,
        "Hadamard transform",
        "4x16384",
        SUMS,
        false,
        "graph @g(%x: f32[4, 16384]) -> (y: f32[4, 16384]) {
           %0 = hadamard %x : f32[4, 16384]
           return %0
         }",
    ),
    case(
        Family::LargeProducts,
        "product",
        "2048x2048x2048",
        SUMS,
        true,
        "graph @g(%x: f32[2048, 2048], %w: f32[2048, 2048]) -> (y: f32[2048, 2048]) {
           %0 = matmul %x, %w : f32[2048, 2048]
           return %0
         }",
    ),
    case(
        Family::LargeProducts,
        "product of bf16",
        "4096x4096x4096",
        HALVES,
        true,
        "graph @g(%x: bf16[4096, 4096], %w: bf16[4096, 4096]) -> (y: bf16[4096, 4096]) {
           %0 = matmul %x, %w : bf16[4096, 4096]
           return %0
         }",
    ),
];
