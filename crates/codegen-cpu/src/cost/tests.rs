//! What is predicted: order, limits, and a table of what was seen.

use margay_loops::{Activation, BatchAxis, MatLayout, Operations, ProductTypes};
use margay_tensor::random::Philox;

use super::*;

fn model() -> CostModel {
    CostModel::builtin("x86-64-v4").unwrap()
}

fn matmul(m: usize, n: usize, k: usize) -> MatMul {
    MatMul {
        m,
        n,
        k,
        batch: vec![],
        a: MatLayout { row_stride: k, col_stride: 1 },
        b: MatLayout { row_stride: n, col_stride: 1 },
        c_row_stride: n,
        b_packed: true,
        types: ProductTypes::F32,
        epilogue: Epilogue::default(),
    }
}

fn conv(channels: [usize; 2], size: usize, kernel: usize, groups: usize) -> Conv {
    Conv {
        channels_last: true,
        batch: 1,
        in_channels: channels[0],
        out_channels: channels[1],
        groups,
        in_size: [size, size],
        out_size: [size, size],
        kernel: [kernel, kernel],
        strides: [1, 1],
        pads: [kernel / 2, kernel / 2],
        dilations: [1, 1],
        k_packed: true,
        zero: false,
        types: ProductTypes::F32,
        epilogue: Epilogue::default(),
    }
}

fn attention(heads: usize, len: usize, dim: usize) -> Attention {
    Attention {
        dtype: DType::F32,
        batch: 1,
        heads,
        kv_heads: heads,
        q_len: len,
        kv_len: len,
        qk_dim: dim,
        v_dim: dim,
        scale_bits: 1f32.to_bits(),
        q: [heads * len * dim, len * dim, dim],
        k: [heads * len * dim, len * dim, dim],
        v: [heads * len * dim, len * dim, dim],
        o: [heads * len * dim, len * dim, dim],
        mask: None,
        causal: false,
        log_sum_exp: false,
    }
}

fn linear_attention(heads: usize, len: usize, features: usize, causal: bool) -> LinearAttention {
    LinearAttention {
        dtype: DType::F32,
        batch: 1,
        heads,
        q_len: len,
        kv_len: len,
        features,
        v_dim: 64,
        epsilon_bits: 0,
        causal,
        q: [heads * len * features, len * features, features],
        k: [heads * len * features, len * features, features],
        v: [heads * len * 64, len * 64, 64],
        o: [heads * len * 64, len * 64, 64],
    }
}

fn feature_attention(heads: usize, len: usize, features: usize, causal: bool) -> FeatureAttention {
    FeatureAttention {
        dtype: DType::F32,
        batch: 1,
        heads,
        q_len: len,
        kv_len: len,
        dim: 64,
        features,
        v_dim: 64,
        map: if causal { FeatureMap::Exp } else { FeatureMap::ExpByExponents },
        query_norm_bits: 0,
        key_norm_bits: 0,
        least_bits: 0,
        epsilon_bits: 0,
        causal,
        q: [heads * len * 64, len * 64, 64],
        k: [heads * len * 64, len * 64, 64],
        v: [heads * len * 64, len * 64, 64],
        o: [heads * len * 64, len * 64, 64],
        query_directions: [0, features, 1],
        key_directions: [0, features, 1],
        mask: None,
        weights: None,
    }
}

fn milliseconds(call: &MatMul, threads: usize) -> f64 {
    model().seconds(&KernelCall::MatMul(call.clone()), threads) * 1e3
}

#[test]
fn every_class_has_a_model() {
    for class in CostModel::classes() {
        let model = CostModel::builtin(class).unwrap();
        assert!(model.name.starts_with(class), "{}", model.name);
    }
    assert_eq!(CostModel::builtin("z80"), None);
}

#[test]
fn files_are_checked() {
    let text = BUILTIN[2].1;
    for (from, to, expected) in [
        (
            "conv = 215.0",
            "conv = 0",
            "cost model: `gflops.conv` is out of range: expected a finite number above 0",
        ),
        ("padding = 16", "padding = 0", "cost model: `padding` is out of range"),
        ("thread-efficiency = 0.95", "thread-efficiency = 2", "cost model: `thread-efficiency`"),
        ("region-us = 0.5", "region-us = nan", "cost model: `region-us` is out of range"),
        ("conv = 215.0", "convs = 215.0", "cost model: TOML parse error at line 18, column 1\n"),
    ] {
        assert!(text.contains(from));
        let message = CostModel::from_toml(&text.replace(from, to)).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{to}: {message}");
    }
}

