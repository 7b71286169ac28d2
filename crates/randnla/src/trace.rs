//! Traces of matrices that are known by their products, and of functions of them.
//!
//! The mean of `ωᵀ A ω` over random signs is the trace (Girard 1989; Hutchinson 1990), with an error that falls as
//! `1 / √m`. Hutch++ takes the trace of a low-rank part exactly and so needs `1 / ε` products in the place of `1 / ε²`
//! for a positive semidefinite matrix (Meyer, Musco, Musco and Woodruff, *Hutch++: optimal stochastic trace estimation*,
//! SOSA 2021). For functions, `ωᵀ f(A) ω` comes from the tridiagonal matrix of Lanczos's method (Ubaru, Chen and Saad,
//! *Fast estimation of tr(f(A)) via stochastic Lanczos quadrature*, SIMAX 2017).

use faer::Mat;

use crate::view::check_square;
use crate::{Distribution, Law, LinearOperator, MatrixRef, RandnlaError, Scalar, Sketch, dense};

/// An estimated number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean of the samples.
    pub value: f64,
    /// The standard error of the mean, estimated from the samples; infinite for a single one.
    pub standard_error: f64,
}

/// Their mean and its standard error, plus a number that is known.
fn estimate(known: f64, samples: &[f64]) -> Estimate {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squared: f64 = samples.iter().map(|s| (s - mean).powi(2)).sum();
    let standard_error = if samples.len() > 1 { (squared / (n * (n - 1.0))).sqrt() } else { f64::INFINITY };
    Estimate { value: known + mean, standard_error }
}

fn signs<T: Scalar>(count: usize, n: usize, seed: u64, stream: u64) -> Result<Mat<T>, RandnlaError> {
    let sketch = Sketch::new(Law::Dense(Distribution::Sign), count, n, seed, stream)?.unscaled();
    Ok(sketch.to_matrix::<T>().as_ref().transpose().to_owned())
}

/// `xⱼᵀ yⱼ` for every column.
fn inner<T: Scalar>(x: &Mat<T>, y: &Mat<T>) -> Vec<f64> {
    let of = |j: usize| (0..x.nrows()).map(|i| x[(i, j)].to_f64() * y[(i, j)].to_f64()).sum();
    (0..x.ncols()).map(of).collect()
}

/// The trace of a square operator by Hutch++, from `products` products with it.
///
/// A third of them finds a space, a third takes the trace there, and a third estimates the rest. The estimate is unbiased;
/// for a positive semidefinite matrix its relative error is of the order of `1 / products`.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::Shape`] unless the operator is square, [`RandnlaError::Parameter`] for fewer
/// than 3 products, and [`RandnlaError::NonFinite`] for products that are not finite.
pub fn hutch_plus_plus<O: LinearOperator>(
    a: &O,
    products: usize,
    seed: u64,
    stream: u64,
) -> Result<Estimate, RandnlaError> {
    let n = check_square("the operator", a)?;
    if products < 3 {
        let (expected, found) = ("at least 3", products as f64);
        return Err(RandnlaError::Parameter { name: "products", expected, found });
    }
    let size = (products / 3).min(n);
    let image = a.apply(signs::<O::Scalar>(size, n, seed, stream)?.as_ref());
    MatrixRef::from(&image).check("the product with the operator")?;
    let basis = dense::orthonormal_basis(image);
    let known = inner(&basis, &a.apply(basis.as_ref())).iter().sum();
    if size == n {
        return Ok(Estimate { value: known, standard_error: 0.0 });
    }
    let test = signs::<O::Scalar>(products - 2 * size, n, seed, stream.wrapping_add(1))?;
    let test = dense::project_out(test, basis.as_ref());
    let image = a.apply(test.as_ref());
    MatrixRef::from(&image).check("the product with the operator")?;
    Ok(estimate(known, &inner(&test, &image)))
}

/// How functions are integrated by Lanczos's method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LanczosOptions {
    /// Random vectors, at least 1.
    pub samples: usize,
    /// Steps for each of them, at least 1: the quadrature is exact for polynomials of degree `2 steps - 1`.
    pub steps: usize,
    /// Seed of the random stream.
    pub seed: u64,
    /// Number of the random stream.
    pub stream: u64,
}

