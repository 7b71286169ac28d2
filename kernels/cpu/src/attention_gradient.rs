//! Derivatives of exact attention (Dao, arXiv 2307.08691): scores are computed again, block by block, from what the
//! forward pass kept of every row, the logarithm of its sum of exponentials.
//!
//! Two phases share the code. In the first an item is a group of panels of 32 queries of one head and sums dQ over the
//! keys; in the second it is a group of panels of 32 keys of one head of keys and sums dK and dV over the queries of
//! every head that reads them. Each result is thus summed by one item, in one order. Seven products are computed where
//! five would do if the phases were one; in return nothing is added across items.
//!
//! The panel lies in the lanes of vectors, and the *rows* of the other side are read where they lie: a block of scores is
//! the product of rows and panel, and results are summed as the product of transposed rows and the block. As in `attention`,
//! rows far apart that many panels will read are copied together first.

use margay_loops::{AttentionGradient, Needs};

use crate::Class;
use crate::attention::{ENOUGH_ITEMS, KEYS, LANES, MOST_PANELS, add_matrix, place_rows};
use crate::block::multiply_transposed;
use crate::isa::{Isa, PANEL};
use crate::math::exp2;
use crate::pack::{Workspace, copy_matrix};
use crate::params::{Positions, argument, from_words, params, to_words};
use crate::prepared::expect_f32;
use crate::{Phase, Prepared};

/// The panel is of queries, or of keys.
const QUERIES: usize = 0;
const KEYS_SIDE: usize = 1;

params! {
    /// Strided rows among the arguments.
    Rows {
        at: usize,
        /// Where they begin in the argument.
        offset: usize,
        /// Strides of (batch, head, row).
        strides: [usize; 3],
    }
}

params! {
    /// One phase: an item is a group of panels of one head.
    Params {
        /// `QUERIES` or `KEYS_SIDE`.
        side: usize,
        heads: usize,
        kv_heads: usize,
        q_len: usize,
        kv_len: usize,
        qk_dim: usize,
        v_dim: usize,
        scale_bits: usize,
        causal: usize,
        /// Panels of an item.
        panels: usize,
        q: Rows,
        k: Rows,
        v: Rows,
        d_o: Rows,
        dq: Rows,
        dk: Rows,
        dv: Rows,
        /// Strides of (batch, head, query, key).
        mask: [usize; 4],
        logs_at: usize,
        centres_at: usize,
        mask_at: usize,
    }
}

/// How a class runs the derivatives of attention.
pub(crate) fn prepare(class: Class, call: &AttentionGradient) -> Result<Prepared, String> {
    expect_f32(call.dtype)?;
    let mut at = Positions::default();
    let plain = |at: usize, strides| Rows { at, offset: 0, strides };
    let (q, k, v) = (plain(at.next(), call.q), plain(at.next(), call.k), plain(at.next(), call.v));
    let (logs_at, centres_at) = (at.next(), at.next());
    let d_o = plain(at.next(), call.d_o);
    let mask_at = at.next_if(call.mask.is_some());
    let (dq, dk, dv) = (plain(at.next(), call.dq), plain(at.next(), call.dk), plain(at.next(), call.dv));
    let mut params = Params {
        side: QUERIES,
        heads: call.heads,
        kv_heads: call.kv_heads,
        // Keys whose queries have no heads are read by no query.
        q_len: if call.heads == 0 { 0 } else { call.q_len },
        kv_len: call.kv_len,
        qk_dim: call.qk_dim,
        v_dim: call.v_dim,
        scale_bits: call.scale_bits as usize,
        causal: usize::from(call.causal),
        panels: 1,
        q,
        k,
        v,
        d_o,
        dq,
        dk,
        dv,
        mask: call.mask.unwrap_or([0; 4]),
        logs_at,
        centres_at,
        mask_at,
    };
    let mut workspace = Workspace::new(class, at.next());
    let mut near = |rows: &mut Rows, [len, dim]: [usize; 2], heads: usize, readers: usize| {
        let placed =
            place_rows(&mut workspace, (rows.at, rows.strides), [len, dim], [call.batch, heads], readers);
        if let Some((at, offset, strides)) = placed {
            *rows = Rows { at, offset, strides };
        }
    };
    let sharing = call.heads.checked_div(call.kv_heads).unwrap_or(1).max(1);
    let (q_panels, k_panels) = (call.q_len.div_ceil(PANEL), call.kv_len.div_ceil(PANEL));
    near(&mut params.k, [call.kv_len, call.qk_dim], call.kv_heads, q_panels * sharing);
    near(&mut params.v, [call.kv_len, call.v_dim], call.kv_heads, q_panels * sharing);
    near(&mut params.q, [call.q_len, call.qk_dim], call.heads, k_panels);
    near(&mut params.d_o, [call.q_len, call.v_dim], call.heads, k_panels);
    let mut phases = workspace.phases;
    let mut scratch = 0;
    for (side, heads, all) in [(QUERIES, call.heads, q_panels), (KEYS_SIDE, call.kv_heads, k_panels)] {
        let sequences = call.batch * heads;
        let panels = (sequences * all / ENOUGH_ITEMS).clamp(1, MOST_PANELS).min(all.max(1));
        let phase = Params { side, panels, ..params };
        scratch = scratch.max(phase.scratch());
        phases.push(Phase {
            kernel: class.kernels().attention_gradient,
            params: to_words(&phase),
            items: sequences * all.div_ceil(panels),
            grain: 1,
        });
    }
    Ok(Prepared {
        phases,
        scratch_bytes: 4 * scratch,
        needs: Needs { workspace_bytes: 4 * workspace.len, packed: Vec::new() },
    })
}

