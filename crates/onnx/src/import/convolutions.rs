//! Convolution and pooling: operators with windows.

use margay_ir::Value;
use margay_ir::ops::{Add, Concat, Conv, ImageLayout, Number, Pad, Reduce, ReduceKind, Silu};
use margay_tensor::Dim;

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::slices::slice_axes;
use super::values::open;

/// `Conv`; a bias is added afterwards.
pub(super) fn conv(cx: &mut Importer, call: &Call) -> Imported {
    let (x, k, bias) = (call.input(0)?, call.input(1)?, call.optional(2));
    Ok(vec![with_bias(cx, call, x, k, bias)?])
}

/// `NhwcConv`: images and kernels with their channels last.
pub(super) fn nhwc_conv(cx: &mut Importer, call: &Call) -> Imported {
    let (x, k, bias) = (call.input(0)?, call.input(1)?, call.optional(2));
    if cx.ty(x).ndim() != 4 || cx.ty(k).ndim() != 4 {
        return Err(Refusal::Unsupported(format!("images {} are not supported", cx.ty(x))));
    }
    let (x, k) = (cx.transposed(x, &[0, 3, 1, 2])?, cx.transposed(k, &[0, 3, 1, 2])?);
    let y = with_bias(cx, call, x, k, bias)?;
    Ok(vec![cx.transposed(y, &[0, 2, 3, 1])?])
}

fn with_bias(
    cx: &mut Importer,
    call: &Call,
    x: Value,
    k: Value,
    bias: Option<Value>,
) -> Result<Value, Refusal> {
    let mut y = convolved(cx, call, [x, k], None)?;
    if let Some(bias) = bias {
        let mut shape = cx.ty(bias).shape.clone();
        shape.extend(vec![Dim::from(1usize); cx.ty(k).ndim().saturating_sub(2)]);
        let bias = cx.shaped(bias, shape)?;
        y = cx.add(Add, &[y, bias])?;
    }
    Ok(y)
}

/// A convolution by the attributes of a call, of integers less `zero` if there is one: along at most two axes in one group.
pub(super) fn convolved(
    cx: &mut Importer,
    call: &Call,
    [x, k]: [Value; 2],
    zero: Option<Value>,
) -> Result<Value, Refusal> {
    let (data, taps) = (spatial(cx, x)?, spatial(cx, k)?);
    if taps.len() != data.len() {
        let (found, expected) = (cx.ty(k).ndim(), cx.ty(x).ndim());
        return Err(Refusal::Invalid(format!("input 1 has {found} axes, expected {expected}")));
    }
    if let Some(declared) = call.ints("kernel_shape")?
        && !taps.iter().cloned().eq(declared.iter().map(|&d| Dim::from(d)))
    {
        let found = margay_ir::types::ShapeText(&taps);
        return Err(Refusal::Invalid(format!("expected a kernel of {declared:?}, found {found}")));
    }
    decide(cx, call, &data)?;
    let windows = Windows::new(call, &data, &taps, false)?;
    let groups = call.int("group", 1)?;
    let groups = usize::try_from(groups)
        .ok()
        .filter(|&g| g > 0)
        .ok_or_else(|| Refusal::Invalid(format!("expected at least one group, found {groups}")))?;
    if data.len() > 2 {
        return by_planes(cx, x, k, windows, groups);
    }
    let op = Conv {
        strides: windows.strides,
        pads_before: windows.before,
        pads_after: windows.after,
        dilations: windows.dilations,
        groups,
        layout: ImageLayout::Nchw,
    };
    let operands: Vec<Value> = [x, k].into_iter().chain(zero).collect();
    cx.add(op, &operands)
}

