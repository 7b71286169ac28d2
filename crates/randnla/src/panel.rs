//! Columns of a matrix side by side, a few at a time.
//!
//! Sparse products and fast transforms work down the rows of a matrix and do the same to every column. A panel holds the
//! rows of some columns one after the other, so that each step is one operation on vectors, and what a step needs again
//! stays in the cache, whatever the layout of the matrix. The width `L` of panels is a constant, so that loops over a row
//! of a panel become vector operations.

use std::ops::Range;

use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};

use crate::Scalar;

/// A row of a panel.
pub(crate) type Row<T, const L: usize> = [T; L];

/// What is done to a panel, in code for the vectors of this machine.
pub(crate) trait Kernel<T> {
    /// The first panel holds the rows of the operand. The second has a row for each of the result and comes as zeros.
    fn run<const L: usize>(&mut self, from: &[Row<T, L>], to: &mut [Row<T, L>]);
}

/// Adds to `out`, for all columns of `x`, what `kernel` makes of their panels, whose rows have 64 bytes.
pub(crate) fn by_panels<T: Scalar>(x: MatRef<'_, T>, out: MatMut<'_, T>, kernel: &mut impl Kernel<T>) {
    match size_of::<T>() {
        4 => vectorized(Panels::<_, _, 16> { x, out, kernel }),
        _ => vectorized(Panels::<_, _, 8> { x, out, kernel }),
    }
}

struct Panels<'a, T, K, const L: usize> {
    x: MatRef<'a, T>,
    out: MatMut<'a, T>,
    kernel: &'a mut K,
}

impl<T: Scalar, K: Kernel<T>, const L: usize> Work for Panels<'_, T, K, L> {
    #[inline(always)]
    fn run(mut self) {
        let (rows, columns) = self.x.shape();
        let mut from = vec![[T::ZERO; L]; rows];
        let mut to = vec![[T::ZERO; L]; self.out.nrows()];
        for first in (0..columns).step_by(L) {
            let columns = first..columns.min(first + L);
            pack(self.x, Rows::from(0), columns.clone(), &mut from);
            to.fill([T::ZERO; L]);
            self.kernel.run(&from, &mut to);
            add_unpacked(&to, self.out.rb_mut(), Rows::from(0), columns);
        }
    }
}

/// What is to run as code for the vectors of this machine. A closure in its place would be called, not inlined.
pub(crate) trait Work {
    /// The work. `#[inline(always)]`, as all that it calls and that is to be compiled for vectors.
    fn run(self);
}

/// Runs it.
pub(crate) fn vectorized(work: impl Work) {
    struct Call<W>(W);

    impl<W: Work> pulp::NullaryFnOnce for Call<W> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            self.0.run();
        }
    }

    pulp::Arch::new().dispatch(Call(work));
}

/// `sum += by · row`.
#[inline(always)]
pub(crate) fn add_scaled<T: Scalar, const L: usize>(sum: &mut Row<T, L>, by: T, row: &Row<T, L>) {
    // By value: lanes are added at once where nothing can lie in the same memory.
    let (mut next, row) = (*sum, *row);
    for lane in 0..L {
        next[lane] += by * row[lane];
    }
    *sum = next;
}

/// Rows `first`, `first + step`, … of a matrix. Those that it does not have are zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) first: isize,
    pub(crate) step: usize,
}

impl Rows {
    /// From this one on.
    pub(crate) fn from(first: usize) -> Rows {
        Rows { first: first as isize, step: 1 }
    }

    /// The row at this place, in a matrix of `rows`.
    #[inline(always)]
    fn at(self, place: usize, rows: usize) -> Option<usize> {
        let row = self.first + (place * self.step) as isize;
        (0..rows as isize).contains(&row).then_some(row as usize)
    }
}

