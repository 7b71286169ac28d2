//! Operators that ONNX, or the chosen operator set, spells as several. The recognition passes know these spellings.

use margay_ir::ops::{Attention, LayerNorm, LinearAttention, Numbers, Pool};
use margay_ir::{NodeId, Payload, TensorType, Value};
use margay_tensor::{DType, Dim, Tensor};

use super::Exporter;
use super::operators::{axis, ints, pads};
use crate::{Attribute, OnnxError};

impl Exporter<'_> {
    /// x/2 (1 + erf(x/√2)), or by tanh.
    pub(super) fn gelu(&mut self, x: &str, dtype: DType, tanh: bool) -> Result<String, OnnxError> {
        if self.opset >= 20 {
            let kind = if tanh { "tanh" } else { "none" };
            let kind = Attribute::String(kind.to_owned());
            return Ok(self.emit("Gelu", "", &[x], vec![("approximate", kind)]));
        }
        let bent = if tanh {
            let cubic = self.number(dtype, 0.044715);
            let (one, root) = (self.number(dtype, 1.0), std::f64::consts::FRAC_2_PI.sqrt());
            let root = self.number(dtype, root);
            let square = self.emit("Mul", "square", &[x, x], vec![]);
            let scaled = self.emit("Mul", "cubic", &[&square, &cubic], vec![]);
            let factor = self.emit("Add", "factor", &[&scaled, &one], vec![]);
            let inner = self.emit("Mul", "inner", &[x, &factor], vec![]);
            let inner = self.emit("Mul", "scaled", &[&inner, &root], vec![]);
            self.emit("Tanh", "Tanh", &[&inner], vec![])
        } else {
            let root = self.number(dtype, std::f64::consts::SQRT_2);
            let inner = self.emit("Div", "Div", &[x, &root], vec![]);
            self.emit("Erf", "Erf", &[&inner], vec![])
        };
        let (one, half) = (self.number(dtype, 1.0), self.number(dtype, 0.5));
        let lifted = self.emit("Add", "Add", &[&bent, &one], vec![]);
        let product = self.emit("Mul", "Mul", &[x, &lifted], vec![]);
        Ok(self.emit("Mul", "", &[&product, &half], vec![]))
    }

    /// x y, and 0 where x is 0.
    pub(super) fn mul_or_zero(&mut self, x: &str, y: &str, dtype: DType) -> String {
        let zero = self.number(dtype, 0.0);
        let nothing = self.emit("Equal", "Equal", &[x, &zero], vec![]);
        let product = self.emit("Mul", "Mul", &[x, y], vec![]);
        self.emit("Where", "", &[&nothing, &zero, &product], vec![])
    }

    /// x sigmoid(x).
    pub(super) fn silu(&mut self, x: &str) -> String {
        let share = self.emit("Sigmoid", "Sigmoid", &[x], vec![]);
        self.emit("Mul", "", &[x, &share], vec![])
    }

    /// x min(max(x / 6 + 1/2, 0), 1), an operator since operator set 14.
    pub(super) fn hard_swish(&mut self, x: &str, dtype: DType) -> String {
        if self.opset >= 14 {
            return self.emit("HardSwish", "", &[x], vec![]);
        }
        let (sixth, half) = (self.number(dtype, 1.0 / 6.0), self.number(dtype, 0.5));
        let scaled = self.emit("Mul", "scaled", &[x, &sixth], vec![]);
        let line = self.emit("Add", "line", &[&scaled, &half], vec![]);
        let (zero, one) = (self.number(dtype, 0.0), self.number(dtype, 1.0));
        let capped = self.emit("Min", "capped", &[&line, &one], vec![]);
        let gate = self.emit("Max", "gate", &[&capped, &zero], vec![]);
        self.emit("Mul", "", &[x, &gate], vec![])
    }

    /// min(max(x, 0), 6), whose bounds are operands of `Clip` since operator set 11.
    pub(super) fn relu6(&mut self, x: &str, dtype: DType) -> String {
        if self.opset < 11 {
            let bounds = vec![("min", Attribute::Float(0.0)), ("max", Attribute::Float(6.0))];
            return self.emit("Clip", "", &[x], bounds);
        }
        let (zero, six) = (self.number(dtype, 0.0), self.number(dtype, 6.0));
        self.emit("Clip", "", &[x, &zero, &six], vec![])
    }

    /// H x / √n by two products: rows of n = a b as matrices [a, b], H = Hₐ ⊗ H_b.
    pub(super) fn hadamard(&mut self, x: &str, shape: &[Dim], dtype: DType) -> Result<String, OnnxError> {
        let n = shape.last().and_then(Dim::as_extent).unwrap_or(1).max(1);
        let a: usize = 1 << (n.ilog2() / 2);
        let rows = &shape[..shape.len().saturating_sub(1)];
        let split = [rows, &[Dim::from(a), Dim::from(n / a)]].concat();
        let matrices = self.reshape("split", x, shape, &split)?;
        let right = self.hadamard_matrix(n / a, dtype)?;
        let product = self.emit("MatMul", "right", &[&matrices, &right], vec![]);
        let left = self.hadamard_matrix(a, dtype)?;
        let product = self.emit("MatMul", "left", &[&left, &product], vec![]);
        self.reshape("", &product, &split, shape)
    }

    fn hadamard_matrix(&mut self, n: usize, dtype: DType) -> Result<String, OnnxError> {
        let sign = |at: usize| if ((at / n) & (at % n)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let elements = (0..n * n).map(|at| sign(at) / (n as f64).sqrt()).collect();
        let tensor = Numbers::Float(elements).into_tensor(dtype, &[n, n]);
        let tensor = tensor.map_err(|e| self.refusal(e.to_string()))?;
        Ok(self.initializer(&Payload::new(tensor), "hadamard"))
    }

    /// softmax(scale Q Kᵀ + mask) V, and log Σ exp(scale Q Kᵀ + mask).
    pub(super) fn attention(
        &mut self,
        n: NodeId,
        x: &[&str],
        dtype: DType,
        op: &Attention,
    ) -> Result<Vec<String>, OnnxError> {
        let g = self.g;
        let shape = |slot: usize| g.ty(g.inputs_of(n)[slot]).shape.clone();
        let (queries, keys) = (shape(0), shape(1));
        let shared = self.shared_heads(x, [&queries, &keys, &shape(2)])?;
        let lengths = [&queries[2], &keys[2]];
        let scores =
            self.scores([x[0], &shared[0]], x.get(3).copied(), op.scale.get(), op.causal, lengths, dtype)?;
        let logs = match op.log_sum_exp {
            true => Some(self.reduction("ReduceLogSumExp", "log_sum_exp", &scores, &[3], false)?),
            false => None,
        };
        let weights = self.emit("Softmax", "Softmax", &[&scores], axis(3));
        let product = self.emit("MatMul", "", &[&weights, &shared[1]], vec![]);
        Ok([Some(product), logs].into_iter().flatten().collect())
    }

    /// Keys and values with a head for every head of the queries.
    pub(super) fn shared_heads(
        &mut self,
        x: &[&str],
        [queries, keys, values]: [&[Dim]; 3],
    ) -> Result<[String; 2], OnnxError> {
        if queries[1] == keys[1] {
            return Ok([x[1].to_owned(), x[2].to_owned()]);
        }
        let keys = self.spread_heads(x[1], "keys", keys, &queries[1])?;
        Ok([keys, self.spread_heads(x[2], "values", values, &queries[1])?])
    }

    /// scale Q Kᵀ + mask, and -∞ where a key comes too late.
    pub(super) fn scores(
        &mut self,
        [queries, keys]: [&str; 2],
        mask: Option<&str>,
        scale: f64,
        causal: bool,
        lengths: [&Dim; 2],
        dtype: DType,
    ) -> Result<String, OnnxError> {
        let perm = vec![("perm", ints(&[0, 1, 3, 2]))];
        let transposed = self.emit("Transpose", "Transpose", &[keys], perm);
        let mut scores = self.emit("MatMul", "scores", &[queries, &transposed], vec![]);
        if scale != 1.0 {
            let scale = self.number(dtype, scale);
            scores = self.emit("Mul", "scale", &[&scores, &scale], vec![]);
        }
        if let Some(mask) = mask {
            scores = self.emit("Add", "mask", &[&scores, mask], vec![]);
        }
        if causal {
            scores = self.causal(&scores, lengths, dtype, f64::NEG_INFINITY)?;
        }
        Ok(scores)
    }

    /// φQ (φKᵀ V) / (φQ Σ φK + ε); causal and of few positions, the weights are φQ φKᵀ with 0 for later keys. Of many positions
    /// it is written in chunks (see `spelled`).
    pub(super) fn linear_attention(
        &mut self,
        n: NodeId,
        x: &[&str],
        dtype: DType,
        op: &LinearAttention,
    ) -> Result<String, OnnxError> {
        let swap = || vec![("perm", ints(&[0, 1, 3, 2]))];
        let transposed = self.emit("Transpose", "keys", &[x[1]], swap());
        let (weighted, sum) = if op.causal {
            let g = self.g;
            let len = &g.ty(g.inputs_of(n)[0]).shape[2];
            let products = self.emit("MatMul", "weights", &[x[0], &transposed], vec![]);
            let weights = self.causal(&products, [len, len], dtype, 0.0)?;
            let sum = self.reduction("ReduceSum", "sum", &weights, &[3], true)?;
            (self.emit("MatMul", "values", &[&weights, x[2]], vec![]), sum)
        } else {
            let state = self.emit("MatMul", "state", &[&transposed, x[2]], vec![]);
            let row = self.reduction("ReduceSum", "key_sum", x[1], &[2], true)?;
            let column = self.emit("Transpose", "key_column", &[&row], swap());
            let sum = self.emit("MatMul", "sum", &[x[0], &column], vec![]);
            (self.emit("MatMul", "values", &[x[0], &state], vec![]), sum)
        };
        let sum = if op.epsilon.get() == 0.0 {
            sum
        } else {
            let epsilon = self.number(dtype, op.epsilon.get());
            self.emit("Add", "epsilon", &[&sum, &epsilon], vec![])
        };
        Ok(self.emit("Div", "", &[&weighted, &sum], vec![]))
    }

    /// Repeats each head of keys or values for the heads that share it.
    fn spread_heads(&mut self, x: &str, part: &str, shape: &[Dim], heads: &Dim) -> Result<String, OnnxError> {
        let (from, to) = (shape[1].as_extent().unwrap_or(1).max(1), heads.as_extent().unwrap_or(1));
        let numbers: Vec<i64> = (0..to).map(|head| (head * from / to) as i64).collect();
        let numbers = self.integers(&numbers)?;
        Ok(self.emit("Gather", part, &[x, &numbers], axis(1)))
    }

    /// Scores `[B, H, S, T]` where key j comes no later than query i, j <= i + T - S, and `other` elsewhere.
    pub(super) fn causal(
        &mut self,
        scores: &str,
        [queries, keys]: [&Dim; 2],
        dtype: DType,
        other: f64,
    ) -> Result<String, OnnxError> {
        let offset = keys - queries;
        let last = self.positions("queries", &offset, keys)?;
        let axes = self.integers(&[1])?;
        let last = self.emit("Unsqueeze", "last_key", &[&last, &axes], vec![]); // [S, 1]
        let keys = self.positions("keys", &Dim::from(0usize), keys)?; // [T]
        let seen = self.emit("LessOrEqual", "seen", &[&keys, &last], vec![]);
        let other = self.number(dtype, other);
        Ok(self.emit("Where", "causal", &[&seen, scores, &other], vec![]))
    }

    /// The integers from `start` to `end`, which is not among them.
    pub(super) fn positions(&mut self, part: &str, start: &Dim, end: &Dim) -> Result<String, OnnxError> {
        if let (Some(start), Some(end)) = (start.as_const(), end.as_const()) {
            return self.integers(&(start..end).collect::<Vec<i64>>());
        }
        let axes = self.integers(&[0])?;
        let mut bounds = Vec::new();
        for dim in [start, end] {
            let list = self.extents(std::slice::from_ref(dim), part)?;
            bounds.push(self.emit("Squeeze", part, &[&list, &axes], vec![]));
        }
        let one = self.number(DType::I64, 1.0);
        Ok(self.emit("Range", part, &[&bounds[0], &bounds[1], &one], vec![]))
    }

    /// (x - μ) / √(σ² + ε) · scale + bias.
    pub(super) fn layer_norm(
        &mut self,
        x: &[&str],
        dtype: DType,
        ndim: usize,
        op: &LayerNorm,
    ) -> Result<String, OnnxError> {
        if self.opset >= 17 {
            let mut attributes = axis(op.axis);
            attributes.push(("epsilon", Attribute::Float(op.epsilon.get() as f32)));
            return Ok(self.emit("LayerNormalization", "", x, attributes));
        }
        let axes: Vec<usize> = (op.axis..ndim).collect();
        let (two, epsilon) = (self.number(dtype, 2.0), self.number(dtype, op.epsilon.get()));
        let mean = self.reduction("ReduceMean", "mean", x[0], &axes, true)?;
        let centred = self.emit("Sub", "Sub", &[x[0], &mean], vec![]);
        let squares = self.emit("Pow", "Pow", &[&centred, &two], vec![]);
        let variance = self.reduction("ReduceMean", "variance", &squares, &axes, true)?;
        let widened = self.emit("Add", "Add", &[&variance, &epsilon], vec![]);
        let deviation = self.emit("Sqrt", "Sqrt", &[&widened], vec![]);
        let unit = self.emit("Div", "Div", &[&centred, &deviation], vec![]);
        let scaled = self.emit("Mul", "Mul", &[&unit, x[1]], vec![]);
        Ok(self.emit("Add", "", &[&scaled, x[2]], vec![]))
    }

    /// An average over windows with gaps, which pooling lacks before operator set 19: a convolution of each channel
    /// with ones, divided by the number of elements, which is a convolution of ones.
    pub(super) fn spread_average(&mut self, x: &str, n: NodeId, op: &Pool) -> Result<String, OnnxError> {
        let g = self.g;
        let in_nchw = |v: Value| {
            let ty = g.ty(v);
            let shape = op.layout.perm_to_nchw(ty.ndim()).iter().map(|&p| ty.shape[p].clone()).collect();
            TensorType::new(ty.dtype, shape)
        };
        let (from, to) = (&in_nchw(g.inputs_of(n)[0]), in_nchw(n.into()).shape);
        let one = Dim::from(1usize);
        let apart = |shape: &[Dim]| -> Vec<Dim> {
            [vec![&shape[0] * &shape[1], one.clone()], shape[2..].to_vec()].concat()
        };
        let flat = apart(&from.shape);
        let channels = self.reshape("apart", x, &from.shape, &flat)?;
        let taps = [&[1, 1], op.kernel.as_slice()].concat();
        let elements: usize = op.kernel.iter().product();
        let ones = Tensor::from_slice(&taps, &vec![1f32; elements]);
        let ones = ones.map_err(|e| self.refusal(e.to_string()))?;
        let mut kernel = self.initializer(&margay_ir::Payload::new(ones), "ones");
        if from.dtype != DType::F32 {
            let to = Attribute::Int(crate::element_number(from.dtype));
            kernel = self.emit("Cast", "ones", &[&kernel], vec![("to", to)]);
        }
        let attributes = || {
            vec![
                ("strides", ints(&op.strides)),
                ("pads", pads(&op.pads_before, &op.pads_after)),
                ("dilations", ints(&op.dilations)),
                ("kernel_shape", ints(&op.kernel)),
            ]
        };
        let sums = self.emit("Conv", "sums", &[&channels, &kernel], attributes());
        let counts = if op.count_include_pad {
            self.number(from.dtype, elements as f64)
        } else {
            let number = self.number(from.dtype, 1.0);
            let shape = [vec![one.clone(), one.clone()], from.shape[2..].to_vec()].concat();
            let shape = self.extents(&shape, "shape")?;
            let plane = self.emit("Expand", "plane", &[&number, &shape], vec![]);
            self.emit("Conv", "counts", &[&plane, &kernel], attributes())
        };
        let means = self.emit("Div", "Div", &[&sums, &counts], vec![]);
        self.reshape("", &means, &apart(&to), &to)
    }
}
