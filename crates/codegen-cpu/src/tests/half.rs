//! 16-bit floats and 8-bit integers in memory.

use half::{bf16, f16};
use margay_loops::{Nest, Reg, Unary};
use margay_tensor::DType::{self, *};

use super::{Bytes, map, noise, run};

/// Every 16-bit pattern as a float of a type.
fn every(dtype: DType) -> Vec<f32> {
    (0..=u16::MAX).map(|bits| value(dtype, bits)).collect()
}

fn value(dtype: DType, bits: u16) -> f32 {
    if dtype == F16 { f16::from_bits(bits).to_f32() } else { bf16::from_bits(bits).to_f32() }
}

fn nearest(dtype: DType, x: f32) -> u16 {
    if dtype == F16 { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() }
}

/// Numbers at, and on either side of, every border between two neighbours of a type.
fn borders(dtype: DType) -> Vec<f32> {
    let all = every(dtype);
    let middles = all.windows(2).map(|w| ((f64::from(w[0]) + f64::from(w[1])) / 2.0) as f32);
    let near = |x: f32| {
        [x, f32::from_bits(x.to_bits().wrapping_add(1)), f32::from_bits(x.to_bits().wrapping_sub(1))]
    };
    middles
        .flat_map(near)
        .chain(noise(3, 10_000, 1e5))
        .chain([f32::MAX, f32::MIN, 65_519.9, 65_520.0])
        .collect()
}

fn assert_bits(dtype: DType, found: u16, expected: u16, of: f32) {
    let nan = |bits| value(dtype, bits).is_nan();
    assert!(
        found == expected || nan(found) && nan(expected),
        "{dtype} of {of:e}: {found:#x}, expected {expected:#x}"
    );
}

#[test]
fn every_half_is_widened_and_rounded_back() {
    let n = 1 << 16;
    for dtype in [F16, BF16] {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let expected = every(dtype);
        for out in run_one((dtype, u16::bytes(&bits)), n, F32, |_, x| x[0]) {
            for (found, expected) in f32::values(&out).into_iter().zip(&expected) {
                assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan());
            }
        }
        for out in run_one((dtype, u16::bytes(&bits)), n, dtype, |_, x| x[0]) {
            for (i, found) in u16::values(&out).into_iter().enumerate() {
                assert_bits(dtype, found, i as u16, expected[i]);
            }
        }
    }
}

#[test]
fn stores_round_to_the_nearest_and_ties_to_even() {
    for dtype in [F16, BF16] {
        let x = borders(dtype);
        for out in run_one((F32, f32::bytes(&x)), x.len(), dtype, |_, x| x[0]) {
            for (found, &x) in u16::values(&out).into_iter().zip(&x) {
                assert_bits(dtype, found, nearest(dtype, x), x);
            }
        }
    }
}

#[test]
fn a_register_is_rounded_as_a_store_would() {
    for (dtype, op) in [(F16, Unary::RoundF16), (BF16, Unary::RoundBf16)] {
        let x = borders(dtype);
        for out in run_one((F32, f32::bytes(&x)), x.len(), F32, move |n, x| n.unary(op, x[0])) {
            for (found, &x) in f32::values(&out).into_iter().zip(&x) {
                let expected = value(dtype, nearest(dtype, x));
                assert!(
                    found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                    "{x:e}"
                );
            }
        }
    }
}

/// Short ones, so that some elements run alone and some in lanes.
#[test]
fn bytes_become_floats_at_any_length() {
    for n in 1..40 {
        let (signed, unsigned): (Vec<i8>, Vec<u8>) =
            (0..n as i32).map(|i| ((i * 37 - 128) as i8, (i * 37 + 5) as u8)).unzip();
        let kernel = map(&[(I8, &[n]), (U8, &[n]), (F32, &[1])], (F32, &[n]), |n, x| {
            let (a, b) = (n.cast(x[0], F32), n.cast(x[1], F32));
            let scaled = n.mul(a, x[2]);
            n.add(scaled, b)
        });
        let expected: Vec<f32> =
            signed.iter().zip(&unsigned).map(|(&a, &b)| f32::from(a) * 0.25 + f32::from(b)).collect();
        let args = [i8::bytes(&signed), unsigned, f32::bytes(&[0.25]), vec![0; 4 * n]];
        for out in run(&kernel, &args) {
            assert_eq!(f32::values(&out), expected);
        }
    }
}

/// Halves of numbers from beyond the bounds, ties and what is no number among them, become integers of every narrow type, and
/// the sums that are made of these become numbers again.
#[test]
fn floats_become_integers_at_any_length() {
    for n in 1..40 {
        let mut x: Vec<f32> = (0..n as i32).map(|i| (i * 67 - 400) as f32 * 0.5).collect();
        x[n / 2] = f32::NAN;
        x[n / 3] = 3e9;
        for (to, whole) in [
            (I8, (|x| i32::from(x as i8)) as fn(f32) -> i32),
            (U8, |x| i32::from(x as u8)),
            (I32, |x| x as i32),
        ] {
            let kernel = map(&[(F32, &[n])], (to, &[n]), move |n, x| n.cast(x[0], to));
            let expected: Vec<i32> = x.iter().map(|x| whole(*x)).collect();
            let bytes: Vec<u8> =
                expected.iter().flat_map(|x| x.to_ne_bytes()[..to.bytes()].to_vec()).collect();
            for out in run(&kernel, &[f32::bytes(&x), vec![0; n * to.bytes()]]) {
                assert_eq!(out, bytes, "{n} numbers to {to}");
            }
            let kernel = map(&[(F32, &[n]), (I32, &[n]), (I32, &[1])], (F32, &[n]), move |n, x| {
                let whole = n.cast(x[0], to);
                let wide = n.cast(whole, I32);
                let product = n.mul(x[1], x[2]);
                let sum = n.sub(wide, product);
                let sum = n.add(sum, x[2]);
                n.cast(sum, F32)
            });
            let factors: Vec<i32> = (0..n as i32).map(|i| i * 7_000_001 - 3).collect();
            let sum = |(whole, factor): (&i32, &i32)| {
                whole.wrapping_sub(factor.wrapping_mul(-5)).wrapping_add(-5) as f32
            };
            let sums: Vec<f32> = expected.iter().zip(&factors).map(sum).collect();
            let args = [f32::bytes(&x), i32::bytes(&factors), i32::bytes(&[-5]), vec![0; 4 * n]];
            for out in run(&kernel, &args) {
                assert_eq!(f32::values(&out), sums, "{n} numbers by way of {to}");
            }
        }
    }
}

/// A map over an input of `n` elements.
fn run_one(
    (dtype, input): (DType, Vec<u8>),
    n: usize,
    output: DType,
    f: impl Fn(&mut Nest, &[Reg]) -> Reg + 'static,
) -> Vec<Vec<u8>> {
    run(&map(&[(dtype, &[n])], (output, &[n]), f), &[input, vec![0; n * output.bytes()]])
}
