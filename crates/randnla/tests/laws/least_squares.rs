//! Least squares and saddle points, preconditioned by a sketch.

use margay_randnla::{
    LeastSquares, LeastSquaresOptions, Matrix, Scalar, Sparse, least_squares, saddle_point,
};

use crate::spectra::{distance, gaussian, norm, product, spectral_norm, with_spectrum};

fn conditioned<T: Scalar>(m: usize, n: usize, condition: f64) -> Matrix<T> {
    with_spectrum(m, n, |i| condition.powf(-(i as f64) / (n - 1) as f64), 21)
}

/// A right side with a part outside of the range.
fn right_side(a: &Matrix, noise: f64) -> (Matrix, Matrix) {
    let x: Matrix = gaussian(a.columns(), 1, 22);
    let e: Matrix = gaussian(a.rows(), 1, 23);
    let image = a.product(&x).unwrap();
    let scale = noise * norm(&image) / norm(&e);
    let b = Matrix::from_fn(a.rows(), 1, |i, _| image.at(i, 0) + scale * e.at(i, 0));
    (x, b)
}

/// In at most 50 steps, whatever the condition, the gradient falls to `1e-12 ‖A‖ ‖r‖`, or to what a relative change of a few
/// `ε` in `A` and `b` makes of it; and the residual of a system that has a solution to `1e-12 ‖b‖`.
#[test]
fn gradients_vanish_at_every_condition() {
    for condition in [1.0 + 1e-9, 1e4, 1e8, 1e12] {
        let a: Matrix = conditioned(600, 40, condition);
        for noise in [0.0, 1e-6, 0.5] {
            let (_, b) = right_side(&a, noise);
            for seed in 0..4 {
                let options = LeastSquaresOptions { seed, max_iterations: 50, ..Default::default() };
                let found = least_squares(&a, &b, &options).unwrap();
                assert!(found.iterations <= 50);
                let gradient = norm(&product(&[&a.transposed(), &found.residual])) / spectral_norm(&a);
                let backward = 8.0 * f64::EPSILON * (norm(&b) + spectral_norm(&a) * norm(&found.x));
                let most = 1e-12 * norm(&found.residual) + backward;
                assert!(gradient <= most, "condition {condition}, noise {noise}: {gradient}, at most {most}");
                if noise == 0.0 {
                    let rest = norm(&found.residual) / norm(&b);
                    assert!(rest <= 1e-12, "condition {condition}: residual {rest}");
                }
                let image = a.product(&found.x).unwrap();
                let r = Matrix::from_fn(600, 1, |i, _| b.at(i, 0) - image.at(i, 0));
                assert!(distance(&r, &found.residual) <= backward);
            }
        }
    }
}

/// Solutions are as near as those of a backward stable method: within a small multiple of `ε κ` for a small residual.
#[test]
fn solutions_are_forward_stable() {
    for condition in [1e2, 1e6, 1e10] {
        let a: Matrix = conditioned(500, 30, condition);
        let (x, b) = right_side(&a, 0.0);
        let found = least_squares(&a, &b, &LeastSquaresOptions::default()).unwrap();
        let off = distance(&found.x, &x) / norm(&x);
        assert!(off <= 1e2 * f64::EPSILON * condition + 1e-13, "condition {condition}: {off}");
    }
}

/// More rows of the sketch make fewer steps: the error falls by about the root of their number for each column.
#[test]
fn steps_fall_with_the_size_of_the_sketch() {
    let a: Matrix = conditioned(3000, 25, 1e6);
    let (_, b) = right_side(&a, 0.1);
    let steps = |rows_per_column| {
        let options = LeastSquaresOptions { rows_per_column, tolerance: 1e-10, ..Default::default() };
        least_squares(&a, &b, &options).unwrap().iterations
    };
    let counts = [2.0, 4.0, 16.0].map(steps);
    assert!(counts[0] > counts[1] && counts[1] > counts[2], "{counts:?}");
    // ln(1e10) / ln(√γ) with a few more.
    assert!(counts[1] <= 45 && counts[2] <= 25, "{counts:?}");
}

#[test]
fn single_precision_meets_its_own_rounding() {
    let exact: Matrix = conditioned(400, 20, 1e3);
    let (_, b) = right_side(&exact, 0.3);
    let a: Matrix<f32> = crate::spectra::convert(&exact);
    let found = least_squares(&a, &crate::spectra::convert(&b), &Default::default()).unwrap();
    assert!(found.gradient <= 20.0 * f64::from(f32::EPSILON), "{}", found.gradient);
    let best = least_squares(&exact, &b, &Default::default()).unwrap();
    let (r, s) = (norm(&found.residual), norm(&best.residual));
    assert!((r / s - 1.0).abs() < 1e-5, "{r} and {s}");
}

