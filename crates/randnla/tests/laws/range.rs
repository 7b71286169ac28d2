//! Range finders, truncated singular value decompositions, and estimates of their errors.

use margay_randnla::{
    AbrikOptions, Distribution, Draw, Law, Matrix, MatrixRef, QbOptions, Residual, RsvdOptions, Scalar,
    Sketch, Sparse, Svd, abrik, qb, range_finder, rsvd, rsvd_to_tolerance, spectral_norm_bound,
};

use crate::spectra::{
    SPECTRA, convert, difference, distance, gaussian, norm, orthonormality, product, spectral_norm, tail,
    with_spectrum,
};

fn rebuilt<T: Scalar>(svd: &Svd<T>) -> Matrix<T> {
    let scaled = Matrix::from_fn(svd.left.rows(), svd.rank(), |i, j| {
        svd.left.at(i, j) * T::from_f64(svd.singular_values[j])
    });
    scaled.product(&svd.right.transposed()).unwrap()
}

fn projected(a: &Matrix, basis: &Matrix) -> Matrix {
    product(&[basis, &basis.transposed(), a])
}

/// `E ‖A - Q Qᵀ A‖² ≤ (1 + k / (p - 1)) Σ_{i>k} σᵢ²` for a Gaussian sketch (Halko, Martinsson and Tropp, theorem 10.5),
/// for every split of its rows into `k + p`; the mean over 64 seeds.
#[test]
fn gaussian_ranges_meet_the_bound_of_the_expected_error() {
    const SIZE: usize = 20;
    for (name, spectrum) in SPECTRA {
        let a: Matrix = with_spectrum(60, 80, spectrum, 1);
        let errors = (0..64).map(|seed| {
            let sketch = Sketch::new(Law::Dense(Distribution::Gaussian), SIZE, 80, seed, 0).unwrap();
            distance(&a, &projected(&a, &range_finder(&a, &sketch, 0).unwrap().basis)).powi(2)
        });
        let mean = errors.sum::<f64>() / 64.0;
        for k in 1..=SIZE - 2 {
            let bound = (1.0 + k as f64 / (SIZE - k - 1) as f64) * tail(spectrum, k, 60).powi(2);
            assert!(mean <= bound, "{name} {k}: {mean}, at most {bound}");
        }
    }
}

/// `E ‖A - Q Qᵀ A‖ ≤ (1 + √(k / (p - 1))) σ_{k+1} + e √(k + p) / p √(Σ_{j>k} σⱼ²)` (theorem 10.6).
#[test]
fn gaussian_ranges_meet_the_bound_of_the_spectral_norm() {
    for (name, spectrum) in SPECTRA {
        let a: Matrix = with_spectrum(60, 80, spectrum, 1);
        let errors = (0..64).map(|seed| {
            let sketch = Sketch::new(Law::Dense(Distribution::Gaussian), 20, 80, seed, 0).unwrap();
            spectral_norm(&difference(&a, &projected(&a, &range_finder(&a, &sketch, 0).unwrap().basis)))
        });
        let mean = errors.sum::<f64>() / 64.0;
        let (k, p) = (14.0f64, 6.0);
        let bound = (1.0 + (k / (p - 1.0)).sqrt()) * spectrum(14)
            + std::f64::consts::E * (k + p).sqrt() / p * tail(spectrum, 14, 60);
        assert!(mean <= bound, "{name}: {mean}, at most {bound}");
    }
}

/// With two power iterations the error is within 5 % of the best, for all seeds and laws, in both precisions; vectors are
/// orthonormal to 1e-10 and 1e-5, and the reported error is the measured one.
#[test]
fn truncated_decompositions_are_near_the_best() {
    fn check<T: Scalar>(orthonormal: f64, floor: f64) {
        for (name, spectrum) in SPECTRA {
            let a: Matrix<T> = with_spectrum(70, 50, spectrum, 3);
            let best = tail(spectrum, 12, 50);
            for distribution in [Distribution::Gaussian, Distribution::Sign, Distribution::Uniform] {
                for seed in 0..16 {
                    let options = RsvdOptions { seed, distribution, ..RsvdOptions::default() };
                    let found = rsvd(&a, 12, &options).unwrap();
                    let error = distance(&a, &rebuilt(&found));
                    assert!(error <= 1.05 * best + floor, "{name} seed {seed}: {error}, at best {best}");
                    let off = (found.tail - error * error).abs();
                    assert!(off <= 64.0 * T::EPSILON * a.squared_norm(), "{name}: off by {off}");
                    assert!(orthonormality(&found.left) < orthonormal);
                    assert!(orthonormality(&found.right) < orthonormal);
                }
            }
        }
    }
    check::<f64>(1e-10, 1e-13);
    check::<f32>(1e-5, 1e-5);
}

