//! Linear attention: `O = φQ (φKᵀ V) / (φQ Σ φK + ε)`, in time linear in the number of keys.
//!
//! The state of some keys is `φKᵀ V`, in panels of 32 columns, and `Σ φK`. Keys are cut into spans, and the kernel is
//! three phases: the state of each span, their sum, and the results of spans of queries. Causal attention
//! (Katharopoulos et al., arXiv 2006.16236) needs the sum of all spans before each one, and goes over a span in
//! chunks: what a query sees of its own chunk is a small product with the upper triangle left out, and the state
//! carries the rest. Where there is one span, its state is never stored.
//!
//! Spans and chunks depend on the extents alone, and sums go in the order of the keys: the bits do not depend on the
//! number of threads. A row whose denominator is 0 is a quotient by 0.

use margay_loops::{LinearAttention, Needs};

use crate::Class;
use crate::block::{Block, Left, Right, multiply};
use crate::fetch::Fetch;
use crate::isa::{Isa, PANEL, from};
use crate::pack::{copy_matrix, row_stride};
use crate::params::{Positions, argument, from_words, params, to_words};
use crate::prepared::expect_f32;
use crate::{Phase, Prepared};

/// Positions of a span: few enough for an item, so many that states are little beside what they stand for.
const SPANS: std::ops::RangeInclusive<usize> = 256..=1024;

/// Spans of a long sequence.
const ENOUGH_SPANS: usize = 8;

/// Positions of a chunk: queries that are multiplied together, keys whose product with values is added together.
const CHUNK: usize = 64;

/// Elements of a state that an item of the second phase sums.
const SUM_ITEM: usize = 4096;

/// Elements between rows of products of queries and keys of a chunk.
const SCORE_STRIDE: usize = CHUNK + 16;

/// What a phase does.
const STATES: usize = 0;
const SUMS: usize = 1;
const RESULTS: usize = 2;

params! {
    /// One phase of a linear attention.
    Params {
        /// `STATES`: an item is a span of keys of one head. `SUMS`: a piece of the states of one head. `RESULTS`: a
        /// span of queries of one head.
        phase: usize,
        heads: usize,
        q_len: usize,
        kv_len: usize,
        features: usize,
        v_dim: usize,
        epsilon_bits: usize,
        causal: usize,
        /// Positions of a span, and spans of keys.
        span: usize,
        spans: usize,
        /// Strides of (batch, head, row).
        q: [usize; 3],
        k: [usize; 3],
        v: [usize; 3],
        o: [usize; 3],
        q_at: usize,
        k_at: usize,
        v_at: usize,
        o_at: usize,
        workspace_at: usize,
    }
}

/// How a class runs linear attention.
pub(crate) fn prepare(class: Class, call: &LinearAttention) -> Result<Prepared, String> {
    expect_f32(call.dtype)?;
    if call.causal && call.q_len != call.kv_len {
        return Err(format!("causal linear attention of {} queries and {} keys", call.q_len, call.kv_len));
    }
    let mut at = Positions::default();
    let span = call.kv_len.max(call.q_len).div_ceil(ENOUGH_SPANS).next_multiple_of(CHUNK);
    let span = span.clamp(*SPANS.start(), *SPANS.end());
    let params = Params {
        phase: STATES,
        heads: call.heads,
        q_len: call.q_len,
        kv_len: call.kv_len,
        features: call.features,
        v_dim: call.v_dim,
        epsilon_bits: call.epsilon_bits as usize,
        causal: usize::from(call.causal),
        span,
        spans: call.kv_len.div_ceil(span).max(1),
        q: call.q,
        k: call.k,
        v: call.v,
        o: call.o,
        q_at: at.next(),
        k_at: at.next(),
        v_at: at.next(),
        o_at: at.next(),
        workspace_at: at.next(),
    };
    let sequences = call.batch * call.heads;
    let phase = |phase: usize, items: usize| Phase {
        kernel: class.kernels().linear_attention,
        params: to_words(&Params { phase, ..params }),
        items,
        grain: 1,
    };
    // The state of the only span of causal attention lives in the scratch of its item.
    let stored = !(call.causal && params.spans == 1);
    let mut phases = Vec::new();
    if stored {
        phases.push(phase(STATES, sequences * params.spans));
    }
    if params.spans > 1 {
        phases.push(phase(SUMS, sequences * params.state().div_ceil(SUM_ITEM)));
    }
    phases.push(phase(RESULTS, sequences * call.q_len.div_ceil(span)));
    Ok(Prepared {
        phases,
        scratch_bytes: 4 * params.scratch(),
        needs: Needs {
            workspace_bytes: if stored { 4 * sequences * params.spans * params.state() } else { 0 },
            packed: Vec::new(),
        },
    })
}

impl Params {
    /// Columns of values, in whole panels.
    #[inline(always)]
    fn columns(&self) -> usize {
        self.v_dim.next_multiple_of(PANEL)
    }

