//! Operators that give elements another place.

use margay_ir::ops::{Broadcast, Concat, Gather, Number, Pad, Transpose};
use margay_ir::{Value, types};
use margay_tensor::{Dim, Shape};

use super::Importer;
use super::assume::is_open;
use super::call::{Call, Imported, Refusal, axes, axis};
use super::slices::slice_axes;
use super::values::open;

/// `Reshape`: 0 keeps an extent (unless `allowzero`), -1 stands for what is left.
pub(super) fn reshape(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let zero_is_zero = call.flag("allowzero", false)?;
    let mut shape = match call.opset < 5 {
        true => call.ints("shape")?.unwrap_or_default().iter().copied().map(Dim::from).collect(),
        false => cx.known_ints(call, 1, "the shape")?.values,
    };
    let from = cx.ty(x).shape.clone();
    for (i, d) in shape.iter_mut().enumerate().filter(|(_, d)| d.is(0) && !zero_is_zero) {
        let keep = from.get(i).cloned();
        *d = keep.ok_or_else(|| Refusal::Invalid(format!("extent 0 keeps axis {i}, which is not there")))?;
    }
    let open: Vec<usize> = (0..shape.len()).filter(|&i| shape[i].is(-1)).collect();
    match open.as_slice() {
        [] => {}
        [i] => shape[*i] = rest(&from, &shape, *i)?,
        _ => return Err(Refusal::Invalid("expected at most one extent of -1 in the shape".into())),
    }
    cx.shaped(x, shape).map(|v| vec![v])
}

/// The extent that makes the number of elements right. Whether there is one is checked with the values of symbols.
fn rest(from: &[Dim], shape: &[Dim], open: usize) -> Result<Dim, Refusal> {
    let product = |dims: &mut dyn Iterator<Item = &Dim>| dims.fold(Dim::from(1usize), |n, d| &n * d);
    let total = product(&mut from.iter());
    let known = product(&mut shape.iter().enumerate().filter(|(i, _)| *i != open).map(|(_, d)| d));
    let exact = |q: &Dim| total.as_const().is_none() || known.as_const().is_none() || (q * &known) == total;
    let why = || Refusal::Invalid(format!("{total} elements are not a multiple of {known}"));
    total.floor_div(&known).filter(exact).ok_or_else(why)
}

/// `Flatten`: the axes before and from `axis` on become one each.
pub(super) fn flatten(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let shape = cx.ty(x).shape.clone();
    let at = call.int("axis", 1)?;
    let at = if at == shape.len() as i64 { shape.len() } else { axis(at, shape.len())? };
    flatten_at(cx, x, at).map(|v| vec![v])
}

/// A matrix whose rows are the axes before `at`.
pub(super) fn flatten_at(cx: &mut Importer, x: Value, at: usize) -> Result<Value, Refusal> {
    let (outer, inner) = cx.ty(x).shape.split_at(at);
    let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1usize), |n, d| &n * d);
    let shape = vec![product(outer), product(inner)];
    cx.shaped(x, shape)
}

/// The axes of `Squeeze` and `Unsqueeze`: an attribute before operator set 13, an input since.
fn given_axes(cx: &mut Importer, call: &Call) -> Result<Option<Vec<i64>>, Refusal> {
    if call.opset < 13 {
        return Ok(call.ints("axes")?.map(<[i64]>::to_vec));
    }
    match call.optional(1) {
        Some(_) => cx.const_ints(call, 1, "the list of axes").map(Some),
        None => Ok(None),
    }
}

/// `Unsqueeze`: new axes of extent 1.
pub(super) fn unsqueeze(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let missing = || Refusal::Invalid("expected a list of axes, found none".into());
    let given = given_axes(cx, call)?.ok_or_else(missing)?;
    let mut shape = cx.ty(x).shape.clone();
    for at in axes(&given, shape.len() + given.len())? {
        shape.insert(at, Dim::from(1usize));
    }
    cx.shaped(x, shape).map(|v| vec![v])
}

/// `Squeeze`: without the given axes, or all, of extent 1.
pub(super) fn squeeze(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let shape = cx.ty(x).shape.clone();
    let gone = match given_axes(cx, call)? {
        Some(given) => axes(&given, shape.len())?,
        None => {
            let mut gone = Vec::new();
            for (i, d) in shape.iter().enumerate() {
                let extent = cx.value_of(d)?.ok_or_else(|| open("the number of axes", d))?;
                gone.extend((extent == 1).then_some(i));
            }
            gone
        }
    };
    for &at in &gone {
        cx.assume_equal(&shape[at], &Dim::from(1usize))?;
    }
    let kept = shape.into_iter().enumerate().filter(|(i, _)| !gone.contains(i)).map(|(_, d)| d);
    cx.shaped(x, kept.collect()).map(|v| vec![v])
}

/// `Transpose`; without a permutation the axes are reversed.
pub(super) fn transpose(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let ndim = cx.ty(x).ndim();
    let perm = match call.ints("perm")? {
        Some(perm) => perm.iter().map(|&p| axis(p, ndim)).collect::<Result<_, _>>()?,
        None => (0..ndim).rev().collect(),
    };
    Ok(vec![cx.add(Transpose { perm }, &[x])?])
}

/// `Expand`: both the operand and the shape may be the larger one along an axis.
pub(super) fn expand(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let shape = cx.known_ints(call, 1, "the shape")?.values;
    let mut operands = [x];
    for _ in 0..=shape.len() {
        match types::broadcast_shapes(&cx.ty(operands[0]).shape, &shape) {
            Ok(shape) => return broadcast_to(cx, operands[0], shape).map(|v| vec![v]),
            Err(error) if is_open(&error) => cx.reconcile(&mut operands, &error)?,
            Err(error) => return Err(margay_ir::AddError { op: "broadcast", error }.into()),
        }
    }
    Err(Refusal::Unsupported("the shape depends on extents that are not known to be equal".into()))
}

