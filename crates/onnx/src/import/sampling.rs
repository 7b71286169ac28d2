//! Images read at computed places: grids of them, regions, deformed windows.

use margay_ir::Value;
use margay_ir::ops::{Floor, Gather, MatMul, ReduceKind, Round};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::call::{Call, Imported, Refusal};

/// What is read outside of the image.
#[derive(Clone, Copy, PartialEq)]
enum Outside {
    Zeros,
    Border,
    /// Whether the image ends in the middle of its last elements.
    Reflection(bool),
}

/// How elements between positions are made.
#[derive(Clone, Copy, PartialEq)]
enum Between {
    Linear,
    Nearest,
    Cubic,
}

/// `[N, C, D…]` as rows of channels `[N · D…, C]`.
pub(super) fn rows_of_channels(cx: &mut Importer, x: Value) -> Result<Value, Refusal> {
    let shape = cx.ty(x).shape.clone();
    let perm: Vec<usize> = [0].into_iter().chain(2..shape.len()).chain([1]).collect();
    let transposed = cx.transposed(x, &perm)?;
    let places = shape.iter().enumerate().filter(|(i, _)| *i != 1);
    let places = places.fold(Dim::from(1usize), |n, (_, d)| &n * d);
    cx.shaped(transposed, vec![places, shape[1].clone()])
}

/// `GridSample`.
pub(super) fn grid_sample(cx: &mut Importer, call: &Call) -> Imported {
    let (x, grid) = (call.input(0)?, call.input(1)?);
    let (shape, out) = (cx.ty(x).shape.clone(), cx.ty(grid).shape.clone());
    let spatial = shape.len().saturating_sub(2);
    if spatial == 0 || out.len() != spatial + 2 || !out[spatial + 1].is(spatial as i64) {
        return Err(Refusal::Invalid(format!("a grid {} of an image {}", cx.ty(grid), cx.ty(x))));
    }
    let corners = call.flag("align_corners", false)?;
    let between = match call.text("mode", if call.opset < 20 { "bilinear" } else { "linear" })? {
        "linear" | "bilinear" => Between::Linear,
        "nearest" => Between::Nearest,
        "cubic" | "bicubic" => Between::Cubic,
        other => return Err(Refusal::Invalid(format!("`{other}` is no mode of sampling"))),
    };
    let outside = match call.text("padding_mode", "zeros")? {
        "zeros" => Outside::Zeros,
        "border" => Outside::Border,
        "reflection" => Outside::Reflection(corners),
        other => return Err(Refusal::Invalid(format!("`{other}` is no way of padding"))),
    };
    let dtype = cx.ty(x).dtype;
    let within = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let (x, grid) = (cx.cast(x, within)?, cx.cast(grid, within)?);
    // The last axis of the grid names the innermost axis first.
    let mut taps = Vec::new();
    for axis in 0..spatial {
        let column = Dim::from(spatial - 1 - axis);
        let end = &column + &Dim::from(1usize);
        let column = super::slices::slice_axes(cx, grid, &[spatial + 1], &[column], &[end], &[1])?;
        let column = cx.shaped(column, out[..=spatial].to_vec())?;
        let extent = &shape[2 + axis];
        let at = in_elements(cx, column, extent, corners)?;
        taps.push(taps_along(cx, at, extent, between, outside)?);
    }
    let batch = cx.positions(&out[..=spatial], 0)?;
    let rows = rows_of_channels(cx, x)?;
    let sum = read(cx, rows, batch, &shape[2..], &taps, None)?;
    // `[N, out…, C]` back.
    let perm: Vec<usize> = [0, spatial + 1].into_iter().chain(1..=spatial).collect();
    let y = cx.transposed(sum, &perm)?;
    Ok(vec![cx.cast(y, dtype)?])
}

/// A position from -1 to 1 as one in elements.
fn in_elements(cx: &mut Importer, at: Value, extent: &Dim, corners: bool) -> Result<Value, Refusal> {
    let extent = cx.extent(extent, cx.ty(at).dtype)?;
    let moved = cx.offset(at, 1.0)?;
    if corners {
        let last = cx.offset(extent, -1.0)?;
        let scaled = cx.times(moved, last)?;
        return cx.scaled(scaled, 0.5);
    }
    let scaled = cx.times(moved, extent)?;
    let shifted = cx.offset(scaled, -1.0)?;
    cx.scaled(shifted, 0.5)
}

