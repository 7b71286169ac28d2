//! Features of linear attention, made chunk by chunk where they are needed: products of rows with directions, and a function of
//! these.
//!
//! Keys below a greatest exponent of their head: a span keeps the greatest of its keys so far and rescales its state when it rises
//! (as attention does with scores; Milakov and Gimelshein 2018), so that products are made once. States of spans are brought to the
//! greatest of all when they are summed. What is added to every feature is not scaled so: an additional row of a state sums the
//! values, each times the exponential of its mask, and is added to all rows at the end.

use std::ptr::null;

use margay_loops::{FeatureAttention, FeatureMap};

use super::Params;
use crate::isa::{Isa, PANEL};
use crate::math::{exp, exp2};
use crate::pack::{Source, Workspace};
use crate::params::{ABSENT, Positions, params};

/// What features are: those of operands as they lie, or the words of a [`FeatureMap`].
const AS_THEY_LIE: usize = 0;
const RELU: usize = 1;
const EXP: usize = 2;
const EXP_BY_EXPONENTS: usize = 3;
const EXP_BY_PRODUCTS: usize = 4;

params! {
    /// How features are made.
    Features {
        map: usize,
        /// Length of a query and of a key.
        dim: usize,
        /// Bits of f32.
        query_norm: usize,
        key_norm: usize,
        least: usize,
        /// Panels of the directions of queries and of keys: where they begin in the workspace, and the stride of heads.
        directions: [[usize; 2]; 2],
        mask_at: usize,
        /// Strides of (batch, head, key).
        mask: [usize; 3],
        weights_at: usize,
        /// The stride of heads.
        weights: usize,
    }
}

impl Features {
    /// Operands are features of this number.
    pub(super) fn as_they_lie(features: usize) -> Features {
        Features {
            map: AS_THEY_LIE,
            dim: features,
            query_norm: 0,
            key_norm: 0,
            least: 0,
            directions: [[0; 2]; 2],
            mask_at: ABSENT,
            mask: [0; 3],
            weights_at: ABSENT,
            weights: 0,
        }
    }

    /// Those of a call, with its directions in panels in the workspace. Takes the positions of its further operands.
    pub(super) fn made(
        call: &FeatureAttention,
        directions: [usize; 2],
        at: &mut Positions,
        workspace: &mut Workspace,
    ) -> Features {
        let strides = [call.query_directions, call.key_directions];
        let placed = [0, 1].map(|i| {
            let [head, row, column] = strides[i];
            let placed = workspace.panels(Source {
                at: directions[i],
                size: [call.dim, call.features],
                strides: [row, column],
                extents: [1, 1, 1, call.heads],
                batch: [0, 0, 0, head],
            });
            [placed.offset, placed.batch[3]]
        });
        Features {
            map: match call.map {
                FeatureMap::Relu => RELU,
                FeatureMap::Exp => EXP,
                FeatureMap::ExpByExponents => EXP_BY_EXPONENTS,
                FeatureMap::ExpByProducts => EXP_BY_PRODUCTS,
            },
            dim: call.dim,
            query_norm: call.query_norm_bits as usize,
            key_norm: call.key_norm_bits as usize,
            least: call.least_bits as usize,
            directions: placed,
            mask_at: at.next_if(call.mask.is_some()),
            mask: call.mask.unwrap_or_default(),
            weights_at: at.next_if(call.weights.is_some()),
            weights: call.weights.unwrap_or_default(),
        }
    }

    /// Whether operands are features.
    #[inline(always)]
    pub(super) fn lie(&self) -> bool {
        self.map == AS_THEY_LIE
    }

    /// Whether states are below a greatest exponent.
    #[inline(always)]
    pub(super) fn are_scaled(&self) -> bool {
        self.map == EXP_BY_EXPONENTS || self.map == EXP_BY_PRODUCTS
    }

    #[inline(always)]
    fn least(&self) -> f32 {
        f32::from_bits(self.least as u32)
    }
}

/// Rows that features are made of, and what belongs to their head; pointers are to the first row.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) at: *const f32,
    pub(super) stride: usize,
    pub(super) count: usize,
    /// Panels of directions.
    pub(super) directions: *const f32,
    /// Null for none.
    pub(super) weights: *const f32,
    pub(super) mask: *const f32,
    pub(super) mask_stride: usize,
}

