//! Maxima and averages over windows.
//!
//! A row of the result is made in two steps. The rows of X below its windows are joined to one, which lies between padding
//! in scratch; then the elements of that row. Where windows are `s` apart, the joined row is split into `s` rows of every
//! `s`-th place in between, so that the same element of neighbouring windows lies side by side.
//!
//! An item is a group of rows of the result.

use margay_loops::{Needs, Pool};

use crate::isa::Isa;
use crate::params::{argument, from_words, params, to_words};
use crate::{Class, Phase, Prepared};

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 1;

/// Elements that are read behind the end of a row in scratch: those of the longest vector.
const BEHIND: usize = 16;

/// Elements joined in an item.
const JOINED: usize = 1 << 15;

params! {
    /// Windows over images.
    Params {
        outer: usize,
        size: [usize; 2],
        channels: usize,
        out: [usize; 2],
        kernel: [usize; 2],
        strides: [usize; 2],
        dilations: [usize; 2],
        pads: [usize; 2],
        average: usize,
        inside_only: usize,
        /// Rows of an item.
        group: usize,
    }
}

impl Params {
    /// Places along the last axis that windows reach, from the first of the padding on.
    fn places(&self) -> usize {
        (self.out[1] - 1) * self.strides[1] + (self.kernel[1] - 1) * self.dilations[1] + 1
    }

    /// Elements of the joined row.
    fn row(&self) -> usize {
        (self.places() * self.channels).next_multiple_of(BEHIND) + BEHIND
    }

    /// Elements of each of the rows it is split into.
    fn part(&self) -> usize {
        (self.places().div_ceil(self.strides[1]) * self.channels).next_multiple_of(BEHIND) + BEHIND
    }

    /// Elements of all these rows.
    fn parts(&self) -> usize {
        if self.strides[1] == 1 { 0 } else { self.strides[1] * self.part() }
    }

    /// Elements of a row of the result.
    fn results(&self) -> usize {
        self.out[1] * self.channels
    }
}

/// How a class runs the call.
pub(crate) fn prepare(class: Class, call: &Pool) -> Result<Prepared, String> {
    if call.kernel.contains(&0) || call.strides.contains(&0) {
        return Err(format!("windows of {:?} every {:?}", call.kernel, call.strides));
    }
    let mut params = Params {
        outer: call.outer,
        size: call.size,
        channels: call.channels,
        out: call.out,
        kernel: call.kernel,
        strides: call.strides,
        dilations: call.dilations,
        pads: call.pads,
        average: usize::from(call.average),
        inside_only: usize::from(call.average && call.inside_only),
        group: 1,
    };
    let nothing = call.out[1] == 0 || call.channels == 0;
    let joined = call.channels * (call.kernel[0] * call.size[1] + call.kernel[1] * call.out[1]);
    params.group = (JOINED / joined.max(1)).max(1);
    let rows = if nothing { 0 } else { call.outer * call.out[0] };
    let phase = Phase {
        kernel: class.kernels().pool,
        params: to_words(&params),
        items: rows.div_ceil(params.group),
        grain: 1,
    };
    let counts = if params.inside_only != 0 { params.results() + BEHIND } else { 0 };
    let scratch = if nothing { 0 } else { params.row() + params.parts() + counts };
    let needs = Needs { workspace_bytes: 0, packed: Vec::new() };
    Ok(Prepared { phases: vec![phase], scratch_bytes: scratch * size_of::<f32>(), needs })
}

/// The maxima or averages.
///
/// Arguments: X, Y. Any alignment of 4 bytes; Y overlaps nothing. Scratch: the joined row, what it is split into, and how
/// many elements of windows are inside.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`prepare`].
#[inline(always)]
pub(crate) unsafe fn run<I: Isa>(
    isa: I,
    params: *const u64,
    args: *const *mut u8,
    scratch: *mut f32,
    begin: u64,
    end: u64,
) {
    // SAFETY: the parameters are ours; an item is rows of the result, and scratch holds what `prepare` asked for.
    unsafe {
        let p = from_words::<Params>(params);
        let (x, y) = (argument(args, 0).cast_const(), argument(args, 1));
        let rows = begin as usize * p.group..(end as usize * p.group).min(p.outer * p.out[0]);
        if p.average != 0 {
            let joins = |a, b| isa.add(a, b);
            pool(isa, p, x, y, scratch, rows, 0.0, joins);
        } else {
            let joins = |a, b| isa.larger(a, b);
            pool(isa, p, x, y, scratch, rows, f32::NEG_INFINITY, joins);
        }
    }
}

