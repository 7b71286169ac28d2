//! Exact attention: `O = softmax(scale · Q Kᵀ + mask) V`, without ever holding all scores.
//!
//! An item is a group of panels of 32 queries of one head. It walks over the keys in blocks and keeps, for each
//! query, the largest score and the sum of exponentials, rescaling what it has when a larger score appears (Milakov
//! and Gimelshein 2018; Dao et al. 2022). Memory does not grow with the number of keys or queries.
//!
//! Queries lie in the lanes of vectors: scores of a block are the product `K Qᵀ` and values are summed as `Vᵀ P`,
//! so that maxima and sums never go across lanes, and keys and values are read where they lie. Only where their
//! rows are far apart and many queries will read them, they are copied together first, once per head.
//!
//! A row whose scores are all -∞ gives NaN, as the quotient 0 / 0 of an ordinary softmax does; so does a row with a
//! NaN or a +∞ among its scores, and a row of causal attention that sees no key. With no keys at all the result
//! is 0.

use margay_loops::{Attention, Needs};

use crate::Class;
use crate::block::multiply_transposed;
use crate::isa::{Isa, PANEL};
use crate::math::exp2;
use crate::pack::{Source, Workspace, copy_matrix, row_stride};
use crate::params::{Positions, argument, from_words, params, to_words};
use crate::prepared::expect_f32;
use crate::{Phase, Prepared};

/// Keys of a block: whole tiles of every class, and a square of scores that stays in the first-level cache.
pub(crate) const KEYS: usize = 126;

/// Most panels of an item: they share the keys of a block.
pub(crate) const MOST_PANELS: usize = 4;

/// Panels from which on a copy of the rows that they read pays.
const COPY_PANELS: usize = 24;

/// Items worth splitting groups of panels for.
pub(crate) const ENOUGH_ITEMS: usize = 32;

/// The lanes of a panel by number.
pub(crate) const LANES: [f32; PANEL] = {
    let mut lanes = [0.0; PANEL];
    let mut i = 0;
    while i < PANEL {
        lanes[i] = i as f32;
        i += 1;
    }
    lanes
};

params! {
    /// One attention: an item is a group of panels of queries of one head.
    Params {
        heads: usize,
        /// Heads of queries that share a head of keys.
        sharing: usize,
        q_len: usize,
        kv_len: usize,
        qk_dim: usize,
        v_dim: usize,
        scale_bits: usize,
        causal: usize,
        /// Strides of (batch, head, row).
        q: [usize; 3],
        k: [usize; 3],
        v: [usize; 3],
        o: [usize; 3],
        /// Strides of (batch, head, query, key).
        mask: [usize; 4],
        /// Panels of an item.
        panels: usize,
        /// Where keys and values begin in their arguments.
        k_offset: usize,
        v_offset: usize,
        q_at: usize,
        k_at: usize,
        v_at: usize,
        mask_at: usize,
        o_at: usize,
        log_at: usize,
    }
}

/// How a class runs attention.
pub(crate) fn prepare(class: Class, call: &Attention) -> Result<Prepared, String> {
    expect_f32(call.dtype)?;
    let mut at = Positions::default();
    let (q_at, k_at, v_at) = (at.next(), at.next(), at.next());
    let mask_at = at.next_if(call.mask.is_some());
    let (o_at, log_at) = (at.next(), at.next_if(call.log_sum_exp));
    let sequences = call.batch * call.heads;
    let all = call.q_len.div_ceil(PANEL);
    let panels = (sequences * all / ENOUGH_ITEMS).clamp(1, MOST_PANELS).min(all.max(1));
    let mut workspace = Workspace::new(class, at.next());
    let mut place = |at: usize, dim: usize, strides: [usize; 3]| {
        let heads = [call.batch, call.kv_heads];
        place_rows(&mut workspace, (at, strides), [call.kv_len, dim], heads, all).unwrap_or((at, 0, strides))
    };
    let (k_at, k_offset, k) = place(k_at, call.qk_dim, call.k);
    let (v_at, v_offset, v) = place(v_at, call.v_dim, call.v);
    let params = Params {
        heads: call.heads,
        sharing: call.heads.checked_div(call.kv_heads).unwrap_or(1).max(1),
        q_len: call.q_len,
        kv_len: call.kv_len,
        qk_dim: call.qk_dim,
        v_dim: call.v_dim,
        scale_bits: call.scale_bits as usize,
        causal: usize::from(call.causal),
        q: call.q,
        k,
        v,
        o: call.o,
        mask: call.mask.unwrap_or([0; 4]),
        panels,
        k_offset,
        v_offset,
        q_at,
        k_at,
        v_at,
        mask_at,
        o_at,
        log_at,
    };
    let attend = Phase {
        kernel: class.kernels().attention,
        params: to_words(&params),
        items: sequences * all.div_ceil(panels),
        grain: 1,
    };
    let mut phases = workspace.phases;
    phases.push(attend);
    Ok(Prepared {
        phases,
        scratch_bytes: 4 * params.scratch(),
        needs: Needs { workspace_bytes: 4 * workspace.len, packed: Vec::new() },
    })
}

