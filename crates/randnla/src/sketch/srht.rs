//! Products with subsampled randomized Hadamard transforms.
//!
//! A column that lies in memory as one piece is transformed by itself. Others are taken side by side, in panels, and one
//! residue of their rows after the other, so that the rows that share their higher bits are never needed at once. Both do
//! the same sums in the same order.

use std::ops::Range;

use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};

use super::{Single, Sketch};
use crate::panel::{self, Rows, Work};
use crate::{Scalar, hadamard};

/// Bytes of what panels hold at a time, in the second cache.
const PANELS: usize = 1 << 19;

/// Bytes of rows and of their sums that are brought together, in the last cache.
const ROWS: usize = 3 << 22;

/// A window of an SRHT.
pub(super) struct Srht<T> {
    /// The size of the Hadamard matrix.
    size: usize,
    /// Lowest bits of the index of a column that are summed over.
    summed: u32,
    /// Rows of the Hadamard matrix: higher and lowest bits.
    picked: Vec<(usize, usize)>,
    /// Of the columns of the window.
    signs: Vec<T>,
    /// The first of them.
    first: usize,
    scale: T,
}

impl<T: Scalar> Srht<T> {
    pub(super) fn new(sketch: &Sketch, single: &Single) -> Srht<T> {
        let size = single.columns.next_power_of_two();
        // That of the whole, so that windows have the same bits.
        let summed = hadamard::summed_stages(size, single.rows, 32 / size_of::<T>());
        let split = |i: usize| (i >> summed, i & ((1 << summed) - 1));
        Srht {
            size,
            summed,
            picked: single.hadamard_rows(sketch.rows.clone()).into_iter().map(split).collect(),
            signs: single.hadamard_signs(sketch.columns.clone()),
            first: sketch.columns.start,
            scale: T::from_f64(single.scale()),
        }
    }

    /// Adds the product with `x` to `out`.
    pub(super) fn add_product(&self, x: MatRef<'_, T>, out: MatMut<'_, T>) {
        self.run(x, out, false);
    }

    /// Adds the product of the transpose with `x` to `out`.
    pub(super) fn add_transposed_product(&self, x: MatRef<'_, T>, out: MatMut<'_, T>) {
        self.run(x, out, true);
    }

    fn run(&self, x: MatRef<'_, T>, out: MatMut<'_, T>, transposed: bool) {
        if x.row_stride() == 1 && out.row_stride() == 1 {
            return panel::vectorized(Columns { by: self, x, out, transposed });
        }
        match size_of::<T>() {
            4 => panel::vectorized(Panels::<T, 8> { by: self, x, out, transposed }),
            _ => panel::vectorized(Panels::<T, 4> { by: self, x, out, transposed }),
        }
    }

    /// The column of the window that has this residue and higher bits, and its sign.
    #[inline(always)]
    fn place(&self, residue: usize, high: usize) -> Option<(usize, T)> {
        let j = (residue + (high << self.summed)).checked_sub(self.first)?;
        self.signs.get(j).map(|sign| (j, *sign))
    }

    /// `1` or `-1`.
    #[inline(always)]
    fn sign(i: usize, j: usize) -> T {
        if hadamard::negative(i, j) { -T::ONE } else { T::ONE }
    }

    /// Sums of neighbours, `N` of them: the rows that are picked.
    #[inline(always)]
    fn sums<const N: usize>(&self, x: &[T], sums: &mut [T]) {
        let mut signs = [[T::ZERO; N]; N];
        for (i, row) in signs.iter_mut().enumerate() {
            for (j, sign) in row.iter_mut().enumerate() {
                *sign = Self::sign(i, j);
            }
        }
        let (groups, _) = x.as_chunks::<N>();
        for (sum, &(high, low)) in sums.iter_mut().zip(&self.picked) {
            let (group, signs) = (&groups[high], &signs[low]);
            let mut total = T::ZERO;
            for j in 0..N {
                total += signs[j] * group[j];
            }
            *sum = total * self.scale;
        }
    }

