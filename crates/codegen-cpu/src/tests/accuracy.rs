//! Errors of the polynomial functions against f64, and their special values.

use margay_loops::{Binary, Literal, Unary};
use margay_tensor::DType::{F32, F64};

use super::{Bytes, map, noise, run};

/// Applies a function on every class; lanes and scalars are compared bit by bit by `run`.
fn apply(op: Unary, x: &[f32]) -> Vec<Vec<f32>> {
    let n = x.len();
    let kernel = map(&[(F32, &[n])], (F32, &[n]), move |n, x| n.unary(op, x[0]));
    run(&kernel, &[f32::bytes(x), vec![0; 4 * n]]).iter().map(|out| f32::values(out)).collect()
}

/// Numbers of both signs from `smallest` to `largest` in size, evenly spread over exponents and over the range.
fn sweep(smallest: f32, largest: f32) -> Vec<f32> {
    let ratio = f64::from(largest) / f64::from(smallest);
    let sizes = (0..20_000).map(|i| (f64::from(smallest) * ratio.powf(f64::from(i) / 19_999.0)) as f32);
    let mut x: Vec<f32> = sizes.flat_map(|v| [v, -v]).collect();
    x.extend(noise(7, 40_000, largest));
    x
}

/// The largest relative and absolute error over the sweep.
fn errors(x: &[f32], y: &[f32], exact: impl Fn(f64) -> f64) -> (f64, f64) {
    let mut worst = (0.0f64, 0.0f64);
    for (x, y) in x.iter().zip(y) {
        let e = exact(f64::from(*x));
        let difference = (f64::from(*y) - e).abs();
        assert!(difference.is_finite(), "at {x}: {y}, expected {e}");
        worst.1 = worst.1.max(difference);
        if e.abs() > f64::from(f32::MIN_POSITIVE) {
            worst.0 = worst.0.max(difference / e.abs());
        }
    }
    worst
}

fn check(op: Unary, x: &[f32], exact: impl Fn(f64) -> f64, relative: f64, absolute: f64) {
    for y in apply(op, x) {
        let (r, a) = errors(x, &y, &exact);
        assert!(r <= relative && a <= absolute, "{op:?}: relative {r:e}, absolute {a:e}");
    }
}

#[test]
fn errors_are_as_documented() {
    check(Unary::Exp, &sweep(1e-8, 87.3), f64::exp, 1e-7, f64::MAX);
    let positive: Vec<f32> = sweep(1e-38, 3e38).into_iter().filter(|v| *v > 0.0).collect();
    check(Unary::Log, &positive, f64::ln, 1e-7, 5e-6);
    let near_one: Vec<f32> = noise(1, 50_000, 0.4).into_iter().map(|v| 1.0 + v).collect();
    check(Unary::Log, &near_one, f64::ln, 1e-7, 1e-7);
    check(Unary::Erf, &sweep(1e-8, 6.0), libm::erf, 4e-7, 4e-7);
    check(Unary::Tanh, &sweep(1e-8, 12.0), f64::tanh, 4e-7, 4e-7);
    check(Unary::Sigmoid, &sweep(1e-8, 87.0), |x| 1.0 / (1.0 + (-x).exp()), 2e-7, 1e-7);
    check(Unary::Sin, &sweep(1e-6, 1e4), libm::sin, f64::MAX, 1e-7);
    check(Unary::Cos, &sweep(1e-6, 1e4), libm::cos, f64::MAX, 1e-7);
    check(Unary::Sin, &sweep(1.0, f32::MAX), libm::sin, f64::MAX, 1e-7);
    check(Unary::Cos, &sweep(1.0, f32::MAX), libm::cos, f64::MAX, 1e-7);
}

#[test]
fn special_values() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let cases: &[(Unary, &[(f32, f32)])] = &[
        (
            Unary::Exp,
            &[(-inf, 0.0), (inf, inf), (100.0, inf), (-100.0, 0.0), (0.0, 1.0), (nan, nan), (1e30, inf)],
        ),
        (Unary::Exp, &[(-1e30, 0.0), (88.722_83, 3.402_798_5e38), (-88.0, 0.0)]),
        (
            Unary::Log,
            &[(0.0, -inf), (-0.0, -inf), (-1.0, nan), (-inf, nan), (inf, inf), (1.0, 0.0), (nan, nan)],
        ),
        (Unary::Log, &[(1e-40, -92.103_4), (f32::MAX, 88.722_84)]),
        (Unary::Erf, &[(inf, 1.0), (-inf, -1.0), (0.0, 0.0), (nan, nan)]),
        (Unary::Tanh, &[(inf, 1.0), (-inf, -1.0), (0.0, 0.0), (nan, nan)]),
        (Unary::Sigmoid, &[(inf, 1.0), (-inf, 0.0), (0.0, 0.5), (nan, nan), (-100.0, 0.0)]),
        (Unary::Sin, &[(0.0, 0.0), (inf, nan), (nan, nan)]),
        (Unary::Cos, &[(0.0, 1.0), (-inf, nan), (nan, nan)]),
        (Unary::Sqrt, &[(4.0, 2.0), (-1.0, nan), (inf, inf)]),
    ];
    for (op, pairs) in cases {
        let (x, expected): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
        for y in apply(*op, &x) {
            super::assert_close(&y, &expected, 4e-7);
        }
    }
}

