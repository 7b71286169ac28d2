//! Prints the speed of every family on one thread, beside the peak of fused multiply-adds measured in the same run.
//!
//! `cargo run --release -p margay-kernels-cpu --example speed [CLASS] [FILTER]`; times are processor time of the
//! thread, the tenth percentile of repetitions.

use std::time::Duration;

use margay_kernels_cpu::abi::SCRATCH_HEADER_BYTES;
use margay_kernels_cpu::{CpuTarget, lookup};
use margay_loops::{
    Activation, Attention, AttentionGradient, BatchAxis, Conv, ConvKernelGradient, Epilogue,
    FeatureAttention, FeatureMap, Hadamard, KernelCall, LinearAttention, MatLayout, MatMul, Precision,
    ProductTypes,
};
use margay_tensor::DType;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let class = arguments.next().unwrap_or_else(|| "native".to_owned());
    let filter = arguments.next().unwrap_or_default();
    let target = match CpuTarget::by_name_for(&class, Precision::Bf16) {
        Ok(target) if target.supported_here() => target,
        Ok(_) => return println!("this machine is not {class}"),
        Err(e) => return println!("{e}"),
    };
    println!("{:<58} {:>10} {:>8} {:>6}", target.name(), "us", "GF/s", "peak");
    for call in calls() {
        let name = name(&call);
        if !name.contains(&filter) {
            continue;
        }
        let peak = peak_flops();
        let seconds = measure(&target, &call);
        let flops = call.flops() as f64 / seconds;
        println!("{name:<58} {:>10.1} {:>8.1} {:>5.0}%", seconds * 1e6, flops / 1e9, 100.0 * flops / peak);
    }
    println!("peak {:.1} GF/s", peak_flops() / 1e9);
}

/// The text of a call, with the operands that lie transposed.
fn name(call: &KernelCall) -> String {
    let KernelCall::MatMul(c) = call else { return call.to_string() };
    let sides = [(" transposed-a", c.a), (" transposed-b", c.b)];
    let transposed = sides.iter().filter(|(_, layout)| layout.col_stride != 1).map(|(name, _)| *name);
    call.to_string() + &transposed.collect::<String>()
}

