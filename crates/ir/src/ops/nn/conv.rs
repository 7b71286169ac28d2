//! Convolution over one or two spatial axes: `Y[n, o, y] = Σ X[n, c, y stride + i dilation - before] K[o, c', i]`
//! with zeros outside X, where `c` runs over the channels of the group of `o` and `c'` is its place in the group.
//!
//! Operands are X `[N, C, spatial…]` and K `[O, C / groups, kernel…]`; the result is `[N, O, spatial…]`. With `layout`
//! `nhwc` the channels of X and of the result are last; K is the same. A bias is an addition afterwards.
//!
//! Of 8-bit integers X and K, each signed or not, sums are i32 and wrap around. A third operand, one number of the type of X,
//! is then taken off X. There is one group.
//!
//! Only the layout `nhwc` has a kernel: the pass `assign-layout` brings every convolution there.

use margay_loops::{Binary, Epilogue, Index, KernelCall, Literal, Nest, ProductTypes, Reg};
use margay_tensor::{DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::facts::{Image, Parameter};
use crate::ops::nn::layout::ImageLayout;
use crate::ops::nn::wide;
use crate::ops::shape::indices;
use crate::ops::{
    Bits, Case, CaseInput, Col2im, ConvKernelGradient, Cost, EvalError, Facts, Im2col, Io, Lowered, MatMul,
    NotLowered, OpDef, Reshape, Slice, Transpose,
};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{AddError, Op, TensorType, TypeError, Types, Value, types};

/// Convolution; the lists have one value per spatial axis. Defaults are those of two spatial axes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Conv {
    /// Steps between outputs.
    pub strides: Vec<usize>,
    /// Zeros in front of each spatial axis.
    pub pads_before: Vec<usize>,
    /// Zeros behind each spatial axis.
    pub pads_after: Vec<usize>,
    /// Steps between taps.
    pub dilations: Vec<usize>,
    /// Divides the channels of X and of the result.
    pub groups: usize,
    /// The order of the axes of X and of the result.
    pub layout: ImageLayout,
}

attributes!(Conv {
    strides = vec![1, 1],
    pads_before = vec![0, 0],
    pads_after = vec![0, 0],
    dilations = vec![1, 1],
    groups = 1,
    layout = ImageLayout::Nchw,
});

impl Conv {
    /// A 1x1 convolution over two spatial axes.
    pub fn pointwise() -> Conv {
        Conv::pointwise_over(2)
    }

    /// A convolution of one tap over so many spatial axes.
    pub fn pointwise_over(axes: usize) -> Conv {
        Conv {
            strides: vec![1; axes],
            pads_before: vec![0; axes],
            pads_after: vec![0; axes],
            dilations: vec![1; axes],
            groups: 1,
            layout: ImageLayout::Nchw,
        }
    }
}