/// Products of a few rows overlap arithmetic and memory, which the sum of both does not know.
///
/// Milliseconds of one Zen 5 core with weights in cache or, where they are large, in memory.
#[test]
fn predictions_are_near_what_was_seen() {
    for (m, n, k, seen) in [
        (128, 768, 768, 0.63),
        (128, 3072, 768, 2.80),
        (128, 768, 3072, 2.78),
        (512, 1024, 1024, 5.13),
        (1024, 1024, 1024, 10.5),
        (32, 4096, 4096, 5.43),
        (8, 4096, 4096, 2.10),
        (1, 4096, 4096, 2.21),
        (1, 8192, 8192, 9.36),
    ] {
        let ratio = milliseconds(&matmul(m, n, k), 1) / seen;
        assert!((0.8..1.6).contains(&ratio), "{m} x {n} x {k}: {ratio}");
    }
    let attention = model().seconds(&KernelCall::Attention(attention(8, 2048, 64)), 1) * 1e3;
    assert!((attention / 43.5 - 1.0).abs() < 0.15, "{attention}");
    for (causal, seen) in [(false, 15.1), (true, 31.1)] {
        let call = KernelCall::LinearAttention(linear_attention(8, 8192, 128, causal));
        let ratio = model().seconds(&call, 1) * 1e3 / seen;
        assert!((0.75..1.3).contains(&ratio), "linear attention, causal {causal}: {ratio}");
    }
    let conv = model().seconds(&KernelCall::Conv(conv([128, 128], 28, 3, 1)), 1);
    let rate = 2.0 * 128.0 * 128.0 * 9.0 * 784.0 / conv * 1e-9;
    assert!((180.0..225.0).contains(&rate), "{rate}");
}

#[test]
fn low_rank_pays_as_it_should() {
    let speedup = |m, n, k, rank| {
        let pair = milliseconds(&matmul(m, rank, k), 1) + milliseconds(&matmul(m, n, rank), 1);
        milliseconds(&matmul(m, n, k), 1) / pair
    };
    for (rank, expected) in [(192, 2.0), (96, 4.0), (384, 1.0)] {
        let found = speedup(128, 768, 768, rank);
        assert!((found / expected - 1.0).abs() < 0.12, "rank {rank}: {found}");
    }
    assert!(speedup(128, 768, 768, 400) < 1.0);
    assert!(speedup(1, 4096, 4096, 256) > 7.0);
}

#[test]
fn extents_count_in_multiples_of_16() {
    let model = model();
    let ranks = |k| model.matmul(&matmul(128, 768, k)).arithmetic;
    assert_eq!(ranks(24), ranks(32));
    assert!((ranks(33) / ranks(32) - 1.5).abs() < 0.01);
    let (one, four) = (milliseconds(&matmul(64, 65, 64), 1), milliseconds(&matmul(64, 65, 64), 4));
    let (whole_one, whole_four) =
        (milliseconds(&matmul(64, 80, 64), 1), milliseconds(&matmul(64, 80, 64), 4));
    assert!(one > 0.9 * whole_one && four > 0.9 * whole_four);
    let channels = |n| model.matmul(&matmul(128, n, 768)).arithmetic;
    assert_eq!(channels(40), channels(48));
    let conv_load = |filters| model.conv(&conv([64, filters], 7, 3, 1)).arithmetic;
    assert_eq!(conv_load(64), seconds(2 * 64 * 64 * 9 * 49, model.gflops.conv));
    assert_eq!(conv_load(40), conv_load(48));
    assert_eq!(
        model.conv(&conv([64, 64], 7, 3, 64)).arithmetic,
        seconds(2 * 64 * 9 * 49, model.gflops.depthwise)
    );
}

#[test]
fn one_row_is_bound_by_memory() {
    let call = KernelCall::MatMul(matmul(1, 4096, 4096));
    let model = model();
    let mut faster = model.clone();
    faster.gflops.matmul_first_row *= 2.0;
    let (before, after) = (model.seconds(&call, 1), faster.seconds(&call, 1));
    assert!(after > 0.9 * before, "{after} {before}");
    let half = milliseconds(&matmul(1, 2048, 4096), 1) / (before * 1e3);
    assert!((half - 0.5).abs() < 0.01, "{half}");
    // More threads than memory serves do not help it.
    assert!(model.seconds(&call, 64) > 0.9 * (4096.0 * 4096.0 * 4.0) / 60e9);
}

#[test]
fn epilogues_and_batches_count() {
    let plain = matmul(128, 768, 768);
    let with = |epilogue| milliseconds(&MatMul { epilogue, ..plain.clone() }, 1);
    let none = milliseconds(&plain, 1);
    let activation = |a| Epilogue { activation: Some(a), ..Epilogue::default() };
    assert_eq!(with(activation(Activation::Relu)), none);
    assert!(with(activation(Activation::GeluErf)) > none + 0.03);
    assert!(with(Epilogue { residual: true, ..Epilogue::default() }) > none);
    let batch = vec![BatchAxis { extent: 8, a: 1, b: 0, c: 1 }];
    let eight = milliseconds(&MatMul { batch, ..plain.clone() }, 1);
    assert!(eight < 8.0 * none && eight > 7.0 * none, "{eight} {none}"); // the constant is read once
    let computed = MatMul { b_packed: false, ..plain };
    assert!(milliseconds(&computed, 1) > none);
}

