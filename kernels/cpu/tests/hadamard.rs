//! Walsh–Hadamard transforms of every class against sums over all elements in f64.

mod harness;

use harness::random::Random;
use harness::{Expected, classes, compare, execute};
use margay_kernels_cpu::Class;
use margay_loops::{Hadamard, KernelCall};

fn expected(c: &Hadamard, x: &[f32]) -> Vec<Expected> {
    let rounding = f64::from(c.len.ilog2() + 2) * f64::from(f32::EPSILON);
    let element = |i: usize| {
        let (row, i) = (&x[i / c.len * c.len..][..c.len], i % c.len);
        let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let sum: f64 = row.iter().enumerate().map(|(j, &v)| sign(j) * f64::from(v)).sum();
        let size: f64 = row.iter().map(|&v| f64::from(v).abs()).sum();
        let root = (c.len as f64).sqrt();
        Expected { value: sum / root, tolerance: rounding * size / root }
    };
    (0..x.len()).map(element).collect()
}

fn check(class: Class, c: &Hadamard, x: Vec<f32>) -> Vec<f32> {
    let expected = expected(c, &x);
    let found = execute(class, &KernelCall::Hadamard(c.clone()), &[x], &[], expected.len());
    compare(&format!("{} {c:?}", class.name()), &found, &expected);
    found
}

#[test]
fn every_length_agrees_with_any_number_of_rows() {
    for class in classes() {
        let mut random = Random::new(17);
        for len in (0..11).map(|bits| 1 << bits) {
            for rows in [0, 1, 2, 3, 7, 64, 130].into_iter().filter(|rows| rows * len <= 1 << 13) {
                check(class, &Hadamard { rows, len }, random.normal(rows * len));
            }
        }
    }
}

#[test]
fn items_of_many_rows_agree() {
    for class in classes() {
        let mut random = Random::new(18);
        // More than one item for every class, the last one shorter.
        for (rows, len) in [(70_001, 2), (9_001, 32), (4_099, 64), (300, 1024)] {
            let c = Hadamard { rows, len };
            let x = random.normal(rows * len);
            let found =
                execute(class, &KernelCall::Hadamard(c.clone()), std::slice::from_ref(&x), &[], x.len());
            for row in [0, 1, rows / 2, rows - 1] {
                let one = Hadamard { rows: 1, len };
                let alone = check(class, &one, x[row * len..][..len].to_vec());
                assert_eq!(found[row * len..][..len], alone, "{} {c:?} row {row}", class.name());
            }
        }
    }
}

#[test]
fn it_undoes_itself() {
    for class in classes() {
        let x: Vec<f32> = (0..256).map(|i| (i % 17) as f32).collect();
        let once = check(class, &Hadamard { rows: 2, len: 128 }, x.clone());
        let twice = check(class, &Hadamard { rows: 2, len: 128 }, once);
        assert!(x.iter().zip(&twice).all(|(a, b)| (a - b).abs() < 1e-4), "{}", class.name());
    }
}