impl OpDef for Conv {
    const NAME: &'static str = "conv";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let (x, k, result) = match *inputs {
            [x, k, ref zero @ ..] if is_byte(x.dtype) && zero.len() < 2 => {
                types::expect(1, k, is_byte(k.dtype), "i8 or u8")?;
                zero.iter().try_for_each(|zero| types::expect_single(2, zero, x.dtype))?;
                if self.groups != 1 {
                    let message = format!("{} groups of integers, expected 1", self.groups);
                    return Err(TypeError::attribute(message));
                }
                (x, k, DType::I32)
            }
            _ => {
                let [x, k] = types::inputs(inputs, "2")?;
                types::expect(0, x, x.dtype.is_float(), "a float type, i8 or u8")?;
                types::expect_dtype(1, k, x.dtype)?;
                (x, k, x.dtype)
            }
        };
        let windows = self.windows()?;
        if windows.len() > 2 {
            let message = format!("{} spatial axes, expected 1 or 2", windows.len());
            return Err(TypeError::attribute(message));
        }
        ImageLayout::check(x, windows.len())?;
        if k.ndim() != windows.len() + 2 {
            let expected = (windows.len() + 2).to_string();
            return Err(TypeError::Ndim { input: 1, expected, found: k.ndim() });
        }
        let x = &self.layout.type_to_nchw(x);
        let groups = Dim::from(self.groups);
        types::same_extent("channels of input 0 and of all groups", &x.shape[1], &(&k.shape[1] * &groups))?;
        let per_group = k.shape[0].floor_div(&groups);
        let Some(per_group) = per_group.filter(|d| (d * &groups) == k.shape[0]) else {
            let (groups, found) = (self.groups, &k.shape[0]);
            let message = format!("{groups} groups do not divide `{found}` channels of the result");
            return Err(TypeError::attribute(message));
        };
        let mut shape = vec![x.shape[0].clone(), &per_group * &groups];
        for (axis, w) in windows.iter().enumerate() {
            shape.push(w.outputs(axis, &x.shape[axis + 2], &k.shape[axis + 2])?);
        }
        types::one(result, self.layout.shape_from_nchw(&shape))
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, k) = (inputs[0], inputs[1]);
        let types: Vec<TensorType> = inputs.iter().map(|x| TensorType::of(x)).collect();
        let types = self.infer(&types.iter().collect::<Vec<_>>())?;
        let zero = inputs.get(2).map(|zero| Numbers::of(zero)).transpose()?.map(Numbers::floats);
        let zero = zero.and_then(|zero| zero.first().copied()).unwrap_or(0.0);
        let shape = self.layout.extents_to_nchw(&types[0].extents().unwrap_or_default());
        let x = &self.layout.tensor_to_nchw(x)?;
        let windows = self.planar_windows()?;
        let (size, taps) = (planar(&x.shape()[2..]), planar(&k.shape()[2..]));
        let (channels, per_group) = (x.shape()[1], k.shape()[1]);
        let (xs, ks) = (Numbers::of(x)?.floats(), Numbers::of(k)?.floats());
        let [height, width] = planar(&shape[2..]);
        let mut out = Vec::with_capacity(shape.iter().product());
        for at in indices(&[shape[0], shape[1], height, width]) {
            let first = at[1] / (shape[1] / self.groups) * per_group;
            let mut sum = 0.0;
            for tap in indices(&[per_group, taps[0], taps[1]]) {
                let row = windows[0].position(at[2], tap[1], size[0]);
                let col = windows[1].position(at[3], tap[2], size[1]);
                if let (Some(row), Some(col)) = (row, col) {
                    let x = xs[((at[0] * channels + first + tap[0]) * size[0] + row) * size[1] + col];
                    sum +=
                        (x - zero) * ks[((at[1] * per_group + tap[0]) * taps[0] + tap[1]) * taps[1] + tap[2]];
                }
            }
            out.push(sum);
        }
        let out = match types[0].dtype {
            // Sums of bytes are exact.
            DType::I32 => Numbers::Int(out.into_iter().map(|sum| sum as i128).collect()),
            _ => Numbers::Float(out),
        };
        let y = out.into_tensor(types[0].dtype, &shape)?;
        Ok(vec![self.layout.tensor_from_nchw(&y)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        if self.layout != ImageLayout::Nchw {
            return Grad::none("there is no rule for channels last; layouts are assigned afterwards");
        }
        if is_byte(cx.ty(cx.input(0)).dtype) {
            return Grad::none("a convolution of integers has no derivative");
        }
        let (x, k, dy) = (cx.input(0), cx.input(1), cx.cotangent()?);
        let Some(known) = cx.ty(k).shape.iter().map(Dim::as_extent).collect::<Option<Vec<usize>>>() else {
            return Grad::none("the extents of its kernel are open");
        };
        let dx = if cx.wants(0) { Some(self.by_image(cx, &known)?) } else { None };
        let dk = if cx.wants(1) {
            Some(cx.op(ConvKernelGradient::of(self, &known[2..]), &[x, dy])?)
        } else {
            None
        };
        Ok(Grad::Inputs(vec![dx, dk]))
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (x, k, y) = (&io.inputs[0], &io.inputs[1], &io.outputs[0]);
        if wide::is_wide(x) {
            return wide::conv(self, io);
        }
        if !x.is_contiguous() || !k.is_contiguous() {
            return Err(NotLowered("a convolution of an operand that is not row-major".into()));
        }
        let [h, w] = self.planar_windows().map_err(|e| NotLowered(e.to_string()))?;
        Ok(Lowered::Call(KernelCall::Conv(margay_loops::Conv {
            channels_last: self.layout == ImageLayout::Nhwc,
            batch: x.shape[0],
            in_channels: x.shape[self.layout.channel_axis(x.shape.len())],
            out_channels: k.shape[0],
            groups: self.groups,
            in_size: planar(self.layout.spatial_extents(&x.shape)),
            out_size: planar(self.layout.spatial_extents(&y.shape)),
            kernel: planar(&k.shape[2..]),
            strides: [h.stride, w.stride],
            pads: [h.before, w.before],
            dilations: [h.dilation, w.dilation],
            k_packed: k.constant,
            zero: io.inputs.len() > 2,
            types: ProductTypes { right: k.stored_type(), result: y.dtype, ..ProductTypes::of(x.dtype) },
            epilogue: Epilogue::default(),
        })))
    }

    fn cost(&self, io: &Io) -> Cost {
        let taps: usize = io.inputs[1].shape[1..].iter().product();
        Cost { flops: 2 * taps as u64 * io.output_elements(), bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts {
            elementwise: None,
            cheap: false,
            identity: false,
            symbolic: None,
            parameters: &[None, Some(Parameter::Weight(|k| k.iter().skip(1).product())), None],
            image: Some(Image {
                layout: self.layout,
                channels_last: Conv { layout: ImageLayout::Nhwc, ..self.clone() }.into(),
                operands: 1,
                result: true,
                demanding: true,
            }),
            with_all_results: None,
        }
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.along(
            self.clone(),
            |input, axis| if (input, axis) == (0, 0) { Along::Apart } else { Along::Change },
        )
    }

    fn cases() -> Vec<(Self, Case)> {
        let plain = Conv {
            strides: vec![1, 1],
            pads_before: vec![0, 0],
            pads_after: vec![0, 0],
            dilations: vec![1, 1],
            groups: 1,
            layout: ImageLayout::Nchw,
        };
        let same = Conv { pads_before: vec![1, 1], pads_after: vec![1, 1], ..plain.clone() };
        let cases: Vec<(Conv, [&[usize]; 2])> = vec![
            (plain.clone(), [&[1, 3, 5, 7], &[4, 3, 3, 3]]),
            (same.clone(), [&[2, 2, 5, 4], &[3, 2, 3, 3]]),
            (Conv { strides: vec![2, 2], ..same.clone() }, [&[1, 2, 7, 6], &[3, 2, 3, 3]]),
            (Conv { groups: 2, ..same.clone() }, [&[1, 4, 5, 5], &[6, 2, 3, 3]]),
            (Conv { groups: 3, ..same.clone() }, [&[1, 3, 6, 5], &[3, 1, 3, 3]]),
            (Conv { dilations: vec![2, 1], ..same }, [&[1, 2, 7, 5], &[2, 2, 3, 2]]),
            (Conv { pads_before: vec![0, 2], ..plain.clone() }, [&[1, 1, 4, 3], &[2, 1, 2, 4]]),
            (plain, [&[2, 5, 3, 3], &[4, 5, 1, 1]]),
            (
                Conv {
                    strides: vec![2],
                    pads_before: vec![2],
                    pads_after: vec![1],
                    dilations: vec![2],
                    groups: 1,
                    layout: ImageLayout::Nchw,
                },
                [&[2, 3, 11], &[4, 3, 3]],
            ),
        ];
        let in_layout = |layout: ImageLayout| {
            let case = move |(op, [x, k]): &(Conv, [&[usize]; 2])| {
                let x: Vec<usize> = layout.perm_from_nchw(x.len()).iter().map(|&p| x[p]).collect();
                (Conv { layout, ..op.clone() }, Case::f32(&[&x, k]))
            };
            cases.iter().map(case)
        };
        let numbers = in_layout(ImageLayout::Nchw).chain(in_layout(ImageLayout::Nhwc));
        numbers.chain(byte_cases(&cases)).collect()
    }
}

/// Whether sums of products of the type are of 32 bits.
fn is_byte(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::U8)
}

