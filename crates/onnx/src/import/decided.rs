//! Operators whose results have an extent that only a run decides: places of elements, choices among boxes, elements each
//! once.
//!
//! The places are found as many as there can be, and `cut` to as many as there are; the extent is a symbol of its own from
//! then on, which ends with `'`. In graphs inside operators, too; but what these yield has no such extent.

use margay_ir::Value;
use margay_ir::ops::{Cumulate, Cut, Gather, NonMaxSuppression, NonZero, ReduceKind, Scatter, ScatterKind};
use margay_tensor::{DType, Dim, Tensor};

use super::Importer;
use super::call::{Call, Imported, Refusal, axis};
use super::elementwise::scalar;
use super::integers::remainder;
use super::slices::slice_axes;

/// Rows of more numbers than this are not sorted.
const MAX_COLUMNS: usize = 64;

fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::from(1usize), |n, d| &n * d)
}

impl Importer<'_> {
    /// The first positions of values along an axis, as many as `count`, an i64 without axes, says in a run.
    pub(super) fn cut(&mut self, values: &[Value], axis: usize, count: Value) -> Imported {
        self.decided += 1;
        let extent = Dim::symbol(&format!("n{}'", self.decided));
        let cut = |v: &Value| self.add(Cut { axis, extent: extent.clone() }, &[*v, count]);
        values.iter().map(cut).collect()
    }

    /// The row-major places of the elements that are not zero, i64 with one axis.
    pub(super) fn places_where(&mut self, x: Value) -> Result<Value, Refusal> {
        if let Some(known) = self.numbers(x) {
            let places: Vec<i64> = (0..known.len()).filter(|&i| known[i] != 0.0).map(|i| i as i64).collect();
            return self.list(&places);
        }
        let found = self.add_all(NonZero, &[x])?;
        Ok(self.cut(&found[..1], 0, found[1])?[0])
    }

    /// The first of a list of Boolean or integer results along the axes behind the first: whether any is not 0.
    fn any_of_row(&mut self, x: Value) -> Result<Value, Refusal> {
        let x = self.cast(x, DType::I32)?;
        let any = self.joined(ReduceKind::Max, x, &[1], false)?;
        self.above(any, 0.0)
    }
}

/// `NonZero`: one row of positions for each axis.
pub(super) fn non_zero(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let shape = cx.ty(x).shape.clone();
    if shape.is_empty() {
        return Err(Refusal::Unsupported("places of a value without axes are not supported".into()));
    }
    let places = cx.places_where(x)?;
    let mut rows = Vec::new();
    for at in 0..shape.len() {
        let mut row = places;
        let inner = product(&shape[at + 1..]);
        if !inner.is(1) {
            let inner = cx.extent(&inner, DType::I64)?;
            row = cx.over(row, inner)?;
        }
        if at > 0 {
            let extent = cx.extent(&shape[at], DType::I64)?;
            row = remainder(cx, row, extent, true)?;
        }
        rows.push(cx.unsqueezed(row, 0)?);
    }
    match rows.as_slice() {
        [only] => Ok(vec![*only]),
        all => cx.one(margay_ir::ops::Concat { axis: 0 }, all),
    }
}

/// `TopK` where a run says how many: all in order, and of those the first.
pub(super) fn first_of_all(
    cx: &mut Importer,
    x: Value,
    axis: usize,
    count: Value,
    largest: bool,
) -> Imported {
    let all = cx.ty(x).shape[axis].clone();
    let places = cx.ranked(x, axis, all, largest)?;
    let values = cx.elements(x, places, axis)?;
    let count = scalar(cx, count)?;
    let count = cx.cast(count, DType::I64)?;
    cx.cut(&[values, places], axis, count)
}

