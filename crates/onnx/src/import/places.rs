//! Operators that find elements, look them up and change them by their places.
//!
//! Places along several axes become places in one axis of all rows: `Σ position · stride`, by arithmetic on [`iota`]
//! where a place says nothing about an axis, so that extents may be open. Every index is checked along its own axis.
//!
//! [`iota`]: Importer::iota

use margay_ir::Value;
use margay_ir::ops::{Broadcast, Cumulate, Gather, Position, ReduceKind, Scatter, ScatterKind, TopK};
use margay_tensor::{DType, Dim};

use super::call::{Call, Imported, Refusal, axis};
use super::{Importer, Lengths};

fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::from(1usize), |n, d| &n * d)
}

impl Importer<'_> {
    /// Indices as checked positions along an axis of an extent.
    fn position(&mut self, at: Value, extent: &Dim) -> Result<Value, Refusal> {
        self.add(Position { extent: extent.clone() }, &[at])
    }

    /// x times an extent, of integers.
    fn times_extent(&mut self, x: Value, extent: &Dim) -> Result<Value, Refusal> {
        if extent.is(1) {
            return Ok(x);
        }
        let extent = self.extent(extent, self.ty(x).dtype)?;
        self.times(x, extent)
    }

    /// For each index along `axis`, the place in `data` seen as one axis; all other axes keep their positions.
    fn element_places(&mut self, data: &[Dim], at: Value, axis: usize) -> Result<Value, Refusal> {
        let shape = self.ty(at).shape.clone();
        if shape.len() != data.len() {
            let (expected, found) = (data.len(), shape.len());
            return Err(Refusal::Invalid(format!("expected indices with {expected} axes, found {found}")));
        }
        let position = self.position(at, &data[axis])?;
        let mut places = self.times_extent(position, &product(&data[axis + 1..]))?;
        for other in (0..data.len()).filter(|&a| a != axis && !shape[a].is(1)) {
            let along = self.positions(&shape, other)?;
            let along = self.times_extent(along, &product(&data[other + 1..]))?;
            places = self.plus(places, along)?;
        }
        Ok(places)
    }

    /// Elements of `data` by an index for each along one axis, and their own positions along the others.
    pub(crate) fn elements(&mut self, data: Value, at: Value, axis: usize) -> Result<Value, Refusal> {
        let shape = self.ty(data).shape.clone();
        let places = self.element_places(&shape, at, axis)?;
        let flat = self.shaped(data, vec![product(&shape)])?;
        self.add(Gather { axis: 0 }, &[flat, places])
    }

    /// Positions of the largest or smallest elements along an axis.
    pub(crate) fn ranked(&mut self, x: Value, axis: usize, k: Dim, largest: bool) -> Result<Value, Refusal> {
        self.add(TopK { axis, k, largest }, &[x])
    }
}

/// `GatherElements`.
pub(super) fn gather_elements(cx: &mut Importer, call: &Call) -> Imported {
    let (data, at) = (call.input(0)?, call.input(1)?);
    let axis = axis(call.int("axis", 0)?, cx.ty(data).ndim())?;
    Ok(vec![cx.elements(data, at, axis)?])
}