/// Rows of the result; `nothing` is what changes nothing that it joins.
///
/// # Safety
/// As [`run`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "what is pooled, and how")]
unsafe fn pool<I: Isa>(
    isa: I,
    p: &Params,
    x: *const f32,
    y: *mut f32,
    scratch: *mut f32,
    rows: std::ops::Range<usize>,
    nothing: f32,
    joins: impl Fn(I::V, I::V) -> I::V,
) {
    let line = p.size[1] * p.channels;
    let (before, reached) = (p.pads[1], p.places());
    let inside = p.size[1].min(reached.saturating_sub(before)) * p.channels;
    let stride = p.strides[1];
    // SAFETY: rows are inside X, places of scratch inside what `prepare` asked for.
    unsafe {
        let parts = scratch.add(p.row());
        let counts = parts.add(p.parts());
        fill(scratch, p.row() + p.parts(), nothing);
        if p.inside_only != 0 {
            count_inside(p, counts);
        }
        for row in rows {
            let (image, at) = (row / p.out[0], row % p.out[0]);
            let (first, taps) = taps_inside(p, at);
            let from = x.wrapping_add((image * p.size[0] + first) * line);
            let to = scratch.wrapping_add(before * p.channels);
            let down = p.dilations[0] * line;
            // Without a row inside what is joined is nothing.
            if taps == 0 {
                fill(to, inside, nothing);
            } else {
                let full = inside / I::LANES * I::LANES;
                for i in (0..full).step_by(I::LANES) {
                    let mut joined = isa.load(from.add(i));
                    for tap in 1..taps {
                        joined = joins(isa.load(from.add(tap * down + i)), joined);
                    }
                    isa.store(to.add(i), joined);
                }
                if full < inside {
                    let left = inside - full;
                    let load = |at: *const f32| isa.merge(isa.splat(nothing), at, 0, left);
                    let mut joined = load(from.add(full));
                    for tap in 1..taps {
                        joined = joins(load(from.add(tap * down + full)), joined);
                    }
                    isa.store_first(to.add(full), left, joined);
                }
            }
            let base = if stride == 1 { scratch } else { split(p, scratch, parts) };
            let scale = match p.average {
                0 => 1.0,
                _ => 1.0 / (p.kernel[0] * p.kernel[1]) as f32,
            };
            let y = y.add(row * p.results());
            let steps = [p.dilations[1] / stride * p.channels, p.dilations[1] % stride];
            for i in (0..p.results()).step_by(I::LANES) {
                let mut joined = isa.load(base.add(i));
                let (mut at, mut part) = (i, 0);
                for _ in 1..p.kernel[1] {
                    (at, part) = (at + steps[0], part + steps[1]);
                    if part >= stride {
                        (at, part) = (at + p.channels, part - stride);
                    }
                    joined = joins(isa.load(base.add(part * p.part() + at)), joined);
                }
                if p.inside_only != 0 {
                    let count = isa.mul(isa.load(counts.add(i)), isa.splat(taps as f32));
                    joined = isa.div(joined, count);
                } else if p.average != 0 {
                    joined = isa.mul(joined, isa.splat(scale));
                }
                if i + I::LANES <= p.results() {
                    isa.store(y.add(i), joined);
                } else {
                    isa.store_first(y.add(i), p.results() - i, joined);
                }
            }
        }
    }
}

/// # Safety
/// `len` elements are writable at `to`.
#[inline(always)]
unsafe fn fill(to: *mut f32, len: usize, value: f32) {
    for i in 0..len {
        // SAFETY: the caller's promise.
        unsafe { *to.add(i) = value };
    }
}

/// Of the window at a place along the first axis, the first row that is inside and how many are.
#[inline(always)]
fn taps_inside(p: &Params, at: usize) -> (usize, usize) {
    inside(at * p.strides[0], p.pads[0], p.dilations[0], p.kernel[0], p.size[0])
}

/// Of positions `start + tap dilation - before` for taps below `kernel`, the first one inside of `size` and how many are.
#[inline(always)]
fn inside(start: usize, before: usize, dilation: usize, kernel: usize, size: usize) -> (usize, usize) {
    let dilation = dilation.max(1);
    let skipped = before.saturating_sub(start).div_ceil(dilation);
    let first = start + skipped * dilation - before.min(start + skipped * dilation);
    if skipped >= kernel || first >= size {
        return (0, 0);
    }
    (first, (kernel - skipped).min((size - first).div_ceil(dilation)))
}

/// How many elements of each window of a row are inside along the last axis.
///
/// # Safety
/// A row of the result and what is read behind it are writable at `counts`.
#[inline(always)]
unsafe fn count_inside(p: &Params, counts: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for at in 0..p.out[1] {
            let (_, taps) = inside(at * p.strides[1], p.pads[1], p.dilations[1], p.kernel[1], p.size[1]);
            fill(counts.add(at * p.channels), p.channels, taps as f32);
        }
        fill(counts.add(p.results()), BEHIND, 1.0);
    }
}

/// Splits the joined row into rows of every so many places.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn split(p: &Params, row: *const f32, parts: *mut f32) -> *mut f32 {
    let (stride, channels, places) = (p.strides[1], p.channels, p.places());
    // SAFETY: place `q * stride + part` is place `q` of row `part`, of which there are enough.
    unsafe {
        if stride == 2 && channels == 1 {
            let pairs = places / 2;
            let (even, odd) = (parts, parts.add(p.part()));
            for q in 0..pairs {
                *even.add(q) = *row.add(2 * q);
                *odd.add(q) = *row.add(2 * q + 1);
            }
            if places % 2 == 1 {
                *even.add(pairs) = *row.add(2 * pairs);
            }
            return parts;
        }
        for part in 0..stride {
            let to = parts.add(part * p.part());
            for (q, place) in (part..places).step_by(stride).enumerate() {
                for c in 0..channels {
                    *to.add(q * channels + c) = *row.add(place * channels + c);
                }
            }
        }
        parts
    }
}