/// `Slice` between bounds that a run says, forwards and without gaps.
pub(super) fn slice(cx: &mut Importer, call: &Call, x: Value, bounds: [Value; 2]) -> Imported {
    let unsupported = |what: &str| Err(Refusal::Unsupported(format!("{what} is computed at run time")));
    let ndim = cx.ty(x).ndim();
    let Some(count) = cx.ty(bounds[0]).shape.first().and_then(Dim::as_extent) else {
        return unsupported("the number of starts");
    };
    let given = match call.optional(3) {
        Some(_) => cx.const_ints(call, 3, "the list of axes")?,
        None => (0..count as i64).collect(),
    };
    if let Some(steps) = call.optional(4)
        && cx.ints(steps).is_none_or(|known| known.values.iter().any(|step| !step.is(1)))
    {
        return unsupported("a bound of a part with another step than 1");
    }
    let mut y = x;
    for (i, at) in given.into_iter().enumerate() {
        let at = axis(at, ndim)?;
        let extent = cx.extent(&cx.ty(x).shape[at].clone(), DType::I64)?;
        let bound = |cx: &mut Importer, list: Value| {
            let one = slice_axes(cx, list, &[0], &[Dim::from(i)], &[Dim::from(i + 1)], &[1])?;
            let one = scalar(cx, one)?;
            let one = cx.cast(one, DType::I64)?;
            let from_end = cx.plus(one, extent)?;
            let negative = cx.below(one, 0.0)?;
            let one = cx.chosen(negative, from_end, one)?;
            let one = cx.smaller(one, extent)?;
            cx.floored(one, 0.0)
        };
        let (start, end) = (bound(cx, bounds[0])?, bound(cx, bounds[1])?);
        let count = cx.minus(end, start)?;
        let count = cx.floored(count, 0.0)?;
        if cx.one_number(start) != Some(0.0) {
            let places = cx.iota(&cx.ty(x).shape[at].clone())?;
            let places = cx.plus(places, start)?;
            let last = cx.offset(extent, -1.0)?;
            let places = cx.smaller(places, last)?;
            y = cx.add(Gather { axis: at }, &[y, places])?;
        }
        y = cx.cut(&[y], at, count)?[0];
    }
    Ok(vec![y])
}

/// `NonMaxSuppression`.
pub(super) fn non_max_suppression(cx: &mut Importer, call: &Call) -> Imported {
    let (mut boxes, scores) = (call.input(0)?, call.input(1)?);
    let [most, share, least] = [2, 3, 4].map(|at| call.optional(at));
    match call.int("center_point_box", 0)? {
        0 => {}
        1 => boxes = corners(cx, boxes)?,
        other => return Err(Refusal::Invalid(format!("boxes of form {other}"))),
    }
    let Some(all) = cx.ty(boxes).shape.get(1).cloned() else {
        return Err(Refusal::Invalid(format!("expected boxes with 3 axes, found {}", cx.ty(boxes))));
    };
    let most = match most {
        Some(most) => scalar(cx, most)?,
        None => cx.scalar(DType::I64, 0.0)?,
    };
    let single = |cx: &mut Importer, v: Option<Value>, none: f64| match v {
        Some(v) => {
            let v = scalar(cx, v)?;
            cx.cast(v, DType::F32)
        }
        None => cx.scalar(DType::F32, none),
    };
    let (share, least) = (single(cx, share, 0.0)?, single(cx, least, f64::NEG_INFINITY)?);
    // No more for one class than there are boxes.
    let bound = match (cx.one_number(most), all.as_const()) {
        (Some(most), Some(all)) => Dim::from(all.min(most.max(0.0) as i64)),
        (Some(most), None) if most <= MAX_CHOSEN => Dim::from(most.max(0.0) as i64),
        _ => all,
    };
    let (boxes, scores) = (cx.cast(boxes, DType::F32)?, cx.cast(scores, DType::F32)?);
    let most = cx.cast(most, DType::I64)?;
    let found = cx.add_all(NonMaxSuppression { most: bound }, &[boxes, scores, most, share, least])?;
    cx.cut(&found[..1], 0, found[1])
}

/// Boxes for each class that there is room for where the number of boxes is open.
const MAX_CHOSEN: f64 = 4096.0;

/// Boxes that are given by centre x, centre y, width and height, as two corners.
fn corners(cx: &mut Importer, boxes: Value) -> Result<Value, Refusal> {
    let last = cx.ty(boxes).ndim().saturating_sub(1);
    let part = |cx: &mut Importer, from: usize| {
        slice_axes(cx, boxes, &[last], &[Dim::from(from)], &[Dim::from(from + 1)], &[1])
    };
    let mut sides = Vec::new();
    // y before x.
    for from in [1, 0] {
        let (centre, length) = (part(cx, from)?, part(cx, from + 2)?);
        let half = cx.scaled(length, 0.5)?;
        sides.push([cx.minus(centre, half)?, cx.plus(centre, half)?]);
    }
    cx.add(margay_ir::ops::Concat { axis: last }, &[sides[0][0], sides[1][0], sides[0][1], sides[1][1]])
}

