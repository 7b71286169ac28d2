//! Standard normal numbers of a stream, several blocks at a time.
//!
//! The numbers are those of [`Philox::fill_normal_f32`] and [`Philox::fill_normal_f64`], bit by bit: the same
//! operations in the same order, on many numbers at once, so that they become vector operations. Logarithm, sine and
//! cosine are those of the `libm` crate, which come from fdlibm (Sun Microsystems, 1993), without their branches. What the
//! branches are for, arguments near multiples of `π / 2` and tiny ones, is left to the stream itself: one pair in
//! hundreds of thousands.

use std::f64::consts::TAU;

use margay_tensor::random::Philox;

use crate::panel::{self, Work};

/// Blocks that are made at a time.
const BLOCKS: usize = 16;

/// Pairs of numbers that are made at a time.
const PAIRS: usize = 16;

/// A number and the bits of a stream that it is made of.
pub(crate) trait Normal: Copy {
    /// Numbers in a block of the stream.
    const IN_BLOCK: usize;

    /// From one number of `f64`.
    fn rounded(value: f64) -> Self;

    /// The uniform numbers in `(0, 1]` that pair `pair` of block `block` takes radius and angle from.
    fn uniform(words: &[[u32; BLOCKS]; 4], block: usize, pair: usize) -> [f64; 2];

    /// Elements `first` to `first + out.len()`, one after the other.
    fn fill_slowly(stream: &Philox, first: u64, out: &mut [Self]);
}

impl Normal for f32 {
    const IN_BLOCK: usize = 4;

    #[inline(always)]
    fn rounded(value: f64) -> f32 {
        value as f32
    }

    #[inline(always)]
    fn uniform(words: &[[u32; BLOCKS]; 4], block: usize, pair: usize) -> [f64; 2] {
        let unit = |word: u32| (f64::from(word) + 0.5) / (1u64 << 32) as f64;
        [unit(words[2 * pair][block]), unit(words[2 * pair + 1][block])]
    }

    fn fill_slowly(stream: &Philox, first: u64, out: &mut [f32]) {
        stream.fill_normal_f32(first, out);
    }
}

impl Normal for f64 {
    const IN_BLOCK: usize = 2;

    #[inline(always)]
    fn rounded(value: f64) -> f64 {
        value
    }