/// Places of rows: the last axis of `at` names positions along the axes of `data` behind the first `batch`.
fn row_places(cx: &mut Importer, data: &[Dim], at: Value, batch: usize) -> Result<(Value, usize), Refusal> {
    let shape = cx.ty(at).shape.clone();
    let Some((last, rest)) = shape.split_last() else {
        return Err(Refusal::Invalid("expected indices with at least one axis".into()));
    };
    let known = || Refusal::Unsupported(format!("indices of `{last}` numbers each are not supported"));
    let named = last.as_extent().ok_or_else(known)?;
    if batch + named > data.len() || batch > rest.len() {
        let found = batch + named;
        return Err(Refusal::Invalid(format!("{found} positions in data with {} axes", data.len())));
    }
    let index_axis = rest.len();
    let mut places: Option<Value> = None;
    for i in 0..named {
        let (from, to) = (Dim::from(i), Dim::from(i + 1));
        let column = super::slices::slice_axes(cx, at, &[index_axis], &[from], &[to], &[1])?;
        let column = cx.shaped(column, rest.to_vec())?;
        let position = cx.position(column, &data[batch + i])?;
        let scaled = cx.times_extent(position, &product(&data[batch + i + 1..batch + named]))?;
        places = Some(match places {
            None => scaled,
            Some(sum) => cx.plus(sum, scaled)?,
        });
    }
    let mut places = match places {
        Some(places) => places,
        None => {
            let zero = cx.scalar(DType::I64, 0.0)?;
            cx.spread(zero, rest.to_vec())?
        }
    };
    for b in 0..batch {
        let along = cx.positions(rest, b)?;
        let along = cx.times_extent(along, &product(&data[b + 1..batch + named]))?;
        places = cx.plus(places, along)?;
    }
    Ok((places, batch + named))
}

/// `GatherND`.
pub(super) fn gather_nd(cx: &mut Importer, call: &Call) -> Imported {
    let (data, at) = (call.input(0)?, call.input(1)?);
    let batch = call.int("batch_dims", 0)?;
    let batch = usize::try_from(batch).map_err(|_| Refusal::Invalid(format!("{batch} batch axes")))?;
    let shape = cx.ty(data).shape.clone();
    let (places, used) = row_places(cx, &shape, at, batch)?;
    let rows = [&[product(&shape[..used])], &shape[used..]].concat();
    let rows = cx.shaped(data, rows)?;
    cx.one(Gather { axis: 0 }, &[rows, places])
}

fn scatter_kind(call: &Call) -> Result<ScatterKind, Refusal> {
    Ok(match call.text("reduction", "none")? {
        "none" => ScatterKind::Set,
        "add" => ScatterKind::Add,
        "mul" => ScatterKind::Mul,
        "min" => ScatterKind::Min,
        "max" => ScatterKind::Max,
        other => return Err(Refusal::Invalid(format!("`{other}` is no way to join"))),
    })
}

/// Rows of `data` changed; sums and products of halves are taken in f32.
fn scattered(
    cx: &mut Importer,
    kind: ScatterKind,
    [data, places, updates]: [Value; 3],
) -> Result<Value, Refusal> {
    let dtype = cx.ty(data).dtype;
    let wide = match kind {
        ScatterKind::Add | ScatterKind::Mul => cx.wide(data),
        ScatterKind::Set | ScatterKind::Min | ScatterKind::Max => dtype,
    };
    let (data, updates) = (cx.cast(data, wide)?, cx.cast(updates, wide)?);
    let changed = cx.add(Scatter { kind }, &[data, places, updates])?;
    cx.cast(changed, dtype)
}

/// `ScatterND`.
pub(super) fn scatter_nd(cx: &mut Importer, call: &Call) -> Imported {
    let (data, at, updates) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let kind = scatter_kind(call)?;
    let shape = cx.ty(data).shape.clone();
    let (places, used) = row_places(cx, &shape, at, 0)?;
    let count = product(&cx.ty(places).shape);
    let rows = cx.shaped(data, [&[product(&shape[..used])], &shape[used..]].concat())?;
    let places = cx.shaped(places, vec![count.clone()])?;
    let updates = cx.shaped(updates, [&[count], &shape[used..]].concat())?;
    let changed = scattered(cx, kind, [rows, places, updates])?;
    Ok(vec![cx.shaped(changed, shape)?])
}

/// `ScatterElements`, and `Scatter` before operator set 11.
pub(super) fn scatter_elements(cx: &mut Importer, call: &Call) -> Imported {
    let (data, at, updates) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let kind = scatter_kind(call)?;
    let shape = cx.ty(data).shape.clone();
    let axis = axis(call.int("axis", 0)?, shape.len())?;
    let places = cx.element_places(&shape, at, axis)?;
    let count = product(&cx.ty(places).shape);
    let flat = cx.shaped(data, vec![product(&shape)])?;
    let places = cx.shaped(places, vec![count.clone()])?;
    let updates = cx.shaped(updates, vec![count])?;
    let changed = scattered(cx, kind, [flat, places, updates])?;
    Ok(vec![cx.shaped(changed, shape)?])
}

