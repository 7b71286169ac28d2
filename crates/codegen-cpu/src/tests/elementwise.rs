//! Elementwise kernels: broadcasting, types, logic.

use margay_loops::{Binary, Literal, Unary};
use margay_tensor::DType::{self, *};

use super::{Bytes, assert_close, map, noise, run};

#[test]
fn broadcast_bias_then_relu_on_every_length() {
    for n in 1..70 {
        let kernel = map(&[(F32, &[3, n]), (F32, &[n])], (F32, &[3, n]), |n, x| {
            let sum = n.add(x[0], x[1]);
            let zero = n.number(sum, 0.0);
            n.binary(Binary::Max, sum, zero)
        });
        let (x, bias) = (noise(1, 3 * n, 2.0), noise(2, n, 1.0));
        let expected: Vec<f32> = (0..3 * n).map(|i| (x[i] + bias[i % n]).max(0.0)).collect();
        for out in run(&kernel, &[f32::bytes(&x), f32::bytes(&bias), vec![0; 12 * n]]) {
            assert_eq!(f32::values(&out), expected);
        }
    }
}

#[test]
fn gelu_on_every_length_in_one_parallel_loop() {
    for n in 1..70 {
        let kernel = map(&[(F32, &[n])], (F32, &[n]), |n, x| {
            let scale = n.number(x[0], std::f64::consts::FRAC_1_SQRT_2);
            let z = n.mul(x[0], scale);
            let e = n.unary(Unary::Erf, z);
            let (one, half) = (n.number(e, 1.0), n.number(e, 0.5));
            let e = n.add(e, one);
            let h = n.mul(x[0], half);
            n.mul(h, e)
        });
        let x = noise(n as u32, n, 6.0);
        let expected: Vec<f32> =
            x.iter().map(|&v| 0.5 * v * (1.0 + libm::erff(v * std::f32::consts::FRAC_1_SQRT_2))).collect();
        for out in run(&kernel, &[f32::bytes(&x), vec![0; 4 * n]]) {
            assert_close(&f32::values(&out), &expected, 1e-6);
        }
    }
}

#[test]
fn three_dimensional_broadcasting_counts_its_axes() {
    let (a, b, c) = (3, 5, 7);
    let kernel = map(&[(F32, &[a, 1, c]), (F32, &[b, 1])], (F32, &[a, b, c]), |n, x| n.mul(x[0], x[1]));
    assert_eq!(crate::items(&kernel), 15);
    let (x, y) = (noise(1, a * c, 1.0), noise(2, b, 1.0));
    let expected: Vec<f32> = (0..a * b * c).map(|i| x[i / (b * c) * c + i % c] * y[i / c % b]).collect();
    for out in run(&kernel, &[f32::bytes(&x), f32::bytes(&y), vec![0; 4 * a * b * c]]) {
        assert_eq!(f32::values(&out), expected);
    }
}

#[test]
fn comparisons_make_masks_that_select_and_store() {
    let n = 37;
    let (x, y) = (noise(1, n, 1.0), noise(2, n, 1.0));
    let mut x = x;
    x[5] = f32::NAN;
    x[6] = y[6];
    let inside = map(&[(F32, &[n]), (F32, &[n])], (Bool, &[n]), |n, x| {
        let less = n.binary(Binary::Lt, x[0], x[1]);
        let zero = n.number(x[0], 0.0);
        let positive = n.binary(Binary::Le, zero, x[0]);
        let both = n.binary(Binary::And, less, positive);
        let nan = n.unary(Unary::IsNan, x[0]);
        let equal = n.binary(Binary::Eq, x[0], x[1]);
        let either = n.binary(Binary::Or, both, equal);
        let not = n.unary(Unary::Not, either);
        let number = n.unary(Unary::Not, nan);
        n.binary(Binary::And, not, number)
    });
    let expected: Vec<u8> =
        x.iter().zip(&y).map(|(&x, &y)| u8::from(!(x == y || x.is_nan() || x < y && 0.0 <= x))).collect();
    for out in run(&inside, &[f32::bytes(&x), f32::bytes(&y), vec![9; n]]) {
        assert_eq!(out, expected);
    }

    let choose = map(&[(Bool, &[n]), (F32, &[n]), (F32, &[1])], (F32, &[n]), |n, x| {
        let chosen = n.select(x[0], x[1], x[2]);
        let weight = n.cast(x[0], F32);
        let truth = n.cast(x[1], Bool);
        let truth = n.cast(truth, F32);
        let sum = n.add(chosen, weight);
        n.add(sum, truth)
    });
    let mask: Vec<u8> = (0..n).map(|i| [0, 1, 0, 255, 1][i % 5]).collect();
    let expected: Vec<f32> =
        (0..n).map(|i| if mask[i] != 0 { y[i] + 1.0 } else { 0.5 } + f32::from(y[i] != 0.0)).collect();
    for out in run(&choose, &[mask, f32::bytes(&y), f32::bytes(&[0.5]), vec![0; 4 * n]]) {
        assert_eq!(f32::values(&out), expected);
    }
}