/// A convolution along three axes: one along two, of images that have as channels those of all planes that a window
/// covers. Planes are samples of its batch.
fn by_planes(
    cx: &mut Importer,
    x: Value,
    k: Value,
    windows: Windows,
    groups: usize,
) -> Result<Value, Refusal> {
    let (of, from) = (cx.ty(k).shape.clone(), cx.ty(x).shape.clone());
    if from.len() != 5 {
        let axes = from.len() - 2;
        return Err(Refusal::Unsupported(format!("a convolution along {axes} axes is not supported")));
    }
    let Some(taps) = of[2].as_extent().filter(|&taps| taps > 0) else {
        return Err(Refusal::Unsupported("a kernel of unknown size is not supported".into()));
    };
    let [batch, height, width] = [&from[0], &from[3], &from[4]].map(Dim::clone);
    let each = super::pixels::exact(&from[1], &Dim::from(groups))?;

    // [N, D, groups, C / groups, H, W], with zero planes around.
    let planes = cx.transposed(x, &[0, 2, 1, 3, 4])?;
    let grouped =
        vec![batch.clone(), from[2].clone(), Dim::from(groups), each, height.clone(), width.clone()];
    let mut planes = cx.shaped(planes, grouped)?;
    if windows.before[0] + windows.after[0] > 0 {
        let around = |depth: usize| vec![0, depth as i64, 0, 0, 0, 0];
        let (before, after) = (around(windows.before[0]), around(windows.after[0]));
        planes = cx.add(Pad { before, after, value: Number::float(0.0) }, &[planes])?;
    }
    let (stride, dilation) = (windows.strides[0] as i64, windows.dilations[0] as i64);
    let depth = cx.ty(planes).shape[1].clone();
    let span = Dim::from((taps as i64 - 1) * dilation + 1);
    if depth.as_extent().zip(span.as_extent()).is_some_and(|(depth, span)| depth < span) {
        return Err(Refusal::Invalid(format!(
            "a window of `{span}` does not fit a padded extent of `{depth}`"
        )));
    }
    let steps = (&depth - &span).floor_div(&Dim::from(stride));
    let steps = steps.ok_or_else(|| Refusal::Invalid("a stride of 0".into()))?;
    let last = &steps * &Dim::from(stride);
    let part = |cx: &mut Importer, tap: usize| {
        let start = Dim::from(tap as i64 * dilation);
        let end = &(&start + &last) + &Dim::from(1usize);
        slice_axes(cx, planes, &[1], &[start], &[end], &[stride])
    };
    let parts = (0..taps).map(|tap| part(cx, tap)).collect::<Result<Vec<_>, _>>()?;
    let covered = match parts.as_slice() {
        [only] => *only,
        all => cx.add(Concat { axis: 3 }, all)?,
    };
    let steps = &steps + &Dim::from(1usize);
    let images = cx.shaped(covered, vec![&batch * &steps, &from[1] * &Dim::from(taps), height, width])?;

    let kernel = cx.turned(k, &[0, 2, 1, 3, 4])?;
    let kernel = cx.shaped(kernel, vec![of[0].clone(), &of[1] * &of[2], of[3].clone(), of[4].clone()])?;
    let op = Conv {
        strides: windows.strides[1..].to_vec(),
        pads_before: windows.before[1..].to_vec(),
        pads_after: windows.after[1..].to_vec(),
        dilations: windows.dilations[1..].to_vec(),
        groups,
        layout: ImageLayout::Nchw,
    };
    let y = cx.add(op, &[images, kernel])?;
    let [height, width] = [2, 3].map(|axis| cx.ty(y).shape[axis].clone());
    let y = cx.shaped(y, vec![batch, steps, of[0].clone(), height, width])?;
    cx.transposed(y, &[0, 2, 1, 3, 4])
}