#[test]
fn any_law_finds_the_range_of_a_matrix_of_low_rank() {
    let (left, right): (Matrix, Matrix) = (gaussian(64, 6, 0), gaussian(6, 40, 1));
    let a = left.product(&right).unwrap();
    for (name, sketch) in crate::sketches::all(3, 3).into_iter().filter(|(name, _)| !name.contains("rows")) {
        let found = range_finder(&a, &sketch, 0).unwrap();
        let basis = Matrix::from_fn(64, 12, |i, j| found.basis.at(i, j));
        assert!(distance(&a, &projected(&a, &basis)) < 1e-10 * norm(&a), "{name}");
        assert!(orthonormality(&basis) < 1e-10);
        assert_eq!(found.leave_one_out, None, "{name}: images of rank 6 are dependent");
    }
}

/// The square of the leave-one-out estimate is unbiased for a basis with one vector less: over 256 seeds its mean is
/// within 4 standard errors of the mean of the true one.
#[test]
fn leave_one_out_errors_are_unbiased() {
    const SEEDS: u64 = 256;
    for (name, spectrum) in &SPECTRA[..2] {
        let a: Matrix = with_spectrum(40, 50, spectrum, 5);
        for scaled in [true, false] {
            let samples = (0..SEEDS).map(|seed| {
                let sketch = Sketch::new(Law::Dense(Distribution::Gaussian), 12, 50, seed, 0).unwrap();
                let sketch = if scaled { sketch } else { sketch.unscaled() };
                let estimate = range_finder(&a, &sketch, 0).unwrap().leave_one_out.unwrap();
                let fewer = range_finder(&a, &sketch.window(0..11, 0..50).unwrap(), 0).unwrap().basis;
                estimate.powi(2) - distance(&a, &projected(&a, &fewer)).powi(2)
            });
            let samples: Vec<f64> = samples.collect();
            let n = SEEDS as f64;
            let mean = samples.iter().sum::<f64>() / n;
            let error = (samples.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (n * (n - 1.0))).sqrt();
            assert!(mean.abs() <= 4.0 * error, "{name}: off by {mean} ± {error}");
        }
    }
}

/// The bound of the spectral norm fails with a probability of at most `10^-vectors`.
#[test]
fn spectral_bounds_fail_as_seldom_as_they_say() {
    let a: Matrix = with_spectrum(50, 40, |i| 0.9f64.powi(i as i32), 2);
    let found = rsvd(&a, 8, &RsvdOptions::default()).unwrap();
    let right = Matrix::from_fn(8, 40, |i, j| found.singular_values[i] * found.right.at(j, i));
    let residual = Residual::new(&a, &found.left, &right).unwrap();
    let exact = spectral_norm(&difference(&a, &found.left.product(&right).unwrap()));
    for (vectors, most) in [(1, 40), (2, 8), (6, 0)] {
        let bounds = (0..400).map(|seed| spectral_norm_bound(&residual, vectors, seed, 0).unwrap());
        let bounds: Vec<f64> = bounds.collect();
        assert!(bounds.iter().filter(|b| **b < exact).count() <= most);
        // It is not vacuous: the largest of a few norms of Gaussian images, ten times.
        assert!(bounds.iter().all(|b| *b < 60.0 * exact));
    }
}

/// A basis grows until the error is what was asked for and not far beyond: the rank is at most that of the best
/// approximation and a block more.
#[test]
fn tolerances_are_met() {
    fn check<T: Scalar>(tolerances: &[f64]) {
        for (name, spectrum) in SPECTRA {
            let a: Matrix<T> = with_spectrum(90, 70, spectrum, 7);
            let whole = norm(&a);
            for &tolerance in tolerances {
                let options = QbOptions { tolerance, block: 8, power_iterations: 2, ..QbOptions::default() };
                let found = qb(&a, &options).unwrap();
                let error = distance(&a, &found.basis.product(&found.coefficients).unwrap()) / whole;
                assert!(found.converged && error <= 1.001 * tolerance, "{name} {tolerance}: {error}");
                let reported = (found.squared_error).sqrt() / whole;
                assert!((reported - error).abs() <= 0.02 * error + T::EPSILON, "{name}: {reported}, {error}");
                let best = (1..70).find(|&k| tail(spectrum, k, 70) <= tolerance * whole).unwrap_or(70);
                let rank = found.basis.columns();
                assert!(rank <= best + 8, "{name} {tolerance}: rank {rank}, at best {best}");
                assert!(orthonormality(&found.basis) < 1e3 * T::EPSILON);
                let svd = rsvd_to_tolerance(&a, &options).unwrap();
                assert_eq!(svd.rank(), rank);
                assert!(distance(&a, &rebuilt(&svd)) <= 1.001 * tolerance * whole + 1e2 * T::EPSILON * whole);
            }
        }
    }
    check::<f64>(&[0.3, 1e-2, 2e-3, 1e-6, 1e-11]);
    check::<f32>(&[0.3, 1e-2, 2e-3, 1e-5]);
}

