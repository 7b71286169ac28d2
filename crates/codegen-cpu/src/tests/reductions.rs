//! Reductions: kinds, orders, axes, norms.

use margay_loops::{Combine, Kernel, Unary};
use margay_tensor::DType::{self, *};

use super::{Bytes, assert_close, nest, noise, run};

/// Joins along the last axis of [rows, n].
fn reduce_rows(dtype: DType, rows: usize, n: usize, combine: Combine) -> Kernel {
    let mut nest = nest(&[(dtype, &[rows, n])], (dtype, &[rows]));
    nest.for_each(&[rows], |nest, i| {
        let row = i[0].clone();
        let r = nest.reduce(n, &[combine], |nest, k| vec![nest.load(0, &[row.clone(), k])]);
        nest.store(0, &[row], r[0]);
    });
    nest.finish()
}

/// Joins along the first axis of [n, columns].
fn reduce_columns(n: usize, columns: usize, combine: Combine) -> Kernel {
    let mut nest = nest(&[(F32, &[n, columns])], (F32, &[columns]));
    nest.for_each(&[columns], |nest, i| {
        let column = i[0].clone();
        let r = nest.reduce(n, &[combine], |nest, k| vec![nest.load(0, &[k, column.clone()])]);
        nest.store(0, &[column], r[0]);
    });
    nest.finish()
}

type Kind = (Combine, fn(f32, f32) -> f32, f32);

const KINDS: [Kind; 4] = [
    (Combine::Sum, |a, b| a + b, 0.0),
    (Combine::Product, |a, b| a * b, 1.0),
    (Combine::Max, f32::max, f32::NEG_INFINITY),
    (Combine::Min, f32::min, f32::INFINITY),
];

#[test]
fn every_kind_along_rows_and_columns_on_every_length() {
    let rows = 5;
    for n in 1..70 {
        let x = noise(n as u32, rows * n, 1.2);
        for (combine, join, identity) in KINDS {
            let along_rows = reduce_rows(F32, rows, n, combine);
            let expected: Vec<f32> =
                x.chunks(n).map(|row| row.iter().copied().fold(identity, join)).collect();
            for out in run(&along_rows, &[f32::bytes(&x), vec![0; 4 * rows]]) {
                assert_close(&f32::values(&out), &expected, 1e-5);
            }
            let along_columns = reduce_columns(rows, n, combine);
            let expected: Vec<f32> =
                (0..n).map(|c| (0..rows).map(|r| x[r * n + c]).fold(identity, join)).collect();
            for out in run(&along_columns, &[f32::bytes(&x), vec![0; 4 * n]]) {
                assert_eq!(f32::values(&out), expected);
            }
        }
    }
}

#[test]
fn a_nan_anywhere_reaches_maximum_and_minimum() {
    for at in [0, 3, 17, 36, 38] {
        let mut x = noise(1, 39, 1.0);
        x[at] = f32::NAN;
        for combine in [Combine::Max, Combine::Min] {
            for out in run(&reduce_rows(F32, 1, 39, combine), &[f32::bytes(&x), vec![0; 4]]) {
                assert!(f32::values(&out)[0].is_nan(), "{combine:?} with NaN at {at}");
            }
        }
    }
}

#[test]
fn integers_and_truth_values_reduce() {
    let x = [3i64, -9, 4, i64::MAX, 2, 2, 7, -1];
    let cases = [
        (Combine::Sum, [i64::MAX - 2 + 1 - 1, 10]),
        (Combine::Product, [(3i64 * -9 * 4).wrapping_mul(i64::MAX), -28]),
        (Combine::Max, [i64::MAX, 7]),
        (Combine::Min, [-9, -1]),
    ];
    for (combine, expected) in cases {
        for out in run(&reduce_rows(I64, 2, 4, combine), &[i64::bytes(&x), vec![0; 16]]) {
            assert_eq!(i64::values(&out), expected, "{combine:?}");
        }
    }
    for (combine, expected) in [(Combine::Max, [1u8, 0]), (Combine::Min, [0, 0])] {
        for out in run(&reduce_rows(Bool, 2, 3, combine), &[vec![0, 1, 1, 0, 0, 0], vec![9; 2]]) {
            assert_eq!(out, expected);
        }
    }
    for (combine, expected) in [(Combine::Max, 250u8), (Combine::Min, 3)] {
        for out in run(&reduce_rows(U8, 1, 3, combine), &[vec![3, 250, 100], vec![0]]) {
            assert_eq!(out, [expected]);
        }
    }
}

