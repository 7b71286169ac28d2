//! Square roots of second moments.
//!
//! A second moment `C = V diag(l) Vᵀ` has the root `S = diag(√l) Vᵀ` with `Sᵀ S = C`. For inputs `x` with
//! `E[x xᵀ] = C` the mean of `‖x M‖²` is `‖S M‖²` (Frobenius), so the best approximation of a weight on these
//! inputs is the best plain approximation of `S W`.

use faer::Mat;

use crate::matrix::{check_factorable, check_shape};
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
    /// Eigenvalues below `floor` times the greatest are raised to it, so that directions the sample never
    /// shows still count a little. Between 1e-14 and 1. The errors reported then exceed those on the sample,
    /// by at most the floor's share.
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
/// Layers that share an input share its whitening: the eigendecomposition is the greater part of the work.
#[derive(Clone, Debug)]
pub struct Whitening {
    /// Eigenvectors as columns.
    vectors: Mat<f64>,
    /// Square roots of the conditioned eigenvalues, ascending, all positive.
    roots: Vec<f64>,
    mean: Option<Vec<f64>>,
    floored: usize,
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
        let Conditioning { shrinkage, floor } = *conditioning;
        check_range("shrinkage", "0 to 1", shrinkage, 0.0)?;
        check_range("floor", "1e-14 to 1", floor, 1e-14)?;
        let dim = moment.rows();
        check_shape("the second moment", (dim, dim), moment)?;
        check_factorable("the second moment", moment)?;
        if let Some(mean) = mean {
            check_mean(mean, dim)?;
        }
        let (mut values, vectors) = dense::symmetric_eigen(moment.as_ref())?;
        let average = values.iter().sum::<f64>() / dim as f64;
        values.iter_mut().for_each(|l| *l = (1.0 - shrinkage) * *l + shrinkage * average);
        // Inputs that never vary leave nothing to be relative to; a tiny isotropic moment then reports
        // vanishing errors and reduces to the plain decomposition.
        let least = (floor * values[dim - 1]).max(f64::MIN_POSITIVE.sqrt());
        let floored = values.iter().filter(|l| **l < least).count();
        let roots = values.into_iter().map(|l| l.max(least).sqrt()).collect();
        Ok(Whitening { vectors, roots, mean: mean.map(<[f64]>::to_vec), floored })
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
        match centring {
            Centring::Centred => Whitening::new(&gram.covariance()?, Some(&gram.mean()?), conditioning),
            Centring::Uncentred => Whitening::new(&gram.second_moment()?, None, conditioning),
        }
    }

    /// Length of the vectors whitened.
    pub fn dim(&self) -> usize {
        self.roots.len()
    }

    /// The mean of the inputs, if the moment is centred: `[dim]`.
    pub fn mean(&self) -> Option<&[f64]> {
        self.mean.as_deref()
    }

    /// Number of eigenvalues raised to the floor: directions the sample does not show.
    pub fn floored(&self) -> usize {
        self.floored
    }

    /// The upper triangular root `R` of the second moment, `[dim, dim]`: `Rᵀ R = C`.
    pub fn triangle(&self) -> Matrix {
        Matrix::new(dense::triangle(self.whiten(Mat::identity(self.dim(), self.dim()).as_ref())))
    }

    /// `S · m`.
    pub(crate) fn whiten(&self, m: faer::MatRef<'_, f64>) -> Mat<f64> {
        let mut out = dense::product(self.vectors.transpose(), m);
        dense::scale_rows(&mut out, &self.roots);
        out
    }

    /// `C⁻¹ · m`, for the conditioned moment `C = Sᵀ S`.
    pub(crate) fn solve(&self, m: Mat<f64>) -> Mat<f64> {
        let mut transposed = dense::product(self.vectors.transpose(), m.as_ref());
        let inverse: Vec<f64> = self.roots.iter().map(|r| 1.0 / (r * r)).collect();
        dense::scale_rows(&mut transposed, &inverse);
        dense::product(self.vectors.as_ref(), transposed.as_ref())
    }

    /// `S⁻¹ · m`.
    pub(crate) fn unwhiten(&self, mut m: Mat<f64>) -> Mat<f64> {
        let inverse: Vec<f64> = self.roots.iter().map(|r| 1.0 / r).collect();
        dense::scale_rows(&mut m, &inverse);
        dense::product(self.vectors.as_ref(), m.as_ref())
    }
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
        assert_close(&s.transposed().product(&s).unwrap(), &c, 1e-13);
        assert_close(&Matrix::new(w.unwhiten(s.as_ref().to_owned())), &identity(12), 1e-12);
        assert_eq!(w.floored(), 0);
        let r = w.triangle();
        assert_close(&r.transposed().product(&r).unwrap(), &c, 1e-13);
        assert!((0..12).all(|i| (0..i).all(|j| r.at(i, j) == 0.0)));
    }

    #[test]
    fn floor_and_shrinkage_do_what_they_say() {
        let c = moment(10, 4);
        let w = Whitening::new(&c, None, &Conditioning { shrinkage: 0.0, floor: 1e-3 }).unwrap();
        assert_eq!(w.floored(), 6);
        assert!((w.roots[0] / w.roots[9] - 1e-3f64.sqrt()).abs() < 1e-12);
        let shrunk = Whitening::new(&c, None, &Conditioning { shrinkage: 0.25, floor: 1e-8 }).unwrap();
        let s = root(&shrunk);
        let average = (0..10).map(|i| c.at(i, i)).sum::<f64>() / 10.0;
        let mixture = Matrix::from_fn(10, 10, |i, j| 0.75 * c.at(i, j) + 0.25 * average * f64::from(i == j));
        assert_close(&s.transposed().product(&s).unwrap(), &mixture, 1e-13);
        let zero = Matrix::from_fn(3, 3, |_, _| 0.0);
        let w = Whitening::new(&zero, None, &Conditioning::default()).unwrap();
        assert!(root(&w).squared_norm() > 0.0 && root(&w).squared_norm() < 1e-100);
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