#[test]
fn minimum_and_maximum_keep_nan_in_either_operand() {
    let values = [f32::NAN, 1.0, -2.0, f32::INFINITY, f32::NEG_INFINITY, 0.0];
    let pairs: Vec<(f32, f32)> = values.iter().flat_map(|&x| values.map(|y| (x, y))).collect();
    let (x, y): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
    let n = x.len();
    for (op, plain) in [(Binary::Min, f32::min as fn(f32, f32) -> f32), (Binary::Max, f32::max)] {
        let kernel = map(&[(F32, &[n]), (F32, &[n])], (F32, &[n]), move |n, x| n.binary(op, x[0], x[1]));
        let expected: Vec<f32> = pairs
            .iter()
            .map(|&(x, y)| if x.is_nan() || y.is_nan() { f32::NAN } else { plain(x, y) })
            .collect();
        for out in run(&kernel, &[f32::bytes(&x), f32::bytes(&y), vec![0; 4 * n]]) {
            assert_close(&f32::values(&out), &expected, 0.0);
        }
        let literal = map(&[(F32, &[n])], (F32, &[n]), move |n, x| {
            let bound = n.literal(Literal::f32(0.5));
            n.binary(op, bound, x[0])
        });
        let expected: Vec<f32> = x.iter().map(|&x| if x.is_nan() { x } else { plain(x, 0.5) }).collect();
        for out in run(&literal, &[f32::bytes(&x), vec![0; 4 * n]]) {
            assert_close(&f32::values(&out), &expected, 0.0);
        }
    }
}

#[test]
fn rounding_is_to_integers_ties_to_even() {
    let mut x = noise(3, 40, 1e4);
    x.extend([0.5, 1.5, 2.5, -0.5, -1.5, -0.2, 0.0, 8_388_607.5, 3e9, f32::INFINITY, f32::NAN, -3e9]);
    let n = x.len();
    type Rounding = (Unary, fn(f32) -> f32, fn(f64) -> f64);
    let plain: [Rounding; 3] = [
        (Unary::Floor, f32::floor, f64::floor),
        (Unary::Ceil, f32::ceil, f64::ceil),
        (Unary::Round, f32::round_ties_even, f64::round_ties_even),
    ];
    for (op, plain, plain64) in plain {
        let kernel = map(&[(F32, &[n])], (F32, &[n]), move |n, x| n.unary(op, x[0]));
        let expected: Vec<f32> = x.iter().map(|v| plain(*v)).collect();
        for out in run(&kernel, &[f32::bytes(&x), vec![0; 4 * n]]) {
            assert_close(&f32::values(&out), &expected, 0.0);
        }
        let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
        let kernel = map(&[(F64, &[n])], (F64, &[n]), move |n, x| n.unary(op, x[0]));
        for out in run(&kernel, &[f64::bytes(&x), vec![0; 8 * n]]) {
            for (g, x) in f64::values(&out).iter().zip(&x) {
                assert!(*g == plain64(*x) || x.is_nan() && g.is_nan(), "{op:?} of {x} is {g}");
            }
        }
    }
}