#[test]
fn ridges_are_those_of_the_normal_equations() {
    let a: Matrix = conditioned(200, 12, 1e3);
    let (_, b) = right_side(&a, 0.5);
    for ridge in [1e-6, 1e-2, 10.0] {
        let found = least_squares(&a, &b, &LeastSquaresOptions { ridge, ..Default::default() }).unwrap();
        let gradient = product(&[&a.transposed(), &found.residual]);
        let scaled = Matrix::from_fn(12, 1, |i, _| ridge * found.x.at(i, 0));
        assert!(distance(&gradient, &scaled) <= 1e-12 * norm(&b), "{ridge}");
    }
}

/// `[I A; Aᵀ -μ I] [y; x] = [b; c]`, and with `b = 0` the shortest solution of an underdetermined system.
#[test]
fn saddle_points_solve_both_equations() {
    let a: Matrix = conditioned(300, 20, 1e5);
    let (_, b) = right_side(&a, 0.5);
    let c: Matrix = gaussian(20, 1, 24);
    for ridge in [0.0, 0.1] {
        let options = LeastSquaresOptions { ridge, ..Default::default() };
        let LeastSquares { x, residual: y, gradient, .. } = saddle_point(&a, &b, &c, &options).unwrap();
        let image = product(&[&a, &x]);
        let first = Matrix::from_fn(300, 1, |i, _| y.at(i, 0) + image.at(i, 0) - b.at(i, 0));
        // Entries of the image may be large, and cancel.
        assert!(norm(&first) <= 1e-13 * (norm(&image) + norm(&b)));
        let back = product(&[&a.transposed(), &y]);
        let second = Matrix::from_fn(20, 1, |i, _| back.at(i, 0) - ridge * x.at(i, 0) - c.at(i, 0));
        let scale = norm(&y) + norm(&c);
        assert!(norm(&second) <= 1e-10 * scale, "{ridge}: {} of {scale}", norm(&second));
        assert!(gradient <= 1e-10);
    }
    let a: Matrix = conditioned(300, 20, 1e2);
    let zero = Matrix::from_fn(300, 1, |_, _| 0.0);
    let y = saddle_point(&a, &zero, &c, &Default::default()).unwrap().residual;
    assert!(distance(&product(&[&a.transposed(), &y]), &c) < 1e-11 * norm(&c));
    // The shortest solution lies in the range of `A`.
    let off = least_squares(&a, &y, &Default::default()).unwrap().residual;
    assert!(norm(&off) < 1e-11 * norm(&y));
}

#[test]
fn sparse_and_deficient_matrices_are_solved() {
    let values: Matrix = gaussian(400, 10, 2);
    let triples: Vec<(usize, usize, f64)> = (0..400usize)
        .flat_map(|i| (0..10).map(move |j| (i, j)))
        .filter(|(i, j)| (i + 3 * j).is_multiple_of(4))
        .map(|(i, j)| (i, j, values.at(i, j)))
        .collect();
    let sparse = Sparse::from_coo(400, 10, &triples).unwrap();
    let dense = margay_randnla::MatrixRef::from(&sparse).to_dense();
    let b: Matrix = gaussian(400, 1, 3);
    let (x, y) = (
        least_squares(&sparse, &b, &Default::default()).unwrap(),
        least_squares(&dense, &b, &Default::default()).unwrap(),
    );
    assert!(distance(&x.x, &y.x) < 1e-10 * norm(&x.x));
    let twice = Matrix::from_fn(400, 20, |i, j| dense.at(i, j % 10));
    let found = least_squares(&twice, &b, &Default::default()).unwrap();
    assert!(distance(&found.residual, &x.residual) < 1e-10 * norm(&b));
    let zero = Matrix::from_fn(5, 2, |_, _| 0.0);
    let b: Matrix = gaussian(5, 1, 3);
    assert_eq!(least_squares(&zero, &b, &Default::default()).unwrap().x.squared_norm(), 0.0);
}

#[test]
fn wrong_input_is_named() {
    let a: Matrix = gaussian(5, 3, 0);
    let (b, short): (Matrix, Matrix) = (gaussian(5, 1, 1), gaussian(4, 1, 1));
    let message = |options| least_squares(&a, &b, &options).unwrap_err().to_string();
    assert!(message(LeastSquaresOptions { ridge: -1.0, ..Default::default() }).contains("`ridge`"));
    assert!(message(LeastSquaresOptions { rows_per_column: 1.0, ..Default::default() }).contains("above 1"));
    let found = least_squares(&a, &short, &Default::default()).unwrap_err().to_string();
    assert_eq!(found, "the right side has the wrong shape: expected 5 x 1, found 4 x 1");
    assert!(saddle_point(&a, &b, &short, &Default::default()).is_err());
    assert!(least_squares(a.transposed().as_faer(), &short, &Default::default()).is_err());
}