/// An element that is read along one axis, for every position: where (i64), how much it counts, and whether it is there.
struct Tap {
    place: Value,
    weight: Option<Value>,
    there: Option<Value>,
}

fn taps_along(
    cx: &mut Importer,
    at: Value,
    extent: &Dim,
    between: Between,
    outside: Outside,
) -> Result<Vec<Tap>, Refusal> {
    let dtype = cx.ty(at).dtype;
    let last = cx.extent(&(extent - &Dim::from(1usize)), dtype)?;
    let clamped = |cx: &mut Importer, at: Value| {
        let capped = cx.smaller(at, last)?;
        cx.floored(capped, 0.0)
    };
    // Between the elements of a cubic the places are reflected, else the positions.
    let at = match outside {
        Outside::Border if between != Between::Cubic => clamped(cx, at)?,
        Outside::Reflection(corners) if between != Between::Cubic => {
            let at = reflected(cx, at, extent, corners)?;
            clamped(cx, at)?
        }
        _ => at,
    };
    let (base, steps): (Value, Vec<i64>) = match between {
        Between::Nearest => (cx.add(Round, &[at])?, vec![0]),
        Between::Linear => (cx.add(Floor, &[at])?, vec![0, 1]),
        Between::Cubic => (cx.add(Floor, &[at])?, vec![-1, 0, 1, 2]),
    };
    let ratio = cx.minus(at, base)?;
    let mut taps = Vec::new();
    for step in steps {
        let mut place = cx.offset(base, step as f64)?;
        let weight = match between {
            Between::Nearest => None,
            Between::Linear if step == 1 => Some(ratio),
            Between::Linear => {
                let one = cx.scalar(dtype, 1.0)?;
                Some(cx.minus(one, ratio)?)
            }
            Between::Cubic => Some(cubic(cx, ratio, step)?),
        };
        let there = match outside {
            Outside::Zeros => {
                let (below, above) = (cx.below(place, 0.0)?, cx.less(last, place)?);
                let gone = cx.either(below, above)?;
                Some(cx.not(gone)?)
            }
            Outside::Border => None,
            Outside::Reflection(corners) => {
                if between == Between::Cubic {
                    place = reflected(cx, place, extent, corners)?;
                }
                None
            }
        };
        let place = clamped(cx, place)?;
        taps.push(Tap { place: cx.cast(place, DType::I64)?, weight, there });
    }
    Ok(taps)
}

/// A position brought into the image by turning around at its ends, as often as it takes.
fn reflected(cx: &mut Importer, at: Value, extent: &Dim, corners: bool) -> Result<Value, Refusal> {
    let dtype = cx.ty(at).dtype;
    let low = if corners { 0.0 } else { -0.5 };
    let span = match corners {
        true => extent - &Dim::from(1usize),
        false => extent.clone(),
    };
    if span.is(0) {
        return cx.scaled(at, 0.0);
    }
    let span = cx.extent(&span, dtype)?;
    let double = cx.scaled(span, 2.0)?;
    let moved = cx.offset(at, -low)?;
    // What is left of whole turns, there and back.
    let turns = cx.over(moved, double)?;
    let turns = cx.add(Floor, &[turns])?;
    let turns = cx.times(turns, double)?;
    let rest = cx.minus(moved, turns)?;
    let back = cx.minus(double, rest)?;
    let folded = cx.smaller(rest, back)?;
    cx.offset(folded, low)
}

/// The weight of the element `step` behind the one below, by a cubic with coefficient -0.75.
fn cubic(cx: &mut Importer, ratio: Value, step: i64) -> Result<Value, Refusal> {
    let a = -0.75;
    let negative = cx.negated(ratio)?;
    let d = cx.offset(negative, step as f64)?;
    let d = cx.size(d)?;
    let polynomial = |cx: &mut Importer, coefficients: [f64; 4]| {
        let mut sum = cx.scalar(cx.ty(d).dtype, coefficients[0])?;
        for c in &coefficients[1..] {
            let product = cx.times(sum, d)?;
            sum = cx.offset(product, *c)?;
        }
        Ok::<_, Refusal>(sum)
    };
    if matches!(step, 0 | 1) {
        polynomial(cx, [a + 2.0, -(a + 3.0), 0.0, 1.0])
    } else {
        polynomial(cx, [a, -5.0 * a, 8.0 * a, -4.0 * a])
    }
}