impl Rows {
    /// `x W + b` in rows of a stride.
    ///
    /// # Safety
    /// The rows, directions and weights are those of the head; `to` has `count` rows, each of whole panels.
    #[inline(always)]
    unsafe fn products<I: Isa>(&self, isa: I, p: &Params, (to, stride): (*mut f32, usize)) {
        let dim = p.made.dim;
        // SAFETY: the caller's promise; panels are `dim` rows of 32.
        unsafe {
            for col in (0..p.features).step_by(PANEL) {
                let panel = self.directions.add(col * dim);
                let mut row = 0;
                while row < self.count {
                    let rows = (self.count - row).div_ceil((self.count - row).div_ceil(I::ROWS));
                    let (x, to) = (self.at.add(row * self.stride), to.add(row * stride + col));
                    isa.tile([rows, PANEL], dim, x, self.stride, panel, to, stride, null(), panel, 0);
                    row += rows;
                }
            }
            if self.weights.is_null() {
                return;
            }
            for row in 0..self.count {
                let x = to.add(row * stride);
                for i in (0..p.features).step_by(I::LANES) {
                    let weights = first(isa, self.weights.add(i), p.features - i, 0.0);
                    isa.store(x.add(i), isa.add(isa.load(x.add(i)), weights));
                }
            }
        }
    }

    /// The squared norm of a row times a number; 0 where the number is.
    ///
    /// # Safety
    /// The row is one of these.
    #[inline(always)]
    unsafe fn norm<I: Isa>(&self, isa: I, p: &Params, row: usize, by: usize) -> f32 {
        let by = f32::from_bits(by as u32);
        if by == 0.0 {
            return 0.0;
        }
        let (dim, mut sum) = (p.made.dim, isa.splat(0.0));
        // SAFETY: the row has `dim` elements.
        unsafe {
            let x = self.at.add(row * self.stride);
            for i in (0..dim).step_by(I::LANES) {
                let v = first(isa, x.add(i), dim - i, 0.0);
                sum = isa.fma(v, v, sum);
            }
        }
        by * isa.sum(sum)
    }

    /// The mask of a row.
    ///
    /// # Safety
    /// The row is one of these.
    #[inline(always)]
    unsafe fn mask(&self, row: usize) -> f32 {
        // SAFETY: the mask has a number for every row.
        if self.mask.is_null() { 0.0 } else { unsafe { *self.mask.add(row * self.mask_stride) } }
    }

    /// Features of queries, in rows of whole vectors with zeros at their ends.
    ///
    /// # Safety
    /// As [`products`](Self::products); the stride is a multiple of 16.
    #[inline(always)]
    pub(super) unsafe fn queries<I: Isa>(&self, isa: I, p: &Params, (to, stride): (*mut f32, usize)) {
        let f = &p.made;
        let least = isa.splat(f.least());
        // SAFETY: rows are whole vectors, of which the last may hold anything behind the features.
        unsafe {
            self.products(isa, p, (to, stride));
            for row in 0..self.count {
                let x = to.add(row * stride);
                if f.map == RELU {
                    for i in (0..p.features).step_by(I::LANES) {
                        let at = x.add(i);
                        isa.store(at, isa.add(isa.max(isa.splat(0.0), isa.load(at)), least));
                    }
                } else {
                    let shift = isa.splat(largest(isa, x, p.features));
                    let norm = isa.splat(self.norm(isa, p, row, f.query_norm));
                    for i in (0..p.features).step_by(I::LANES) {
                        let at = x.add(i);
                        let exponents = isa.sub(isa.sub(isa.load(at), norm), shift);
                        isa.store(at, isa.add(exp(isa, exponents), least));
                    }
                }
                clear(x, p.features);
            }
        }
    }

