//! `ConvTranspose`: a convolution that makes an image larger.
//!
//! Output `y = i stride + t dilation - before` sums input `i` times tap `t`. With `t dilation = q stride + r` the
//! outputs of phase `r` are a convolution of the input with every `stride`-th tap, backwards. The phases of all axes
//! become output channels of one ordinary convolution, whose result is interleaved and cut to size. Its kernel follows
//! from the constant kernel here, so that nothing of it is left to compute later.

use margay_ir::ops::{
    Add, Bits, Col2im, Conv, Im2col, ImageLayout, MatMul, Number, Pad, Reshape, Slice, Transpose,
};
use margay_ir::{Op, Value};
use margay_tensor::{Dim, Tensor};

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::convolutions::{sizes, spatial};
use super::slices::slice_axes;
use super::values::open;

/// `ConvTranspose`.
pub(super) fn conv_transpose(cx: &mut Importer, call: &Call) -> Imported {
    let (x, k, bias) = (call.input(0)?, call.input(1)?, call.optional(2));
    let data = spatial(cx, x)?;
    let kernel = cx.graph.constant(k).map(|p| p.tensor().clone());
    let Some(kernel) = kernel.filter(|_| data.len() < 3) else {
        return by_folding(cx, call, [x, k], bias, &data);
    };
    if kernel.shape().len() != data.len() + 2 || !(1..=2).contains(&data.len()) {
        let (expected, found) = (cx.ty(x).to_string(), kernel.shape());
        return Err(Refusal::Unsupported(format!("a kernel {found:?} for {expected} is not supported")));
    }
    let groups = usize::try_from(call.int("group", 1)?).unwrap_or(0);
    if groups == 0 || !kernel.shape()[0].is_multiple_of(groups) {
        let (found, channels) = (call.int("group", 1)?, kernel.shape()[0]);
        return Err(Refusal::Invalid(format!("expected groups that divide {channels}, found {found}")));
    }
    if let Some(declared) = call.ints("kernel_shape")?
        && !kernel.shape()[2..].iter().map(|&d| d as i64).eq(declared.iter().copied())
    {
        let found = &kernel.shape()[2..];
        return Err(Refusal::Invalid(format!("expected a kernel of {declared:?}, found {found:?}")));
    }
    if call.ints("output_shape")?.is_some() {
        cx.values_of(&data)?;
    }
    let axes = Axis::all(call, &data, &kernel.shape()[2..])?;
    let out_channels = groups * kernel.shape()[1];
    let phases = phases_of(&kernel, groups, &axes)?;
    let spread = |f: &dyn Fn(&Axis) -> usize| axes.iter().map(f).collect::<Vec<usize>>();
    let margin = spread(&|a| a.taps_per_phase() - 1);
    let op = Conv {
        strides: vec![1; axes.len()],
        pads_before: margin.clone(),
        pads_after: margin,
        dilations: vec![1; axes.len()],
        groups,
        layout: ImageLayout::Nchw,
    };
    let phases = cx.constant(phases)?;
    let y = cx.add(op, &[x, phases])?;
    let y = interleave(cx, y, out_channels, &axes)?;
    let mut y = cut(cx, y, &data, &axes)?;
    if let Some(bias) = bias {
        let mut shape = cx.ty(bias).shape.clone();
        shape.extend(vec![Dim::from(1usize); axes.len()]);
        let bias = cx.shaped(bias, shape)?;
        y = cx.add(Add, &[y, bias])?;
    }
    Ok(vec![y])
}

