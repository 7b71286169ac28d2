//! Rounding of a weight to a few bits so that its outputs change little.
//!
//! For inputs of second moment `C = Rᵀ R`, with `R` upper triangular, the mean of `‖x W - x Q‖²` is `‖R (W - Q)‖²`. Rows are
//! rounded from the last to the first. Row `i` of `R (W - Q)` is `Rᵢᵢ (wᵢ - qᵢ) + Σ_{k>i} Rᵢₖ (wₖ - qₖ)`, of which the sum is
//! known by then: `qᵢ` is the element nearest to `wᵢ + Σ_{k>i} Rᵢₖ (wₖ - qₖ) / Rᵢᵢ`. This is rounding with error feedback
//! (Frantar and others, *GPTQ*, arXiv 2210.17323) in the form of Babai's nearest plane (Chen and others, arXiv 2507.18553).
//!
//! The grid of a run of rows is chosen when the run is reached, for what is to be rounded then. Of a few ranges, each a share
//! of the whole one, it is that with the least error.
//!
//! Deliberately absent: another order of the rows, which would separate those that share a scale.

use faer::Mat;
use margay_tensor::{Grid, Scales, Storage, StoredTensor};

use crate::matrix::{check_factorable, check_shape};
use crate::{Matrix, RandnlaError, dense};

/// The shares of a range that are tried, the whole one first.
const SHARES: [f32; 8] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65];

/// A weight `[d_in, d_out]` in a storage, and what is left of it.
#[derive(Clone, Debug)]
pub struct Rounded {
    /// The weight as it is stored.
    pub stored: StoredTensor,
    /// The weight less its stored numbers, `[d_in, d_out]`.
    pub rest: Matrix,
    /// The mean squared error of the outputs, summed over them, in the units of the second moment.
    pub squared_error: f64,
}

impl Rounded {
    /// Rounds a weight `[d_in, d_out]` to a storage with scales for columns or for runs of rows. `triangle`, `[d_in, d_in]`, is the
    /// [upper triangular root](crate::Whitening::triangle) of the second moment of the inputs; without one each element is
    /// rounded by itself.
    ///
    /// # Errors
    /// [`RandnlaError::Shape`], [`RandnlaError::Empty`] and [`RandnlaError::NonFinite`] for the matrices, and
    /// [`RandnlaError::Parameter`] for another storage.
    pub fn new(
        weight: &Matrix,
        triangle: Option<&Matrix>,
        storage: Storage,
    ) -> Result<Rounded, RandnlaError> {
        check_factorable("the weight", weight)?;
        let (rows, columns) = (weight.rows(), weight.columns());
        if let Some(triangle) = triangle {
            check_shape("the root of the second moment", (rows, rows), triangle)?;
            check_factorable("the root of the second moment", triangle)?;
        }
        let run = match storage.scales {
            Scales::Block { axis: 0, size } if size > 0 => size,
            Scales::Axis(1) => rows,
            _ => {
                let expected = "scales for runs of rows or for columns";
                return Err(RandnlaError::Parameter { name: "storage", expected, found: f64::NAN });
            }
        };
        let mut rest = Mat::zeros(rows, columns);
        let mut elements = vec![0f32; rows * columns];
        let mut grids = vec![storage.grid([0.0; 2]); rows.div_ceil(run) * columns];
        let mut squared_error = 0.0;
        for first in (0..rows).step_by(run).rev() {
            let size = run.min(rows - first);
            let last = first + size;
            let root = Block::of(triangle, first, size);
            // What the rows that are rounded already ask of these.
            let asked = triangle.filter(|_| last < rows).map(|triangle| {
                let right = triangle.as_ref().submatrix(first, last, size, rows - last);
                dense::product(right, rest.as_ref().submatrix(last, 0, rows - last, columns))
            });
            for column in 0..columns {
                let asked = |i: usize| asked.as_ref().map_or(0.0, |asked| asked[(i, column)]);
                let wanted: Vec<f64> =
                    (0..size).map(|i| weight.at(first + i, column) + asked(i) / root.at(i, i)).collect();
                let grid = grid_of(storage, &wanted, &root);
                grids[first / run * columns + column] = grid;
                let mut left = vec![0f64; size];
                for i in (0..size).rev() {
                    let fed: f64 = (i + 1..size).map(|k| root.at(i, k) * left[k]).sum();
                    let target = wanted[i] + fed / root.at(i, i);
                    let element = grid.element(target as f32);
                    let number = f64::from(grid.number(element));
                    left[i] = weight.at(first + i, column) - number;
                    rest[(first + i, column)] = left[i];
                    elements[(first + i) * columns + column] = element;
                    squared_error += (root.at(i, i) * (target - number)).powi(2);
                }
            }
        }
        let stored = StoredTensor::on_grids(storage, &[rows, columns], &elements, &grids);
        Ok(Rounded { stored, rest: Matrix::new(rest), squared_error })
    }
}

impl Rounded {
    /// The numbers that are stored, of the weight that was rounded: `[d_in, d_out]`.
    ///
    /// # Panics
    /// For a weight of another shape.
    pub fn numbers(&self, weight: &Matrix) -> Matrix {
        Matrix::from_fn(weight.rows(), weight.columns(), |i, j| weight.at(i, j) - self.rest.at(i, j))
    }
}

/// Rows and columns of a triangle that belong to one run; the identity where there is none.
struct Block {
    size: usize,
    entries: Vec<f64>,
}

