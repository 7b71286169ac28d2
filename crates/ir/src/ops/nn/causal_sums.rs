//! Sums over earlier positions, chunk by chunk: causal linear attention by ordinary operators, and its derivatives.
//!
//! Pairs of positions of one chunk are weighed one by one; earlier chunks count by their moments, which are summed along the
//! chunks. Memory and time grow with the number of positions, not with its square. That number may be open.

use margay_tensor::{DType, Dim};

use super::LinearAttention;
use crate::ops::elementwise::Numbers;
use crate::ops::{Cumulate, MatMul, Number, OpDef, Pad, Reshape, Slice};
use crate::{AddError, Builder, TypeError, Value};

/// Positions whose pairs are weighed one by one.
const CHUNK: usize = 64;

/// Sums over so many positions.
pub(super) struct CausalSums {
    positions: Dim,
}

impl CausalSums {
    pub(super) fn new(positions: &Dim) -> CausalSums {
        CausalSums { positions: positions.clone() }
    }

    /// Whether there is more than one chunk, or may be.
    pub(super) fn has_chunks(&self) -> bool {
        self.positions.as_extent().is_none_or(|n| n > CHUNK)
    }

    /// `Σ_{j <= i} (x_i·y_j) z_j` for every position i of `[B, H, S, P]`, `[B, H, S, P]` and `[B, H, S, R]`; with
    /// `reversed` over j >= i.
    pub(super) fn of(
        &self,
        b: &mut Builder<'_>,
        [x, y, z]: [Value; 3],
        reversed: bool,
    ) -> Result<Value, AddError> {
        if !self.has_chunks() {
            let y = b.transposed(y)?;
            let positions = self.positions.as_extent().unwrap_or(0);
            return within(b, [x, y, z], positions, reversed);
        }
        let [x, y, z] = [self.split(b, x)?, self.split(b, y)?, self.split(b, z)?]; // [B, H, chunks, CHUNK, …]
        let y = b.transposed(y)?;
        let inside = within(b, [x, y, z], CHUNK, reversed)?;
        let moments = b.op(MatMul, &[y, z])?;
        // Long sums are not made in 16 bits.
        let dtype = b.ty(moments).dtype;
        let wide = if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype };
        let moments = b.cast(moments, wide)?;
        let before = Cumulate { axis: 2, product: false, exclusive: true, reverse: reversed };
        let before = b.op(before, &[moments])?;
        let before = b.cast(before, dtype)?;
        let outside = b.op(MatMul, &[x, before])?;
        let sum = b.add(inside, outside)?;
        let mut shape = b.ty(sum).shape.clone();
        shape.splice(2..4, [self.whole()]);
        let sum = b.op(Reshape { shape }, &[sum])?;
        first(b, sum, 2, &self.positions)
    }

    /// The positions with those that fill up the last chunk.
    fn whole(&self) -> Dim {
        let chunk = Dim::from(CHUNK);
        let rounded = &self.positions + &Dim::from(CHUNK - 1);
        let exact = self.positions.floor_div(&chunk).map(|n| &n * &chunk);
        match exact.filter(|exact| *exact == self.positions) {
            Some(exact) => exact,
            None => &rounded.floor_div(&chunk).unwrap_or_default() * &chunk,
        }
    }

    /// `[B, H, S, P]` as `[B, H, chunks, CHUNK, P]`, with zeros after the last position.
    fn split(&self, b: &mut Builder<'_>, v: Value) -> Result<Value, AddError> {
        let whole = self.whole();
        let mut v = v;
        // Of an open length as many as may be missing; what is too much is cut off.
        let missing = (&whole - &self.positions).as_const().unwrap_or(CHUNK as i64 - 1);
        if missing > 0 {
            v = padded(b, v, 2, missing, 0.0)?;
            v = first(b, v, 2, &whole)?;
        }
        let chunk = Dim::from(CHUNK);
        let mut shape = b.ty(v).shape.clone();
        shape.splice(2..3, [whole.floor_div(&chunk).unwrap_or_default(), chunk]);
        b.op(Reshape { shape }, &[v])
    }
}

/// The sums over the positions of one chunk, of y transposed.
fn within(
    b: &mut Builder<'_>,
    [x, y, z]: [Value; 3],
    chunk: usize,
    reversed: bool,
) -> Result<Value, AddError> {
    let pairs = b.op(MatMul, &[x, y])?;
    let seen = |at: usize| {
        let (i, j) = (at / chunk, at % chunk);
        i128::from(if reversed { j >= i } else { j <= i })
    };
    let seen = Numbers::Int((0..chunk * chunk).map(seen).collect()).into_tensor(DType::Bool, &[chunk, chunk]);
    let seen = seen.map_err(|e| TypeError::attribute(e.to_string()));
    let seen = b.constant(seen.map_err(|error| AddError { op: LinearAttention::NAME, error })?)?;
    let weights = b.where_or(seen, pairs, 0.0)?;
    b.op(MatMul, &[weights, z])
}

/// `v` and so many copies of a number after it along an axis.
pub(super) fn padded(
    b: &mut Builder<'_>,
    v: Value,
    axis: usize,
    copies: i64,
    number: f64,
) -> Result<Value, AddError> {
    let before = vec![0; b.ty(v).ndim()];
    let mut after = before.clone();
    after[axis] = copies;
    b.op(Pad { before, after, value: Number::float(number) }, &[v])
}

/// The first elements along an axis.
fn first(b: &mut Builder<'_>, v: Value, axis: usize, count: &Dim) -> Result<Value, AddError> {
    part(b, v, axis, [&Dim::default(), count])
}

/// The elements from the first bound to before the second along an axis.
pub(super) fn part(
    b: &mut Builder<'_>,
    v: Value,
    axis: usize,
    [start, end]: [&Dim; 2],
) -> Result<Value, AddError> {
    let mut ends = b.ty(v).shape.clone();
    if start.is(0) && *end == ends[axis] {
        return Ok(v);
    }
    let mut starts = vec![Dim::default(); ends.len()];
    (starts[axis], ends[axis]) = (start.clone(), end.clone());
    let steps = vec![1; ends.len()];
    b.op(Slice { starts, ends, steps }, &[v])
}