/// Copies rows of `[batch, head]` sequences together, if so many panels read each of them that it pays: rows far apart
/// fall into few sets of the caches. Heads and sequences that share rows share the copy. `source` is the argument and
/// its strides of (batch, head, row), `size` the rows of a sequence and their length; the answer is where they are then.
pub(crate) fn place_rows(
    workspace: &mut Workspace,
    (at, strides): (usize, [usize; 3]),
    size: [usize; 2],
    [batch, heads]: [usize; 2],
    panels: usize,
) -> Option<(usize, usize, [usize; 3])> {
    let [len, dim] = size;
    if panels < COPY_PANELS || strides[2] < 2 * dim || dim == 0 || len == 0 {
        return None;
    }
    let placed = workspace.rows(Source {
        at,
        size,
        strides: [strides[2], 1],
        extents: [1, 1, batch, heads],
        batch: [0, 0, strides[0], strides[1]],
    });
    Some((workspace.at, placed.offset, [placed.batch[2], placed.batch[3], row_stride(dim)]))
}

impl Params {
    /// Elements of a panel: queries, sums of values, largest scores and sums of exponentials, 32 in a row.
    #[inline(always)]
    fn panel(&self) -> usize {
        (self.qk_dim + self.v_dim + 2) * PANEL
    }

    /// Elements of the scratch: scores, a mask that differs between queries, panels.
    fn scratch(&self) -> usize {
        2 * KEYS * PANEL + self.panels * self.panel()
    }

    /// How many keys a query sees: the first so many.
    #[inline(always)]
    fn seen(&self, query: usize) -> usize {
        if self.causal == 0 {
            return self.kv_len;
        }
        (query + 1 + self.kv_len).saturating_sub(self.q_len).min(self.kv_len)
    }
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 2;

/// Attention of groups of panels of queries.
///
/// Arguments: Q, K, V, mask if any, O, log-sum-exp if any. Any alignment of 4 bytes; the results overlap nothing.
/// Every extent may be 0.
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
    // SAFETY: the parameters are ours; the extents of the call bound every access.
    unsafe {
        let p = from_words::<Params>(params);
        let groups = p.q_len.div_ceil(PANEL).div_ceil(p.panels);
        let head_of = |position: usize, strides: [usize; 3], batch: usize, head: usize| {
            argument(args, position).wrapping_add(batch * strides[0] + head * strides[1])
        };
        for item in begin as usize..end as usize {
            let (first, rest) = (item % groups * p.panels * PANEL, item / groups);
            let (batch, head) = (rest / p.heads, rest % p.heads);
            let log = argument(args, p.log_at);
            let mask = argument(args, p.mask_at).cast_const();
            let queries = Queries {
                p,
                first,
                count: (p.panels * PANEL).min(p.q_len - first),
                q: head_of(p.q_at, p.q, batch, head),
                k: head_of(p.k_at, p.k, batch, head / p.sharing).wrapping_add(p.k_offset),
                v: head_of(p.v_at, p.v, batch, head / p.sharing).wrapping_add(p.v_offset),
                mask: if mask.is_null() {
                    mask
                } else {
                    mask.wrapping_add(batch * p.mask[0] + head * p.mask[1])
                },
                o: head_of(p.o_at, p.o, batch, head),
                log: if log.is_null() { log } else { log.wrapping_add(rest * p.q_len) },
            };
            queries.attend(isa, scratch);
        }
    }
}