/// With a computed kernel, or along three axes: what each input adds to the outputs, summed where they overlap.
fn by_folding(
    cx: &mut Importer,
    call: &Call,
    [x, k]: [Value; 2],
    bias: Option<Value>,
    data: &[Dim],
) -> Imported {
    let (from, of) = (cx.ty(x).shape.clone(), cx.ty(k).shape.clone());
    let taps = of.get(2..).unwrap_or_default().iter().map(Dim::as_extent).collect::<Option<Vec<usize>>>();
    let taps = taps.filter(|t| t.len() == data.len() && !t.contains(&0));
    let taps = taps.ok_or_else(|| Refusal::Unsupported(format!("a kernel {} is not supported", cx.ty(k))))?;
    if let Some(declared) = call.ints("kernel_shape")?
        && !taps.iter().map(|&d| d as i64).eq(declared.iter().copied())
    {
        return Err(Refusal::Invalid(format!("expected a kernel of {declared:?}, found {taps:?}")));
    }
    let axes = Axis::all(call, data, &taps)?;
    let groups = Dim::from(call.int("group", 1)?);
    if !groups.is_positive() {
        return Err(Refusal::Invalid(format!("expected at least one group, found {groups}")));
    }
    let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1usize), |n, d| &n * d);
    let inputs = super::pixels::exact(&from[1], &groups)?;
    let (columns, places) = (product(&of[1..]), product(data));
    let rows = cx.shaped(k, vec![groups.clone(), inputs.clone(), columns])?;
    let rows = cx.transposed(rows, &[0, 2, 1])?;
    let images = cx.shaped(x, vec![from[0].clone(), groups.clone(), inputs, places])?;
    let windows = cx.add(MatMul, &[rows, images])?;
    let outputs = &of[1] * &groups;
    let split = [&[from[0].clone(), outputs], &of[2..], data].concat();
    let windows = cx.shaped(windows, split)?;
    let (mut size, mut before, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for (axis, extent) in axes.iter().zip(data) {
        let pads = usize::try_from(axis.before);
        before.push(
            pads.map_err(|_| Refusal::Unsupported(format!("padding of {} is not supported", axis.before)))?,
        );
        after.push(axis.more.min(0).unsigned_abs() as usize);
        let steps = &(extent - &Dim::from(1usize)) * &Dim::from(axis.stride);
        size.push(&steps + &Dim::from(axis.span() as i64 + axis.more - axis.before));
    }
    let im2col = Im2col {
        kernel: taps,
        strides: axes.iter().map(|a| a.stride).collect(),
        pads_before: before,
        pads_after: after,
        dilations: axes.iter().map(|a| a.dilation).collect(),
        value: Bits::new(0.0),
    };
    let mut y = cx.add(Col2im { im2col, size }, &[windows])?;
    if let Some(bias) = bias {
        let bias = cx.along(bias, 1, 2 + data.len())?;
        y = cx.plus(y, bias)?;
    }
    Ok(vec![y])
}

/// A spatial axis.
struct Axis {
    taps: usize,
    stride: usize,
    dilation: usize,
    /// Outputs cut off in front.
    before: i64,
    /// How many more outputs there are than the taps reach; fewer if negative.
    more: i64,
}

