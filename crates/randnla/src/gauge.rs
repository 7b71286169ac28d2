//! Products of low rank stored without their redundancy.
//!
//! Factors `L · R` of shapes `[d1, k]` and `[k, d2]` hold `k (d1 + d2)` numbers, but `L M · M⁻¹ R` is the
//! same product for every invertible `M`. Choosing `M` so that `k` columns of the right factor are the identity
//! leaves `k (d1 + d2 - k)` numbers and as many multiplications; the identity costs a gather. This is the
//! pivoting form of Zhao and others (*PIFA*, arXiv 2501.19090), for either factor. Nothing is approximated:
//! the pivots come from a column-pivoted QR decomposition of the product, which keeps the coefficients small.

use crate::matrix::{check_factorable, check_shape};
use crate::{Matrix, RandnlaError, dense};

/// Which coordinates the pivots are taken from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// `y = (x[pivots] + x[rest] · coefficients) · core`.
    Input,
    /// `y[pivots] = x · core` and `y[rest] = y[pivots] · coefficients`.
    Output,
}

/// A product `[d_in, d_out]` of rank `k` in `k (d_in + d_out - k)` numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentityGauge {
    /// Where the pivots lie.
    pub side: Side,
    /// The `k` coordinates whose part of the product is `core`, ascending.
    pub pivots: Vec<usize>,
    /// The other coordinates, ascending.
    pub rest: Vec<usize>,
    /// [`Side::Input`]: rows `pivots` of the product, `[k, d_out]`.
    /// [`Side::Output`]: columns `pivots`, `[d_in, k]`.
    pub core: Matrix,
    /// [`Side::Input`]: `[d_in - k, k]`. [`Side::Output`]: `[k, d_out - k]`.
    pub coefficients: Matrix,
}

impl IdentityGauge {
    /// The gauge of `left · right`, of shapes `[d_in, k]` and `[k, d_out]`.
    ///
    /// If the product has a smaller rank than `k`, up to rounding, the gauge has that rank.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] if the factors do not fit, [`RandnlaError::Empty`],
    /// [`RandnlaError::NonFinite`], and [`RandnlaError::Rank`] if `k` exceeds a dimension.
    pub fn new(left: &Matrix, right: &Matrix, side: Side) -> Result<IdentityGauge, RandnlaError> {
        check_shape("the right factor", (left.columns(), right.columns()), right)?;
        check_factorable("the left factor", left)?;
        check_factorable("the right factor", right)?;
        let max = left.rows().min(right.columns());
        if left.columns() > max {
            return Err(RandnlaError::Rank { max, found: left.columns() });
        }
        Ok(match side {
            Side::Output => {
                let (pivots, rest, coefficients) = interpolate(left, right);
                let core = left.product(&columns(right, &pivots))?;
                IdentityGauge { side, pivots, rest, core, coefficients }
            }
            Side::Input => {
                let (outer, inner) = (right.transposed(), left.transposed());
                let (pivots, rest, coefficients) = interpolate(&outer, &inner);
                let core = columns(&inner, &pivots).transposed().product(right)?;
                IdentityGauge { side, pivots, rest, core, coefficients: coefficients.transposed() }
            }
        })
    }

    /// The rank of the product.
    pub fn rank(&self) -> usize {
        self.pivots.len()
    }

    /// The same product with `k` pivots: as many of the other coordinates as are missing become pivots that nothing else
    /// is computed from.
    ///
    /// # Errors
    /// [`RandnlaError::Rank`] unless `k` is between the rank and the number of coordinates, and as
    /// [`product`](IdentityGauge::product).
    pub fn with_rank(self, k: usize) -> Result<IdentityGauge, RandnlaError> {
        let max = self.pivots.len() + self.rest.len();
        let more = k.checked_sub(self.rank()).filter(|more| *more <= self.rest.len());
        let more = more.ok_or(RandnlaError::Rank { max, found: k })?;
        if more == 0 {
            return Ok(self);
        }
        let product = self.product()?;
        let old = self.pivots.iter().enumerate().map(|(i, &at)| (at, Some(i)));
        let mut pivots: Vec<(usize, Option<usize>)> =
            old.chain(self.rest[..more].iter().map(|&at| (at, None))).collect();
        pivots.sort_unstable();
        let rest = self.rest[more..].to_vec();
        let coefficient = |pivot: usize, other: usize| match (pivots[pivot].1, self.side) {
            (None, _) => 0.0,
            (Some(i), Side::Input) => self.coefficients.at(more + other, i),
            (Some(i), Side::Output) => self.coefficients.at(i, more + other),
        };
        let (core, coefficients) = match self.side {
            Side::Input => (
                Matrix::from_fn(k, product.columns(), |i, j| product.at(pivots[i].0, j)),
                Matrix::from_fn(rest.len(), k, |other, pivot| coefficient(pivot, other)),
            ),
            Side::Output => (
                Matrix::from_fn(product.rows(), k, |i, j| product.at(i, pivots[j].0)),
                Matrix::from_fn(k, rest.len(), coefficient),
            ),
        };
        let pivots = pivots.into_iter().map(|(at, _)| at).collect();
        Ok(IdentityGauge { side: self.side, pivots, rest, core, coefficients })
    }

