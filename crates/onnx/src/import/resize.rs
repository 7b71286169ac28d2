//! `Resize` and `Upsample`: images of other extents.
//!
//! Axes are resized one after the other. Along each, the places that are read and their weights are computed from the
//! positions of the result by arithmetic in f64, so that extents may be open; where they are known it all folds.
//! Elements repeated a whole number of times are broadcast.

use margay_ir::Value;
use margay_ir::ops::{Ceil, Floor, Gather};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::call::{Call, Imported, Refusal, axis};
use super::slices::slice_axes;

/// How a position of the result becomes one of the operand.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    /// Centres of elements that begin at 0 (`tf_half_pixel_for_nn`).
    Centre,
    Crop,
}

/// Which element is the nearest.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Nearest {
    RoundDown,
    RoundUp,
    Floor,
    Ceil,
}

/// How elements between positions are made.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Mode {
    Nearest(Nearest),
    Linear,
    /// With the coefficient of the polynomials.
    Cubic(f64),
}

/// How all axes are resized.
struct Resize {
    mode: Mode,
    coordinates: Coordinates,
    antialias: bool,
    exclude_outside: bool,
    extrapolation: f64,
}

/// An axis that is resized.
struct Axis {
    axis: usize,
    /// Extent of the result.
    to: Dim,
    /// Result over operand, where it is given; else it follows from the extents.
    scale: Option<f64>,
    /// Start and end of the part that is looked at, relative to the operand, as f64 without axes.
    part: Option<[Value; 2]>,
}

/// `Resize`.
pub(super) fn resize(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let modern = call.opset >= 11;
    let nearest = match call.text("nearest_mode", if modern { "round_prefer_floor" } else { "floor" })? {
        "round_prefer_floor" => Nearest::RoundDown,
        "round_prefer_ceil" => Nearest::RoundUp,
        "floor" => Nearest::Floor,
        "ceil" => Nearest::Ceil,
        other => return Err(Refusal::Invalid(format!("`{other}` is no way to find the nearest"))),
    };
    let coefficient = call.float("cubic_coeff_a", -0.75)?;
    let mode = match call.text("mode", "nearest")? {
        "nearest" => Mode::Nearest(nearest),
        "linear" => Mode::Linear,
        "cubic" => Mode::Cubic(coefficient),
        other => return Err(Refusal::Invalid(format!("`{other}` is no mode of resizing"))),
    };
    let default = if modern { "half_pixel" } else { "asymmetric" };
    let coordinates = match call.text("coordinate_transformation_mode", default)? {
        "half_pixel" => Coordinates::HalfPixel,
        "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
        "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
        "align_corners" => Coordinates::AlignCorners,
        "asymmetric" => Coordinates::Asymmetric,
        "tf_half_pixel_for_nn" => Coordinates::Centre,
        "tf_crop_and_resize" => Coordinates::Crop,
        other => return Err(Refusal::Unsupported(format!("coordinates `{other}` are not supported"))),
    };
    let how = Resize {
        mode,
        coordinates,
        antialias: call.flag("antialias", false)?,
        exclude_outside: call.flag("exclude_outside", false)?,
        extrapolation: call.float("extrapolation_value", 0.0)?,
    };
    let ndim = cx.ty(x).ndim();
    let list = match call.ints("axes")? {
        Some(list) => list.iter().map(|&a| axis(a, ndim)).collect::<Result<Vec<_>, _>>()?,
        None => (0..ndim).collect(),
    };
    let (scales, sizes, roi) = match modern {
        true => (filled(cx, call, 2), filled(cx, call, 3), filled(cx, call, 1)),
        false => (call.optional(1), None, None),
    };
    let policy = call.text("keep_aspect_ratio_policy", "stretch")?;
    let mut axes = match (scales, sizes) {
        (Some(scales), None) => by_scales(cx, x, &list, scales)?,
        (None, Some(_)) => by_sizes(cx, call, x, &list, policy)?,
        _ => return Err(Refusal::Invalid("expected either scales or sizes".into())),
    };
    if coordinates == Coordinates::Crop {
        let roi = roi.ok_or_else(|| Refusal::Invalid("expected a part of the image, found none".into()))?;
        let roi = cx.cast(roi, DType::F64)?;
        let part = |cx: &mut Importer, at: usize| {
            let end = Dim::from(at + 1);
            let v = slice_axes(cx, roi, &[0], &[Dim::from(at)], &[end], &[1])?;
            cx.shaped(v, Vec::new())
        };
        if cx.ty(roi).ndim() != 1 {
            return Err(Refusal::Invalid(format!("expected a list of bounds, found {}", cx.ty(roi))));
        }
        for (i, axis) in axes.iter_mut().enumerate() {
            axis.part = Some([part(cx, i)?, part(cx, list.len() + i)?]);
        }
    }
    Ok(vec![how.apply(cx, x, &axes)?])
}

