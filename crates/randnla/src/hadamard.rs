//! The fast Walsh–Hadamard transform.
//!
//! `H` of size `2ᵏ` has entries `±1`: that at row `i` and column `j` is −1 where `i & j` has an odd number of bits set.
//! It is the `k`-fold Kronecker product of `[1 1; 1 -1]`, so `H x` takes `k` stages of sums and differences of pairs
//! (Fino and Algazi, *Unified matrix treatment of the fast Walsh–Hadamard transform*, IEEE Trans. Computers 1976). Three
//! stages are done at a time, from the greatest distance down, depth first: what they leave is independent pieces that fit
//! into ever closer caches. Loops are `for` loops: what iterators do with closures is not inlined into the code for vectors.
//!
//! Where few rows of `H x` are needed, the stages of greatest distance are left out, and each of these rows is summed over
//! the pieces instead (Ailon and Liberty, *Fast dimension reduction using Rademacher series on dual BCH codes*, DCG 2009).

use crate::Scalar;
use crate::panel::Row;

/// Replaces every column of the panel by its transform, not scaled. The number of rows is a power of two.
#[inline(always)]
pub(crate) fn transform<T: Scalar, const L: usize>(panel: &mut [Row<T, L>]) {
    debug_assert!(panel.len().is_power_of_two());
    let mut piece = panel.len();
    // Pieces beyond the leaf: one pass of three stages, then each of the eight parts by itself. Recursion would not be
    // inlined into the code for vectors.
    if piece <= LEAF {
        return leaf(panel);
    }
    pass(panel);
    piece /= 8;
    for panel in panel.chunks_exact_mut(piece) {
        let mut rest = panel.len();
        while rest > LEAF {
            for p in panel.chunks_exact_mut(rest) {
                pass(p);
            }
            rest /= 8;
        }
        for p in panel.chunks_exact_mut(rest) {
            leaf(p);
        }
    }
}

/// Adds to `to` the rows `picked` of the transform of the panel, times `by`. The panel is overwritten.
#[inline(always)]
pub(crate) fn transform_rows<T: Scalar, const L: usize>(
    panel: &mut [Row<T, L>],
    picked: &[usize],
    by: T,
    to: &mut [Row<T, L>],
) {
    let piece = panel.len() >> summed_stages(panel.len(), picked.len());
    for p in panel.chunks_exact_mut(piece) {
        transform(p);
    }
    for (to, &i) in to.iter_mut().zip(picked) {
        let (high, low) = (i / piece, i % piece);
        let mut sum = [T::ZERO; L];
        for (at, rows) in panel.chunks_exact(piece).enumerate() {
            let sign = if (high & at).count_ones().is_multiple_of(2) { T::ONE } else { -T::ONE };
            crate::panel::add_scaled(&mut sum, sign, &rows[low]);
        }
        crate::panel::add_scaled(to, by, &sum);
    }
}

/// How many stages cost less as sums over pieces, for this number of rows that are needed.
fn summed_stages(size: usize, rows: usize) -> u32 {
    let stages = size.trailing_zeros();
    let cost = |summed: u32| (stages - summed) as usize * size + (rows << summed);
    (0..=stages.min(8)).min_by_key(|summed| cost(*summed)).unwrap_or(0)
}

/// Rows of a piece that is transformed without further splitting into pieces.
const LEAF: usize = 512;

/// All stages.
#[inline(always)]
fn leaf<T: Scalar, const L: usize>(panel: &mut [Row<T, L>]) {
    let mut piece = panel.len();
    while piece >= 8 {
        for p in panel.chunks_exact_mut(piece) {
            pass(p);
        }
        piece /= 8;
    }
    while piece >= 2 {
        for p in panel.chunks_exact_mut(piece) {
            let (a, b) = p.split_at_mut(piece / 2);
            for (a, b) in a.iter_mut().zip(b) {
                butterfly(a, b);
            }
        }
        piece /= 2;
    }
}

/// The three stages of greatest distance. The number of rows is a multiple of 8.
#[inline(always)]
fn pass<T: Scalar, const L: usize>(panel: &mut [Row<T, L>]) {
    let part = panel.len() / 8;
    let (low, high) = panel.split_at_mut(4 * part);
    let (a, b) = low.split_at_mut(2 * part);
    let (c, d) = high.split_at_mut(2 * part);
    let ((x0, x1), (x2, x3)) = (a.split_at_mut(part), b.split_at_mut(part));
    let ((x4, x5), (x6, x7)) = (c.split_at_mut(part), d.split_at_mut(part));
    let rows = x0.iter_mut().zip(x1).zip(x2).zip(x3).zip(x4).zip(x5).zip(x6).zip(x7);
    for (((((((x0, x1), x2), x3), x4), x5), x6), x7) in rows {
        // Parts of rows of 32 bytes, so that eight of them stay in registers.
        if size_of::<T>() == 4 {
            eight::<T, L, 8>([x0, x1, x2, x3, x4, x5, x6, x7]);
        } else {
            eight::<T, L, 4>([x0, x1, x2, x3, x4, x5, x6, x7]);
        }
    }
}

