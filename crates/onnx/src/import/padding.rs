//! `Pad` with what the operand itself holds: its edge, its mirror image, or itself once more.

use margay_ir::Value;
use margay_ir::ops::{Concat, Gather};
use margay_tensor::Dim;

use super::Importer;
use super::call::{Call, Imported, Refusal, axis};
use super::slices::slice_axes;

/// What lies around the operand.
#[derive(Clone, Copy, PartialEq)]
enum Around {
    Edge,
    Reflect,
    Wrap,
}

/// `Pad`.
pub(super) fn pad(cx: &mut Importer, call: &Call) -> Imported {
    let around = match call.text("mode", "constant")? {
        "constant" => return super::shapes::pad(cx, call),
        "edge" => Around::Edge,
        "reflect" => Around::Reflect,
        "wrap" => Around::Wrap,
        other => return Err(Refusal::Unsupported(format!("mode `{other}` is not supported"))),
    };
    let mut x = call.input(0)?;
    let ndim = cx.ty(x).ndim();
    // Of constant padding only.
    call.ignore(&["value"]);
    call.optional(2);
    let given = match call.opset < 11 {
        true => call.ints("pads")?.unwrap_or_default().to_vec(),
        false => cx.const_ints(call, 1, "the padding")?,
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
    for (i, &axis) in padded.iter().enumerate() {
        // What is cut off is not there to be repeated.
        let (before, after) = (given[i].min(0), given[padded.len() + i].min(0));
        if before < 0 || after < 0 {
            let end = &cx.ty(x).shape[axis] + &Dim::from(after);
            x = slice_axes(cx, x, &[axis], &[Dim::from(before.saturating_neg())], &[end], &[1])?;
        }
    }
    for (i, &axis) in padded.iter().enumerate() {
        let given = given.iter().map(|&p| p.max(0)).collect::<Vec<i64>>();
        x = along(cx, x, axis, given[i], given[padded.len() + i], around)?;
    }
    Ok(vec![x])
}

/// Padding beyond this is no padding.
const MOST: i64 = 1 << 24;

fn along(
    cx: &mut Importer,
    x: Value,
    axis: usize,
    before: i64,
    after: i64,
    around: Around,
) -> Result<Value, Refusal> {
    if before == 0 && after == 0 {
        return Ok(x);
    }
    if before.abs() > MOST || after.abs() > MOST {
        return Err(Refusal::Unsupported(format!("padding of {before} and {after} is not supported")));
    }
    let extent = cx.ty(x).shape[axis].clone();
    if let Some(n) = extent.as_const() {
        // One look-up, which may go around several times.
        let period = match around {
            Around::Reflect => (2 * (n - 1)).max(1),
            Around::Edge | Around::Wrap => n,
        };
        if n == 0 {
            return Err(Refusal::Invalid("padding of an axis without elements".into()));
        }
        let place = |i: i64| match around {
            Around::Edge => i.clamp(0, n - 1),
            Around::Wrap => i.rem_euclid(period),
            Around::Reflect => {
                let i = i.rem_euclid(period);
                if i < n { i } else { period - i }
            }
        };
        let places: Vec<i64> = (-before..n + after).map(place).collect();
        let places = cx.list(&places)?;
        return cx.add(Gather { axis }, &[x, places]);
    }
    let dim = |v: i64| Dim::from(v);
    let part = |cx: &mut Importer, start: Dim, end: Dim, step: i64| {
        slice_axes(cx, x, &[axis], &[start], &[end], &[step])
    };
    let behind = |v: i64| &extent + &Dim::from(v);
    let mut parts = Vec::new();
    if before > 0 {
        parts.push(match around {
            Around::Edge => {
                let edge = part(cx, dim(0), dim(1), 1)?;
                repeated(cx, edge, axis, before)?
            }
            Around::Reflect => part(cx, dim(before), dim(0), -1)?,
            Around::Wrap => part(cx, behind(-before), extent.clone(), 1)?,
        });
    }
    parts.push(x);
    if after > 0 {
        parts.push(match around {
            Around::Edge => {
                let edge = part(cx, behind(-1), extent.clone(), 1)?;
                repeated(cx, edge, axis, after)?
            }
            Around::Reflect => part(cx, behind(-2), behind(-2 - after), -1)?,
            Around::Wrap => part(cx, dim(0), dim(after), 1)?,
        });
    }
    cx.add(Concat { axis }, &parts)
}

fn repeated(cx: &mut Importer, x: Value, axis: usize, times: i64) -> Result<Value, Refusal> {
    let mut shape = cx.ty(x).shape.clone();
    shape[axis] = Dim::from(times);
    cx.spread(x, shape)
}
