//! Products of a few rows with a right operand that is no packed constant: it is read once, where it lies.
//!
//! Where its rows are contiguous, eight of them at a time are added to a strip of the result that stays in the first
//! level of the cache. Where its columns are, some of them at a time are multiplied with all rows of A.

use crate::block::{Left, apply};
use crate::isa::{Isa, PANEL};
use crate::matmul::{self, Item};
use crate::params::{argument, from_words, params, to_words};

params! {
    /// A product, and the strides of its right operand, of which one is 1.
    Params {
        product: matmul::Params,
        b_row: usize,
        b_col: usize,
    }
}

/// Most rows of a thin product.
pub(crate) const THIN_ROWS: usize = 8;

/// Least panels of an item: shorter pieces of rows of B would leave memory too often.
pub(crate) const LEAST_PANELS: usize = 16;

/// Rows of B that are added to a strip of C together.
const TERMS: usize = 8;

/// The words of a call.
pub(crate) fn words(product: matmul::Params, [b_row, b_col]: [usize; 2]) -> Vec<u64> {
    to_words(&Params { product, b_row, b_col })
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 3;

/// The product.
///
/// Arguments: as those of a product with a strided right operand; no workspace.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`words`].
#[inline(always)]
pub(crate) unsafe fn run<I: Isa>(
    isa: I,
    params: *const u64,
    args: *const *mut u8,
    _scratch: *mut f32,
    begin: u64,
    end: u64,
) {
    // SAFETY: the parameters are ours; the extents of the call bound every access.
    unsafe {
        let Params { product: p, b_row, b_col } = from_words::<Params>(params);
        for item in begin as usize..end as usize {
            let Item { a, b, c, rows, panel, cols, finish } = Item::of(p, args, item);
            let b = argument(args, p.b_at).add(b + panel * PANEL * b_col).cast_const();
            let a = Left { at: a, stride: p.a_row, rows };
            if *b_col == 1 {
                let mut first = 0;
                while first < p.k.max(1) {
                    let terms = TERMS.min(p.k - first);
                    let a = Left { at: a.at.add(first), ..a };
                    add_rows(
                        isa,
                        terms,
                        a,
                        (b.add(first * b_row), *b_row),
                        (c.at, c.stride),
                        cols,
                        first > 0,
                    );
                    first += TERMS;
                }
            } else {
                multiply_columns(isa, p.k, a, (b, *b_col), (c.at, c.stride), cols);
            }
            apply(isa, rows, cols, (c.at, c.stride), (c.at, c.stride), &finish);
        }
    }
}

/// `c = (accumulate ? c : 0) + a · b` for rows of B at a stride.
///
/// # Safety
/// The operands are readable and writable at their strides; `1 <= a.rows <= THIN_ROWS`.
#[inline(always)]
unsafe fn add_rows<I: Isa>(
    isa: I,
    terms: usize,
    a: Left,
    b: (*const f32, usize),
    c: (*mut f32, usize),
    cols: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match a.rows {
            1 => strip::<I, 1>(isa, terms, a, b, c, cols, accumulate),
            2 => strip::<I, 2>(isa, terms, a, b, c, cols, accumulate),
            3 => strip::<I, 3>(isa, terms, a, b, c, cols, accumulate),
            4 => strip::<I, 4>(isa, terms, a, b, c, cols, accumulate),
            5 => strip::<I, 5>(isa, terms, a, b, c, cols, accumulate),
            6 => strip::<I, 6>(isa, terms, a, b, c, cols, accumulate),
            7 => strip::<I, 7>(isa, terms, a, b, c, cols, accumulate),
            _ => strip::<I, 8>(isa, terms, a, b, c, cols, accumulate),
        }
    }
}

