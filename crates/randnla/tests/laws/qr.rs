//! QR decompositions, with and without pivots, and what is built on pivots.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::qr::{col_pivoting, no_pivoting};
use faer::{Mat, Par};
use margay_randnla::{
    BqrrpOptions, Cur, Matrix, PivotedQr, Qr, RandnlaError, RsvdOptions, Scalar, SketchedQrOptions, bqrrp,
    cqrrpt, cqrrt, cur, interpolative, shifted_cholesky_qr3,
};

use crate::spectra::{
    SPECTRA, columns, convert, distance, gaussian, norm, orthonormality, product, singular_values, tail,
    with_spectrum,
};

/// Condition numbers, and for each a spectrum that falls evenly on a logarithmic scale.
fn conditioned<T: Scalar>(m: usize, n: usize, condition: f64) -> Matrix<T> {
    with_spectrum(m, n, |i| condition.powf(-(i as f64) / (n - 1).max(1) as f64), 11)
}

fn check_upper<T: Scalar>(r: &Matrix<T>) {
    for j in 0..r.columns() {
        (j + 1..r.rows()).for_each(|i| assert_eq!(r.at(i, j), T::ZERO));
    }
}

/// `‖A[:, J] - Q R‖`, `‖QᵀQ - I‖` and permutation, against bounds.
fn check_pivoted<T: Scalar>(a: &Matrix<T>, found: &PivotedQr<T>, bound: f64, orthonormal: f64, what: &str) {
    let mut sorted = found.pivots.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..a.columns()).collect::<Vec<_>>(), "{what}");
    check_upper(&found.r);
    let error = distance(&columns(a, &found.pivots), &found.q.product(&found.r).unwrap());
    assert!(error <= bound * norm(a), "{what}: residual {error} of {}", norm(a));
    let off = orthonormality(&found.q);
    assert!(off <= orthonormal, "{what}: orthonormal to {off}");
}

fn check_qr<T: Scalar>(a: &Matrix<T>, found: &Qr<T>, what: &str) {
    check_upper(&found.r);
    (0..a.columns()).for_each(|i| assert!(found.r.at(i, i) > T::ZERO, "{what}"));
    let error = distance(a, &found.q.product(&found.r).unwrap());
    assert!(error <= 50.0 * T::EPSILON * norm(a), "{what}: residual {error}");
    let off = orthonormality(&found.q);
    let most = if T::EPSILON < 1e-10 { 1e-10 } else { 1e-5 };
    assert!(off <= most, "{what}: orthonormal to {off}");
}

#[test]
fn factors_are_orthonormal_at_every_condition() {
    fn check<T: Scalar>(conditions: &[f64]) {
        for &condition in conditions {
            for (m, n) in [(300, 40), (64, 64), (500, 1), (3000, 20)] {
                let a: Matrix<T> = conditioned(m, n, condition);
                let what = format!("{m} x {n}, condition {condition}");
                for seed in 0..4 {
                    let options = SketchedQrOptions { seed, ..SketchedQrOptions::default() };
                    check_qr(&a, &cqrrt(&a, &options).unwrap(), &format!("cqrrt {what}"));
                }
                check_qr(&a, &shifted_cholesky_qr3(&a).unwrap(), &format!("shifted {what}"));
            }
        }
    }
    check::<f64>(&[1.0, 1e5, 1e10, 1e13]);
    check::<f32>(&[1.0, 1e3, 1e5]);
}

/// Columns that are dependent to rounding are an error of decompositions without pivots.
#[test]
fn dependent_columns_are_refused_without_pivots() {
    let a: Matrix = gaussian(40, 6, 0);
    let b = Matrix::from_fn(40, 6, |i, j| if j == 4 { a.at(i, 1) + a.at(i, 2) } else { a.at(i, j) });
    assert_eq!(cqrrt(&b, &Default::default()).unwrap_err(), RandnlaError::Dependent { columns: 6 });
    assert_eq!(
        RandnlaError::Dependent { columns: 6 }.to_string(),
        "the 6 columns are linearly dependent: expected full column rank"
    );
    let zero = Matrix::from_fn(4, 2, |_, _| 0.0);
    assert!(shifted_cholesky_qr3(&zero).is_err() && cqrrt(&zero, &Default::default()).is_err());
    let wide: Matrix = gaussian(3, 4, 0);
    assert_eq!(
        cqrrpt(&wide, &Default::default()).unwrap_err().to_string(),
        "a tall matrix has the wrong shape: expected 4 x 4, found 3 x 4"
    );
}

