//! Target-neutral descriptions of the kernels that are written by hand.
//!
//! A call states the mathematics and the memory layout of its operands, never a tile or an instruction set: a
//! [`Backend`](crate::Backend) chooses those. All offsets and strides are in elements of `f32`.

use std::fmt;

use crate::Precision;

/// The layout of a matrix operand: element (i, j) lies at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MatLayout {
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

/// One axis over which a product is repeated; a stride of 0 shares the operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BatchAxis {
    /// Number of repetitions.
    pub extent: usize,
    /// Distance between the left operands.
    pub a: usize,
    /// Distance between the right operands.
    pub b: usize,
    /// Distance between the results (and residuals).
    pub c: usize,
}

/// A scalar function applied to every element of a result.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x Φ(x), with the error function.
    GeluErf,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// x / (1 + exp(-x)).
    Silu,
    /// tanh(x).
    Tanh,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
}

/// What happens to a result before it is stored: `activation(result + bias) + residual`, or
/// `activation(result + bias + residual)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Epilogue {
    /// A vector is added: one element per column of a product, one per channel of a convolution.
    pub bias: bool,
    /// Applied after the bias.
    pub activation: Option<Activation>,
    /// A tensor with the layout of the result is added last.
    pub residual: bool,
    /// The residual is added before the activation.
    pub residual_first: bool,
}

/// `C[m, n] = epilogue(A[m, k] · B[k, n])` in f32, repeated over batch axes.
///
/// Arguments: A, B, bias if any, residual if any, C, workspace if any. The columns of C are contiguous.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MatMul {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Repetitions, outermost first, at most four.
    pub batch: Vec<BatchAxis>,
    /// Layout of A.
    pub a: MatLayout,
    /// Layout of B; meaningless when B is a packed constant.
    pub b: MatLayout,
    /// Distance between rows of C and of the residual.
    pub c_row_stride: usize,
    /// B is a constant, stored in the layout the target packs it into. Never with batch strides of B.
    pub b_packed: bool,
    /// How operands are rounded; other than `F32` only where B is a packed constant.
    pub precision: Precision,
    /// What happens before the store.
    pub epilogue: Epilogue,
}

/// A two-dimensional convolution in f32: `Y[n, y, x, o] = epilogue(Σ X[n, …, c] K[o, c, i, j])`, images row-major
/// in NHWC order, the kernel in OIHW order. A one-dimensional one has a height of 1.
///
/// Arguments: X, K, bias if any, residual if any, Y, workspace if any.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Conv {
    /// Images.
    pub batch: usize,
    /// Channels of the input, all groups together.
    pub in_channels: usize,
    /// Channels of the output, all groups together.
    pub out_channels: usize,
    /// Groups; divides both channel counts.
    pub groups: usize,
    /// Height and width of the input.
    pub in_size: [usize; 2],
    /// Height and width of the output.
    pub out_size: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Steps between outputs.
    pub strides: [usize; 2],
    /// Zeros before the first row and column.
    pub pads: [usize; 2],
    /// Steps between taps.
    pub dilations: [usize; 2],
    /// K is a constant, stored in the layout the target packs it into; else it is row-major.
    pub k_packed: bool,
    /// What happens before the store.
    pub epilogue: Epilogue,
}

/// The cotangent of the kernel of a [`Conv`], in f32: `dK[o, c, i, j] = Σ X[n, …, c] dY[n, y, x, o]` over images and
/// pixels, X and dY row-major in NHWC order, dK in OIHW order.
///
/// Arguments: X, dY, dK, workspace if any.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ConvKernelGradient {
    /// The convolution; its epilogue and where its kernel comes from play no part.
    pub forward: Conv,
}

/// Exact softmax attention in f32: `O = softmax(scale · Q Kᵀ + mask) V` for every batch and head.
///
/// A row whose scores are all -∞, or that sees no key for being causal, is 0 / 0, a NaN; without any keys O is 0.
/// The logarithm of the sum of exponentials, `log Σ exp(scale · q·k + mask)`, is -∞ in both cases.
///
/// Arguments: Q, K, V, mask if any (additive), O, log-sum-exp if any, workspace if any. The last axis of each is
/// contiguous.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Attention {
    /// Sequences.
    pub batch: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and values; divides `heads`, and head h reads that with number h · kv_heads / heads.
    pub kv_heads: usize,
    /// Queries per sequence.
    pub q_len: usize,
    /// Keys per sequence.
    pub kv_len: usize,
    /// Length of a query and of a key.
    pub qk_dim: usize,
    /// Length of a value.
    pub v_dim: usize,
    /// Multiplies the scores; the bits of an f32.
    pub scale_bits: u32,
    /// Strides of (batch, head, row) of Q.
    pub q: [usize; 3],
    /// Strides of (batch, head, row) of K.
    pub k: [usize; 3],
    /// Strides of (batch, head, row) of V.
    pub v: [usize; 3],
    /// Strides of (batch, head, row) of O.
    pub o: [usize; 3],
    /// Strides of (batch, head, query, key) of the mask; 0 where it is shared.
    pub mask: Option<[usize; 4]>,
    /// Query i sees the keys j <= i + kv_len - q_len only.
    pub causal: bool,
    /// The logarithms of the sums of exponentials are a result too: row-major [batch, head, query].
    pub log_sum_exp: bool,
}