/// The sum over all combinations of taps along the axes, of rows of channels; with channels as the last axis. With a
/// factor for all.
fn read(
    cx: &mut Importer,
    rows: Value,
    batch: Value,
    extents: &[Dim],
    taps: &[Vec<Tap>],
    join: Option<ReduceKind>,
) -> Result<Value, Refusal> {
    let mut sum: Option<Value> = None;
    let combinations: usize = taps.iter().map(Vec::len).product();
    for mut number in 0..combinations {
        let (mut place, mut weight, mut there) = (batch, None::<Value>, None::<Value>);
        let mut chosen = Vec::new();
        for along in taps.iter().rev() {
            chosen.push(&along[number % along.len()]);
            number /= along.len();
        }
        for (tap, extent) in chosen.iter().rev().zip(extents) {
            let size = cx.extent(extent, DType::I64)?;
            let outer = cx.times(place, size)?;
            place = cx.plus(outer, tap.place)?;
            for (all, one, by_product) in [(&mut weight, tap.weight, true), (&mut there, tap.there, false)] {
                if let Some(one) = one {
                    *all = Some(match *all {
                        None => one,
                        Some(before) if by_product => cx.times(before, one)?,
                        Some(before) => cx.both(before, one)?,
                    });
                }
            }
        }
        let mut part = cx.add(Gather { axis: 0 }, &[rows, place])?;
        let last = cx.ty(place).ndim();
        if let Some(weight) = weight {
            let weight = cx.unsqueezed(weight, last)?;
            part = cx.times(part, weight)?;
        }
        if let Some(there) = there {
            let there = cx.unsqueezed(there, last)?;
            part = cx.chosen_or(there, part, 0.0)?;
        }
        sum = Some(match (sum, join) {
            (None, _) => part,
            (Some(sum), Some(ReduceKind::Max)) => cx.larger(sum, part)?,
            (Some(sum), _) => cx.plus(sum, part)?,
        });
    }
    sum.ok_or_else(|| Refusal::Invalid("nothing to read".into()))
}

/// `AffineGrid`: the places that a matrix for each of the batch makes of a regular grid.
pub(super) fn affine_grid(cx: &mut Importer, call: &Call) -> Imported {
    let theta = call.input(0)?;
    let size = cx.known_ints(call, 1, "the size")?.values;
    let corners = call.flag("align_corners", false)?;
    let spatial = size.len().saturating_sub(2);
    let dtype = cx.ty(theta).dtype;
    if spatial == 0 || cx.ty(theta).ndim() != 3 {
        return Err(Refusal::Invalid(format!("matrices {} for {} axes", cx.ty(theta), size.len())));
    }
    let out = &size[2..];
    let mut columns = Vec::new();
    for axis in (0..spatial).rev() {
        let positions = cx.positions(out, axis)?;
        let positions = cx.cast(positions, dtype)?;
        let extent = cx.extent(&out[axis], dtype)?;
        let double = cx.scaled(positions, 2.0)?;
        let column = if corners {
            let last = cx.offset(extent, -1.0)?;
            let quotient = cx.over(double, last)?;
            cx.offset(quotient, -1.0)?
        } else {
            let centre = cx.offset(double, 1.0)?;
            let quotient = cx.over(centre, extent)?;
            cx.offset(quotient, -1.0)?
        };
        let column = cx.spread(column, out.to_vec())?;
        columns.push(cx.unsqueezed(column, spatial)?);
    }
    let one = cx.scalar(dtype, 1.0)?;
    let ones = cx.spread(one, out.to_vec())?;
    columns.push(cx.unsqueezed(ones, spatial)?);
    let grid = cx.add(margay_ir::ops::Concat { axis: spatial }, &columns)?;
    let places = out.iter().fold(Dim::from(1usize), |n, d| &n * d);
    let grid = cx.shaped(grid, vec![places, Dim::from(spatial + 1)])?;
    let transposed = cx.transposed(theta, &[0, 2, 1])?;
    let product = cx.add(MatMul, &[grid, transposed])?;
    let shape = [&size[..1], out, &[Dim::from(spatial)]].concat();
    Ok(vec![cx.shaped(product, shape)?])
}