#[test]
fn smaller_tolerances_go_on_from_greater_ones() {
    let a: Matrix = with_spectrum(60, 60, |i| 0.8f64.powi(i as i32), 9);
    let of = |tolerance| qb(&a, &QbOptions { tolerance, block: 4, ..QbOptions::default() }).unwrap();
    let (coarse, fine) = (of(1e-1), of(1e-4));
    let rank = coarse.basis.columns();
    assert!(rank < fine.basis.columns());
    assert_eq!(Matrix::from_fn(60, rank, |i, j| fine.basis.at(i, j)), coarse.basis);
    let zero = Matrix::from_fn(5, 4, |_, _| 0.0);
    assert_eq!(qb(&zero, &QbOptions::default()).unwrap().basis.columns(), 0);
    assert_eq!(rsvd_to_tolerance(&zero, &QbOptions::default()).unwrap().rank(), 0);
    let capped = qb(&a, &QbOptions { tolerance: 0.0, max_rank: Some(5), ..QbOptions::default() }).unwrap();
    assert_eq!((capped.basis.columns(), capped.converged), (5, false));
    let all = qb(&a, &QbOptions { tolerance: 0.0, block: 7, ..QbOptions::default() }).unwrap();
    assert_eq!(all.basis.columns(), 60);
    assert!(orthonormality(&all.basis) < 1e-10);
}

/// Small singular values of tall matrices are those of the matrix in single precision, too: to a few `ε` of the greatest,
/// not to the `16 m ε` to which an ordinary decomposition looks at columns.
#[test]
fn tall_matrices_keep_their_small_singular_values() {
    let spectrum = |i: usize| 0.6f64.powi(i as i32);
    let a: Matrix<f32> = with_spectrum(3000, 24, spectrum, 6);
    let found = margay_randnla::svd(&a).unwrap();
    let sketched = rsvd(&a, 16, &RsvdOptions::default()).unwrap();
    for i in 0..16 {
        let exact = spectrum(i);
        for (what, svd) in [("svd", &found), ("rsvd", &sketched)] {
            let off = (svd.singular_values[i] - exact).abs();
            assert!(off < 2e-6 + 1e-4 * exact, "{what} {i}: off by {off} of {exact}");
        }
    }
    assert!(distance(&a, &rebuilt(&found)) < 5e-6 && orthonormality(&found.left) < 1e-4);
    assert!(distance(&a, &rebuilt(&sketched)) < 1.1 * tail(spectrum, 16, 24) + 5e-6);
}

#[test]
fn sparse_matrices_give_what_dense_ones_do() {
    let mut triples = Vec::new();
    let values: Matrix = gaussian(50, 40, 2);
    for i in 0..50usize {
        (0..40).filter(|j| (i * 3 + j).is_multiple_of(5)).for_each(|j| triples.push((i, j, values.at(i, j))));
    }
    let sparse = Sparse::from_coo(50, 40, &triples).unwrap();
    let dense = MatrixRef::from(&sparse).to_dense();
    let close = |a: &Matrix, b: &Matrix| assert!(distance(a, b) < 1e-9 * norm(b));
    let options = RsvdOptions { oversampling: 30, ..RsvdOptions::default() };
    let (a, b) = (rsvd(&sparse, 10, &options).unwrap(), rsvd(&dense, 10, &options).unwrap());
    close(&rebuilt(&a), &rebuilt(&b));
    let options = QbOptions { tolerance: 0.5, ..QbOptions::default() };
    let (a, b) = (qb(&sparse, &options).unwrap(), qb(&dense, &options).unwrap());
    close(&a.basis.product(&a.coefficients).unwrap(), &b.basis.product(&b.coefficients).unwrap());
    let options = AbrikOptions { block: 4, blocks: 4, seed: 0, stream: 0 };
    let (a, b) = (abrik(&sparse, 8, 0.0, &options).unwrap(), abrik(&dense, 8, 0.0, &options).unwrap());
    close(&rebuilt(&a), &rebuilt(&b));
}

