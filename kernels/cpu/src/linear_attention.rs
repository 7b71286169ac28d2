//! Linear attention: `O = φQ (φKᵀ V) / (φQ Σ φK + ε)`, in time linear in the number of keys.
//!
//! The state of some keys is `φKᵀ V`, in panels of 32 columns, and `Σ φK`. Keys are cut into spans, and the kernel is
//! three phases: the state of each span, their sum, and the results of spans of queries. Causal attention
//! (Katharopoulos et al., arXiv 2006.16236) needs the sum of all spans before each one, and goes over a span in
//! chunks: what a query sees of its own chunk is a small product with the upper triangle left out, and the state
//! carries the rest. Where there is one span, its state is never stored.
//!
//! `features`: those that are made of queries and keys on the way; then no array of features of all positions is there. `span`: what
//! is done with the positions of one span.
//!
//! Spans and chunks depend on the extents alone, and sums go in the order of the keys: the bits do not depend on the
//! number of threads. A row whose denominator is 0 is a quotient by 0.

mod features;
mod span;

use margay_loops::{FeatureAttention, LinearAttention, Needs};

use self::features::Features;
use self::span::{Parts, Span};
use crate::Class;
use crate::isa::{Isa, PANEL};
use crate::pack::{Workspace, row_stride};
use crate::params::{ABSENT, Positions, argument, from_words, params, to_words};
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
        /// Where the states begin in the workspace.
        states: usize,
        /// How features are made of queries and keys, if they are.
        made: Features,
    }
}

/// How a class runs linear attention.
pub(crate) fn prepare(class: Class, call: &LinearAttention) -> Result<Prepared, String> {
    expect_f32(call.dtype)?;
    if call.causal && call.q_len != call.kv_len {
        return Err(format!("causal linear attention of {} queries and {} keys", call.q_len, call.kv_len));
    }
    let mut at = Positions::default();
    let [q_at, k_at, v_at, o_at] = std::array::from_fn(|_| at.next());
    let workspace = Workspace::new(class, at.next());
    let params = Params {
        phase: STATES,
        heads: call.heads,
        q_len: call.q_len,
        kv_len: call.kv_len,
        features: call.features,
        v_dim: call.v_dim,
        epsilon_bits: call.epsilon_bits as usize,
        causal: usize::from(call.causal),
        span: 0,
        spans: 0,
        q: call.q,
        k: call.k,
        v: call.v,
        o: call.o,
        q_at,
        k_at,
        v_at,
        o_at,
        workspace_at: workspace.at,
        states: 0,
        made: Features::as_they_lie(call.features),
    };
    Ok(phases(class, params, call.batch, workspace))
}

/// How a class runs linear attention that makes its features.
pub(crate) fn prepare_made(class: Class, call: &FeatureAttention) -> Result<Prepared, String> {
    expect_f32(call.dtype)?;
    if call.causal && (call.q_len != call.kv_len || call.map.sees_all_keys()) {
        let (map, queries, keys) = (call.map.name(), call.q_len, call.kv_len);
        return Err(format!("causal attention by features `{map}` of {queries} queries and {keys} keys"));
    }
    let mut at = Positions::default();
    let [q_at, k_at, v_at, of_queries, of_keys] = std::array::from_fn(|_| at.next());
    // The result and the workspace come behind what not every call has.
    let further = usize::from(call.mask.is_some()) + usize::from(call.weights.is_some());
    let mut workspace = Workspace::new(class, of_keys + further + 2);
    let made = Features::made(call, [of_queries, of_keys], &mut at, &mut workspace);
    let params = Params {
        phase: STATES,
        heads: call.heads,
        q_len: call.q_len,
        kv_len: call.kv_len,
        features: call.features,
        v_dim: call.v_dim,
        epsilon_bits: call.epsilon_bits as usize,
        causal: usize::from(call.causal),
        span: 0,
        spans: 0,
        q: call.q,
        k: call.k,
        v: call.v,
        o: call.o,
        q_at,
        k_at,
        v_at,
        o_at: at.next(),
        workspace_at: workspace.at,
        states: workspace.len,
        made,
    };
    Ok(phases(class, params, call.batch, workspace))
}

/// The phases of a call, behind those that bring operands into the workspace.
fn phases(class: Class, mut params: Params, batch: usize, workspace: Workspace) -> Prepared {
    let span = params.kv_len.max(params.q_len).div_ceil(ENOUGH_SPANS).next_multiple_of(CHUNK);
    params.span = span.clamp(*SPANS.start(), *SPANS.end());
    params.spans = params.kv_len.div_ceil(params.span).max(1);
    let sequences = batch * params.heads;
    let phase = |phase: usize, items: usize| Phase {
        kernel: class.kernels().linear_attention,
        params: to_words(&Params { phase, ..params }),
        items,
        grain: 1,
    };
    // The state of the only span of causal attention lives in the scratch of its item.
    let stored = !(params.causal != 0 && params.spans == 1);
    let mut phases = workspace.phases;
    if stored {
        phases.push(phase(STATES, sequences * params.spans));
    }
    if params.spans > 1 || params.made.are_scaled() {
        phases.push(phase(SUMS, sequences * params.pieces()));
    }
    phases.push(phase(RESULTS, sequences * params.q_len.div_ceil(params.span)));
    let states = if stored { sequences * params.spans * params.state() } else { 0 };
    // Directions may be empty; their workspace is there.
    let directions = if params.made.lie() { 0 } else { workspace.len.max(1) };
    Prepared {
        phases,
        scratch_bytes: 4 * params.scratch(),
        needs: Needs { workspace_bytes: 4 * (directions + states), packed: Vec::new() },
    }
}

