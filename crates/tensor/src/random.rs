//! Counter-based random numbers.
//!
//! [`Philox`] is the Philox4x32-10 generator of Salmon, Moraes, Dror and Shaw (*Parallel random numbers: as
//! easy as 1, 2, 3*, SC 2011). It has no state to carry along: block `b` of stream `(seed, stream)` is a pure
//! function of those three numbers, with key `seed` and counter `[b low, b high, stream low, stream high]`.
//!
//! The fill functions number their elements, and element `i` depends only on `(seed, stream, i)`, so a
//! vector may be filled in any chunks, in any order, on any number of threads, with the same bits:
//!
//! | filled with | element `i` comes from |
//! |---|---|
//! | uniform `f32` | word `i`, its upper 24 bits |
//! | uniform `f64` | words `2i` (low) and `2i + 1` (high), the upper 53 bits |
//! | normal `f32` | Box–Muller of words `2j` and `2j + 1`, `j = i / 2`; cosine for even `i`, sine for odd |
//! | normal `f64` | Box–Muller of block `i / 2`, 53 bits each; cosine for even `i`, sine for odd |
//! | signs | bit `i % 128` of block `i / 128`; a set bit is −1 |
//!
//! Logarithm, sine and cosine come from the `libm` crate, so the bits do not depend on the platform.
//! Deliberately absent: cryptographic strength, and distributions that consume a varying number of words.

mod draws;

use std::convert::Infallible;
use std::f64::consts::TAU;

use rand_core::{SeedableRng, TryRng, utils};

pub use draws::below;

const WORDS: u64 = 4;

/// The stream that a name stands for, below 2³² so that streams can be counted from it: the hash of Fowler, Noll and
/// Vo, of 32 bits (1a).
pub fn stream_of(name: &str) -> u64 {
    name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193)).into()
}

/// A stream of random 32-bit words, named by a seed and a stream number, and a position in it.
///
/// As a generator of the `rand_core` traits it hands out the words in order from its position on. The fill
/// functions take the number of the first element instead and leave the position alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Philox {
    seed: u64,
    stream: u64,
    word: u64,
}

impl Philox {
    /// What the words of a block are multiplied with in each round.
    pub const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];

    /// What is added to the key after each round.
    pub const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

    /// Rounds for a block.
    pub const ROUNDS: usize = 10;

    /// The stream with this name, at its first word.
    pub const fn new(seed: u64, stream: u64) -> Philox {
        Philox { seed, stream, word: 0 }
    }

    /// The same stream at word `index`.
    pub const fn at(&self, index: u64) -> Philox {
        Philox { word: index, ..*self }
    }

    /// Moves to word `index`.
    pub const fn seek(&mut self, index: u64) {
        self.word = index;
    }

    /// The number of the next word.
    pub const fn position(&self) -> u64 {
        self.word
    }

    /// Words `4 · index` to `4 · index + 3` of the stream, whatever the position.
    pub fn block(&self, index: u64) -> [u32; 4] {
        let [b, s, k] = [index, self.stream, self.seed].map(|v| [v as u32, (v >> 32) as u32]);
        philox([b[0], b[1], s[0], s[1]], k)
    }

    /// Uniform numbers in `[0, 1)`: elements `first` to `first + out.len()`.
    pub fn fill_uniform_f32(&self, first: u64, out: &mut [f32]) {
        self.fill(first, out, |w| w.map(|w| (w >> 8) as f32 / (1u32 << 24) as f32));
    }

    /// Uniform numbers in `[0, 1)`: elements `first` to `first + out.len()`.
    pub fn fill_uniform_f64(&self, first: u64, out: &mut [f64]) {
        self.fill(first, out, |w| wide(w).map(|w| (w >> 11) as f64 / (1u64 << 53) as f64));
    }

    /// Standard normal numbers: elements `first` to `first + out.len()`.
    ///
    /// The radius has 32 random bits, so no element exceeds 6.8 in magnitude.
    pub fn fill_normal_f32(&self, first: u64, out: &mut [f32]) {
        self.fill(first, out, |w| {
            let unit = w.map(|w| (f64::from(w) + 0.5) / (1u64 << 32) as f64);
            let [a, b] = [box_muller(unit[0], unit[1]), box_muller(unit[2], unit[3])];
            [a[0] as f32, a[1] as f32, b[0] as f32, b[1] as f32]
        });
    }

    /// Standard normal numbers: elements `first` to `first + out.len()`.
    ///
    /// The radius has 53 random bits, so no element exceeds 8.7 in magnitude.
    pub fn fill_normal_f64(&self, first: u64, out: &mut [f64]) {
        self.fill(first, out, |w| {
            let unit = wide(w).map(|w| ((w >> 11) as f64 + 0.5) / (1u64 << 53) as f64);
            box_muller(unit[0], unit[1])
        });
    }

    /// Random signs, +1 and −1: elements `first` to `first + out.len()`.
    pub fn fill_signs<T: From<i8> + Copy>(&self, first: u64, out: &mut [T]) {
        self.fill(first, out, |w| {
            std::array::from_fn::<T, 128, _>(|i| T::from(1 - 2 * ((w[i / 32] >> (i % 32)) & 1) as i8))
        });
    }

    /// Writes elements `first..` of the stream in which every block yields `N` elements.
    fn fill<T: Copy, const N: usize>(
        &self,
        first: u64,
        out: &mut [T],
        elements: impl Fn([u32; 4]) -> [T; N],
    ) {
        let mut index = first / N as u64;
        let mut skip = (first % N as u64) as usize;
        let mut rest = out;
        while !rest.is_empty() {
            let made = elements(self.block(index));
            let n = rest.len().min(N - skip);
            let (head, tail) = rest.split_at_mut(n);
            head.copy_from_slice(&made[skip..skip + n]);
            (rest, skip, index) = (tail, 0, index.wrapping_add(1));
        }
    }

    fn next_word(&mut self) -> u32 {
        let word = self.block(self.word / WORDS)[(self.word % WORDS) as usize];
        self.word = self.word.wrapping_add(1);
        word
    }
}

