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
//!   cannot keep the arithmetic busy. Elements of 3 and 4 bits have a first row of their own, which unpacks them, and the
//!   terms and columns of random signs count there too, once for each block of rows. Columns and terms of a product, and output
//!   channels of a convolution, count in multiples of `padding`; columns beside those of random signs, and these, each in whole
//!   panels. An activation other than ReLU counts as one evaluation per element.
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
    Attention, AttentionGradient, CallArg, Conv, Epilogue, FeatureAttention, FeatureMap, KernelCall,
    LinearAttention, MatMul, Operations,
};
use margay_tensor::DType;
use serde::{Deserialize, Serialize};

/// Keys of a block of causal linear attention.
const CAUSAL_BLOCK: usize = 32;

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

/// Columns of a panel of a constant with random signs, which are apart from the others.
const SIGN_PANEL: usize = 32;

/// Rows for which random signs are made once, at most.
const SIGN_ROWS: usize = 140;

/// Keys that causal attention sums up at once.
const FEATURE_SPAN: usize = 256;

/// Bytes of an element.
const F32: u64 = 4;

const BUILTIN: &[(&str, &str)] = &[
    ("portable", include_str!("../cost/portable.toml")),
    ("x86-64-v3", include_str!("../cost/x86-64-v3.toml")),
    ("x86-64-v4", include_str!("../cost/x86-64-v4.toml")),
    ("x86-64-v4-bf16", include_str!("../cost/x86-64-v4-bf16.toml")),
];

/// How fast one class of processors is predicted to be.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
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
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Rates {
    matmul_packed: f64,
    matmul_bf16: f64,
    matmul_int8: f64,
    matmul_int4: f64,
    matmul_bytes: f64,
    matmul_first_row: f64,
    matmul_int4_first_row: f64,
    matmul_unpacked: f64,
    conv: f64,
    depthwise: f64,
    attention: f64,
    elementwise: f64,
    gevaluations: f64,
}

