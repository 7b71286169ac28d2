//! Products on matrix units: what the threads of a warp hand over, the matrices that it stands for, and what each receives.
//!
//! Which thread holds which element is that of `mma.m16n8k8` for tf32 and `mma.m16n8k16` for 16-bit floats, as NVIDIA's document
//! "Parallel Thread Execution ISA" states it. Products are exact, and terms are added one after the other in f32: a
//! device rounds sums in ways that its documents leave open.

use margay_kernels_gpu::{Unit, WARP};

/// What a thread hands over: four words of the left factor, two of the right one, and four sums.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Handed {
    pub(crate) unit: Unit,
    pub(crate) a: [u32; 4],
    pub(crate) b: [u32; 2],
    pub(crate) c: [f32; 4],
}

const ROWS: usize = 16;
const COLUMNS: usize = 8;
const MOST_TERMS: usize = 16;

/// What each thread of a warp receives.
pub(crate) fn products(lanes: &[Handed; WARP]) -> [[f32; 4]; WARP] {
    let unit = lanes[0].unit;
    let mut a = [[0f32; MOST_TERMS]; ROWS];
    let mut b = [[0f32; COLUMNS]; MOST_TERMS];
    for (lane, handed) in lanes.iter().enumerate() {
        let (group, in_group) = (lane / 4, lane % 4);
        for (i, &word) in handed.a.iter().enumerate() {
            for (term, x) in factors(unit, in_group + 4 * (i / 2), word) {
                a[group + 8 * (i % 2)][term] = x;
            }
        }
        for (i, &word) in handed.b.iter().enumerate() {
            for (term, x) in factors(unit, in_group + 4 * i, word) {
                b[term][group] = x;
            }
        }
    }
    let mut received = [[0f32; 4]; WARP];
    for (lane, sums) in received.iter_mut().enumerate() {
        for (i, sum) in sums.iter_mut().enumerate() {
            let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let terms = (0..unit.terms()).map(|term| a[row][term] * b[term][column]);
            *sum = terms.fold(lanes[lane].c[i], |sum, product| sum + product);
        }
    }
    received
}

/// The factors in a word of a row or column, by its number, with their terms.
fn factors(unit: Unit, number: usize, word: u32) -> impl Iterator<Item = (usize, f32)> {
    let halves = [word as u16, (word >> 16) as u16];
    let found = match unit {
        // The units look at the upper 19 bits.
        Unit::Tf32 => [f32::from_bits(word & !0x1fff), 0.0],
        Unit::Bf16 => halves.map(|half| f32::from_bits(u32::from(half) << 16)),
        Unit::F16 => halves.map(of_f16),
    };
    let count = unit.terms_of_word();
    found.into_iter().take(count).enumerate().map(move |(i, x)| (number * count + i, x))
}

/// The number that the bits of an f16 stand for.
fn of_f16(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [u32; 4] = [0; 4];

    /// What is received where one thread hands over one word of the left factor, and all hand over ones on the right.
    fn of_one(unit: Unit, lane: usize, word: usize, bits: u32, ones: u32) -> Vec<(usize, usize)> {
        let mut lanes = [Handed { unit, a: NOTHING, b: [ones; 2], c: [0.0; 4] }; WARP];
        lanes[lane].a[word] = bits;
        let received = products(&lanes);
        let all = (0..WARP).flat_map(|lane| (0..4).map(move |i| (lane, i)));
        all.filter(|&(lane, i)| received[lane][i] == 1.0).collect()
    }

    #[test]
    fn a_word_of_a_row_reaches_the_sums_of_that_row() {
        for (unit, one, ones) in [
            (Unit::Tf32, 0x3f80_0000, 0x3f80_0000),
            (Unit::Bf16, 0x3f80, 0x3f80_3f80),
            (Unit::F16, 0x3c00, 0x3c00_3c00),
        ] {
            // Thread 9 has words of rows 2 and 10, whose sums threads 8 to 11 receive.
            let upper: Vec<(usize, usize)> = (8..12).flat_map(|lane| [(lane, 0), (lane, 1)]).collect();
            let lower: Vec<(usize, usize)> = (8..12).flat_map(|lane| [(lane, 2), (lane, 3)]).collect();
            for (word, expected) in [(0, &upper), (1, &lower), (2, &upper), (3, &lower)] {
                assert_eq!(of_one(unit, 9, word, one, ones), *expected, "{unit:?} {word}");
            }
        }
    }

    #[test]
    fn terms_meet_those_of_their_number() {
        let one = 0x3f80_0000;
        let mut lanes = [Handed { unit: Unit::Tf32, a: NOTHING, b: [0; 2], c: [0.5; 4] }; WARP];
        // Row 0 has a one at term 6, which thread 2 hands over as its third word; column 3 has 2 there.
        lanes[2].a[2] = one;
        lanes[3 * 4 + 2].b[1] = 2f32.to_bits();
        let received = products(&lanes);
        assert_eq!(received[1], [0.5, 2.5, 0.5, 0.5]);
        assert_eq!(received.iter().flatten().filter(|&&x| x != 0.5).count(), 1);
    }

    #[test]
    fn bits_that_the_units_drop_do_not_count() {
        let mut lanes = [Handed { unit: Unit::Tf32, a: NOTHING, b: [0; 2], c: [0.0; 4] }; WARP];
        lanes[0].a[0] = 0x3f80_1fff;
        lanes[0].b[0] = 0x3f80_0000;
        assert_eq!(products(&lanes)[0][0], 1.0);
    }

    #[test]
    fn halves_are_read_as_they_are() {
        for (bits, x) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2f32.powi(-24)), (0x7bff, 65504.0), (0x8000, -0.0)]
        {
            assert_eq!(of_f16(bits), x, "{bits:#x}");
        }
        assert!(of_f16(0x7e00).is_nan() && of_f16(0xfc00) == f32::NEG_INFINITY);
    }
}
