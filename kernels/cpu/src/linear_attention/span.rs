//! What linear attention does with the positions of one span of a head, chunk by chunk.

use super::features::Rows;
use super::{CHUNK, Params, SCORE_STRIDE};
use crate::block::{Block, Left, Right, multiply};
use crate::fetch::Fetch;
use crate::isa::{Isa, PANEL, from};
use crate::pack::copy_matrix;

/// The parts of the scratch.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    /// Rows of a chunk.
    pub(super) queries: *mut f32,
    pub(super) keys: *mut f32,
    /// Panels of a chunk.
    pub(super) values: *mut f32,
    /// Rows of a chunk, and what they are divided by.
    pub(super) results: *mut f32,
    pub(super) totals: *mut f32,
    /// Products of the queries and keys of a chunk, and the keys in panels; of causal attention.
    pub(super) scores: *mut f32,
    pub(super) transposed: *mut f32,
}

/// A span of one head; pointers are to its first row.
pub(super) struct Span<'a> {
    pub(super) p: &'a Params,
    pub(super) parts: Parts,
    pub(super) q: *const f32,
    pub(super) k: *const f32,
    pub(super) v: *const f32,
    pub(super) o: *mut f32,
    /// Of features that are made: panels of the directions of queries and of keys, weights, mask; null for none.
    pub(super) directions: [*mut f32; 2],
    pub(super) weights: *const f32,
    pub(super) mask: *const f32,
    /// Whether there is no head after this one.
    pub(super) is_last: bool,
}