/// The cotangents of the operands of [`Attention`], in f32 (Dao, arXiv 2307.08691). With the scores
/// `S = scale · Q Kᵀ + mask`, the logarithms L of the sums of exponentials and a number Δ for every query,
/// `P = exp(S - L)`, `dS = P ∘ (dO Vᵀ - Δ)`:
///
/// `dQ = scale · dS K`, `dK = scale · dSᵀ Q`, `dV = Pᵀ dO`, the last two summed over the heads that share keys.
///
/// A pair whose score is -∞, or whose key the query does not see, has no part in any sum.
///
/// Arguments: Q, K, V, L, Δ (both row-major [batch, head, query]), dO, mask if any (additive), dQ, dK, dV, workspace if
/// any. The last axis of matrices is contiguous.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AttentionGradient {
    /// Sequences.
    pub batch: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and values; divides `heads`, and head h reads that with number h · kv_heads / heads.
    pub kv_heads: usize,
    /// Queries per sequence.
    pub q_len: usize,
    /// Keys per sequence.
    pub kv_len: usize,
    /// Length of a query and of a key.
    pub qk_dim: usize,
    /// Length of a value.
    pub v_dim: usize,
    /// Multiplies the scores; the bits of an f32.
    pub scale_bits: u32,
    /// Strides of (batch, head, row) of Q.
    pub q: [usize; 3],
    /// Strides of (batch, head, row) of K.
    pub k: [usize; 3],
    /// Strides of (batch, head, row) of V.
    pub v: [usize; 3],
    /// Strides of (batch, head, row) of dO.
    pub d_o: [usize; 3],
    /// Strides of (batch, head, query, key) of the mask; 0 where it is shared.
    pub mask: Option<[usize; 4]>,
    /// Query i sees the keys j <= i + kv_len - q_len only.
    pub causal: bool,
    /// Strides of (batch, head, row) of dQ.
    pub dq: [usize; 3],
    /// Strides of (batch, head, row) of dK.
    pub dk: [usize; 3],
    /// Strides of (batch, head, row) of dV.
    pub dv: [usize; 3],
}

/// Linear attention in f32: `O = φQ (φKᵀ V) / (φQ Σ φK + ε)` for every batch and head, with a division per row; the sum
/// goes over the keys. The features φ are computed before.
///
/// Arguments: φQ, φK, V, O, workspace if any. The last axis of each is contiguous.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LinearAttention {
    /// Sequences.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Queries per sequence.
    pub q_len: usize,
    /// Keys per sequence; as many as queries if `causal`.
    pub kv_len: usize,
    /// Features of a query and of a key.
    pub features: usize,
    /// Length of a value.
    pub v_dim: usize,
    /// ε, added to the denominators; the bits of an f32.
    pub epsilon_bits: u32,
    /// Query i sees the keys j <= i only.
    pub causal: bool,
    /// Strides of (batch, head, row) of φQ.
    pub q: [usize; 3],
    /// Strides of (batch, head, row) of φK.
    pub k: [usize; 3],
    /// Strides of (batch, head, row) of V.
    pub v: [usize; 3],
    /// Strides of (batch, head, row) of O.
    pub o: [usize; 3],
}

/// A kernel that loops cannot bring to the speed of the hardware.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum KernelCall {
    /// A (batched) matrix product.
    MatMul(MatMul),
    /// A convolution.
    Conv(Conv),
    /// The derivative of a convolution by its kernel.
    ConvKernelGradient(ConvKernelGradient),
    /// Softmax attention.
    Attention(Attention),
    /// Derivatives of softmax attention.
    AttentionGradient(Box<AttentionGradient>),
    /// Linear attention.
    LinearAttention(LinearAttention),
}

