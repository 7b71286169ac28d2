//! Products with narrow constants where the processor has no instruction that multiplies them: elements are widened
//! to f32, exactly but for the step of int8, and multiplied as such.
//!
//! A block of few rows reads the constant once and is bounded by memory: it widens in registers. A block of many
//! widens a run of terms of a panel into scratch, where all tiles of rows find it. A left operand that is to be rounded has
//! been rounded into the workspace before.

use crate::block::{Block, Finish, Left, Right, apply, multiply};
use crate::constants::Format;
use crate::isa::{Isa, PANEL};
use crate::matmul::{self, Item};
use crate::pack::packed_len;
use crate::params::{argument, from_words, params, to_words};

params! {
    /// A product, and how its constant is stored.
    Params {
        product: matmul::Params,
        /// `PAIRS` or `BYTES`.
        format: usize,
    }
}

/// Layout `bf16_kn32_pairs`.
const PAIRS: usize = 0;
/// Layout `int8_kn32`.
const BYTES: usize = 1;

/// Most terms of a panel in scratch; even.
pub(crate) const WIDENED_TERMS: usize = 512;

/// Most rows that widen a panel in registers together.
const TILE_ROWS: usize = 8;

/// Most tiles of rows that each widen a panel in registers; more share one in scratch.
const FEW_TILES: usize = 4;

/// How far ahead a constant is fetched, in bytes.
const AHEAD: usize = 4096;

/// The words of a call.
pub(crate) fn words(product: matmul::Params, format: Format) -> Vec<u64> {
    let format = if format == Format::Bf16 { PAIRS } else { BYTES };
    to_words(&Params { product, format })
}

/// One panel of a constant.
#[derive(Clone, Copy)]
struct Panel {
    format: usize,
    /// The first element.
    at: *const u8,
    /// Steps of its columns, for `BYTES`.
    steps: *const f32,
}

impl Panel {
    /// Panel `number` of a constant of `k` rows and `n` columns.
    fn of(format: usize, at: *const f32, k: usize, n: usize, number: usize) -> Panel {
        let (bytes, steps) = match format {
            PAIRS => (number * k.div_ceil(2) * PANEL * 4, at),
            _ => (4 * packed_len(1, n) + number * k * PANEL, at.wrapping_add(number * PANEL)),
        };
        Panel { format, at: at.cast::<u8>().wrapping_add(bytes), steps }
    }
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 3;

/// The product.
///
/// Arguments: as those of a product with a packed constant.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`words`] and scratch for a run of terms.
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
        let Params { product: p, format } = from_words::<Params>(params);
        for item in begin as usize..end as usize {
            let Item { a, c, rows, panel: first, cols, finish, .. } = Item::of(p, args, item);
            for col in (0..cols).step_by(PANEL) {
                let weights = argument(args, p.b_at).cast_const();
                let panel = Panel::of(*format, weights, p.k, p.n, first + col / PANEL);
                let a = Left { at: a, stride: p.a_row, rows };
                let c = Block { at: c.at.add(col), stride: c.stride };
                let finish = finish.at(0, col, c.stride);
                let cols = (cols - col).min(PANEL);
                if rows <= FEW_TILES * TILE_ROWS.min(I::ROWS) {
                    few_rows(isa, p.k, a, panel, cols, c, &finish);
                } else {
                    many_rows(isa, [p.k, p.k_block], a, panel, cols, c, &finish, scratch);
                }
            }
        }
    }
}

/// A panel times a block of more rows than a tile has, by way of scratch.
///
/// # Safety
/// As [`run`], for `cols` columns of a panel; scratch has room for a run of terms.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a product has this many operands")]
unsafe fn many_rows<I: Isa>(
    isa: I,
    [k, k_block]: [usize; 2],
    a: Left,
    panel: Panel,
    cols: usize,
    c: Block,
    finish: &Finish,
    scratch: *mut f32,
) {
    let mut first = 0;
    loop {
        let terms = k_block.min(k - first);
        let last = first + terms == k;
        // SAFETY: terms of the panel and of A; a run of an even number of terms begins with a pair.
        unsafe {
            widen(isa, panel, first, terms, scratch);
            let a = Left { at: a.at.add(first), ..a };
            let right = Right { at: scratch, stride: 0, cols };
            multiply(isa, terms, a, right, c, first > 0, last.then_some(finish));
        }
        if last {
            return;
        }
        first += terms;
    }
}

/// Writes the terms `first..first + terms` of a panel to scratch, `[terms][32]`.
///
/// # Safety
/// They are readable, and the last of an odd number with the padding behind it; scratch has room for an even number.
#[inline(always)]
unsafe fn widen<I: Isa>(isa: I, panel: Panel, first: usize, terms: usize, scratch: *mut f32) {
    // SAFETY: the caller's promise; the columns lie in the panel.
    unsafe {
        for column in (0..PANEL).step_by(I::LANES) {
            if panel.format == PAIRS {
                for t in (0..terms).step_by(2) {
                    let at = panel.at.cast::<u16>().add((first + t) * PANEL + 2 * column);
                    isa.prefetch(at.cast::<u8>().wrapping_add(AHEAD).cast());
                    let to = scratch.add(t * PANEL + column);
                    let [even, odd] = isa.load_bf16_pairs(at);
                    isa.store(to, even);
                    isa.store(to.add(PANEL), odd);
                }
            } else {
                let step = isa.load(panel.steps.add(column));
                for t in 0..terms {
                    let at = panel.at.cast::<i8>().add((first + t) * PANEL + column);
                    isa.prefetch(at.cast::<u8>().wrapping_add(AHEAD).cast());
                    isa.store(scratch.add(t * PANEL + column), isa.mul(isa.load_i8(at), step));
                }
            }
        }
    }
}