impl Default for LanczosOptions {
    /// 32 vectors, 32 steps, seed 0, stream 0.
    fn default() -> LanczosOptions {
        LanczosOptions { samples: 32, steps: 32, seed: 0, stream: 0 }
    }
}

/// The logarithm of the determinant of a symmetric positive definite operator: the trace of its logarithm.
///
/// # Errors
/// Those of [`lanczos_trace`], and [`RandnlaError::Indefinite`] where an eigenvalue is found that is not positive.
pub fn lanczos_log_determinant<O: LinearOperator>(
    a: &O,
    options: &LanczosOptions,
) -> Result<Estimate, RandnlaError> {
    let mut least = f64::INFINITY;
    let found = lanczos_trace(
        a,
        |v| {
            least = least.min(v);
            v.max(f64::MIN_POSITIVE).ln()
        },
        options,
    )?;
    match least > 0.0 {
        true => Ok(found),
        false => Err(RandnlaError::Indefinite { found: least }),
    }
}

/// The trace of `f(A)` for a symmetric operator.
///
/// # Errors
/// [`RandnlaError::Empty`], [`RandnlaError::Shape`] unless the operator is square, [`RandnlaError::Parameter`] for 0
/// samples or steps, [`RandnlaError::NonFinite`] for products that are not finite, and [`RandnlaError::NoConvergence`].
pub fn lanczos_trace<O: LinearOperator>(
    a: &O,
    mut f: impl FnMut(f64) -> f64,
    options: &LanczosOptions,
) -> Result<Estimate, RandnlaError> {
    let n = check_square("the operator", a)?;
    for (name, value) in [("samples", options.samples), ("steps", options.steps)] {
        if value == 0 {
            return Err(RandnlaError::Parameter { name, expected: "at least 1", found: 0.0 });
        }
    }
    let test = signs::<O::Scalar>(options.samples, n, options.seed, options.stream)?;
    let mut samples = Vec::with_capacity(options.samples);
    for j in 0..options.samples {
        let start = test.as_ref().subcols(j, 1).to_owned();
        let (diagonal, beside) = tridiagonal(a, start, options.steps.min(n))?;
        let t = Mat::from_fn(diagonal.len(), diagonal.len(), |i, j| match i.abs_diff(j) {
            0 => diagonal[i],
            1 => beside[i.min(j)],
            _ => 0.0,
        });
        let (values, vectors) = dense::symmetric_eigen(t.as_ref())?;
        let sum: f64 = values.iter().enumerate().map(|(k, v)| vectors[(0, k)].powi(2) * f(*v)).sum();
        samples.push(n as f64 * sum);
    }
    Ok(estimate(0.0, &samples))
}

/// Diagonals of the tridiagonal matrix that Lanczos's method makes, with all vectors orthogonalized against all before.
fn tridiagonal<O: LinearOperator>(
    a: &O,
    start: Mat<O::Scalar>,
    steps: usize,
) -> Result<(Vec<f64>, Vec<f64>), RandnlaError> {
    let norm = |v: &Mat<O::Scalar>| dense::squared_norm(v.as_ref()).sqrt();
    let by = 1.0 / norm(&start);
    let mut v = start;
    dense::scale_columns(&mut v, |_| by);
    let mut basis: Mat<O::Scalar> = v.clone();
    let (mut diagonal, mut beside): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    let mut greatest = 0.0f64;
    loop {
        let image = a.apply(v.as_ref());
        MatrixRef::from(&image).check("the product with the operator")?;
        diagonal.push(inner(&v, &image)[0]);
        greatest = greatest.max(norm(&image));
        if diagonal.len() == steps {
            break;
        }
        let rest = dense::project_out(image, basis.as_ref());
        let rest = dense::project_out(rest, basis.as_ref());
        let length = norm(&rest);
        // The space is invariant: its quadrature is exact.
        if length <= O::Scalar::EPSILON * greatest * basis.nrows() as f64 {
            break;
        }
        beside.push(length);
        v = rest;
        dense::scale_columns(&mut v, |_| 1.0 / length);
        basis = dense::beside(&[basis.as_ref(), v.as_ref()]);
    }
    Ok((diagonal, beside))
}
