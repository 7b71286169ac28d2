//! Sketched weights with random signs (Kasiviswanathan, Narodytska and Jin, arXiv 1711.07553; Panther, arXiv
//! 2601.15473).
//!
//! A weight `W [d_in, d_out]` becomes `S₁ U₁ + U₂ S₂` with `L` terms of rank `k` side by side: `S₁ [d_in, Lk]` and
//! `S₂ [Lk, d_out]` are to be trained, `U₁ [Lk, d_out]` and `U₂ [d_in, Lk]` are random signs that stay. The papers draw
//! signs of size `1/√k` and divide the sum by `2L`; here the division is part of the signs, whose size is
//! [`sign_size`], so that nothing is left to divide. `S₁` and `S₂` are those of the papers.
//!
//! - [`unbiased`]: `S₁ = W U₁ᵀ` and `S₂ = U₂ᵀ W` with the papers' signs. The expectation of the weight over the signs is
//!   `W`, and of its squared error `‖W‖² (d_in + d_out - 2) / (4 L k)`: at least `‖W‖²` twice wherever a square
//!   weight takes fewer numbers. A start for training, no approximation.
//! - [`least_squares`]: the best `S₁` and `S₂` for these signs. With the projections `P₁` on the rows of `U₁` and `P₂`
//!   on the columns of `U₂`, the weight is `W - (I - P₂) W (I - P₁)`.
//!
//! The same with `U₁` alone, as Panther has it for the output channels of convolutions: [`unbiased_outputs`] and
//! [`least_squares_outputs`], with `2L` terms.

use crate::matrix::{check_factorable, check_shape};
use crate::{Matrix, RandnlaError, dense};

/// Eigenvalues of `U Uᵀ` below this share of the greatest count as 0: random signs of few columns may repeat.
const SMALLEST_EIGENVALUE: f64 = 1e-10;

/// The size of the signs: `1 / (2 L √k)` for `L` terms of rank `k`.
pub fn sign_size(terms: usize, rank: usize) -> f64 {
    1.0 / (2.0 * terms as f64 * (rank as f64).sqrt())
}

/// Both trained factors of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct SignFactors {
    /// `S₁ [d_in, Lk]`.
    pub left: Matrix,
    /// `S₂ [Lk, d_out]`.
    pub right: Matrix,
}

/// The factors with which the expectation over the signs is the weight. `outputs` is `U₁`, `inputs` is `U₂`.
///
/// # Errors
/// [`RandnlaError::Shape`], and [`RandnlaError::NonFinite`] for a weight that has numbers that are not finite.
pub fn unbiased(
    weight: &Matrix,
    outputs: &Matrix,
    inputs: &Matrix,
    terms: usize,
) -> Result<SignFactors, RandnlaError> {
    check(weight, outputs, Some(inputs))?;
    let undo = 2.0 * terms as f64;
    let left = scaled(&weight.product(&outputs.transposed())?, undo);
    let right = scaled(&inputs.transposed().product(weight)?, undo);
    Ok(SignFactors { left, right })
}

/// The factors with the least error of the weight for these signs. `outputs` is `U₁`, `inputs` is `U₂`.
///
/// # Errors
/// As [`unbiased`].
pub fn least_squares(
    weight: &Matrix,
    outputs: &Matrix,
    inputs: &Matrix,
) -> Result<SignFactors, RandnlaError> {
    check(weight, outputs, Some(inputs))?;
    let right = solve(&inputs.transposed(), weight)?;
    let covered = inputs.product(&right)?;
    let rest = Matrix::from_fn(weight.rows(), weight.columns(), |i, j| weight.at(i, j) - covered.at(i, j));
    Ok(SignFactors { left: solve(outputs, &rest.transposed())?.transposed(), right })
}

/// `S [d_in, 2Lk]` with which the expectation of `S U` over the signs `U [2Lk, d_out]` is the weight.
///
/// # Errors
/// As [`unbiased`].
pub fn unbiased_outputs(weight: &Matrix, signs: &Matrix, terms: usize) -> Result<Matrix, RandnlaError> {
    check(weight, signs, None)?;
    Ok(scaled(&weight.product(&signs.transposed())?, 2.0 * terms as f64))
}

/// `S [d_in, 2Lk]` with the least error of `S U`.
///
/// # Errors
/// As [`unbiased`].
pub fn least_squares_outputs(weight: &Matrix, signs: &Matrix) -> Result<Matrix, RandnlaError> {
    check(weight, signs, None)?;
    Ok(solve(signs, &weight.transposed())?.transposed())
}