#[test]
fn softmax_rows() {
    for n in [1, 5, 16, 33, 100] {
        let rows = 3;
        let mut nest = nest(&[(F32, &[rows, n])], (F32, &[rows, n]));
        nest.for_each(&[rows], |nest, i| {
            let row = i[0].clone();
            let at = |k: &margay_loops::Index| [row.clone(), k.clone()];
            let top = nest.reduce(n, &[Combine::Max], |nest, k| vec![nest.load(0, &at(&k))])[0];
            let sum = nest.reduce(n, &[Combine::Sum], |nest, k| {
                let x = nest.load(0, &at(&k));
                let x = nest.sub(x, top);
                vec![nest.unary(Unary::Exp, x)]
            })[0];
            nest.serial(n, |nest, k| {
                let x = nest.load(0, &at(&k));
                let x = nest.sub(x, top);
                let e = nest.unary(Unary::Exp, x);
                let y = nest.div(e, sum);
                nest.store(0, &at(&k), y);
            });
        });
        let x = noise(4, rows * n, 8.0);
        let expected: Vec<f32> = x
            .chunks(n)
            .flat_map(|row| {
                let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let e: Vec<f64> = row.iter().map(|v| f64::from(v - top).exp()).collect();
                let sum: f64 = e.iter().sum();
                e.into_iter().map(move |v| (v / sum) as f32)
            })
            .collect();
        for out in run(&nest.finish(), &[f32::bytes(&x), vec![0; 4 * rows * n]]) {
            assert_close(&f32::values(&out), &expected, 1e-6);
        }
    }
}

#[test]
fn exponentials_that_go_through_the_output_are_read_back() {
    for n in [3, 16, 255, 256, 300, 700] {
        let rows = 3;
        let mut nest = nest(&[(F32, &[rows, n])], (F32, &[rows, n]));
        nest.for_each(&[rows], |nest, i| {
            let row = i[0].clone();
            let at = |k: &margay_loops::Index| [row.clone(), k.clone()];
            nest.serial(n, |nest, k| {
                let x = nest.load(0, &at(&k));
                let e = nest.unary(Unary::Exp, x);
                nest.store_raw(0, &at(&k), e);
            });
            let sum = nest.reduce(n, &[Combine::Sum], |nest, k| vec![nest.reload(0, &at(&k))])[0];
            nest.serial(n, |nest, k| {
                let e = nest.reload(0, &at(&k));
                let t = nest.unary(Unary::Tanh, e);
                let y = nest.div(t, sum);
                nest.store(0, &at(&k), y);
            });
        });
        let x = noise(6, rows * n, 2.0);
        let expected: Vec<f32> = x
            .chunks(n)
            .flat_map(|row| {
                let e: Vec<f64> = row.iter().map(|v| f64::from(*v).exp()).collect();
                let sum: f64 = e.iter().sum();
                e.into_iter().map(move |v| (v.tanh() / sum) as f32)
            })
            .collect();
        for out in run(&nest.finish(), &[f32::bytes(&x), vec![0; 4 * rows * n]]) {
            assert_close(&f32::values(&out), &expected, 1e-6);
        }
    }
}

