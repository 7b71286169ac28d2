//! Exact attention: `O = softmax(scale · Q Kᵀ + mask) V`, without ever holding all scores.
//!
//! Keys and values are packed into panels first, once per sequence and head. An item is a block of queries of one
//! head; it walks over the keys in blocks and keeps the largest score and the sum of exponentials of each row,
//! rescaling what it has when a larger score appears (Milakov and Gimelshein 2018; Dao et al. 2022). Memory grows
//! with the number of keys, never with its product with the number of queries.
//!
//! A row whose scores are all -∞ gives NaN, as the quotient 0 / 0 of an ordinary softmax does; so does a row with a
//! NaN or a +∞ among its scores. With no keys at all the result is 0.

use margay_loops::{Attention, Phase, Prepared};

use crate::Class;
use crate::block::{Block, Left, Right, multiply};
use crate::isa::{Isa, PANEL};
use crate::math::exp;
use crate::pack::{Source, Workspace};
use crate::params::{ABSENT, Positions, argument, from_words, params, to_words};

/// Keys of a block.
const KEYS: usize = 128;

/// Elements between the rows of scores, so that rows do not fall into the same sets of the cache.
const SCORE_STRIDE: usize = KEYS + 16;

params! {
    /// One attention: an item is a block of queries of one head.
    Params {
        heads: usize,
        q_len: usize,
        kv_len: usize,
        qk_dim: usize,
        v_dim: usize,
        scale_bits: usize,
        /// Strides of (batch, head, row).
        q: [usize; 3],
        o: [usize; 3],
        /// Strides of (batch, head) in the packed keys and values.
        k: [usize; 2],
        v: [usize; 2],
        /// Where the packed values begin in the workspace.
        values: usize,
        /// Strides of (batch, head, query, key).
        mask: [usize; 4],
        /// Queries of a block.
        rows: usize,
        q_at: usize,
        mask_at: usize,
        o_at: usize,
        workspace_at: usize,
    }
}

/// How a class runs attention.
pub(crate) fn prepare(class: Class, call: &Attention) -> Result<Prepared, String> {
    let mut at = Positions::default();
    let (q_at, k_at, v_at) = (at.next(), at.next(), at.next());
    let mask_at = at.next_if(call.mask.is_some());
    let (o_at, workspace_at) = (at.next(), at.next());

    // Keys that sequences or heads share are packed once.
    let mut workspace = Workspace::new(class, workspace_at);
    let extents = [1, 1, call.batch, call.heads];
    let keys = workspace.panels(Source {
        at: k_at,
        size: [call.qk_dim, call.kv_len],
        strides: [1, call.k[2]],
        extents,
        batch: [0, 0, call.k[0], call.k[1]],
    });
    let values = workspace.panels(Source {
        at: v_at,
        size: [call.kv_len, call.v_dim],
        strides: [call.v[2], 1],
        extents,
        batch: [0, 0, call.v[0], call.v[1]],
    });
    // Blocks of equal height near four tiles.
    let most = 4 * class.rows();
    let rows = call.q_len.div_ceil(call.q_len.div_ceil(most).max(1)).max(1);
    let params = Params {
        heads: call.heads,
        q_len: call.q_len,
        kv_len: call.kv_len,
        qk_dim: call.qk_dim,
        v_dim: call.v_dim,
        scale_bits: call.scale_bits as usize,
        q: call.q,
        o: call.o,
        k: [keys.batch[2], keys.batch[3]],
        v: [values.batch[2], values.batch[3]],
        values: values.offset,
        mask: call.mask.unwrap_or([0; 4]),
        rows,
        q_at,
        mask_at,
        o_at,
        workspace_at,
    };
    let attend = Phase {
        kernel: class.kernels().attention,
        params: to_words(&params),
        items: call.batch * call.heads * call.q_len.div_ceil(rows),
        grain: 1,
    };
    // A workspace of no bytes is no argument; nobody reads it then.
    let mut phases = workspace.phases;
    if workspace.len == 0 {
        phases.clear();
    }
    phases.push(attend);
    Ok(Prepared {
        phases,
        scratch_bytes: 4 * params.scratch(),
        workspace_bytes: 4 * workspace.len,
        packed: Vec::new(),
    })
}