/// A group of queries of one head, and what it reads and writes; pointers are to the first row of the head.
struct Queries<'a> {
    p: &'a Params,
    first: usize,
    count: usize,
    q: *const f32,
    k: *const f32,
    v: *const f32,
    mask: *const f32,
    o: *mut f32,
    log: *mut f32,
}

/// Some keys and their values.
#[derive(Clone, Copy)]
struct Keys {
    first: usize,
    count: usize,
    k: *const f32,
    v: *const f32,
}

/// A panel of queries in the scratch, rows of 32.
#[derive(Clone, Copy)]
struct Panel {
    /// The first query, and how many there are.
    first: usize,
    count: usize,
    /// `[qk_dim]`, scaled.
    queries: *mut f32,
    /// `[v_dim]`.
    sums: *mut f32,
    largest: *mut f32,
    totals: *mut f32,
}

impl Queries<'_> {
    /// # Safety
    /// The pointers and strides are those of the call; `scratch` has [`Params::scratch`] elements.
    #[inline(always)]
    unsafe fn attend<I: Isa>(&self, isa: I, scratch: *mut f32) {
        let p = self.p;
        // SAFETY: the parts of the scratch follow each other; rows and keys are in range.
        unsafe {
            let scores = scratch;
            let mask = scores.add(KEYS * PANEL);
            let panels = mask.add(KEYS * PANEL);
            let panel = |i: usize| {
                let queries = panels.add(i * p.panel());
                let sums = queries.add(p.qk_dim * PANEL);
                let largest = sums.add(p.v_dim * PANEL);
                let first = self.first + i * PANEL;
                let count = PANEL.min(self.first + self.count - first);
                Panel { first, count, queries, sums, largest, totals: largest.add(PANEL) }
            };
            let count = self.count.div_ceil(PANEL);
            for i in 0..count {
                self.begin(isa, panel(i));
            }
            let seen = p.seen(self.first + self.count - 1);
            for first in (0..seen).step_by(KEYS) {
                let count_here = KEYS.min(seen - first);
                let keys = Keys {
                    first,
                    count: count_here,
                    k: self.k.wrapping_add(first * p.k[2]),
                    v: self.v.wrapping_add(first * p.v[2]),
                };
                for i in 0..count {
                    let panel = panel(i);
                    let seen = p.seen(panel.first + panel.count - 1).saturating_sub(first);
                    let keys = Keys { count: count_here.min(seen), ..keys };
                    if keys.count > 0 {
                        self.block(isa, panel, keys, scores, mask);
                    }
                }
            }
            for i in 0..count {
                self.end(isa, panel(i));
            }
        }
    }

    /// Brings queries into a panel, scaled.
    ///
    /// # Safety
    /// The panel is that of the scratch.
    #[inline(always)]
    unsafe fn begin<I: Isa>(&self, isa: I, panel: Panel) {
        let p = self.p;
        // SAFETY: the queries of the panel are in range; the panel has room for its rows.
        unsafe {
            if panel.count < PANEL {
                std::ptr::write_bytes(panel.queries, 0, p.qk_dim * PANEL);
            }
            let from = self.q.add(panel.first * p.q[2]);
            copy_matrix(isa, p.qk_dim, panel.count, (from, [1, p.q[2]]), (panel.queries, PANEL));
            let scale = isa.splat(f32::from_bits(p.scale_bits as u32));
            for i in (0..p.qk_dim * PANEL).step_by(I::LANES) {
                let at = panel.queries.add(i);
                isa.store(at, isa.mul(isa.load(at), scale));
            }
            std::ptr::write_bytes(panel.sums, 0, p.v_dim * PANEL);
            std::ptr::write_bytes(panel.totals, 0, PANEL);
            (0..PANEL).for_each(|i| *panel.largest.add(i) = f32::NEG_INFINITY);
        }
    }

    /// Takes a block of keys into account.
    ///
    /// # Safety
    /// `scores` and `mask` have `KEYS` rows of 32; the panel has begun; the keys are in range.
    #[inline(always)]
    unsafe fn block<I: Isa>(&self, isa: I, panel: Panel, keys: Keys, scores: *mut f32, mask: *mut f32) {
        let p = self.p;
        // SAFETY: keys and queries are in range.
        unsafe {
            let mut row = 0;
            while row < keys.count {
                let left = keys.count - row;
                let rows = left.div_ceil(left.div_ceil(I::ROWS));
                let (k, to) = (keys.k.add(row * p.k[2]), scores.add(row * PANEL));
                // Meanwhile the values of this block come near, then the keys of the next one.
                let fetched = row.div_ceil(I::ROWS) * p.qk_dim * PANEL;
                let values = keys.count * p.v[2];
                let ahead = if fetched < values {
                    keys.v.wrapping_add(fetched)
                } else {
                    keys.k.wrapping_add(keys.count * p.k[2] + fetched - values)
                };
                isa.tile(
                    [rows, PANEL],
                    p.qk_dim,
                    k,
                    p.k[2],
                    panel.queries,
                    to,
                    PANEL,
                    std::ptr::null(),
                    ahead,
                    4 * PANEL / 2,
                );
                row += rows;
            }
            if !self.mask.is_null() {
                let [_, _, by_query, by_key] = p.mask;
                let from = self.mask.add(panel.first * by_query + keys.first * by_key);
                add_matrix(isa, (from, [by_key, by_query]), [keys.count, panel.count], scores, mask);
            }
            if p.causal != 0 {
                self.hide_future(isa, panel, keys, scores);
            }
            weigh(isa, panel, keys.count, p.v_dim, scores);
            let sums = panel.sums;
            multiply_transposed(isa, keys.count, keys.v, p.v[2], p.v_dim, scores, sums, true);
        }
    }

    /// Makes the scores of keys that come after a query -∞.
    ///
    /// # Safety
    /// As [`block`](Self::block).
    #[inline(always)]
    unsafe fn hide_future<I: Isa>(&self, isa: I, panel: Panel, keys: Keys, scores: *mut f32) {
        // The first query that sees key j is j + shift; before `seen` every query of the panel does.
        let shift = self.p.q_len as isize - self.p.kv_len as isize - panel.first as isize;
        let seen = self.p.seen(panel.first).saturating_sub(keys.first);
        for j in seen..keys.count {
            let first = isa.splat(((keys.first + j) as isize + shift) as f32);
            for i in (0..PANEL).step_by(I::LANES) {
                // SAFETY: j is a row of the scores.
                unsafe {
                    let at = scores.add(j * PANEL + i);
                    let lanes = isa.load(LANES.as_ptr().add(i));
                    isa.store(at, isa.select_lt(lanes, first, isa.splat(f32::NEG_INFINITY), isa.load(at)));
                }
            }
        }
    }

    /// Writes the results of a panel.
    ///
    /// # Safety
    /// The panel has begun.
    #[inline(always)]
    unsafe fn end<I: Isa>(&self, isa: I, panel: Panel) {
        let p = self.p;
        // SAFETY: the queries of the panel are in range.
        unsafe {
            for i in (0..PANEL).step_by(I::LANES) {
                // Without keys sums are 0, and so is the result.
                let total = isa.load(panel.totals.add(i));
                let total = if p.kv_len == 0 { isa.splat(1.0) } else { total };
                let factor = isa.div(isa.splat(1.0), total);
                for row in 0..p.v_dim {
                    let at = panel.sums.add(row * PANEL + i);
                    isa.store(at, isa.mul(isa.load(at), factor));
                }
            }
            let o = self.o.add(panel.first * p.o[2]);
            copy_matrix(isa, panel.count, p.v_dim, (panel.sums, [1, PANEL]), (o, p.o[2]));
            if !self.log.is_null() {
                for i in 0..panel.count {
                    let (largest, total) = (*panel.largest.add(i), *panel.totals.add(i));
                    *self.log.add(panel.first + i) = shift_of(largest) + total.ln();
                }
            }
        }
    }
}

