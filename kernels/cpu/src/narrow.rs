//! Products with narrow constants where the processor has no instruction that multiplies them: elements are widened
//! to f32, exactly but for the step of int8, and multiplied as such.
//!
//! A block of few rows reads the constant once and is bounded by memory: it widens in registers. A block of many
//! widens a run of terms of a panel into scratch, where all tiles of rows find it. A left operand that is to be rounded has
//! been rounded into the workspace before.

use crate::block::{Block, Finish, Left, Right, apply, multiply};
use crate::constants::Format;
use crate::families::Names;
use crate::isa::{Isa, PANEL};
use crate::matmul::{self, Item};
use crate::panels::{Panel, Stored};
use crate::params::{argument, from_words, params, to_words};

params! {
    /// A product, and how its constant is stored.
    Params {
        product: matmul::Params,
        stored: Stored,
    }
}

/// Most terms of a panel in scratch.
pub(crate) const WIDENED_TERMS: usize = 512;

/// Terms in scratch are a multiple of this: elements of a few bits are stored in such runs.
pub(crate) const TERMS: usize = 32;

/// Most rows that widen a panel of any kind in registers together.
pub(crate) const TILE_ROWS: usize = 8;

/// The words of a call of a format other than f32.
pub(crate) fn words(product: matmul::Params, format: Format) -> Vec<u64> {
    let stored = match format {
        Format::FewBits(storage) => Stored::few_bits(storage, [product.k, product.n]),
        Format::F32 | Format::Bf16 | Format::Int8 | Format::Signs(_) => Stored::plain(),
    };
    to_words(&Params { product, stored })
}

/// The kernel for a format other than f32.
pub(crate) fn kernel(names: &Names, format: Format) -> &'static str {
    match format {
        Format::Bf16 => names.matmul_bf16,
        Format::FewBits(storage) if storage.bits == 3 => names.matmul_int3,
        Format::FewBits(_) => names.matmul_int4,
        Format::F32 | Format::Int8 | Format::Signs(_) => names.matmul_int8,
    }
}

/// The entry points, one for each way to store a constant: all in one function would be more than LLVM takes in a minute.
macro_rules! stored {
    ($($(#[$doc:meta])* $name:ident: |$at:ident, $stored:ident, $p:ident, $number:ident| $panel:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) mod $name {
            use super::{Isa, Params, argument, from_words, items};

            /// The version of the contract and the parameters of [`run`].
            pub(crate) const VERSION: u32 = 5;

            /// The product.
            ///
            /// Arguments: as those of a product with a packed constant.
            ///
            /// # Safety
            /// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`words`](super::words) and scratch
            /// for a run of terms.
            #[inline(always)]
            pub(crate) unsafe fn run<I: Isa>(
                isa: I,
                params: *const u64,
                args: *const *mut u8,
                scratch: *mut f32,
                begin: u64,
                end: u64,
            ) {
                // SAFETY: the parameters are ours.
                unsafe {
                    let Params { product: $p, stored: $stored } = from_words::<Params>(params);
                    let $at = argument(args, $p.b_at).cast_const();
                    let range = [begin as usize, end as usize];
                    items(isa, $p, args, scratch, range, |$number| $panel);
                }
            }
        }
    )*};
}

stored! {
    /// Numbers of bf16.
    bf16: |at, _stored, p, number| crate::panels::Halves::of(at, p.k, number);
    /// Bytes with a step for each column.
    int8: |at, _stored, p, number| crate::panels::Bytes::of(at, [p.k, p.n], number);
    /// Elements of 4 bits.
    int4: |at, stored, p, number| crate::panels::FewBits::<4>::of(at, stored, p.k, number);
    /// Elements of 3 bits.
    int3: |at, stored, p, number| crate::panels::FewBits::<3>::of(at, stored, p.k, number);
}