/// `Upsample`: scales are an attribute before operator set 9 and an input since.
pub(super) fn upsample(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let mode = match call.text("mode", "nearest")? {
        "nearest" => Mode::Nearest(Nearest::Floor),
        "linear" | "bilinear" => Mode::Linear,
        other => return Err(Refusal::Invalid(format!("`{other}` is no mode of resizing"))),
    };
    let list: Vec<usize> = (0..cx.ty(x).ndim()).collect();
    let axes = if call.opset < 9 {
        let missing = || Refusal::Invalid("expected attribute `scales`, found none".into());
        let scales = call.floats("scales")?.ok_or_else(missing)?;
        let scales: Vec<f64> = scales.iter().map(|&s| f64::from(s)).collect();
        scaled_axes(cx, x, &list, &scales)?
    } else {
        let scales = call.input(1)?;
        by_scales(cx, x, &list, scales)?
    };
    let how = Resize {
        mode,
        coordinates: Coordinates::Asymmetric,
        antialias: false,
        exclude_outside: false,
        extrapolation: 0.0,
    };
    Ok(vec![how.apply(cx, x, &axes)?])
}

/// An input that is given and has elements.
fn filled(cx: &Importer, call: &Call, at: usize) -> Option<Value> {
    call.optional(at).filter(|v| !cx.ty(*v).shape.iter().any(|d| d.is(0)))
}

fn by_scales(cx: &mut Importer, x: Value, list: &[usize], scales: Value) -> Result<Vec<Axis>, Refusal> {
    let known = cx.numbers(scales);
    let scales = known.ok_or_else(|| Refusal::Unsupported("the scales are computed at run time".into()))?;
    scaled_axes(cx, x, list, &scales)
}

fn scaled_axes(cx: &mut Importer, x: Value, list: &[usize], scales: &[f64]) -> Result<Vec<Axis>, Refusal> {
    if scales.len() != list.len() {
        let (expected, found) = (list.len(), scales.len());
        return Err(Refusal::Invalid(format!("expected {expected} scales, found {found}")));
    }
    let mut axes = Vec::new();
    for (&axis, &scale) in list.iter().zip(scales) {
        let from = cx.ty(x).shape[axis].clone();
        axes.push(Axis { axis, to: scaled_extent(&from, scale)?, scale: Some(scale), part: None });
    }
    Ok(axes)
}

/// ⌊extent · scale⌋; of an open extent for scales that are fractions of small numbers.
fn scaled_extent(from: &Dim, scale: f64) -> Result<Dim, Refusal> {
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(Refusal::Invalid(format!("a scale of {scale}")));
    }
    if let Some(from) = from.as_extent() {
        let to = (from as f64 * scale).floor();
        let limit = f64::from(1u32 << 31);
        return match to < limit {
            true => Ok(Dim::from(to as i64)),
            false => Err(Refusal::Invalid(format!("an extent of {to}"))),
        };
    }
    let fraction = (1..=64i64).find(|&d| (scale * d as f64).fract() == 0.0 && scale * (d as f64) < 1e6);
    let parts = fraction.and_then(|d| {
        let whole = from * &Dim::from((scale * d as f64) as i64);
        whole.floor_div(&Dim::from(d))
    });
    parts.ok_or_else(|| {
        Refusal::Unsupported(format!("a scale of {scale} of the extent `{from}` is not supported"))
    })
}

