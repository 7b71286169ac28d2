//! Directions of random features (Choromanski and others, *Rethinking Attention with Performers*, arXiv 2009.14794).
//!
//! For a direction `w` of independent standard normal entries, `E[exp(w·x - ‖x‖²/2) exp(w·y - ‖y‖²/2)] = exp(x·y)`: means
//! over directions are unbiased estimates of the exponential of a product of queries and keys, made of positive numbers.
//! With directions at right angles to each other the estimate stays unbiased, and its variance is smaller.

use margay_tensor::random::stream_of;

use crate::{Distribution, Matrix, dense, random_matrix};

/// How directions are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Directions {
    /// Independent, with standard normal entries.
    Independent,
    /// At right angles in blocks of as many as the dimension, with the lengths of independent ones. The last block may be
    /// shorter.
    #[default]
    Orthogonal,
    /// At right angles, all of length `√dim`: the regularized kernel, which estimates another function of `x` and `y` close
    /// to the exponential, with less variance.
    Regularized,
}

/// `count` random directions as the columns of a matrix `[dim, count]`, named by seed and stream.
///
/// The matrix of more directions begins with that of fewer, but for [`Directions::Orthogonal`] and
/// [`Directions::Regularized`] within the last block.
pub fn random_directions(kind: Directions, dim: usize, count: usize, seed: u64, stream: u64) -> Matrix {
    let drawn = random_matrix(Distribution::Gaussian, count, dim, seed, stream);
    if kind == Directions::Independent || dim == 0 || count == 0 {
        return drawn.transposed();
    }
    let lengths = random_matrix(Distribution::Gaussian, count, dim, seed, stream ^ stream_of("lengths"));
    let length = |at: usize| match kind {
        Directions::Regularized => (dim as f64).sqrt(),
        _ => (0..dim).map(|i| lengths.at(at, i).powi(2)).sum::<f64>().sqrt(),
    };
    let bases: Vec<Matrix> = (0..count)
        .step_by(dim)
        .map(|first| {
            let size = dim.min(count - first);
            let block = Matrix::from_fn(dim, size, |i, j| drawn.at(first + j, i));
            let basis = Matrix::new(dense::orthonormal_basis(block.clone().into_faer()));
            // Reflectors leave the sign of a column to one of its entries. Vectors towards the drawn ones are uniform.
            let along = |j: usize| (0..dim).map(|i| block.at(i, j) * basis.at(i, j)).sum::<f64>();
            let signs: Vec<f64> = (0..size).map(|j| along(j).signum()).collect();
            Matrix::from_fn(dim, size, |i, j| signs[j] * basis.at(i, j))
        })
        .collect();
    let lengths: Vec<f64> = (0..count).map(length).collect();
    Matrix::from_fn(dim, count, |i, at| lengths[at] * bases[at / dim].at(i, at % dim))
}
