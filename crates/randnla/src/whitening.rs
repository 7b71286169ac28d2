//! Roots of second moments.
//!
//! A second moment `C` has a root `S` with `Sᵀ S = C`; here it is the Cholesky factor, upper triangular. For inputs `x` with
//! `E[x xᵀ] = C` the mean of `‖x M‖²` is `‖S M‖²` (Frobenius), so the best approximation of a weight on these
//! inputs is the best plain approximation of `S W`, whichever root is taken.

use faer::{Mat, MatRef};

use crate::matrix::{check_factorable, check_shape};
use crate::thin_root::ThinRoot;
use crate::{Gram, Matrix, RandnlaError, dense};

/// About which point second moments are taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Centring {
    /// About the mean; the mean itself is then carried exactly by a bias.
    #[default]
    Centred,
    /// About the origin, for products whose output takes no bias.
    Uncentred,
}

/// How an estimated second moment is made safe to invert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditioning {
    /// Weight `a`, from 0 to 1, of the scaled identity: `C` becomes `(1 - a) C + a (tr C / dim) I`. It guards
    /// against trusting a small sample; the errors reported are then those of the mixture.
    pub shrinkage: f64,
    /// `floor` times the trace is added to every eigenvalue, so that directions the sample never shows still count
    /// a little. Between 1e-14 and 1. The errors reported then exceed those on the sample by the floor's share.
    pub floor: f64,
}

impl Default for Conditioning {
    /// No shrinkage, floor 1e-8.
    fn default() -> Conditioning {
        Conditioning { shrinkage: 0.0, floor: 1e-8 }
    }
}

/// A root `S` of a second moment, its inverse, and the mean if the moment is centred.
///
/// Layers that share an input share its whitening: the decomposition is the greater part of the work.
#[derive(Clone, Debug)]
pub struct Whitening {
    root: Root,
    mean: Option<Vec<f64>>,
}

#[derive(Clone, Debug)]
enum Root {
    /// `S`: the Cholesky factor, upper triangular.
    Triangle(Mat<f64>),
    /// Of fewer rows `Z` than half their length: `S` is `Z` above `√ridge` times the identity. With the Cholesky factor of
    /// `ridge I + Z Zᵀ`.
    Thin { rows: ThinRoot, ridge: f64, inner: Mat<f64> },
    /// The diagonal of `S`, which has nothing beside it.
    Diagonal(Vec<f64>),
}

impl Whitening {
    /// The whitening of a second moment `[dim, dim]`, of which the lower triangle is read.
    ///
    /// Give the mean (`[dim]`) of the inputs exactly if the moment is centred about it.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`], [`RandnlaError::Length`], [`RandnlaError::Empty`],
    /// [`RandnlaError::NonFinite`], [`RandnlaError::Parameter`] or [`RandnlaError::NoConvergence`].
    pub fn new(
        moment: &Matrix,
        mean: Option<&[f64]>,
        conditioning: &Conditioning,
    ) -> Result<Whitening, RandnlaError> {
        check_conditioning(conditioning)?;
        let dim = moment.rows();
        check_shape("the second moment", (dim, dim), moment)?;
        check_factorable("the second moment", moment)?;
        if let Some(mean) = mean {
            check_mean(mean, dim)?;
        }
        let root = Root::Triangle(factor(moment.as_ref(), conditioning)?);
        Ok(Whitening { root, mean: mean.map(<[f64]>::to_vec) })
    }