#[repr(align(64))]
struct Aligned([f32; TILE_ROWS * PANEL]);

/// A panel times a block of a few tiles of rows.
///
/// # Safety
/// As [`run`], for `cols` columns of a panel.
#[inline(always)]
unsafe fn few_rows<I: Isa>(isa: I, k: usize, a: Left, panel: Panel, cols: usize, c: Block, finish: &Finish) {
    let mut sums = Aligned([0.0; TILE_ROWS * PANEL]);
    let to = sums.0.as_mut_ptr();
    let mut row = 0;
    while row < a.rows {
        let rows = (a.rows - row).div_ceil((a.rows - row).div_ceil(TILE_ROWS.min(I::ROWS)));
        // SAFETY: the caller's promise; the sums have room for every row of a tile.
        unsafe {
            let a = Left { at: a.at.add(row * a.stride), stride: a.stride, rows };
            for column in (0..PANEL).step_by(2 * I::LANES) {
                match rows {
                    1 => registers::<I, 1>(isa, k, a, panel, column, to),
                    2 => registers::<I, 2>(isa, k, a, panel, column, to),
                    3 => registers::<I, 3>(isa, k, a, panel, column, to),
                    4 => registers::<I, 4>(isa, k, a, panel, column, to),
                    5 if I::ROWS >= 5 => registers::<I, 5>(isa, k, a, panel, column, to),
                    6 if I::ROWS >= 6 => registers::<I, 6>(isa, k, a, panel, column, to),
                    7 if I::ROWS >= 7 => registers::<I, 7>(isa, k, a, panel, column, to),
                    8 if I::ROWS >= 8 => registers::<I, 8>(isa, k, a, panel, column, to),
                    _ => unreachable!("a tile has at most as many rows as the class"),
                }
            }
            let finish = finish.at(row, 0, c.stride);
            apply(isa, rows, cols, (to, PANEL), (c.at.add(row * c.stride), c.stride), &finish);
        }
        row += rows;
    }
}

/// `to[M][column..column + 2 * LANES]` of the product.
///
/// # Safety
/// As [`few_rows`], for `M` rows.
#[inline(always)]
unsafe fn registers<I: Isa, const M: usize>(
    isa: I,
    k: usize,
    a: Left,
    panel: Panel,
    column: usize,
    to: *mut f32,
) {
    let zero = isa.splat(0.0);
    // Few rows sum even and odd terms apart, so that additions need not wait for each other.
    let second = usize::from(M <= I::ROWS / 2);
    let mut sums = [[[zero; 2]; M]; 2];
    // SAFETY: t < k; padding follows the last of an odd number of bf16.
    unsafe {
        if panel.format == PAIRS {
            for t in (0..k).step_by(2) {
                let at = panel.at.cast::<u16>().add(t * PANEL + 2 * column);
                isa.prefetch(at.wrapping_byte_add(AHEAD).cast());
                isa.prefetch(at.wrapping_byte_add(AHEAD + 64).cast());
                let [even, odd] = isa.load_bf16_pairs(at);
                let [next_even, next_odd] = isa.load_bf16_pairs(at.add(2 * I::LANES));
                add_term(isa, &mut sums[0], a, t, [even, next_even]);
                if t + 1 < k {
                    add_term(isa, &mut sums[second], a, t + 1, [odd, next_odd]);
                }
            }
        } else {
            for t in (0..k).step_by(2) {
                let at = panel.at.cast::<i8>().add(t * PANEL + column);
                isa.prefetch(at.wrapping_byte_add(AHEAD).cast());
                add_term(isa, &mut sums[0], a, t, [isa.load_i8(at), isa.load_i8(at.add(I::LANES))]);
                if t + 1 < k {
                    let at = at.add(PANEL);
                    let right = [isa.load_i8(at), isa.load_i8(at.add(I::LANES))];
                    add_term(isa, &mut sums[second], a, t + 1, right);
                }
            }
        }
        let [first, second] = sums;
        for (i, (first, second)) in first.into_iter().zip(second).enumerate() {
            for (half, (x, y)) in first.into_iter().zip(second).enumerate() {
                let place = column + half * I::LANES;
                let sum = isa.add(x, y);
                let sum = match panel.format {
                    BYTES => isa.mul(sum, isa.load(panel.steps.add(place))),
                    _ => sum,
                };
                isa.store(to.add(i * PANEL + place), sum);
            }
        }
    }
}

/// Adds the products of term `t` of every row.
///
/// # Safety
/// The terms are readable.
#[inline(always)]
unsafe fn add_term<I: Isa, const M: usize>(
    isa: I,
    sums: &mut [[I::V; 2]; M],
    a: Left,
    t: usize,
    right: [I::V; 2],
) {
    for (i, row) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let left = isa.splat(unsafe { *a.at.add(i * a.stride + t) });
        *row = [isa.fma(left, right[0], row[0]), isa.fma(left, right[1], row[1])];
    }
}
