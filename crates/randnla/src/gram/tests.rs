//! Moments of samples, whichever way they are stored.

use super::*;
use crate::{Distribution, random_matrix};

fn rows(count: usize, dim: usize, seed: u64) -> Vec<f32> {
    let noise = random_matrix(Distribution::Gaussian, count, dim, seed, 9);
    noise.to_row_major().iter().enumerate().map(|(i, v)| v * (1.0 + (i % dim) as f32) + 3.0).collect()
}

#[test]
fn bytes_are_read_back_bit_by_bit() {
    // Few rows, many, and long ones.
    for (count, dim) in [(0, 5), (1, 8), (300, 8), (2100, 4097)] {
        let all = rows(count, dim, 3);
        let mut gram = Gram::new(dim);
        gram.add_rows(&all).unwrap();
        let bytes = gram.to_bytes();
        let mut read = Gram::from_bytes(&bytes).unwrap();
        assert_eq!(read.to_bytes(), bytes);
        let more = rows(2, dim, 4);
        gram.add_rows(&more).unwrap();
        read.add_rows(&more).unwrap();
        assert_eq!(read.to_bytes(), gram.to_bytes());
        for n in (0..bytes.len().min(200)).chain([bytes.len() - 1]) {
            assert!(Gram::from_bytes(&bytes[..n]).is_none(), "{n} of {} bytes", bytes.len());
        }
    }
}

fn assert_close(a: &Matrix, b: &Matrix, tolerance: f64) {
    for (a, b) in a.to_row_major_f64().into_iter().zip(b.to_row_major_f64()) {
        assert!((a - b).abs() <= tolerance, "{a} and {b}");
    }
}

#[test]
fn moments_are_those_of_the_sample() {
    let (count, dim) = (700, 5);
    let x = rows(count, dim, 1);
    let mut gram = Gram::new(dim);
    gram.add_rows(&x).unwrap();
    assert_eq!(gram.count(), 700);
    let x = Matrix::from_row_major(count, dim, &x).unwrap();
    let n = count as f64;
    let mean: Vec<f64> = (0..dim).map(|j| (0..count).map(|i| x.at(i, j)).sum::<f64>() / n).collect();
    for (found, expected) in gram.mean().unwrap().iter().zip(&mean) {
        assert!((found - expected).abs() < 1e-12);
    }
    let centred = Matrix::from_fn(count, dim, |i, j| x.at(i, j) - mean[j]);
    for (found, x) in [(gram.second_moment(), &x), (gram.covariance(), &centred)] {
        let outer = x.transposed().product(x).unwrap();
        assert_close(&found.unwrap(), &Matrix::from_fn(dim, dim, |i, j| outer.at(i, j) / n), 1e-11);
    }
}

#[test]
fn rows_in_scaled_axes_have_one_moment_in_all_directions() {
    let (dim, count) = (5, 40);
    let mut gram = Gram::new(dim);
    gram.add_rows(&rows(count, dim, 7)).unwrap();
    let moment = gram.second_moment().unwrap();
    let mean = (0..dim).map(|i| moment.at(i, i)).sum::<f64>() / dim as f64;
    let axes = gram.scaled_axes(0.0, 0.5).unwrap();
    let found = axes.transposed().product(&moment.product(&axes).unwrap()).unwrap();
    assert_close(&found, &Matrix::from_fn(dim, dim, |i, j| if i == j { mean } else { 0.0 }), 1e-10);
    // Without a power they are a rotation.
    let axes = gram.scaled_axes(0.03, 0.0).unwrap();
    let found = axes.transposed().product(&axes).unwrap();
    assert_close(&found, &Matrix::from_fn(dim, dim, |i, j| f64::from(u8::from(i == j))), 1e-12);
}

#[test]
fn bits_do_not_depend_on_the_pieces() {
    let dim = 3;
    let x = rows(1000, dim, 2);
    let of = |piece: usize| {
        let mut gram = Gram::new(dim);
        x.chunks(piece * dim).for_each(|rows| gram.add_rows(rows).unwrap());
        (gram.count(), gram.mean().unwrap(), gram.second_moment().unwrap())
    };
    for piece in [1, 7, 255, 256, 257, 600] {
        assert_eq!(of(piece), of(1000), "pieces of {piece} rows");
    }
}

/// As rows that are given in full.
#[test]
fn rows_with_a_single_one_are_counted() {
    let (dim, places) = (5, [3, 0, 3, 4, 3, 1]);
    let full: Vec<f32> =
        places.iter().flat_map(|p| (0..dim).map(move |i| if i == *p { 1.0 } else { 0.0 })).collect();
    let (mut counted, mut given) = (Gram::of_ones(dim), Gram::new(dim));
    let mut more = Gram::of_ones(dim);
    counted.add_ones(&places[..2]).unwrap();
    more.add_ones(&places[2..]).unwrap();
    counted.merge(&more).unwrap();
    given.add_rows(&full).unwrap();
    assert_eq!((counted.count(), counted.places()), (6, Some(&[1.0, 1.0, 0.0, 3.0, 1.0][..])));
    assert_eq!(counted.mean().unwrap(), given.mean().unwrap());
    assert_close(&counted.second_moment().unwrap(), &given.second_moment().unwrap(), 1e-15);
    assert_close(&counted.covariance().unwrap(), &given.covariance().unwrap(), 1e-13);
    assert!(counted.add_ones(&[2, 5]).is_err() && counted.count() == 6);
    let read = Gram::from_bytes(&counted.to_bytes()).unwrap();
    assert_eq!(read.to_bytes(), counted.to_bytes());
    assert_eq!(read.places(), counted.places());
}