impl Span<'_> {
    /// The keys and values of the chunk from `first` on, of `count`.
    #[inline(always)]
    fn fetch_keys(&self, first: usize, count: usize) -> Fetch {
        let p = self.p;
        self.fetch(first, count, [(self.k, p.k, p.made.dim), (self.v, p.v, p.v_dim)])
    }

    /// The queries and results of the chunk from `first` on, of `count`.
    #[inline(always)]
    fn fetch_queries(&self, first: usize, count: usize) -> Fetch {
        let p = self.p;
        self.fetch(first, count, [(self.q, p.q, p.made.dim), (self.o, p.o, p.v_dim)])
    }

    /// A chunk of two operands: first row of the span, strides, elements of a row. After the span comes that of the
    /// next head, if any.
    #[inline(always)]
    fn fetch(&self, first: usize, count: usize, operands: [(*const f32, [usize; 3], usize); 2]) -> Fetch {
        let (head, first, rows) = match first < count {
            true => (0, first, CHUNK.min(count - first)),
            false => (1, 0, if self.is_last { 0 } else { CHUNK.min(count) }),
        };
        let row =
            |at: *const f32, strides: [usize; 3]| at.wrapping_add(head * strides[1] + first * strides[2]);
        let operands = operands.map(|(at, strides, len)| (row(at, strides), strides[2], len));
        Fetch::new(operands, rows)
    }

    /// Brings the keys, or features of them, and values of a chunk into the scratch. They are to be added to `state`.
    ///
    /// # Safety
    /// The rows are in range; `state` is one.
    #[inline(always)]
    unsafe fn load_keys<I: Isa>(&self, isa: I, first: usize, count: usize, state: *mut f32) {
        let (p, parts) = (self.p, self.parts);
        // SAFETY: the parts hold `CHUNK` rows; the last panel may be partial.
        unsafe {
            let (k, to) = (self.k.add(first * p.k[2]), (parts.keys, p.stride()));
            if p.made.lie() {
                copy_matrix(isa, count, p.features, (k, [p.k[2], 1]), to);
            } else {
                let mask =
                    self.mask.wrapping_add(if self.mask.is_null() { 0 } else { first * p.made.mask[2] });
                let rows = Rows {
                    at: k,
                    stride: p.k[2],
                    count,
                    directions: self.directions[1],
                    weights: self.weights,
                    mask,
                    mask_stride: p.made.mask[2],
                };
                rows.keys(isa, p, to, parts.totals, state);
            }
            for col in (0..p.v_dim).step_by(PANEL) {
                let (cols, to) = (PANEL.min(p.v_dim - col), parts.values.add(col * CHUNK));
                if cols < PANEL {
                    std::ptr::write_bytes(to, 0, CHUNK * PANEL);
                }
                let v = (self.v.add(first * p.v[2] + col), [p.v[2], 1]);
                copy_matrix(isa, count, cols, v, (to, PANEL));
            }
        }
    }

    /// Adds the loaded keys and values to a state.
    ///
    /// # Safety
    /// `count` rows are loaded; `state` is one.
    #[inline(always)]
    unsafe fn add_keys<I: Isa>(&self, isa: I, count: usize, state: *mut f32, fetch: &mut Fetch) {
        let (p, parts) = (self.p, self.parts);
        let (keys, stride) = (parts.keys, p.stride());
        fetch.divide(p.rows().div_ceil(I::ROWS) * p.columns() / PANEL);
        // SAFETY: rows of keys and the sums of a state are whole vectors.
        unsafe {
            for col in (0..p.v_dim).step_by(PANEL) {
                let (values, to) = (parts.values.add(col * CHUNK), state.add(col * p.rows()));
                let mut row = 0;
                while row < p.rows() {
                    let left = p.rows() - row;
                    let rows = left.div_ceil(left.div_ceil(I::ROWS));
                    isa.tile_transposed(
                        rows,
                        count,
                        keys.add(row),
                        stride,
                        values,
                        to.add(row * PANEL),
                        PANEL,
                        true,
                    );
                    row += rows;
                    fetch.advance(isa);
                }
            }
            let sums = state.add(p.panels());
            for i in (0..p.rows()).step_by(I::LANES) {
                let n = I::LANES.min(p.rows() - i);
                let mut sum = isa.load(sums.add(i));
                for row in 0..count {
                    let key = keys.add(row * stride + i);
                    let key =
                        if n == I::LANES { isa.load(key) } else { isa.merge(isa.splat(0.0), key, 0, n) };
                    sum = isa.add(sum, key);
                }
                isa.store(sums.add(i), sum);
            }
        }
    }

    /// Brings the queries of a chunk, or features of them, into the scratch, and their products with the sums of a state into the totals.
    ///
    /// # Safety
    /// The rows are in range; `state` is one.
    #[inline(always)]
    unsafe fn load_queries<I: Isa>(&self, isa: I, first: usize, count: usize, state: *const f32) {
        let (p, parts) = (self.p, self.parts);
        let epsilon = f32::from_bits(p.epsilon_bits as u32);
        // SAFETY: the parts hold `CHUNK` rows of whole vectors; the sums of a state are whole vectors.
        unsafe {
            let sums = state.add(p.panels());
            if !p.made.lie() {
                let rows = Rows {
                    at: self.q.add(first * p.q[2]),
                    stride: p.q[2],
                    count,
                    directions: self.directions[0],
                    weights: self.weights,
                    mask: std::ptr::null(),
                    mask_stride: 0,
                };
                rows.queries(isa, p, (parts.queries, p.stride()));
            }
            for row in 0..count {
                let q = self.q.add((first + row) * p.q[2]);
                let to = parts.queries.add(row * p.stride());
                let mut total = isa.splat(0.0);
                for i in (0..p.features).step_by(I::LANES) {
                    let n = I::LANES.min(p.features - i);
                    let x = match n {
                        _ if !p.made.lie() => isa.load(to.add(i)),
                        n if n == I::LANES => isa.load(q.add(i)),
                        n => isa.merge(isa.splat(0.0), q.add(i), 0, n),
                    };
                    isa.store(to.add(i), x);
                    total = isa.fma(x, isa.load(sums.add(i)), total);
                }
                *parts.totals.add(row) = isa.sum(total) + epsilon;
            }
        }
    }

    /// Adds the products of the loaded queries and a state to the results.
    ///
    /// # Safety
    /// `count` rows are loaded; `state` is one.
    #[inline(always)]
    unsafe fn add_products<I: Isa>(
        &self,
        isa: I,
        count: usize,
        state: *const f32,
        accumulate: bool,
        fetch: &mut Fetch,
    ) {
        let (p, parts) = (self.p, self.parts);
        fetch.divide(count.div_ceil(I::ROWS) * p.columns() / PANEL);
        for col in (0..p.columns()).step_by(PANEL) {
            let mut row = 0;
            while row < count {
                let rows = (count - row).div_ceil((count - row).div_ceil(I::ROWS));
                // SAFETY: the panels of a state follow each other; results have whole panels of columns.
                unsafe {
                    let (q, panel) = (parts.queries.add(row * p.stride()), state.add(col * p.rows()));
                    let to = parts.results.add(row * p.result_stride() + col);
                    isa.tile(
                        [rows, PANEL],
                        p.features,
                        q,
                        p.stride(),
                        panel,
                        to,
                        p.result_stride(),
                        from(to, accumulate),
                        panel,
                        0,
                    );
                }
                row += rows;
                fetch.advance(isa);
            }
        }
    }

    /// Divides the results of a chunk by its totals, and writes them.
    ///
    /// # Safety
    /// The rows are in range.
    #[inline(always)]
    unsafe fn store<I: Isa>(&self, isa: I, first: usize, count: usize) {
        let (p, parts) = (self.p, self.parts);
        // SAFETY: rows of results are whole vectors.
        unsafe {
            for row in 0..count {
                let (from, to) =
                    (parts.results.add(row * p.result_stride()), self.o.add((first + row) * p.o[2]));
                let factor = isa.splat(1.0 / *parts.totals.add(row));
                for i in (0..p.v_dim).step_by(I::LANES) {
                    let v = isa.mul(isa.load(from.add(i)), factor);
                    let n = I::LANES.min(p.v_dim - i);
                    if n == I::LANES { isa.store(to.add(i), v) } else { isa.store_first(to.add(i), n, v) }
                }
            }
        }
    }

    /// Weighs the loaded values by products of the loaded queries with the keys of their chunk up to their own position: the results
    /// so far, and what belongs to the totals.
    ///
    /// # Safety
    /// `here` queries and keys are loaded.
    #[inline(always)]
    unsafe fn weigh_pairs<I: Isa>(&self, isa: I, here: usize) {
        let (p, parts) = (self.p, self.parts);
        // SAFETY: the parts hold a chunk, of which no more than `here` rows are read.
        unsafe {
            for col in (0..here).step_by(PANEL) {
                let (cols, to) = (PANEL.min(here - col), parts.transposed.add(col * p.features));
                if cols < PANEL {
                    std::ptr::write_bytes(to, 0, p.features * PANEL);
                }
                let from = (parts.keys.add(col * p.stride()).cast_const(), [1, p.stride()]);
                copy_matrix(isa, p.features, cols, from, (to, PANEL));
            }
            multiply(
                isa,
                p.features,
                Left { at: parts.queries, stride: p.stride(), rows: here },
                Right {
                    at: parts.transposed,
                    stride: p.features * PANEL,
                    cols: here.next_multiple_of(PANEL),
                },
                Block { at: parts.scores, stride: SCORE_STRIDE },
                false,
                None,
            );
            for row in 0..here {
                let scores = parts.scores.add(row * SCORE_STRIDE);
                std::ptr::write_bytes(scores.add(row + 1), 0, SCORE_STRIDE - row - 1);
                let mut total = isa.splat(0.0);
                for i in (0..=row).step_by(I::LANES) {
                    total = isa.add(total, isa.load(scores.add(i)));
                }
                *parts.totals.add(row) += isa.sum(total);
            }
            multiply(
                isa,
                here,
                Left { at: parts.scores, stride: SCORE_STRIDE, rows: here },
                Right { at: parts.values, stride: CHUNK * PANEL, cols: p.columns() },
                Block { at: parts.results, stride: p.result_stride() },
                false,
                None,
            );
        }
    }

    /// Walks over `count` positions, chunk by chunk. With `keys` they are added to a state, with `queries` they get results: queries see
    /// the keys of the state, and where both are walked over, those of their chunk up to their own position. Each step is at one place
    /// here, for it is compiled there.
    ///
    /// # Safety
    /// The span has as many positions of what is walked over; `state` is one, with room for keys where they are.
    #[inline(always)]
    pub(super) unsafe fn walk<I: Isa>(
        &self,
        isa: I,
        count: usize,
        state: *mut f32,
        [keys, queries]: [bool; 2],
    ) {
        for first in (0..count).step_by(CHUNK) {
            let here = CHUNK.min(count - first);
            // SAFETY: the rows are in range.
            unsafe {
                if keys {
                    self.load_keys(isa, first, here, state);
                }
                if queries {
                    self.load_queries(isa, first, here, state);
                    if keys {
                        self.weigh_pairs(isa, here);
                    }
                    let mut fetch = self.fetch_queries(first + CHUNK, count);
                    self.add_products(isa, here, state, keys, &mut fetch);
                    self.store(isa, first, here);
                }
                if keys {
                    let mut fetch = self.fetch_keys(first + CHUNK, count);
                    self.add_keys(isa, here, state, &mut fetch);
                }
            }
        }
    }
}
