//! A square root of a moment from few long rows, of which no other copy is made.

use std::sync::Arc;

use faer::{Mat, MatRef};

use crate::dense;
use crate::linalg::Linalg;

/// Columns that are in f64 at once.
const PANEL: usize = 4096;

/// Rows `Z` with `Zᵀ Z` the second moment or covariance of what was seen: `[rows, dim]`, kept in f32 and made f64 some
/// columns at a time.
#[derive(Clone, Debug)]
pub(crate) struct ThinRoot {
    /// Row by row, before the mean is taken off.
    numbers: Arc<Vec<f32>>,
    /// How often the mean is in each row.
    means: Vec<f64>,
    mean: Vec<f64>,
    scale: f64,
}

impl ThinRoot {
    /// Rows as long as `mean`, of which each has so many times the mean taken off and is then scaled.
    pub(crate) fn new(numbers: Arc<Vec<f32>>, means: Vec<f64>, mean: Vec<f64>, scale: f64) -> ThinRoot {
        assert_eq!(numbers.len(), means.len() * mean.len(), "as many numbers as rows of this length have");
        ThinRoot { numbers, means, mean, scale }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.means.len()
    }

    /// How long they are.
    pub(crate) fn dim(&self) -> usize {
        self.mean.len()
    }

    /// The mean of what was seen: `[dim]`.
    pub(crate) fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// Multiplies all of them.
    pub(crate) fn scale_by(&mut self, factor: f64) {
        self.scale *= factor;
    }

    /// `Z · m`, for `[dim, n]`.
    pub(crate) fn product(&self, m: MatRef<'_, f64>) -> Mat<f64> {
        let mut out = Mat::zeros(self.count(), m.ncols());
        for (first, panel) in self.panels() {
            f64::add_product(out.as_mut(), panel.as_ref(), m.subrows(first, panel.ncols()), 1.0);
        }
        out
    }

    /// `Zᵀ · m`, for `[rows, n]`.
    pub(crate) fn transposed_product(&self, m: MatRef<'_, f64>) -> Mat<f64> {
        let mut out = Mat::zeros(self.dim(), m.ncols());
        for (first, panel) in self.panels() {
            f64::add_product(out.as_mut().subrows_mut(first, panel.ncols()), panel.transpose(), m, 1.0);
        }
        out
    }

    /// `Z · Zᵀ`: `[rows, rows]`.
    pub(crate) fn outer(&self) -> Mat<f64> {
        let mut out = Mat::zeros(self.count(), self.count());
        for (_, panel) in self.panels() {
            f64::add_product(out.as_mut(), panel.as_ref(), panel.transpose(), 1.0);
        }
        out
    }

    /// The sum of squares.
    pub(crate) fn squared_norm(&self) -> f64 {
        self.panels().map(|(_, panel)| dense::squared_norm(panel.as_ref())).sum()
    }

    /// Some columns after the others, each with the number of its first one.
    fn panels(&self) -> impl Iterator<Item = (usize, Mat<f64>)> {
        let dim = self.dim();
        (0..dim).step_by(PANEL).map(move |first| {
            let entry = |i: usize, j: usize| {
                let number = f64::from(self.numbers[i * dim + first + j]);
                (number - self.means[i] * self.mean[first + j]) * self.scale
            };
            (first, Mat::from_fn(self.count(), PANEL.min(dim - first), entry))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Distribution, random_matrix};

    #[test]
    fn products_are_those_of_the_whole_matrix() {
        let (count, dim) = (3, PANEL + 5);
        let numbers = random_matrix(Distribution::Gaussian, count, dim, 1, 1).to_row_major();
        let mean: Vec<f64> = (0..dim).map(|j| j as f64 / dim as f64).collect();
        let root = ThinRoot::new(Arc::new(numbers.clone()), vec![1.0, -2.0, 0.0], mean.clone(), 0.5);
        let entry =
            |i: usize, j: usize| 0.5 * (f64::from(numbers[i * dim + j]) - [1.0, -2.0, 0.0][i] * mean[j]);
        let whole = Mat::from_fn(count, dim, entry);
        let close = |a: Mat<f64>, b: Mat<f64>| {
            assert_eq!(a.shape(), b.shape());
            assert!((&a - &b).norm_l2() <= 1e-12 * b.norm_l2());
        };
        let wide = random_matrix(Distribution::Gaussian, dim, 2, 2, 1);
        let thin = random_matrix(Distribution::Gaussian, count, 2, 3, 1);
        close(root.product(wide.as_ref()), &whole * wide.as_ref());
        close(root.transposed_product(thin.as_ref()), whole.transpose() * thin.as_ref());
        close(root.outer(), &whole * whole.transpose());
        assert!((root.squared_norm() / whole.norm_l2().powi(2) - 1.0).abs() < 1e-12);
    }
}