impl Params {
    /// Elements between rows of the sums of values.
    #[inline(always)]
    fn sum_stride(&self) -> usize {
        self.v_dim.next_multiple_of(PANEL) + 16
    }

    /// Scores, sums of values, and per row the largest score, the sum of exponentials and the largest so far.
    fn scratch(&self) -> usize {
        self.rows * (SCORE_STRIDE + self.sum_stride() + 3)
    }
}

/// Attention of blocks of queries.
///
/// Arguments: Q, K, V, mask if any, O, workspace (packed keys and values, made by the phases before). Any alignment
/// of 4 bytes; O overlaps nothing. Every extent may be 0.
///
/// # Safety
/// The contract of [`margay_loops::KernelFn`], with parameters from [`prepare`].
#[inline(always)]
pub(crate) unsafe fn run<I: Isa>(
    isa: I,
    params: *const u64,
    args: *const *mut u8,
    scratch: *mut f32,
    begin: u64,
    end: u64,
) {
    // SAFETY: the parameters are ours; the extents of the call bound every access.
    unsafe {
        let p = from_words::<Params>(params);
        let blocks = p.q_len.div_ceil(p.rows);
        for item in begin as usize..end as usize {
            let (first, rest) = (item % blocks * p.rows, item / blocks);
            let (batch, head) = (rest / p.heads, rest % p.heads);
            let rows = p.rows.min(p.q_len - first);
            let q = argument(args, p.q_at).add(batch * p.q[0] + head * p.q[1] + first * p.q[2]);
            let o = argument(args, p.o_at).add(batch * p.o[0] + head * p.o[1] + first * p.o[2]);
            if p.kv_len == 0 {
                (0..rows).for_each(|i| std::ptr::write_bytes(o.add(i * p.o[2]), 0, p.v_dim));
                continue;
            }
            let workspace =
                if p.qk_dim + p.v_dim == 0 { std::ptr::null_mut() } else { argument(args, p.workspace_at) };
            let mask = if p.mask_at == ABSENT {
                std::ptr::null()
            } else {
                let at = batch * p.mask[0] + head * p.mask[1] + first * p.mask[2];
                argument(args, p.mask_at).add(at).cast_const()
            };
            let block = Queries {
                p,
                rows,
                q,
                keys: workspace.wrapping_add(batch * p.k[0] + head * p.k[1]),
                values: workspace.wrapping_add(p.values + batch * p.v[0] + head * p.v[1]),
                mask,
                o,
            };
            block.attend(isa, scratch);
        }
    }
}

/// A block of queries and what it reads and writes.
struct Queries<'a> {
    p: &'a Params,
    rows: usize,
    q: *const f32,
    keys: *const f32,
    values: *const f32,
    mask: *const f32,
    o: *mut f32,
}

