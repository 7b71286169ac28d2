//! Positive semidefinite matrices: Nyström approximations, eigendecompositions, partial Cholesky decompositions, and what
//! they do as preconditioners.

use margay_randnla::{
    Eigen, Matrix, Revd2Options, Scalar, Sparse, conjugate_gradients, nystrom, revd2, rpcholesky,
};

use crate::spectra::{
    SPECTRA, convert, difference, distance, gaussian, norm, orthonormality, positive, product, spectral_norm,
};

fn rebuilt<T: Scalar>(eigen: &Eigen<T>) -> Matrix<T> {
    let v = &eigen.vectors;
    let scaled = Matrix::from_fn(v.rows(), eigen.rank(), |i, j| v.at(i, j) * T::from_f64(eigen.values[j]));
    scaled.product(&v.transposed()).unwrap()
}

fn trace(a: &Matrix) -> f64 {
    (0..a.rows()).map(|i| a.at(i, i)).sum()
}

/// `E ‖A - Â‖ ≤ (1 + k / (p - 1)) Σ_{i>k} λᵢ` in the nuclear norm for `k + p` vectors, and the approximation never exceeds
/// the matrix.
#[test]
fn nystrom_approximations_meet_the_bound_of_the_nuclear_norm() {
    for (name, spectrum) in SPECTRA {
        let a: Matrix = positive(60, spectrum, 1);
        let mut mean = 0.0;
        for seed in 0..32 {
            let found = nystrom(&a, 18, 0, seed, 0).unwrap();
            let rest = difference(&a, &rebuilt(&found));
            let least = eigenvalues(&rest).into_iter().fold(f64::INFINITY, f64::min);
            assert!(least > -1e-10, "{name}: {least}");
            assert!(orthonormality(&found.vectors) < 1e-10);
            assert!(found.values.windows(2).all(|w| w[0] >= w[1]) && found.values[17] >= 0.0);
            mean += trace(&rest) / 32.0;
        }
        for k in 1..=16usize {
            let tail: f64 = (k..60).map(spectrum).sum();
            let bound = (1.0 + k as f64 / (18 - k - 1) as f64) * tail;
            assert!(mean <= bound, "{name} {k}: {mean}, at most {bound}");
        }
    }
}

fn eigenvalues(a: &Matrix) -> Vec<f64> {
    // Of a symmetric matrix shifted to be positive, singular values are eigenvalues.
    let shift = norm(a) + 1.0;
    let shifted = Matrix::from_fn(a.rows(), a.rows(), |i, j| a.at(i, j) + if i == j { shift } else { 0.0 });
    crate::spectra::singular_values(&shifted).into_iter().map(|s| s - shift).collect()
}

#[test]
fn nystrom_approximations_of_low_rank_are_exact() {
    fn check<T: Scalar>(bound: f64) {
        let a: Matrix<T> = positive(40, |i| if i < 5 { 1.0 + i as f64 } else { 0.0 }, 2);
        let found = nystrom(&a, 5, 5, 1, 0).unwrap();
        assert!(distance(&a, &rebuilt(&found)) <= bound * norm(&a));
        let zero: Matrix<T> = Matrix::from_fn(6, 6, |_, _| T::ZERO);
        assert_eq!(nystrom(&zero, 2, 1, 0, 0).unwrap().values, [0.0, 0.0]);
    }
    check::<f64>(1e-6);
    check::<f32>(1e-2);
    let indefinite: Matrix = positive(20, |i| if i < 10 { 1.0 } else { -1.0 }, 3);
    let message = nystrom(&indefinite, 15, 0, 0, 0).unwrap_err().to_string();
    assert!(message.starts_with("the matrix is not positive semidefinite"), "{message}");
    let wide: Matrix = gaussian(3, 4, 0);
    assert!(nystrom(&wide, 1, 0, 0, 0).is_err() && nystrom(&indefinite, 21, 0, 0, 0).is_err());
}

/// The bound that is returned exceeds the true error, for all seeds, and meets the tolerance.
#[test]
fn adaptive_eigendecompositions_know_their_error() {
    for (name, spectrum) in SPECTRA {
        let a: Matrix = positive(80, spectrum, 4);
        for tolerance in [0.5, 1e-1, 1e-2] {
            for seed in 0..8 {
                let options = Revd2Options { tolerance, first_rank: 4, seed, ..Revd2Options::default() };
                let (found, bound) = revd2(&a, &options).unwrap();
                let error = spectral_norm(&difference(&a, &rebuilt(&found)));
                assert!(error <= bound + 1e-12, "{name} {tolerance}: {error}, bound {bound}");
                assert!(bound <= tolerance * found.values[0] || found.rank() == 80, "{name} {tolerance}");
                assert!(orthonormality(&found.vectors) < 1e-10);
            }
        }
        let capped = Revd2Options { tolerance: 0.0, max_rank: Some(8), ..Revd2Options::default() };
        assert_eq!(revd2(&a, &capped).unwrap().0.rank(), 8);
    }
    let single: Matrix<f32> = convert(&positive::<f64>(50, SPECTRA[1].1, 4));
    let (found, bound) = revd2(&single, &Revd2Options { tolerance: 0.6, ..Revd2Options::default() }).unwrap();
    assert!(bound <= 0.6 * found.values[0] && found.rank() < 50, "rank {}, bound {bound}", found.rank());
    let a: Matrix = positive(5, |_| 1.0, 0);
    assert!(revd2(&a, &Revd2Options { tolerance: -1.0, ..Revd2Options::default() }).is_err());
    assert!(revd2(&a, &Revd2Options { max_rank: Some(0), ..Revd2Options::default() }).is_err());
}

