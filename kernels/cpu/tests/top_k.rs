//! Places of the largest elements, of every class, against a stable sort.

mod harness;

use std::cmp::Ordering;

use harness::random::Random;
use harness::{classes, execute_bytes};
use margay_kernels_cpu::Class;
use margay_loops::{KernelCall, TopK};
use margay_tensor::DType;

/// What of a row is chosen: its places by a stable sort, cut off.
fn expected<T: Copy>(c: &TopK, x: &[T], compare: impl Fn(T, T) -> Ordering) -> Vec<i64> {
    let mut out = vec![0; c.outer * c.k * c.inner];
    for row in 0..c.outer * c.inner {
        let (outer, inner) = (row / c.inner, row % c.inner);
        let at = |j: usize| x[(outer * c.len + j) * c.inner + inner];
        let mut order: Vec<usize> = (0..c.len).collect();
        order.sort_by(|&a, &b| {
            let order = compare(at(a), at(b));
            if c.largest { order.reverse() } else { order }
        });
        for (s, &j) in order[..c.k].iter().enumerate() {
            out[(outer * c.k + s) * c.inner + inner] = j as i64;
        }
    }
    out
}

fn check(class: Class, c: &TopK, x: &[u8], expected: &[i64]) {
    let untouched = vec![0xa5; expected.len() * 8];
    let expected: Vec<u8> = expected.iter().flat_map(|x| x.to_ne_bytes()).collect();
    for found in execute_bytes(class, &KernelCall::TopK(c.clone()), &[x.to_vec()], &[untouched]) {
        assert!(found[0] == expected, "{} {c:?}", class.name());
    }
}

fn calls(dtype: DType) -> Vec<TopK> {
    let mut all = Vec::new();
    for [outer, len, inner] in [[1, 1, 1], [3, 9, 1], [2, 40, 3], [1, 3000, 1], [0, 4, 2], [2, 0, 1]] {
        for k in [0, 1, 2, len / 3, len].into_iter().filter(|k| *k <= len) {
            for largest in [true, false] {
                all.push(TopK { dtype, outer, len, inner, k, largest });
            }
        }
    }
    all
}

fn elements(c: &TopK) -> usize {
    c.outer * c.len * c.inner
}

#[test]
fn floats_with_ties_signs_and_nans_keep_their_order() {
    let special = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, 1e-42, -1e-42];
    let key = |x: f32| if x.is_nan() { f32::INFINITY } else { x };
    for class in classes() {
        let mut random = Random::new(5);
        for c in calls(DType::F32) {
            // Halves, so that many are equal.
            let mut x: Vec<f32> = random.normal(elements(&c)).iter().map(|x| (x * 2.0).round()).collect();
            x.iter_mut().step_by(7).zip(special.iter().cycle()).for_each(|(x, s)| *x = *s);
            let expected = expected(&c, &x, |a, b| key(a).partial_cmp(&key(b)).unwrap());
            let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_ne_bytes()).collect();
            check(class, &c, &bytes, &expected);
        }
    }
}

macro_rules! every_type {
    ($($test:ident: $t:ty, $dtype:expr, $key:expr;)*) => {$(
        #[test]
        fn $test() {
            const BYTES: usize = size_of::<$t>();
            for class in classes() {
                let mut random = Random::new(6);
                for c in calls($dtype) {
                    let words = random.normal(elements(&c) * BYTES.div_ceil(2));
                    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_bits().to_ne_bytes()).collect();
                    let bytes = &bytes[..elements(&c) * BYTES];
                    let x: Vec<$t> =
                        bytes.chunks_exact(BYTES).map(|b| <$t>::from_ne_bytes(b.try_into().unwrap())).collect();
                    let key = $key;
                    check(class, &c, bytes, &expected(&c, &x, |a, b| key(a).partial_cmp(&key(b)).unwrap()));
                }
            }
        }
    )*};
}

fn finite(x: f64) -> f64 {
    if x.is_nan() { f64::INFINITY } else { x }
}

/// The value of the bits of an f16.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = match exponent {
        31 if fraction > 0.0 => return f64::INFINITY,
        31 => f64::INFINITY,
        0 => fraction * 2f64.powi(-24),
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

every_type! {
    signed_bytes: i8, DType::I8, |x: i8| x;
    bytes: u8, DType::U8, |x: u8| x;
    signed_halves: i16, DType::I16, |x: i16| x;
    halves: u16, DType::U16, |x: u16| x;
    signed_words: i32, DType::I32, |x: i32| x;
    words: u32, DType::U32, |x: u32| x;
    signed_doubles: i64, DType::I64, |x: i64| x;
    doubles: u64, DType::U64, |x: u64| x;
    wide_floats: f64, DType::F64, |x: f64| finite(x);
    narrow_floats: u16, DType::F16, half;
    brain_floats: u16, DType::BF16, |x: u16| finite(f32::from_bits(u32::from(x) << 16).into());
}