/// A broadcast, if the shape is another one.
pub(super) fn broadcast_to(cx: &mut Importer, x: Value, shape: Shape) -> Result<Value, Refusal> {
    if cx.ty(x).shape == shape { Ok(x) } else { cx.add(Broadcast { shape }, &[x]) }
}

/// `Tile`: each repeated axis is split off, broadcast and joined.
pub(super) fn tile(cx: &mut Importer, call: &Call) -> Imported {
    let mut x = call.input(0)?;
    let repeats = cx.known_ints(call, 1, "the number of repeats")?.values;
    if repeats.len() != cx.ty(x).ndim() {
        let (expected, found) = (cx.ty(x).ndim(), repeats.len());
        return Err(Refusal::Invalid(format!("expected {expected} repeats, found {found}")));
    }
    for (at, times) in repeats.into_iter().enumerate().filter(|(_, times)| !times.is(1)) {
        let mut shape = cx.ty(x).shape.clone();
        shape.insert(at, Dim::from(1usize));
        x = cx.shaped(x, shape.clone())?;
        shape[at] = times;
        x = broadcast_to(cx, x, shape.clone())?;
        let repeated = &shape.remove(at) * &shape[at];
        shape[at] = repeated;
        x = cx.shaped(x, shape)?;
    }
    Ok(vec![x])
}

/// `Concat`.
pub(super) fn concat(cx: &mut Importer, call: &Call) -> Imported {
    let operands = call.all()?;
    let at = call.optional_int("axis")?.or((call.opset < 4).then_some(1));
    let at = at.ok_or_else(|| Refusal::Invalid("expected attribute `axis`, found none".into()))?;
    let axis = axis(at, cx.ty(operands[0]).ndim())?;
    Ok(vec![joined(cx, axis, operands)?])
}

/// Operands of one node, at most: their positions are numbers of 16 bits in graphs and programs.
const MOST_OPERANDS: usize = 1024;

/// Values, at least one, behind each other along an axis; very many of them group by group.
pub(super) fn joined(cx: &mut Importer, axis: usize, mut values: Vec<Value>) -> Result<Value, Refusal> {
    while values.len() > 1 {
        let groups: Vec<Vec<Value>> = values.chunks(MOST_OPERANDS).map(<[Value]>::to_vec).collect();
        let join = |group: &Vec<Value>| match group.as_slice() {
            [only] => Ok(*only),
            all => cx.add(Concat { axis }, all),
        };
        values = groups.iter().map(join).collect::<Result<_, _>>()?;
    }
    values.pop().ok_or_else(|| Refusal::Invalid("expected at least 1 input, found 0".into()))
}

/// `Gather`.
pub(super) fn gather(cx: &mut Importer, call: &Call) -> Imported {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let axis = axis(call.int("axis", 0)?, cx.ty(data).ndim())?;
    Ok(vec![cx.add(Gather { axis }, &[data, indices])?])
}

/// `Pad` with a constant; negative padding cuts off.
pub(super) fn pad(cx: &mut Importer, call: &Call) -> Imported {
    let mut x = call.input(0)?;
    let ndim = cx.ty(x).ndim();
    let mode = call.text("mode", "constant")?;
    if mode != "constant" {
        return Err(Refusal::Unsupported(format!("mode `{mode}` is not supported")));
    }
    let (given, value) = if call.opset < 11 {
        (call.ints("pads")?.unwrap_or_default().to_vec(), Number::float(call.float("value", 0.0)?))
    } else {
        (cx.const_ints(call, 1, "the padding")?, pad_value(cx, call)?)
    };
    let padded = match call.optional(3) {
        Some(_) => {
            let list = cx.const_ints(call, 3, "the list of axes")?;
            list.iter().map(|&a| axis(a, ndim)).collect::<Result<Vec<_>, _>>()?
        }
        None => (0..ndim).collect(),
    };
    if given.len() != 2 * padded.len() {
        let (expected, found) = (2 * padded.len(), given.len());
        return Err(Refusal::Invalid(format!("expected {expected} paddings, found {found}")));
    }
    let (mut before, mut after) = (vec![0; ndim], vec![0; ndim]);
    for (i, &axis) in padded.iter().enumerate() {
        (before[axis], after[axis]) = (given[i], given[padded.len() + i]);
    }
    let cut: Vec<usize> = (0..ndim).filter(|&i| before[i] < 0 || after[i] < 0).collect();
    if !cut.is_empty() {
        let dim = |v: i64| Dim::from(v);
        let starts: Vec<Dim> = cut.iter().map(|&i| dim(before[i].min(0).saturating_neg())).collect();
        let shape = cx.ty(x).shape.clone();
        let ends: Vec<Dim> = cut.iter().map(|&i| &shape[i] + &dim(after[i].min(0))).collect();
        let steps = vec![1; cut.len()];
        x = slice_axes(cx, x, &cut, &starts, &ends, &steps)?;
    }
    let [before, after] = [before, after].map(|v| v.into_iter().map(|p| p.max(0)).collect::<Vec<i64>>());
    if before.iter().chain(&after).all(|&p| p == 0) {
        return Ok(vec![x]);
    }
    Ok(vec![cx.add(Pad { before, after, value }, &[x])?])
}

fn pad_value(cx: &Importer, call: &Call) -> Result<Number, Refusal> {
    let Some(v) = call.optional(2) else { return Ok(Number::float(0.0)) };
    let number = cx.graph.constant(v).and_then(|p| Number::of(p.tensor()));
    number.ok_or_else(|| Refusal::Unsupported("the value of the padding is computed at run time".into()))
}
