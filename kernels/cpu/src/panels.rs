//! Panels of narrow constants, and how their elements become numbers in registers.

use crate::few_bits::Parts;
use crate::isa::{Isa, PANEL};
use crate::pack::packed_len;
use crate::params::params;

params! {
    /// How a constant is stored.
    Stored {
        /// Of elements of a few bits: terms that share a scale, whether scales are bf16, the zero point where none is stored,
        /// and what [`Parts`] says of the matrix; without zero points they begin where the elements do.
        size: usize,
        halves: usize,
        middle: usize,
        zeros_at: usize,
        elements_at: usize,
        zero_words: usize,
        words: usize,
    }
}

/// How far ahead a constant is fetched, in bytes.
const AHEAD: usize = 4096;

/// One panel of a constant.
pub(crate) trait Panel: Copy {
    /// Most rows that widen a panel in registers together, at most [`TILE_ROWS`](crate::narrow::TILE_ROWS).
    const TILE_ROWS: usize;
    /// Most tiles of rows that each widen a panel in registers; more share one in scratch.
    const FEW_TILES: usize;

    /// Hands over the elements of two vectors of columns from `column` on, for the terms `first..end` two by two: of an odd
    /// number the last with anything behind it. `first` is a multiple of [`TERMS`](crate::narrow::TERMS).
    ///
    /// # Safety
    /// The terms lie in the panel.
    unsafe fn pairs<I: Isa>(
        self,
        isa: I,
        column: usize,
        first: usize,
        end: usize,
        each: impl FnMut(usize, [[I::V; 2]; 2]),
    );

    /// What elements are multiplied with to become numbers; `None` for those that are.
    ///
    /// # Safety
    /// The columns lie in the panel.
    unsafe fn steps<I: Isa>(self, isa: I, column: usize) -> Option<[I::V; 2]>;
}

/// Numbers of bf16.
#[derive(Clone, Copy)]
pub(crate) struct Halves(*const u16);

impl Halves {
    /// Panel `number` of a constant of `k` rows.
    pub(crate) fn of(at: *const f32, k: usize, number: usize) -> Halves {
        Halves(at.cast::<u16>().wrapping_add(number * k.div_ceil(2) * PANEL * 2))
    }
}

impl Panel for Halves {
    const TILE_ROWS: usize = 8;
    const FEW_TILES: usize = 4;

    #[inline(always)]
    unsafe fn pairs<I: Isa>(
        self,
        isa: I,
        column: usize,
        first: usize,
        end: usize,
        mut each: impl FnMut(usize, [[I::V; 2]; 2]),
    ) {
        for t in (first..end).step_by(2) {
            // SAFETY: padding follows the last of an odd number of terms.
            unsafe {
                let at = self.0.add(t * PANEL + 2 * column);
                isa.prefetch(at.wrapping_byte_add(AHEAD).cast());
                isa.prefetch(at.wrapping_byte_add(AHEAD + 64).cast());
                let [even, odd] = isa.load_bf16_pairs(at);
                let [next_even, next_odd] = isa.load_bf16_pairs(at.add(2 * I::LANES));
                each(t, [[even, next_even], [odd, next_odd]]);
            }
        }
    }

    #[inline(always)]
    unsafe fn steps<I: Isa>(self, _: I, _: usize) -> Option<[I::V; 2]> {
        None
    }
}

/// Signed bytes with a step for each column.
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    at: *const i8,
    steps: *const f32,
}

impl Bytes {
    /// Panel `number` of a constant of `k` rows and `n` columns.
    pub(crate) fn of(at: *const f32, [k, n]: [usize; 2], number: usize) -> Bytes {
        let elements = at.cast::<i8>().wrapping_add(4 * packed_len(1, n) + number * k * PANEL);
        Bytes { at: elements, steps: at.wrapping_add(number * PANEL) }
    }
}

impl Panel for Bytes {
    const TILE_ROWS: usize = 8;
    const FEW_TILES: usize = 4;