    /// The whitening of the rows an accumulator has seen.
    ///
    /// # Errors
    /// [`RandnlaError::EmptySample`], and those of [`Whitening::new`].
    pub fn from_gram(
        gram: &Gram,
        centring: Centring,
        conditioning: &Conditioning,
    ) -> Result<Whitening, RandnlaError> {
        let centred = centring == Centring::Centred;
        if let Some(places) = gram.places().filter(|_| !centred && gram.count() > 0) {
            check_conditioning(conditioning)?;
            let (kept, ridge) = (1.0 - conditioning.shrinkage, ridge(conditioning, 1.0, gram.dim()));
            let variance = |times: &f64| (kept * times / gram.count() as f64 + ridge).sqrt();
            let root = Root::Diagonal(places.iter().map(variance).collect());
            return Ok(Whitening { root, mean: None });
        }
        if let Some(thin) = gram.thin_root(centred)? {
            let mean = centred.then(|| thin.mean().to_vec());
            return Whitening::of_rows(thin, mean, conditioning);
        }
        match centring {
            Centring::Centred => Whitening::new(&gram.covariance()?, Some(&gram.mean()?), conditioning),
            Centring::Uncentred => Whitening::new(&gram.second_moment()?, None, conditioning),
        }
    }

    /// The whitening of the second moment `Zᵀ Z` of a few long rows. Nothing of the size of the moment is made.
    fn of_rows(
        mut rows: ThinRoot,
        mean: Option<Vec<f64>>,
        conditioning: &Conditioning,
    ) -> Result<Whitening, RandnlaError> {
        check_conditioning(conditioning)?;
        let count = rows.count();
        let mut ridge = ridge(conditioning, rows.squared_norm(), rows.dim());
        rows.scale_by((1.0 - conditioning.shrinkage).sqrt());
        let outer = rows.outer();
        for _ in 0..ATTEMPTS {
            let conditioned = Mat::from_fn(count, count, |i, j| match i.cmp(&j) {
                std::cmp::Ordering::Less => 0.0,
                std::cmp::Ordering::Equal => outer[(i, i)] + ridge,
                std::cmp::Ordering::Greater => outer[(i, j)],
            });
            if let Some(inner) = finite_cholesky(&conditioned) {
                return Ok(Whitening { root: Root::Thin { rows, ridge, inner }, mean });
            }
            ridge *= 100.0;
        }
        Err(RandnlaError::NoConvergence { what: "Cholesky decomposition", rows: count, columns: count })
    }

    /// Length of the vectors whitened.
    pub fn dim(&self) -> usize {
        match &self.root {
            Root::Triangle(root) => root.nrows(),
            Root::Thin { rows, .. } => rows.dim(),
            Root::Diagonal(root) => root.len(),
        }
    }

    /// The mean of the inputs, if the moment is centred: `[dim]`.
    pub fn mean(&self) -> Option<&[f64]> {
        self.mean.as_deref()
    }

    /// The upper triangular root `R` of the second moment, `[dim, dim]`: `Rᵀ R = C`.
    pub fn triangle(&self) -> Matrix {
        Matrix::new(match &self.root {
            Root::Triangle(root) => root.clone(),
            Root::Thin { rows, .. } => {
                dense::triangle(self.whiten(Mat::identity(rows.dim(), rows.dim()).as_ref()))
            }
            Root::Diagonal(root) => {
                Mat::from_fn(root.len(), root.len(), |i, j| if i == j { root[i] } else { 0.0 })
            }
        })
    }

    /// `S · m`, of which the squared norm is the mean of `‖x m‖²`. It may have more rows than `m`.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] for a matrix of other rows than the vectors whitened are long.
    pub fn product(&self, m: &Matrix) -> Result<Matrix, RandnlaError> {
        check_shape("the matrix to be whitened", (self.dim(), m.columns()), m)?;
        Ok(Matrix::new(self.whiten(m.as_ref())))
    }

    /// `S · m`, which may have more rows than `m`.
    pub(crate) fn whiten(&self, m: MatRef<'_, f64>) -> Mat<f64> {
        match &self.root {
            Root::Triangle(root) => dense::upper_product(root.as_ref(), m),
            Root::Thin { rows, ridge, .. } => {
                let (above, scale) = (rows.product(m), ridge.sqrt());
                let count = above.nrows();
                Mat::from_fn(count + m.nrows(), m.ncols(), |i, j| match i.checked_sub(count) {
                    None => above[(i, j)],
                    Some(i) => scale * m[(i, j)],
                })
            }
            Root::Diagonal(root) => Mat::from_fn(m.nrows(), m.ncols(), |i, j| root[i] * m[(i, j)]),
        }
    }

