//! Matrices with known singular values, and distances.

use faer::Mat;
use margay_randnla::{Distribution, Law, Matrix, Scalar, Sketch, SketchedQrOptions, cqrrt};

/// Standard normal entries.
pub(crate) fn gaussian<T: Scalar>(rows: usize, columns: usize, stream: u64) -> Matrix<T> {
    let law = Law::Dense(Distribution::Gaussian);
    Sketch::new(law, rows, columns, 77, stream).unwrap().unscaled().to_matrix()
}

/// Random orthonormal columns, orthonormal to rounding in `f64`.
pub(crate) fn orthonormal(rows: usize, columns: usize, stream: u64) -> Matrix {
    let draw: Matrix = gaussian(rows, columns, stream);
    cqrrt(&draw, &SketchedQrOptions::default()).unwrap().q
}

/// `U diag(s) Vᵀ` with random `U`, `V` and `sᵢ = spectrum(i)`.
pub(crate) fn with_spectrum<T: Scalar>(
    rows: usize,
    columns: usize,
    spectrum: impl Fn(usize) -> f64,
    stream: u64,
) -> Matrix<T> {
    let size = rows.min(columns);
    let (u, v) = (orthonormal(rows, size, stream), orthonormal(columns, size, stream + 1));
    let scaled = Matrix::from_fn(rows, size, |i, j| u.at(i, j) * spectrum(j));
    convert(&scaled.product(&v.transposed()).unwrap())
}

/// A positive semidefinite matrix with random eigenvectors.
pub(crate) fn positive<T: Scalar>(n: usize, eigenvalues: impl Fn(usize) -> f64, stream: u64) -> Matrix<T> {
    let v = orthonormal(n, n, stream);
    let scaled = Matrix::from_fn(n, n, |i, j| v.at(i, j) * eigenvalues(j));
    let a = scaled.product(&v.transposed()).unwrap();
    Matrix::from_fn(n, n, |i, j| T::from_f64(0.5 * (a.at(i, j) + a.at(j, i))))
}

/// A singular value by its number.
pub(crate) type Spectrum = fn(usize) -> f64;

/// The spectra that approximations are tested on: polynomial, exponential, and a step.
pub(crate) const SPECTRA: [(&str, Spectrum); 3] = [
    ("polynomial", |i| 1.0 / (1.0 + i as f64)),
    ("exponential", |i| (-(i as f64) / 6.0).exp()),
    ("step", |i| if i < 12 { 1.0 } else { 1e-3 }),
];

/// The root of the sum of squares from `rank` on.
pub(crate) fn tail(spectrum: impl Fn(usize) -> f64, rank: usize, size: usize) -> f64 {
    (rank..size).map(|i| spectrum(i).powi(2)).sum::<f64>().sqrt()
}

pub(crate) fn convert<T: Scalar, U: Scalar>(a: &Matrix<T>) -> Matrix<U> {
    Matrix::from_fn(a.rows(), a.columns(), |i, j| U::from_f64(a.at(i, j).to_f64()))
}

pub(crate) fn difference<T: Scalar>(a: &Matrix<T>, b: &Matrix<T>) -> Matrix<T> {
    assert_eq!((a.rows(), a.columns()), (b.rows(), b.columns()));
    Matrix::from_fn(a.rows(), a.columns(), |i, j| a.at(i, j) - b.at(i, j))
}

/// The Frobenius norm of the difference.
pub(crate) fn distance<T: Scalar>(a: &Matrix<T>, b: &Matrix<T>) -> f64 {
    difference(a, b).squared_norm().sqrt()
}

pub(crate) fn norm<T: Scalar>(a: &Matrix<T>) -> f64 {
    a.squared_norm().sqrt()
}

pub(crate) fn product<T: Scalar>(factors: &[&Matrix<T>]) -> Matrix<T> {
    let first = factors[0].clone();
    factors[1..].iter().fold(first, |product, factor| product.product(factor).unwrap())
}

/// The Frobenius norm of `QᵀQ - I`, computed in `f64`.
pub(crate) fn orthonormality<T: Scalar>(q: &Matrix<T>) -> f64 {
    let q: Matrix = convert(q);
    let gram = q.transposed().product(&q).unwrap();
    let n = q.columns();
    distance(&gram, &Matrix::from_fn(n, n, |i, j| f64::from(i == j)))
}

/// Singular values, descending.
pub(crate) fn singular_values(a: &Matrix) -> Vec<f64> {
    margay_randnla::svd(a).unwrap().singular_values
}

/// The spectral norm.
pub(crate) fn spectral_norm(a: &Matrix) -> f64 {
    singular_values(a)[0]
}

/// These columns.
pub(crate) fn columns<T: Scalar>(a: &Matrix<T>, which: &[usize]) -> Matrix<T> {
    Matrix::from_fn(a.rows(), which.len(), |i, j| a.at(i, which[j]))
}

/// An entry by entry copy as a matrix of faer whose rows lie together.
pub(crate) fn row_major<T: Scalar>(a: &Matrix<T>) -> Mat<T> {
    Mat::from_fn(a.columns(), a.rows(), |j, i| a.at(i, j))
}
