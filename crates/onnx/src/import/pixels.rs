//! Operators that move blocks of images between space and channels, or cut and pad them.

use margay_ir::ops::{Bits, Col2im, Im2col, Number, Pad};
use margay_tensor::Dim;

use super::Importer;
use super::call::{Call, Imported, Refusal, axis};
use super::slices::slice_axes;

/// The side of a block, and the image `[N, C, H, W]`.
fn block(cx: &Importer, call: &Call) -> Result<(margay_ir::Value, Dim), Refusal> {
    let x = call.input(0)?;
    let side = call.optional_int("blocksize")?.filter(|&b| b > 0);
    let side = side.ok_or_else(|| Refusal::Invalid("expected attribute `blocksize` of at least 1".into()))?;
    if cx.ty(x).ndim() != 4 {
        return Err(Refusal::Invalid(format!("expected 4 axes, found {}", cx.ty(x))));
    }
    Ok((x, Dim::from(side)))
}

/// An exact quotient of extents.
pub(super) fn exact(extent: &Dim, by: &Dim) -> Result<Dim, Refusal> {
    let quotient = extent.floor_div(by).filter(|q| &(q * by) == extent);
    quotient
        .ok_or_else(|| Refusal::Unsupported(format!("`{extent}` is not known to be a multiple of `{by}`")))
}

/// `DepthToSpace`: channels of an image become blocks of it; columns first (`DCR`) or channels first (`CRD`).
pub(super) fn depth_to_space(cx: &mut Importer, call: &Call) -> Imported {
    let (x, side) = block(cx, call)?;
    let [n, c, h, w] = [0, 1, 2, 3].map(|a| cx.ty(x).shape[a].clone());
    let left = exact(&c, &(&side * &side))?;
    let (split, perm) = match call.text("mode", "DCR")? {
        "DCR" => (
            vec![n.clone(), side.clone(), side.clone(), left.clone(), h.clone(), w.clone()],
            [0, 3, 4, 1, 5, 2],
        ),
        "CRD" => (
            vec![n.clone(), left.clone(), side.clone(), side.clone(), h.clone(), w.clone()],
            [0, 1, 4, 2, 5, 3],
        ),
        other => return Err(Refusal::Invalid(format!("expected mode DCR or CRD, found `{other}`"))),
    };
    let blocks = cx.shaped(x, split)?;
    let blocks = cx.transposed(blocks, &perm)?;
    Ok(vec![cx.shaped(blocks, vec![n, left, &h * &side, &w * &side])?])
}

/// `SpaceToDepth`: blocks of an image become channels.
pub(super) fn space_to_depth(cx: &mut Importer, call: &Call) -> Imported {
    let (x, side) = block(cx, call)?;
    let [n, c, h, w] = [0, 1, 2, 3].map(|a| cx.ty(x).shape[a].clone());
    let (rows, columns) = (exact(&h, &side)?, exact(&w, &side)?);
    let split = vec![n.clone(), c.clone(), rows.clone(), side.clone(), columns.clone(), side.clone()];
    let blocks = cx.shaped(x, split)?;
    // Channels innermost, or outermost.
    let perm = match call.text("mode", "DCR")? {
        "DCR" => [0, 3, 5, 1, 2, 4],
        "CRD" => [0, 1, 3, 5, 2, 4],
        other => return Err(Refusal::Invalid(format!("expected mode DCR or CRD, found `{other}`"))),
    };
    let blocks = cx.transposed(blocks, &perm)?;
    Ok(vec![cx.shaped(blocks, vec![n, &(&c * &side) * &side, rows, columns])?])
}

/// `CenterCropPad`: the middle of what is larger, zeros around what is smaller.
pub(super) fn center_crop_pad(cx: &mut Importer, call: &Call) -> Imported {
    let mut x = call.input(0)?;
    let ndim = cx.ty(x).ndim();
    let wanted = cx.known_ints(call, 1, "the shape")?.values;
    let list = match call.ints("axes")? {
        Some(list) => list.iter().map(|&a| axis(a, ndim)).collect::<Result<Vec<_>, _>>()?,
        None => (0..ndim).collect(),
    };
    if list.len() != wanted.len() {
        let (expected, found) = (list.len(), wanted.len());
        return Err(Refusal::Invalid(format!("expected {expected} extents, found {found}")));
    }
    let (mut before, mut after) = (vec![0; ndim], vec![0; ndim]);
    for (&at, wanted) in list.iter().zip(&wanted) {
        let found = cx.ty(x).shape[at].clone();
        if *wanted == found {
            continue;
        }
        let (Some(to), Some(from)) = (wanted.as_const(), found.as_const()) else {
            let why = format!("whether `{found}` is cut or padded to `{wanted}` is not known");
            return Err(Refusal::Unsupported(why));
        };
        if to < from {
            let start = (from - to) / 2;
            x = slice_axes(cx, x, &[at], &[Dim::from(start)], &[Dim::from(start + to)], &[1])?;
        } else {
            before[at] = (to - from) / 2;
            after[at] = to - from - before[at];
        }
    }
    if before.iter().chain(&after).all(|&p| p == 0) {
        return Ok(vec![x]);
    }
    cx.one(Pad { before, after, value: Number::float(0.0) }, &[x])
}

/// `Col2Im`: columns of windows added up where they lie in the image.
pub(super) fn col_to_im(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let size = cx.known_ints(call, 1, "the shape of the image")?.values;
    let kernel = cx.const_ints(call, 2, "the shape of the windows")?;
    let kernel = super::convolutions::sizes("block_shape", &kernel, size.len())?;
    let list = |name: &'static str, count: usize, default: i64| {
        let list = call.ints(name)?.map_or_else(|| vec![default; count], <[i64]>::to_vec);
        super::convolutions::sizes(name, &list, count)
    };
    let (strides, dilations) = (list("strides", size.len(), 1)?, list("dilations", size.len(), 1)?);
    let pads = list("pads", 2 * size.len(), 0)?;
    let (pads_before, pads_after) = pads.split_at(size.len());
    let shape = cx.ty(x).shape.clone();
    if shape.len() != 3 {
        return Err(Refusal::Invalid(format!("expected 3 axes, found {}", shape.len())));
    }
    let taps: usize = kernel.iter().product();
    let channels = exact(&shape[1], &Dim::from(taps))?;
    let mut split = vec![shape[0].clone(), channels];
    split.extend(kernel.iter().map(|&k| Dim::from(k)));
    for (i, extent) in size.iter().enumerate() {
        let span = dilations[i] * (kernel[i].saturating_sub(1)) + 1;
        let room = extent + &Dim::from(pads_before[i] + pads_after[i]);
        let room = &room - &Dim::from(span);
        let steps = room.floor_div(&Dim::from(strides[i]));
        let steps = steps.ok_or_else(|| Refusal::Invalid("expected strides of at least 1".into()))?;
        split.push(&steps + &Dim::from(1usize));
    }
    let windows = cx.shaped(x, split)?;
    let im2col = Im2col {
        kernel,
        strides,
        pads_before: pads_before.to_vec(),
        pads_after: pads_after.to_vec(),
        dilations,
        value: Bits::new(0.0),
    };
    cx.one(Col2im { im2col, size }, &[windows])
}