fn by_sizes(
    cx: &mut Importer,
    call: &Call,
    x: Value,
    list: &[usize],
    policy: &str,
) -> Result<Vec<Axis>, Refusal> {
    let sizes = cx.known_ints(call, 3, "the size")?.values;
    if sizes.len() != list.len() {
        let (expected, found) = (list.len(), sizes.len());
        return Err(Refusal::Invalid(format!("expected {expected} sizes, found {found}")));
    }
    let shape = cx.ty(x).shape.clone();
    if policy == "stretch" {
        let axes = list.iter().zip(sizes);
        return Ok(axes.map(|(&axis, to)| Axis { axis, to, scale: None, part: None }).collect());
    }
    let ratio = |(&axis, to): (&usize, &Dim)| Some(to.as_extent()? as f64 / shape[axis].as_extent()? as f64);
    let ratios = list.iter().zip(&sizes).map(ratio).collect::<Option<Vec<f64>>>();
    let ratios =
        ratios.ok_or_else(|| Refusal::Unsupported("a ratio of open extents is not supported".into()))?;
    let scale = match policy {
        "not_larger" => ratios.into_iter().fold(f64::INFINITY, f64::min),
        "not_smaller" => ratios.into_iter().fold(0.0, f64::max),
        other => return Err(Refusal::Invalid(format!("`{other}` is no policy"))),
    };
    let to = |axis: usize| (shape[axis].as_extent().unwrap_or(0) as f64 * scale + 0.5).floor() as i64;
    Ok(list
        .iter()
        .map(|&axis| Axis { axis, to: Dim::from(to(axis)), scale: Some(scale), part: None })
        .collect())
}

/// An element that is read for each position of the result: where, and how much it counts.
struct Tap {
    place: Value,
    weight: Value,
}

