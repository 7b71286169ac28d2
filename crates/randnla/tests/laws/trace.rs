//! Traces and log-determinants.

use faer::{Mat, MatRef};
use margay_randnla::{
    LanczosOptions, LinearOperator, Matrix, Scalar, hutch_plus_plus, lanczos_log_determinant, lanczos_trace,
};

use crate::spectra::{gaussian, positive};

/// Over 64 seeds the mean is within 4 standard errors of the trace, for a matrix that is not positive semidefinite, too.
#[test]
fn traces_are_unbiased() {
    let a: Matrix = positive(60, |i| 1.0 / (1.0 + i as f64), 1);
    let b: Matrix = gaussian(60, 60, 2);
    for m in [&a, &b] {
        let exact: f64 = (0..60).map(|i| m.at(i, i)).sum();
        let values: Vec<f64> = (0..64).map(|seed| hutch_plus_plus(m, 24, seed, 0).unwrap().value).collect();
        let mean = values.iter().sum::<f64>() / 64.0;
        let error = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (64.0 * 63.0)).sqrt();
        assert!((mean - exact).abs() <= 4.0 * error, "{mean} ± {error}, exactly {exact}");
    }
}

/// Within 1 % of the trace of a positive semidefinite matrix whose eigenvalues fall as `1 / i²` with 60 products, for all
/// of 64 seeds; the error falls faster than that of plain sampling, which would halve with four times the products.
#[test]
fn hutch_plus_plus_is_within_one_percent() {
    let a: Matrix = positive(200, |i| 1.0 / (1.0 + i as f64).powi(2), 3);
    let exact: f64 = (0..200).map(|i| a.at(i, i)).sum();
    let error = |products, seed| (hutch_plus_plus(&a, products, seed, 0).unwrap().value / exact - 1.0).abs();
    assert!((0..64).all(|seed| error(60, seed) <= 0.01));
    let mean = |products| (0..64).map(|seed| error(products, seed)).sum::<f64>() / 64.0;
    assert!(mean(96) < 0.25 * mean(24), "{} and {}", mean(96), mean(24));
}

#[test]
fn all_products_give_the_exact_trace() {
    fn check<T: Scalar>(bound: f64) {
        let a: Matrix<T> = gaussian(12, 12, 4);
        let exact: f64 = (0..12).map(|i| a.at(i, i).to_f64()).sum();
        let found = hutch_plus_plus(&a, 36, 0, 0).unwrap();
        assert!((found.value - exact).abs() < bound && found.standard_error == 0.0);
    }
    check::<f64>(1e-12);
    check::<f32>(1e-4);
}

/// An operator that is known by its products: the inverse of a diagonal.
struct Inverse(Vec<f64>);

impl LinearOperator for Inverse {
    type Scalar = f64;

    fn shape(&self) -> (usize, usize) {
        (self.0.len(), self.0.len())
    }

    fn apply(&self, x: MatRef<'_, f64>) -> Mat<f64> {
        Mat::from_fn(x.nrows(), x.ncols(), |i, j| x[(i, j)] / self.0[i])
    }

    fn apply_transposed(&self, x: MatRef<'_, f64>) -> Mat<f64> {
        self.apply(x)
    }
}

#[test]
fn operators_need_products_only() {
    let inverse = Inverse((1..=100).map(|i| f64::from(i).powi(2)).collect());
    let exact: f64 = inverse.0.iter().map(|d| 1.0 / d).sum();
    let found = hutch_plus_plus(&inverse, 60, 1, 0).unwrap();
    assert!((found.value / exact - 1.0).abs() < 0.01);
    let log: f64 = inverse.0.iter().map(|d| -d.ln()).sum();
    let found = lanczos_log_determinant(&inverse, &LanczosOptions::default()).unwrap();
    // Random signs give the trace of a function of a diagonal matrix exactly, up to the quadrature.
    assert!((found.value / log - 1.0).abs() < 0.01, "{} and {log}", found.value);
}

/// Log-determinants: within 4 standard errors of the exact one over 32 seeds, and within 20 % for each, from 16 vectors.
#[test]
fn log_determinants_are_those_of_the_eigenvalues() {
    fn check<T: Scalar>() {
        let eigenvalues = |i: usize| 1.0 + 50.0 * 0.9f64.powi(i as i32);
        let a: Matrix<T> = positive(100, eigenvalues, 5);
        let exact: f64 = (0..100).map(|i| eigenvalues(i).ln()).sum();
        let of = |seed| {
            let options = LanczosOptions { seed, samples: 16, steps: 24, ..LanczosOptions::default() };
            lanczos_log_determinant(&a, &options).unwrap()
        };
        let values: Vec<f64> = (0..32).map(|seed| of(seed).value).collect();
        assert!(values.iter().all(|v| (v / exact - 1.0).abs() < 0.2));
        let mean = values.iter().sum::<f64>() / 32.0;
        let error = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (32.0 * 31.0)).sqrt();
        assert!((mean - exact).abs() <= 4.0 * error + 1e-4 * exact, "{mean} ± {error}, exactly {exact}");
        // The standard error that a single estimate reports is that of the estimates, within a factor 2.
        let reported = (0..32).map(|seed| of(seed).standard_error).sum::<f64>() / 32.0;
        let spread = error * 32f64.sqrt();
        assert!((0.5..2.0).contains(&(reported / spread)), "{reported} and {spread}");
    }
    check::<f64>();
    check::<f32>();
}

/// The quadrature is exact for polynomials of degree `2 steps - 1`, for each vector.
#[test]
fn quadrature_is_exact_for_polynomials() {
    let a: Matrix = positive(40, |i| 1.0 + i as f64, 6);
    let mut power = a.clone();
    (0..4).for_each(|_| power = power.product(&a).unwrap());
    let options = |steps| LanczosOptions { samples: 3, steps, seed: 2, stream: 1 };
    let exact = lanczos_trace(&power, |v| v, &options(40)).unwrap().value;
    let found = lanczos_trace(&a, |v| v.powi(5), &options(3)).unwrap().value;
    assert!((found / exact - 1.0).abs() < 1e-9, "{found} and {exact}");
    let fewer = lanczos_trace(&a, |v| v.powi(5), &options(2)).unwrap().value;
    assert!((fewer / exact - 1.0).abs() > 1e-6);
    let identity: Matrix = positive(10, |_| 2.0, 0);
    let found = lanczos_log_determinant(&identity, &LanczosOptions::default()).unwrap();
    assert!((found.value - 10.0 * 2f64.ln()).abs() < 1e-10);
}

#[test]
fn wrong_input_is_named() {
    let a: Matrix = positive(10, |i| if i == 0 { -1.0 } else { 1.0 }, 7);
    let message = lanczos_log_determinant(&a, &LanczosOptions::default()).unwrap_err().to_string();
    assert!(message.contains("not positive semidefinite"), "{message}");
    let wide: Matrix = gaussian(3, 4, 0);
    assert!(hutch_plus_plus(&wide, 9, 0, 0).is_err());
    assert!(hutch_plus_plus(&a, 2, 0, 0).unwrap_err().to_string().contains("at least 3"));
    assert!(lanczos_trace(&a, |v| v, &LanczosOptions { steps: 0, ..LanczosOptions::default() }).is_err());
    let nan = Matrix::from_fn(3, 3, |_, _| f64::NAN);
    assert!(hutch_plus_plus(&nan, 3, 0, 0).unwrap_err().to_string().contains("not finite"));
}