/// The cases of one group on bytes of every kind, with and without a number that is taken off.
fn byte_cases(cases: &[(Conv, [&[usize]; 2])]) -> Vec<(Conv, Case)> {
    let mut found = Vec::new();
    for (op, [x, k]) in cases.iter().filter(|(op, _)| op.groups == 1) {
        for (left, right) in [(DType::U8, DType::I8), (DType::I8, DType::I8), (DType::U8, DType::U8)] {
            let random = |dtype, shape: &[usize]| {
                let (low, high) = if dtype == DType::I8 { (-128.0, 128.0) } else { (0.0, 256.0) };
                CaseInput::Random { dtype, shape: shape.to_vec(), low, high }
            };
            let plain = Case { inputs: vec![random(left, x), random(right, k)] };
            found.push((op.clone(), plain.clone()));
            found.push((op.clone(), plain.with(random(left, &[]))));
        }
    }
    found
}

impl Conv {
    /// The cotangent of X for a kernel of these extents.
    fn by_image(&self, cx: &mut Vjp<'_>, kernel: &[usize]) -> Result<Value, AddError> {
        let (x, k, dy) = (cx.input(0), cx.input(1), cx.cotangent()?);
        let groups = Dim::from(self.groups);
        let outputs = Dim::from(kernel[0] / self.groups);
        let spatial = &kernel[2..];
        // Zeros that a convolution back would need in front of and behind dY.
        let back = |pads: &[usize]| -> Option<Vec<usize>> {
            let pad = |axis: usize| ((spatial[axis] - 1) * self.dilations[axis]).checked_sub(pads[axis]);
            (0..spatial.len()).map(pad).collect()
        };
        let backwards = (back(&self.pads_before), back(&self.pads_after));
        if let (Some(pads_before), Some(pads_after)) = backwards
            && self.strides.iter().all(|&s| s == 1)
        {
            // A convolution of dY with the kernel flipped: dX [N, C] from K [G, O/G, C/G, …] as [C, O/G, …].
            let taps = spatial.iter().map(|&d| Dim::from(d)).collect::<Vec<_>>();
            let (inputs, one) = (Dim::from(kernel[1]), Dim::from(1usize));
            let split = [&[groups.clone(), outputs.clone(), inputs.clone()], &taps[..]].concat();
            let swapped = cx.op(Reshape { shape: split }, &[k])?;
            let perm = [0, 2, 1].into_iter().chain(3..3 + spatial.len()).collect();
            let swapped = cx.op(Transpose { perm }, &[swapped])?;
            let shape = [&[&groups * &inputs, outputs.clone()], &taps[..]].concat();
            let swapped = cx.op(Reshape { shape }, &[swapped])?;
            let whole = vec![Dim::default(), Dim::default()];
            let flipped = Slice {
                starts: whole.into_iter().chain(taps.iter().map(|d| d - &one)).collect(),
                ends: [&groups * &inputs, outputs]
                    .into_iter()
                    .chain(taps.iter().map(|_| &Dim::default() - &one))
                    .collect(),
                steps: [1, 1].into_iter().chain(taps.iter().map(|_| -1)).collect(),
            };
            let swapped = cx.op(flipped, &[swapped])?;
            return cx.op(Conv { pads_before, pads_after, ..self.clone() }, &[dy, swapped]);
        }
        // Per group columns [N, G, T, P] = Kᵀ [G, T, O/G] dY [N, G, O/G, P] for P places, summed where they overlap.
        let image = cx.ty(x).shape.clone();
        let terms = Dim::from(kernel[1..].iter().product::<usize>());
        let pixels = cx.ty(dy).shape[2..].iter().fold(Dim::from(1usize), |n, d| &n * d);
        let dy =
            cx.op(Reshape { shape: vec![image[0].clone(), groups.clone(), outputs.clone(), pixels] }, &[dy])?;
        let per_group = cx.op(Reshape { shape: vec![groups, outputs, terms] }, &[k])?;
        let swapped = cx.transposed(per_group)?;
        let columns = cx.op(MatMul, &[swapped, dy])?;
        let im2col = Im2col {
            kernel: spatial.to_vec(),
            strides: self.strides.clone(),
            pads_before: self.pads_before.clone(),
            pads_after: self.pads_after.clone(),
            dilations: self.dilations.clone(),
            value: Bits::new(0.0),
        };
        let shape = im2col.unfolded(cx.ty(x))?;
        let columns = cx.op(Reshape { shape }, &[columns])?;
        cx.op(Col2im { im2col, size: image[2..].to_vec() }, &[columns])
    }

