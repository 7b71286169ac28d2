//! Predicted times, from a file of rates per class of processors.
//!
//! A call is predicted to take
//!
//! ```text
//! region + spread(Σ operations / rate) + constants / memory + computed / cache
//! ```
//!
//! - *Operations* count by class, each with its rate. The first row of a product with a constant counts at
//!   `matmul-first-row`, the others at `matmul-packed`, or at the rate of their precision: a matrix–vector product
//!   cannot keep the arithmetic busy. Columns and terms of a product, and output channels of a convolution, count in
//!   multiples of `padding`. An
//!   activation other than ReLU counts as one evaluation per element.
//! - `spread` divides by `1 + (threads - 1) · thread-efficiency`, but no piece is smaller than `item-us`.
//! - *Constants* are read once per run and come from memory, since those of a whole model seldom fit the
//!   cache. *Computed* tensors come from the cache up to `cache-bytes` per call, the rest from memory.
//!   Bandwidth grows with the threads, that of memory up to `memory-limit-gbps`.
//!
//! Terms are added, not maximised: kernels do not overlap them fully, and sums stay comparable where one term
//! dominates. Predictions never fall when an extent grows. They choose between candidates and repeat on every
//! machine; they are no measurement, and nothing here reads a clock. Deliberately absent: contention,
//! frequencies, and what neighbouring calls leave in the cache.

use margay_loops::{
    Activation, Attention, AttentionGradient, CallArg, Conv, Epilogue, KernelCall, LinearAttention, MatMul,
};
use margay_tensor::DType;
use serde::Deserialize;

/// A cost model cannot be read (the file's fault).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CostError {
    /// The text is not TOML, or a key is unknown, missing or of another type.
    #[error("cost model: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A number is outside its range.
    #[error("cost model: `{key}` is out of range: expected {expected}, found {found}")]
    Value {
        /// The key, with the table it lies in.
        key: &'static str,
        /// Its range.
        expected: &'static str,
        /// The number.
        found: f64,
    },
}

/// Bytes of an element.
const F32: u64 = 4;

const BUILTIN: &[(&str, &str)] = &[
    ("portable", include_str!("../cost/portable.toml")),
    ("x86-64-v3", include_str!("../cost/x86-64-v3.toml")),
    ("x86-64-v4", include_str!("../cost/x86-64-v4.toml")),
    ("x86-64-v4-bf16", include_str!("../cost/x86-64-v4-bf16.toml")),
];

/// How fast one class of processors is predicted to be.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CostModel {
    /// Class and version, as plans record them.
    pub name: String,
    padding: usize,
    region_us: f64,
    item_us: f64,
    thread_efficiency: f64,
    gflops: Rates,
    bandwidth: Bandwidth,
}

/// Operations, in units of 10^9 per second, of one thread.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Rates {
    matmul_packed: f64,
    matmul_bf16: f64,
    matmul_int8: f64,
    matmul_first_row: f64,
    matmul_unpacked: f64,
    conv: f64,
    depthwise: f64,
    attention: f64,
    elementwise: f64,
    gevaluations: f64,
}

/// Bytes, in units of 10^9 per second.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Bandwidth {
    cache_bytes: u64,
    cache_gbps: f64,
    memory_gbps: f64,
    memory_limit_gbps: f64,
}

/// What a call does: seconds of arithmetic on one thread, and bytes.
#[derive(Clone, Copy, Default)]
struct Load {
    arithmetic: f64,
    constant_bytes: u64,
    computed_bytes: u64,
}