impl Params {
    /// Columns of values, in whole panels.
    #[inline(always)]
    fn columns(&self) -> usize {
        self.v_dim.next_multiple_of(PANEL)
    }

    /// Rows of the panels of a state: one for each feature, and one for what is not scaled beside those that are.
    #[inline(always)]
    fn rows(&self) -> usize {
        self.features + usize::from(self.made.are_scaled())
    }

    /// Elements of the panels of a state.
    #[inline(always)]
    fn panels(&self) -> usize {
        self.columns() * self.rows()
    }

    /// Elements of a state: panels, then sums of features, then what it is scaled by if it is. Never 0.
    #[inline(always)]
    fn state(&self) -> usize {
        self.panels() + self.sums() + if self.made.are_scaled() { 16 } else { 0 }
    }

    #[inline(always)]
    fn sums(&self) -> usize {
        self.rows().next_multiple_of(16).max(16)
    }

    /// Pieces of the states of a head that items of the second phase sum.
    #[inline(always)]
    fn pieces(&self) -> usize {
        if self.made.are_scaled() { features::pieces(self) } else { self.state().div_ceil(SUM_ITEM) }
    }

    /// Elements between rows of queries and keys in the scratch; whole vectors, of features that are made whole panels.
    #[inline(always)]
    fn stride(&self) -> usize {
        if self.made.lie() {
            row_stride(self.features)
        } else {
            row_stride(self.rows().next_multiple_of(PANEL))
        }
    }

    /// Elements between rows of results in the scratch.
    #[inline(always)]
    fn result_stride(&self) -> usize {
        self.columns() + 16
    }

    /// The parts of the scratch, in the order of [`Parts`]; then the state so far of causal attention, and the scales of the states
    /// of a head.
    #[inline(always)]
    fn parts(&self) -> [usize; 9] {
        [
            CHUNK * self.stride(),
            CHUNK * self.stride(),
            CHUNK * self.columns(),
            CHUNK * self.result_stride(),
            CHUNK,
            if self.causal == 0 { 0 } else { CHUNK * SCORE_STRIDE },
            if self.causal == 0 { 0 } else { CHUNK * self.features },
            if self.causal == 0 { 0 } else { self.state() },
            if self.made.are_scaled() { self.spans } else { 0 },
        ]
    }

    fn scratch(&self) -> usize {
        self.parts().iter().sum()
    }
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 3;

/// One phase of linear attention.
///
/// Arguments: φQ, φK, V, O, workspace (the states) unless causal attention has a single span. Where features are made: Q, K, V,
/// directions of queries and of keys, mask and weights if any, O, workspace (panels of directions and the states). Any alignment of
/// 4 bytes; O overlaps nothing. Every extent may be 0.
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
        let [queries, keys, values, results, totals, scores, transposed, state, scales] =
            p.parts().map(|len| {
                let part = at;
                at = at.wrapping_add(len);
                part
            });
        let parts = Parts { queries, keys, values, results, totals, scores, transposed };
        for item in begin as usize..end as usize {
            let pieces = match p.phase {
                STATES => p.spans,
                SUMS => p.pieces(),
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
                argument(args, p.workspace_at).wrapping_add(p.states + sequence * p.spans * p.state())
            } else {
                std::ptr::null_mut()
            };
            let first = piece * p.span;
            let shifted = |at: usize, by: usize| match argument(args, at) {
                absent if absent.is_null() => absent,
                found => found.wrapping_add(by),
            };
            let panels = if p.made.lie() { ABSENT } else { p.workspace_at };
            let [by_batch, by_head, by_key] = p.made.mask;
            let span = Span {
                p,
                parts,
                q: row_of(p.q_at, p.q, first),
                k: row_of(p.k_at, p.k, first),
                v: row_of(p.v_at, p.v, first),
                o: row_of(p.o_at, p.o, first),
                directions: p.made.directions.map(|[offset, stride]| shifted(panels, offset + head * stride)),
                weights: shifted(p.made.weights_at, head * p.made.weights),
                mask: shifted(p.made.mask_at, batch * by_batch + head * by_head + first * by_key),
                is_last: head + 1 == p.heads,
            };
            match p.phase {
                SUMS if p.made.are_scaled() => features::join(isa, p, states, piece, scales),
                SUMS => sum_states(isa, p, states, piece * SUM_ITEM),
                _ => {
                    let (queries, keys) = (p.phase == RESULTS, p.phase == STATES || p.causal != 0);
                    let own = states.wrapping_add(piece * p.state());
                    let at = match (keys, queries) {
                        (true, false) => own,
                        (true, true) => state,
                        _ => states,
                    };
                    if keys && queries && stored {
                        std::ptr::copy_nonoverlapping(own, at, p.state());
                    } else if keys {
                        std::ptr::write_bytes(at, 0, p.state());
                    }
                    if keys && p.made.are_scaled() {
                        features::begin(p, at);
                    }
                    let len = if queries { p.q_len } else { p.kv_len };
                    span.walk(isa, p.span.min(len - first), at, [keys, queries]);
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
