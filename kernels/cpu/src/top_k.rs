//! Places of the largest or smallest elements of rows.
//!
//! Of every element a pair is made, its word (`order`) above its place, so that pairs differ and their order is that of the
//! result. Those that are asked for are told from the others by selection, which takes a time proportional to the row, and
//! then sorted.
//!
//! An item is a row.

use margay_loops::{Needs, TopK};

use crate::order::{each_word, words_of};
use crate::params::{from_words, params, to_words};
use crate::{Class, Phase, Prepared};

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 1;

/// Elements worth taking together.
const ELEMENTS_PER_RUN: usize = 1 << 12;

params! {
    /// Rows in which elements are chosen.
    Params {
        len: usize,
        inner: usize,
        k: usize,
        /// What is exclusively added to words: all their bits, if the largest come first.
        turn: usize,
        /// Pairs have 128 bits rather than 64.
        wide: usize,
        /// How elements are read.
        how: [usize; 2],
    }
}

/// How a class runs the call.
pub(crate) fn prepare(class: Class, call: &TopK) -> Result<Prepared, String> {
    if call.k > call.len {
        return Err(format!("{} of {} elements", call.k, call.len));
    }
    let how = words_of(call.dtype);
    let bits = 8 * how[0] as u32;
    let wide = bits > 32 || u32::try_from(call.len).is_err();
    let turn = if call.largest { (u64::MAX >> (64 - bits)) as usize } else { 0 };
    let params = Params { len: call.len, inner: call.inner, k: call.k, turn, wide: usize::from(wide), how };
    let phase = Phase {
        kernel: class.kernels().top_k,
        params: to_words(&params),
        items: if call.k == 0 { 0 } else { call.outer * call.inner },
        grain: (ELEMENTS_PER_RUN / call.len.max(1)).max(1),
    };
    let pair = if wide { size_of::<u128>() } else { size_of::<u64>() };
    let scratch_bytes = call.len.checked_mul(pair).ok_or("a row that no memory holds")?;
    let needs = Needs { workspace_bytes: 0, packed: Vec::new() };
    Ok(Prepared { phases: vec![phase], scratch_bytes, needs })
}

/// The places.
///
/// Arguments: X, of any alignment; Y. Scratch: the pairs of a row.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`prepare`].
#[inline(always)]
pub(crate) unsafe fn run<I>(
    _isa: I,
    params: *const u64,
    args: *const *mut u8,
    scratch: *mut f32,
    begin: u64,
    end: u64,
) {
    // SAFETY: the parameters are ours; a row and its places are within the arguments, and scratch holds its pairs.
    unsafe {
        let p = from_words::<Params>(params);
        let (x, y) = ((*args).cast_const(), (*args.add(1)).cast::<i64>());
        for item in begin as usize..end as usize {
            let (outer, inner) = (item / p.inner, item % p.inner);
            let x = x.add((outer * p.len * p.inner + inner) * p.how[0]);
            let y = y.add(outer * p.k * p.inner + inner);
            let turn = p.turn as u64;
            if p.wide == 0 {
                let pairs = scratch.cast::<u64>();
                each_word(p.how, x, p.len, p.inner, |j, word| {
                    *pairs.add(j) = (word ^ turn) << 32 | j as u64;
                });
                let pairs = std::slice::from_raw_parts_mut(pairs, p.len);
                for (s, pair) in first_of(pairs, p.k).iter().enumerate() {
                    *y.add(s * p.inner) = i64::from(*pair as u32);
                }
            } else {
                let pairs = scratch.cast::<u128>();
                each_word(p.how, x, p.len, p.inner, |j, word| {
                    *pairs.add(j) = u128::from(word ^ turn) << 64 | j as u128;
                });
                let pairs = std::slice::from_raw_parts_mut(pairs, p.len);
                for (s, pair) in first_of(pairs, p.k).iter().enumerate() {
                    *y.add(s * p.inner) = *pair as i64;
                }
            }
        }
    }
}

/// The first `k` pairs in order, `0 < k <= pairs.len()`.
fn first_of<T: Ord>(pairs: &mut [T], k: usize) -> &[T] {
    if k < pairs.len() {
        pairs.select_nth_unstable(k - 1);
    }
    let first = &mut pairs[..k];
    first.sort_unstable();
    first
}
