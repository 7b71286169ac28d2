//! Positions in blocks of one length, means of blocks, and masks of keys, for forms of attention that read keys together.
//!
//! Lengths may be open: quotients are extents. The last blocks may end behind the last position, with
//! fillers there; the weight of a block of fillers alone is 0.

use margay_ir::ops::{
    Add, Broadcast, Div, Exp, Log, Max, Mul, Number, Pad, Reduce, ReduceKind, Reshape, Slice, Sub,
};
use margay_ir::{AddError, Value};
use margay_tensor::{Dim, Shape};

use super::heads::Nodes;

/// What stands for -∞ in masks of keys: its exponential beside any other is 0, and a query that sees nothing has a mean of
/// what is hidden from it, in place of a NaN that later sums would spread.
pub(super) const LEAST: f64 = -1e30;

/// What a sum of weights is at least, where a mask may hide all keys.
pub(super) const LEAST_SUM: f64 = 1e-30;

/// `length` positions as `count` blocks of `size`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Blocks {
    pub(super) length: Dim,
    pub(super) count: Dim,
    pub(super) size: Dim,
    /// Positions that the last blocks are filled up by, at most; exact for a known length.
    pub(super) filled: usize,
}

impl Blocks {
    /// So many blocks, at least 1.
    pub(super) fn of_count(length: &Dim, count: usize) -> Blocks {
        let (size, filled) = quotient(length, count);
        Blocks { length: length.clone(), count: Dim::from(count), size, filled }
    }

    /// Blocks of so many positions, at least 1, or one of all positions where there are fewer.
    pub(super) fn of_size(length: &Dim, most: usize) -> Blocks {
        let known = length.as_extent().map(|length| length.clamp(1, most));
        // Fewer positions than `most` are one block of either size.
        let (count, filled) = quotient(length, known.unwrap_or(most));
        let size = known.map_or_else(|| at_most(length, most), Dim::from);
        Blocks { length: length.clone(), count, size, filled }
    }

    /// Positions with those that are filled up.
    pub(super) fn whole(&self) -> Dim {
        &self.count * &self.size
    }

    /// Whether blocks end where the positions do.
    pub(super) fn are_full(&self) -> bool {
        self.whole() == self.length
    }

    /// `[…, length, …]` as `[…, count, size, …]`.
    pub(super) fn split(
        &self,
        nodes: &mut Nodes<'_, '_>,
        x: Value,
        axis: usize,
        filler: f64,
    ) -> Result<Value, AddError> {
        let x = padded(nodes, x, (axis, filler), [0, self.filled])?;
        self.split_from(nodes, x, axis, &Dim::default())
    }

    /// The blocks of a value that is padded, from a position on.
    pub(super) fn split_from(
        &self,
        nodes: &mut Nodes<'_, '_>,
        x: Value,
        axis: usize,
        start: &Dim,
    ) -> Result<Value, AddError> {
        let x = part(nodes, x, axis, [start, &(start + &self.whole())])?;
        let mut shape = nodes.ty(x).shape.clone();
        shape.splice(axis..=axis, [self.count.clone(), self.size.clone()]);
        nodes.add(Reshape { shape }, &[x])
    }

    /// How much the positions of each block weigh, where a mask `[b, h, length]` is given or blocks are not full.
    pub(super) fn weights(
        &self,
        nodes: &mut Nodes<'_, '_>,
        mask: Option<Value>,
    ) -> Result<Option<Weights>, AddError> {
        if mask.is_none() && self.are_full() {
            return Ok(None);
        }
        let over = |kind, axis| Reduce { kind, axes: vec![axis], keepdims: true };
        let most = mask.map(|mask| nodes.add(over(ReduceKind::Max, 2), &[mask])).transpose()?;
        let each = match (mask, most) {
            (Some(mask), Some(most)) => {
                let below = nodes.add(Sub, &[mask, most])?;
                nodes.add(Exp, &[below])?
            }
            _ => {
                let one = nodes.number(1.0)?;
                let shape = vec![Dim::from(1usize), Dim::from(1usize), self.length.clone()];
                nodes.add(Broadcast { shape }, &[one])?
            }
        };
        let each = self.split(nodes, each, 2, 0.0)?;
        let sums = nodes.add(over(ReduceKind::Sum, 3), &[each])?;
        let mut logarithms = nodes.add(Log, &[sums])?;
        if let Some(most) = most {
            let most = with_axis(nodes, most, 3)?;
            logarithms = nodes.add(Add, &[logarithms, most])?;
        }
        let least = nodes.number(LEAST)?;
        let logarithms = nodes.add(Max, &[logarithms, least])?;
        let shape = nodes.ty(logarithms).shape[..3].to_vec();
        let logarithms = nodes.add(Reshape { shape }, &[logarithms])?;
        let least = nodes.number(LEAST_SUM)?;
        let sums = nodes.add(Max, &[sums, least])?;
        Ok(Some(Weights { each: with_axis(nodes, each, 4)?, sums, logarithms }))
    }