impl CostModel {
    /// The classes that [`builtin`](CostModel::builtin) knows.
    pub fn classes() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|(class, _)| *class)
    }

    /// The model of a processor class.
    pub fn builtin(class: &str) -> Option<CostModel> {
        let (_, text) = BUILTIN.iter().find(|(name, _)| *name == class)?;
        Some(CostModel::from_toml(text).expect("the cost models of margay are read by a test"))
    }

    /// Reads a model; the files in `cost/` of this crate are examples.
    ///
    /// # Errors
    /// [`CostError::Syntax`] with line and key, and [`CostError::Value`].
    pub fn from_toml(text: &str) -> Result<CostModel, CostError> {
        let model: CostModel = toml::from_str(text)?;
        model.check()?;
        Ok(model)
    }

    /// The predicted time of a call.
    pub fn seconds(&self, call: &KernelCall, threads: usize) -> f64 {
        let load = match call {
            KernelCall::MatMul(call) => self.matmul(call),
            KernelCall::Conv(call) => self.conv(call),
            KernelCall::ConvKernelGradient(call) => self.conv(&call.forward),
            KernelCall::Attention(call) => self.attention(call),
            KernelCall::AttentionGradient(call) => self.attention_gradient(call),
            KernelCall::LinearAttention(call) => self.linear_attention(call),
            // Others pass over their arguments a few times at most.
            other => Load {
                arithmetic: seconds(other.flops(), self.gflops.elementwise),
                constant_bytes: 0,
                computed_bytes: other.args().iter().map(argument_bytes).fold(0, u64::saturating_add),
            },
        };
        self.time(load, threads)
    }

    /// The predicted time of a loop nest of cheap operations (additions, multiplications, comparisons) on
    /// computed tensors: `bytes` read and written, `flops` operations.
    pub fn seconds_elementwise(&self, bytes: u64, flops: u64, threads: usize) -> f64 {
        let arithmetic = seconds(flops, self.gflops.elementwise);
        self.time(Load { arithmetic, computed_bytes: bytes, ..Load::default() }, threads)
    }

    /// The predicted time of a loop nest that evaluates exponentials, error functions and their kin:
    /// `bytes` read and written, one of `evaluations` per element.
    pub fn seconds_transcendental(&self, bytes: u64, evaluations: u64, threads: usize) -> f64 {
        let arithmetic = seconds(evaluations, self.gflops.gevaluations);
        self.time(Load { arithmetic, computed_bytes: bytes, ..Load::default() }, threads)
    }

    fn time(&self, load: Load, threads: usize) -> f64 {
        let speedup = 1.0 + threads.saturating_sub(1) as f64 * self.thread_efficiency;
        let item = load.arithmetic.min(self.item_us * 1e-6);
        let b = &self.bandwidth;
        let memory = (b.memory_gbps * speedup).min(b.memory_limit_gbps);
        let cached = load.computed_bytes.min(b.cache_bytes);
        let streamed = load.constant_bytes.saturating_add(load.computed_bytes - cached);
        self.region_us * 1e-6
            + (load.arithmetic / speedup).max(item)
            + seconds(cached, b.cache_gbps * speedup)
            + seconds(streamed, memory)
    }

    fn matmul(&self, call: &MatMul) -> Load {
        let repeats = product(&call.batch.iter().map(|axis| axis.extent).collect::<Vec<_>>());
        let copies = |stride: fn(&margay_loops::BatchAxis) -> usize| {
            let moving = call.batch.iter().filter(|axis| stride(axis) != 0);
            product(&moving.map(|axis| axis.extent).collect::<Vec<_>>())
        };
        let (n, k) = (self.padded(call.n), self.padded(call.k));
        let row = repeats.saturating_mul(product(&[2, n, k]));
        let rows = |count: usize| row.saturating_mul(count as u64);
        let a = copies(|axis| axis.a).saturating_mul(product(&[call.m, call.k]));
        let b = copies(|axis| axis.b).saturating_mul(product(&[k, n]));
        let c = repeats.saturating_mul(product(&[call.m, call.n]));
        let rates = &self.gflops;
        let (arithmetic, constant_bytes, computed) = if call.b_packed {
            // A constant that is narrower than the left operand is widened on the way.
            let rate = match (call.types.right.dtype, call.types.left_rounded) {
                (DType::F32, _) => rates.matmul_packed,
                (right, left) if right == left => rates.matmul_bf16,
                _ => rates.matmul_int8,
            };
            let first = seconds(rows(call.m.min(1)), rates.matmul_first_row.min(rate));
            let others = seconds(rows(call.m.saturating_sub(1)), rate);
            (first + others, call.types.right.layout(&[k, n]).bytes as u64, a)
        } else {
            // B is read, written in panels, and read again.
            (seconds(rows(call.m), rates.matmul_unpacked), 0, a.saturating_add(b.saturating_mul(3)))
        };
        let mut load = Load { arithmetic, constant_bytes, computed_bytes: computed.saturating_mul(F32) };
        self.add_result(&mut load, c, &call.epilogue);
        load
    }

    fn conv(&self, call: &Conv) -> Load {
        let group = call.in_channels / call.groups.max(1);
        let taps = [call.out_channels, group, call.kernel[0], call.kernel[1]];
        let depthwise = group == 1 && call.groups > 1;
        let pixels = call.out_size[0].saturating_mul(call.out_size[1]);
        let (counted, rate) = if depthwise {
            (call.out_channels, self.gflops.depthwise)
        } else {
            let groups = call.groups.max(1);
            (self.padded(call.out_channels / groups).saturating_mul(groups), self.gflops.conv)
        };
        let flops = product(&[2, call.batch, pixels, counted]).saturating_mul(product(&taps[1..]));
        let input = product(&[call.batch, call.in_channels, call.in_size[0], call.in_size[1]]);
        let mut load = Load {
            arithmetic: seconds(flops, rate),
            constant_bytes: product(&taps).saturating_mul(F32),
            computed_bytes: input.saturating_mul(F32),
        };
        self.add_result(&mut load, product(&[call.batch, call.out_channels, pixels]), &call.epilogue);
        load
    }

    fn attention(&self, call: &Attention) -> Load {
        let both = call.qk_dim.saturating_add(call.v_dim);
        let pairs = Attention::pairs(call.q_len, call.kv_len, call.causal);
        let scores = product(&[call.batch, call.heads]).saturating_mul(pairs);
        let rows = call.q_len.saturating_add(call.kv_len);
        let mask = call.mask.map_or(0, |strides| {
            let extents = [call.batch, call.heads, call.q_len, call.kv_len];
            product(&std::array::from_fn::<_, 4, _>(|i| if strides[i] == 0 { 1 } else { extents[i] }))
        });
        let elements = product(&[call.batch, call.heads, rows, both]).saturating_add(mask);
        Load {
            arithmetic: seconds(scores.saturating_mul(product(&[2, both])), self.gflops.attention),
            constant_bytes: 0,
            computed_bytes: elements.saturating_mul(F32),
        }
    }

    /// Counts at the rate of attention: scores and what they are multiplied with are computed twice, once for queries
    /// and once for keys.
    fn attention_gradient(&self, call: &AttentionGradient) -> Load {
        let pairs = Attention::pairs(call.q_len, call.kv_len, call.causal);
        let products = product(&[4, call.qk_dim]).saturating_add(product(&[3, call.v_dim]));
        let rows = call.q_len.saturating_add(call.kv_len);
        let both = call.qk_dim.saturating_add(call.v_dim);
        let scores = product(&[2, call.batch, call.heads]).saturating_mul(pairs);
        Load {
            arithmetic: seconds(scores.saturating_mul(products), self.gflops.attention),
            constant_bytes: 0,
            computed_bytes: product(&[2, call.batch, call.heads, rows, both]).saturating_mul(F32),
        }
    }

    /// Counts at the rate of attention. A causal one sums its keys twice, and multiplies queries with some keys before
    /// them; the padding stands for how many.
    fn linear_attention(&self, call: &LinearAttention) -> Load {
        let heads = product(&[call.batch, call.heads]);
        let rows = product(&[call.q_len.saturating_add(call.kv_len)]);
        let state = product(&[2, call.features, call.v_dim.saturating_add(1)]);
        let widths = call.features.saturating_add(call.v_dim);
        let more = if call.causal {
            let near = product(&[2, 2, self.padding, widths]);
            product(&[call.q_len]).saturating_mul(state.saturating_add(near))
        } else {
            0
        };
        let flops = heads.saturating_mul(rows.saturating_mul(state).saturating_add(more));
        let elements = heads.saturating_mul(rows).saturating_mul(product(&[widths]));
        Load {
            arithmetic: seconds(flops, self.gflops.attention),
            constant_bytes: 0,
            computed_bytes: elements.saturating_mul(F32),
        }
    }

    /// The result of a call, its residual and its activation.
    fn add_result(&self, load: &mut Load, elements: u64, epilogue: &Epilogue) {
        let passes = 1 + u64::from(epilogue.residual);
        let bytes = elements.saturating_mul(F32 * passes);
        load.computed_bytes = load.computed_bytes.saturating_add(bytes);
        if epilogue.activation.is_some_and(|a| a != Activation::Relu) {
            load.arithmetic += seconds(elements, self.gflops.gevaluations);
        }
    }

    fn padded(&self, extent: usize) -> usize {
        extent.checked_next_multiple_of(self.padding).unwrap_or(extent)
    }

    fn check(&self) -> Result<(), CostError> {
        let (rates, b) = (&self.gflops, &self.bandwidth);
        if self.padding == 0 {
            return Err(CostError::Value { key: "padding", expected: "at least 1", found: 0.0 });
        }
        if !(0.0..=1.0).contains(&self.thread_efficiency) {
            let (key, found) = ("thread-efficiency", self.thread_efficiency);
            return Err(CostError::Value { key, expected: "0 to 1", found });
        }
        for (key, found) in [("region-us", self.region_us), ("item-us", self.item_us)] {
            if !(found.is_finite() && found >= 0.0) {
                return Err(CostError::Value { key, expected: "a finite number from 0", found });
            }
        }
        for (key, found) in [
            ("gflops.matmul-packed", rates.matmul_packed),
            ("gflops.matmul-bf16", rates.matmul_bf16),
            ("gflops.matmul-int8", rates.matmul_int8),
            ("gflops.matmul-first-row", rates.matmul_first_row),
            ("gflops.matmul-unpacked", rates.matmul_unpacked),
            ("gflops.conv", rates.conv),
            ("gflops.depthwise", rates.depthwise),
            ("gflops.attention", rates.attention),
            ("gflops.elementwise", rates.elementwise),
            ("gflops.gevaluations", rates.gevaluations),
            ("bandwidth.cache-gbps", b.cache_gbps),
            ("bandwidth.memory-gbps", b.memory_gbps),
            ("bandwidth.memory-limit-gbps", b.memory_limit_gbps),
        ] {
            if !(found.is_finite() && found > 0.0) {
                return Err(CostError::Value { key, expected: "a finite number above 0", found });
            }
        }
        Ok(())
    }
}