/// As [`add_rows`] for `M` rows.
///
/// # Safety
/// As [`add_rows`].
#[inline(always)]
unsafe fn strip<I: Isa, const M: usize>(
    isa: I,
    terms: usize,
    a: Left,
    (b, b_row): (*const f32, usize),
    (c, c_row): (*mut f32, usize),
    cols: usize,
    accumulate: bool,
) {
    let whole = cols - cols % I::LANES;
    let zero = isa.splat(0.0);
    // SAFETY: the caller's promise; what is left of a vector is masked.
    unsafe {
        for col in (0..whole).step_by(I::LANES) {
            let mut sums = [zero; M];
            if accumulate {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = isa.load(c.add(i * c_row + col));
                }
            }
            for t in 0..terms {
                let right = isa.load(b.add(t * b_row + col));
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = isa.fma(isa.splat(*a.at.add(i * a.stride + t)), right, *sum);
                }
            }
            for (i, sum) in sums.iter().enumerate() {
                isa.store(c.add(i * c_row + col), *sum);
            }
        }
        if whole < cols {
            let rest = cols - whole;
            for i in 0..M {
                let to = c.add(i * c_row + whole);
                let mut sum = if accumulate { isa.merge(zero, to, 0, rest) } else { zero };
                for t in 0..terms {
                    let right = isa.merge(zero, b.add(t * b_row + whole), 0, rest);
                    sum = isa.fma(isa.splat(*a.at.add(i * a.stride + t)), right, sum);
                }
                isa.store_first(to, rest, sum);
            }
        }
    }
}

/// `c = a · b` for columns of B at a stride, rows at 1.
///
/// # Safety
/// As [`add_rows`].
#[inline(always)]
unsafe fn multiply_columns<I: Isa>(
    isa: I,
    k: usize,
    a: Left,
    (b, b_col): (*const f32, usize),
    (c, c_row): (*mut f32, usize),
    cols: usize,
) {
    const COLUMNS: usize = 4;
    let mut col = 0;
    while col < cols {
        let several = cols - col >= COLUMNS;
        // Columns stay in the cache while rows of A, taken in pairs, go by.
        for row in (0..a.rows).step_by(2) {
            // SAFETY: the caller's promise.
            unsafe {
                let a = Left { at: a.at.add(row * a.stride), ..a };
                let (b, c) = ((b.add(col * b_col), b_col), (c.add(row * c_row + col), c_row));
                match (several, row + 1 < a.rows) {
                    (true, true) => dots::<I, 2, COLUMNS>(isa, k, a, b, c),
                    (true, false) => dots::<I, 1, COLUMNS>(isa, k, a, b, c),
                    (false, true) => dots::<I, 2, 1>(isa, k, a, b, c),
                    (false, false) => dots::<I, 1, 1>(isa, k, a, b, c),
                }
            }
        }
        col += if several { COLUMNS } else { 1 };
    }
}

/// The products of `M` rows of A and `N` columns of B.
///
/// # Safety
/// As [`multiply_columns`].
#[inline(always)]
unsafe fn dots<I: Isa, const M: usize, const N: usize>(
    isa: I,
    k: usize,
    a: Left,
    (b, b_col): (*const f32, usize),
    (c, c_row): (*mut f32, usize),
) {
    let whole = k - k % I::LANES;
    let zero = isa.splat(0.0);
    let mut sums = [[zero; N]; M];
    // SAFETY: the caller's promise; what is left of a vector is masked.
    unsafe {
        for t in (0..whole).step_by(I::LANES) {
            for (i, row) in sums.iter_mut().enumerate() {
                let left = isa.load(a.at.add(i * a.stride + t));
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = isa.fma(left, isa.load(b.add(j * b_col + t)), *sum);
                }
            }
        }
        if whole < k {
            for (i, row) in sums.iter_mut().enumerate() {
                let left = isa.merge(zero, a.at.add(i * a.stride + whole), 0, k - whole);
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = isa.fma(left, isa.merge(zero, b.add(j * b_col + whole), 0, k - whole), *sum);
                }
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                *c.add(i * c_row + j) = isa.sum(*sum);
            }
        }
    }
}
