//! Tensor trains (Oseledets, *Tensor-train decomposition*, SISC 2011, algorithm 1).

use faer::MatRef;

use super::{DenseTensor, check_tolerance, smallest_rank};
use crate::dense::ThinSvd;
use crate::{RandnlaError, Scalar, dense};

/// A tensor as a product of cores: the element at `i₁ … i_d` is `G₁[i₁] G₂[i₂] … G_d[i_d]`, a product of matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorTrain<T = f64> {
    /// One for each mode: `[rank before, extent, rank after]`; the first and last ranks are 1.
    pub cores: Vec<DenseTensor<T>>,
}

impl<T: Scalar> TensorTrain<T> {
    /// Ranks between the cores.
    pub fn ranks(&self) -> Vec<usize> {
        self.cores[..self.cores.len().saturating_sub(1)].iter().map(|c| c.extents[2]).collect()
    }

    /// Numbers that are stored.
    pub fn parameters(&self) -> usize {
        self.cores.iter().map(|c| c.data.len()).sum()
    }

    /// The whole tensor.
    pub fn to_tensor(&self) -> DenseTensor<T> {
        let mut data = vec![T::ONE];
        let mut extents = Vec::with_capacity(self.cores.len());
        for core in &self.cores {
            let [before, extent, after] = shape(core);
            let rows = data.len() / before;
            let left = MatRef::from_row_major_slice(&data, rows, before);
            let right = MatRef::from_row_major_slice(&core.data, before, extent * after);
            data = row_major(dense::product(left, right).as_ref());
            extents.push(extent);
        }
        DenseTensor { extents, data }
    }

    /// The sum of all elements times the weights of their indices: the contraction with a vector for each mode, as the
    /// expected value of a function that is given as a table of independent discrete inputs. Costs as much as there are
    /// numbers in the cores.
    ///
    /// # Errors
    /// [`RandnlaError::Length`] unless there is a vector for each mode, as long as its extent.
    pub fn contract(&self, vectors: &[&[T]]) -> Result<T, RandnlaError> {
        let length = |what, expected, found| match expected == found {
            true => Ok(()),
            false => Err(RandnlaError::Length { what, expected, found }),
        };
        length("the list of vectors", self.cores.len(), vectors.len())?;
        let mut row = vec![T::ONE];
        for (core, vector) in self.cores.iter().zip(vectors) {
            let [_, extent, after] = shape(core);
            length("a vector", extent, vector.len())?;
            let mut next = vec![T::ZERO; after];
            for (slice, r) in core.data.chunks_exact(extent * after).zip(&row) {
                for (entries, v) in slice.chunks_exact(after).zip(*vector) {
                    next.iter_mut().zip(entries).for_each(|(n, e)| *n += *r * *v * *e);
                }
            }
            row = next;
        }
        Ok(row[0])
    }
}

fn shape<T>(core: &DenseTensor<T>) -> [usize; 3] {
    [core.extents[0], core.extents[1], core.extents[2]]
}

fn row_major<T: Scalar>(m: MatRef<'_, T>) -> Vec<T> {
    (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)])).collect()
}

/// The tensor train of the smallest ranks with `‖T - TT‖ ≤ tolerance ‖T‖` (Frobenius norm), within a factor `√(d - 1)` of
/// the best error for its ranks.
///
/// # Errors
/// [`RandnlaError::Length`] for a tensor without modes, [`RandnlaError::Empty`], [`RandnlaError::NonFinite`],
/// [`RandnlaError::Parameter`] for a tolerance that is negative or not finite, and [`RandnlaError::NoConvergence`].
pub fn tt_svd<T: Scalar>(tensor: &DenseTensor<T>, tolerance: f64) -> Result<TensorTrain<T>, RandnlaError> {
    tensor.check(1)?;
    check_tolerance(tolerance)?;
    let squared = tolerance * tolerance * tensor.squared_norm() / (tensor.extents.len() - 1).max(1) as f64;
    sweep(tensor, &|s| smallest_rank(s, squared))
}

/// The tensor train of TT-SVD with ranks of at most `rank`: its squared error is at most the sum of what the unfoldings leave
/// out at that rank, and so at most `d - 1` times the least one of these ranks.
///
/// # Errors
/// [`RandnlaError::Rank`] for a rank of 0, and those of [`tt_svd`].
pub fn tt_svd_to_rank<T: Scalar>(
    tensor: &DenseTensor<T>,
    rank: usize,
) -> Result<TensorTrain<T>, RandnlaError> {
    tensor.check(1)?;
    if rank == 0 {
        return Err(RandnlaError::Rank { max: tensor.data.len(), found: 0 });
    }
    sweep(tensor, &|s| rank.min(s.len()))
}

/// One core after the other, of the rank that `rank_of` takes of the singular values of the rest.
fn sweep<T: Scalar>(
    tensor: &DenseTensor<T>,
    rank_of: &dyn Fn(&[f64]) -> usize,
) -> Result<TensorTrain<T>, RandnlaError> {
    let extents = &tensor.extents;
    let modes = extents.len();
    let mut cores = Vec::with_capacity(modes);
    let mut rest = tensor.data.clone();
    let mut before = 1;
    for &extent in &extents[..modes - 1] {
        let rows = before * extent;
        let unfolding = MatRef::from_row_major_slice(&rest, rows, rest.len() / rows);
        let ThinSvd { u, s, v } = dense::thin_svd(unfolding)?;
        let rank = rank_of(&s);
        let data = row_major(u.as_ref().subcols(0, rank));
        cores.push(DenseTensor { extents: vec![before, extent, rank], data });
        let mut right = v.subcols(0, rank).to_owned();
        dense::scale_columns(&mut right, |j| s[j]);
        rest = row_major(right.transpose());
        before = rank;
    }
    cores.push(DenseTensor { extents: vec![before, extents[modes - 1], 1], data: rest });
    Ok(TensorTrain { cores })
}