    #[inline(always)]
    fn uniform(words: &[[u32; BLOCKS]; 4], block: usize, _: usize) -> [f64; 2] {
        let unit = |low: u32, high: u32| {
            let word = u64::from(low) | u64::from(high) << 32;
            ((word >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        [unit(words[0][block], words[1][block]), unit(words[2][block], words[3][block])]
    }

    fn fill_slowly(stream: &Philox, first: u64, out: &mut [f64]) {
        stream.fill_normal_f64(first, out);
    }
}

/// Writes elements `first` to `first + out.len()` of the stream.
pub(crate) fn fill<T: Normal>(stream: &Philox, first: u64, out: &mut [T]) {
    let before = (first.next_multiple_of(T::IN_BLOCK as u64) - first).min(out.len() as u64);
    let (head, rest) = out.split_at_mut(before as usize);
    let (blocks, tail) = rest.split_at_mut(rest.len() - rest.len() % (BLOCKS * T::IN_BLOCK));
    T::fill_slowly(stream, first, head);
    T::fill_slowly(stream, first + before + blocks.len() as u64, tail);
    let index = (first + before) / T::IN_BLOCK as u64;
    panel::vectorized(Fill { stream, index, out: blocks });
}

/// Whole blocks from this one on, [`BLOCKS`] at a time.
struct Fill<'a, T> {
    stream: &'a Philox,
    index: u64,
    out: &'a mut [T],
}

impl<T: Normal> Work for Fill<'_, T> {
    #[inline(always)]
    fn run(self) {
        for (at, out) in self.out.chunks_exact_mut(BLOCKS * T::IN_BLOCK).enumerate() {
            let index = self.index.wrapping_add((at * BLOCKS) as u64);
            let words = blocks(self.stream, index);
            let pairs = T::IN_BLOCK / 2;
            for pair in 0..pairs {
                let (mut radius, mut angle) = ([0.0; PAIRS], [0.0; PAIRS]);
                for block in 0..BLOCKS {
                    [radius[block], angle[block]] = T::uniform(&words, block, pair);
                }
                let (mut cosine, mut sine, mut plain) = ([0.0; PAIRS], [0.0; PAIRS], true);
                for k in 0..PAIRS {
                    let r = (-2.0 * logarithm(radius[k])).sqrt();
                    let (sin, cos, fine) = sine_and_cosine(TAU * angle[k]);
                    (cosine[k], sine[k]) = (r * cos, r * sin);
                    plain &= fine;
                }
                for block in 0..BLOCKS {
                    out[block * T::IN_BLOCK + 2 * pair] = T::rounded(cosine[block]);
                    out[block * T::IN_BLOCK + 2 * pair + 1] = T::rounded(sine[block]);
                }
                if !plain {
                    for block in 0..BLOCKS {
                        let first = index.wrapping_add(block as u64) * T::IN_BLOCK as u64 + 2 * pair as u64;
                        let place = block * T::IN_BLOCK + 2 * pair;
                        T::fill_slowly(self.stream, first, &mut out[place..place + 2]);
                    }
                }
            }
        }
    }
}

/// The four words of blocks from `index` on.
#[inline(always)]
fn blocks(stream: &Philox, index: u64) -> [[u32; BLOCKS]; 4] {
    let mut words = [[0; BLOCKS]; 4];
    for block in 0..BLOCKS {
        let four = stream.block(index.wrapping_add(block as u64));
        for (words, word) in words.iter_mut().zip(four) {
            words[block] = word;
        }
    }
    words
}

/// The natural logarithm of a normal number of at most 1.
#[inline(always)]
fn logarithm(x: f64) -> f64 {
    const LN2_HI: f64 = 0.6931471803691238;
    const LN2_LO: f64 = 1.9082149292705877e-10;
    const LG: [f64; 7] = [
        0.6666666666666735,
        0.3999999999940942,
        0.2857142874366239,
        0.22222198432149784,
        0.1818357216161805,
        0.15313837699209373,
        0.14798198605116586,
    ];
    // The power of two, and what it leaves between √½ and √2.
    let bits = x.to_bits() + ((0x3ff0_0000u64 - 0x3fe6_a09e) << 32);
    let k = (bits >> 52) as i32 - 0x3ff;
    let x = f64::from_bits((bits & ((1 << 52) - 1)) + (0x3fe6_a09e << 32));
    let f = x - 1.0;
    let hfsq = 0.5 * f * f;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let t1 = w * (LG[1] + w * (LG[3] + w * LG[5]));
    let t2 = z * (LG[0] + w * (LG[2] + w * (LG[4] + w * LG[6])));
    let r = t2 + t1;
    let dk = f64::from(k);
    s * (hfsq + r) + dk * LN2_LO - hfsq + f + dk * LN2_HI
}

/// Sine and cosine of an angle from 0 to 2π, and whether it is one for which these formulas are those of the library.
#[inline(always)]
fn sine_and_cosine(x: f64) -> (f64, f64, bool) {
    const PIO2_1: f64 = 1.5707963267341256;
    const PIO2_1T: f64 = 6.077100506506192e-11;
    const S: [f64; 6] = [
        -0.16666666666666632,
        0.00833333333332249,
        -0.0001984126982985795,
        2.7557313707070068e-06,
        -2.5050760253406863e-08,
        1.58969099521155e-10,
    ];
    const C: [f64; 6] = [
        0.0416666666666666,
        -0.001388888888887411,
        2.480158728947673e-05,
        -2.7557314351390663e-07,
        2.087572321298175e-09,
        -1.1359647557788195e-11,
    ];
    // The upper half of the bits of odd multiples of π / 4, and of multiples of π / 2.
    const EIGHTHS: [u64; 4] = [0x3fe9_21fb, 0x4002_d97c, 0x400f_6a7a, 0x4015_fdbc];
    const QUARTERS: [u64; 4] = [0x3ff9_21fb, 0x4009_21fb, 0x4012_d97c, 0x4019_21fb];
    const TINY: u64 = 0x3e46_a09e;
    let high = x.to_bits() >> 32;
    let (mut n, mut fine) = (0.0, high >= TINY);
    for k in 0..4 {
        n += if high > EIGHTHS[k] { 1.0 } else { 0.0 };
        fine &= high != QUARTERS[k];
    }
    let z = x - n * PIO2_1;
    let y0 = z - n * PIO2_1T;
    let y1 = (z - y0) - n * PIO2_1T;
    let z = y0 * y0;
    let w = z * z;
    let r = S[1] + z * (S[2] + z * S[3]) + z * w * (S[4] + z * S[5]);
    let v = z * y0;
    let near = y0 + v * (S[0] + z * r);
    let far = y0 - ((z * (0.5 * y1 - v * r) - y1) - v * S[0]);
    let s = if high <= EIGHTHS[0] { near } else { far };
    let r = z * (C[0] + z * (C[1] + z * C[2])) + w * w * (C[3] + z * (C[4] + z * C[5]));
    let hz = 0.5 * z;
    let w = 1.0 - hz;
    let c = w + (((1.0 - w) - hz) + (z * r - y0 * y1));
    let (odd, beyond) = (n == 1.0 || n == 3.0, n == 2.0 || n == 3.0);
    let (sine, cosine) = if odd { (c, s) } else { (s, c) };
    let sine = if beyond { -sine } else { sine };
    let cosine = if n == 1.0 || n == 2.0 { -cosine } else { cosine };
    (sine, cosine, fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_same<T: Normal + Default + PartialEq + std::fmt::Debug>(
        stream: &Philox,
        first: u64,
        length: usize,
    ) {
        let (mut found, mut expected) = (vec![T::default(); length], vec![T::default(); length]);
        fill(stream, first, &mut found);
        T::fill_slowly(stream, first, &mut expected);
        let at = (0..length).find(|&i| found[i] != expected[i]);
        assert_eq!(at.map(|i| (i, found[i], expected[i])), None, "from {first}");
    }

    #[test]
    fn numbers_are_those_of_the_stream() {
        for (first, length) in [(0, 0), (0, 1), (3, 1), (1, 63), (5, 64), (7, 300), (1 << 33, 129)] {
            let stream = Philox::new(3 << 40, 5 + (9 << 40));
            assert_same::<f32>(&stream, first, length);
            assert_same::<f64>(&stream, first, length);
        }
        // So many that angles near multiples of π / 2 are among them.
        assert_same::<f32>(&Philox::new(1, 2), 0, 1 << 22);
        assert_same::<f64>(&Philox::new(2, 1), 0, 1 << 22);
    }

    #[test]
    fn the_ends_of_every_octant_are_seen() {
        let mut seen = 0;
        for k in 0..=8u64 {
            let at = (k as f64 / 8.0 * TAU).to_bits();
            for step in 0..4096u64 {
                let x = f64::from_bits((at + (step << 24)).wrapping_sub(2048 << 24));
                if (0.0..=TAU).contains(&x) {
                    let (sine, cosine, fine) = sine_and_cosine(x);
                    if fine {
                        assert!((sine - x.sin()).abs() < 1e-15 && (cosine - x.cos()).abs() < 1e-15, "{x}");
                        seen += 1;
                    }
                }
            }
        }
        assert!(seen > 10_000);
    }
}