/// Bytes, in units of 10^9 per second.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
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

    /// The text that [`from_toml`](CostModel::from_toml) reads.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("names and finite numbers are TOML")
    }

    /// A number by its key, as in `gflops.conv`; `None` for a key that there is none of.
    pub fn get(&self, key: &str) -> Option<f64> {
        let mut at = &toml::Value::try_from(self).ok()?;
        for part in key.split('.') {
            at = at.get(part)?;
        }
        at.as_float().or_else(|| at.as_integer().map(|n| n as f64))
    }

    /// The model with another number under a key.
    ///
    /// # Errors
    /// [`CostError`] for a key that there is none of, and a number outside its range.
    pub fn with(&self, key: &str, number: f64) -> Result<CostModel, CostError> {
        let mut all = toml::Table::try_from(self).expect("names and finite numbers are TOML");
        let (table, last) = match key.split_once('.') {
            Some((table, last)) => (all.get_mut(table).and_then(toml::Value::as_table_mut), last),
            None => (Some(&mut all), key),
        };
        // A table that there is not is a key that there is not.
        if let Some(table) = table {
            table.insert(last.to_owned(), toml::Value::Float(number));
        } else {
            all.insert(key.to_owned(), toml::Value::Float(number));
        }
        let model: CostModel = all.try_into()?;
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
            KernelCall::FeatureAttention(call) => self.feature_attention(call),
            // They pass over their arguments once or twice.
            KernelCall::Hadamard(_)
            | KernelCall::NonMaxSuppression(_)
            | KernelCall::Pool(_)
            | KernelCall::TopK(_) => Load {
                arithmetic: seconds(call.flops(), self.gflops.elementwise),
                constant_bytes: 0,
                computed_bytes: call.args().iter().map(argument_bytes).fold(0, u64::saturating_add),
            },
        };
        self.time(load, threads)
    }

    /// The predicted time of a loop nest on computed tensors: `bytes` read and written.
    pub fn loop_seconds(&self, bytes: u64, operations: Operations, threads: usize) -> f64 {
        let arithmetic = seconds(operations.cheap, self.gflops.elementwise)
            + seconds(operations.evaluations, self.gflops.gevaluations);
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
                (_, left) if left.is_int() => rates.matmul_bytes,
                (DType::F32, _) => rates.matmul_packed,
                _ if call.types.right.is_packed() => rates.matmul_int4,
                (right, left) if right == left => rates.matmul_bf16,
                _ => rates.matmul_int8,
            };
            let first_row = match call.types.right.is_packed() {
                true => rates.matmul_int4_first_row,
                false => rates.matmul_first_row,
            };
            // Signs are made of bits on the way, as elements of few bits are.
            let [stored, signs] = self.stored_and_drawn(call);
            let blocks = call.m.div_ceil(SIGN_ROWS);
            let repeated = |count: usize, times: usize| repeats.saturating_mul(product(&[2, count, times]));
            let first = seconds(repeated(stored, call.m.min(1)), first_row.min(rate))
                + seconds(repeated(signs, blocks), rates.matmul_int4_first_row.min(rate));
            let others = repeated(stored, call.m.saturating_sub(1))
                .saturating_add(repeated(signs, call.m.saturating_sub(blocks)));
            let bytes = match call.types.right.signs {
                Some(_) => product(&[stored]).saturating_mul(F32),
                None => call.types.right.layout(&[k, n]).bytes as u64,
            };
            (first + seconds(others, rate), bytes, a)
        } else {
            // B is read, written in panels, and read again.
            let rate = if call.types.left.is_int() {
                rates.matmul_bytes.min(rates.matmul_unpacked)
            } else {
                rates.matmul_unpacked
            };
            (seconds(rows(call.m), rate), 0, a.saturating_add(b.saturating_mul(3)))
        };
        let bytes = call.types.left.bytes() as u64;
        let mut load = Load { arithmetic, constant_bytes, computed_bytes: computed.saturating_mul(bytes) };
        self.add_result(&mut load, c, &call.epilogue);
        load
    }

    fn conv(&self, call: &Conv) -> Load {
        let group = call.in_channels / call.groups.max(1);
        let taps = [call.out_channels, group, call.kernel[0], call.kernel[1]];
        // Copying pixels takes about as long as multiplying bytes.
        let conv = match call.types.left.is_int() {
            true => self.gflops.conv.max(self.gflops.matmul_bytes / 2.0),
            false => self.gflops.conv,
        };
        let depthwise = group == 1 && call.groups > 1;
        let pixels = call.out_size[0].saturating_mul(call.out_size[1]);
        let (counted, rate) = if depthwise {
            (call.out_channels, self.gflops.depthwise)
        } else {
            let groups = call.groups.max(1);
            (self.padded(call.out_channels / groups).saturating_mul(groups), conv)
        };
        let flops = product(&[2, call.batch, pixels, counted]).saturating_mul(product(&taps[1..]));
        let input = product(&[call.batch, call.in_channels, call.in_size[0], call.in_size[1]]);
        let mut load = Load {
            arithmetic: seconds(flops, rate),
            constant_bytes: product(&call.types.right.elements_shape(&taps))
                .saturating_mul(call.types.right.dtype.bytes() as u64),
            computed_bytes: input.saturating_mul(call.types.left.bytes() as u64),
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

    /// Counts at the rate of attention. A causal one sums its keys twice, and multiplies queries with the keys of
    /// their block.
    fn linear_attention(&self, call: &LinearAttention) -> Load {
        let heads = product(&[call.batch, call.heads]);
        let rows = product(&[call.q_len.saturating_add(call.kv_len)]);
        let state = product(&[2, call.features, call.v_dim.saturating_add(1)]);
        let widths = call.features.saturating_add(call.v_dim);
        let more = if call.causal {
            let near = product(&[2, 2, CAUSAL_BLOCK, widths]);
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

    /// As attention of features that are there, and products and functions of them. Of causal attention of several spans, those of
    /// keys are made twice. Directions are read, and written in panels; what is between the products stays in the cache.
    fn feature_attention(&self, call: &FeatureAttention) -> Load {
        let heads = product(&[call.batch, call.heads]);
        let twice = call.causal && call.kv_len > FEATURE_SPAN;
        let keys = if twice { call.kv_len.saturating_mul(2) } else { call.kv_len };
        let made = product(&[call.q_len.saturating_add(keys), call.features]).saturating_mul(heads);
        let inner = self.linear_attention(&LinearAttention {
            dtype: call.dtype,
            batch: call.batch,
            heads: call.heads,
            q_len: call.q_len,
            kv_len: call.kv_len,
            features: call.features,
            v_dim: call.v_dim,
            epsilon_bits: call.epsilon_bits,
            causal: call.causal,
            q: call.q,
            k: call.k,
            v: call.v,
            o: call.o,
        });
        let functions = match call.map {
            FeatureMap::Relu => self.gflops.elementwise,
            FeatureMap::Exp | FeatureMap::ExpByExponents | FeatureMap::ExpByProducts => {
                self.gflops.gevaluations
            }
        };
        let products = made.saturating_mul(product(&[2, call.dim]));
        let rows = heads.saturating_mul(call.q_len.saturating_add(call.kv_len) as u64);
        let widths = product(&[call.dim.saturating_add(call.v_dim)]);
        let directions = product(&[2, 2, call.heads, call.dim, call.features]);
        Load {
            arithmetic: inner.arithmetic
                + seconds(products, self.gflops.attention)
                + seconds(made, functions),
            constant_bytes: 0,
            computed_bytes: rows.saturating_mul(widths).saturating_add(directions).saturating_mul(F32),
        }
    }

    /// The result of a call, its residual and its activation.
    fn add_result(&self, load: &mut Load, elements: u64, epilogue: &Epilogue) {
        let passes = 1 + u64::from(epilogue.residual);
        let bytes = elements.saturating_mul(F32 * passes);
        load.computed_bytes = load.computed_bytes.saturating_add(bytes);
        if epilogue.activation.is_some_and(|a| !a.is_cheap()) {
            load.arithmetic += seconds(elements, self.gflops.gevaluations);
        }
    }

    /// Numbers of the constant of a product, and random signs beside them, as they count.
    fn stored_and_drawn(&self, call: &MatMul) -> [usize; 2] {
        let (n, k) = (self.padded(call.n), self.padded(call.k));
        let panels = |columns: usize| columns.div_ceil(SIGN_PANEL).saturating_mul(SIGN_PANEL);
        match call.types.right.signs {
            None => [k.saturating_mul(n), 0],
            Some(signs) if signs.axis == 1 => {
                let others = call.n.saturating_sub(signs.len());
                [others, signs.len()].map(|columns| k.saturating_mul(panels(columns)))
            }
            Some(signs) => [k.saturating_sub(signs.len()), signs.len()].map(|terms| terms.saturating_mul(n)),
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
            ("gflops.matmul-int4", rates.matmul_int4),
            ("gflops.matmul-bytes", rates.matmul_bytes),
            ("gflops.matmul-first-row", rates.matmul_first_row),
            ("gflops.matmul-int4-first-row", rates.matmul_int4_first_row),
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
mod tests;