impl Params {
    /// Elements of a panel: its two operands and what is summed, rows of 32; of queries two numbers each besides.
    #[inline(always)]
    fn panel(&self) -> usize {
        let both = self.qk_dim + self.v_dim;
        if self.side == QUERIES { (both + self.qk_dim + 2) * PANEL } else { 2 * both * PANEL }
    }

    /// Elements of the scratch: scores, what they are multiplied with, a mask, panels.
    fn scratch(&self) -> usize {
        3 * KEYS * PANEL + self.panels * self.panel()
    }

    /// Rows of the panel's side, and of the other.
    #[inline(always)]
    fn lengths(&self) -> [usize; 2] {
        if self.side == QUERIES { [self.q_len, self.kv_len] } else { [self.kv_len, self.q_len] }
    }

    /// The rows of the other side that a member of a panel of `count` from `first` on may see.
    #[inline(always)]
    fn seen(&self, first: usize, count: usize) -> std::ops::Range<usize> {
        let [_, rows] = self.lengths();
        match (self.causal, self.side) {
            (0, _) => 0..rows,
            (_, QUERIES) => 0..(first + count + self.kv_len).saturating_sub(self.q_len).min(rows),
            _ => (first + self.q_len).saturating_sub(self.kv_len).min(rows)..rows,
        }
    }
}

impl Rows {
    /// The first row of a head.
    ///
    /// # Safety
    /// `args` are those of the call.
    #[inline(always)]
    unsafe fn head(&self, args: *const *mut u8, batch: usize, head: usize) -> *mut f32 {
        // SAFETY: the position is that of the call.
        let start = unsafe { argument(args, self.at) };
        start.wrapping_add(self.offset + batch * self.strides[0] + head * self.strides[1])
    }
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 2;

/// Derivatives for groups of panels.
///
/// Arguments: Q, K, V, logarithms, centres, dO, mask if any, dQ, dK, dV, workspace if any. Any alignment of 4 bytes; the
/// results overlap nothing. Every extent may be 0.
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
        let [length, _] = p.lengths();
        let heads = if p.side == QUERIES { p.heads } else { p.kv_heads };
        let sharing = (p.heads / p.kv_heads.max(1)).max(1);
        let groups = length.div_ceil(PANEL).div_ceil(p.panels);
        for item in begin as usize..end as usize {
            let (first, rest) = (item % groups * p.panels * PANEL, item / groups);
            let (batch, head) = (rest / heads, rest % heads);
            let count = (p.panels * PANEL).min(length - first);
            let group = Group { p, first, count, scratch };
            if p.side == QUERIES {
                let sides = Sides::of(p, args, batch, head, head / sharing);
                (0..group.panels()).for_each(|i| group.begin(isa, &sides, group.panel(i)));
                group.attend(isa, &sides);
            } else {
                for reader in head * sharing..(head + 1) * sharing {
                    let sides = Sides::of(p, args, batch, reader, head);
                    if reader == head * sharing {
                        (0..group.panels()).for_each(|i| group.begin(isa, &sides, group.panel(i)));
                    }
                    group.attend(isa, &sides);
                }
            }
            let results = match p.side {
                QUERIES => [(p.dq.head(args, batch, head), p.dq.strides[2]), (std::ptr::null_mut(), 0)],
                _ => {
                    let of = |rows: &Rows| (rows.head(args, batch, head), rows.strides[2]);
                    [of(&p.dk), of(&p.dv)]
                }
            };
            (0..group.panels()).for_each(|i| group.end(isa, group.panel(i), results));
        }
    }
}