/// `ArgMax`.
pub(super) fn arg_max(cx: &mut Importer, call: &Call) -> Imported {
    arg(cx, call, ReduceKind::Max)
}

/// `ArgMin`.
pub(super) fn arg_min(cx: &mut Importer, call: &Call) -> Imported {
    arg(cx, call, ReduceKind::Min)
}

fn arg(cx: &mut Importer, call: &Call, kind: ReduceKind) -> Imported {
    let x = call.input(0)?;
    let at = axis(call.int("axis", 0)?, cx.ty(x).ndim())?;
    let (keepdims, last) = (call.flag("keepdims", true)?, call.flag("select_last_index", false)?);
    Ok(vec![place_of_extreme(cx, x, at, kind, last, keepdims)?])
}

/// The first or last position along an axis of the largest or smallest element; NaN is both.
pub(super) fn place_of_extreme(
    cx: &mut Importer,
    x: Value,
    axis: usize,
    kind: ReduceKind,
    last: bool,
    keepdims: bool,
) -> Result<Value, Refusal> {
    let shape = cx.ty(x).shape.clone();
    let extreme = cx.joined(kind, x, &[axis], true)?;
    let mut test = cx.equal(x, extreme)?;
    if cx.ty(x).dtype.is_float() {
        let same = cx.equal(x, x)?;
        let nan = cx.not(same)?;
        test = cx.either(test, nan)?;
    }
    let positions = cx.positions(&shape, axis)?;
    let other = if last { Dim::default() } else { &shape[axis] - &Dim::from(1usize) };
    let other = cx.extent(&other, DType::I64)?;
    let found = cx.chosen(test, positions, other)?;
    cx.joined(if last { ReduceKind::Max } else { ReduceKind::Min }, found, &[axis], keepdims)
}

/// `Hardmax`: 1 at the first of the largest elements along an axis, else 0.
pub(super) fn hardmax(cx: &mut Importer, call: &Call) -> Imported {
    super::normalizations::along_axis(cx, call, |cx, x, axis| {
        let (shape, dtype) = (cx.ty(x).shape.clone(), cx.ty(x).dtype);
        let place = place_of_extreme(cx, x, axis, ReduceKind::Max, false, true)?;
        let positions = cx.positions(&shape, axis)?;
        let here = cx.equal(positions, place)?;
        cx.cast(here, dtype)
    })
}

/// `TopK`: how many is an attribute before operator set 10 and an input since.
pub(super) fn top_k(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let at = axis(call.int("axis", -1)?, cx.ty(x).ndim())?;
    // In order is one of the orders that may be given where none is asked for.
    call.ignore(&["sorted"]);
    let largest = call.flag("largest", true)?;
    let k = if call.opset < 10 {
        let k = call.optional_int("k")?;
        Dim::from(k.ok_or_else(|| Refusal::Invalid("expected attribute `k`, found none".into()))?)
    } else {
        let given = call.input(1)?;
        match cx.ints(given).map(|known| known.values) {
            None if cx.lengths == Lengths::Known => {
                let why = "the number of elements is computed at run time";
                return Err(Refusal::Unsupported(why.into()));
            }
            None => return super::decided::first_of_all(cx, x, at, given, largest),
            Some(k) => match k.as_slice() {
                [k] => k.clone(),
                all => {
                    let found = all.len();
                    return Err(Refusal::Invalid(format!("expected one number of elements, found {found}")));
                }
            },
        }
    };
    let places = cx.ranked(x, at, k, largest)?;
    Ok(vec![cx.elements(x, places, at)?, places])
}

/// `CumSum`.
pub(super) fn cum_sum(cx: &mut Importer, call: &Call) -> Imported {
    cumulate(cx, call, false)
}

