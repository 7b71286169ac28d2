//! Products with sparse sketches of several entries in each column, of operands whose columns or rows are one piece of memory
//! each.
//!
//! A chunk of rows of the operand, 256 bytes of each, is copied to the second cache; of rows that are one piece of memory,
//! twice as much, side by side, since each of them lies in another page. Each row of the result is read once for a
//! chunk, adds up there what its entries name, in registers, and is written once: a write for each entry is what such products
//! otherwise wait for. Sums run in the order of the rows of the operand, so that their bits are those of any other way.

use faer::prelude::ReborrowMut;
use faer::{MatMut, MatRef};

use crate::Scalar;
use crate::panel::{self, Work};

/// Rows of a chunk.
const HEIGHT: usize = 1024;

/// Vectors of a row: as many sums stay in registers.
const VECTORS: usize = 8;

/// Bytes of a vector.
const BYTES: usize = 32;

/// Columns that are worked on together.
pub(super) const fn width<T>() -> usize {
    VECTORS * BYTES / size_of::<T>()
}

/// Blocks of columns that are copied together where rows are one piece of memory.
const BESIDE: usize = 2;

/// A row of a chunk.
type Row<T, const L: usize> = [[T; L]; VECTORS];

/// Adds the product with `x`, whose columns are a multiple of [`width`] and whose rows or columns are one piece of memory
/// each, to `out`.
///
/// `entries` has `nonzeros` of each column of a sketch: twice the row, and 1 where it is negative. Rows that `out` does not have
/// are left out. `scale` is the magnitude of entries.
pub(super) fn add_product<T: Scalar>(
    entries: &[u32],
    nonzeros: usize,
    scale: T,
    x: MatRef<'_, T>,
    out: MatMut<'_, T>,
) {
    let lists: Vec<List> =
        entries.chunks(HEIGHT * nonzeros).map(|part| List::new(part, nonzeros, out.nrows())).collect();
    let lists = &lists;
    match size_of::<T>() {
        4 => panel::vectorized(Gather::<T, 8> { lists, scale, x, out }),
        _ => panel::vectorized(Gather::<T, 4> { lists, scale, x, out }),
    }
}

/// The entries of a chunk by rows of the result, and in each by columns.
struct List {
    /// Rows with the same number of entries follow each other, so that the end of the loop over these is foreseen: the
    /// number, and how many rows have it.
    runs: Vec<(usize, usize)>,
    /// Rows of the result.
    rows: Vec<u32>,
    /// Twice the column in the chunk, and 1 where the entry is negative.
    entries: Vec<u32>,
}

impl List {
    /// From entries column by column, by two counting sorts: rows by how many entries they have, entries by rows.
    fn new(columns: &[u32], nonzeros: usize, height: usize) -> List {
        let mut counts = vec![0usize; height];
        for entry in columns {
            if let Some(count) = counts.get_mut((entry >> 1) as usize) {
                *count += 1;
            }
        }
        let mut many = vec![0; counts.iter().max().map_or(1, |most| most + 1)];
        counts.iter().filter(|count| **count > 0).for_each(|&count| many[count] += 1);
        let mut total = 0;
        let starts = many.iter().map(|many| {
            total += many;
            total - many
        });
        let mut places: Vec<usize> = starts.collect();
        let mut rows = vec![0; total];
        for (i, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            rows[places[count]] = i as u32;
            places[count] += 1;
        }
        let mut next = vec![0; height];
        let mut total = 0;
        for &i in &rows {
            next[i as usize] = total;
            total += counts[i as usize];
        }
        let mut entries = vec![0; total];
        for (j, column) in columns.chunks_exact(nonzeros).enumerate() {
            for entry in column {
                if let Some(place) = next.get_mut((entry >> 1) as usize) {
                    entries[*place] = 2 * j as u32 + (entry & 1);
                    *place += 1;
                }
            }
        }
        let runs = many.into_iter().enumerate().filter(|(_, many)| *many > 0).collect();
        List { runs, rows, entries }
    }