/// What a head reads; rows begin with those of the head.
struct Sides {
    /// Of the panel's side: what scores are made of, and what dO Vᵀ is made of; each with the distance between rows.
    near: [(*const f32, usize); 2],
    /// The same of the other side.
    far: [(*const f32, usize); 2],
    logs: *const f32,
    centres: *const f32,
    /// Null for none; strides of the far side and of the panel's.
    mask: *const f32,
    mask_strides: [usize; 2],
}

impl Sides {
    /// # Safety
    /// The parameters and arguments are those of the call; the heads exist.
    #[inline(always)]
    unsafe fn of(p: &Params, args: *const *mut u8, batch: usize, head: usize, kv_head: usize) -> Sides {
        // SAFETY: the caller's promise.
        unsafe {
            let rows =
                |rows: &Rows, head: usize| (rows.head(args, batch, head).cast_const(), rows.strides[2]);
            let queries = [rows(&p.q, head), rows(&p.d_o, head)];
            let keys = [rows(&p.k, kv_head), rows(&p.v, kv_head)];
            let of_row =
                |at: usize| argument(args, at).wrapping_add((batch * p.heads + head) * p.q_len).cast_const();
            let mask = argument(args, p.mask_at).cast_const();
            let [by_batch, by_head, by_query, by_key] = p.mask;
            let (near, far, mask_strides) = match p.side {
                QUERIES => (queries, keys, [by_key, by_query]),
                _ => (keys, queries, [by_query, by_key]),
            };
            let mask =
                if mask.is_null() { mask } else { mask.wrapping_add(batch * by_batch + head * by_head) };
            Sides { near, far, logs: of_row(p.logs_at), centres: of_row(p.centres_at), mask, mask_strides }
        }
    }
}

/// A group of panels of one head.
struct Group<'a> {
    p: &'a Params,
    first: usize,
    count: usize,
    scratch: *mut f32,
}

/// A panel in the scratch, rows of 32.
#[derive(Clone, Copy)]
struct Panel {
    /// The first member, and how many there are.
    first: usize,
    count: usize,
    /// What scores are made of, scaled, and what dO Vᵀ is made of.
    operands: [*mut f32; 2],
    /// Sums: dQ; or dK and dV.
    sums: [*mut f32; 2],
    /// Of queries: logarithms and centres.
    numbers: [*mut f32; 2],
}

/// Rows of the other side.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    count: usize,
}