fn check(weight: &Matrix, outputs: &Matrix, inputs: Option<&Matrix>) -> Result<(), RandnlaError> {
    check_factorable("the weight", weight)?;
    check_shape("the sign matrix of the outputs", (outputs.rows(), weight.columns()), outputs)?;
    inputs.map_or(Ok(()), |u| check_shape("the sign matrix of the inputs", (weight.rows(), u.columns()), u))
}

fn scaled(m: &Matrix, by: f64) -> Matrix {
    Matrix::from_fn(m.rows(), m.columns(), |i, j| m.at(i, j) * by)
}

/// `X [w, n]` with the least error of `uᵀ X = target` for `u [w, d]` and `target [d, n]`; the smallest such.
fn solve(u: &Matrix, target: &Matrix) -> Result<Matrix, RandnlaError> {
    let gram = u.product(&u.transposed())?;
    let (values, vectors) = dense::symmetric_eigen(gram.as_ref())?;
    let smallest = SMALLEST_EIGENVALUE * values.last().copied().unwrap_or(0.0);
    let inverse = |v: f64| if v > smallest { 1.0 / v } else { 0.0 };
    let vectors = Matrix::new(vectors);
    let along = vectors.transposed().product(&u.product(target)?)?;
    let shrunk = Matrix::from_fn(along.rows(), along.columns(), |i, j| along.at(i, j) * inverse(values[i]));
    vectors.product(&shrunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Distribution, random_matrix};

    const D_IN: usize = 24;
    const D_OUT: usize = 20;

    fn weight() -> Matrix {
        random_matrix(Distribution::Gaussian, D_IN, D_OUT, 3, 0)
    }

    fn signs(rows: usize, columns: usize, size: f64, seed: u64, stream: u64) -> Matrix {
        scaled(&random_matrix(Distribution::Sign, rows, columns, seed, stream), size)
    }

    fn two_sided(terms: usize, rank: usize, seed: u64) -> (Matrix, Matrix) {
        let (size, width) = (sign_size(terms, rank), terms * rank);
        (signs(width, D_OUT, size, seed, 0), signs(D_IN, width, size, seed, 1))
    }

    fn effective(f: &SignFactors, outputs: &Matrix, inputs: &Matrix) -> Matrix {
        let (a, b) = (f.left.product(outputs).unwrap(), inputs.product(&f.right).unwrap());
        Matrix::from_fn(D_IN, D_OUT, |i, j| a.at(i, j) + b.at(i, j))
    }

    fn squared_error(a: &Matrix, b: &Matrix) -> f64 {
        Matrix::from_fn(a.rows(), a.columns(), |i, j| a.at(i, j) - b.at(i, j)).squared_norm()
    }

    /// `(1/2L) Σ (W U₁ᵀ U₁ + U₂ U₂ᵀ W)` with signs of size `1/√k`, term by term.
    #[test]
    fn the_copy_is_the_formula_of_the_paper() {
        let (terms, rank, w) = (3, 4, weight());
        let (u1, u2) = two_sided(terms, rank, 7);
        let found = effective(&unbiased(&w, &u1, &u2, terms).unwrap(), &u1, &u2);
        let undo = 2.0 * terms as f64;
        let mut expected = vec![0.0; D_IN * D_OUT];
        for l in 0..terms {
            let p1 = Matrix::from_fn(rank, D_OUT, |a, j| undo * u1.at(l * rank + a, j));
            let p2 = Matrix::from_fn(D_IN, rank, |i, a| undo * u2.at(i, l * rank + a));
            assert!((p1.at(0, 0).abs() - 1.0 / (rank as f64).sqrt()).abs() < 1e-12);
            let one = w.product(&p1.transposed()).unwrap().product(&p1).unwrap();
            let two = p2.product(&p2.transposed()).unwrap().product(&w).unwrap();
            for (e, (i, j)) in expected.iter_mut().zip((0..D_IN * D_OUT).map(|n| (n / D_OUT, n % D_OUT))) {
                *e += (one.at(i, j) + two.at(i, j)) / undo;
            }
        }
        let expected = Matrix::from_row_major_f64(D_IN, D_OUT, &expected).unwrap();
        assert!(squared_error(&found, &expected) < 1e-20 * expected.squared_norm());
    }

    /// Over 64 seeds every entry of the mean is within 4 standard errors of the weight, and the mean squared error
    /// within 10% of its law.
    #[test]
    fn the_copy_is_unbiased_with_the_stated_error() {
        const SEEDS: u64 = 64;
        let w = weight();
        for (terms, rank) in [(1, 2), (2, 3), (3, 4)] {
            let (mut sum, mut squares) = (vec![0.0; D_IN * D_OUT], vec![0.0; D_IN * D_OUT]);
            let mut error = 0.0;
            for seed in 0..SEEDS {
                let (u1, u2) = two_sided(terms, rank, seed);
                let found = effective(&unbiased(&w, &u1, &u2, terms).unwrap(), &u1, &u2);
                error += squared_error(&found, &w) / SEEDS as f64;
                for (n, v) in found.to_row_major_f64().into_iter().enumerate() {
                    (sum[n], squares[n]) = (sum[n] + v, squares[n] + v * v);
                }
            }
            let count = SEEDS as f64;
            for (n, expected) in w.to_row_major_f64().into_iter().enumerate() {
                let mean = sum[n] / count;
                let deviation = ((squares[n] / count - mean * mean).max(0.0) * count / (count - 1.0)).sqrt();
                let bound = 4.0 * deviation / count.sqrt();
                assert!((mean - expected).abs() <= bound, "entry {n}: {mean}, expected {expected} ± {bound}");
            }
            let law = w.squared_norm() * (D_IN + D_OUT - 2) as f64 / (4 * terms * rank) as f64;
            assert!((error / law - 1.0).abs() < 0.1, "L {terms}, k {rank}: {error}, by the law {law}");
        }
    }

    /// The mean squared error of the best factors is that of two random projections, and each one is
    /// `W - (I - P₂) W (I - P₁)`.
    #[test]
    fn least_squares_leave_what_both_projections_miss() {
        const SEEDS: u64 = 64;
        let w = weight();
        let (terms, rank) = (2, 4);
        let share = |d: usize| 1.0 - (terms * rank) as f64 / d as f64;
        let law = w.squared_norm() * share(D_IN) * share(D_OUT);
        let mut error = 0.0;
        for seed in 0..SEEDS {
            let (u1, u2) = two_sided(terms, rank, seed);
            let found = effective(&least_squares(&w, &u1, &u2).unwrap(), &u1, &u2);
            error += squared_error(&found, &w) / SEEDS as f64;
            let basis = |m: Matrix| Matrix::new(dense::orthonormal_basis(m.as_ref().to_owned()));
            let (q1, q2) = (basis(u1.transposed()), basis(u2));
            let off = |m: &Matrix, q: &Matrix| {
                let covered = q.product(&q.transposed().product(m).unwrap()).unwrap();
                Matrix::from_fn(m.rows(), m.columns(), |i, j| m.at(i, j) - covered.at(i, j))
            };
            let missed = off(&off(&w, &q2).transposed(), &q1).transposed();
            let expected = Matrix::from_fn(D_IN, D_OUT, |i, j| w.at(i, j) - missed.at(i, j));
            assert!(squared_error(&found, &expected) < 1e-18 * w.squared_norm());
        }
        assert!((error / law - 1.0).abs() < 0.05, "{error}, by the law {law}");
    }

    #[test]
    fn one_side_follows_its_own_laws() {
        const SEEDS: u64 = 64;
        let (w, terms, rank) = (weight(), 1, 4);
        let width = 2 * terms * rank;
        let (mut copied, mut best) = (0.0, 0.0);
        for seed in 0..SEEDS {
            let u = signs(width, D_OUT, sign_size(terms, rank), seed, 0);
            let error = |s: Matrix| squared_error(&s.product(&u).unwrap(), &w) / SEEDS as f64;
            copied += error(unbiased_outputs(&w, &u, terms).unwrap());
            best += error(least_squares_outputs(&w, &u).unwrap());
        }
        let law = w.squared_norm() * (D_OUT - 1) as f64 / width as f64;
        assert!((copied / law - 1.0).abs() < 0.1, "{copied}, by the law {law}");
        let law = w.squared_norm() * (1.0 - width as f64 / D_OUT as f64);
        assert!((best / law - 1.0).abs() < 0.05, "{best}, by the law {law}");
    }

    #[test]
    fn repeated_signs_do_no_harm() {
        let w = weight();
        let u1 = Matrix::from_fn(2, D_OUT, |_, j| if j % 2 == 0 { 0.5 } else { -0.5 });
        let u2 = Matrix::from_fn(D_IN, 2, |i, _| if i % 3 == 0 { 0.5 } else { -0.5 });
        let f = least_squares(&w, &u1, &u2).unwrap();
        assert!(squared_error(&effective(&f, &u1, &u2), &w) < w.squared_norm());
        let wrong = Matrix::from_fn(2, 3, |_, _| 1.0);
        assert_eq!(
            unbiased(&w, &wrong, &u2, 1).unwrap_err().to_string(),
            "the sign matrix of the outputs has the wrong shape: expected 2 x 20, found 2 x 3"
        );
    }
}