/// Whatever stands for the outer products, merging is seeing both, and thin roots square to the moments.
#[test]
fn few_long_rows_are_kept_as_they_are() {
    let (count, dim) = (9, 40);
    let x = rows(count, dim, 4);
    let mut gram = Gram::new(dim);
    gram.add_rows(&x).unwrap();
    for centred in [false, true] {
        let root = gram.thin_root(centred).unwrap().expect("there are few rows");
        assert_eq!((root.count(), root.mean()), (count, gram.mean().unwrap().as_slice()));
        let identity = Mat::<f64>::identity(dim, dim);
        let rows = root.product(identity.as_ref());
        let squared = Matrix::new(root.transposed_product(rows.as_ref()));
        let expected = if centred { gram.covariance() } else { gram.second_moment() };
        assert_close(&squared, &expected.unwrap(), 1e-9);
    }
    // More than a quarter of the length.
    let (mut left, mut right) = (gram.clone(), Gram::new(dim));
    right.add_rows(&rows(30, dim, 5)).unwrap();
    assert!(right.thin_root(true).unwrap().is_none());
    let mut other = right.clone();
    left.merge(&right).unwrap();
    other.merge(&gram).unwrap();
    let mut whole = Gram::new(dim);
    whole.add_rows(&x).unwrap();
    whole.add_rows(&rows(30, dim, 5)).unwrap();
    for merged in [left, other] {
        assert_eq!(merged.count(), 39);
        assert_close(&merged.covariance().unwrap(), &whole.covariance().unwrap(), 1e-9);
    }
}

#[test]
fn many_long_rows_are_sketched() {
    let dim = Gram::MOST_DENSE + 904;
    let mut gram = Gram::new(dim);
    // Rows along three directions, about a mean.
    let directions = random_matrix(Distribution::Gaussian, 3, dim, 6, 1);
    let weights = random_matrix(Distribution::Gaussian, 4000, 3, 6, 2);
    let at = |i: usize, j: usize| 1.0 + (0..3).map(|k| weights.at(i, k) * directions.at(k, j)).sum::<f64>();
    let mut other = Gram::new(dim);
    for first in (0..4000).step_by(500) {
        let numbers = (0..500 * dim).map(|n| at(first + n / dim, n % dim) as f32);
        let half = if first < 1500 { &mut gram } else { &mut other };
        half.add_rows(&numbers.collect::<Vec<f32>>()).unwrap();
    }
    gram.merge(&other).unwrap();
    let root = gram.thin_root(true).unwrap().expect("it is sketched");
    assert_eq!((gram.count(), root.count(), root.dim()), (4000, Gram::SKETCHED_ROWS, dim));
    let mean = gram.mean().unwrap();
    // The variance along each direction, and along the mean.
    for k in 0..3 {
        let along = |row: &dyn Fn(usize) -> f64| (0..dim).map(|j| row(j) * directions.at(k, j)).sum::<f64>();
        let direction = Mat::from_fn(dim, 1, |j, _| directions.at(k, j));
        let seen = dense::squared_norm(root.product(direction.as_ref()).as_ref());
        let exact: f64 = (0..4000).map(|i| along(&|j| at(i, j) - mean[j]).powi(2)).sum::<f64>() / 4000.0;
        assert!((seen / exact - 1.0).abs() < 6.0 / (Gram::SKETCHED_ROWS as f64).sqrt(), "{}", seen / exact);
    }
}

#[test]
fn merging_is_seeing_both() {
    let x = rows(900, 4, 3);
    let mut whole = Gram::new(4);
    whole.add_rows(&x).unwrap();
    let (mut left, mut right) = (Gram::new(4), Gram::new(4));
    left.add_rows(&x[..4 * 100]).unwrap();
    right.add_rows(&x[4 * 100..]).unwrap();
    left.merge(&right).unwrap();
    assert_eq!(left.count(), 900);
    assert_close(&left.covariance().unwrap(), &whole.covariance().unwrap(), 1e-11);
    let restored = Gram::from_sums(900, &whole.sum, &Matrix::new(whole.outer())).unwrap();
    assert_eq!(restored.covariance().unwrap(), whole.covariance().unwrap());
    assert_eq!(
        left.merge(&Gram::new(3)).unwrap_err().to_string(),
        "a row of the other accumulator has the wrong length: expected 4, found 3"
    );
}

#[test]
fn bad_samples_are_named() {
    let mut gram = Gram::new(2);
    assert_eq!(
        gram.mean().unwrap_err().to_string(),
        "the sample is empty: expected at least 1 row of length 2, found 0"
    );
    assert_eq!(
        gram.add_rows(&[1.0, 2.0, 3.0]).unwrap_err().to_string(),
        "the last row has the wrong length: expected 2, found 1"
    );
    assert_eq!(
        gram.add_rows(&[1.0, 2.0, 3.0, f32::INFINITY]).unwrap_err().to_string(),
        "the sample is not finite: expected a number at row 1, column 1, found inf"
    );
    assert_eq!(gram.count(), 0);
    let outer = Matrix::from_fn(2, 2, |_, _| f64::NAN);
    assert!(matches!(Gram::from_sums(1, &[0.0; 2], &outer), Err(RandnlaError::NonFinite { .. })));
    let mut none = Gram::new(0);
    assert!(none.add_rows(&[]).is_ok() && none.add_rows(&[1.0]).is_err());
}