/// Copies rows of these columns of `x` into panels, one after the other. The last panel may have columns that are not
/// there: zeros.
#[inline(always)]
pub(crate) fn pack<T: Scalar, const L: usize>(
    x: MatRef<'_, T>,
    rows: Rows,
    columns: Range<usize>,
    panels: &mut [Row<T, L>],
) {
    let count = columns.len().div_ceil(L);
    let height = panels.len() / count;
    if x.row_stride() == 1 {
        for (panel, first) in panels.chunks_exact_mut(height).zip(columns.clone().step_by(L)) {
            pack_columns(x.subcols(first, L.min(columns.end - first)), rows, panel);
        }
        return;
    }
    for at in 0..height {
        let Some(i) = rows.at(at, x.nrows()) else {
            for panel in 0..count {
                panels[panel * height + at] = [T::ZERO; L];
            }
            continue;
        };
        let row = x.row(i).subcols(columns.start, columns.len());
        if let Some(row) = row.try_as_row_major() {
            let (whole, rest) = row.as_slice().as_chunks::<L>();
            for (panel, part) in whole.iter().enumerate() {
                panels[panel * height + at] = *part;
            }
            if !rest.is_empty() {
                let last = &mut panels[whole.len() * height + at];
                *last = [T::ZERO; L];
                last[..rest.len()].copy_from_slice(rest);
            }
        } else {
            for panel in 0..count {
                for (lane, to) in panels[panel * height + at].iter_mut().enumerate() {
                    let j = panel * L + lane;
                    *to = if j < columns.len() { row[j] } else { T::ZERO };
                }
            }
        }
    }
}

/// Copies rows of a matrix of at most `L` columns, whose rows follow each other in memory.
#[inline(always)]
fn pack_columns<T: Scalar, const L: usize>(x: MatRef<'_, T>, rows: Rows, panel: &mut [Row<T, L>]) {
    let mut lanes: [&[T]; L] = [&[]; L];
    for (lane, to) in lanes.iter_mut().enumerate().take(x.ncols()) {
        *to = column(x, lane);
    }
    if x.ncols() == L && rows.step == 1 && rows.first >= 0 {
        let begin = x.nrows().min(rows.first as usize);
        let (panel, beyond) = panel.split_at_mut(panel.len().min(x.nrows() - begin));
        for lane in &mut lanes {
            *lane = &lane[begin..begin + panel.len()];
        }
        transpose(&lanes, panel);
        return beyond.fill([T::ZERO; L]);
    }
    for (at, row) in panel.iter_mut().enumerate() {
        *row = [T::ZERO; L];
        if let Some(i) = rows.at(at, x.nrows()) {
            for lane in 0..x.ncols() {
                row[lane] = lanes[lane][i];
            }
        }
    }
}

/// A column of a matrix whose rows follow each other in memory.
#[inline(always)]
pub(crate) fn column<T: Scalar>(x: MatRef<'_, T>, j: usize) -> &[T] {
    x.col(j).try_as_col_major().map_or(&[], |column| column.as_slice())
}

/// The rows of a panel from its columns.
#[inline(always)]
fn transpose<T: Scalar, const L: usize>(lanes: &[&[T]; L], panel: &mut [Row<T, L>]) {
    let height = panel.len();
    let (tiles, rest) = panel.as_chunks_mut::<L>();
    let zeros = [T::ZERO; L];
    for (at, tile) in tiles.iter_mut().enumerate() {
        // All checks come before all reads, so that these are vectors.
        let mut parts = [&zeros; L];
        for lane in 0..L {
            if let Some(part) = lanes[lane][at * L..].first_chunk::<L>() {
                parts[lane] = part;
            }
        }
        *tile = turned(parts);
    }
    let begin = height - rest.len();
    for (i, row) in rest.iter_mut().enumerate() {
        for lane in 0..L {
            row[lane] = lanes[lane][begin + i];
        }
    }
}