/// The items of a range, with a constant of one kind.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn items<I: Isa, P: Panel>(
    isa: I,
    p: &matmul::Params,
    args: *const *mut u8,
    scratch: *mut f32,
    [begin, end]: [usize; 2],
    panel: impl Fn(usize) -> P,
) {
    for item in begin..end {
        // SAFETY: the extents of the call bound every access.
        unsafe {
            let Item { a, c, rows, panel: first, cols, finish, .. } = Item::of(p, args, item);
            for col in (0..cols).step_by(PANEL) {
                let panel = panel(first + col / PANEL);
                let a = Left { at: a, stride: p.a_row, rows };
                let c = Block { at: c.at.add(col), stride: c.stride };
                let finish = finish.at(0, col, c.stride);
                let cols = (cols - col).min(PANEL);
                if rows <= P::FEW_TILES * P::TILE_ROWS.min(I::ROWS) {
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
unsafe fn many_rows<I: Isa, P: Panel>(
    isa: I,
    [k, k_block]: [usize; 2],
    a: Left,
    panel: P,
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
/// They lie in the panel; scratch has room for an even number.
#[inline(always)]
unsafe fn widen<I: Isa, P: Panel>(isa: I, panel: P, first: usize, terms: usize, scratch: *mut f32) {
    for column in (0..PANEL).step_by(2 * I::LANES) {
        // SAFETY: the caller's promise; the columns lie in the panel.
        unsafe {
            let steps = panel.steps(isa, column);
            panel.pairs(isa, column, first, first + terms, |t, [even, odd]| {
                let to = scratch.add((t - first) * PANEL + column);
                put(isa, even, steps, to);
                put(isa, odd, steps, to.add(PANEL));
            });
        }
    }
}

/// Writes two vectors of elements, multiplied with steps where there are any.
///
/// # Safety
/// They are writable.
#[inline(always)]
unsafe fn put<I: Isa>(isa: I, x: [I::V; 2], steps: Option<[I::V; 2]>, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match steps {
            Some(steps) => {
                isa.store(to, isa.mul(x[0], steps[0]));
                isa.store(to.add(I::LANES), isa.mul(x[1], steps[1]));
            }
            None => {
                isa.store(to, x[0]);
                isa.store(to.add(I::LANES), x[1]);
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
unsafe fn few_rows<I: Isa, P: Panel>(
    isa: I,
    k: usize,
    a: Left,
    panel: P,
    cols: usize,
    c: Block,
    finish: &Finish,
) {
    let mut sums = Aligned([0.0; TILE_ROWS * PANEL]);
    let to = sums.0.as_mut_ptr();
    let mut row = 0;
    while row < a.rows {
        let rows = (a.rows - row).div_ceil((a.rows - row).div_ceil(P::TILE_ROWS.min(I::ROWS)));
        // SAFETY: the caller's promise; the sums have room for every row of a tile.
        unsafe {
            let a = Left { at: a.at.add(row * a.stride), stride: a.stride, rows };
            for column in (0..PANEL).step_by(2 * I::LANES) {
                match rows {
                    1 => registers::<I, P, 1>(isa, k, a, panel, column, to),
                    2 => registers::<I, P, 2>(isa, k, a, panel, column, to),
                    3 => registers::<I, P, 3>(isa, k, a, panel, column, to),
                    4 => registers::<I, P, 4>(isa, k, a, panel, column, to),
                    5 if P::TILE_ROWS.min(I::ROWS) >= 5 => registers::<I, P, 5>(isa, k, a, panel, column, to),
                    6 if P::TILE_ROWS.min(I::ROWS) >= 6 => registers::<I, P, 6>(isa, k, a, panel, column, to),
                    7 if P::TILE_ROWS.min(I::ROWS) >= 7 => registers::<I, P, 7>(isa, k, a, panel, column, to),
                    8 if P::TILE_ROWS.min(I::ROWS) >= 8 => registers::<I, P, 8>(isa, k, a, panel, column, to),
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
unsafe fn registers<I: Isa, P: Panel, const M: usize>(
    isa: I,
    k: usize,
    a: Left,
    panel: P,
    column: usize,
    to: *mut f32,
) {
    let zero = isa.splat(0.0);
    // Few rows sum even and odd terms apart, so that additions need not wait for each other.
    let second = usize::from(M <= I::ROWS / 2);
    let mut sums = [[[zero; 2]; M]; 2];
    // SAFETY: the terms lie in the panel and in A.
    unsafe {
        panel.pairs(isa, column, 0, k, |t, [even, odd]| {
            add_term(isa, &mut sums[0], a, t, even);
            if t + 1 < k {
                add_term(isa, &mut sums[second], a, t + 1, odd);
            }
        });
        let steps = panel.steps(isa, column);
        let [first, second] = sums;
        for (i, (first, second)) in first.into_iter().zip(second).enumerate() {
            for (half, (x, y)) in first.into_iter().zip(second).enumerate() {
                let place = column + half * I::LANES;
                let sum = isa.add(x, y);
                let sum = match steps {
                    Some(steps) => isa.mul(sum, steps[half]),
                    None => sum,
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
pub(crate) unsafe fn add_term<I: Isa, const M: usize>(
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