#[test]
fn layer_norm_with_two_results_of_one_reduction() {
    let (rows, n) = (4, 77);
    let mut nest = nest(&[(F32, &[rows, n]), (F32, &[n])], (F32, &[rows, n]));
    nest.for_each(&[rows], |nest, i| {
        let row = i[0].clone();
        let sums = nest.reduce(n, &[Combine::Sum, Combine::Sum], |nest, k| {
            let x = nest.load(0, &[row.clone(), k]);
            vec![x, nest.mul(x, x)]
        });
        let count = nest.number(sums[0], n as f64);
        let mean = nest.div(sums[0], count);
        let square = nest.div(sums[1], count);
        let mean_square = nest.mul(mean, mean);
        let variance = nest.sub(square, mean_square);
        let epsilon = nest.number(mean, 1e-5);
        let variance = nest.add(variance, epsilon);
        let deviation = nest.unary(Unary::Sqrt, variance);
        nest.serial(n, |nest, k| {
            let x = nest.load(0, &[row.clone(), k.clone()]);
            let scale = nest.load(1, std::slice::from_ref(&k));
            let x = nest.sub(x, mean);
            let x = nest.div(x, deviation);
            let x = nest.mul(x, scale);
            nest.store(0, &[row.clone(), k], x);
        });
    });
    let (x, scale) = (noise(1, rows * n, 1.0), noise(2, n, 1.0));
    let expected: Vec<f32> = x
        .chunks(n)
        .flat_map(|row| {
            let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
            let var = row.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n as f64;
            let scale = &scale;
            row.iter().enumerate().map(move |(k, v)| {
                ((f64::from(*v) - mean) / (var + 1e-5).sqrt() * f64::from(scale[k])) as f32
            })
        })
        .collect();
    for out in run(&nest.finish(), &[f32::bytes(&x), f32::bytes(&scale), vec![0; 4 * rows * n]]) {
        assert_close(&f32::values(&out), &expected, 1e-5);
    }
}

#[test]
fn results_that_vary_and_results_that_do_not_share_a_reduction() {
    let (n, columns) = (3, 21);
    let mut nest = nest(&[(F32, &[n, columns]), (F32, &[n])], (F32, &[columns]));
    nest.for_each(&[columns], |nest, i| {
        let column = i[0].clone();
        let sums = nest.reduce(n, &[Combine::Sum, Combine::Sum], |nest, k| {
            let weight = nest.load(1, std::slice::from_ref(&k));
            let x = nest.load(0, &[k, column.clone()]);
            vec![weight, nest.mul(x, weight)]
        });
        let mean = nest.div(sums[1], sums[0]);
        nest.store(0, &[column], mean);
    });
    let (x, w) = (noise(1, n * columns, 1.0), [0.5f32, 1.25, 2.0]);
    let expected: Vec<f32> =
        (0..columns).map(|c| (0..n).map(|r| x[r * columns + c] * w[r]).sum::<f32>() / 3.75).collect();
    for out in run(&nest.finish(), &[f32::bytes(&x), f32::bytes(&w), vec![0; 4 * columns]]) {
        assert_close(&f32::values(&out), &expected, 1e-6);
    }
}

#[test]
fn the_last_columns_join_in_the_order_of_the_others() {
    let (n, columns) = (37, 21);
    let mut nest = nest(&[(F32, &[n, columns]), (F32, &[n])], (F32, &[columns]));
    nest.for_each(&[columns], |nest, i| {
        let column = i[0].clone();
        let sum = nest.reduce(n, &[Combine::Sum], |nest, k| vec![nest.load(0, &[k, column.clone()])])[0];
        let weight = nest.reduce(n, &[Combine::Sum], |nest, k| vec![nest.load(1, &[k])])[0];
        let mean = nest.div(sum, weight);
        nest.store(0, &[column], mean);
    });
    let (x, w) = (noise(1, n * columns, 1.0), noise(2, n, 1.0));
    let total = w.iter().sum::<f32>();
    let expected: Vec<f32> =
        (0..columns).map(|c| (0..n).map(|r| x[r * columns + c]).sum::<f32>() / total).collect();
    for out in run(&nest.finish(), &[f32::bytes(&x), f32::bytes(&w), vec![0; 4 * columns]]) {
        assert_eq!(f32::values(&out), expected);
    }
}
