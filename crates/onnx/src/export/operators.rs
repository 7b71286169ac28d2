//! What each operator is in ONNX.

use margay_ir::ops::{Conv, ImageLayout, Pad, Pool, PoolKind, Reduce, ReduceKind, Slice};
use margay_ir::{NodeId, Op, Payload};
use margay_tensor::{DType, Dim};

use super::Exporter;
use super::places::since;
use super::recurrent::has_directions;
use crate::{Attribute, OnnxError, element_number};

/// A bound before or after every element. The smallest and largest i32, which all tools understand.
const BEFORE: i64 = i32::MIN as i64;
const AFTER: i64 = i32::MAX as i64;

impl Exporter<'_> {
    /// Adds the nodes of an operator and returns the names of its results.
    pub(super) fn operator(&mut self, n: NodeId) -> Result<Vec<String>, OnnxError> {
        let g = self.g;
        let op = g.op(n);
        let names = self.operands(n);
        let x: Vec<&str> = names.iter().map(String::as_str).collect();
        let shape = |slot: usize| g.ty(g.inputs_of(n)[slot]).shape.clone();
        let dtype = g.inputs_of(n).first().map(|v| g.ty(*v).dtype);
        let mut plain = |op_type: &str| Ok(self.emit(op_type, "", &x, vec![]));
        let result = match op {
            // Operators with several results.
            Op::Attention(op) => return self.attention(n, &x, dtype.unwrap_or(DType::F32), op),
            Op::NonMaxSuppression(op) => return self.non_max_suppression(n, &x, op),
            Op::NonZero(_) => return self.non_zero(n, &x),
            Op::If(op) => return self.choice(n, &x, op),
            Op::Loop(op) => return self.repeated(n, &x, op),
            Op::AttentionGradient(op) => {
                return self.attention_gradient(n, &x, dtype.unwrap_or(DType::F32), op);
            }

            Op::Const(_) | Op::Input(_) => Err(self.refusal("a leaf is no node".to_owned())),
            Op::Cut(op) => self.cut(n, &x, op),
            Op::Pack(_) => Err(self.refusal("what a program gives out is not exported".to_owned())),
            Op::Dims(d) => self.extents(&d.values, ""),
            Op::Range(r) => self.range(r),

            Op::Abs(_) => plain("Abs"),
            Op::Add(_) => plain("Add"),
            Op::And(_) => self.bits(n, "And", "BitwiseAnd", &x, dtype),
            Op::Atan(_) => plain("Atan"),
            Op::Ceil(_) => plain("Ceil"),
            Op::Cos(_) => plain("Cos"),
            Op::Div(_) => plain("Div"),
            Op::Dropout(op) => {
                let ratio = self.number(DType::F32, op.ratio.get());
                Ok(self.emit("Dropout", "", &[x[0], &ratio], vec![]))
            }
            Op::Equal(_) => plain("Equal"),
            Op::Erf(_) => plain("Erf"),
            Op::Exp(_) => plain("Exp"),
            Op::Floor(_) => plain("Floor"),
            Op::Less(_) => plain("Less"),
            Op::LessOrEqual(_) => plain("LessOrEqual"),
            Op::Log(_) => plain("Log"),
            Op::Max(_) => plain("Max"),
            Op::Min(_) => plain("Min"),
            Op::Mul(_) => plain("Mul"),
            Op::MulOrZero(_) => Ok(self.mul_or_zero(x[0], x[1], dtype.unwrap_or(DType::F32))),
            Op::Neg(_) => plain("Neg"),
            Op::Not(_) => plain("Not"),
            Op::Or(_) => self.bits(n, "Or", "BitwiseOr", &x, dtype),
            Op::Position(op) => self.position(x[0], dtype.unwrap_or(DType::I64), op),
            Op::Pow(_) => plain("Pow"),
            Op::Round(_) => plain("Round"),
            Op::Select(_) => plain("Where"),
            Op::ShiftLeft(_) => Ok(self.shift(&x, "LEFT")),
            Op::ShiftRight(_) => Ok(self.shift(&x, "RIGHT")),
            Op::Sigmoid(_) => plain("Sigmoid"),
            Op::Silu(_) => Ok(self.silu(x[0])),
            Op::Softplus(_) => plain("Softplus"),
            Op::Sin(_) => plain("Sin"),
            Op::Sqrt(_) => plain("Sqrt"),
            Op::Sub(_) => plain("Sub"),
            Op::Tanh(_) => plain("Tanh"),
            Op::Xor(_) => self.bits(n, "Xor", "BitwiseXor", &x, dtype),
            Op::Cast(c) => {
                let to = Attribute::Int(element_number(c.to));
                Ok(self.emit("Cast", "", &x, vec![("to", to)]))
            }
            Op::Relu(_) => match dtype.filter(|d| d.is_int() && self.opset < 14) {
                // Of floats only before operator set 14.
                Some(dtype) => {
                    let zero = self.number(dtype, 0.0);
                    Ok(self.emit("Max", "", &[x[0], &zero], vec![]))
                }
                None => Ok(self.emit("Relu", "", &x, vec![])),
            },
            Op::HardSwish(_) => Ok(self.hard_swish(x[0], dtype.unwrap_or(DType::F32))),
            Op::Relu6(_) => Ok(self.relu6(x[0], dtype.unwrap_or(DType::F32))),
            Op::Gelu(op) => self.gelu(x[0], dtype.unwrap_or(DType::F32), op.tanh),

            Op::Broadcast(op) => self.expand(x[0], &shape(0), &op.shape),
            Op::Concat(op) => Ok(self.emit("Concat", "", &x, axis(op.axis))),
            Op::Gather(op) => Ok(self.emit("Gather", "", &x, axis(op.axis))),
            Op::Pad(op) => self.pad(x[0], dtype.unwrap_or(DType::F32), op),
            Op::Reshape(_) if has_directions(g, g.inputs_of(n)[0]) => Ok(x[0].to_owned()),
            Op::Reshape(op) => self.reshape("", x[0], &shape(0), &op.shape),
            Op::Scatter(op) => self.scatter(n, &x, op),
            Op::ScatterAdd(op) => self.scatter_add(n, &x, op),
            Op::Slice(op) => self.slice(x[0], &shape(0), op),
            Op::Transpose(op) => Ok(self.emit("Transpose", "", &x, vec![("perm", ints(&op.perm))])),

            Op::Cumulate(op) => self.cumulate(x[0], dtype.unwrap_or(DType::F32), &shape(0), op),
            Op::Reduce(op) => self.reduce(x[0], shape(0).len(), dtype.unwrap_or(DType::F32), op),
            Op::TopK(op) => self.top_k(x[0], op),

            Op::Conv(op) => {
                let attributes = conv_attributes(op, &shape(1));
                let name = if dtype.is_some_and(DType::is_int) { "ConvInteger" } else { "Conv" };
                self.in_nchw(op.layout, x[0], shape(0).len(), |e, image| {
                    Ok(e.emit(name, "", &[&[image], &x[1..]].concat(), attributes))
                })
            }
            Op::ConvKernelGradient(_)
            | Op::FeatureAttention(_)
            | Op::MaxPoolGradient(_)
            | Op::Recurrence(_)
            | Op::Sketch(_) => {
                unreachable!("`{}` is written elsewhere", op.name())
            }
            Op::Col2im(op) => self.col2im(n, x[0], op),
            Op::Hadamard(_) => self.hadamard(x[0], &shape(0), dtype.unwrap_or(DType::F32)),
            Op::LayerNorm(op) => self.layer_norm(&x, dtype.unwrap_or(DType::F32), shape(0).len(), op),
            Op::LinearAttention(op) => self.linear_attention(n, &x, dtype.unwrap_or(DType::F32), op),
            Op::MatMul(_) if dtype.is_some_and(DType::is_int) => {
                Ok(self.emit("MatMulInteger", "", &x, vec![]))
            }
            Op::MatMul(_) => Ok(self.emit("MatMul", "", &x, vec![])),
            Op::Im2col(op) => self.im2col(n, x[0], dtype.unwrap_or(DType::F32), op),
            Op::Pool(op) => self.in_nchw(op.layout, x[0], shape(0).len(), |e, image| e.pool(image, n, op)),
            Op::Softmax(op) => Ok(self.emit("Softmax", "", &x, axis(op.axis))),
        };
        Ok(vec![result?])
    }

    /// An operator on truth values, or another one on integers.
    fn bits(
        &mut self,
        n: NodeId,
        of_truth: &str,
        of_integers: &str,
        x: &[&str],
        dtype: Option<DType>,
    ) -> Result<String, OnnxError> {
        if dtype == Some(DType::Bool) {
            return Ok(self.emit(of_truth, "", x, vec![]));
        }
        self.needs(since(self.g, n), "an operation on bits")?;
        Ok(self.emit(of_integers, "", x, vec![]))
    }

    fn shift(&mut self, x: &[&str], direction: &str) -> String {
        self.emit("BitShift", "", x, vec![("direction", Attribute::String(direction.to_owned()))])
    }

    fn pad(&mut self, x: &str, dtype: DType, op: &Pad) -> Result<String, OnnxError> {
        let pads = self.integers(&[op.before.as_slice(), &op.after].concat())?;
        let value = self.initializer(&Payload::new(op.value.tensor(dtype)), "number");
        Ok(self.emit("Pad", "", &[x, &pads, &value], vec![]))
    }

    fn slice(&mut self, x: &str, shape: &[Dim], op: &Slice) -> Result<String, OnnxError> {
        let whole = |i: &usize| op.starts[*i].is(0) && op.ends[*i] == shape[*i] && op.steps[*i] == 1;
        let axes: Vec<usize> = (0..shape.len()).filter(|i| !whole(i)).collect();
        if axes.is_empty() {
            return Ok(self.emit("Identity", "", &[x], vec![]));
        }
        let bounds = |dims: &[Dim]| -> Vec<Dim> {
            axes.iter().map(|&i| bound(&dims[i], &shape[i], op.steps[i])).collect()
        };
        let starts = self.extents(&bounds(&op.starts), "starts")?;
        let ends = self.extents(&bounds(&op.ends), "ends")?;
        let list: Vec<i64> = axes.iter().map(|&i| i as i64).collect();
        let list = self.integers(&list)?;
        let steps: Vec<i64> = axes.iter().map(|&i| op.steps[i]).collect();
        let steps = self.integers(&steps)?;
        Ok(self.emit("Slice", "", &[x, &starts, &ends, &list, &steps], vec![]))
    }

    fn reduce(&mut self, x: &str, ndim: usize, dtype: DType, op: &Reduce) -> Result<String, OnnxError> {
        if op.axes.is_empty() {
            return Ok(self.emit("Identity", "", &[x], vec![]));
        }
        // The mean of an image, for which onnxruntime has a kernel in its own layout, of f32 and up to three axes. Along one axis it
        // may be that of a norm, which onnxruntime finds by its `ReduceMean`.
        let image = (4..=5).contains(&ndim) && op.axes.iter().copied().eq(2..ndim) && op.keepdims;
        if image && op.kind == ReduceKind::Mean && dtype == DType::F32 {
            return Ok(self.emit("GlobalAveragePool", "", &[x], vec![]));
        }
        let op_type = match op.kind {
            ReduceKind::Sum => "ReduceSum",
            ReduceKind::Mean => "ReduceMean",
            ReduceKind::Max => "ReduceMax",
            ReduceKind::Min => "ReduceMin",
            ReduceKind::Prod => "ReduceProd",
        };
        self.reduction(op_type, "", x, &op.axes, op.keepdims)
    }

    /// A reduction. Axes are an input where the operator set has it so.
    pub(super) fn reduction(
        &mut self,
        op_type: &str,
        part: &str,
        x: &str,
        axes: &[usize],
        keepdims: bool,
    ) -> Result<String, OnnxError> {
        let keepdims = ("keepdims", Attribute::Int(i64::from(keepdims)));
        if self.opset < 18 && op_type != "ReduceSum" {
            return Ok(self.emit(op_type, part, &[x], vec![("axes", ints(axes)), keepdims]));
        }
        let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        let axes = self.integers(&axes)?;
        Ok(self.emit(op_type, part, &[x, &axes], vec![keepdims]))
    }

    /// What `body` makes of an image, which it sees in the order of axes of ONNX.
    fn in_nchw(
        &mut self,
        layout: ImageLayout,
        x: &str,
        ndim: usize,
        body: impl FnOnce(&mut Self, &str) -> Result<String, OnnxError>,
    ) -> Result<String, OnnxError> {
        if layout == ImageLayout::Nchw {
            return body(self, x);
        }
        let image = self.emit("Transpose", "nchw", &[x], vec![("perm", ints(&layout.perm_to_nchw(ndim)))]);
        let y = body(self, &image)?;
        Ok(self.emit("Transpose", "nhwc", &[&y], vec![("perm", ints(&layout.perm_from_nchw(ndim)))]))
    }

    fn pool(&mut self, x: &str, n: NodeId, op: &Pool) -> Result<String, OnnxError> {
        let spread = op.dilations.iter().any(|&d| d != 1);
        let op_type = match op.kind {
            PoolKind::Max => "MaxPool",
            PoolKind::Average if spread && self.opset < 19 => return self.spread_average(x, n, op),
            PoolKind::Average => "AveragePool",
        };
        let mut attributes = vec![
            ("kernel_shape", ints(&op.kernel)),
            ("strides", ints(&op.strides)),
            ("pads", pads(&op.pads_before, &op.pads_after)),
        ];
        if spread {
            attributes.push(("dilations", ints(&op.dilations)));
        }
        if op.kind == PoolKind::Average {
            attributes.push(("count_include_pad", Attribute::Int(i64::from(op.count_include_pad))));
        }
        Ok(self.emit(op_type, "", &[x], attributes))
    }
}

