//! Operators that ONNX lacks, spelled as others: those of backward passes of convolutional networks as convolutions with axes
//! exchanged, windows, products and sums of windows, recurrences that are no layer of ONNX as loops, sketches as products and lookups, causal linear attention of many
//! positions as sums over chunks of them.

use margay_ir::ops::{
    Bits, Col2im, Const, Conv, ConvKernelGradient, Div, Equal, Im2col, ImageLayout, MatMul, MaxPoolGradient,
    Numbers, Reduce, ReduceKind, Reshape, Select, Slice, Transpose,
};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{AddError, Builder, Changed, Cx, Graph, NodeId, Op, Origin, Patch, Payload, Value, Verdict};
use margay_tensor::{DType, Dim};

use super::label;
use super::recurrent::Layer;
use crate::OnnxError;

/// The graph without operators that are exported as several others; `None` where it has none of them.
pub(super) fn spelled_out(g: &Graph) -> Result<Option<Graph>, OnnxError> {
    let mut out = g.clone();
    let rules = [Rule { name: "spell-out", apply: spelled }];
    let changed = rewrite("export", &mut out, &mut Cx::default(), &(), &rules).map_err(|e| {
        OnnxError::NotExportable { what: format!("graph `{}`", g.name()), reason: e.to_string() }
    })?;
    Ok((changed != Changed::No).then_some(out))
}

fn spelled(g: &Graph, n: NodeId, _: &()) -> RuleResult {
    let (origin, mut patch) = (g.node(n).origin.clone(), Patch::new());
    let results = match g.op(n) {
        Op::ConvKernelGradient(op) => {
            vec![Spelling { g, origin, patch: &mut patch }.conv_kernel_gradient(n, op)?]
        }
        Op::MaxPoolGradient(op) => vec![Spelling { g, origin, patch: &mut patch }.max_pool_gradient(n, op)?],
        Op::Sketch(op) => {
            vec![op.spelled(&mut Builder::patching(g, &mut patch, origin), g.inputs_of(n)[0])?]
        }
        Op::Recurrence(op) if Layer::find(g, n).is_none() => {
            op.repeated(&mut Builder::patching(g, &mut patch, origin), &g.inputs_of(n))?
        }
        Op::FeatureAttention(op) => {
            vec![op.decomposed(&mut Builder::patching(g, &mut patch, origin), &g.inputs_of(n))?]
        }
        Op::LinearAttention(op) if op.has_chunks(&g.ty(g.inputs_of(n)[0]).shape[2]) => {
            let inputs = g.inputs_of(n);
            let operands = [0, 1, 2].map(|i| inputs[i]);
            // The quotient stands for the whole.
            let parts = Origin::named(&format!("{}/chunks", label(&origin, g.op(n).name())));
            let quotient = op.in_chunks(&mut Builder::patching(g, &mut patch, parts), operands)?;
            vec![patch.add(g, Div, &quotient, origin)?]
        }
        _ => return Ok(Verdict::NoMatch),
    };
    g.values_of(n).zip(results).for_each(|(old, new)| patch.redirect(old, new));
    Ok(Verdict::Rewrite(patch))
}

/// The nodes that stand for one.
struct Spelling<'g> {
    g: &'g Graph,
    origin: Origin,
    patch: &'g mut Patch,
}