impl Queries<'_> {
    /// # Safety
    /// The pointers and strides are those of the call; `scratch` has [`Params::scratch`] elements.
    #[inline(always)]
    unsafe fn attend<I: Isa>(&self, isa: I, scratch: *mut f32) {
        let p = self.p;
        let sum_stride = p.sum_stride();
        // SAFETY: the parts of the scratch follow each other; rows and keys are in range.
        unsafe {
            let scores = scratch;
            let sums = scores.add(p.rows * SCORE_STRIDE); // [rows, v_dim]
            let largest = sums.add(p.rows * sum_stride);
            let totals = largest.add(p.rows);
            let tops = totals.add(p.rows);
            for i in 0..self.rows {
                *largest.add(i) = f32::NEG_INFINITY;
                *totals.add(i) = 0.0;
            }
            for first in (0..p.kv_len).step_by(KEYS) {
                let keys = KEYS.min(p.kv_len - first);
                multiply(
                    isa,
                    p.qk_dim,
                    Left { at: self.q, stride: p.q[2], rows: self.rows },
                    Right {
                        at: self.keys.wrapping_add(first * p.qk_dim),
                        stride: p.qk_dim * PANEL,
                        cols: keys.next_multiple_of(PANEL),
                    },
                    Block { at: scores, stride: SCORE_STRIDE },
                    false,
                    None,
                );
                // One loop per step, so that short rows overlap.
                for i in 0..self.rows {
                    let row = scores.add(i * SCORE_STRIDE);
                    *tops.add(i) = self.scale_row(isa, row, i, first, keys).max(*largest.add(i));
                }
                for i in 0..self.rows {
                    let (before, top) = (*largest.add(i), *tops.add(i));
                    // -∞ minus -∞ would be a NaN although later keys may count.
                    let shift = if top == f32::NEG_INFINITY { 0.0 } else { top };
                    *largest.add(i) = top;
                    let total = exponentials(isa, scores.add(i * SCORE_STRIDE), keys, shift);
                    if before == top {
                        *totals.add(i) += total;
                        continue;
                    }
                    let factor = isa.largest(exp(isa, isa.splat(before - shift)));
                    *totals.add(i) = *totals.add(i) * factor + total;
                    if first > 0 {
                        let sums = sums.add(i * sum_stride);
                        for j in (0..p.v_dim).step_by(I::LANES) {
                            isa.store(sums.add(j), isa.mul(isa.load(sums.add(j)), isa.splat(factor)));
                        }
                    }
                }
                multiply(
                    isa,
                    keys,
                    Left { at: scores, stride: SCORE_STRIDE, rows: self.rows },
                    Right {
                        at: self.values.wrapping_add(first * PANEL),
                        stride: p.kv_len * PANEL,
                        cols: p.v_dim.next_multiple_of(PANEL),
                    },
                    Block { at: sums, stride: sum_stride },
                    first > 0,
                    None,
                );
            }
            for i in 0..self.rows {
                let (sums, o) = (sums.add(i * sum_stride), self.o.add(i * p.o[2]));
                let total = isa.splat(*totals.add(i));
                for j in (0..p.v_dim).step_by(I::LANES) {
                    let v = isa.div(isa.load(sums.add(j)), total);
                    let n = I::LANES.min(p.v_dim - j);
                    if n == I::LANES { isa.store(o.add(j), v) } else { isa.store_first(o.add(j), n, v) }
                }
            }
        }
    }

    /// Scales a row of scores, adds the mask, and returns the largest.
    ///
    /// # Safety
    /// `row` has `SCORE_STRIDE` elements; `query` and the keys from `first` on are in range.
    #[inline(always)]
    unsafe fn scale_row<I: Isa>(
        &self,
        isa: I,
        row: *mut f32,
        query: usize,
        first: usize,
        keys: usize,
    ) -> f32 {
        let p = self.p;
        let scale = isa.splat(f32::from_bits(p.scale_bits as u32));
        let lowest = isa.splat(f32::NEG_INFINITY);
        let mut top = lowest;
        // SAFETY: n keys follow j.
        unsafe {
            let mask = self.mask.wrapping_add(query * p.mask[2] + first * p.mask[3]);
            for j in (0..keys).step_by(I::LANES) {
                let n = I::LANES.min(keys - j);
                let mut v = isa.mul(isa.load(row.add(j)), scale);
                if !self.mask.is_null() {
                    let m = match p.mask[3] {
                        0 => isa.splat(*mask),
                        1 if n == I::LANES => isa.load(mask.add(j)),
                        1 => isa.merge(lowest, mask.add(j), 0, n),
                        stride => {
                            let mut m = lowest;
                            for lane in 0..n {
                                // The lane's own element, read through a base that makes it the lane's.
                                let base = mask.add((j + lane) * stride).wrapping_sub(lane);
                                m = isa.merge(m, base, lane, lane + 1);
                            }
                            m
                        }
                    };
                    v = isa.add(v, m);
                }
                if n < I::LANES {
                    isa.store(row.add(j), v);
                    v = isa.merge(lowest, row.add(j), 0, n);
                }
                isa.store(row.add(j), v);
                top = isa.max(top, v);
            }
        }
        isa.largest(top)
    }
}

/// `row = exp(row - shift)` for the first `keys` elements and the rest of their last vector, which is -∞; the sum.
///
/// # Safety
/// `row` has `SCORE_STRIDE` elements.
#[inline(always)]
unsafe fn exponentials<I: Isa>(isa: I, row: *mut f32, keys: usize, shift: f32) -> f32 {
    let shift = isa.splat(shift);
    let mut total = isa.splat(0.0);
    for j in (0..keys).step_by(I::LANES) {
        // SAFETY: whole vectors of the row.
        unsafe {
            let e = exp(isa, isa.sub(isa.load(row.add(j)), shift));
            isa.store(row.add(j), e);
            total = isa.add(total, e);
        }
    }
    isa.sum(total)
}