    /// How many numbers the core and the coefficients hold.
    pub fn numbers(&self) -> usize {
        let of = |m: &Matrix| m.rows() * m.columns();
        of(&self.core) + of(&self.coefficients)
    }

    /// The product the gauge stands for: `[d_in, d_out]`.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`] if the fields, which are public, do not fit each other.
    pub fn product(&self) -> Result<Matrix, RandnlaError> {
        let derived = match self.side {
            Side::Input => self.coefficients.product(&self.core)?,
            Side::Output => self.core.product(&self.coefficients)?,
        };
        let mut place = vec![(false, 0); self.pivots.len() + self.rest.len()];
        for (pivot, list) in [(true, &self.pivots), (false, &self.rest)] {
            for (index, &coordinate) in list.iter().enumerate() {
                let expected = place.len();
                let what = "a list of coordinates";
                *place.get_mut(coordinate).ok_or(RandnlaError::Length {
                    what,
                    expected,
                    found: coordinate.saturating_add(1),
                })? = (pivot, index);
            }
        }
        let from = |pivot| if pivot { &self.core } else { &derived };
        Ok(match self.side {
            Side::Input => {
                Matrix::from_fn(place.len(), self.core.columns(), |i, j| from(place[i].0).at(place[i].1, j))
            }
            Side::Output => {
                Matrix::from_fn(self.core.rows(), place.len(), |i, j| from(place[j].0).at(i, place[j].1))
            }
        })
    }
}

/// Pivots among the columns of `outer · inner`, the other columns, and coefficients with
/// `inner[rest] = inner[pivots] · coefficients`, all in ascending order of columns.
fn interpolate(outer: &Matrix, inner: &Matrix) -> (Vec<usize>, Vec<usize>, Matrix) {
    // The triangle of `outer` carries the lengths of the product's columns in k rows.
    let basis = dense::orthonormal_basis(outer.as_ref().to_owned());
    let square = dense::product(basis.transpose(), outer.as_ref()); // [k, k]
    let (triangle, order) = dense::pivoted_triangle(dense::product(square.as_ref(), inner.as_ref()).as_ref());
    let size = triangle.nrows();
    let negligible = triangle[(0, 0)].abs() * f64::EPSILON * order.len() as f64;
    let rank = (0..size).take_while(|&i| triangle[(i, i)].abs() > negligible).count();
    let (head, tail) = (triangle.as_ref().submatrix(0, 0, rank, rank), order.len() - rank);
    let solved = dense::solve_upper(head, triangle.as_ref().submatrix(0, rank, rank, tail));
    let sorted = |columns: &[usize]| {
        let mut by_column: Vec<usize> = (0..columns.len()).collect();
        by_column.sort_by_key(|&i| columns[i]);
        by_column
    };
    let (pivot_order, rest_order) = (sorted(&order[..rank]), sorted(&order[rank..]));
    let coefficients = Matrix::from_fn(rank, tail, |i, j| solved[(pivot_order[i], rest_order[j])]);
    let pivots = pivot_order.iter().map(|&i| order[i]).collect();
    let rest = rest_order.iter().map(|&i| order[rank + i]).collect();
    (pivots, rest, coefficients)
}