pub(super) fn axis(axis: usize) -> Vec<(&'static str, Attribute)> {
    vec![("axis", Attribute::Int(axis as i64))]
}

pub(super) fn ints(list: &[usize]) -> Attribute {
    Attribute::Ints(list.iter().map(|&v| v as i64).collect())
}

pub(super) fn pads(before: &[usize], after: &[usize]) -> Attribute {
    ints(&[before, after].concat())
}

pub(super) fn conv_attributes(op: &Conv, kernel: &[Dim]) -> Vec<(&'static str, Attribute)> {
    let mut attributes = vec![
        ("strides", ints(&op.strides)),
        ("pads", pads(&op.pads_before, &op.pads_after)),
        ("dilations", ints(&op.dilations)),
        ("group", Attribute::Int(op.groups as i64)),
    ];
    if let Some(taps) = kernel[2..].iter().map(Dim::as_extent).collect::<Option<Vec<usize>>>() {
        attributes.push(("kernel_shape", ints(&taps)));
    }
    attributes
}

/// A bound of a slice, counted from the end where that makes it a constant.
fn bound(dim: &Dim, extent: &Dim, step: i64) -> Dim {
    match (dim.as_const(), (dim - extent).as_const()) {
        // Before the first element; -1 would be the last one.
        (Some(v), _) if v < 0 && step < 0 => Dim::from(BEFORE),
        (Some(_), _) => dim.clone(),
        (None, Some(0..)) => Dim::from(AFTER),
        (None, Some(from_end)) => Dim::from(from_end),
        (None, None) => dim.clone(),
    }
}