impl Group<'_> {
    #[inline(always)]
    fn panels(&self) -> usize {
        self.count.div_ceil(PANEL)
    }

    #[inline(always)]
    fn panel(&self, i: usize) -> Panel {
        let p = self.p;
        let start = self.scratch.wrapping_add(3 * KEYS * PANEL + i * p.panel());
        let second = start.wrapping_add(p.qk_dim * PANEL);
        let sums = second.wrapping_add(p.v_dim * PANEL);
        let rest = sums.wrapping_add(p.qk_dim * PANEL);
        let first = self.first + i * PANEL;
        Panel {
            first,
            count: PANEL.min(self.first + self.count - first),
            operands: [start, second],
            sums: [sums, rest],
            numbers: [rest, rest.wrapping_add(PANEL)],
        }
    }

    /// Brings the operands of a panel into it.
    ///
    /// # Safety
    /// The panel is one of the group; `sides` are those of the head.
    #[inline(always)]
    unsafe fn begin<I: Isa>(&self, isa: I, sides: &Sides, panel: Panel) {
        let p = self.p;
        // SAFETY: the members of the panel are in range; it has room for its rows.
        unsafe {
            std::ptr::write_bytes(panel.operands[0], 0, p.panel());
            for ((from, stride), (to, dim)) in
                sides.near.into_iter().zip(panel.operands.into_iter().zip([p.qk_dim, p.v_dim]))
            {
                let from = from.wrapping_add(panel.first * stride);
                copy_matrix(isa, dim, panel.count, (from, [1, stride]), (to, PANEL));
            }
            scale(isa, p, panel.operands[0]);
            if p.side == QUERIES {
                for (from, to) in [sides.logs, sides.centres].into_iter().zip(panel.numbers) {
                    std::ptr::copy_nonoverlapping(from.wrapping_add(panel.first), to, panel.count);
                }
            }
        }
    }

    /// Takes all rows of a head into account.
    ///
    /// # Safety
    /// The panels have begun; `sides` are those of the head.
    #[inline(always)]
    unsafe fn attend<I: Isa>(&self, isa: I, sides: &Sides) {
        let all = self.p.seen(self.first, self.count);
        for first in all.clone().step_by(KEYS) {
            for i in 0..self.panels() {
                let panel = self.panel(i);
                let seen = self.p.seen(panel.first, panel.count);
                let (begin, end) = (first.max(seen.start), (first + KEYS).min(all.end).min(seen.end));
                if begin < end {
                    // SAFETY: the rows are some of the other side.
                    unsafe { self.block(isa, sides, panel, Block { first: begin, count: end - begin }) }
                }
            }
        }
    }

    /// Takes a block of rows into account.
    ///
    /// # Safety
    /// The panel has begun; the rows are in range and at most `KEYS`.
    #[inline(always)]
    unsafe fn block<I: Isa>(&self, isa: I, sides: &Sides, panel: Panel, block: Block) {
        let p = self.p;
        let scores = self.scratch;
        let products = scores.wrapping_add(KEYS * PANEL);
        let room = products.wrapping_add(KEYS * PANEL);
        let far = sides.far.map(|(at, stride)| (at.wrapping_add(block.first * stride), stride));
        // SAFETY: the rows of the block and the members of the panel are in range; each of the three has `KEYS` rows.
        unsafe {
            multiply_rows(isa, block.count, p.qk_dim, far[0], panel.operands[0], scores);
            multiply_rows(isa, block.count, p.v_dim, far[1], panel.operands[1], products);
            if !sides.mask.is_null() {
                let [by_far, by_near] = sides.mask_strides;
                let from = sides.mask.wrapping_add(block.first * by_far + panel.first * by_near);
                add_matrix(isa, (from, sides.mask_strides), [block.count, panel.count], scores, room);
            }
            if p.causal != 0 {
                self.hide(isa, panel, block, scores);
            }
            if p.side == QUERIES {
                for i in (0..PANEL).step_by(I::LANES) {
                    let [log, centre] = panel.numbers.map(|at| isa.load(at.add(i)));
                    for j in 0..block.count {
                        weigh(isa, log, centre, scores.add(j * PANEL + i), products.add(j * PANEL + i));
                    }
                }
                multiply_transposed(
                    isa,
                    block.count,
                    far[0].0,
                    far[0].1,
                    p.qk_dim,
                    products,
                    panel.sums[0],
                    true,
                );
                return;
            }
            for j in 0..block.count {
                let [log, centre] = [sides.logs, sides.centres].map(|at| isa.splat(*at.add(block.first + j)));
                for i in (0..PANEL).step_by(I::LANES) {
                    weigh(isa, log, centre, scores.add(j * PANEL + i), products.add(j * PANEL + i));
                }
            }
            let sums = [(far[0], p.qk_dim, products), (far[1], p.v_dim, scores)];
            for (((rows, stride), dim, factors), to) in sums.into_iter().zip(panel.sums) {
                multiply_transposed(isa, block.count, rows, stride, dim, factors, to, true);
            }
        }
    }

    /// Makes the scores of pairs of which the query does not see the key -∞.
    ///
    /// # Safety
    /// As [`block`](Self::block).
    #[inline(always)]
    unsafe fn hide<I: Isa>(&self, isa: I, panel: Panel, block: Block, scores: *mut f32) {
        let p = self.p;
        let lowest = isa.splat(f32::NEG_INFINITY);
        // Key j is seen by query i where j + shift <= i.
        let shift = p.q_len as isize - p.kv_len as isize;
        for j in 0..block.count {
            let row = (block.first + j) as isize;
            // Queries before this lane do not see the key; keys after it are not seen by the query.
            let bound = match p.side {
                QUERIES => row + shift - panel.first as isize,
                _ => row - shift - panel.first as isize,
            };
            let whole = if p.side == QUERIES { bound <= 0 } else { bound >= PANEL as isize - 1 };
            if whole {
                continue;
            }
            let bound = isa.splat(bound as f32);
            for i in (0..PANEL).step_by(I::LANES) {
                // SAFETY: j is a row of the scores.
                unsafe {
                    let at = scores.add(j * PANEL + i);
                    let (lanes, score) = (isa.load(LANES.as_ptr().add(i)), isa.load(at));
                    let shown = match p.side {
                        QUERIES => isa.select_lt(lanes, bound, lowest, score),
                        _ => isa.select_lt(bound, lanes, lowest, score),
                    };
                    isa.store(at, shown);
                }
            }
        }
    }

    /// Writes the results of a panel: of queries to the first, of keys to both.
    ///
    /// # Safety
    /// The panel has begun; the results have its rows.
    #[inline(always)]
    unsafe fn end<I: Isa>(&self, isa: I, panel: Panel, results: [(*mut f32, usize); 2]) {
        let p = self.p;
        // SAFETY: the members of the panel are in range.
        unsafe {
            scale(isa, p, panel.sums[0]);
            for (((to, stride), dim), sums) in results.into_iter().zip([p.qk_dim, p.v_dim]).zip(panel.sums) {
                if !to.is_null() {
                    let to = to.wrapping_add(panel.first * stride);
                    copy_matrix(isa, panel.count, dim, (sums.cast_const(), [1, PANEL]), (to, stride));
                }
            }
        }
    }
}