    /// Elements of the panels of a state.
    #[inline(always)]
    fn panels(&self) -> usize {
        self.columns() * self.features
    }

    /// Elements of a state: panels, then sums of features. Never 0.
    #[inline(always)]
    fn state(&self) -> usize {
        self.panels() + self.sums()
    }

    #[inline(always)]
    fn sums(&self) -> usize {
        self.features.next_multiple_of(16).max(16)
    }

    /// Elements between rows of queries and keys in the scratch; whole vectors.
    #[inline(always)]
    fn stride(&self) -> usize {
        row_stride(self.features)
    }

    /// Elements between rows of results in the scratch.
    #[inline(always)]
    fn result_stride(&self) -> usize {
        self.columns() + 16
    }

    /// The parts of the scratch, in the order of [`Parts`]; then the state so far of causal attention.
    #[inline(always)]
    fn parts(&self) -> [usize; 8] {
        [
            CHUNK * self.stride(),
            CHUNK * self.stride(),
            CHUNK * self.columns(),
            CHUNK * self.result_stride(),
            CHUNK,
            if self.causal == 0 { 0 } else { CHUNK * SCORE_STRIDE },
            if self.causal == 0 { 0 } else { CHUNK * self.features },
            if self.causal == 0 { 0 } else { self.state() },
        ]
    }

    fn scratch(&self) -> usize {
        self.parts().iter().sum()
    }
}

/// The parts of the scratch.
#[derive(Clone, Copy)]
struct Parts {
    /// Rows of a chunk.
    queries: *mut f32,
    keys: *mut f32,
    /// Panels of a chunk.
    values: *mut f32,
    /// Rows of a chunk, and what they are divided by.
    results: *mut f32,
    totals: *mut f32,
    /// Products of the queries and keys of a chunk, and the keys in panels; of causal attention.
    scores: *mut f32,
    transposed: *mut f32,
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 2;

/// One phase of linear attention.
///
/// Arguments: φQ, φK, V, O, workspace (the states) unless causal attention has a single span. Any alignment of 4
/// bytes; O overlaps nothing. Every extent may be 0.
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
        let mut at = scratch;
        let [queries, keys, values, results, totals, scores, transposed, state] = p.parts().map(|len| {
            let part = at;
            at = at.wrapping_add(len);
            part
        });
        let parts = Parts { queries, keys, values, results, totals, scores, transposed };
        for item in begin as usize..end as usize {
            let pieces = match p.phase {
                STATES => p.spans,
                SUMS => p.state().div_ceil(SUM_ITEM),
                _ => p.q_len.div_ceil(p.span),
            };
            // Heads first: often their rows lie beside each other.
            let (head, rest) = (item % p.heads, item / p.heads);
            let (batch, piece) = (rest / pieces, rest % pieces);
            let sequence = batch * p.heads + head;
            let row_of = |at: usize, strides: [usize; 3], row: usize| {
                argument(args, at).wrapping_add(batch * strides[0] + head * strides[1] + row * strides[2])
            };
            let stored = p.causal == 0 || p.spans > 1;
            let states = if stored {
                argument(args, p.workspace_at).wrapping_add(sequence * p.spans * p.state())
            } else {
                std::ptr::null_mut()
            };
            let first = piece * p.span;
            let span = Span {
                p,
                parts,
                q: row_of(p.q_at, p.q, first),
                k: row_of(p.k_at, p.k, first),
                v: row_of(p.v_at, p.v, first),
                o: row_of(p.o_at, p.o, first),
                is_last: head + 1 == p.heads,
            };
            match p.phase {
                STATES => {
                    let state = states.add(piece * p.state());
                    std::ptr::write_bytes(state, 0, p.state());
                    let count = p.span.min(p.kv_len - first);
                    for chunk in (0..count).step_by(CHUNK) {
                        span.load_keys(isa, chunk, CHUNK.min(count - chunk));
                        let mut fetch = span.fetch_keys(chunk + CHUNK, count);
                        span.add_keys(isa, CHUNK.min(count - chunk), state, &mut fetch);
                    }
                }
                SUMS => sum_states(isa, p, states, piece * SUM_ITEM),
                _ if p.causal == 0 => span.answer(isa, p.span.min(p.q_len - first), states),
                _ => {
                    if stored {
                        std::ptr::copy_nonoverlapping(states.add(piece * p.state()), state, p.state());
                    } else {
                        std::ptr::write_bytes(state, 0, p.state());
                    }
                    span.answer_causal(isa, p.span.min(p.q_len - first), state);
                }
            }
        }
    }
}