/// Condition numbers up to 1e15, 1 to 4 rows of the sketch for each column, both precisions.
#[test]
fn pivoted_factors_hold_at_every_condition_and_sketch_size() {
    fn check<T: Scalar>(conditions: &[f64], orthonormal: f64) {
        for &condition in conditions {
            for (m, n) in [(400, 50), (60, 60), (100, 1)] {
                let a: Matrix<T> = conditioned(m, n, condition);
                for rows_per_column in [1.0, 1.25, 1.5, 2.0, 4.0] {
                    let options = SketchedQrOptions { rows_per_column, ..SketchedQrOptions::default() };
                    let found = cqrrpt(&a, &options).unwrap();
                    let what = format!("cqrrpt {m} x {n}, condition {condition}, {rows_per_column} rows");
                    check_pivoted(&a, &found, 20.0 * T::EPSILON * n as f64, orthonormal, &what);
                }
                for block in [8, 64] {
                    let found = bqrrp(&a, &BqrrpOptions { block, ..BqrrpOptions::default() }).unwrap();
                    let what = format!("bqrrp {m} x {n}, condition {condition}, blocks of {block}");
                    check_pivoted(&a, &found, 40.0 * T::EPSILON * n as f64, orthonormal, &what);
                }
            }
        }
    }
    check::<f64>(&[1.0, 1e8, 1e12, 1e15], 1e-10);
    check::<f32>(&[1.0, 1e4, 1e7], 1e-5);
}

/// Ranks are found relative to the matrix: scaling it by a large or small number changes nothing.
#[test]
fn numerical_ranks_are_relative() {
    fn check<T: Scalar>(scales: &[f64]) {
        let (left, right): (Matrix<T>, Matrix<T>) = (gaussian(50, 5, 0), gaussian(5, 30, 1));
        let low = left.product(&right).unwrap();
        for &scale in scales {
            let a = Matrix::from_fn(50, 30, |i, j| low.at(i, j) * T::from_f64(scale));
            for seed in 0..16 {
                let options = SketchedQrOptions { seed, ..SketchedQrOptions::default() };
                let found = cqrrpt(&a, &options).unwrap();
                assert_eq!(found.rank(), 5, "seed {seed}, scale {scale}");
                check_pivoted(&a, &found, 1e2 * T::EPSILON, 1e2 * T::EPSILON, "cqrrpt");
                let found = bqrrp(&a, &BqrrpOptions { seed, block: 4, ..BqrrpOptions::default() }).unwrap();
                assert_eq!(found.rank(), 5, "seed {seed}, scale {scale}");
                check_pivoted(&a, &found, 1e2 * T::EPSILON, 1e2 * T::EPSILON, "bqrrp");
            }
        }
        let zero: Matrix<T> = Matrix::from_fn(7, 4, |_, _| T::ZERO);
        assert_eq!(cqrrpt(&zero, &Default::default()).unwrap().rank(), 0);
        assert_eq!(bqrrp(&zero, &Default::default()).unwrap().rank(), 0);
    }
    check::<f64>(&[1.0, 1e-12, 1e12]);
    check::<f32>(&[1.0, 1e-8, 1e8]);
}

#[test]
fn wide_matrices_are_pivoted_too() {
    for (m, n) in [(20, 90), (90, 20), (33, 33)] {
        let a: Matrix = with_spectrum(m, n, |i| 0.9f64.powi(i as i32), 2);
        let found = bqrrp(&a, &BqrrpOptions { block: 7, ..BqrrpOptions::default() }).unwrap();
        assert_eq!(found.rank(), m.min(n));
        check_pivoted(&a, &found, 1e-13, 1e-10, "bqrrp");
    }
    let a: Matrix = gaussian(4, 4, 0);
    for tolerance in [-0.1, 1.0, f64::NAN] {
        let options = BqrrpOptions { rank_tolerance: Some(tolerance), ..BqrrpOptions::default() };
        assert!(bqrrp(&a, &options).is_err());
        let options = SketchedQrOptions { rank_tolerance: Some(tolerance), ..SketchedQrOptions::default() };
        assert!(cqrrpt(&a, &options).is_err());
    }
    assert!(bqrrp(&a, &BqrrpOptions { block: 0, ..BqrrpOptions::default() }).is_err());
    assert!(cqrrt(&a, &SketchedQrOptions { rows_per_column: 0.5, ..Default::default() }).is_err());
}

/// The diagonal of the triangle of faer's column-pivoted decomposition.
fn reference_diagonal(a: &Matrix) -> Vec<f64> {
    let (m, n) = (a.rows(), a.columns());
    let mut qr = a.as_faer().to_owned();
    let block = no_pivoting::factor::recommended_block_size::<f64>(m, n);
    let mut coefficients = Mat::zeros(block, m.min(n));
    let (mut forward, mut backward) = (vec![0usize; n], vec![0usize; n]);
    let scratch =
        col_pivoting::factor::qr_in_place_scratch::<usize, f64>(m, n, block, Par::Seq, Default::default());
    let stack = &mut MemBuffer::new(scratch);
    col_pivoting::factor::qr_in_place(
        qr.as_mut(),
        coefficients.as_mut(),
        &mut forward,
        &mut backward,
        Par::Seq,
        MemStack::new(stack),
        Default::default(),
    );
    (0..m.min(n)).map(|i| qr[(i, i)].abs()).collect()
}