impl Spelling<'_> {
    fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, AddError> {
        self.patch.add(self.g, op, inputs, self.origin.clone())
    }

    fn shape(&self, v: Value) -> Vec<Dim> {
        self.patch.ty(self.g, v).shape.to_vec()
    }

    fn dtype(&self, v: Value) -> DType {
        self.patch.ty(self.g, v).dtype
    }

    fn transposed(&mut self, v: Value, perm: Vec<usize>) -> Result<Value, AddError> {
        if perm.iter().copied().eq(0..perm.len()) { Ok(v) } else { self.op(Transpose { perm }, &[v]) }
    }

    fn reshaped(&mut self, v: Value, shape: &[Dim]) -> Result<Value, AddError> {
        self.op(Reshape { shape: shape.to_vec() }, &[v])
    }

    /// Constants in the element type of a value.
    fn numbers(&mut self, like: Value, shape: &[usize], numbers: Vec<f64>) -> Result<Value, AddError> {
        let tensor = Numbers::Float(numbers).into_tensor(self.dtype(like), shape);
        let tensor = tensor.expect("as many numbers as the shape holds");
        self.op(Const { payload: Payload::new(tensor) }, &[])
    }

    /// Channels second.
    fn image(&mut self, v: Value, layout: ImageLayout) -> Result<Value, AddError> {
        let perm = layout.perm_to_nchw(self.shape(v).len());
        self.transposed(v, perm)
    }

    /// A convolution of X with dY, whose axes of images and channels are exchanged; of several groups, or where extents are open,
    /// dK = dY Pᵀ, group by group, where P holds the windows of X.
    fn conv_kernel_gradient(&mut self, n: NodeId, op: &ConvKernelGradient) -> Result<Value, AddError> {
        let operands = self.g.inputs_of(n);
        let (x, dy) = (self.image(operands[0], op.layout)?, self.image(operands[1], op.layout)?);
        let spatial = op.kernel.len();
        if let Some(conv) = self.exchanged(op, x, dy) {
            let perm: Vec<usize> = [1, 0].into_iter().chain(2..2 + spatial).collect();
            let (x, dy) = (self.transposed(x, perm.clone())?, self.transposed(dy, perm.clone())?);
            let found = self.op(conv, &[x, dy])?; // [C, O, kernel…]
            let mut shape = self.shape(found);
            let whole = shape.clone();
            shape.splice(2.., op.kernel.iter().map(|&k| Dim::from(k)));
            let found = match shape == whole {
                true => found,
                false => {
                    let (starts, steps) = (vec![Dim::default(); shape.len()], vec![1; shape.len()]);
                    self.op(Slice { starts, ends: shape, steps }, &[found])?
                }
            };
            return self.transposed(found, perm);
        }
        let im2col = Im2col {
            kernel: op.kernel.clone(),
            strides: op.strides.clone(),
            pads_before: op.pads_before.clone(),
            pads_after: op.pads_after.clone(),
            dilations: op.dilations.clone(),
            value: Bits::new(0.0),
        };
        let windows = self.op(im2col, &[x])?; // [N, C, kernel…, places…]
        let to = self.g.ty(n.into()).shape.to_vec(); // [O, C / groups, kernel…]
        let groups = Dim::from(op.groups);
        let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1usize), |all, d| &all * d);
        let places = product(&[&self.shape(dy)[..1], &self.shape(dy)[2..]].concat());
        let taps = product(&to[1..]);
        let perm = (1..2 + spatial).chain([0]).chain(2 + spatial..2 + 2 * spatial).collect();
        let windows = self.transposed(windows, perm)?; // [C, kernel…, N, places…]
        let windows = self.reshaped(windows, &[groups.clone(), taps, places.clone()])?;
        let windows = self.transposed(windows, vec![0, 2, 1])?;
        let outputs = Dim::from(to[0].as_extent().unwrap_or(op.groups) / op.groups);
        let dy = self.transposed(dy, [1, 0].into_iter().chain(2..2 + spatial).collect())?;
        let dy = self.reshaped(dy, &[groups, outputs, places])?;
        let product = self.op(MatMul, &[dy, windows])?;
        self.reshaped(product, &to)
    }

    /// The convolution whose result is the derivative, for images and cotangents with channels first.
    fn exchanged(&self, op: &ConvKernelGradient, x: Value, dy: Value) -> Option<Conv> {
        let spatial = |v: Value| self.shape(v)[2..].iter().map(Dim::as_extent).collect::<Option<Vec<_>>>();
        let (image, places) = (spatial(x)?, spatial(dy)?);
        // Where the last windows end: what lies behind them was not read.
        let after = (0..op.kernel.len()).map(|i| {
            let reach = op.strides[i] * places[i].checked_sub(1)? + op.dilations[i] * (op.kernel[i] - 1) + 1;
            Some(reach.saturating_sub(image[i] + op.pads_before[i]))
        });
        Some(Conv {
            strides: op.dilations.clone(),
            pads_before: op.pads_before.clone(),
            pads_after: after.collect::<Option<_>>().filter(|_| op.groups == 1)?,
            dilations: op.strides.clone(),
            groups: 1,
            layout: ImageLayout::Nchw,
        })
    }

    /// The first element that is the maximum of its window gets what reaches it.
    fn max_pool_gradient(&mut self, n: NodeId, op: &MaxPoolGradient) -> Result<Value, AddError> {
        let operands = self.g.inputs_of(n);
        let x = self.image(operands[0], op.layout)?;
        let (y, dy) = (self.image(operands[1], op.layout)?, self.image(operands[2], op.layout)?);
        let spatial = op.kernel.len();
        let im2col = |value| Im2col {
            kernel: op.kernel.clone(),
            strides: op.strides.clone(),
            pads_before: op.pads_before.clone(),
            pads_after: op.pads_after.clone(),
            dilations: op.dilations.clone(),
            value: Bits::new(value),
        };
        // Windows as [N, C, kernel…, places…], results as [N, C, 1…, places…].
        let mut shape = self.shape(y);
        shape.splice(2..2, std::iter::repeat_n(Dim::from(1usize), spatial));
        let (y, dy) = (self.reshaped(y, &shape)?, self.reshaped(dy, &shape)?);
        let windows = self.op(im2col(f64::NEG_INFINITY), &[x])?;
        let chosen = self.op(Equal, &[windows, y])?;
        // The first tap whose element is the maximum, or their number if there is none.
        let count: usize = op.kernel.iter().product();
        let mut shape = vec![1; 2 + 2 * spatial];
        shape[2..2 + spatial].copy_from_slice(&op.kernel);
        let numbers = self.numbers(x, &shape, (0..count).map(|tap| tap as f64).collect())?;
        let none = self.numbers(x, &[], vec![count as f64])?;
        let met = self.op(Select, &[chosen, numbers, none])?;
        let taps = (2..2 + spatial).collect();
        let first = self.op(Reduce { kind: ReduceKind::Min, axes: taps, keepdims: true }, &[met])?;
        let is_first = self.op(Equal, &[numbers, first])?;
        let zero = self.numbers(x, &[], vec![0.0])?;
        let sent = self.op(Select, &[is_first, dy, zero])?;
        let size = self.shape(x)[2..].to_vec();
        let sum = self.op(Col2im { im2col: im2col(0.0), size }, &[sent])?;
        let perm = op.layout.perm_from_nchw(2 + spatial);
        self.transposed(sum, perm)
    }
}