    pub(super) fn windows(&self) -> Result<Vec<Window>, TypeError> {
        Window::all(self.strides.len(), &self.strides, &self.dilations, &self.pads_before, &self.pads_after)
    }

    /// The windows of two spatial axes: one axis is the second of two, the first has extent 1.
    pub(super) fn planar_windows(&self) -> Result<[Window; 2], TypeError> {
        let still = Window { stride: 1, dilation: 1, before: 0, after: 0 };
        Ok(match self.windows()?.as_slice() {
            [h, w] => [*h, *w],
            [w] => [still, *w],
            _ => [still, still],
        })
    }
}

/// Extents of one or two spatial axes as those of two.
pub(super) fn planar(extents: &[usize]) -> [usize; 2] {
    match extents {
        [h, w] => [*h, *w],
        [w] => [1, *w],
        _ => [1, 1],
    }
}

/// How a window moves along one spatial axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) stride: usize,
    pub(super) dilation: usize,
    pub(super) before: usize,
    pub(super) after: usize,
}

impl Window {
    /// The windows of `spatial` axes; checks the attributes they come from.
    pub(super) fn all(
        spatial: usize,
        strides: &[usize],
        dilations: &[usize],
        before: &[usize],
        after: &[usize],
    ) -> Result<Vec<Window>, TypeError> {
        if !(1..=3).contains(&spatial) {
            let message = format!("{spatial} spatial axes, expected 1 to 3");
            return Err(TypeError::attribute(message));
        }
        for (name, list) in
            [("strides", strides), ("dilations", dilations), ("pads_before", before), ("pads_after", after)]
        {
            if list.len() != spatial {
                let message = format!("{name} has {} values for {spatial} spatial axes", list.len());
                return Err(TypeError::attribute(message));
            }
        }
        // Far beyond any image, and small enough that products of a few of them fit.
        const MAX: usize = 1 << 20;
        for (name, list) in
            [("strides", strides), ("dilations", dilations), ("pads_before", before), ("pads_after", after)]
        {
            if let Some(found) = list.iter().find(|v| **v > MAX) {
                return Err(TypeError::attribute(format!("{name} contains {found}, expected at most {MAX}")));
            }
        }
        for (name, list) in [("strides", strides), ("dilations", dilations)] {
            if list.contains(&0) {
                return Err(TypeError::attribute(format!("{name} contains 0")));
            }
        }
        let window = |i: usize| Window {
            stride: strides[i],
            dilation: dilations[i],
            before: before[i],
            after: after[i],
        };
        Ok((0..spatial).map(window).collect())
    }