/// Adds a strided matrix to the first columns of as many rows of 32, by way of `room` for as many.
///
/// # Safety
/// The matrix is readable at its strides, the rows and the room are writable; they do not overlap.
#[inline(always)]
pub(crate) unsafe fn add_matrix<I: Isa>(
    isa: I,
    (from, [by_row, by_column]): (*const f32, [usize; 2]),
    [rows, columns]: [usize; 2],
    to: *mut f32,
    room: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if by_column == 0 {
            for j in 0..rows {
                let m = isa.splat(*from.add(j * by_row));
                for i in (0..PANEL).step_by(I::LANES) {
                    let at = to.add(j * PANEL + i);
                    isa.store(at, isa.add(isa.load(at), m));
                }
            }
            return;
        }
        if columns < PANEL {
            std::ptr::write_bytes(room, 0, rows * PANEL);
        }
        copy_matrix(isa, rows, columns, (from, [by_row, by_column]), (room, PANEL));
        for i in (0..rows * PANEL).step_by(I::LANES) {
            let at = to.add(i);
            isa.store(at, isa.add(isa.load(at), isa.load(room.add(i))));
        }
    }
}

/// What is subtracted from scores: -∞ minus -∞ would be a NaN although later keys may count.
#[inline(always)]
fn shift_of(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY { 0.0 } else { largest }
}