impl Axis {
    fn all(call: &Call, data: &[Dim], taps: &[usize]) -> Result<Vec<Axis>, Refusal> {
        let list = |name, default| match call.ints(name)? {
            Some(list) => sizes(name, list, data.len()),
            None => Ok(vec![default; data.len()]),
        };
        let (strides, dilations) = (list("strides", 1)?, list("dilations", 1)?);
        let extra = list("output_padding", 0)?;
        // Far beyond any image, and small enough that products of a few of them fit.
        const MOST: usize = 1 << 20;
        let within = |list: &[usize], low: usize| list.iter().all(|v| (low..=MOST).contains(v));
        if !within(&strides, 1) || !within(&dilations, 1) || !within(taps, 1) || !within(&extra, 0) {
            let expected = format!("expected strides, dilations and a kernel of 1 to {MOST}");
            return Err(Refusal::Invalid(expected));
        }
        let pads = match call.ints("pads")? {
            Some(list) => sizes("pads", list, 2 * data.len())?,
            None => vec![0; 2 * data.len()],
        };
        let kind = call.text("auto_pad", "NOTSET")?;
        let wanted = call.ints("output_shape")?;
        // Older models list the extents of all axes.
        let wanted = wanted.map(|w| &w[w.len().saturating_sub(data.len())..]);
        let mut axes = Vec::new();
        for (i, extent) in data.iter().enumerate() {
            let (stride, dilation, extra) = (strides[i], dilations[i], extra[i] as i64);
            let span = ((taps[i] - 1) * dilation + 1) as i64;
            // How far the result reaches behind the first of `reach` stepped inputs, where that is asked for.
            let (reach, asked) = match (wanted, kind) {
                (Some(wanted), _) => {
                    let extent = extent.as_extent().ok_or_else(|| open("the padding", extent))?;
                    let Some(&wanted) = wanted.get(i) else {
                        let (expected, found) = (data.len(), wanted.len());
                        let why = format!("expected {expected} extents in `output_shape`, found {found}");
                        return Err(Refusal::Invalid(why));
                    };
                    let reach = extent.saturating_sub(1).saturating_mul(stride);
                    if wanted < 1 || wanted as usize > MOST || reach > MOST * MOST {
                        return Err(Refusal::Unsupported(format!("an extent of {wanted} is not supported")));
                    }
                    (reach as i64, Some(wanted))
                }
                (None, "SAME_UPPER" | "SAME_LOWER") => (0, Some(stride as i64)),
                (None, "NOTSET" | "" | "VALID") => (0, None),
                (None, other) => return Err(Refusal::Invalid(format!("`{other}` is no way of padding"))),
            };
            let (before, more) = match asked {
                Some(asked) => {
                    let total = (reach + span + extra - asked).max(0);
                    let before = if kind == "SAME_UPPER" { total / 2 } else { total - total / 2 };
                    (before, before + asked - reach - span)
                }
                None if kind == "VALID" => (0, extra),
                None => (pads[i] as i64, extra - pads[data.len() + i] as i64),
            };
            axes.push(Axis { taps: taps[i], stride, dilation, before, more });
        }
        Ok(axes)
    }

    /// Elements from the first to the last tap.
    fn span(&self) -> usize {
        (self.taps - 1) * self.dilation + 1
    }

    fn taps_per_phase(&self) -> usize {
        self.span().div_ceil(self.stride)
    }
}

/// The kernel of the phases: `[O · strides…, C / groups, taps per phase…]` of a kernel `[C, O / groups, taps…]`.
fn phases_of(kernel: &Tensor, groups: usize, axes: &[Axis]) -> Result<Tensor, Refusal> {
    /// More than any kernel there is, spread or not.
    const MOST_ELEMENTS: usize = 1 << 30;
    let [channels, per_group] = [kernel.shape()[0], kernel.shape()[1]];
    let grown = axes.iter().map(|a| a.taps_per_phase() * a.stride);
    let elements = grown.chain([channels, per_group]).try_fold(1usize, usize::checked_mul);
    if elements.is_none_or(|n| n > MOST_ELEMENTS) {
        let why = format!("a spread kernel of more than {MOST_ELEMENTS} elements is not supported");
        return Err(Refusal::Unsupported(why));
    }
    let run = |op: Op, t: Tensor| -> Result<Tensor, Refusal> {
        let error = |e: margay_ir::ops::EvalError| Refusal::Invalid(e.to_string());
        op.eval(&[&t]).map_err(error)?.pop().ok_or_else(|| Refusal::Invalid("expected a kernel".into()))
    };
    let reshape = |t: Tensor, shape: Vec<usize>| run(Reshape { shape: dims(&shape) }.into(), t);
    let pad = |t: Tensor, after: Vec<i64>| {
        let before = vec![0; after.len()];
        run(Pad { before, after, value: Number::float(0.0) }.into(), t)
    };
    let mut k = kernel.clone();
    // Zeros between the taps, and behind them up to a multiple of the stride.
    let lead = [channels, per_group];
    k = reshape(k, lead.into_iter().chain(axes.iter().flat_map(|a| [a.taps, 1])).collect())?;
    k = pad(k, [0, 0].into_iter().chain(axes.iter().flat_map(|a| [0, a.dilation as i64 - 1])).collect())?;
    k = reshape(k, lead.into_iter().chain(axes.iter().map(|a| a.taps * a.dilation)).collect())?;
    let ends = lead.into_iter().chain(axes.iter().map(Axis::span)).collect::<Vec<usize>>();
    let ndim = ends.len();
    k = run(Slice { starts: dims(&vec![0; ndim]), ends: dims(&ends), steps: vec![1; ndim] }.into(), k)?;
    let behind = |a: &Axis| (a.taps_per_phase() * a.stride - a.span()) as i64;
    k = pad(k, [0, 0].into_iter().chain(axes.iter().map(behind)).collect())?;
    // [g, C/g, O/g, (m, s)…] to [g, O/g, s…, C/g, m…].
    let split = axes.iter().flat_map(|a| [a.taps_per_phase(), a.stride]);
    k = reshape(k, [groups, channels / groups, per_group].into_iter().chain(split).collect())?;
    let strides = (0..axes.len()).map(|i| 4 + 2 * i);
    let taps = (0..axes.len()).map(|i| 3 + 2 * i);
    k = run(
        Transpose { perm: [0, 2].into_iter().chain(strides).chain([1]).chain(taps).collect() }.into(),
        k,
    )?;
    let outputs = groups * per_group * axes.iter().map(|a| a.stride).product::<usize>();
    let lead = [outputs, channels / groups];
    k = reshape(k, lead.into_iter().chain(axes.iter().map(Axis::taps_per_phase)).collect())?;
    // Backwards.
    let backwards = Slice {
        starts: [0, 0]
            .into_iter()
            .chain(axes.iter().map(|a| a.taps_per_phase() as i64 - 1))
            .map(Dim::from)
            .collect(),
        ends: lead.into_iter().map(Dim::from).chain(axes.iter().map(|_| Dim::from(-1i64))).collect(),
        steps: [1, 1].into_iter().chain(axes.iter().map(|_| -1)).collect(),
    };
    run(backwards.into(), k)
}