    /// The means of the blocks of `[B, H, length, D]`, `[B, H, count, D]`.
    pub(super) fn means(
        &self,
        nodes: &mut Nodes<'_, '_>,
        x: Value,
        weights: Option<&Weights>,
    ) -> Result<Value, AddError> {
        let over = |kind| Reduce { kind, axes: vec![3], keepdims: false };
        let mut x = self.split(nodes, x, 2, 0.0)?;
        let Some(weights) = weights else { return nodes.add(over(ReduceKind::Mean), &[x]) };
        x = nodes.add(Mul, &[x, weights.each])?;
        let sums = nodes.add(over(ReduceKind::Sum), &[x])?;
        nodes.add(Div, &[sums, weights.sums])
    }
}

/// Weights of positions in blocks, `exp(mask)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    /// Over the greatest of the head, `[b, h, count, size, 1]`.
    each: Value,
    /// Their sums, `[b, h, count, 1]`; not 0.
    sums: Value,
    /// Logarithms of the sums of `exp(mask)`, `[b, h, count]`; not below [`LEAST`].
    pub(super) logarithms: Value,
}

/// The quotient rounded up, and what is missing to a multiple, at most.
fn quotient(length: &Dim, divisor: usize) -> (Dim, usize) {
    let by = Dim::from(divisor);
    let rounded_down = |length: &Dim| length.floor_div(&by).unwrap_or_default();
    let exact = rounded_down(length);
    if &exact * &by == *length {
        return (exact, 0);
    }
    let up = rounded_down(&(length + &Dim::from(divisor.saturating_sub(1))));
    let missing = (&(&up * &by) - length).as_extent();
    (up, missing.unwrap_or(divisor.saturating_sub(1)))
}

/// The smaller of a length and a number.
pub(super) fn at_most(length: &Dim, most: usize) -> Dim {
    if let Some(length) = length.as_extent() {
        return Dim::from(length.min(most));
    }
    let (most, one) = (Dim::from(most), Dim::from(1usize));
    if (&(length - &most) + &one).is_positive() {
        return most;
    }
    // 1 where the length is at least the number, and else 0.
    let reaches = (length + length).floor_div(&(length + &most)).unwrap_or_default();
    length + &(&reaches * &(&most - length))
}

/// Positions from the first to before the second along an axis.
pub(super) fn part(
    nodes: &mut Nodes<'_, '_>,
    x: Value,
    axis: usize,
    [start, end]: [&Dim; 2],
) -> Result<Value, AddError> {
    let shape = nodes.ty(x).shape.clone();
    match start.is(0) && *end == shape[axis] {
        true => Ok(x),
        false => nodes.add(part_of(&shape, axis, [start, end]), &[x]),
    }
}

/// The operator of [`part`].
pub(super) fn part_of(shape: &[Dim], axis: usize, [start, end]: [&Dim; 2]) -> Slice {
    let mut starts = vec![Dim::default(); shape.len()];
    let mut ends = shape.to_vec();
    (starts[axis], ends[axis]) = (start.clone(), end.clone());
    Slice { starts, ends, steps: vec![1; shape.len()] }
}

/// So many copies of a number before and after the positions of an axis.
pub(super) fn padded(
    nodes: &mut Nodes<'_, '_>,
    x: Value,
    (axis, filler): (usize, f64),
    around: [usize; 2],
) -> Result<Value, AddError> {
    if around == [0, 0] {
        return Ok(x);
    }
    let [before, after] = around.map(|copies| {
        let mut all = vec![0; nodes.ty(x).ndim()];
        all[axis] = i64::try_from(copies).unwrap_or(i64::MAX);
        all
    });
    nodes.add(Pad { before, after, value: Number::float(filler) }, &[x])
}

/// The same numbers with one more axis, of extent 1, there.
pub(super) fn with_axis(nodes: &mut Nodes<'_, '_>, x: Value, axis: usize) -> Result<Value, AddError> {
    let mut shape = nodes.ty(x).shape.clone();
    shape.insert(axis, Dim::from(1usize));
    nodes.add(Reshape { shape }, &[x])
}

/// The same numbers repeated up to a shape.
pub(super) fn repeated(nodes: &mut Nodes<'_, '_>, x: Value, shape: Shape) -> Result<Value, AddError> {
    match nodes.ty(x).shape == shape {
        true => Ok(x),
        false => nodes.add(Broadcast { shape }, &[x]),
    }
}

/// A mask with one number for each key as `[b, h, keys]`, where b and h are those of the mask or 1; not below [`LEAST`].
pub(super) fn mask_of_keys(nodes: &mut Nodes<'_, '_>, mask: Value, keys: &Dim) -> Result<Value, AddError> {
    let shape = &nodes.ty(mask).shape;
    let at =
        |from_end: usize| shape.len().checked_sub(from_end).map_or(Dim::from(1usize), |i| shape[i].clone());
    let shape = vec![at(4), at(3), at(1)];
    let whole = vec![at(4), at(3), keys.clone()];
    let mask = nodes.add(Reshape { shape }, &[mask])?;
    let mask = repeated(nodes, mask, whole)?;
    let least = nodes.number(LEAST)?;
    nodes.add(Max, &[mask, least])
}