/// Turns scores into `exp(score - largest)`, and keeps the largest scores, the totals and the sums of a panel up to
/// date.
///
/// # Safety
/// `scores` has `keys` rows of 32; the panel has begun, with `v_dim` rows of sums.
#[inline(always)]
unsafe fn weigh<I: Isa>(isa: I, panel: Panel, keys: usize, v_dim: usize, scores: *mut f32) {
    let (zero, lowest) = (isa.splat(0.0), isa.splat(f32::NEG_INFINITY));
    let log2_e = isa.splat(std::f32::consts::LOG2_E);
    // SAFETY: the rows of the caller's promise.
    unsafe {
        for i in (0..PANEL).step_by(I::LANES) {
            let column = scores.add(i);
            let before = isa.load(panel.largest.add(i));
            // Four at a time: a maximum takes longer than a load.
            let mut tops = [before; 4];
            let mut j = 0;
            while j + 4 <= keys {
                for (n, top) in tops.iter_mut().enumerate() {
                    *top = isa.max(*top, isa.load(column.add((j + n) * PANEL)));
                }
                j += 4;
            }
            for j in j..keys {
                tops[0] = isa.max(tops[0], isa.load(column.add(j * PANEL)));
            }
            let top = isa.max(isa.max(tops[0], tops[1]), isa.max(tops[2], tops[3]));
            // -∞ minus -∞ would be a NaN although later keys may count.
            let shift = isa.select_lt(lowest, top, top, isa.max(zero, top));
            let mut total = isa.load(panel.totals.add(i));
            let rose = isa.select_lt(before, top, isa.splat(1.0), zero);
            if isa.largest(rose) > 0.0 {
                let factor = exp2(isa, isa.mul(isa.sub(before, shift), log2_e));
                total = isa.mul(total, factor);
                for row in 0..v_dim {
                    let at = panel.sums.add(row * PANEL + i);
                    isa.store(at, isa.mul(isa.load(at), factor));
                }
                isa.store(panel.largest.add(i), top);
            }
            for j in 0..keys {
                let at = column.add(j * PANEL);
                let e = exp2(isa, isa.mul(isa.sub(isa.load(at), shift), log2_e));
                isa.store(at, e);
                total = isa.add(total, e);
            }
            isa.store(panel.totals.add(i), total);
        }
    }
}