/// Pivots reveal the rank as those of column norms do: what is left after `k` columns is at most 3 times as much, in the
/// Frobenius norm, and diagonal entries are within a factor 10 of the singular values, for every `k`.
#[test]
fn pivots_are_as_good_as_those_of_column_norms() {
    for (name, spectrum) in SPECTRA {
        let a: Matrix = with_spectrum(200, 40, spectrum, 13);
        let reference = reference_diagonal(&a);
        let values = singular_values(&a);
        for seed in 0..8 {
            let sketched = cqrrpt(&a, &SketchedQrOptions { seed, ..SketchedQrOptions::default() }).unwrap();
            let blocked = bqrrp(&a, &BqrrpOptions { seed, block: 8, ..BqrrpOptions::default() }).unwrap();
            for (what, found) in [("cqrrpt", sketched), ("bqrrp", blocked)] {
                let left = |k: usize| {
                    let rows = (k..40).map(|i| (i..40).map(|j| found.r.at(i, j).powi(2)).sum::<f64>());
                    rows.sum::<f64>().sqrt()
                };
                for k in 0..40 {
                    let diagonal = found.r.at(k, k).abs();
                    let share = diagonal / values[k];
                    assert!((0.1..10.0).contains(&share), "{what} {name} {k}: {diagonal} and {}", values[k]);
                    assert!((0.1..10.0).contains(&(diagonal / reference[k])), "{what} {name} {k}");
                    assert!(left(k) <= 3.0 * tail(spectrum, k, 40), "{what} {name} {k}");
                }
            }
        }
    }
}

/// Columns alone are within a small factor of the best approximation, far below `√(1 + k (n - k))`.
#[test]
fn interpolative_decompositions_are_near_the_best() {
    fn check<T: Scalar>(floor: f64) {
        for (name, spectrum) in SPECTRA {
            let a: Matrix<T> = with_spectrum(60, 50, spectrum, 17);
            for rank in [1, 6, 12, 20] {
                for seed in 0..8 {
                    let options = RsvdOptions { seed, power_iterations: 1, ..RsvdOptions::default() };
                    let found = interpolative(&a, rank, &options).unwrap();
                    assert_eq!(found.columns.len(), rank);
                    for (i, &j) in found.columns.iter().enumerate() {
                        (0..rank).for_each(|k| {
                            assert_eq!(found.coefficients.at(k, j).to_f64(), f64::from(k == i));
                        });
                    }
                    let error = distance(&a, &found.approximation(&a).unwrap());
                    let best = tail(spectrum, rank, 50);
                    assert!(error <= 4.0 * best + floor, "{name} {rank}: {error}, at best {best}");
                    let rows = interpolative(a.transposed().as_faer(), rank, &options).unwrap();
                    assert!(rows.columns.iter().all(|&i| i < 60));
                    let Cur { columns: j, rows: i, core } = cur(&a, rank, &options).unwrap();
                    let kept_rows = columns(&a.transposed(), &i).transposed();
                    let error = distance(&a, &product(&[&columns(&a, &j), &core, &kept_rows]));
                    assert!(error <= 8.0 * best + floor, "cur {name} {rank}: {error}, at best {best}");
                }
            }
        }
    }
    check::<f64>(1e-12);
    check::<f32>(1e-4);
}

#[test]
fn decompositions_by_columns_end_at_the_rank() {
    let (left, right): (Matrix, Matrix) = (gaussian(30, 3, 0), gaussian(3, 20, 1));
    let a = left.product(&right).unwrap();
    let found = interpolative(&a, 8, &RsvdOptions::default()).unwrap();
    assert_eq!(found.columns.len(), 3);
    assert!(distance(&a, &found.approximation(&a).unwrap()) < 1e-12 * norm(&a));
    let found = cur(&a, 8, &RsvdOptions::default()).unwrap();
    assert_eq!((found.columns.len(), found.rows.len()), (3, 3));
    let zero = Matrix::from_fn(4, 5, |_, _| 0.0);
    assert_eq!(interpolative(&zero, 2, &RsvdOptions::default()).unwrap().coefficients.squared_norm(), 1.0);
    assert!(interpolative(&a, 0, &RsvdOptions::default()).is_err());
    let short: Matrix = gaussian(30, 4, 0);
    assert!(
        found.core.rows() == 3
            && interpolative(&a, 3, &RsvdOptions::default()).unwrap().approximation(&short).is_err()
    );
}

/// Same bits from the same seed.
#[test]
fn decompositions_repeat() {
    let a: Matrix<f32> = convert(&conditioned::<f64>(90, 30, 1e3));
    let options = SketchedQrOptions::default();
    assert_eq!(cqrrpt(&a, &options).unwrap(), cqrrpt(&a, &options).unwrap());
    let first = bqrrp(&a, &BqrrpOptions::default()).unwrap();
    assert_eq!(first, bqrrp(&a, &BqrrpOptions::default()).unwrap());
}