    /// Adds each row that is picked to its neighbours.
    #[inline(always)]
    fn spread(&self, x: &[T], to: &mut [T]) {
        for (v, &(high, low)) in x.iter().zip(&self.picked) {
            for (j, to) in to[high << self.summed..][..1 << self.summed].iter_mut().enumerate() {
                *to += Self::sign(low, j) * *v;
            }
        }
    }
}

/// One column after the other.
struct Columns<'a, T> {
    by: &'a Srht<T>,
    x: MatRef<'a, T>,
    out: MatMut<'a, T>,
    transposed: bool,
}

impl<T: Scalar> Work for Columns<'_, T> {
    #[inline(always)]
    fn run(mut self) {
        let Srht { size, summed, ref signs, first, scale, .. } = *self.by;
        // Two at a time share the signs. A line more, so that they do not fall into the same lines of the cache.
        let pitch = size + 64 / size_of::<T>();
        let mut whole = vec![T::ZERO; 2 * pitch];
        let mut sums = vec![T::ZERO; self.by.picked.len()];
        for j in (0..self.x.ncols()).step_by(2) {
            let (even, odd) = whole.split_at_mut(pitch);
            let last = self.x.ncols() - 1;
            let (x, y) = (panel::column(self.x, j), panel::column(self.x, last.min(j + 1)));
            if self.transposed {
                even.fill(T::ZERO);
                odd.fill(T::ZERO);
                self.by.spread(x, even);
                self.by.spread(y, odd);
            } else {
                signed(x, y, signs, &mut even[first..], &mut odd[first..]);
                for whole in [&mut *even, &mut *odd] {
                    whole[..first].fill(T::ZERO);
                    whole[first + x.len()..].fill(T::ZERO);
                }
            }
            for (j, whole) in (j..self.x.ncols()).zip([even, odd]) {
                let Some(out) = self.out.rb_mut().col_mut(j).try_as_col_major_mut() else { return };
                let out = out.as_slice_mut();
                hadamard::stages(&mut whole[..size], 1 << summed);
                if self.transposed {
                    for ((out, v), sign) in out.iter_mut().zip(&whole[first..]).zip(signs) {
                        *out += *sign * scale * *v;
                    }
                    continue;
                }
                match summed {
                    0 => self.by.sums::<1>(whole, &mut sums),
                    1 => self.by.sums::<2>(whole, &mut sums),
                    2 => self.by.sums::<4>(whole, &mut sums),
                    3 => self.by.sums::<8>(whole, &mut sums),
                    4 => self.by.sums::<16>(whole, &mut sums),
                    _ => self.by.sums::<32>(whole, &mut sums),
                }
                for (out, sum) in out.iter_mut().zip(&sums) {
                    *out += *sum;
                }
            }
        }
    }
}

/// Two columns times signs.
#[inline(always)]
fn signed<T: Scalar>(x: &[T], y: &[T], signs: &[T], to: &mut [T], other: &mut [T]) {
    let n = signs.len();
    let (x, y, to, other) = (&x[..n], &y[..n], &mut to[..n], &mut other[..n]);
    for i in 0..n {
        to[i] = signs[i] * x[i];
        other[i] = signs[i] * y[i];
    }
}

/// Columns side by side, `L` in a panel.
struct Panels<'a, T, const L: usize> {
    by: &'a Srht<T>,
    x: MatRef<'a, T>,
    out: MatMut<'a, T>,
    transposed: bool,
}

impl<T: Scalar, const L: usize> Work for Panels<'_, T, L> {
    #[inline(always)]
    fn run(mut self) {
        let Srht { size, summed, ref picked, .. } = *self.by;
        let height = size >> summed;
        let bytes = (height + picked.len()) * size_of::<T>();
        // What of a residue is brought together in the last cache, and what of that is worked on, in the second.
        let width = if PANELS / bytes / L >= 4 { 4 * L } else { L };
        let wide = (ROWS / bytes).max(8 * L).next_multiple_of(width);
        for begin in (0..self.x.ncols()).step_by(wide) {
            let columns = begin..self.x.ncols().min(begin + wide);
            if self.transposed {
                self.transposed(columns, height, width);
            } else {
                self.plain(columns, height, width);
            }
        }
    }
}