    /// `C⁻¹ · m`, for the conditioned moment `C = Sᵀ S`.
    pub(crate) fn solve(&self, m: Mat<f64>) -> Mat<f64> {
        match &self.root {
            Root::Triangle(root) => dense::solve_positive(root.as_ref(), m.as_ref()),
            // (r I + Zᵀ Z)⁻¹ = (I - Zᵀ (r I + Z Zᵀ)⁻¹ Z) / r
            Root::Thin { rows, ridge, inner } => {
                let image = rows.product(m.as_ref());
                let solved = dense::solve_positive(inner.as_ref(), image.as_ref());
                let mut out = m;
                out -= rows.transposed_product(solved.as_ref());
                dense::scale_columns(&mut out, |_| 1.0 / ridge);
                out
            }
            Root::Diagonal(root) => Mat::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)] / root[i].powi(2)),
        }
    }

    /// `S C⁻¹ · m`, which for a square root is `S⁻ᵀ · m`.
    pub(crate) fn whiten_inverse(&self, m: &Mat<f64>) -> Mat<f64> {
        match &self.root {
            Root::Triangle(root) => dense::solve_upper_transposed(root.as_ref(), m.as_ref()),
            Root::Thin { .. } => self.whiten(self.solve(m.clone()).as_ref()),
            Root::Diagonal(root) => Mat::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)] / root[i]),
        }
    }

    /// `S⁻¹ · m`, or the least squares solution of it where `S` has more rows than columns.
    pub(crate) fn unwhiten(&self, m: Mat<f64>) -> Mat<f64> {
        match &self.root {
            Root::Triangle(root) => dense::solve_upper(root.as_ref(), m.as_ref()),
            Root::Thin { rows, ridge, .. } => {
                let (above, below) = m.as_ref().split_at_row(rows.count());
                let mut image = rows.transposed_product(above);
                let scale = ridge.sqrt();
                for j in 0..image.ncols() {
                    for i in 0..image.nrows() {
                        image[(i, j)] += scale * below[(i, j)];
                    }
                }
                self.solve(image)
            }
            Root::Diagonal(root) => Mat::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)] / root[i]),
        }
    }
}

/// Stands for a variance of 0. Products of a few such numbers do not underflow.
pub(crate) const LEAST_VARIANCE: f64 = 1e-60;

/// Moments that rounding leaves indefinite are given a larger ridge, so many times at most.
const ATTEMPTS: usize = 6;

/// What conditioning adds to every eigenvalue of a moment with a trace.
fn ridge(conditioning: &Conditioning, trace: f64, dim: usize) -> f64 {
    // Inputs that never vary leave nothing to be relative to; a tiny isotropic moment then reports
    // vanishing errors and reduces to the plain decomposition.
    conditioning.shrinkage * trace / dim as f64 + (conditioning.floor * trace).max(LEAST_VARIANCE)
}

/// The Cholesky factor of a moment, of which the lower triangle is read, once conditioned.
fn factor(moment: MatRef<'_, f64>, conditioning: &Conditioning) -> Result<Mat<f64>, RandnlaError> {
    let dim = moment.nrows();
    let trace: f64 = (0..dim).map(|i| moment[(i, i)].max(0.0)).sum();
    let (kept, mut ridge) = (1.0 - conditioning.shrinkage, ridge(conditioning, trace, dim));
    for _ in 0..ATTEMPTS {
        let conditioned = Mat::from_fn(dim, dim, |i, j| match i.cmp(&j) {
            std::cmp::Ordering::Less => 0.0,
            std::cmp::Ordering::Equal => kept * moment[(i, i)] + ridge,
            std::cmp::Ordering::Greater => kept * moment[(i, j)],
        });
        if let Some(factor) = finite_cholesky(&conditioned) {
            return Ok(factor);
        }
        ridge *= 100.0;
    }
    Err(RandnlaError::NoConvergence { what: "Cholesky decomposition", rows: dim, columns: dim })
}