/// `CumProd`.
pub(super) fn cum_prod(cx: &mut Importer, call: &Call) -> Imported {
    cumulate(cx, call, true)
}

fn cumulate(cx: &mut Importer, call: &Call, product: bool) -> Imported {
    let x = call.input(0)?;
    let at = match cx.const_ints(call, 1, "the axis")?.as_slice() {
        [at] => axis(*at, cx.ty(x).ndim())?,
        all => return Err(Refusal::Invalid(format!("expected one axis, found {}", all.len()))),
    };
    let (exclusive, reverse) = (call.flag("exclusive", false)?, call.flag("reverse", false)?);
    let (dtype, wide) = (cx.ty(x).dtype, cx.wide(x));
    let x = cx.cast(x, wide)?;
    let y = cx.add(Cumulate { axis: at, product, exclusive, reverse }, &[x])?;
    Ok(vec![cx.cast(y, dtype)?])
}

/// `Trilu`: what is above or below a diagonal, else 0.
pub(super) fn trilu(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let upper = call.flag("upper", true)?;
    let shape = cx.ty(x).shape.clone();
    let Some(rows) = shape.len().checked_sub(2) else {
        return Err(Refusal::Invalid(format!("expected at least 2 axes, found {}", shape.len())));
    };
    let (row, column) = (cx.positions(&shape[rows..], 0)?, cx.positions(&shape[rows..], 1)?);
    let row = match call.optional(1) {
        Some(k) => {
            let k = super::elementwise::scalar(cx, k)?;
            cx.plus(row, k)?
        }
        None => row,
    };
    let kept = if upper { cx.at_most(row, column)? } else { cx.at_most(column, row)? };
    Ok(vec![cx.chosen_or(kept, x, 0.0)?])
}

/// `EyeLike`: 1 on a diagonal, else 0.
pub(super) fn eye_like(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let dtype = match call.optional_int("dtype")? {
        Some(number) => super::elementwise::numbered_type(number)?,
        None => cx.ty(x).dtype,
    };
    let shape = cx.ty(x).shape.clone();
    if shape.len() != 2 {
        return Err(Refusal::Invalid(format!("expected 2 axes, found {}", shape.len())));
    }
    let (row, column) = (cx.positions(&shape, 0)?, cx.positions(&shape, 1)?);
    let row = cx.offset(row, call.int("k", 0)? as f64)?;
    let here = cx.equal(row, column)?;
    Ok(vec![cx.cast(here, dtype)?])
}

/// `OneHot`: one value at the index, another elsewhere; indices outside are nowhere.
pub(super) fn one_hot(cx: &mut Importer, call: &Call) -> Imported {
    let (at, values) = (call.input(0)?, call.input(2)?);
    let depth = call.input(1)?;
    let depth = cx.whole(depth);
    let depth =
        depth.ok_or_else(|| Refusal::Unsupported("the number of classes is computed at run time".into()))?;
    let ndim = cx.ty(at).ndim() + 1;
    let new = axis(call.int("axis", -1)?, ndim)?;
    if cx.ty(values).ndim() != 1 {
        return Err(Refusal::Invalid(format!("expected two values, found {}", cx.ty(values))));
    }
    let at = cx.cast(at, DType::I64)?;
    let negative = cx.below(at, 0.0)?;
    let extent = cx.extent(&depth, DType::I64)?;
    let shifted = cx.plus(at, extent)?;
    let at = cx.chosen(negative, shifted, at)?;
    let at = cx.unsqueezed(at, new)?;
    let classes = cx.iota(&depth)?;
    let classes = cx.along(classes, new, ndim)?;
    let here = cx.equal(at, classes)?;
    let mut value = |i: usize| {
        let part = super::slices::slice_axes(cx, values, &[0], &[Dim::from(i)], &[Dim::from(i + 1)], &[1])?;
        cx.shaped(part, Vec::new())
    };
    let (off, on) = (value(0)?, value(1)?);
    Ok(vec![cx.chosen(here, on, off)?])
}

