//! Row functions of every class against f64.

mod harness;

use harness::classes;
use margay_kernels_cpu::Class;
use margay_kernels_cpu::abi::RowFunction;
use margay_kernels_cpu::math::rows;

fn apply(class: Class, function: RowFunction, x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    let kernel = rows(class).expect("the class is supported here")[function as usize];
    // SAFETY: both rows have this length; the class is supported here.
    unsafe { kernel(x.as_ptr(), y.as_mut_ptr(), x.len()) };
    y
}

fn reference(function: RowFunction, x: f64) -> f64 {
    match function {
        RowFunction::Exp => x.exp(),
        RowFunction::Erf => libm::erf(x),
        RowFunction::Tanh => x.tanh(),
        RowFunction::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

/// Numbers of both signs and many magnitudes, dense around 1.
fn numbers() -> Vec<f32> {
    let mut x: Vec<f32> = (-104_000..=104_000).map(|i| i as f32 * 1e-3).collect();
    x.extend((-400_001..400_001).map(|i| i as f32 * 3e-5));
    x.extend((0..120).flat_map(|i| [1.7f32.powi(i - 100), -(1.7f32.powi(i - 100))]));
    x
}

#[test]
fn errors_are_small() {
    let x = numbers();
    for class in classes() {
        for function in RowFunction::ALL {
            let mut worst = 0.0f64;
            for (&x, &y) in x.iter().zip(&apply(class, function, &x)) {
                let expected = reference(function, x as f64);
                let rounded = expected as f32;
                if rounded == y {
                    continue;
                }
                let exponent = (rounded.abs().to_bits() >> 23).max(1) as i32 - 127;
                let last_place = 2f64.powi(exponent - 23);
                let (unit, limit) = match function {
                    RowFunction::Exp => (last_place, 2.0),
                    // Where exp(-x) overflows the result is 0.
                    RowFunction::Sigmoid if expected < 4e-39 => (4e-39, 1.0),
                    RowFunction::Sigmoid => (last_place, 4.0),
                    RowFunction::Erf | RowFunction::Tanh => (1.0, 5e-7),
                };
                let error = (y as f64 - expected).abs() / unit;
                worst = worst.max(error);
                assert!(error <= limit, "{} {function:?}({x}) = {y}, expected {expected}", class.name());
            }
            println!("{} {function:?}: worst error {worst:.3e}", class.name());
        }
    }
}

#[test]
fn limits_and_nan_are_right() {
    use RowFunction::*;
    for class in classes() {
        for (function, x, y) in [
            (Exp, f32::INFINITY, f32::INFINITY),
            (Exp, f32::NEG_INFINITY, 0.0),
            (Exp, 89.0, f32::INFINITY),
            (Exp, 0.0, 1.0),
            (Exp, -150.0, 0.0),
            (Erf, f32::INFINITY, 1.0),
            (Erf, -5.0, -1.0),
            (Erf, 0.0, 0.0),
            (Tanh, f32::NEG_INFINITY, -1.0),
            (Tanh, 1e20, 1.0),
            (Sigmoid, f32::INFINITY, 1.0),
            (Sigmoid, f32::NEG_INFINITY, 0.0),
            (Sigmoid, 0.0, 0.5),
        ] {
            assert_eq!(apply(class, function, &[x])[0], y, "{} {function:?}({x})", class.name());
        }
        for function in RowFunction::ALL {
            assert!(apply(class, function, &[1.0, f32::NAN])[1].is_nan(), "{} {function:?}", class.name());
        }
    }
}

#[test]
fn every_length_is_written_and_no_more() {
    for class in classes() {
        for len in 0..70 {
            let x = vec![0.5f32; len];
            let y = apply(class, RowFunction::Tanh, &x);
            assert!(y.iter().all(|&y| (y - 0.5f32.tanh()).abs() < 1e-6));
            let mut room = vec![7.0f32; len + 16];
            let kernel = rows(class).expect("the class is supported here")[RowFunction::Exp as usize];
            // SAFETY: both rows have at least this length; the class is supported here.
            unsafe { kernel(x.as_ptr(), room.as_mut_ptr(), len) };
            assert!(room[len..].iter().all(|&y| y == 7.0));
        }
    }
}
