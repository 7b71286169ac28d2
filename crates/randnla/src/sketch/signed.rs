//! Products with sketches whose columns have the same number of entries of one magnitude.

use std::ops::Range;

use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};

use super::gather;
use crate::Scalar;
use crate::panel::{self, Row, Rows, Work};

/// Rows that are in panels at a time: few, so that reading them goes on while others are added.
const TILE: usize = 16;

/// Bytes of rows side by side that are added to, in the last cache.
const SHORT: usize = 1 << 23;

/// Entries in a column from which on they are sorted by rows of the result first.
const SEVERAL: usize = 4;

/// A window of such a sketch, as a place and a sign for each entry.
pub(super) struct Signed<T> {
    rows: usize,
    columns: usize,
    /// Entries in each column, those outside of the window among them.
    nonzeros: usize,
    /// Twice the row, and 1 where the entry is negative; twice the number of rows for one outside of the window. Column by
    /// column.
    entries: Vec<u32>,
    scale: T,
}

impl<T: Scalar> Signed<T> {
    /// The window of these rows and columns, from a function that writes the rows and signs of a column into a list of
    /// `nonzeros`. Nothing if there are more rows than entries can name.
    pub(super) fn new(
        rows: Range<usize>,
        columns: Range<usize>,
        nonzeros: usize,
        scale: f64,
        mut draw: impl FnMut(usize, &mut [(usize, f64)]),
    ) -> Option<Signed<T>> {
        u32::try_from(2 * rows.len() + 1).ok()?;
        let mut column = vec![(0, 0.0); nonzeros];
        let mut entries = Vec::with_capacity(columns.len() * nonzeros);
        for j in columns.clone() {
            draw(j, &mut column);
            entries.extend(column.iter().map(|&(i, sign)| match rows.contains(&i) {
                true => (2 * (i - rows.start)) as u32 + u32::from(sign < 0.0),
                false => (2 * rows.len()) as u32,
            }));
        }
        let scale = T::from_f64(scale);
        Some(Signed { rows: rows.len(), columns: columns.len(), nonzeros, entries, scale })
    }

    /// Adds the product with `x` to `out`.
    pub(super) fn add_product(&self, x: MatRef<'_, T>, out: MatMut<'_, T>) {
        self.run(x, out, false);
    }

    /// Adds the product of the transpose with `x` to `out`.
    pub(super) fn add_transposed_product(&self, x: MatRef<'_, T>, out: MatMut<'_, T>) {
        self.run(x, out, true);
    }

    fn run(&self, x: MatRef<'_, T>, mut out: MatMut<'_, T>, transposed: bool) {
        let mut x = x;
        let together = x.row_stride() == 1 || x.col_stride() == 1;
        if !transposed && together && self.nonzeros >= SEVERAL {
            let (together, rest) = x.split_at_col(x.ncols() - x.ncols() % gather::width::<T>());
            let (to, out_rest) = out.split_at_col_mut(together.ncols());
            gather::add_product(&self.entries, self.nonzeros, self.scale, together, to);
            (x, out) = (rest, out_rest);
        }
        if x.row_stride() != 1 && x.col_stride() == 1 {
            return panel::vectorized(WholeRows { by: self, x, out, transposed });
        }
        // Rows of 32 bytes: a panel of a thousand of them stays in the first cache.
        match size_of::<T>() {
            4 => panel::vectorized(Panels::<T, 8> { by: self, x, out, transposed }),
            _ => panel::vectorized(Panels::<T, 4> { by: self, x, out, transposed }),
        }
    }
}

/// Operands whose rows are one piece of memory each, added to each other as they are.
struct WholeRows<'a, T> {
    by: &'a Signed<T>,
    x: MatRef<'a, T>,
    out: MatMut<'a, T>,
    transposed: bool,
}

impl<T: Scalar> Work for WholeRows<'_, T> {
    #[inline(always)]
    fn run(mut self) {
        let Signed { rows, columns: height, nonzeros, ref entries, scale } = *self.by;
        let signs = [scale, -scale];
        let width = (SHORT / size_of::<T>() / (rows + 1)).max(64);
        // One row more, for what is outside of the window.
        let count = if self.transposed { TILE.min(height) } else { rows + 1 };
        let mut sums = vec![T::ZERO; count * width.min(self.x.ncols())];
        for begin in (0..self.x.ncols()).step_by(width) {
            let width = width.min(self.x.ncols() - begin);
            let x = self.x.subcols(begin, width);
            let sums = &mut sums[..count * width];
            if self.transposed {
                for first in (0..height).step_by(TILE) {
                    let part = &mut sums[..TILE.min(height - first) * width];
                    part.fill(T::ZERO);
                    let entries = entries[first * nonzeros..].chunks_exact(nonzeros);
                    for (sum, entries) in part.chunks_exact_mut(width).zip(entries) {
                        for entry in entries {
                            let i = (entry >> 1) as usize;
                            if i < rows {
                                add_row(sum, signs[(entry & 1) as usize], x, i);
                            }
                        }
                    }
                    panel::add_rows(part, width, self.out.rb_mut().subcols_mut(begin, width), first);
                }
                continue;
            }
            sums.fill(T::ZERO);
            for (j, entries) in entries.chunks_exact(nonzeros).enumerate() {
                for entry in entries {
                    let to = &mut sums[(entry >> 1) as usize * width..][..width];
                    add_row(to, signs[(entry & 1) as usize], x, j);
                }
            }
            panel::add_rows(sums, width, self.out.rb_mut().subcols_mut(begin, width), 0);
        }
    }
}