/// `CausalConvWithState`: each channel with a kernel of its own, which ends at the element; what comes before the first
/// one is a state, and the last elements are the next.
pub(super) fn causal_conv_with_state(cx: &mut Importer, call: &Call) -> Imported {
    let (x, k, bias, past) = (call.input(0)?, call.input(1)?, call.optional(2), call.optional(3));
    let (shape, taps) = (cx.ty(x).shape.clone(), spatial(cx, k)?);
    let known = (shape.get(1).and_then(Dim::as_extent), taps.first().and_then(Dim::as_extent));
    let (Some(channels), Some(taps)) = known else {
        return Err(Refusal::Unsupported("an open number of channels or taps is not supported".into()));
    };
    if shape.len() != 3 || taps == 0 || cx.ty(k).ndim() != 3 {
        return Err(Refusal::Invalid(format!("a kernel {} for {}", cx.ty(k), cx.ty(x))));
    }
    let past = match past {
        Some(past) => past,
        None => {
            let zero = cx.number(x, 0.0)?;
            cx.spread(zero, vec![shape[0].clone(), shape[1].clone(), Dim::from(taps - 1)])?
        }
    };
    let whole = cx.add(Concat { axis: 2 }, &[past, x])?;
    let op = Conv {
        strides: vec![1],
        pads_before: vec![0],
        pads_after: vec![0],
        dilations: vec![1],
        groups: channels,
        layout: ImageLayout::Nchw,
    };
    let mut y = cx.add(op, &[whole, k])?;
    if let Some(bias) = bias {
        let bias = cx.along(bias, 1, 3)?;
        y = cx.plus(y, bias)?;
    }
    let y = match call.text("activation", "none")? {
        "none" => y,
        "silu" | "swish" => cx.add(Silu, &[y])?,
        other => return Err(Refusal::Invalid(format!("`{other}` is no activation"))),
    };
    let end = cx.ty(whole).shape[2].clone();
    let start = &end - &Dim::from(taps - 1);
    let next = super::slices::slice_axes(cx, whole, &[2], &[start], &[end], &[1])?;
    Ok(vec![y, next])
}

/// `GlobalAveragePool`.
pub(super) fn global_average_pool(cx: &mut Importer, call: &Call) -> Imported {
    global(cx, call, ReduceKind::Mean)
}

/// `GlobalMaxPool`.
pub(super) fn global_max_pool(cx: &mut Importer, call: &Call) -> Imported {
    global(cx, call, ReduceKind::Max)
}

fn global(cx: &mut Importer, call: &Call, kind: ReduceKind) -> Imported {
    let x = call.input(0)?;
    spatial(cx, x)?;
    let axes = (2..cx.ty(x).ndim()).collect();
    Ok(vec![cx.add(Reduce { kind, axes, keepdims: true }, &[x])?])
}

/// Takes extents that are known for fixed where the padding depends on them.
pub(super) fn decide(cx: &mut Importer, call: &Call, data: &[Dim]) -> Result<(), Refusal> {
    let strides = call.ints("strides")?.unwrap_or_default();
    let same = matches!(call.text("auto_pad", "NOTSET")?, "SAME_UPPER" | "SAME_LOWER");
    if same && strides.iter().any(|&s| s != 1) { cx.values_of(data) } else { Ok(()) }
}

/// The extents after the first two.
pub(super) fn spatial(cx: &Importer, x: Value) -> Result<Vec<Dim>, Refusal> {
    match cx.ty(x).shape.get(2..) {
        Some(extents) if !extents.is_empty() => Ok(extents.to_vec()),
        _ => Err(Refusal::Invalid(format!("expected at least 3 axes, found {}", cx.ty(x)))),
    }
}

/// A list of as many counts as expected.
pub(super) fn sizes(name: &str, list: &[i64], expected: usize) -> Result<Vec<usize>, Refusal> {
    if list.len() != expected {
        let found = list.len();
        return Err(Refusal::Invalid(format!("expected {expected} values in `{name}`, found {found}")));
    }
    let size = |&v: &i64| {
        let refused = || Refusal::Unsupported(format!("`{name}` of {v} is not supported"));
        usize::try_from(v).map_err(|_| refused())
    };
    list.iter().map(size).collect()
}

/// How windows move along the spatial axes.
#[derive(Clone)]
pub(super) struct Windows {
    pub(super) strides: Vec<usize>,
    pub(super) dilations: Vec<usize>,
    pub(super) before: Vec<usize>,
    pub(super) after: Vec<usize>,
    /// `after` as the model says.
    pub(super) given_after: Vec<usize>,
    /// Some `after` is larger than that, so that a last incomplete window counts.
    pub(super) overhang: bool,
}