    /// Features of keys, in rows of whole vectors with zeros at their ends. Where states are scaled, `state` is brought below the
    /// greatest exponent of these keys as well, and the element behind the features of a key is the exponential of its mask.
    ///
    /// # Safety
    /// As [`queries`](Self::queries); `tops` has an element for each row; `state` is that of a span which these keys are added to,
    /// and not read unless states are scaled.
    #[inline(always)]
    pub(super) unsafe fn keys<I: Isa>(
        &self,
        isa: I,
        p: &Params,
        (to, stride): (*mut f32, usize),
        tops: *mut f32,
        state: *mut f32,
    ) {
        let f = &p.made;
        // SAFETY: rows are whole vectors, of which the last may hold anything behind the features.
        unsafe {
            self.products(isa, p, (to, stride));
            let mut shift = 0.0;
            if f.are_scaled() {
                let [mut top, mut product] = [f32::NEG_INFINITY; 2];
                for row in 0..self.count {
                    let x = largest(isa, to.add(row * stride), p.features);
                    let exponent = self.mask(row) - self.norm(isa, p, row, f.key_norm);
                    *tops.add(row) = exponent;
                    // A NaN is in the features too.
                    top = top.max(x + exponent);
                    product = product.max(x);
                }
                shift = raise(isa, p, state, top, product);
            }
            for row in 0..self.count {
                let (x, mask) = (to.add(row * stride), self.mask(row));
                let seen = if mask == 0.0 { 1.0 } else { isa.largest(exp(isa, isa.splat(mask))) };
                let least = isa.splat(f.least() * seen);
                match f.map {
                    RELU => {
                        for i in (0..p.features).step_by(I::LANES) {
                            let at = x.add(i);
                            let positive = isa.max(isa.splat(0.0), isa.load(at));
                            isa.store(at, isa.fma(positive, isa.splat(seen), least));
                        }
                    }
                    EXP => {
                        let exponent = isa.splat(mask - self.norm(isa, p, row, f.key_norm));
                        for i in (0..p.features).step_by(I::LANES) {
                            let at = x.add(i);
                            isa.store(at, isa.add(exp(isa, isa.add(isa.load(at), exponent)), least));
                        }
                    }
                    _ => {
                        let (exponent, shift) = (isa.splat(*tops.add(row)), isa.splat(shift));
                        let log2_e = isa.splat(std::f32::consts::LOG2_E);
                        for i in (0..p.features).step_by(I::LANES) {
                            let at = x.add(i);
                            // Not above 0: rounding keeps the order of sums with one term in common.
                            let below = isa.sub(isa.add(isa.load(at), exponent), shift);
                            isa.store(at, exp2(isa, isa.mul(below, log2_e)));
                        }
                    }
                }
                clear(x, p.features);
                if f.are_scaled() {
                    *x.add(p.features) = seen;
                }
            }
        }
    }
}

/// The first `left` lanes that are at `from`, and `other` in the rest.
///
/// # Safety
/// As many elements are readable.
#[inline(always)]
unsafe fn first<I: Isa>(isa: I, from: *const f32, left: usize, other: f32) -> I::V {
    // SAFETY: the caller's promise.
    unsafe { if left >= I::LANES { isa.load(from) } else { isa.merge(isa.splat(other), from, 0, left) } }
}

/// The largest of so many elements; -∞ of none. NaN may count or not.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn largest<I: Isa>(isa: I, from: *const f32, len: usize) -> f32 {
    let mut most = isa.splat(f32::NEG_INFINITY);
    for i in (0..len).step_by(I::LANES) {
        // SAFETY: the caller's promise.
        most = isa.max(most, unsafe { first(isa, from.add(i), len - i, f32::NEG_INFINITY) });
    }
    isa.largest(most)
}

/// Zeros from an element on to the next multiple of 16.
///
/// # Safety
/// The row has as many elements.
#[inline(always)]
unsafe fn clear(row: *mut f32, from: usize) {
    for i in from..from.next_multiple_of(16) {
        // SAFETY: the caller's promise.
        unsafe { *row.add(i) = 0.0 };
    }
}

/// Behind the sums of a scaled state: the greatest exponent, which its rows are below, and the greatest product of its keys.
///
/// # Safety
/// `state` is one.
#[inline(always)]
unsafe fn greatest(p: &Params, state: *mut f32) -> [*mut f32; 2] {
    // SAFETY: the state has these elements.
    unsafe { [0, 1].map(|i| state.add(p.panels() + p.sums() + i)) }
}

/// Begins a scaled state of zeros.
///
/// # Safety
/// `state` is one.
#[inline(always)]
pub(super) unsafe fn begin(p: &Params, state: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { greatest(p, state).into_iter().for_each(|at| *at = f32::NEG_INFINITY) };
}

/// What is subtracted from exponents: -∞ minus -∞ would be a NaN although later keys may count.
#[inline(always)]
fn shift_of(top: f32) -> f32 {
    if top == f32::NEG_INFINITY { 0.0 } else { top }
}