impl TryRng for Philox {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.next_word())
    }

    /// Two words, the low half first.
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let low = u64::from(self.next_word());
        Ok(low | u64::from(self.next_word()) << 32)
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        utils::fill_bytes_via_next_word(dst, || self.try_next_u32())
    }
}

impl SeedableRng for Philox {
    /// Seed and stream, little endian.
    type Seed = [u8; 16];

    fn from_seed(seed: [u8; 16]) -> Philox {
        let both = u128::from_le_bytes(seed);
        Philox::new(both as u64, (both >> 64) as u64)
    }

    /// Stream 0 of this seed.
    fn seed_from_u64(seed: u64) -> Philox {
        Philox::new(seed, 0)
    }
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..Philox::ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(Philox::WEYL[0]), key[1].wrapping_add(Philox::WEYL[1])];
        }
        let p = u64::from(Philox::MULTIPLIERS[0]) * u64::from(counter[0]);
        let q = u64::from(Philox::MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (q >> 32) as u32 ^ counter[1] ^ key[0],
            q as u32,
            (p >> 32) as u32 ^ counter[3] ^ key[1],
            p as u32,
        ];
    }
    counter
}

fn wide(w: [u32; 4]) -> [u64; 2] {
    [u64::from(w[0]) | u64::from(w[1]) << 32, u64::from(w[2]) | u64::from(w[3]) << 32]
}

/// Two independent standard normal numbers from two uniform ones in `(0, 1]`.
fn box_muller(radius: f64, angle: f64) -> [f64; 2] {
    let r = (-2.0 * libm::log(radius)).sqrt();
    let (sin, cos) = libm::sincos(TAU * angle);
    [r * cos, r * sin]
}

#[cfg(test)]
mod tests {
    use rand_core::Rng;

    use super::*;