    #[inline(always)]
    unsafe fn pairs<I: Isa>(
        self,
        isa: I,
        column: usize,
        first: usize,
        end: usize,
        mut each: impl FnMut(usize, [[I::V; 2]; 2]),
    ) {
        for t in (first..end).step_by(2) {
            // SAFETY: t < end, and so is the term behind it where it is read.
            unsafe {
                let at = self.at.add(t * PANEL + column);
                isa.prefetch(at.wrapping_add(AHEAD).cast());
                let even = [isa.load_i8(at), isa.load_i8(at.add(I::LANES))];
                let at = if t + 1 < end { at.add(PANEL) } else { at };
                each(t, [even, [isa.load_i8(at), isa.load_i8(at.add(I::LANES))]]);
            }
        }
    }

    #[inline(always)]
    unsafe fn steps<I: Isa>(self, isa: I, column: usize) -> Option<[I::V; 2]> {
        // SAFETY: the caller's promise.
        unsafe { Some([isa.load(self.steps.add(column)), isa.load(self.steps.add(column + I::LANES))]) }
    }
}

/// Elements of `BITS` bits, 3 or 4, with scales for runs of terms.
#[derive(Clone, Copy)]
pub(crate) struct FewBits<const BITS: u32> {
    scales: *const u16,
    zeros: *const u32,
    words: *const u32,
    size: usize,
    halves: bool,
    stored_zeros: bool,
    middle: f32,
}

impl<const BITS: u32> FewBits<BITS> {
    /// Panel `number` of a constant of `k` rows.
    pub(crate) fn of(at: *const f32, stored: &Stored, k: usize, number: usize) -> FewBits<BITS> {
        let halves = stored.halves != 0;
        let width = if halves { 1 } else { 2 };
        let word = |from: usize, words: usize| {
            at.wrapping_byte_add(from).cast::<u32>().wrapping_add(number * words * PANEL)
        };
        FewBits {
            scales: at.cast::<u16>().wrapping_add(width * number * k.div_ceil(stored.size) * PANEL),
            zeros: word(stored.zeros_at, stored.zero_words),
            words: word(stored.elements_at, stored.words),
            size: stored.size,
            halves,
            stored_zeros: stored.zero_words > 0,
            middle: stored.middle as f32,
        }
    }

    /// Scale and zero point of a run of terms for a vector of columns.
    #[inline(always)]
    unsafe fn grid<I: Isa>(self, isa: I, run: usize, column: usize) -> [I::V; 2] {
        // SAFETY: the run and the columns lie in the panel.
        unsafe {
            let at = run * PANEL + column;
            let scale = match self.halves {
                true => isa.load_bf16(self.scales.add(at)),
                false => isa.load(self.scales.add(2 * at).cast()),
            };
            let zero = match self.stored_zeros {
                true => {
                    let mut word = isa.load_words(self.zeros.add(run / 8 * PANEL + column));
                    for _ in 0..run % 8 {
                        word = isa.shift_words::<4>(word);
                    }
                    isa.low_nibbles(word)
                }
                false => isa.splat(self.middle),
            };
            [scale, zero]
        }
    }
}

impl<const BITS: u32> Panel for FewBits<BITS> {
    const TILE_ROWS: usize = 4;
    const FEW_TILES: usize = 1;