/// Brings a state below a greatest exponent, if that is above its own; what is to be subtracted from exponents of further keys.
///
/// # Safety
/// `state` is one that has begun.
#[inline(always)]
unsafe fn raise<I: Isa>(isa: I, p: &Params, state: *mut f32, top: f32, product: f32) -> f32 {
    // SAFETY: rows of panels and sums are whole vectors.
    unsafe {
        let [at, greatest_product] = greatest(p, state);
        *greatest_product = (*greatest_product).max(product);
        let before = *at;
        if top > before {
            *at = top;
            if before != f32::NEG_INFINITY {
                let factor = isa.splat(scale(isa, before, top));
                for panel in 0..p.columns() / PANEL {
                    scale_all(isa, state.add(panel * p.rows() * PANEL), p.features * PANEL, factor);
                }
                let sums = state.add(p.panels());
                let seen = *sums.add(p.features);
                scale_all(isa, sums, p.features, factor);
                *sums.add(p.features) = seen;
            }
        }
        shift_of(*at)
    }
}

/// Multiplies so many elements, up to a whole vector, by a factor.
///
/// # Safety
/// They are readable and writable.
#[inline(always)]
unsafe fn scale_all<I: Isa>(isa: I, at: *mut f32, len: usize, factor: I::V) {
    for i in (0..len).step_by(I::LANES) {
        // SAFETY: the caller's promise.
        unsafe { isa.store(at.add(i), isa.mul(isa.load(at.add(i)), factor)) };
    }
}

/// `exp(from - to)`; 0 for `from` of -∞.
#[inline(always)]
fn scale<I: Isa>(isa: I, from: f32, to: f32) -> f32 {
    isa.largest(exp(isa, isa.splat(from - shift_of(to))))
}

/// Pieces of the states of a head that [`join`] takes: panels, and the sums.
#[inline(always)]
pub(super) fn pieces(p: &Params) -> usize {
    p.columns() / PANEL + 1
}

/// Sums a piece of the scaled states of a head in the place of the first, below the greatest exponent or product of all, and adds what
/// every feature has besides.
///
/// # Safety
/// `states` are those of a head; `scales` has room for one number of each.
#[inline(always)]
pub(super) unsafe fn join<I: Isa>(isa: I, p: &Params, states: *mut f32, piece: usize, scales: *mut f32) {
    let least = isa.splat(p.made.least());
    // SAFETY: rows of panels and sums are whole vectors.
    unsafe {
        let which = usize::from(p.made.map == EXP_BY_PRODUCTS);
        let mut top = f32::NEG_INFINITY;
        for span in 0..p.spans {
            top = top.max(*greatest(p, states.add(span * p.state()))[which]);
        }
        for span in 0..p.spans {
            *scales.add(span) = scale(isa, *greatest(p, states.add(span * p.state()))[0], top);
        }
        if piece < p.columns() / PANEL {
            let panel = piece * p.rows() * PANEL;
            for i in (0..PANEL).step_by(I::LANES) {
                let besides = isa.mul(least, sum(isa, p, states.add(panel + p.features * PANEL + i), None));
                for row in 0..p.features {
                    let at = panel + row * PANEL + i;
                    isa.store(states.add(at), isa.add(sum(isa, p, states.add(at), Some(scales)), besides));
                }
            }
        } else {
            let mut seen = 0.0;
            for span in 0..p.spans {
                seen += *states.add(span * p.state() + p.panels() + p.features);
            }
            let besides = isa.mul(least, isa.splat(seen));
            for i in (0..p.features).step_by(I::LANES) {
                let at = p.panels() + i;
                isa.store(states.add(at), isa.add(sum(isa, p, states.add(at), Some(scales)), besides));
            }
        }
    }
}

/// The sum of a vector over the states of a head, that of the first at `at`, each times its scale.
///
/// # Safety
/// The vector is one of the state; there is a scale of each state.
#[inline(always)]
unsafe fn sum<I: Isa>(isa: I, p: &Params, at: *const f32, scales: Option<*mut f32>) -> I::V {
    let mut sum = isa.splat(0.0);
    for span in 0..p.spans {
        // SAFETY: the caller's promise.
        unsafe {
            let v = isa.load(at.add(span * p.state()));
            sum = match scales {
                Some(scales) => isa.fma(v, isa.splat(*scales.add(span)), sum),
                None => isa.add(v, sum),
            };
        }
    }
    sum
}