impl Block {
    fn of(triangle: Option<&Matrix>, first: usize, size: usize) -> Block {
        let entry = |at: usize| {
            let (i, j) = (at / size, at % size);
            match triangle {
                // A direction that inputs do not have asks nothing of others.
                Some(t) if i == j => t
                    .at(first + i, first + j)
                    .abs()
                    .max(f64::MIN_POSITIVE.sqrt())
                    .copysign(t.at(first + i, first + j)),
                Some(t) => t.at(first + i, first + j),
                None => f64::from(i == j),
            }
        };
        Block { size, entries: (0..size * size).map(entry).collect() }
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.entries[i * self.size + j]
    }
}

/// The grid for a run of numbers of one column, the error of each row weighed by the diagonal of the root.
fn grid_of(storage: Storage, numbers: &[f64], root: &Block) -> Grid {
    let range = numbers.iter().fold([0f32; 2], |[low, high], x| [low.min(*x as f32), high.max(*x as f32)]);
    let whole = storage.grid(range);
    if !storage.is_packed() {
        return whole;
    }
    let error = |grid: &Grid| -> f64 {
        let squared = |(i, x): (usize, &f64)| {
            let number = grid.number(grid.element(*x as f32));
            (root.at(i, i) * (x - f64::from(number))).powi(2)
        };
        numbers.iter().enumerate().map(squared).sum()
    };
    let mut best = (whole, error(&whole));
    for share in &SHARES[1..] {
        let grid = storage.grid(range.map(|end| end * share));
        let found = error(&grid);
        if found < best.1 {
            best = (grid, found);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Conditioning, Distribution, Whitening, random_matrix};

    /// Inputs whose entries depend on each other, and a weight.
    fn case() -> (Matrix, Matrix) {
        let mixed = random_matrix(Distribution::Gaussian, 8, 48, 1, 1);
        let own = random_matrix(Distribution::Gaussian, 300, 48, 1, 2);
        let shared = random_matrix(Distribution::Gaussian, 300, 8, 1, 3).product(&mixed).unwrap();
        let x = Matrix::from_fn(300, 48, |i, j| shared.at(i, j) + 0.3 * own.at(i, j));
        (x, random_matrix(Distribution::Gaussian, 48, 20, 1, 4))
    }

    fn triangle(x: &Matrix) -> Matrix {
        let mut moment = x.transposed().product(x).unwrap();
        moment = Matrix::from_fn(48, 48, |i, j| moment.at(i, j) / 300.0);
        let conditioning = Conditioning { floor: 1e-12, ..Conditioning::default() };
        Whitening::new(&moment, None, &conditioning).unwrap().triangle()
    }

    fn numbers(stored: &StoredTensor) -> Matrix {
        let values = stored.decode().to_vec::<f32>().unwrap();
        Matrix::from_row_major(stored.shape()[0], stored.shape()[1], &values).unwrap()
    }

    fn output_error(x: &Matrix, w: &Matrix, stored: &StoredTensor) -> f64 {
        let q = numbers(stored);
        let off = Matrix::from_fn(w.rows(), w.columns(), |i, j| w.at(i, j) - q.at(i, j));
        x.product(&off).unwrap().squared_norm() / x.rows() as f64
    }

    #[test]
    fn feedback_loses_less_than_rounding_to_nearest() {
        let (x, w) = case();
        let root = triangle(&x);
        for storage in [Storage::blocks(4, 0), Storage::blocks(3, 0), Storage::int8(1)] {
            let storage = match storage.scales {
                Scales::Block { axis, .. } => Storage { scales: Scales::Block { axis, size: 16 }, ..storage },
                _ => storage,
            };
            let fed = Rounded::new(&w, Some(&root), storage).unwrap();
            let plain = Rounded::new(&w, None, storage).unwrap();
            let tensor = margay_tensor::Tensor::from_slice(&[48, 20], &w.to_row_major()).unwrap();
            let nearest = StoredTensor::encode(&tensor, storage).unwrap();
            let [fed_error, plain_error, nearest_error] =
                [&fed.stored, &plain.stored, &nearest].map(|s| output_error(&x, &w, s));
            assert!(fed_error < 0.5 * plain_error.min(nearest_error), "{storage}: {fed_error} {plain_error}");
            // The error is the one on the inputs, and what is left is what is said.
            assert!((fed.squared_error / fed_error - 1.0).abs() < 1e-6, "{storage}");
            let q = numbers(&fed.stored);
            let same = fed.numbers(&w);
            let off = Matrix::from_fn(48, 20, |i, j| same.at(i, j) - q.at(i, j));
            assert!(off.squared_norm() < 1e-20, "{storage}");
        }
    }

    #[test]
    fn without_inputs_a_range_is_cut_only_where_that_helps() {
        let (_, w) = case();
        let storage = Storage { scales: Scales::Block { axis: 0, size: 16 }, ..Storage::blocks(4, 0) };
        let rounded = Rounded::new(&w, None, storage).unwrap();
        let tensor = margay_tensor::Tensor::from_slice(&[48, 20], &w.to_row_major()).unwrap();
        let nearest = numbers(&StoredTensor::encode(&tensor, storage).unwrap());
        let off = Matrix::from_fn(48, 20, |i, j| w.at(i, j) - nearest.at(i, j));
        assert!(rounded.squared_error <= off.squared_norm());
        assert!((rounded.squared_error / rounded.rest.squared_norm() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn bad_input_is_named() {
        let (x, w) = case();
        let why =
            |triangle: &Matrix, storage| Rounded::new(&w, Some(triangle), storage).unwrap_err().to_string();
        let wide = Matrix::from_fn(48, 47, |_, _| 1.0);
        assert!(
            why(&wide, Storage::int8(1)).starts_with("the root of the second moment has the wrong shape")
        );
        assert!(why(&triangle(&x), Storage::int8(0)).starts_with("parameter `storage` is out of range"));
        let nan = Matrix::from_fn(48, 20, |_, _| f64::NAN);
        assert!(Rounded::new(&nan, None, Storage::int8(1)).is_err());
    }
}