fn calls() -> Vec<KernelCall> {
    let mut calls = Vec::new();
    let plain = Epilogue::default();
    let gelu = Epilogue {
        bias: true,
        activation: Some(Activation::GeluErf),
        residual: false,
        residual_first: false,
        ..Epilogue::default()
    };
    for [m, n, k] in [
        [128, 768, 768],
        [128, 3072, 768],
        [128, 768, 3072],
        [512, 1024, 1024],
        [128, 32, 768],
        [128, 64, 768],
        [128, 768, 64],
        [128, 96, 768],
        [128, 768, 96],
        [32, 4096, 4096],
        [32, 8192, 8192],
        [32, 32, 8192],
        [32, 8192, 32],
        [32, 384, 8192],
        [32, 8192, 384],
        [8, 4096, 4096],
        [4, 4096, 4096],
        [1, 4096, 4096],
        [1, 8192, 8192],
        [1024, 1024, 1024],
    ] {
        calls.push(product([m, n, k], true, plain));
    }
    calls.push(product([128, 3072, 768], true, gelu));
    calls.push(product([128, 768, 96], true, gelu));
    for sides in [[false, false], [false, true], [true, false], [true, true]] {
        calls.push(transposed(product([128, 768, 768], false, plain), sides));
        calls.push(transposed(product([1024, 768, 768], false, plain), sides));
    }
    for sides in [[false, false], [false, true]] {
        calls.push(transposed(product([32, 8192, 8192], false, plain), sides));
        calls.push(transposed(product([64, 1024, 1024], false, plain), sides));
    }
    calls.push(transposed(product([8192, 8192, 32], false, plain), [true, false]));
    calls.push(transposed(product([1024, 3072, 768], false, plain), [true, false]));
    calls.push(transposed(product([512, 1024, 1024], false, plain), [false, true]));
    for m in [1, 4, 8] {
        calls.push(product([m, 4096, 4096], false, plain));
        calls.push(transposed(product([m, 4096, 4096], false, plain), [false, true]));
    }
    for precision in [Precision::Bf16, Precision::Int8, Precision::Int4] {
        for dims in [
            [128, 768, 768],
            [128, 3072, 768],
            [128, 768, 3072],
            [512, 1024, 1024],
            [32, 8192, 8192],
            [16, 8192, 8192],
            [8, 8192, 8192],
            [6, 8192, 8192],
            [4, 8192, 8192],
            [1, 8192, 8192],
            [1, 768, 768],
        ] {
            calls.push(narrow(product(dims, true, plain), precision));
        }
    }
    if let KernelCall::MatMul(mut c) = transposed(product([128, 128, 64], false, plain), [false, true]) {
        c.batch = vec![BatchAxis { extent: 12, a: 128 * 64, b: 128 * 64, c: 128 * 128 }];
        calls.push(KernelCall::MatMul(c));
    }
    for (n, causal) in [(128, false), (512, false), (2048, false), (8192, false), (2048, true)] {
        let (heads, d) = (8, 64);
        let strides = [n * heads * d, d, heads * d];
        calls.push(KernelCall::Attention(Attention {
            dtype: DType::F32,
            batch: 1,
            heads,
            kv_heads: heads,
            q_len: n,
            kv_len: n,
            qk_dim: d,
            v_dim: d,
            scale_bits: 0.125f32.to_bits(),
            q: strides,
            k: strides,
            v: strides,
            o: strides,
            mask: None,
            causal,
            log_sum_exp: false,
        }));
        calls.push(KernelCall::AttentionGradient(AttentionGradient {
            dtype: DType::F32,
            batch: 1,
            heads,
            kv_heads: heads,
            q_len: n,
            kv_len: n,
            qk_dim: d,
            v_dim: d,
            scale_bits: 0.125f32.to_bits(),
            q: strides,
            k: strides,
            v: strides,
            d_o: strides,
            mask: None,
            causal,
            dq: strides,
            dk: strides,
            dv: strides,
        }));
    }
    for (rows, len) in [(65_536, 64), (4096, 1024), (256, 16_384)] {
        calls.push(KernelCall::Hadamard(Hadamard { rows, len }));
    }
    for (n, features, causal) in [
        (512, 128, false),
        (2048, 128, false),
        (8192, 64, false),
        (8192, 128, false),
        (8192, 256, false),
        (8192, 128, true),
    ] {
        let (heads, d) = (8, 64);
        let wide = [n * heads * features, features, heads * features];
        let strides = [n * heads * d, d, heads * d];
        calls.push(KernelCall::LinearAttention(LinearAttention {
            dtype: DType::F32,
            batch: 1,
            heads,
            q_len: n,
            kv_len: n,
            features,
            v_dim: d,
            epsilon_bits: 0,
            causal,
            q: wide,
            k: wide,
            v: strides,
            o: strides,
        }));
    }
    for (n, features, map, causal) in [
        (2048, 128, FeatureMap::ExpByExponents, false),
        (8192, 128, FeatureMap::ExpByExponents, false),
        (8192, 256, FeatureMap::ExpByExponents, false),
        (8192, 256, FeatureMap::Relu, false),
        (8192, 256, FeatureMap::Exp, true),
    ] {
        let (heads, d) = (8, 64);
        let strides = [n * heads * d, d, heads * d];
        calls.push(KernelCall::FeatureAttention(FeatureAttention {
            dtype: DType::F32,
            batch: 1,
            heads,
            q_len: n,
            kv_len: n,
            dim: d,
            features,
            v_dim: d,
            map,
            query_norm_bits: 0,
            key_norm_bits: if map == FeatureMap::Relu { 0 } else { 0.5f32.to_bits() },
            least_bits: 1e-6f32.to_bits(),
            epsilon_bits: 0,
            causal,
            q: strides,
            k: strides,
            v: strides,
            o: strides,
            query_directions: [0, features, 1],
            key_directions: [0, features, 1],
            mask: None,
            weights: None,
        }));
    }
    for batch in [1, 8] {
        for (channels, size) in [(64, 56), (128, 28), (256, 14), (512, 7)] {
            calls.push(conv(batch, [channels, channels], size, 3, 1, 1));
            calls.push(conv(batch, [channels, 4 * channels], size, 1, 1, 1));
            calls.push(conv(batch, [4 * channels, channels], size, 1, 1, 1));
        }
        calls.push(conv(batch, [128, 128], 56, 3, 2, 1));
        calls.push(conv(batch, [256, 512], 56, 1, 2, 1));
        calls.push(conv(batch, [3, 64], 224, 7, 2, 1));
        calls.push(conv(batch, [128, 128], 56, 3, 1, 128));
        calls.push(conv(batch, [256, 256], 28, 3, 2, 256));
    }
    let gradient = |call: &KernelCall| match call {
        KernelCall::Conv(c) => {
            Some(KernelCall::ConvKernelGradient(ConvKernelGradient { forward: c.clone() }))
        }
        _ => None,
    };
    calls.extend(calls.iter().filter_map(gradient).collect::<Vec<_>>());
    calls
}