/// The transform of eight rows, `W` lanes at a time.
#[inline(always)]
fn eight<T: Scalar, const L: usize, const W: usize>(rows: [&mut Row<T, L>; 8]) {
    let [x0, x1, x2, x3, x4, x5, x6, x7] = rows;
    for first in (0..L).step_by(W) {
        let (y0, y1) = (take::<T, L, W>(x0, first), take::<T, L, W>(x1, first));
        let (y2, y3) = (take::<T, L, W>(x2, first), take::<T, L, W>(x3, first));
        let (y4, y5) = (take::<T, L, W>(x4, first), take::<T, L, W>(x5, first));
        let (y6, y7) = (take::<T, L, W>(x6, first), take::<T, L, W>(x7, first));
        let ((y0, y4), (y1, y5)) = (pair(y0, y4), pair(y1, y5));
        let ((y2, y6), (y3, y7)) = (pair(y2, y6), pair(y3, y7));
        let ((y0, y2), (y1, y3)) = (pair(y0, y2), pair(y1, y3));
        let ((y4, y6), (y5, y7)) = (pair(y4, y6), pair(y5, y7));
        let ((y0, y1), (y2, y3)) = (pair(y0, y1), pair(y2, y3));
        let ((y4, y5), (y6, y7)) = (pair(y4, y5), pair(y6, y7));
        x0[first..first + W].copy_from_slice(&y0);
        x1[first..first + W].copy_from_slice(&y1);
        x2[first..first + W].copy_from_slice(&y2);
        x3[first..first + W].copy_from_slice(&y3);
        x4[first..first + W].copy_from_slice(&y4);
        x5[first..first + W].copy_from_slice(&y5);
        x6[first..first + W].copy_from_slice(&y6);
        x7[first..first + W].copy_from_slice(&y7);
    }
}

#[inline(always)]
fn take<T: Scalar, const L: usize, const W: usize>(row: &Row<T, L>, first: usize) -> [T; W] {
    let mut part = [T::ZERO; W];
    part.copy_from_slice(&row[first..first + W]);
    part
}

/// Sum and difference.
#[inline(always)]
fn pair<T: Scalar, const W: usize>(a: [T; W], b: [T; W]) -> ([T; W], [T; W]) {
    let (mut sum, mut difference) = (a, a);
    for lane in 0..W {
        sum[lane] += b[lane];
        difference[lane] -= b[lane];
    }
    (sum, difference)
}

#[inline(always)]
fn butterfly<T: Scalar, const L: usize>(a: &mut Row<T, L>, b: &mut Row<T, L>) {
    for lane in 0..L {
        (a[lane], b[lane]) = (a[lane] + b[lane], a[lane] - b[lane]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const L: usize = 8;

    #[test]
    fn transforms_are_products_with_the_matrix_of_signs() {
        for bits in [0, 1, 2, 3, 5, 9, 10, 11, 13] {
            let n = 1usize << bits;
            let x: Vec<Row<f64, L>> =
                (0..n).map(|i| std::array::from_fn(|lane| ((i * 7 + lane * 3) % 11) as f64 - 5.0)).collect();
            let mut y = x.clone();
            transform(&mut y);
            let picked: Vec<usize> = [0, 1, n / 3, n - 1].into_iter().filter(|i| *i < n).collect();
            let mut some = vec![[0.0; L]; picked.len()];
            transform_rows(&mut x.clone(), &picked, 2.0, &mut some);
            for (at, &i) in picked.iter().enumerate() {
                for lane in [0, L - 1] {
                    let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                    let expected: f64 = (0..n).map(|j| sign(j) * x[j][lane]).sum();
                    assert_eq!(y[i][lane], expected, "{n} at {i}");
                    assert_eq!(some[at][lane], 2.0 * expected, "{n} at {i}, summed");
                }
            }
        }
    }

    #[test]
    fn few_rows_are_summed_over_pieces() {
        assert_eq!(summed_stages(16384, 16384), 0);
        assert!(summed_stages(16384, 1024) >= 4);
        assert_eq!(summed_stages(1, 1), 0);
    }
}