/// `RoiAlign` with a given number of samples per bin.
pub(super) fn roi_align(cx: &mut Importer, call: &Call) -> Imported {
    let (x, rois, batch) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let count = |name, default| -> Result<i64, Refusal> {
        let found = call.int(name, default)?;
        if found < 1 {
            Err(Refusal::Unsupported(format!("`{name}` of {found} is not supported")))
        } else {
            Ok(found)
        }
    };
    let bins = [count("output_height", 1)?, count("output_width", 1)?];
    let samples = count("sampling_ratio", 0)?;
    let scale = call.float("spatial_scale", 1.0)?;
    let default = if call.opset < 16 { "output_half_pixel" } else { "half_pixel" };
    let half_pixel = match call.text("coordinate_transformation_mode", default)? {
        "half_pixel" => true,
        "output_half_pixel" => false,
        other => return Err(Refusal::Invalid(format!("`{other}` are no coordinates"))),
    };
    let largest = match call.text("mode", "avg")? {
        "avg" => false,
        "max" => true,
        other => return Err(Refusal::Invalid(format!("expected mode avg or max, found `{other}`"))),
    };
    let (shape, dtype) = (cx.ty(x).shape.clone(), cx.ty(x).dtype);
    if shape.len() != 4 || cx.ty(rois).ndim() != 2 || cx.ty(batch).ndim() != 1 {
        return Err(Refusal::Invalid(format!("regions {} of an image {}", cx.ty(rois), cx.ty(x))));
    }
    let regions = cx.ty(rois).shape[0].clone();
    let mut taps = Vec::new();
    for axis in 0..2 {
        let bound = |cx: &mut Importer, column: i64| {
            let (from, to) = ([Dim::from(column)], [Dim::from(column + 1)]);
            let v = super::slices::slice_axes(cx, rois, &[1], &from, &to, &[1])?;
            let scaled = cx.scaled(v, scale)?;
            cx.offset(scaled, if half_pixel { -0.5 } else { 0.0 })
        };
        let (start, end) = (bound(cx, 1 - axis)?, bound(cx, 3 - axis)?);
        let mut size = cx.minus(end, start)?;
        if !half_pixel {
            size = cx.floored(size, 1.0)?;
        }
        let points = bins[axis as usize] * samples;
        let step = cx.scaled(size, 1.0 / points as f64)?;
        let positions = cx.iota(&Dim::from(points))?;
        let positions = cx.cast(positions, dtype)?;
        let positions = cx.offset(positions, 0.5)?;
        let positions = cx.along(positions, 1, 2)?;
        let offsets = cx.times(step, positions)?;
        let at = cx.plus(start, offsets)?; // [R, points]
        let extent = &shape[2 + axis as usize];
        let mut along = region_taps(cx, at, extent)?;
        for tap in &mut along {
            // Rows of points stand across columns of them.
            let wide = |cx: &mut Importer, v: Value| cx.unsqueezed(v, if axis == 0 { 2 } else { 1 });
            tap.place = wide(cx, tap.place)?;
            tap.weight = tap.weight.map(|w| wide(cx, w)).transpose()?;
            tap.there = tap.there.map(|t| wide(cx, t)).transpose()?;
        }
        taps.push(along);
    }
    let batch = cx.cast(batch, DType::I64)?;
    let batch = cx.along(batch, 0, 3)?;
    let rows = rows_of_channels(cx, x)?;
    let join = largest.then_some(ReduceKind::Max);
    let read = read(cx, rows, batch, &shape[2..], &taps, join)?; // [R, H · s, W · s, C]
    let channels = shape[1].clone();
    let [h, w, s] = [bins[0], bins[1], samples].map(Dim::from);
    let split = vec![regions, h, s.clone(), w, s, channels];
    let bins = cx.shaped(read, split)?;
    let kind = if largest { ReduceKind::Max } else { ReduceKind::Mean };
    let joined = cx.joined(kind, bins, &[2, 4], false)?;
    Ok(vec![cx.transposed(joined, &[0, 3, 1, 2])?])
}

/// Of positions at most one element outside of an axis what lies around them; nothing of those farther away.
fn region_taps(cx: &mut Importer, at: Value, extent: &Dim) -> Result<Vec<Tap>, Refusal> {
    let dtype = cx.ty(at).dtype;
    let size = cx.extent(extent, dtype)?;
    let last = cx.offset(size, -1.0)?;
    let (far_below, far_above) = (cx.below(at, -1.0)?, cx.less(size, at)?);
    let far = cx.either(far_below, far_above)?;
    let there = cx.not(far)?;
    let at = cx.floored(at, 0.0)?;
    let at = cx.smaller(at, last)?;
    let base = cx.add(Floor, &[at])?;
    let ratio = cx.minus(at, base)?;
    let one = cx.scalar(dtype, 1.0)?;
    let rest = cx.minus(one, ratio)?;
    let next = cx.offset(base, 1.0)?;
    let next = cx.smaller(next, last)?;
    let mut tap = |place: Value, weight: Value| {
        Ok::<_, Refusal>(Tap { place: cx.cast(place, DType::I64)?, weight: Some(weight), there: Some(there) })
    };
    Ok(vec![tap(base, rest)?, tap(next, ratio)?])
}