/// Sums up to `SUM_ITEM` elements, from `first` on, of the states of one head. Attention that is not causal reads the
/// sum of all in the place of the first; causal attention reads in each place the sum of those before.
///
/// # Safety
/// `states` are those of a head; `first` is inside of a state.
#[inline(always)]
unsafe fn sum_states<I: Isa>(isa: I, p: &Params, states: *mut f32, first: usize) {
    let last = (first + SUM_ITEM).min(p.state());
    // SAFETY: a state is whole vectors.
    unsafe {
        for i in (first..last).step_by(I::LANES) {
            let mut sum = isa.splat(0.0);
            for span in 0..p.spans {
                let at = states.add(span * p.state() + i);
                let state = isa.load(at);
                if p.causal != 0 {
                    isa.store(at, sum);
                }
                sum = isa.add(sum, state);
            }
            if p.causal == 0 {
                isa.store(states.add(i), sum);
            }
        }
    }
}

/// A span of one head; pointers are to its first row.
struct Span<'a> {
    p: &'a Params,
    parts: Parts,
    q: *const f32,
    k: *const f32,
    v: *const f32,
    o: *mut f32,
    /// Whether there is no head after this one.
    is_last: bool,
}

impl Span<'_> {
    /// The keys and values of the chunk from `first` on, of `count`.
    #[inline(always)]
    fn fetch_keys(&self, first: usize, count: usize) -> Fetch {
        let p = self.p;
        self.fetch(first, count, [(self.k, p.k, p.features), (self.v, p.v, p.v_dim)])
    }

    /// The queries and results of the chunk from `first` on, of `count`.
    #[inline(always)]
    fn fetch_queries(&self, first: usize, count: usize) -> Fetch {
        let p = self.p;
        self.fetch(first, count, [(self.q, p.q, p.features), (self.o, p.o, p.v_dim)])
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

    /// Brings the keys and values of a chunk into the scratch.
    ///
    /// # Safety
    /// The rows are in range.
    #[inline(always)]
    unsafe fn load_keys<I: Isa>(&self, isa: I, first: usize, count: usize) {
        let (p, parts) = (self.p, self.parts);
        // SAFETY: the parts hold `CHUNK` rows; the last panel may be partial.
        unsafe {
            let k = (self.k.add(first * p.k[2]), [p.k[2], 1]);
            copy_matrix(isa, count, p.features, k, (parts.keys, p.stride()));
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
        fetch.divide(p.features.div_ceil(I::ROWS) * p.columns() / PANEL);
        // SAFETY: rows of keys and the sums of a state are whole vectors.
        unsafe {
            for col in (0..p.v_dim).step_by(PANEL) {
                let (values, to) = (parts.values.add(col * CHUNK), state.add(col * p.features));
                let mut row = 0;
                while row < p.features {
                    let left = p.features - row;
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
            for i in (0..p.features).step_by(I::LANES) {
                let n = I::LANES.min(p.features - i);
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

    /// Brings the queries of a chunk into the scratch, and their products with the sums of a state into the totals.
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
            for row in 0..count {
                let q = self.q.add((first + row) * p.q[2]);
                let to = parts.queries.add(row * p.stride());
                let mut total = isa.splat(0.0);
                for i in (0..p.features).step_by(I::LANES) {
                    let n = I::LANES.min(p.features - i);
                    let x = if n == I::LANES {
                        isa.load(q.add(i))
                    } else {
                        isa.merge(isa.splat(0.0), q.add(i), 0, n)
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
                    let (q, panel) = (parts.queries.add(row * p.stride()), state.add(col * p.features));
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

    /// The results of queries that all see the keys of one state.
    ///
    /// # Safety
    /// The span has `count` queries; `state` is one.
    #[inline(always)]
    unsafe fn answer<I: Isa>(&self, isa: I, count: usize, state: *const f32) {
        for first in (0..count).step_by(CHUNK) {
            let here = CHUNK.min(count - first);
            // SAFETY: the caller's promise.
            unsafe {
                self.load_queries(isa, first, here, state);
                let mut fetch = self.fetch_queries(first + CHUNK, count);
                self.add_products(isa, here, state, false, &mut fetch);
                self.store(isa, first, here);
            }
        }
    }

    /// The results of queries that see the keys of a state, and those of the span up to their own position. The state
    /// then has the keys of the span as well.
    ///
    /// # Safety
    /// The span has `count` queries and keys; `state` is one.
    #[inline(always)]
    unsafe fn answer_causal<I: Isa>(&self, isa: I, count: usize, state: *mut f32) {
        let (p, parts) = (self.p, self.parts);
        for first in (0..count).step_by(CHUNK) {
            let here = CHUNK.min(count - first);
            // SAFETY: the rows are in range; the parts hold a chunk, of which no more than `here` rows are read.
            unsafe {
                self.load_keys(isa, first, here);
                self.load_queries(isa, first, here, state);
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
                let mut fetch = self.fetch_queries(first + CHUNK, count);
                self.add_products(isa, here, state, true, &mut fetch);
                self.store(isa, first, here);
                let mut fetch = self.fetch_keys(first + CHUNK, count);
                self.add_keys(isa, here, state, &mut fetch);
            }
        }
    }
}