impl KernelCall {
    /// The name of the family, as benches and reports show it.
    pub fn family(&self) -> &'static str {
        match self {
            KernelCall::MatMul(_) => "matmul",
            KernelCall::Conv(_) => "conv",
            KernelCall::ConvKernelGradient(_) => "conv_kernel_gradient",
            KernelCall::Attention(_) => "attention",
            KernelCall::AttentionGradient(_) => "attention_gradient",
            KernelCall::LinearAttention(_) => "linear_attention",
        }
    }

    /// Multiplications and additions of one call, each counted as one operation.
    pub fn flops(&self) -> u64 {
        let product = |factors: &[usize]| factors.iter().map(|&f| f as u64).product::<u64>();
        match self {
            KernelCall::MatMul(c) => {
                2 * product(&[c.m, c.n, c.k]) * c.batch.iter().map(|b| b.extent as u64).product::<u64>()
            }
            KernelCall::Conv(c) | KernelCall::ConvKernelGradient(ConvKernelGradient { forward: c }) => {
                let taps = c.in_channels / c.groups * c.kernel[0] * c.kernel[1];
                2 * product(&[c.batch, c.out_channels, c.out_size[0], c.out_size[1], taps])
            }
            KernelCall::Attention(c) => {
                2 * product(&[c.batch, c.heads, c.qk_dim + c.v_dim])
                    * Attention::pairs(c.q_len, c.kv_len, c.causal)
            }
            // The scores again, and four products more.
            KernelCall::AttentionGradient(c) => {
                2 * product(&[c.batch, c.heads, 3 * c.qk_dim + 2 * c.v_dim])
                    * Attention::pairs(c.q_len, c.kv_len, c.causal)
            }
            KernelCall::LinearAttention(c) => {
                let rows = c.q_len as u64 + c.kv_len as u64;
                2 * product(&[c.batch, c.heads, c.features, c.v_dim + 1]) * rows
            }
        }
    }
}

impl Conv {
    /// The extents as text.
    fn extents(&self) -> String {
        let ([h, w], [y, x], [i, j]) = (self.in_size, self.out_size, self.kernel);
        let (inner, outer) = (self.in_channels, self.out_channels);
        format!("{}x[{inner}x{h}x{w} -> {outer}x{y}x{x}] kernel {i}x{j} groups {}", self.batch, self.groups)
    }
}

impl Attention {
    /// Pairs of a query and a key that it sees, of one head. Causal queries are the last of as many as there are
    /// keys: query i sees key j where j <= i + `kv_len` - `q_len`.
    pub fn pairs(q_len: usize, kv_len: usize, causal: bool) -> u64 {
        let (queries, keys) = (q_len as u128, kv_len as u128);
        let side = queries.min(keys);
        let triangle = side * (side + 1) / 2 + queries * keys.saturating_sub(queries);
        u64::try_from(if causal { triangle } else { queries * keys }).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Epilogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bias {
            f.write_str(" +bias")?;
        }
        if self.residual && self.residual_first {
            f.write_str(" +residual")?;
        }
        if let Some(a) = self.activation {
            write!(f, " {}", a.name())?;
        }
        if self.residual && !self.residual_first {
            f.write_str(" +residual")?;
        }
        Ok(())
    }
}

impl Activation {
    /// The name used in text forms.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::GeluErf => "gelu_erf",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Silu => "silu",
            Activation::Tanh => "tanh",
            Activation::Sigmoid => "sigmoid",
        }
    }
}

impl fmt::Display for KernelCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KernelCall::MatMul(c) => {
                f.write_str("matmul ")?;
                c.batch.iter().try_for_each(|b| write!(f, "{}x", b.extent))?;
                write!(f, "[{}x{}x{}]", c.m, c.k, c.n)?;
                f.write_str(if c.b_packed { " packed" } else { "" })?;
                if c.precision != Precision::F32 {
                    write!(f, " {}", c.precision.name())?;
                }
                write!(f, "{}", c.epilogue)
            }
            KernelCall::Conv(c) => {
                write!(f, "conv {}", c.extents())?;
                write!(f, "{}{}", if c.k_packed { "" } else { " computed" }, c.epilogue)
            }
            KernelCall::ConvKernelGradient(c) => write!(f, "conv_kernel_gradient {}", c.forward.extents()),
            KernelCall::Attention(c) => write!(
                f,
                "attention {}x{}x[{}, {}] dims {} and {}{}{}{}",
                c.batch,
                c.heads,
                c.q_len,
                c.kv_len,
                c.qk_dim,
                c.v_dim,
                if c.causal { " causal" } else { "" },
                if c.mask.is_some() { " +mask" } else { "" },
                if c.log_sum_exp { " +log_sum_exp" } else { "" }
            ),
            KernelCall::AttentionGradient(c) => write!(
                f,
                "attention_gradient {}x{}x[{}, {}] dims {} and {}{}{}",
                c.batch,
                c.heads,
                c.q_len,
                c.kv_len,
                c.qk_dim,
                c.v_dim,
                if c.causal { " causal" } else { "" },
                if c.mask.is_some() { " +mask" } else { "" }
            ),
            KernelCall::LinearAttention(c) => write!(
                f,
                "linear_attention {}x{}x[{}, {}] features {} dim {}{}",
                c.batch,
                c.heads,
                c.q_len,
                c.kv_len,
                c.features,
                c.v_dim,
                if c.causal { " causal" } else { "" }
            ),
        }
    }
}