/// Multiplies a panel of queries, of keys or of their cotangents by the factor of the scores.
///
/// # Safety
/// The panel has `qk_dim` rows.
#[inline(always)]
unsafe fn scale<I: Isa>(isa: I, p: &Params, panel: *mut f32) {
    let factor = isa.splat(f32::from_bits(p.scale_bits as u32));
    for i in (0..p.qk_dim * PANEL).step_by(I::LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = panel.add(i);
            isa.store(at, isa.mul(isa.load(at), factor));
        }
    }
}

/// `c[rows][32] = a[rows][k] · b[k][32]`.
///
/// # Safety
/// The operands are readable and writable; rows of `a` lie at a stride.
#[inline(always)]
unsafe fn multiply_rows<I: Isa>(
    isa: I,
    rows: usize,
    k: usize,
    (a, stride): (*const f32, usize),
    b: *const f32,
    c: *mut f32,
) {
    let mut row = 0;
    while row < rows {
        let here = (rows - row).div_ceil((rows - row).div_ceil(I::ROWS));
        let (a, c) = (a.wrapping_add(row * stride), c.wrapping_add(row * PANEL));
        // The rows that follow come near.
        let ahead = a.wrapping_add(here * stride);
        // SAFETY: the rows lie in the operands.
        unsafe { isa.tile([here, PANEL], k, a, stride, b, c, PANEL, std::ptr::null(), ahead, 4 * PANEL / 2) }
        row += here;
    }
}

/// Turns some scores S and products dO Vᵀ into weights P and P ∘ (dO Vᵀ - Δ); both 0 where a score is -∞.
///
/// # Safety
/// A vector lies at both places.
#[inline(always)]
unsafe fn weigh<I: Isa>(isa: I, log: I::V, centre: I::V, score: *mut f32, product: *mut f32) {
    let (zero, lowest) = (isa.splat(0.0), isa.splat(f32::NEG_INFINITY));
    // SAFETY: the caller's promise.
    unsafe {
        let s = isa.load(score);
        let weight = exp2(isa, isa.mul(isa.sub(s, log), isa.splat(std::f32::consts::LOG2_E)));
        let ds = isa.mul(weight, isa.sub(isa.load(product), centre));
        // A NaN stays.
        let hidden = isa.max(zero, s);
        isa.store(score, isa.select_lt(lowest, s, weight, hidden));
        isa.store(product, isa.select_lt(lowest, s, ds, hidden));
    }
}