/// The transpose of a square.
#[inline(always)]
pub(crate) fn turned<T: Scalar, const L: usize>(square: [&[T; L]; L]) -> [Row<T, L>; L] {
    let mut rows = [[T::ZERO; L]; L];
    for lane in 0..L {
        let column = *square[lane];
        for i in 0..L {
            rows[i][lane] = column[i];
        }
    }
    rows
}

/// Adds panels to rows of these columns of `out`, as far as it has such rows.
#[inline(always)]
pub(crate) fn add_unpacked<T: Scalar, const L: usize>(
    panels: &[Row<T, L>],
    mut out: MatMut<'_, T>,
    rows: Rows,
    columns: Range<usize>,
) {
    let count = columns.len().div_ceil(L);
    let height = panels.len() / count;
    let limit = out.nrows();
    for (panel, first) in panels.chunks_exact(height).zip(columns.clone().step_by(L)) {
        let lanes = L.min(columns.end - first);
        if out.row_stride() == 1 && rows.step == 1 && rows.first >= 0 {
            let begin = limit.min(rows.first as usize);
            for lane in 0..lanes {
                if let Some(to) = out.rb_mut().col_mut(first + lane).try_as_col_major_mut() {
                    for (to, row) in to.as_slice_mut()[begin..].iter_mut().zip(panel) {
                        *to += row[lane];
                    }
                }
            }
            continue;
        }
        for (at, row) in panel.iter().enumerate() {
            if let Some(i) = rows.at(at, limit) {
                for lane in 0..lanes {
                    out[(i, first + lane)] += row[lane];
                }
            }
        }
    }
}

/// Adds rows, `pitch` numbers apart, to those of `out` from `first` on, as far as there are such rows.
#[inline(always)]
pub(crate) fn add_rows<T: Scalar>(rows: &[T], pitch: usize, out: MatMut<'_, T>, first: usize) {
    let (height, width) = ((rows.len() / pitch).min(out.nrows() - first), out.ncols());
    let mut out = out.subrows_mut(first, height);
    if out.col_stride() == 1 {
        for (i, row) in rows.chunks_exact(pitch).take(height).enumerate() {
            if let Some(to) = out.rb_mut().row_mut(i).try_as_row_major_mut() {
                for (to, v) in to.as_slice_mut().iter_mut().zip(row) {
                    *to += *v;
                }
            }
        }
        return;
    }
    let mut whole = (0, 0);
    if out.row_stride() == 1 {
        whole = (height - height % SQUARE, width - width % SQUARE);
        for j in (0..whole.1).step_by(SQUARE) {
            for i in (0..whole.0).step_by(SQUARE) {
                add_square(&rows[i * pitch + j..], pitch, out.rb_mut().submatrix_mut(i, j, SQUARE, SQUARE));
            }
        }
    }
    for j in 0..width {
        let begin = if j < whole.1 { whole.0 } else { 0 };
        for (i, row) in rows.chunks_exact(pitch).take(height).enumerate().skip(begin) {
            out[(i, j)] += row[j];
        }
    }
}

/// Rows and columns of a square that is transposed in registers.
const SQUARE: usize = 8;

/// Adds a square of rows, `pitch` numbers apart, to one whose columns are one piece of memory each.
#[inline(always)]
fn add_square<T: Scalar>(rows: &[T], pitch: usize, mut out: MatMut<'_, T>) {
    let zeros = [T::ZERO; SQUARE];
    let mut parts = [&zeros; SQUARE];
    for (i, part) in parts.iter_mut().enumerate() {
        if let Some(row) = rows[i * pitch..].first_chunk::<SQUARE>() {
            *part = row;
        }
    }
    for (j, column) in turned(parts).iter().enumerate() {
        if let Some(to) = out.rb_mut().col_mut(j).try_as_col_major_mut()
            && let Some(to) = to.as_slice_mut().first_chunk_mut::<SQUARE>()
        {
            let mut sum = *to;
            for i in 0..SQUARE {
                sum[i] += column[i];
            }
            *to = sum;
        }
    }
}