#[test]
fn threads_help_up_to_an_item() {
    let large = matmul(512, 1024, 1024);
    let ratio = milliseconds(&large, 1) / milliseconds(&large, 4);
    assert!((3.4..4.0).contains(&ratio), "{ratio}");
    let small = matmul(32, 32, 384);
    let ratio = milliseconds(&small, 1) / milliseconds(&small, 16);
    assert!((1.0..1.3).contains(&ratio), "{ratio}");
    assert_eq!(milliseconds(&large, 0), milliseconds(&large, 1));
}

#[test]
fn loops_count_bytes_and_operations() {
    let model = model();
    let region = 0.5e-6;
    let none = Operations::default();
    assert_eq!(model.loop_seconds(0, none, 1), region);
    let streamed = model.loop_seconds(1 << 30, none, 1);
    assert!((streamed / ((1u64 << 30) as f64 / 32e9) - 1.0).abs() < 0.05, "{streamed}");
    let evaluations = |evaluations| Operations { evaluations, ..none };
    let gelu = model.loop_seconds(2 * 4 * 128 * 3072, evaluations(128 * 3072), 1) * 1e6;
    assert!((100.0..260.0).contains(&gelu), "{gelu}");
    let cheap = Operations { cheap: 1 << 20, ..none };
    assert!(model.loop_seconds(8, evaluations(1 << 20), 1) > model.loop_seconds(8, cheap, 1));
}

#[test]
fn predictions_never_fall_when_an_extent_grows() {
    let mut draws = vec![0.0; 6000];
    Philox::new(11, 0).fill_uniform_f64(0, &mut draws);
    let mut next = draws.into_iter();
    let mut extent = |most: f64| most.powf(next.next().unwrap()) as usize;
    let model = model();
    for _ in 0..300 {
        let threads = extent(32.0);
        let base = [extent(600.0), extent(5000.0), extent(5000.0)];
        let shape = [extent(512.0), extent(512.0), extent(60.0), 2 * extent(4.0) + 1];
        let heads = [extent(16.0), extent(2000.0), extent(128.0)];
        let more = 1 + extent(40.0);
        let grown = |list: &[usize], i: usize| {
            let mut list = list.to_vec();
            list[i] += more;
            list
        };
        let products =
            |l: &[usize], b_packed| KernelCall::MatMul(MatMul { b_packed, ..matmul(l[0], l[1], l[2]) });
        let convs = |l: &[usize]| KernelCall::Conv(conv([l[0], l[1]], l[2], l[3], 1));
        let attentions = |l: &[usize]| KernelCall::Attention(attention(l[0], l[1], l[2]));
        let linear =
            |l: &[usize]| KernelCall::LinearAttention(linear_attention(l[0], l[1], l[2], more % 2 == 0));
        let made =
            |l: &[usize]| KernelCall::FeatureAttention(feature_attention(l[0], l[1], l[2], more % 2 == 0));
        let rises = |small: KernelCall, large: KernelCall| {
            let (a, b) = (model.seconds(&small, threads), model.seconds(&large, threads));
            assert!(a <= b && a > 0.0, "{small} {a}, {large} {b}");
            assert!(model.seconds(&small, threads + 1) <= a, "{small}");
        };
        for i in 0..3 {
            rises(products(&base, true), products(&grown(&base, i), true));
            rises(products(&base, false), products(&grown(&base, i), false));
            rises(attentions(&heads), attentions(&grown(&heads, i)));
            rises(linear(&heads), linear(&grown(&heads, i)));
            rises(made(&heads), made(&grown(&heads, i)));
        }
        (0..4).for_each(|i| rises(convs(&shape), convs(&grown(&shape, i))));
    }
}

#[test]
fn absurd_extents_do_not_overflow() {
    let huge = usize::MAX / 2;
    assert!(milliseconds(&matmul(huge, huge, huge), 1).is_finite());
    assert!(milliseconds(&matmul(0, 0, 0), 1) > 0.0);
}

/// What drawn signs take of the time of stored ones.
fn drawn_over_stored([m, n, k]: [usize; 3], axis: usize, range: [usize; 2]) -> f64 {
    let stored = matmul(m, n, k);
    let right = margay_tensor::Storage::with_signs(margay_tensor::Signs::new(axis, range, [7, 5], 0.25));
    let drawn = MatMul { types: ProductTypes { right, ..ProductTypes::F32 }, ..stored.clone() };
    milliseconds(&drawn, 1) / milliseconds(&stored, 1)
}

#[test]
fn drawn_signs_pay_where_they_fill_panels() {
    let columns = |m, half| drawn_over_stored([m, 2 * half, 8192], 1, [half, 2 * half]);
    let terms = |m, half| drawn_over_stored([m, 8192, 2 * half], 0, [0, half]);
    for m in [1, 16, 64, 256] {
        // Sixteen columns beside sixteen are two panels in place of one.
        assert!(columns(m, 16) > 1.2, "{m} rows: {}", columns(m, 16));
        for half in [32, 64, 512] {
            assert!(columns(m, half) < 1.05 && terms(m, half) < 1.05, "{m} rows, {half} of each");
        }
    }
    // Half of the bytes, where these take the time.
    assert!(columns(1, 512) < 0.75 && terms(1, 512) < 0.75);
    assert!(columns(256, 512) > 0.9);
}