fn product([m, n, k]: [usize; 3], packed: bool, epilogue: Epilogue) -> KernelCall {
    KernelCall::MatMul(MatMul {
        m,
        n,
        k,
        batch: Vec::new(),
        a: MatLayout { row_stride: k, col_stride: 1 },
        b: MatLayout { row_stride: n, col_stride: 1 },
        c_row_stride: n,
        b_packed: packed,
        types: ProductTypes::F32,
        epilogue,
    })
}

/// The same product of operands that lie transposed.
fn transposed(call: KernelCall, [a, b]: [bool; 2]) -> KernelCall {
    let KernelCall::MatMul(mut c) = call else { return call };
    if a {
        c.a = MatLayout { row_stride: 1, col_stride: c.m };
    }
    if b {
        c.b = MatLayout { row_stride: 1, col_stride: c.k };
    }
    KernelCall::MatMul(c)
}

/// The same product with a narrow constant.
fn narrow(call: KernelCall, precision: Precision) -> KernelCall {
    let KernelCall::MatMul(c) = call else { return call };
    KernelCall::MatMul(MatMul { types: precision.types(), ..c })
}

fn conv(
    batch: usize,
    [inner, outer]: [usize; 2],
    size: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
) -> KernelCall {
    let pad = kernel / 2;
    let out = (size + 2 * pad - kernel) / stride + 1;
    KernelCall::Conv(Conv {
        channels_last: true,
        types: ProductTypes::F32,
        batch,
        in_channels: inner,
        out_channels: outer,
        groups,
        in_size: [size; 2],
        out_size: [out; 2],
        kernel: [kernel; 2],
        strides: [stride; 2],
        pads: [pad; 2],
        dilations: [1; 2],
        k_packed: true,
        zero: false,
        epilogue: Epilogue::default(),
    })
}

/// Elements of each argument of a call, packed ones excepted.
fn lengths(call: &KernelCall) -> Vec<usize> {
    let last = |(extent, stride): &(usize, usize)| extent.saturating_sub(1) * stride;
    call.args().iter().map(|arg| arg.axes.iter().map(last).sum::<usize>() + 1).collect()
}

/// Seconds of one call.
fn measure(target: &CpuTarget, call: &KernelCall) -> f64 {
    let prepared = target.prepare(call).expect("a supported call");
    let mut sizes: Vec<usize> = lengths(call).iter().map(|n| 4 * n).collect();
    for packed in &prepared.needs.packed {
        sizes[packed.operand] = packed.bytes;
    }
    sizes.push(prepared.needs.workspace_bytes);
    sizes.push(SCRATCH_HEADER_BYTES + prepared.scratch_bytes);
    let mut buffers: Vec<Vec<[f32; 16]>> = sizes
        .iter()
        .map(|bytes| {
            let row = std::array::from_fn(|i| 0.01 * i as f32 - 0.07);
            vec![row; bytes / 64 + 2]
        })
        .collect();
    let aligned = |b: &mut Vec<[f32; 16]>| {
        let at = b.as_mut_ptr().cast::<u8>();
        at.wrapping_add(at.align_offset(64))
    };
    let mut args: Vec<*mut u8> = buffers.iter_mut().map(aligned).collect();
    let scratch = args.pop().expect("scratch is last");
    let run = || {
        for phase in &prepared.phases {
            let kernel = lookup(phase.kernel).expect("a prepared kernel").function;
            // SAFETY: arguments and scratch have the sizes of the call, and the class is supported here.
            unsafe { kernel(phase.params.as_ptr(), args.as_ptr(), scratch, 0, phase.items as u64) }
        }
    };
    let mut times = Vec::new();
    let start = thread_time();
    while thread_time() - start < Duration::from_millis(250) || times.len() < 12 {
        let before = thread_time();
        run();
        times.push((thread_time() - before).as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 10]
}

fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every system this example is for; `time` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Operations per second of independent fused multiply-adds in registers.
fn peak_flops() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        let mut best = 0.0f64;
        for _ in 0..20 {
            const ROUNDS: u64 = 20_000;
            let before = thread_time();
            // SAFETY: the processor has AVX-512.
            unsafe { multiply_add(ROUNDS) };
            let seconds = (thread_time() - before).as_secs_f64();
            best = best.max((ROUNDS * 24 * 16 * 2) as f64 / seconds);
        }
        return best;
    }
    f64::NAN
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn multiply_add(rounds: u64) {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(std::hint::black_box(0.999)), _mm512_set1_ps(std::hint::black_box(1e-7)));
    let mut sums = [_mm512_set1_ps(1.0); 24];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|s| *s = _mm512_fmadd_ps(*s, a, b));
    }
    std::hint::black_box(sums);
}