/// The upper Cholesky factor, unless the matrix is not positive definite.
fn finite_cholesky(a: &Mat<f64>) -> Option<Mat<f64>> {
    let found = dense::cholesky(a.as_ref()).ok()?;
    (0..found.nrows()).all(|i| found[(i, i)].is_finite()).then_some(found)
}

fn check_conditioning(conditioning: &Conditioning) -> Result<(), RandnlaError> {
    check_range("shrinkage", "0 to 1", conditioning.shrinkage, 0.0)?;
    check_range("floor", "1e-14 to 1", conditioning.floor, 1e-14)
}

fn check_range(
    name: &'static str,
    expected: &'static str,
    found: f64,
    least: f64,
) -> Result<(), RandnlaError> {
    if (least..=1.0).contains(&found) {
        return Ok(());
    }
    Err(RandnlaError::Parameter { name, expected, found })
}

fn check_mean(mean: &[f64], dim: usize) -> Result<(), RandnlaError> {
    if mean.len() != dim {
        return Err(RandnlaError::Length { what: "the mean", expected: dim, found: mean.len() });
    }
    match mean.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        Some((column, &value)) => Err(RandnlaError::NonFinite { what: "the mean", row: 0, column, value }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Distribution, random_matrix};

    fn moment(dim: usize, rank: usize) -> Matrix {
        let x = random_matrix(Distribution::Gaussian, dim, rank, 1, 1);
        x.product(&x.transposed()).unwrap()
    }

    fn identity(dim: usize) -> Matrix {
        Matrix::from_fn(dim, dim, |i, j| f64::from(i == j))
    }

    fn root(w: &Whitening) -> Matrix {
        Matrix::new(w.whiten(identity(w.dim()).as_ref()))
    }

    fn assert_close(a: &Matrix, b: &Matrix, tolerance: f64) {
        let off = Matrix::from_fn(a.rows(), a.columns(), |i, j| a.at(i, j) - b.at(i, j));
        assert!(off.squared_norm() <= tolerance * tolerance * b.squared_norm());
    }

    #[test]
    fn root_squares_to_the_moment_and_inverts() {
        let c = moment(12, 30);
        let w = Whitening::new(&c, None, &Conditioning::default()).unwrap();
        let s = root(&w);
        assert_close(&s.transposed().product(&s).unwrap(), &c, 1e-7);
        assert_close(&Matrix::new(w.unwhiten(s.as_ref().to_owned())), &identity(12), 1e-12);
        let solved = Matrix::new(w.solve(s.transposed().product(&s).unwrap().as_ref().to_owned()));
        assert_close(&solved, &identity(12), 1e-9);
        let r = w.triangle();
        assert_close(&r.transposed().product(&r).unwrap(), &c, 1e-7);
        assert!((0..12).all(|i| (0..i).all(|j| r.at(i, j) == 0.0)));
    }

    #[test]
    fn floor_and_shrinkage_do_what_they_say() {
        let c = moment(10, 4);
        let w = Whitening::new(&c, None, &Conditioning { shrinkage: 0.0, floor: 1e-3 }).unwrap();
        let trace = (0..10).map(|i| c.at(i, i)).sum::<f64>();
        let raised = Matrix::from_fn(10, 10, |i, j| c.at(i, j) + 1e-3 * trace * f64::from(i == j));
        let s = root(&w);
        assert_close(&s.transposed().product(&s).unwrap(), &raised, 1e-13);
        let shrunk = Whitening::new(&c, None, &Conditioning { shrinkage: 0.25, floor: 1e-8 }).unwrap();
        let s = root(&shrunk);
        let average = (0..10).map(|i| c.at(i, i)).sum::<f64>() / 10.0;
        let mixture = Matrix::from_fn(10, 10, |i, j| 0.75 * c.at(i, j) + 0.25 * average * f64::from(i == j));
        assert_close(&s.transposed().product(&s).unwrap(), &mixture, 1e-6);
        let zero = Matrix::from_fn(3, 3, |_, _| 0.0);
        let w = Whitening::new(&zero, None, &Conditioning::default()).unwrap();
        assert!(root(&w).squared_norm() > 0.0 && root(&w).squared_norm() < 1e-50);
    }

    /// A few long rows are whitened as their second moment is.
    #[test]
    fn few_rows_are_whitened_without_their_moment() {
        let dim = 48;
        let mut gram = Gram::new(dim);
        gram.add_rows(&random_matrix(Distribution::Gaussian, 7, dim, 2, 1).to_row_major()).unwrap();
        let conditioning = Conditioning { shrinkage: 0.02, floor: 1e-8 };
        for centring in [Centring::Centred, Centring::Uncentred] {
            let thin = Whitening::from_gram(&gram, centring, &conditioning).unwrap();
            assert!(matches!(thin.root, Root::Thin { .. }));
            let moment = match centring {
                Centring::Centred => gram.covariance(),
                Centring::Uncentred => gram.second_moment(),
            };
            let whole = Whitening::new(&moment.unwrap(), thin.mean(), &conditioning).unwrap();
            assert_eq!((thin.dim(), thin.mean().is_some()), (dim, centring == Centring::Centred));
            let s = root(&thin);
            assert_close(&s.transposed().product(&s).unwrap(), &root_squared(&whole), 1e-12);
            let m = random_matrix(Distribution::Gaussian, dim, 5, 3, 1);
            let solved = |w: &Whitening| Matrix::new(w.solve(m.as_ref().to_owned()));
            assert_close(&solved(&thin), &solved(&whole), 1e-10);
            assert_close(&Matrix::new(thin.unwhiten(thin.whiten(m.as_ref()))), &m, 1e-10);
        }
    }

    fn root_squared(w: &Whitening) -> Matrix {
        let s = root(w);
        s.transposed().product(&s).unwrap()
    }

    #[test]
    fn bad_input_is_named() {
        let c = moment(3, 5);
        let of = |moment: &Matrix, mean: Option<&[f64]>, shrinkage, floor| {
            Whitening::new(moment, mean, &Conditioning { shrinkage, floor }).unwrap_err().to_string()
        };
        assert_eq!(
            of(&c, None, 1.5, 1e-8),
            "parameter `shrinkage` is out of range: expected 0 to 1, found 1.5"
        );
        assert_eq!(of(&c, None, 0.0, 0.0), "parameter `floor` is out of range: expected 1e-14 to 1, found 0");
        assert!(of(&c, None, f64::NAN, 1e-8).contains("found NaN"));
        assert_eq!(of(&c, Some(&[0.0]), 0.0, 1e-8), "the mean has the wrong length: expected 3, found 1");
        assert!(of(&c, Some(&[0.0, f64::NAN, 0.0]), 0.0, 1e-8).starts_with("the mean is not finite"));
        let nan = Matrix::from_fn(2, 2, |_, _| f64::NAN);
        assert!(of(&nan, None, 0.0, 1e-8).starts_with("the second moment is not finite"));
        let wide = Matrix::from_fn(2, 3, |_, _| 1.0);
        assert!(of(&wide, None, 0.0, 1e-8).starts_with("the second moment has the wrong shape"));
        let gram = Gram::new(3);
        let err = Whitening::from_gram(&gram, Centring::Centred, &Conditioning::default()).unwrap_err();
        assert_eq!(err, RandnlaError::EmptySample { dim: 3 });
    }
}
