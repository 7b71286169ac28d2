//! Random test matrices, drawn from Philox streams.

use margay_tensor::random::Philox;

use crate::Matrix;

/// The distribution of the entries of a test matrix: independent, mean 0, variance 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Distribution {
    /// Standard normal.
    #[default]
    Gaussian,
    /// +1 or −1 with equal probability.
    Sign,
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
        let first = (i * columns) as u64;
        match distribution {
            Distribution::Gaussian => philox.fill_normal_f64(first, &mut row),
            Distribution::Sign => philox.fill_signs(first, &mut row),
        }
        out.copy_from_slice(&row);
    }
    Matrix::from_fn(rows, columns, |i, j| entries[i * columns + j])
}

/// A sketching matrix `S` of shape `[dim, size]`, scaled so that the expectation of `S Sᵀ` is the identity.
///
/// It is [`random_matrix`] divided by the square root of `size`.
pub fn sketch(distribution: Distribution, dim: usize, size: usize, seed: u64, stream: u64) -> Matrix {
    let by = 1.0 / (size.max(1) as f64).sqrt();
    let unit = random_matrix(distribution, dim, size, seed, stream);
    Matrix::from_fn(dim, size, |i, j| unit.at(i, j) * by)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over 64 seeds the mean of every entry of `S Sᵀ` is within 4 standard errors of the identity's. The
    /// variance of an entry is 1 / size off the diagonal; on it, 2 / size for normal and 0 for sign entries.
    #[test]
    fn sketches_are_unbiased() {
        const SEEDS: u64 = 64;
        let (dim, size) = (6, 16);
        for (distribution, on_diagonal) in [(Distribution::Gaussian, 2.0), (Distribution::Sign, 0.0)] {
            let mut mean = vec![0.0; dim * dim];
            for seed in 0..SEEDS {
                let s = sketch(distribution, dim, size, seed, 5);
                let outer = s.product(&s.transposed()).unwrap().to_row_major_f64();
                mean.iter_mut().zip(outer).for_each(|(m, v)| *m += v / SEEDS as f64);
            }
            for (index, found) in mean.into_iter().enumerate() {
                let same = index / dim == index % dim;
                let (expected, variance) = if same { (1.0, on_diagonal) } else { (0.0, 1.0) };
                let bound = 4.0 * f64::sqrt(variance / (size as f64 * SEEDS as f64)) + 1e-12;
                assert!((found - expected).abs() <= bound, "{distribution:?} entry {index}: {found}");
            }
        }
    }

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