impl Windows {
    pub(super) fn new(call: &Call, data: &[Dim], taps: &[Dim], ceil: bool) -> Result<Windows, Refusal> {
        let axes = data.len();
        let list = |name| match call.ints(name)? {
            Some(list) => sizes(name, list, axes),
            None => Ok(vec![1; axes]),
        };
        let (strides, dilations) = (list("strides")?, list("dilations")?);
        let pads = match call.ints("pads")? {
            Some(list) => sizes("pads", list, 2 * axes)?,
            None => vec![0; 2 * axes],
        };
        let (before, after) = pads.split_at(axes);
        let (before, after) = (before.to_vec(), after.to_vec());
        let given_after = Vec::new();
        let mut windows = Windows { strides, dilations, before, after, given_after, overhang: false };
        if windows.strides.contains(&0) || windows.dilations.contains(&0) {
            return Err(Refusal::Invalid("expected strides and dilations of at least 1".into()));
        }
        match call.text("auto_pad", "NOTSET")? {
            "NOTSET" | "" => {}
            "VALID" => (windows.before, windows.after) = (vec![0; axes], vec![0; axes]),
            "SAME_UPPER" => windows.pad_same(data, taps, false)?,
            "SAME_LOWER" => windows.pad_same(data, taps, true)?,
            other => return Err(Refusal::Invalid(format!("`{other}` is no way of padding"))),
        }
        windows.given_after.clone_from(&windows.after);
        if ceil {
            windows.reach_over(data, taps)?;
        }
        Ok(windows)
    }

    /// Pads so that there are `ceil(extent / stride)` windows; `lower` puts an odd element in front.
    fn pad_same(&mut self, data: &[Dim], taps: &[Dim], lower: bool) -> Result<(), Refusal> {
        for (axis, data) in data.iter().enumerate() {
            let (stride, span) = (self.strides[axis], self.span(axis, taps)?);
            let total = match (stride, data.as_extent()) {
                (1, _) => span - 1,
                (_, Some(extent)) => {
                    let reach = extent.div_ceil(stride).saturating_sub(1).saturating_mul(stride);
                    reach.saturating_add(span).saturating_sub(extent)
                }
                (_, None) => return Err(open("the padding", data)),
            };
            let (small, large) = (total / 2, total - total / 2);
            (self.before[axis], self.after[axis]) = if lower { (large, small) } else { (small, large) };
        }
        Ok(())
    }

    /// Lets a last window that begins before the end of the operand reach over the padding.
    fn reach_over(&mut self, data: &[Dim], taps: &[Dim]) -> Result<(), Refusal> {
        for (axis, data) in data.iter().enumerate() {
            let (stride, span) = (self.strides[axis], self.span(axis, taps)?);
            if stride == 1 {
                continue;
            }
            let Some(extent) = data.as_extent() else {
                // Whatever the extent is, no window begins behind its end.
                if span < self.after[axis].saturating_add(stride) {
                    return Err(open("the number of windows", data));
                }
                self.overhang = true;
                self.after[axis] = self.after[axis].saturating_add(stride - 1);
                continue;
            };
            let front = extent.saturating_add(self.before[axis]);
            let padded = front.saturating_add(self.after[axis]);
            let Some(room) = padded.checked_sub(span) else { continue };
            let mut last = room.div_ceil(stride).saturating_mul(stride);
            if last >= front {
                last = last.saturating_sub(stride);
            }
            let needed = last.saturating_add(span).saturating_sub(front);
            self.overhang |= needed > self.after[axis];
            self.after[axis] = needed;
        }
        Ok(())
    }

    /// Elements from the first to the last tap.
    fn span(&self, axis: usize, taps: &[Dim]) -> Result<usize, Refusal> {
        let taps = taps[axis].as_extent().filter(|&t| t > 0);
        let taps =
            taps.ok_or_else(|| Refusal::Unsupported("a kernel of unknown size is not supported".into()))?;
        Ok((taps - 1).saturating_mul(self.dilations[axis]).saturating_add(1))
    }
}