#[test]
fn integers_wrap_and_divisions_never_trap() {
    let x: [i32; 6] = [7, -7, i32::MIN, i32::MAX, 5, 0];
    let y: [i32; 6] = [2, 2, -1, 1, 0, 3];
    let kernel = map(&[(I32, &[6]), (I32, &[6])], (I32, &[6]), |n, x| n.binary(Binary::Div, x[0], x[1]));
    for out in run(&kernel, &[i32::bytes(&x), i32::bytes(&y), vec![0; 24]]) {
        assert_eq!(i32::values(&out), [3, -3, i32::MIN, i32::MAX, 0, 0]);
    }
    let x: [u8; 4] = [255, 200, 7, 9];
    let y: [u8; 4] = [2, 255, 0, 255];
    let kernel = map(&[(U8, &[4]), (U8, &[4])], (U8, &[4]), |n, x| {
        let q = n.binary(Binary::Div, x[0], x[1]);
        let sum = n.add(x[0], x[1]);
        let low = n.binary(Binary::Min, q, sum);
        n.sub(sum, low)
    });
    for out in run(&kernel, &[x.to_vec(), y.to_vec(), vec![0; 4]]) {
        assert_eq!(out, [0, 199, 7, 8]);
    }
    let x = [i64::MIN, 3, -4];
    let kernel = map(&[(I64, &[3])], (I64, &[3]), |n, x| {
        let minus = n.number(x[0], -1.0);
        let q = n.binary(Binary::Div, x[0], minus);
        let a = n.unary(Unary::Abs, x[0]);
        let m = n.unary(Unary::Neg, a);
        let b = n.binary(Binary::Max, q, m);
        n.mul(b, minus)
    });
    for out in run(&kernel, &[i64::bytes(&x), vec![0; 24]]) {
        assert_eq!(i64::values(&out), [i64::MIN, 3, -4]);
    }
}

fn check_cast<S: Bytes, T: Bytes + PartialEq + std::fmt::Debug>(from: DType, to: DType, x: &[S], y: &[T]) {
    let n = x.len();
    let kernel = map(&[(from, &[n])], (to, &[n]), move |n, x| n.cast(x[0], to));
    for out in run(&kernel, &[S::bytes(x), vec![0; n * to.bytes()]]) {
        assert_eq!(T::values(&out), y, "{from} to {to}");
    }
}

#[test]
fn casts_truncate_saturate_and_wrap() {
    let floats = [1.9f32, -1.9, f32::NAN, 1e20, -1e20, 300.0, -300.0, 70000.0, 3e9];
    check_cast(F32, I8, &floats, &floats.map(|v| v as i8));
    check_cast(F32, U8, &floats, &floats.map(|v| v as u8));
    check_cast(F32, I16, &floats, &floats.map(|v| v as i16));
    check_cast(F32, U16, &floats, &floats.map(|v| v as u16));
    check_cast(F32, I32, &floats, &floats.map(|v| v as i32));
    check_cast(F32, U32, &floats, &floats.map(|v| v as u32));
    check_cast(F32, I64, &floats, &floats.map(|v| v as i64));
    check_cast(F32, U64, &floats, &floats.map(|v| v as u64));
    check_cast(F32, F64, &[1.5f32, -2.25, 1e30], &[1.5f64, -2.25, f64::from(1e30f32)]);
    check_cast(F64, F32, &[1.1f64, 1e300], &[1.1f32, f32::INFINITY]);
    check_cast(F64, I64, &[1e18, -2.7, f64::NAN], &[1_000_000_000_000_000_000i64, -2, 0]);
    check_cast(F32, Bool, &[0.0f32, -0.0, 0.1, f32::NAN, -3.0], &[0u8, 0, 1, 1, 1]);
    check_cast(Bool, I64, &[0u8, 1, 7], &[0i64, 1, 1]);
    check_cast(I64, Bool, &[0i64, 1 << 40, -1], &[0u8, 1, 1]);
    let ints = [i64::MIN, -1, 0, 300, 1 << 40, (1 << 40) + 5];
    check_cast(I64, I32, &ints, &ints.map(|v| v as i32));
    check_cast(I64, U8, &ints, &ints.map(|v| v as u8));
    check_cast(I64, F32, &ints, &ints.map(|v| v as f32));
    check_cast(U64, F64, &[u64::MAX, 5], &[u64::MAX as f64, 5.0]);
    check_cast(U32, F32, &[u32::MAX, 5], &[u32::MAX as f32, 5.0]);
    check_cast(I8, I64, &[-3i8, 127], &[-3i64, 127]);
    check_cast(U8, I64, &[253u8, 127], &[253i64, 127]);
    check_cast(U16, F32, &[65535u16], &[65535f32]);
    check_cast(I8, F32, &[-3i8, 127], &[-3f32, 127.0]);
}