impl<T: Scalar, const L: usize> Panels<'_, T, L> {
    /// Rows are read as they lie, and written into blocks of `width` columns that are transformed by themselves.
    #[inline(always)]
    fn plain(&mut self, columns: Range<usize>, height: usize, width: usize) {
        let Srht { summed, ref picked, scale, .. } = *self.by;
        let blocks = columns.len().div_ceil(width);
        // A line more, so that blocks do not fall into the same lines of the cache.
        let pitch = height * width + 64 / size_of::<T>();
        let mut rows = vec![T::ZERO; blocks * pitch];
        let mut sums = vec![T::ZERO; blocks * picked.len() * width];
        for residue in 0..1usize << summed {
            for at in 0..height {
                let to = rows.chunks_exact_mut(pitch).map(|block| &mut block[at * width..][..width]);
                let from = columns.clone().step_by(width);
                for (to, first) in to.zip(from) {
                    match self.by.place(residue, at) {
                        Some((j, sign)) => {
                            let count = width.min(columns.end - first);
                            signed_row(&mut to[..count], sign, self.x, j, first);
                        }
                        None => to.fill(T::ZERO),
                    }
                }
            }
            let sums = sums.chunks_exact_mut(picked.len() * width);
            for (rows, sums) in rows.chunks_exact_mut(pitch).zip(sums) {
                hadamard::stages(&mut rows[..height * width], width);
                for (sum, &(high, low)) in sums.chunks_exact_mut(width).zip(picked) {
                    let row = &rows[high * width..][..width];
                    add_row(sum, Srht::sign(low, residue), row);
                }
            }
        }
        for sum in &mut sums {
            *sum *= scale;
        }
        for (sums, first) in sums.chunks_exact(picked.len() * width).zip(columns.clone().step_by(width)) {
            let out = self.out.rb_mut().subcols_mut(first, width.min(columns.end - first));
            panel::add_rows(sums, width, out, 0);
        }
    }

    #[inline(always)]
    fn transposed(&mut self, columns: Range<usize>, height: usize, width: usize) {
        let Srht { summed, ref picked, first: offset, scale, .. } = *self.by;
        for begin in columns.clone().step_by(width) {
            let columns = begin..columns.end.min(begin + width);
            let panels = columns.len().div_ceil(L);
            let mut rows = vec![[T::ZERO; L]; panels * picked.len()];
            let mut part = vec![[T::ZERO; L]; panels * height];
            panel::pack(self.x, Rows::from(0), columns.clone(), &mut rows);
            for residue in 0..1usize << summed {
                part.fill([T::ZERO; L]);
                for (part, rows) in part.chunks_exact_mut(height).zip(rows.chunks_exact(picked.len())) {
                    for (row, &(high, low)) in rows.iter().zip(picked) {
                        panel::add_scaled(&mut part[high], Srht::sign(low, residue), row);
                    }
                    hadamard::stages(part.as_flattened_mut(), L);
                    for (at, row) in part.iter_mut().enumerate() {
                        let by = self.by.place(residue, at).map_or(T::ZERO, |(_, sign)| sign * scale);
                        for v in row {
                            *v *= by;
                        }
                    }
                }
                let rows = Rows { first: residue as isize - offset as isize, step: 1 << summed };
                panel::add_unpacked(&part, self.out.rb_mut(), rows, columns.clone());
            }
        }
    }
}

/// `sum += by · row`.
#[inline(always)]
fn add_row<T: Scalar>(sum: &mut [T], by: T, row: &[T]) {
    for (sum, v) in sum.iter_mut().zip(row) {
        *sum += by * *v;
    }
}

/// Writes `sign · x[j, first..]`.
#[inline(always)]
fn signed_row<T: Scalar>(to: &mut [T], sign: T, x: MatRef<'_, T>, j: usize, first: usize) {
    let row = x.row(j).subcols(first, to.len());
    if let Some(row) = row.try_as_row_major() {
        for (to, v) in to.iter_mut().zip(row.as_slice()) {
            *to = sign * *v;
        }
    } else {
        for (at, to) in to.iter_mut().enumerate() {
            *to = sign * row[at];
        }
    }
}