/// Bytes of an argument, each element once.
fn argument_bytes(arg: &CallArg) -> u64 {
    let extents: Vec<usize> = arg.axes.iter().map(|(extent, _)| *extent).collect();
    product(&extents).saturating_mul(arg.dtype.bytes() as u64)
}

/// The time of `count` things at `rate` · 10^9 per second.
fn seconds(count: u64, rate: f64) -> f64 {
    count as f64 / (rate * 1e9)
}

fn product(factors: &[usize]) -> u64 {
    factors.iter().fold(1u64, |all, &f| all.saturating_mul(f as u64))
}

#[cfg(test)]
mod tests {
    use margay_loops::{BatchAxis, MatLayout, ProductTypes};
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
            ("padding = 32", "padding = 0", "cost model: `padding` is out of range"),
            ("thread-efficiency = 0.95", "thread-efficiency = 2", "cost model: `thread-efficiency`"),
            ("region-us = 0.5", "region-us = nan", "cost model: `region-us` is out of range"),
            ("conv = 215.0", "convs = 215.0", "cost model: TOML parse error at line 15, column 1\n"),
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
    fn extents_count_in_multiples_of_32() {
        let model = model();
        let ranks = |k| model.matmul(&matmul(128, 768, k)).arithmetic;
        assert_eq!(ranks(24), ranks(32));
        assert!(ranks(33) > 1.9 * ranks(32));
        let (one, four) = (milliseconds(&matmul(64, 65, 64), 1), milliseconds(&matmul(64, 65, 64), 4));
        let (whole_one, whole_four) =
            (milliseconds(&matmul(64, 96, 64), 1), milliseconds(&matmul(64, 96, 64), 4));
        assert!(one > 0.9 * whole_one && four > 0.9 * whole_four);
        let channels = |n| model.matmul(&matmul(128, n, 768)).arithmetic;
        assert_eq!(channels(40), channels(64));
        let conv_load = |filters| model.conv(&conv([64, filters], 7, 3, 1)).arithmetic;
        assert_eq!(conv_load(64), seconds(2 * 64 * 64 * 9 * 49, model.gflops.conv));
        assert_eq!(conv_load(40), conv_load(64));
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
        assert_eq!(model.seconds_elementwise(0, 0, 1), region);
        let streamed = model.seconds_elementwise(1 << 30, 0, 1);
        assert!((streamed / ((1u64 << 30) as f64 / 32e9) - 1.0).abs() < 0.05, "{streamed}");
        let gelu = model.seconds_transcendental(2 * 4 * 128 * 3072, 128 * 3072, 1) * 1e6;
        assert!((100.0..260.0).contains(&gelu), "{gelu}");
        assert!(model.seconds_transcendental(8, 1 << 20, 1) > model.seconds_elementwise(8, 1 << 20, 1));
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
}