#[test]
fn double_precision_arithmetic() {
    let x: Vec<f64> = noise(1, 21, 4.0).into_iter().map(f64::from).collect();
    let kernel = map(&[(F64, &[21])], (F64, &[21]), |n, x| {
        let square = n.mul(x[0], x[0]);
        let one = n.number(x[0], 1.0);
        let sum = n.add(square, one);
        let root = n.unary(Unary::Sqrt, sum);
        let q = n.binary(Binary::Div, x[0], root);
        let a = n.unary(Unary::Abs, q);
        n.binary(Binary::Min, a, one)
    });
    let expected: Vec<f64> = x.iter().map(|v| (v / (v * v + 1.0).sqrt()).abs().min(1.0)).collect();
    for out in run(&kernel, &[f64::bytes(&x), vec![0; 8 * 21]]) {
        assert_eq!(f64::values(&out), expected);
    }
}

#[test]
fn chains_of_functions_on_every_length_of_a_chunk() {
    for n in (1..40).chain([255, 256, 257, 272, 511, 513, 700]) {
        // The first operand, a sum and a result are all needed again behind later functions.
        let kernel = map(&[(F32, &[2, n]), (F32, &[n])], (F32, &[2, n]), |n, x| {
            let sum = n.add(x[0], x[1]);
            let t = n.unary(Unary::Tanh, sum);
            let scaled = n.mul(t, x[0]);
            let e = n.unary(Unary::Exp, scaled);
            let s = n.unary(Unary::Sigmoid, e);
            let both = n.add(e, t);
            let erf = n.unary(Unary::Erf, x[1]);
            let y = n.mul(both, s);
            let y = n.add(y, sum);
            n.sub(y, erf)
        });
        let (x, b) = (noise(3, 2 * n, 2.0), noise(4, n, 1.0));
        let expected: Vec<f32> = (0..2 * n)
            .map(|i| {
                let (x, b) = (f64::from(x[i]), f64::from(b[i % n]));
                let t = (x + b).tanh();
                let e = (t * x).exp();
                ((e + t) / (1.0 + (-e).exp()) + (x + b) - libm::erf(b)) as f32
            })
            .collect();
        for out in run(&kernel, &[f32::bytes(&x), f32::bytes(&b), vec![0; 8 * n]]) {
            assert_close(&f32::values(&out), &expected, 2e-6);
        }
    }
}

#[test]
fn masks_that_a_later_level_needs_keep_the_loop_whole() {
    let n = 300;
    let kernel = map(&[(F32, &[n])], (F32, &[n]), |n, x| {
        let zero = n.number(x[0], 0.0);
        let below = n.binary(Binary::Lt, x[0], zero);
        let e = n.unary(Unary::Exp, x[0]);
        n.select(below, e, x[0])
    });
    let x = noise(5, n, 3.0);
    let expected: Vec<f32> = x.iter().map(|&v| if v < 0.0 { v.exp() } else { v }).collect();
    for out in run(&kernel, &[f32::bytes(&x), vec![0; 4 * n]]) {
        assert_close(&f32::values(&out), &expected, 1e-6);
    }
}