/// `MaxUnpool`: elements back at the places that a pool found them at, zeros elsewhere.
pub(super) fn max_unpool(cx: &mut Importer, call: &Call) -> Imported {
    use margay_ir::ops::{Scatter, ScatterKind};
    let (x, at) = (call.input(0)?, call.input(1)?);
    let shape = cx.ty(x).shape.clone();
    let spatial = shape.len().saturating_sub(2);
    let list = |name: &'static str, count: usize, default: i64| -> Result<Vec<i64>, Refusal> {
        let list = call.ints(name)?.map_or_else(|| vec![default; count], <[i64]>::to_vec);
        let found = list.len();
        if found == count {
            Ok(list)
        } else {
            Err(Refusal::Invalid(format!("expected {count} values in `{name}`, found {found}")))
        }
    };
    let kernel = list("kernel_shape", spatial, 1)?;
    let (strides, pads) = (list("strides", spatial, 1)?, list("pads", 2 * spatial, 0)?);
    let mut inner = shape[..2.min(shape.len())].to_vec();
    for axis in 0..spatial {
        let steps = &(&shape[2 + axis] - &Dim::from(1usize)) * &Dim::from(strides[axis]);
        inner.push(&steps + &Dim::from(kernel[axis] - pads[axis] - pads[spatial + axis]));
    }
    let out = match call.optional(2) {
        Some(_) => cx.known_ints(call, 2, "the shape")?.values,
        None => inner.clone(),
    };
    // Which of the two shapes places count through is not the same everywhere.
    if out != inner {
        return Err(Refusal::Unsupported(
            "a shape that does not follow from the windows is not supported".into(),
        ));
    }
    let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1usize), |n, d| &n * d);
    // Places count through an image of the shape that the pool saw.
    let count = product(&shape);
    let at = cx.shaped(at, vec![count.clone()])?;
    let x = cx.shaped(x, vec![count])?;
    let zero = cx.number(x, 0.0)?;
    let zeros = cx.spread(zero, vec![product(&out)])?;
    let filled = cx.add(Scatter { kind: ScatterKind::Set }, &[zeros, at, x])?;
    Ok(vec![cx.shaped(filled, out)?])
}

/// `Det` of matrices up to 4 by 4, by their first rows.
pub(super) fn det(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let shape = cx.ty(x).shape.clone();
    let Some(rows) = shape.len().checked_sub(2) else {
        return Err(Refusal::Invalid(format!("expected at least 2 axes, found {}", shape.len())));
    };
    let size = shape[rows].as_extent().filter(|&n| (1..=4).contains(&n) && shape[rows] == shape[rows + 1]);
    let size = size
        .ok_or_else(|| Refusal::Unsupported(format!("the determinant of {} is not supported", cx.ty(x))))?;
    let mut elements = Vec::new();
    for i in 0..size {
        for j in 0..size {
            let (from, to) = ([Dim::from(i), Dim::from(j)], [Dim::from(i + 1), Dim::from(j + 1)]);
            let e = super::slices::slice_axes(cx, x, &[rows, rows + 1], &from, &to, &[1, 1])?;
            elements.push(cx.shaped(e, shape[..rows].to_vec())?);
        }
    }
    fn of(
        cx: &mut Importer,
        e: &[Value],
        size: usize,
        row: usize,
        columns: &[usize],
    ) -> Result<Value, Refusal> {
        if let [only] = columns {
            return Ok(e[row * size + only]);
        }
        let mut sum: Option<Value> = None;
        for (i, &column) in columns.iter().enumerate() {
            let others: Vec<usize> = columns.iter().copied().filter(|&c| c != column).collect();
            let minor = of(cx, e, size, row + 1, &others)?;
            let term = cx.times(e[row * size + column], minor)?;
            sum = Some(match sum {
                None => term,
                Some(sum) if i % 2 == 1 => cx.minus(sum, term)?,
                Some(sum) => cx.plus(sum, term)?,
            });
        }
        sum.ok_or_else(|| Refusal::Invalid("a matrix without columns".into()))
    }
    let all: Vec<usize> = (0..size).collect();
    Ok(vec![of(cx, &elements, size, 0, &all)?])
}
