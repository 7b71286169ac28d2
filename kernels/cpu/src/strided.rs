//! Products whose rows are one block, with a right operand that is no packed constant: every panel of it is read by one
//! item only, which packs it on the way, so that no packed copy of the whole operand is ever written.
//!
//! Panels are packed a run of terms at a time, into one of two places in scratch. While one run is multiplied, a piece
//! of the next is packed after each tile, and the piece after that is fetched: memory is read at an even pace.

use crate::block::{Left, Right, load_first, multiply_between};
use crate::isa::{Isa, PANEL};
use crate::matmul::{self, Item};
use crate::pack::copy_matrix;
use crate::params::{argument, from_words, params, to_words};

params! {
    /// A product, and the strides of its right operand, of which one is 1.
    Params {
        product: matmul::Params,
        b_row: usize,
        b_col: usize,
    }
}

/// Most terms of a run, and most panels of an item: two runs and their part of A stay in the second level of the cache.
pub(crate) const TERMS: usize = 256;
pub(crate) const PANELS: usize = 4;

/// Terms and columns of a piece where columns are contiguous.
const PIECE: usize = 32;
const COLUMNS: usize = 8;

/// How far ahead of packing memory is fetched.
const ROWS_AHEAD: usize = 12;
const PIECES_AHEAD: usize = 4;

/// Elements of a line of the cache.
const LINE: usize = 16;

/// The words of a call.
pub(crate) fn words(product: matmul::Params, [b_row, b_col]: [usize; 2]) -> Vec<u64> {
    to_words(&Params { product, b_row, b_col })
}

/// Elements of scratch for items of so many panels.
pub(crate) fn scratch(panels: usize) -> usize {
    2 * TERMS * panels * PANEL
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 3;

/// The product.
///
/// Arguments: as those of a product with a strided right operand.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`words`] and [`scratch`] as many elements.
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
        let Params { product: p, b_row, b_col } = from_words::<Params>(params);
        for item in begin as usize..end as usize {
            let Item { a, b, c, rows, panel, cols, finish } = Item::of(p, args, item);
            let b = argument(args, p.b_at).wrapping_add(b + panel * PANEL * b_col).cast_const();
            let places = [scratch, scratch.wrapping_add(TERMS * p.panels * PANEL)];
            let tiles = rows.div_ceil(I::ROWS) * cols.div_ceil(PANEL);
            let run = |first: usize| Run {
                b: b.wrapping_add(first * b_row),
                strides: [*b_row, *b_col],
                terms: p.k_block.min(p.k.saturating_sub(first)),
                cols,
                to: places[first / p.k_block % 2],
                done: 0,
            };
            let mut now = run(0);
            now.advance(isa, usize::MAX);
            let mut first = 0;
            loop {
                let mut next = run(first + now.terms);
                let share = next.pieces().div_ceil(tiles.max(1));
                let last = first + now.terms == p.k;
                let left = Left { at: a.wrapping_add(first), stride: p.a_row, rows };
                let right = Right { at: now.to, stride: now.terms * PANEL, cols };
                let finish = last.then_some(&finish);
                multiply_between(isa, now.terms, left, right, c, first > 0, finish, now.to, || {
                    next.advance(isa, share);
                });
                if last {
                    break;
                }
                next.advance(isa, usize::MAX);
                first += now.terms;
                now = next;
            }
        }
    }
}

/// A run of terms of the panels of an item, and how much of it is packed.
struct Run {
    /// The first element.
    b: *const f32,
    strides: [usize; 2],
    terms: usize,
    cols: usize,
    /// `[panel][term][32]`.
    to: *mut f32,
    /// Pieces packed so far.
    done: usize,
}

impl Run {
    /// Rows; or short runs of terms of some columns of one panel.
    #[inline(always)]
    fn pieces(&self) -> usize {
        if self.strides[1] == 1 {
            self.terms
        } else {
            self.cols.div_ceil(COLUMNS) * self.terms.div_ceil(PIECE)
        }
    }

    /// Packs up to `count` pieces more.
    ///
    /// # Safety
    /// The operand is readable at its strides, the place is writable.
    #[inline(always)]
    unsafe fn advance<I: Isa>(&mut self, isa: I, count: usize) {
        let last = self.done.saturating_add(count).min(self.pieces());
        for piece in self.done..last {
            // SAFETY: the caller's promise.
            unsafe { if self.strides[1] == 1 { self.row(isa, piece) } else { self.transposed(isa, piece) } }
        }
        self.done = last;
    }

    /// Packs row `term`.
    ///
    /// # Safety
    /// As [`advance`](Self::advance).
    #[inline(always)]
    unsafe fn row<I: Isa>(&self, isa: I, term: usize) {
        let from = self.b.wrapping_add(term * self.strides[0]);
        let ahead = from.wrapping_add(ROWS_AHEAD * self.strides[0]);
        let whole = self.cols - self.cols % PANEL;
        // SAFETY: the row has these columns, the panels this row.
        unsafe {
            let to = self.to.add(term * PANEL);
            for col in (0..whole).step_by(PANEL) {
                let (from, to) = (from.add(col), to.add(col * self.terms));
                for i in (0..PANEL).step_by(I::LANES) {
                    isa.prefetch(ahead.wrapping_add(col + i));
                    isa.store(to.add(i), isa.load(from.add(i)));
                }
            }
            if whole < self.cols {
                let to = to.add(whole * self.terms);
                for i in (0..PANEL).step_by(I::LANES) {
                    let n = (self.cols - whole).saturating_sub(i).min(I::LANES);
                    isa.store(to.add(i), load_first(isa, from.wrapping_add(whole + i), n));
                }
            }
        }
    }

    /// The first term and the first column of a piece of contiguous columns.
    #[inline(always)]
    fn place(&self, piece: usize) -> [usize; 2] {
        let pieces = self.terms.div_ceil(PIECE);
        [piece % pieces * PIECE, piece / pieces * COLUMNS]
    }

    /// Packs piece number `piece` of contiguous columns.
    ///
    /// # Safety
    /// As [`advance`](Self::advance).
    #[inline(always)]
    unsafe fn transposed<I: Isa>(&self, isa: I, piece: usize) {
        let at = |[term, col]: [usize; 2]| self.b.wrapping_add(term + col * self.strides[1]);
        let ahead = at(self.place(piece + PIECES_AHEAD));
        for j in 0..COLUMNS {
            let column = ahead.wrapping_add(j * self.strides[1]);
            (0..PIECE).step_by(LINE).for_each(|i| isa.prefetch(column.wrapping_add(i)));
        }
        let [term, col] = self.place(piece);
        let (terms, cols) = (PIECE.min(self.terms - term), COLUMNS.min(self.cols - col));
        // SAFETY: the columns have these terms, the panel these rows.
        unsafe {
            let panel = self.to.add((col / PANEL * self.terms + term) * PANEL);
            let from = at([term, col]);
            copy_matrix(isa, terms, cols, (from, [1, self.strides[1]]), (panel.add(col % PANEL), PANEL));
            // The columns behind the last one are zero.
            let end = col % PANEL + cols;
            if col + cols == self.cols && end < PANEL {
                (0..terms).for_each(|i| std::ptr::write_bytes(panel.add(i * PANEL + end), 0, PANEL - end));
            }
        }
    }
}