    /// The number of windows: `floordiv(extent + before + after - dilation (kernel - 1) - 1, stride) + 1`.
    pub(super) fn outputs(&self, axis: usize, extent: &Dim, kernel: &Dim) -> Result<Dim, TypeError> {
        let one = Dim::from(1usize);
        let padded = &(extent + &Dim::from(self.before)) + &Dim::from(self.after);
        let span = &(&Dim::from(self.dilation) * &(kernel - &one)) + &one;
        let room = &padded - &span;
        let negative = |d: &Dim| d.as_const().is_some_and(|v| v < 0);
        match room.floor_div(&Dim::from(self.stride)) {
            Some(steps) if !negative(&room) && !negative(&(kernel - &one)) => Ok(&steps + &one),
            _ => Err(TypeError::attribute(format!(
                "spatial axis {axis}: a window of `{span}` does not fit a padded extent of `{padded}`"
            ))),
        }
    }

    /// The place of the window that has element `here` under tap `tap`, `(here + before - tap dilation) / stride`; with
    /// whether there is one below `places`, and `guard` holds.
    pub(super) fn place(
        &self,
        n: &mut Nest,
        guard: Option<Reg>,
        here: &Index,
        tap: &Index,
        places: usize,
    ) -> (Index, Reg) {
        let padded = here.plus(&Index::constant(self.before as i64), 1).plus(tap, -(self.dilation as i64));
        let int = |n: &mut Nest, v: i64| n.literal(Literal::Int(DType::I64, v));
        let position = n.index_value(&padded);
        let (zero, stride) = (int(n, 0), int(n, self.stride as i64));
        let mut test = n.binary(Binary::Le, zero, position);
        if let Some(guard) = guard {
            test = n.binary(Binary::And, guard, test);
        }
        let place = if self.stride == 1 {
            padded
        } else {
            let place = n.binary(Binary::Div, position, stride);
            let back = n.mul(place, stride);
            let whole = n.binary(Binary::Eq, back, position);
            test = n.binary(Binary::And, test, whole);
            Index::reg(place)
        };
        let (value, count) = (n.index_value(&place), int(n, places as i64));
        let below = n.binary(Binary::Lt, value, count);
        (place, n.binary(Binary::And, test, below))
    }

    /// Where windows of `kernel` elements do not overlap, the place of the only one that has element `here`; with whether
    /// there is one below `places`, and `guard` holds.
    pub(super) fn only_place(
        &self,
        n: &mut Nest,
        guard: Option<Reg>,
        here: &Index,
        kernel: usize,
        places: usize,
    ) -> Option<(Index, Reg)> {
        if self.stride < kernel || self.dilation != 1 {
            return None;
        }
        let int = |n: &mut Nest, v: usize| n.literal(Literal::Int(DType::I64, v as i64));
        let position = n.index_value(&here.plus(&Index::constant(self.before as i64), 1));
        let (stride, kernel, count) = (int(n, self.stride), int(n, kernel), int(n, places));
        let place = n.binary(Binary::Div, position, stride);
        let start = n.mul(place, stride);
        let tap = n.sub(position, start);
        let tests = [n.binary(Binary::Lt, tap, kernel), n.binary(Binary::Lt, place, count)];
        let test = tests.into_iter().chain(guard).reduce(|x, y| n.binary(Binary::And, x, y))?;
        Some((Index::reg(place), test))
    }