/// At the same number of products with the matrix a Krylov space is closer than power iterations, where singular values
/// fall slowly: for 16 of 16 seeds, on average with at most 0.9 of what is lost beyond the best approximation.
#[test]
fn krylov_spaces_beat_power_iterations_where_values_fall_slowly() {
    let spectrum = |i: usize| 1.0 / (1.0 + i as f64).sqrt();
    let a: Matrix = with_spectrum(120, 100, spectrum, 4);
    let best = tail(spectrum, 10, 100);
    let mut shares = 0.0;
    for seed in 0..16 {
        // Two power iterations take 3 products with `A` and 3 with its transpose, of 10 columns each.
        let options = RsvdOptions { oversampling: 0, power_iterations: 2, seed, ..RsvdOptions::default() };
        let power = distance(&a, &rebuilt(&rsvd(&a, 10, &options).unwrap()));
        let options = AbrikOptions { block: 10, blocks: 3, seed, stream: 0 };
        let found = abrik(&a, 10, 0.0, &options).unwrap();
        let krylov = distance(&a, &rebuilt(&found));
        assert!(krylov < power, "seed {seed}: {krylov} and {power}");
        assert!((found.tail.sqrt() - krylov).abs() < 1e-9);
        assert!(orthonormality(&found.left) < 1e-10 && orthonormality(&found.right) < 1e-10);
        shares += (krylov - best) / (power - best) / 16.0;
    }
    assert!(shares < 0.9, "{shares}");
}

#[test]
fn krylov_spaces_meet_tolerances() {
    fn check<T: Scalar>(tolerance: f64) {
        let a: Matrix<T> = with_spectrum(80, 60, |i| 0.7f64.powi(i as i32), 4);
        let options = AbrikOptions { block: 3, blocks: 40, seed: 1, stream: 0 };
        let found = abrik(&a, 60, tolerance, &options).unwrap();
        assert!(found.rank() < 60);
        let error = distance(&a, &rebuilt(&found));
        assert!(error <= tolerance * norm(&a), "{error}");
        assert!((found.tail.sqrt() - error).abs() <= 0.02 * error);
        assert!(orthonormality(&found.left) < 1e3 * T::EPSILON);
    }
    check::<f64>(1e-6);
    check::<f32>(1e-3);
    // A space that is complete.
    let a: Matrix = with_spectrum(9, 14, |_| 1.0, 4);
    let options = AbrikOptions { block: 4, blocks: 40, seed: 1, stream: 0 };
    let found = abrik(&a, 9, 0.0, &options).unwrap();
    assert!(distance(&a, &rebuilt(&found)) < 1e-12 * norm(&a) && found.tail < 1e-20);
}

#[test]
fn wrong_input_is_named() {
    let a: Matrix = gaussian(6, 5, 0);
    let sketch = |rows, columns| Sketch::new(Law::Rows(Draw::UNIFORM), rows, columns, 0, 0).unwrap();
    let message = range_finder(&a, &sketch(3, 6), 0).unwrap_err().to_string();
    assert_eq!(message, "the sketch has the wrong shape: expected 3 x 5, found 3 x 6");
    assert!(range_finder(&a, &sketch(6, 5), 0).unwrap_err().to_string().contains("expected 1 to 5, found 6"));
    let of = |options: QbOptions| qb(&a, &options).unwrap_err().to_string();
    assert!(of(QbOptions { tolerance: f64::NAN, ..QbOptions::default() }).contains("`tolerance`"));
    assert!(of(QbOptions { block: 0, ..QbOptions::default() }).contains("`block`"));
    assert!(of(QbOptions { max_rank: Some(6), ..QbOptions::default() }).contains("1 to 5"));
    let options = AbrikOptions { block: 0, blocks: 1, seed: 0, stream: 0 };
    assert!(abrik(&a, 2, 0.0, &options).unwrap_err().to_string().contains("`block`"));
    assert!(Residual::new(&a, &a, &a).is_err());
    assert!(spectral_norm_bound(&a, 0, 0, 0).is_err());
    let nan: Matrix<f32> = convert(&Matrix::from_fn(2, 2, |i, _| if i == 1 { f64::NAN } else { 1.0 }));
    assert!(rsvd(&nan, 1, &RsvdOptions::default()).unwrap_err().to_string().contains("row 1, column 0"));
    let sparse = Sparse::from_coo(2, 2, &[(1, 0, f64::INFINITY)]).unwrap();
    assert!(qb(&sparse, &QbOptions::default()).unwrap_err().to_string().contains("found inf"));
}
