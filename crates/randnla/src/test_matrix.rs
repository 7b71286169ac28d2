//! Random test matrices, drawn from Philox streams.

use margay_tensor::random::Philox;

use crate::{Matrix, Scalar};

/// The distribution of the entries of a test matrix: independent, mean 0, variance 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Distribution {
    /// Standard normal.
    #[default]
    Gaussian,
    /// +1 or −1 with equal probability (Rademacher).
    Sign,
    /// Uniform between −√3 and √3.
    Uniform,
}

/// A matrix of independent entries with mean 0 and variance 1.
///
/// The entry at row `i` and column `j` is element `i * columns + j` of the stream named by `seed` and
/// `stream`, so it depends on nothing else but `columns`.
pub fn random_matrix(
    distribution: Distribution,
    rows: usize,
    columns: usize,
    seed: u64,
    stream: u64,
) -> Matrix {
    let philox = Philox::new(seed, stream);
    let mut row = vec![0.0; columns];
    let mut entries = vec![0.0; rows * columns];
    for (i, out) in entries.chunks_exact_mut(columns.max(1)).enumerate() {
        f64::fill(distribution, &philox, (i * columns) as u64, &mut row);
        out.copy_from_slice(&row);
    }
    Matrix::from_fn(rows, columns, |i, j| entries[i * columns + j])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_named_by_seed_and_stream() {
        let draw = |seed, stream| random_matrix(Distribution::Gaussian, 3, 5, seed, stream);
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
        let taller = random_matrix(Distribution::Gaussian, 4, 5, 1, 2);
        assert_eq!(taller.to_row_major_f64()[..15], draw(1, 2).to_row_major_f64());
        assert_eq!(random_matrix(Distribution::Sign, 2, 0, 0, 0).columns(), 0);
    }
}
