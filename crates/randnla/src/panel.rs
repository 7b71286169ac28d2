//! Columns of a matrix side by side, a few at a time.
//!
//! Sparse products and fast transforms work down the rows of a matrix and do the same to every column. A panel holds the
//! rows of some columns one after the other, so that each step is one operation on vectors, and what a step needs again
//! stays in the cache, whatever the layout of the matrix. The width `L` of panels is a constant, so that loops over a row
//! of a panel become vector operations.

use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};

use crate::Scalar;

/// A row of a panel.
pub(crate) type Row<T, const L: usize> = [T; L];

/// What is done to a panel, in code for the vectors of this machine.
pub(crate) trait Kernel<T> {
    /// The first panel holds the rows of the operand, then zeros up to as many rows as were asked for, and may be
    /// overwritten. The second has a row for each of the result and comes as zeros.
    fn run<const L: usize>(&mut self, from: &mut [Row<T, L>], to: &mut [Row<T, L>]);
}

/// Adds to `out`, for all columns of `x`, what `kernel` makes of their panels, of at least `padded` rows of 64 bytes.
pub(crate) fn by_panels<T: Scalar>(
    x: MatRef<'_, T>,
    padded: usize,
    out: MatMut<'_, T>,
    kernel: &mut impl Kernel<T>,
) {
    match size_of::<T>() {
        4 => panels::<T, 16>(x, padded, out, kernel),
        _ => panels::<T, 8>(x, padded, out, kernel),
    }
}

fn panels<T: Scalar, const L: usize>(
    x: MatRef<'_, T>,
    padded: usize,
    mut out: MatMut<'_, T>,
    kernel: &mut impl Kernel<T>,
) {
    let mut from = vec![[T::ZERO; L]; padded.max(x.nrows())];
    let mut to = vec![[T::ZERO; L]; out.nrows()];
    for first in (0..x.ncols()).step_by(L) {
        let count = L.min(x.ncols() - first);
        load(x.subcols(first, count), &mut from);
        from[x.nrows()..].fill([T::ZERO; L]);
        to.fill([T::ZERO; L]);
        pulp::Arch::new().dispatch(Run { kernel: &mut *kernel, from: &mut from, to: &mut to });
        store(&to, out.rb_mut().subcols_mut(first, count));
    }
}

/// A call of a kernel. A closure in its place would be called, not inlined, by the code for vectors.
struct Run<'a, T, K, const L: usize> {
    kernel: &'a mut K,
    from: &'a mut [Row<T, L>],
    to: &'a mut [Row<T, L>],
}

impl<T: Scalar, K: Kernel<T>, const L: usize> pulp::NullaryFnOnce for Run<'_, T, K, L> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.kernel.run(self.from, self.to);
    }
}

/// `sum += by · row`.
#[inline(always)]
pub(crate) fn add_scaled<T: Scalar, const L: usize>(sum: &mut Row<T, L>, by: T, row: &Row<T, L>) {
    for lane in 0..L {
        sum[lane] += by * row[lane];
    }
}

/// Rows of columns that are copied together.
const TILE: usize = 8;

fn load<T: Scalar, const L: usize>(x: MatRef<'_, T>, panel: &mut [Row<T, L>]) {
    let panel = &mut panel[..x.nrows()];
    if x.ncols() < L {
        panel.fill([T::ZERO; L]);
    }
    let columns: Option<Vec<&[T]>> =
        (0..x.ncols()).map(|j| Some(x.col(j).try_as_col_major()?.as_slice())).collect();
    if let Some(columns) = columns {
        let tiles = panel.len() / TILE;
        for tile in 0..tiles {
            let rows = &mut panel[tile * TILE..(tile + 1) * TILE];
            for (lane, column) in columns.iter().enumerate() {
                let column = &column[tile * TILE..(tile + 1) * TILE];
                rows.iter_mut().zip(column).for_each(|(row, v)| row[lane] = *v);
            }
        }
        for (i, row) in panel.iter_mut().enumerate().skip(tiles * TILE) {
            columns.iter().enumerate().for_each(|(lane, column)| row[lane] = column[i]);
        }
        return;
    }
    for (i, row) in panel.iter_mut().enumerate() {
        match x.row(i).try_as_row_major() {
            Some(from) => row[..x.ncols()].copy_from_slice(from.as_slice()),
            None => (0..x.ncols()).for_each(|lane| row[lane] = x[(i, lane)]),
        }
    }
}

/// Adds the panel to the columns of `out`.
fn store<T: Scalar, const L: usize>(panel: &[Row<T, L>], mut out: MatMut<'_, T>) {
    for lane in 0..out.ncols() {
        let column = out.rb_mut().col_mut(lane);
        for (v, row) in column.iter_mut().zip(panel) {
            *v += row[lane];
        }
    }
}