    #[inline(always)]
    unsafe fn pairs<I: Isa>(
        self,
        isa: I,
        column: usize,
        first: usize,
        end: usize,
        mut each: impl FnMut(usize, [[I::V; 2]; 2]),
    ) {
        let next = column + I::LANES;
        let mut t = first;
        while t < end {
            let run = t / self.size;
            let stop = end.min((run + 1) * self.size);
            // SAFETY: runs, words and columns lie in the panel; t is a multiple of the terms that are stored together.
            unsafe {
                let grids = [self.grid(isa, run, column), self.grid(isa, run, next)];
                while t < stop {
                    let mut i = 0;
                    if BITS == 4 {
                        let at = self.words.add(t / 8 * PANEL);
                        isa.prefetch(at.wrapping_byte_add(AHEAD).cast());
                        isa.prefetch(at.wrapping_byte_add(AHEAD + 64).cast());
                        let mut words = [isa.load_words(at.add(column)), isa.load_words(at.add(next))];
                        let here = (stop - t).min(8);
                        while i < here {
                            let even = [isa.low_nibbles(words[0]), isa.low_nibbles(words[1])];
                            words = [isa.shift_words::<4>(words[0]), isa.shift_words::<4>(words[1])];
                            let odd = [isa.low_nibbles(words[0]), isa.low_nibbles(words[1])];
                            words = [isa.shift_words::<4>(words[0]), isa.shift_words::<4>(words[1])];
                            each(t + i, [numbers(isa, even, grids), numbers(isa, odd, grids)]);
                            i += 2;
                        }
                        t += here;
                    } else {
                        // Half of the terms of three words: the lower bits of each half have a word.
                        let at = self.words.add(t / 32 * 3 * PANEL);
                        let half = t / 16 % 2;
                        isa.prefetch(at.wrapping_byte_add(AHEAD).cast());
                        isa.prefetch(at.wrapping_byte_add(AHEAD + 64).cast());
                        isa.prefetch(at.wrapping_byte_add(AHEAD + 128).cast());
                        let lower = at.add(half * PANEL);
                        let mut lower = [isa.load_words(lower.add(column)), isa.load_words(lower.add(next))];
                        let upper = at.add(2 * PANEL);
                        let mut upper = [isa.load_words(upper.add(column)), isa.load_words(upper.add(next))];
                        if half == 1 {
                            upper = [isa.rotate_words::<16>(upper[0]), isa.rotate_words::<16>(upper[1])];
                        }
                        let here = (stop - t).min(16);
                        while i < here {
                            let even =
                                [isa.low_triples(lower[0], upper[0]), isa.low_triples(lower[1], upper[1])];
                            lower = [isa.shift_words::<2>(lower[0]), isa.shift_words::<2>(lower[1])];
                            upper = [isa.rotate_words::<1>(upper[0]), isa.rotate_words::<1>(upper[1])];
                            let odd =
                                [isa.low_triples(lower[0], upper[0]), isa.low_triples(lower[1], upper[1])];
                            lower = [isa.shift_words::<2>(lower[0]), isa.shift_words::<2>(lower[1])];
                            upper = [isa.rotate_words::<1>(upper[0]), isa.rotate_words::<1>(upper[1])];
                            each(t + i, [numbers(isa, even, grids), numbers(isa, odd, grids)]);
                            i += 2;
                        }
                        t += here;
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn steps<I: Isa>(self, _: I, _: usize) -> Option<[I::V; 2]> {
        None
    }
}

/// The numbers of two vectors of elements, each with its scales and zero points.
#[inline(always)]
fn numbers<I: Isa>(isa: I, x: [I::V; 2], grids: [[I::V; 2]; 2]) -> [I::V; 2] {
    let [[scale, zero], [next_scale, next_zero]] = grids;
    [isa.mul(isa.sub(x[0], zero), scale), isa.mul(isa.sub(x[1], next_zero), next_scale)]
}

impl Stored {
    /// Numbers of bf16, or bytes.
    pub(crate) fn plain() -> Stored {
        Stored { size: 1, halves: 0, middle: 0, zeros_at: 0, elements_at: 0, zero_words: 0, words: 0 }
    }

    /// Elements of a few bits.
    pub(crate) fn few_bits(storage: margay_tensor::Storage, [k, n]: [usize; 2]) -> Stored {
        let parts = Parts::of(storage, k, n);
        let margay_tensor::Scales::Block { size, .. } = storage.scales else {
            unreachable!("elements of a few bits have scales for runs of terms")
        };
        Stored {
            size,
            halves: usize::from(storage.scale_type == margay_tensor::DType::BF16),
            middle: crate::few_bits::middle(storage).into(),
            zeros_at: parts.zeros_at,
            elements_at: parts.elements_at,
            zero_words: parts.words[0],
            words: parts.words[1],
        }
    }
}