fn dims(extents: &[usize]) -> Vec<Dim> {
    extents.iter().map(|&d| Dim::from(d)).collect()
}

/// `[N, O · strides…, j…]` to `[N, O, j · stride…]`.
fn interleave(cx: &mut Importer, y: Value, channels: usize, axes: &[Axis]) -> Result<Value, Refusal> {
    if axes.iter().all(|a| a.stride == 1) {
        return Ok(y);
    }
    let shape = cx.ty(y).shape.clone();
    let lead = [shape[0].clone(), Dim::from(channels)];
    let strides = axes.iter().map(|a| Dim::from(a.stride));
    let split = lead.iter().cloned().chain(strides).chain(shape[2..].iter().cloned()).collect();
    let y = cx.shaped(y, split)?;
    let n = axes.len();
    let perm = [0, 1].into_iter().chain((0..n).flat_map(|i| [2 + n + i, 2 + i])).collect();
    let y = cx.add(Transpose { perm }, &[y])?;
    let joined = shape[2..].iter().zip(axes).map(|(d, a)| d * &Dim::from(a.stride));
    cx.shaped(y, lead.iter().cloned().chain(joined).collect())
}

/// The outputs that are wanted: those from `before` on; where the taps do not reach, zeros.
fn cut(cx: &mut Importer, mut y: Value, data: &[Dim], axes: &[Axis]) -> Result<Value, Refusal> {
    let mut behind = vec![0; cx.ty(y).ndim()];
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for (i, (axis, extent)) in axes.iter().zip(data).enumerate() {
        // Where the last of what is wanted ends; there is the same with whole phases instead.
        let beyond = axis.span() as i64 + axis.more;
        ends.push(&(&(extent - &Dim::from(1usize)) * &Dim::from(axis.stride)) + &Dim::from(beyond));
        starts.push(Dim::from(axis.before));
        behind[i + 2] = (beyond - (axis.taps_per_phase() * axis.stride) as i64).max(0);
    }
    if behind.iter().any(|&p| p > 0) {
        y = cx.add(Pad { before: vec![0; behind.len()], after: behind, value: Number::float(0.0) }, &[y])?;
    }
    let spatial: Vec<usize> = (2..data.len() + 2).collect();
    slice_axes(cx, y, &spatial, &starts, &ends, &vec![1; axes.len()])
}