/// `sum += by · x[i, :]`.
#[inline(always)]
fn add_row<T: Scalar>(sum: &mut [T], by: T, x: MatRef<'_, T>, i: usize) {
    if let Some(row) = x.row(i).try_as_row_major() {
        for (sum, v) in sum.iter_mut().zip(row.as_slice()) {
            *sum += by * *v;
        }
    }
}

struct Panels<'a, T, const L: usize> {
    by: &'a Signed<T>,
    x: MatRef<'a, T>,
    out: MatMut<'a, T>,
    transposed: bool,
}

impl<T: Scalar, const L: usize> Work for Panels<'_, T, L> {
    #[inline(always)]
    fn run(self) {
        match self.by.nonzeros {
            1 => self.by_entries::<1>(),
            2 => self.by_entries::<2>(),
            4 => self.by_entries::<4>(),
            8 => self.by_entries::<8>(),
            _ => self.by_entries::<0>(),
        }
    }
}

impl<T: Scalar, const L: usize> Panels<'_, T, L> {
    /// `S` entries in each column, or 0 for any number.
    #[inline(always)]
    fn by_entries<const S: usize>(mut self) {
        let Signed { rows, columns: height, nonzeros, ref entries, scale } = *self.by;
        let nonzeros = if S > 0 { S } else { nonzeros };
        let signs = [scale, -scale];
        // One row more, for what is outside of the window.
        let mut short = vec![[T::ZERO; L]; rows + 1];
        let mut tile = vec![[T::ZERO; L]; TILE.min(height)];
        for begin in (0..self.x.ncols()).step_by(L) {
            let columns = begin..self.x.ncols().min(begin + L);
            if self.transposed {
                panel::pack(self.x, Rows::from(0), columns.clone(), &mut short);
            } else {
                short.fill([T::ZERO; L]);
            }
            for first in (0..height).step_by(TILE) {
                let count = TILE.min(height - first);
                let tile = &mut tile[..count];
                let entries = &entries[first * nonzeros..(first + count) * nonzeros];
                if !self.transposed {
                    panel::pack(self.x, Rows::from(first), columns.clone(), tile);
                }
                if self.transposed {
                    gather::<T, L, S>(tile, entries, nonzeros, &signs, &short);
                } else {
                    scatter::<T, L, S>(tile, entries, nonzeros, &signs, &mut short);
                }
                if self.transposed {
                    panel::add_unpacked(tile, self.out.rb_mut(), Rows::from(first), columns.clone());
                }
            }
            if !self.transposed {
                panel::add_unpacked(&short, self.out.rb_mut(), Rows::from(0), columns);
            }
        }
    }
}

/// Adds each row of `from` to the rows that its entries name.
#[inline(always)]
fn scatter<T: Scalar, const L: usize, const S: usize>(
    from: &[Row<T, L>],
    entries: &[u32],
    nonzeros: usize,
    signs: &[T; 2],
    to: &mut [Row<T, L>],
) {
    let nonzeros = if S > 0 { S } else { nonzeros };
    for (row, entries) in from.iter().zip(entries.chunks_exact(nonzeros)) {
        if S == 1 {
            let entry = entries[0];
            panel::add_scaled(&mut to[(entry >> 1) as usize], signs[(entry & 1) as usize], row);
            continue;
        }
        let mut both = [*row; 2];
        for (row, by) in both.iter_mut().zip(signs) {
            for v in row {
                *v *= *by;
            }
        }
        for entry in entries {
            let (to, row) = (&mut to[(entry >> 1) as usize], both[(entry & 1) as usize]);
            let mut sum = *to;
            for lane in 0..L {
                sum[lane] += row[lane];
            }
            *to = sum;
        }
    }
}

/// Sums, for each row of `to`, the rows that its entries name.
#[inline(always)]
fn gather<T: Scalar, const L: usize, const S: usize>(
    to: &mut [Row<T, L>],
    entries: &[u32],
    nonzeros: usize,
    signs: &[T; 2],
    from: &[Row<T, L>],
) {
    let nonzeros = if S > 0 { S } else { nonzeros };
    for (row, entries) in to.iter_mut().zip(entries.chunks_exact(nonzeros)) {
        let mut sum = [T::ZERO; L];
        for entry in entries {
            panel::add_scaled(&mut sum, signs[(entry & 1) as usize], &from[(entry >> 1) as usize]);
        }
        *row = sum;
    }
}