fn columns(m: &Matrix, which: &[usize]) -> Matrix {
    Matrix::from_fn(m.rows(), which.len(), |i, j| m.at(i, which[j]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Distribution, random_matrix};

    fn factors(d_in: usize, k: usize, d_out: usize) -> (Matrix, Matrix) {
        let draw = |rows, columns, stream| random_matrix(Distribution::Gaussian, rows, columns, 4, stream);
        (draw(d_in, k, 0), draw(k, d_out, 1))
    }

    fn relative_error(found: &Matrix, expected: &Matrix) -> f64 {
        let off = Matrix::from_fn(found.rows(), found.columns(), |i, j| found.at(i, j) - expected.at(i, j));
        (off.squared_norm() / expected.squared_norm()).sqrt()
    }

    #[test]
    fn product_is_kept_in_fewer_numbers() {
        for (d_in, k, d_out) in [(30, 8, 20), (20, 8, 30), (12, 12, 40), (9, 1, 9), (7, 7, 7)] {
            let (left, right) = factors(d_in, k, d_out);
            let expected = left.product(&right).unwrap();
            for side in [Side::Input, Side::Output] {
                let gauge = IdentityGauge::new(&left, &right, side).unwrap();
                assert_eq!((gauge.rank(), gauge.numbers()), (k, k * (d_in + d_out - k)));
                assert!(relative_error(&gauge.product().unwrap(), &expected) < 1e-13);
                assert!(gauge.pivots.is_sorted() && gauge.rest.is_sorted());
                assert!(gauge.coefficients.to_row_major().iter().all(|v| v.abs() < 10.0));
            }
        }
    }

    #[test]
    fn rounding_to_f32_costs_rounding() {
        let (left, right) = factors(96, 40, 80);
        let expected = left.product(&right).unwrap();
        let round = |m: &Matrix| Matrix::from_row_major(m.rows(), m.columns(), &m.to_row_major()).unwrap();
        for side in [Side::Input, Side::Output] {
            let mut gauge = IdentityGauge::new(&left, &right, side).unwrap();
            gauge.core = round(&gauge.core);
            gauge.coefficients = round(&gauge.coefficients);
            assert!(relative_error(&gauge.product().unwrap(), &expected) < 1e-6);
        }
    }

    #[test]
    fn smaller_rank_is_found() {
        let (left, middle) = factors(15, 3, 6);
        let (_, right) = factors(15, 6, 18);
        let left = left.product(&middle).unwrap();
        let expected = left.product(&right).unwrap();
        for side in [Side::Input, Side::Output] {
            let gauge = IdentityGauge::new(&left, &right, side).unwrap();
            assert_eq!(gauge.rank(), 3);
            assert!(relative_error(&gauge.product().unwrap(), &expected) < 1e-12);
            let coordinates = gauge.pivots.len() + gauge.rest.len();
            for k in [3, 6, coordinates] {
                let gauge = gauge.clone().with_rank(k).unwrap();
                assert_eq!((gauge.rank(), gauge.numbers()), (k, k * (15 + 18 - k)));
                assert!(gauge.pivots.is_sorted() && gauge.rest.len() == coordinates - k);
                assert!(relative_error(&gauge.product().unwrap(), &expected) < 1e-12);
            }
            assert!(gauge.clone().with_rank(2).is_err() && gauge.with_rank(coordinates + 1).is_err());
        }
        let zero = Matrix::from_fn(15, 6, |_, _| 0.0);
        let gauge = IdentityGauge::new(&zero, &right, Side::Output).unwrap();
        assert_eq!(gauge.rank(), 0);
        assert_eq!(gauge.product().unwrap(), Matrix::from_fn(15, 18, |_, _| 0.0));
        assert_eq!(gauge.with_rank(6).unwrap().product().unwrap(), Matrix::from_fn(15, 18, |_, _| 0.0));
    }

    #[test]
    fn bad_input_is_named() {
        let (left, right) = factors(5, 3, 6);
        let of = |l: &Matrix, r: &Matrix| IdentityGauge::new(l, r, Side::Output).unwrap_err().to_string();
        assert_eq!(of(&left, &left), "the right factor has the wrong shape: expected 3 x 3, found 5 x 3");
        let (wide, tall) = factors(5, 7, 6);
        assert_eq!(of(&wide, &tall), "rank is out of range: expected 1 to 5, found 7");
        let nan = Matrix::from_fn(5, 3, |_, _| f64::NAN);
        assert!(of(&nan, &right).starts_with("the left factor is not finite"));
    }
}