    /// Adds the rows of a chunk to those of the result.
    #[inline(always)]
    fn add<T: Scalar, const L: usize>(&self, from: &[Row<T, L>], to: &mut [Row<T, L>]) {
        let signs = [T::ONE, -T::ONE];
        let (mut rows, mut entries) = (&self.rows[..], &self.entries[..]);
        for &(count, many) in &self.runs {
            for i in &rows[..many] {
                let mut sum = to[*i as usize];
                for entry in &entries[..count] {
                    let (row, by) = (&from[(entry >> 1) as usize], signs[(entry & 1) as usize]);
                    for k in 0..VECTORS {
                        panel::add_scaled(&mut sum[k], by, &row[k]);
                    }
                }
                to[*i as usize] = sum;
                entries = &entries[count..];
            }
            rows = &rows[many..];
        }
    }
}

struct Gather<'a, T, const L: usize> {
    lists: &'a [List],
    scale: T,
    x: MatRef<'a, T>,
    out: MatMut<'a, T>,
}

impl<T: Scalar, const L: usize> Work for Gather<'_, T, L> {
    #[inline(always)]
    fn run(mut self) {
        let beside = if self.x.row_stride() == 1 { 1 } else { BESIDE };
        let (tall, short) = (HEIGHT.min(self.x.nrows()), self.out.nrows());
        let mut rows = vec![[[T::ZERO; L]; VECTORS]; beside * tall];
        let mut sums = vec![[[T::ZERO; L]; VECTORS]; beside * short];
        for begin in (0..self.x.ncols()).step_by(beside * L * VECTORS) {
            let beside = beside.min((self.x.ncols() - begin) / (L * VECTORS));
            sums.fill([[T::ZERO; L]; VECTORS]);
            for (at, list) in self.lists.iter().enumerate() {
                let first = at * HEIGHT;
                let count = HEIGHT.min(self.x.nrows() - first);
                let x = self.x.submatrix(first, begin, count, beside * L * VECTORS);
                if x.row_stride() == 1 {
                    pack(x, self.scale, &mut rows[..count]);
                } else {
                    copy(x, self.scale, &mut rows[..beside * count]);
                }
                for block in 0..beside {
                    list.add(&rows[block * count..][..count], &mut sums[block * short..][..short]);
                }
            }
            for block in 0..beside {
                let out = self.out.rb_mut().subcols_mut(begin + block * L * VECTORS, L * VECTORS);
                let sums = &sums[block * short..][..short];
                panel::add_rows(sums.as_flattened().as_flattened(), L * VECTORS, out, 0);
            }
        }
    }
}

/// Blocks of columns, one after the other, of rows that are one piece of memory each, times a number.
#[inline(always)]
fn copy<T: Scalar, const L: usize>(x: MatRef<'_, T>, scale: T, blocks: &mut [Row<T, L>]) {
    let count = x.nrows();
    for i in 0..count {
        let Some(row) = x.row(i).try_as_row_major() else { return };
        let (pieces, _) = row.as_slice().as_chunks::<L>();
        for (block, piece) in pieces.as_chunks::<VECTORS>().0.iter().enumerate() {
            let to = &mut blocks[block * count + i];
            for k in 0..VECTORS {
                let from = piece[k];
                for lane in 0..L {
                    to[k][lane] = scale * from[lane];
                }
            }
        }
    }
}

/// The transpose of columns that are one piece of memory each, times a number.
#[inline(always)]
fn pack<T: Scalar, const L: usize>(x: MatRef<'_, T>, scale: T, rows: &mut [Row<T, L>]) {
    let count = rows.len();
    let (tiles, rest) = rows.as_chunks_mut::<L>();
    let whole = count - rest.len();
    for k in 0..VECTORS {
        let mut lanes: [&[T]; L] = [&[]; L];
        for (lane, to) in lanes.iter_mut().enumerate() {
            *to = &panel::column(x, k * L + lane)[..count];
        }
        for (at, tile) in tiles.iter_mut().enumerate() {
            // All checks come before all reads, so that these are vectors.
            let zeros = [T::ZERO; L];
            let mut parts = [&zeros; L];
            for lane in 0..L {
                if let Some(part) = lanes[lane][at * L..].first_chunk::<L>() {
                    parts[lane] = part;
                }
            }
            let turned = panel::turned(parts);
            for i in 0..L {
                for lane in 0..L {
                    tile[i][k][lane] = scale * turned[i][lane];
                }
            }
        }
        for (i, row) in rest.iter_mut().enumerate() {
            for lane in 0..L {
                row[k][lane] = scale * lanes[lane][whole + i];
            }
        }
    }
}