    /// `guard`, and that `at` lies in an axis of this extent, tested only where there is padding.
    pub(super) fn inside(&self, n: &mut Nest, guard: Option<Reg>, at: &Index, extent: usize) -> Option<Reg> {
        let mut tests: Vec<Reg> = guard.into_iter().collect();
        if self.before > 0 {
            let (at, zero) = (n.index_value(at), n.literal(Literal::Int(DType::I64, 0)));
            tests.push(n.binary(Binary::Le, zero, at));
        }
        if self.after > 0 {
            let (at, extent) = (n.index_value(at), n.literal(Literal::Int(DType::I64, extent as i64)));
            tests.push(n.binary(Binary::Lt, at, extent));
        }
        tests.into_iter().reduce(|x, y| n.binary(Binary::And, x, y))
    }

    /// The element under tap `tap` of window `i`, if it is not in the padding.
    pub(super) fn position(&self, i: usize, tap: usize, extent: usize) -> Option<usize> {
        let tap = tap.saturating_mul(self.dilation);
        let padded = i.saturating_mul(self.stride).saturating_add(tap);
        padded.checked_sub(self.before).filter(|&p| p < extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Strided;

    fn ty(text: &[&str]) -> TensorType {
        TensorType::new(DType::F32, text.iter().map(|t| Dim::parse(t).unwrap()).collect())
    }

    fn one_axis(stride: usize, pad: usize) -> Conv {
        Conv {
            strides: vec![stride],
            pads_before: vec![pad],
            pads_after: vec![pad],
            dilations: vec![1],
            groups: 1,
            layout: ImageLayout::Nchw,
        }
    }

    #[test]
    fn extents_stay_symbolic() {
        let (x, k) = (ty(&["B", "3", "T"]), ty(&["8", "3", "3"]));
        assert_eq!(one_axis(1, 1).infer(&[&x, &k]).unwrap()[0], ty(&["B", "8", "T"]));
        let halved = ty(&["B", "8", "floordiv(T - 1, 2) + 1"]);
        assert_eq!(one_axis(2, 1).infer(&[&x, &k]).unwrap()[0], halved);
    }

    #[test]
    fn channels_last_have_the_same_extents_in_another_order() {
        let (x, k) = (ty(&["B", "T", "3"]), ty(&["8", "3", "3"]));
        let last = Conv { layout: ImageLayout::Nhwc, ..one_axis(2, 1) };
        assert_eq!(last.infer(&[&x, &k]).unwrap()[0], ty(&["B", "floordiv(T - 1, 2) + 1", "8"]));
    }

    #[test]
    fn refusals_say_why() {
        let (x, k) = (ty(&["1", "4", "2"]), ty(&["6", "4", "3"]));
        let error = |conv: Conv, x: &TensorType| conv.infer(&[x, &k]).unwrap_err().to_string();
        assert_eq!(
            error(one_axis(1, 0), &x),
            "spatial axis 0: a window of `3` does not fit a padded extent of `2`"
        );
        assert_eq!(
            error(Conv { groups: 4, ..one_axis(1, 1) }, &ty(&["1", "16", "2"])),
            "4 groups do not divide `6` channels of the result"
        );
        assert_eq!(error(one_axis(0, 1), &x), "strides contains 0");
        let ports = [[1, 4, 2], [6, 4, 3]].map(|s| Strided::contiguous(DType::F32, &s));
        let io = Io { inputs: ports.to_vec(), outputs: vec![Strided::contiguous(DType::F32, &[1, 6, 2])] };
        assert!(matches!(one_axis(1, 1).lower(&io), Ok(Lowered::Call(_))), "images with channels second");
        let last = Conv { layout: ImageLayout::Nhwc, ..one_axis(1, 1) };
        let flipped = Strided { strides: vec![12, 3, -1], ..ports[1].clone() };
        let io = Io { inputs: vec![ports[0].clone(), flipped], ..io };
        assert_eq!(
            last.lower(&io).err().map(|e| e.0).unwrap_or_default(),
            "a convolution of an operand that is not row-major"
        );
    }
}