impl Resize {
    fn apply(&self, cx: &mut Importer, x: Value, axes: &[Axis]) -> Result<Value, Refusal> {
        let dtype = cx.ty(x).dtype;
        let exact = matches!(self.mode, Mode::Nearest(_)) && self.coordinates != Coordinates::Crop;
        let within = match dtype {
            _ if exact => dtype,
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let mut y = cx.cast(x, within)?;
        let mut outside = Vec::new();
        for axis in axes {
            let from = cx.ty(y).shape[axis.axis].clone();
            if from.is(0) || axis.to.is(0) {
                return Err(Refusal::Unsupported("an image without elements is not supported".into()));
            }
            let same = from == axis.to && axis.scale.is_none_or(|s| s == 1.0) && axis.part.is_none();
            if same {
                continue;
            }
            if let Some(times) = self.repeats(axis, &from) {
                y = repeated(cx, y, axis.axis, times)?;
                continue;
            }
            let at = self.coordinate(cx, axis, &from)?;
            if axis.part.is_some() {
                let last = cx.extent(&(&from - &Dim::from(1usize)), DType::F64)?;
                let (low, high) = (cx.below(at, 0.0)?, cx.less(last, at)?);
                let beyond = cx.either(low, high)?;
                outside.push((axis.axis, beyond));
            }
            y = match self.mode {
                Mode::Nearest(nearest) => {
                    let place = nearest_place(cx, at, nearest)?;
                    let place = self.inside(cx, place, &from)?;
                    cx.add(Gather { axis: axis.axis }, &[y, place])?
                }
                Mode::Linear | Mode::Cubic(_) => {
                    let taps = self.taps(cx, at, axis, &from)?;
                    weighted(cx, y, axis.axis, &taps)?
                }
            };
        }
        let ndim = cx.ty(y).ndim();
        for (axis, beyond) in outside {
            let beyond = cx.along(beyond, axis, ndim)?;
            let kept = cx.not(beyond)?;
            y = cx.chosen_or(kept, y, self.extrapolation)?;
        }
        cx.cast(y, dtype)
    }

    /// How often each element is repeated, if that is all that happens.
    fn repeats(&self, axis: &Axis, from: &Dim) -> Option<i64> {
        let times = axis.to.floor_div(from).and_then(|t| t.as_const()).filter(|&t| t >= 1)?;
        let whole = &Dim::from(times) * from == axis.to && axis.scale.is_none_or(|s| s == times as f64);
        let plain = match (self.mode, self.coordinates) {
            (Mode::Nearest(Nearest::Floor), Coordinates::Asymmetric) => true,
            // What lies within half an element of one is rounded to it, and nothing lies in the middle.
            (
                Mode::Nearest(Nearest::RoundDown | Nearest::RoundUp),
                Coordinates::HalfPixel | Coordinates::HalfPixelSymmetric,
            ) => true,
            _ => false,
        };
        (whole && plain).then_some(times)
    }

    /// The position in the operand for each position of the result, as f64.
    fn coordinate(&self, cx: &mut Importer, axis: &Axis, from: &Dim) -> Result<Value, Refusal> {
        let positions = cx.iota(&axis.to)?;
        let x = cx.cast(positions, DType::F64)?;
        let length = cx.extent(from, DType::F64)?;
        let resized = cx.extent(&axis.to, DType::F64)?;
        let scale = match axis.scale {
            Some(scale) => cx.scalar(DType::F64, scale)?,
            None => cx.over(resized, length)?,
        };
        // What the result would measure, if extents were no whole numbers.
        let width = cx.times(scale, length)?;
        let half_pixel = |cx: &mut Importer| {
            let centre = cx.offset(x, 0.5)?;
            let scaled = cx.over(centre, scale)?;
            cx.offset(scaled, -0.5)
        };
        let last = cx.offset(length, -1.0)?;
        let ratio = |cx: &mut Importer, x: Value, numerator: Value| {
            let one = cx.scalar(DType::F64, 1.0)?;
            let single = cx.equal(width, one)?;
            let steps = cx.offset(width, -1.0)?;
            let steps = cx.chosen(single, one, steps)?;
            let product = cx.times(x, numerator)?;
            let quotient = cx.over(product, steps)?;
            Ok::<_, Refusal>((single, quotient))
        };
        match self.coordinates {
            Coordinates::HalfPixel => half_pixel(cx),
            Coordinates::PytorchHalfPixel => {
                let at = half_pixel(cx)?;
                let several = cx.above(resized, 1.0)?;
                cx.chosen_or(several, at, 0.0)
            }
            Coordinates::HalfPixelSymmetric => {
                let at = half_pixel(cx)?;
                let adjustment = cx.over(resized, width)?;
                let one = cx.scalar(DType::F64, 1.0)?;
                let rest = cx.minus(one, adjustment)?;
                let centre = cx.scaled(length, 0.5)?;
                let offset = cx.times(centre, rest)?;
                cx.plus(at, offset)
            }
            Coordinates::Asymmetric => cx.over(x, scale),
            Coordinates::Centre => {
                let centre = cx.offset(x, 0.5)?;
                cx.over(centre, scale)
            }
            Coordinates::AlignCorners => {
                let (single, quotient) = ratio(cx, x, last)?;
                let several = cx.not(single)?;
                cx.chosen_or(several, quotient, 0.0)
            }
            Coordinates::Crop => {
                let [start, end] =
                    axis.part.ok_or_else(|| Refusal::Invalid("a crop without bounds".into()))?;
                let span = cx.minus(end, start)?;
                let span = cx.times(span, last)?;
                let (single, quotient) = ratio(cx, x, span)?;
                let middle = cx.scaled(span, 0.5)?;
                let inner = cx.chosen(single, middle, quotient)?;
                let first = cx.times(start, last)?;
                cx.plus(inner, first)
            }
        }
    }

    /// A place (f64) as the nearest one in an axis (i64).
    fn inside(&self, cx: &mut Importer, place: Value, from: &Dim) -> Result<Value, Refusal> {
        let place = cx.cast(place, DType::I64)?;
        let last = cx.extent(&(from - &Dim::from(1usize)), DType::I64)?;
        let capped = cx.smaller(place, last)?;
        cx.floored(capped, 0.0)
    }

    /// The elements that count at positions `at`, with their weights. Together these are 1.
    fn taps(&self, cx: &mut Importer, at: Value, axis: &Axis, from: &Dim) -> Result<Vec<Tap>, Refusal> {
        let reach = if self.mode == Mode::Linear { 1 } else { 2 };
        let shrinking = match (self.antialias, axis.scale) {
            (false, _) => None,
            (true, Some(scale)) => Some(scale).filter(|&s| s < 1.0),
            (true, None) => match (axis.to.as_extent(), from.as_extent()) {
                (Some(to), Some(from)) => Some(to as f64 / from as f64).filter(|&s| s < 1.0),
                _ => {
                    let why = format!("a filter whose width depends on the extent `{from}` is not supported");
                    return Err(Refusal::Unsupported(why));
                }
            },
        };
        let scale = shrinking.unwrap_or(1.0);
        let first = (-f64::from(reach) / scale).floor() as i64 + 1;
        let last = 1 - first;
        if last - first > 4096 {
            return Err(Refusal::Unsupported(format!(
                "a filter of {} elements is not supported",
                last - first
            )));
        }
        let floor = cx.add(Floor, &[at])?;
        let ratio = cx.minus(at, floor)?;
        let (mut taps, mut sum) = (Vec::new(), None);
        for tap in first..=last {
            let place = cx.offset(floor, tap as f64)?;
            let negative = cx.negated(ratio)?;
            let distance = cx.offset(negative, tap as f64)?;
            let distance = cx.scaled(distance, scale)?;
            let distance = cx.size(distance)?;
            let mut weight = self.weight(cx, distance)?;
            if self.exclude_outside {
                let end = cx.extent(from, DType::F64)?;
                let (before, inside) = (cx.below(place, 0.0)?, cx.less(place, end)?);
                let after = cx.not(before)?;
                let inside = cx.both(after, inside)?;
                weight = cx.chosen_or(inside, weight, 0.0)?;
            }
            sum = Some(match sum {
                None => weight,
                Some(sum) => cx.plus(sum, weight)?,
            });
            taps.push(Tap { place: self.inside(cx, place, from)?, weight });
        }
        if let Some(sum) = sum.filter(|_| self.exclude_outside || shrinking.is_some()) {
            for tap in &mut taps {
                tap.weight = cx.over(tap.weight, sum)?;
            }
        }
        Ok(taps)
    }

    /// How much an element counts at a distance that is not negative.
    fn weight(&self, cx: &mut Importer, d: Value) -> Result<Value, Refusal> {
        let Mode::Cubic(a) = self.mode else {
            let negative = cx.negated(d)?;
            let line = cx.offset(negative, 1.0)?;
            return cx.floored(line, 0.0);
        };
        // Of x = d: ((a + 2) x - (a + 3)) x² + 1 up to 1, ((a x - 5a) x + 8a) x - 4a up to 2.
        let near = cx.scaled(d, a + 2.0)?;
        let near = cx.offset(near, -(a + 3.0))?;
        let near = cx.times(near, d)?;
        let near = cx.times(near, d)?;
        let near = cx.offset(near, 1.0)?;
        let far = cx.scaled(d, a)?;
        let far = cx.offset(far, -5.0 * a)?;
        let far = cx.times(far, d)?;
        let far = cx.offset(far, 8.0 * a)?;
        let far = cx.times(far, d)?;
        let far = cx.offset(far, -4.0 * a)?;
        let reached = cx.below(d, 2.0)?;
        let far = cx.chosen_or(reached, far, 0.0)?;
        let beyond = cx.above(d, 1.0)?;
        cx.chosen(beyond, far, near)
    }
}

/// The nearest whole number, as f64.
fn nearest_place(cx: &mut Importer, at: Value, nearest: Nearest) -> Result<Value, Refusal> {
    match nearest {
        Nearest::Floor => cx.add(Floor, &[at]),
        Nearest::Ceil => cx.add(Ceil, &[at]),
        Nearest::RoundDown => {
            let moved = cx.offset(at, -0.5)?;
            cx.add(Ceil, &[moved])
        }
        Nearest::RoundUp => {
            let moved = cx.offset(at, 0.5)?;
            cx.add(Floor, &[moved])
        }
    }
}

/// Each element along an axis so many times, one after the other.
fn repeated(cx: &mut Importer, x: Value, axis: usize, times: i64) -> Result<Value, Refusal> {
    let mut shape = cx.ty(x).shape.clone();
    let x = cx.unsqueezed(x, axis + 1)?;
    let mut split = cx.ty(x).shape.clone();
    split[axis + 1] = Dim::from(times);
    let x = cx.spread(x, split)?;
    shape[axis] = &shape[axis] * &Dim::from(times);
    cx.shaped(x, shape)
}

/// The sum of elements along an axis by their weights.
fn weighted(cx: &mut Importer, x: Value, axis: usize, taps: &[Tap]) -> Result<Value, Refusal> {
    let (dtype, ndim) = (cx.ty(x).dtype, cx.ty(x).ndim());
    let mut sum: Option<Value> = None;
    for tap in taps {
        let elements = cx.add(Gather { axis }, &[x, tap.place])?;
        let weight = cx.cast(tap.weight, dtype)?;
        let weight = cx.along(weight, axis, ndim)?;
        let part = cx.times(elements, weight)?;
        sum = Some(match sum {
            None => part,
            Some(sum) => cx.plus(sum, part)?,
        });
    }
    sum.ok_or_else(|| Refusal::Invalid("a filter without elements".into()))
}