/// `Unique`: rows in order, the first of each run of equal ones.
pub(super) fn unique(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let sorted = call.flag("sorted", true)?;
    let shape = cx.ty(x).shape.clone();
    let at = call.optional_int("axis")?.map(|at| axis(at, shape.len())).transpose()?;
    // One row for each position of the axis, or for each element.
    let mut perm: Vec<usize> = (0..shape.len()).collect();
    let (n, rest) = match at {
        Some(at) => {
            perm.remove(at);
            perm.insert(0, at);
            (shape[at].clone(), perm[1..].iter().map(|&p| shape[p].clone()).collect::<Vec<Dim>>())
        }
        None => (product(&shape), Vec::new()),
    };
    let columns = product(&rest).as_extent().filter(|c| *c <= MAX_COLUMNS);
    let columns = columns.ok_or_else(|| {
        Refusal::Unsupported(format!("rows of `{}` numbers, more than {MAX_COLUMNS}", product(&rest)))
    })?;
    let turned = if at.is_some() { cx.transposed(x, &perm)? } else { x };
    let rows = cx.shaped(turned, vec![n.clone(), Dim::from(columns)])?;
    let order = ordered(cx, rows, &n, columns)?;
    let sorted_rows = cx.add(Gather { axis: 0 }, &[rows, order])?;
    let number = cx.iota(&n)?;
    let before = cx.offset(number, -1.0)?;
    let before = cx.floored(before, 0.0)?;
    let before = cx.add(Gather { axis: 0 }, &[sorted_rows, before])?;
    let same = cx.equal(sorted_rows, before)?;
    let other = cx.not(same)?;
    let other = cx.any_of_row(other)?;
    let zero = cx.number(number, 0.0)?;
    let begins = cx.equal(number, zero)?;
    let first = cx.either(begins, other)?;
    let places = cx.places_where(first)?;
    let first = cx.cast(first, DType::I64)?;
    let group = cx.add(Cumulate { axis: 0, product: false, exclusive: false, reverse: false }, &[first])?;
    let group = cx.offset(group, -1.0)?;
    let none = cx.spread(zero, vec![n.clone()])?;
    let mut inverse = cx.add(Scatter { kind: ScatterKind::Set }, &[none, order, group])?;
    let found = cx.ty(places).shape[0].clone();
    let mut index = cx.add(Gather { axis: 0 }, &[order, places])?;
    // A run ends where the next one begins.
    let group = cx.iota(&found)?;
    let next = cx.offset(group, 1.0)?;
    let last = cx.extent(&found, DType::I64)?;
    let inside = cx.less(next, last)?;
    let next = cx.chosen(inside, next, group)?;
    let next = cx.add(Gather { axis: 0 }, &[places, next])?;
    let end = cx.extent(&n, DType::I64)?;
    let next = cx.chosen(inside, next, end)?;
    let mut counts = cx.minus(next, places)?;
    let mut y = cx.add(Gather { axis: 0 }, &[sorted_rows, places])?;
    if !sorted {
        let by_index = cx.ranked(index, 0, found.clone(), false)?;
        for v in [&mut y, &mut index, &mut counts] {
            *v = cx.add(Gather { axis: 0 }, &[*v, by_index])?;
        }
        let none = cx.spread(zero, vec![found.clone()])?;
        let number = cx.add(Scatter { kind: ScatterKind::Set }, &[none, by_index, group])?;
        inverse = cx.add(Gather { axis: 0 }, &[number, inverse])?;
    }
    y = cx.shaped(y, [&[found], rest.as_slice()].concat())?;
    if at.is_some() {
        let mut back = vec![0; perm.len()];
        perm.iter().enumerate().for_each(|(i, &p)| back[p] = i);
        y = cx.transposed(y, &back)?;
    }
    Ok(vec![y, index, inverse, counts])
}

/// The numbers of rows in ascending order, the first column first, of equal ones the first.
fn ordered(cx: &mut Importer, rows: Value, n: &Dim, columns: usize) -> Result<Value, Refusal> {
    let mut order: Option<Value> = None;
    for column in (0..columns).rev() {
        let (from, to) = (Dim::from(column), Dim::from(column + 1));
        let part = slice_axes(cx, rows, &[1], &[from], &[to], &[1])?;
        let mut keys = cx.shaped(part, vec![n.clone()])?;
        if let Some(order) = order {
            keys = cx.add(Gather { axis: 0 }, &[keys, order])?;
        }
        let by_key = cx.ranked(keys, 0, n.clone(), false)?;
        order = Some(match order {
            None => by_key,
            Some(order) => cx.add(Gather { axis: 0 }, &[order, by_key])?,
        });
    }
    match order {
        Some(order) => Ok(order),
        None => {
            cx.constant(Tensor::from_slice::<i64>(&[0], &[]).map_err(|e| Refusal::Invalid(e.to_string()))?)
        }
    }
}