fn cholesky<T: Scalar>(a: &Matrix<T>, rank: usize, seed: u64) -> margay_randnla::PartialCholesky<T> {
    let diagonal: Vec<T> = (0..a.rows()).map(|i| a.at(i, i)).collect();
    rpcholesky(&diagonal, |j| (0..a.rows()).map(|i| a.at(i, j)).collect(), rank, seed, 0).unwrap()
}

/// The expected trace that is left after `k ≥ r / ε + r ln(1 / (ε η))` columns is at most `1 + ε` times that of the best
/// approximation of rank `r`, whose share of the trace is `η` (Chen, Epperly, Tropp and Webber, theorem 3.1).
#[test]
fn random_pivots_meet_the_bound_of_the_trace() {
    for (name, spectrum) in SPECTRA {
        let a: Matrix = positive(80, spectrum, 5);
        let whole = trace(&a);
        for (r, epsilon) in [(3usize, 1.0f64), (6, 1.0), (6, 0.5)] {
            let best: f64 = (r..80).map(spectrum).sum();
            let k = (r as f64 / epsilon + r as f64 * (whole / (epsilon * best)).ln()).ceil().max(r as f64);
            let k = (k as usize).min(80);
            let mut mean = 0.0;
            for seed in 0..32 {
                let found = cholesky(&a, k, seed);
                let rest = difference(&a, &found.factor.product(&found.factor.transposed()).unwrap());
                assert!((trace(&rest) - found.trace_error).abs() < 1e-10 * whole, "{name}");
                mean += found.trace_error / 32.0;
            }
            assert!(mean <= (1.0 + epsilon) * best + 1e-10, "{name} {r} {k}: {mean}, best {best}");
        }
    }
}

#[test]
fn partial_decompositions_end_where_nothing_is_left() {
    let a: Matrix = positive(30, |i| if i < 4 { 1.0 } else { 0.0 }, 6);
    let found = cholesky(&a, 10, 1);
    assert!((4..=6).contains(&found.pivots.len()), "{:?}", found.pivots);
    assert!(found.trace_error < 1e-12);
    let factor = &found.factor;
    assert!(distance(&a, &factor.product(&factor.transposed()).unwrap()) < 1e-6);
    let eigen = found.eigen().unwrap();
    assert!((eigen.values[0] - 1.0).abs() < 1e-10);
    let single: Matrix<f32> = convert(&a);
    assert!(cholesky(&single, 10, 1).trace_error < 1e-4);
    let of = |diagonal: &[f64], rank| rpcholesky(diagonal, |_| vec![0.0; 2], rank, 0, 0).map(|f| f.pivots);
    assert!(of(&[1.0, -1.0], 1).unwrap_err().to_string().contains("found -1"));
    assert!(of(&[1.0, 1.0], 3).is_err() && of(&[], 1).is_err() && of(&[1.0, 1.0, 1.0], 1).is_err());
    assert_eq!(of(&[1.0, 1.0], 2).unwrap(), [] as [usize; 0]);
}

/// A kernel matrix whose eigenvalues fall fast needs a fraction of the steps with either preconditioner; solutions agree.
#[test]
fn preconditioned_conjugate_gradients_need_fewer_steps() {
    let a: Matrix = positive(200, |i| 100.0 * 0.8f64.powi(i as i32), 7);
    let b: Matrix = gaussian(200, 1, 8);
    let shift = 1e-4;
    let solve = |by: Option<&Eigen>| conjugate_gradients(&a, shift, &b, by, 1e-10, 2000).unwrap();
    let plain = solve(None);
    let approximation = nystrom(&a, 60, 0, 1, 0).unwrap();
    let partial = cholesky(&a, 70, 1).eigen().unwrap();
    for eigen in [&approximation, &partial] {
        let found = solve(Some(eigen));
        assert!(found.residual <= 2e-10 * norm(&b), "{}", found.residual);
        assert!(4 * found.iterations < plain.iterations, "{} and {}", found.iterations, plain.iterations);
        assert!(distance(&found.x, &plain.x) < 1e-3 * norm(&plain.x));
        let image = product(&[&a, &found.x]);
        let rest = Matrix::from_fn(200, 1, |i, _| b.at(i, 0) - image.at(i, 0) - shift * found.x.at(i, 0));
        assert!((norm(&rest) - found.residual).abs() < 1e-8);
    }
    let short: Matrix = gaussian(3, 1, 0);
    assert!(conjugate_gradients(&a, shift, &short, None, 1e-10, 10).is_err());
    assert!(conjugate_gradients(&a, -1.0, &b, None, 1e-10, 10).is_err());
}

#[test]
fn sparse_operators_are_as_good() {
    let triples: Vec<(usize, usize, f64)> =
        (0..50usize).flat_map(|i| [(i, i, 2.0), (i, (i + 1) % 50, -1.0), ((i + 1) % 50, i, -1.0)]).collect();
    let sparse = Sparse::from_coo(50, 50, &triples).unwrap();
    let dense = margay_randnla::MatrixRef::from(&sparse).to_dense();
    let (a, b) = (nystrom(&sparse, 10, 5, 0, 0).unwrap(), nystrom(&dense, 10, 5, 0, 0).unwrap());
    assert!(distance(&rebuilt(&a), &rebuilt(&b)) < 1e-8);
}