/// `Compress`: the parts of an axis, or of all elements, where a condition holds.
pub(super) fn compress(cx: &mut Importer, call: &Call) -> Imported {
    let (x, condition) = (call.input(0)?, call.input(1)?);
    let (x, at) = match call.optional_int("axis")? {
        Some(at) => (x, axis(at, cx.ty(x).ndim())?),
        None => {
            let count = product(&cx.ty(x).shape);
            (cx.shaped(x, vec![count])?, 0)
        }
    };
    if cx.lengths == Lengths::Known && cx.numbers(condition).is_none() {
        return Err(Refusal::Unsupported("the condition is computed at run time".into()));
    }
    let places = cx.places_where(condition)?;
    cx.one(Gather { axis: at }, &[x, places])
}

/// `ReverseSequence`: the first elements along the time axis, as many as an input says for each of the batch, turned
/// around.
pub(super) fn reverse_sequence(cx: &mut Importer, call: &Call) -> Imported {
    let (x, lengths) = (call.input(0)?, call.input(1)?);
    let shape = cx.ty(x).shape.clone();
    let batch = axis(call.int("batch_axis", 1)?, shape.len())?;
    let time = axis(call.int("time_axis", 0)?, shape.len())?;
    if batch == time {
        return Err(Refusal::Invalid(format!("axis {batch} for both batch and time")));
    }
    let lengths = cx.along(lengths, batch, shape.len())?;
    let lengths = cx.cast(lengths, DType::I64)?;
    let position = cx.positions(&shape, time)?;
    let last = cx.offset(lengths, -1.0)?;
    let mirrored = cx.minus(last, position)?;
    let inside = cx.less(position, lengths)?;
    let at = cx.chosen(inside, mirrored, position)?;
    let at = cx.add(Broadcast { shape: shape.clone() }, &[at])?;
    Ok(vec![cx.elements(x, at, time)?])
}

/// `TensorScatter`: a cache with an update written at a position of its own for each of the batch.
pub(super) fn tensor_scatter(cx: &mut Importer, call: &Call) -> Imported {
    let (cache, update, start) = (call.input(0)?, call.input(1)?, call.optional(2));
    let shape = cx.ty(cache).shape.clone();
    let at = axis(call.int("axis", -2)?, shape.len())?;
    let circular = match call.text("mode", "linear")? {
        "linear" => false,
        "circular" => true,
        other => return Err(Refusal::Invalid(format!("expected mode linear or circular, found `{other}`"))),
    };
    let changed = cx.ty(update).shape.clone();
    let mut position = cx.positions(&changed, at)?;
    if let Some(start) = start {
        let start = cx.along(start, 0, shape.len())?;
        let start = cx.cast(start, DType::I64)?;
        position = cx.plus(position, start)?;
    }
    if circular {
        let extent = cx.extent(&shape[at], DType::I64)?;
        position = super::integers::remainder(cx, position, extent, false)?;
    }
    let position = cx.spread(position, changed)?;
    let places = cx.element_places(&shape, position, at)?;
    let count = product(&cx.ty(places).shape);
    let flat = cx.shaped(cache, vec![product(&shape)])?;
    let places = cx.shaped(places, vec![count.clone()])?;
    let update = cx.shaped(update, vec![count])?;
    let out = cx.add(Scatter { kind: ScatterKind::Set }, &[flat, places, update])?;
    Ok(vec![cx.shaped(out, shape)?])
}

/// `ArrayFeatureExtractor`: columns by their numbers; a row becomes a matrix of one.
pub(super) fn array_feature_extractor(cx: &mut Importer, call: &Call) -> Imported {
    let (mut x, at) = (call.input(0)?, call.input(1)?);
    let count = product(&cx.ty(at).shape);
    let at = cx.shaped(at, vec![count])?;
    if cx.ty(x).ndim() == 1 {
        x = cx.unsqueezed(x, 0)?;
    }
    let axis = cx.ty(x).ndim().saturating_sub(1);
    cx.one(Gather { axis }, &[x, at])
}