#[test]
fn functions_in_f64_are_exact_to_their_last_places() {
    let x: Vec<f64> =
        sweep(1e-6, 600.0).into_iter().map(f64::from).chain([f64::NAN, f64::INFINITY, -0.0]).collect();
    let n = x.len();
    type Function = fn(f64) -> f64;
    let cases: [(Unary, Function); 7] = [
        (Unary::Exp, f64::exp),
        (Unary::Log, f64::ln),
        (Unary::Erf, libm::erf),
        (Unary::Tanh, f64::tanh),
        (Unary::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
        (Unary::Sin, f64::sin),
        (Unary::Cos, f64::cos),
    ];
    let close =
        |got: f64, e: f64| got == e || got.is_nan() && e.is_nan() || (got - e).abs() <= 1e-15 * e.abs();
    for (op, exact) in cases {
        let kernel = map(&[(F64, &[n])], (F64, &[n]), move |n, x| n.unary(op, x[0]));
        for out in run(&kernel, &[f64::bytes(&x), vec![0; 8 * n]]) {
            for (x, got) in x.iter().zip(f64::values(&out)) {
                assert!(close(got, exact(*x)), "{op:?} of {x} is {got}, expected {}", exact(*x));
            }
        }
    }
    let y: Vec<f64> = x.iter().map(|x| (x / 7.0).round()).collect();
    let kernel = map(&[(F64, &[n]), (F64, &[n])], (F64, &[n]), |n, x| n.binary(Binary::Pow, x[0], x[1]));
    for out in run(&kernel, &[f64::bytes(&x), f64::bytes(&y), vec![0; 8 * n]]) {
        for ((x, y), got) in x.iter().zip(&y).zip(f64::values(&out)) {
            assert!(close(got, x.powf(*y)), "{x} to the {y} is {got}, expected {}", x.powf(*y));
        }
    }
}

#[test]
fn powers() {
    let mut pairs: Vec<(f32, f32)> = noise(1, 4000, 20.0).into_iter().zip(noise(2, 4000, 12.0)).collect();
    pairs.iter_mut().step_by(2).for_each(|(_, y)| *y = y.round());
    pairs.iter_mut().skip(1).step_by(2).for_each(|(x, _)| *x = x.abs());
    let inf = f32::INFINITY;
    for x in [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, inf, f32::NAN] {
        pairs.extend([0.0, 1.0, -1.0, 2.0, -3.0, 3.0, inf, -inf].map(|y| (x, y)));
    }
    let (x, y): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
    let n = x.len();
    let kernel = map(&[(F32, &[n]), (F32, &[n])], (F32, &[n]), |n, x| n.binary(Binary::Pow, x[0], x[1]));
    let close = |got: f32, expected: f32| {
        got == expected
            || got.is_nan() && expected.is_nan()
            || (got - expected).abs() <= 1e-5 * expected.abs() + f32::MIN_POSITIVE
    };
    for out in run(&kernel, &[f32::bytes(&x), f32::bytes(&y), vec![0; 4 * n]]) {
        for (&(x, y), got) in pairs.iter().zip(f32::values(&out)) {
            let expected = f64::from(x).powf(f64::from(y)) as f32;
            assert!(close(got, expected), "{x} to the {y} is {got}, expected {expected}");
        }
    }
    for exponent in [0.0, 1.0, 2.0, 3.0, 0.5, -1.0, -0.5, 1.7, 5.0] {
        let x: Vec<f32> = noise(3, 50, 9.0).into_iter().map(f32::abs).collect();
        let kernel = map(&[(F32, &[50])], (F32, &[50]), move |n, x| {
            let y = n.literal(Literal::f32(exponent));
            n.binary(Binary::Pow, x[0], y)
        });
        for out in run(&kernel, &[f32::bytes(&x), vec![0; 200]]) {
            for (x, got) in x.iter().zip(f32::values(&out)) {
                let expected = f64::from(*x).powf(f64::from(exponent)) as f32;
                assert!(close(got, expected), "{x} to the {exponent} is {got}, expected {expected}");
            }
        }
    }
}