    /// The philox4x32 10-round rows of `kat_vectors` in Random123.
    #[test]
    fn known_answers() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
        let named = Philox::new(0x299f_31d0_a409_3822, 0x0370_7344_1319_8a2e);
        assert_eq!(named.block(0x85a3_08d3_243f_6a88), cases[2].2);
    }

    #[test]
    fn words_follow_the_blocks() {
        let stream = Philox::new(7, 1 << 40);
        let blocks: Vec<u32> = (0..3).flat_map(|b| stream.block(b)).collect();
        let mut rng = stream.clone();
        assert_eq!((0..12).map(|_| rng.next_u32()).collect::<Vec<_>>(), blocks);
        assert_eq!(rng.position(), 12);
        assert_eq!(stream.at(3).next_u64(), u64::from(blocks[3]) | u64::from(blocks[4]) << 32);
        rng.seek(1);
        let mut bytes = [0; 6];
        rng.fill_bytes(&mut bytes);
        assert_eq!(bytes[..4], blocks[1].to_le_bytes());
        assert_eq!(bytes[4..], blocks[2].to_le_bytes()[..2]);
        let mut seed = [0; 16];
        seed[0] = 7;
        seed[13] = 1;
        assert_eq!(Philox::from_seed(seed), stream);
    }

    fn assert_chunk_free<T: Copy + Default + PartialEq + std::fmt::Debug>(fill: impl Fn(u64, &mut [T])) {
        let mut whole = vec![T::default(); 301];
        fill(5, &mut whole);
        for chunk in [1, 2, 3, 7, 128, 300] {
            let mut parts = vec![T::default(); 301];
            let mut first = 5;
            for part in parts.chunks_mut(chunk) {
                fill(first, part);
                first += part.len() as u64;
            }
            assert_eq!(parts, whole, "chunks of {chunk}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_chunks() {
        let stream = Philox::new(11, 3);
        assert_chunk_free::<f32>(|i, out| stream.fill_uniform_f32(i, out));
        assert_chunk_free::<f64>(|i, out| stream.fill_uniform_f64(i, out));
        assert_chunk_free::<f32>(|i, out| stream.fill_normal_f32(i, out));
        assert_chunk_free::<f64>(|i, out| stream.fill_normal_f64(i, out));
        assert_chunk_free::<f32>(|i, out| stream.fill_signs(i, out));
        assert_chunk_free::<i8>(|i, out| stream.fill_signs(i, out));
    }

    #[test]
    fn streams_and_seeds_differ() {
        let blocks =
            [(0, 0), (1, 0), (0, 1), (1 << 32, 0), (0, 1 << 32)].map(|(s, t)| Philox::new(s, t).block(0));
        assert!((0..5).all(|i| (0..i).all(|j| blocks[i] != blocks[j])));
    }

    /// Sample moments of `n` numbers lie within 5 standard errors; the seeds are fixed.
    fn assert_moments(sample: &[f64], mean: f64, variance: f64, fourth: f64) {
        let n = sample.len() as f64;
        let centred = sample.iter().map(|x| x - mean);
        let m1 = centred.clone().sum::<f64>() / n;
        let m2 = centred.map(|x| x * x).sum::<f64>() / n;
        assert!(m1.abs() < 5.0 * (variance / n).sqrt(), "mean off by {m1}");
        let se = ((fourth - variance * variance) / n).sqrt() + 1e-12;
        assert!((m2 - variance).abs() < 5.0 * se, "variance {m2}, expected {variance}");
    }

    #[test]
    fn moments_are_right() {
        const N: usize = 100_000;
        let stream = Philox::new(2024, 0);
        let (mut single, mut double) = (vec![0f32; N], vec![0f64; N]);
        let widen = |x: &[f32]| x.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        stream.fill_uniform_f32(0, &mut single);
        assert!(single.iter().all(|x| (0.0..1.0).contains(x)));
        assert_moments(&widen(&single), 0.5, 1.0 / 12.0, 1.0 / 80.0);
        stream.fill_uniform_f64(0, &mut double);
        assert!(double.iter().all(|x| (0.0..1.0).contains(x)));
        assert_moments(&double, 0.5, 1.0 / 12.0, 1.0 / 80.0);
        stream.fill_normal_f32(0, &mut single);
        assert_moments(&widen(&single), 0.0, 1.0, 3.0);
        stream.fill_normal_f64(0, &mut double);
        assert_moments(&double, 0.0, 1.0, 3.0);
        stream.fill_signs(0, &mut single);
        assert!(single.iter().all(|x| x.abs() == 1.0));
        assert_moments(&widen(&single), 0.0, 1.0, 1.0);
    }

    #[test]
    fn box_muller_stays_finite_at_the_ends() {
        let least = 0.5 / (1u64 << 53) as f64;
        for r in [least, 1.0] {
            for a in [least, 1.0] {
                assert!(box_muller(r, a).iter().all(|z| z.is_finite() && z.abs() < 8.7));
            }
        }
    }
}
