//! The fast Walsh–Hadamard transform.
//!
//! `H` of size `2ᵏ` has entries `±1`: that at row `i` and column `j` is −1 where `i & j` has an odd number of bits set.
//! It is the `k`-fold Kronecker product of `[1 1; 1 -1]`, so `H x` takes `k` stages of sums and differences of pairs, one for
//! each bit of an index (Fino and Algazi, *Unified matrix treatment of the fast Walsh–Hadamard transform*, IEEE Trans.
//! Computers 1976). Three stages are done at a time, from the greatest distance down; what they leave is independent pieces
//! that fit into ever closer caches. Loops are `for` loops: what iterators do with closures is not inlined into the code for
//! vectors.
//!
//! Where few rows of `H x` are needed, the stages of the lowest bits are left out, and each of these rows is a sum of the
//! neighbours instead (Ailon and Liberty, *Fast dimension reduction using Rademacher series on dual BCH codes*, DCG 2009).
//! What is left are stages on vectors, whether a column lies in memory as it is or beside others.

use crate::Scalar;

/// Bytes of a piece that is transformed without further splitting into pieces.
const LEAF: usize = 1 << 14;

/// Sums and differences of all pairs of numbers whose places differ in one bit, for the bits from half the length down to
/// `least`, all powers of two.
#[inline(always)]
pub(crate) fn stages<T: Scalar>(x: &mut [T], least: usize) {
    debug_assert!(x.len().is_power_of_two() && least.is_power_of_two());
    match size_of::<T>() {
        4 => split::<T, 8>(x, least),
        _ => split::<T, 4>(x, least),
    }
}

/// Whether row `i` and column `j` have −1.
#[inline(always)]
pub(crate) fn negative(i: usize, j: usize) -> bool {
    (i & j).count_ones() & 1 == 1
}

/// How many stages cost less as sums, for this number of rows that are needed and of numbers in a vector.
pub(crate) fn summed_stages(size: usize, rows: usize, lanes: usize) -> u32 {
    // A stage works on vectors, unless its distance is less than one; sums read their numbers one by one.
    const SINGLE: usize = 3;
    let cost = |summed: u32| {
        let within = lanes.trailing_zeros().saturating_sub(summed) as usize;
        let stages = (size.trailing_zeros() - summed) as usize;
        (stages + (SINGLE - 1) * within) * size + SINGLE * (rows << summed)
    };
    (0..=size.trailing_zeros().min(5)).min_by_key(|summed| cost(*summed)).unwrap_or(0)
}

/// One pass over all; then each eighth by itself. Recursion would not be inlined into the code for vectors.
#[inline(always)]
fn split<T: Scalar, const W: usize>(x: &mut [T], least: usize) {
    let leaf = LEAF / size_of::<T>();
    if x.len() <= leaf.max(4 * least) {
        return within::<T, W>(x, least);
    }
    eight(x);
    let part = x.len() / 8;
    for x in x.chunks_exact_mut(part) {
        let mut piece = part;
        while piece > leaf.max(4 * least) {
            for p in x.chunks_exact_mut(piece) {
                eight(p);
            }
            piece /= 8;
        }
        for p in x.chunks_exact_mut(piece) {
            within::<T, W>(p, least);
        }
    }
}

/// All stages, over the whole piece each, down to blocks of eight vectors that stay in registers.
#[inline(always)]
fn within<T: Scalar, const W: usize>(x: &mut [T], least: usize) {
    let last = if least <= W && x.len() >= 8 * W { 8 * W } else { least };
    let mut piece = x.len();
    while piece >= 8 * last {
        for p in x.chunks_exact_mut(piece) {
            eight(p);
        }
        piece /= 8;
    }
    if piece == 4 * last {
        for p in x.chunks_exact_mut(piece) {
            four(p);
        }
    }
    if piece == 2 * last {
        for p in x.chunks_exact_mut(piece) {
            let (x0, x1) = p.split_at_mut(piece / 2);
            two(x0, x1);
        }
    }
    if last > least {
        blocks::<T, W>(x, least);
    }
}

/// The stages within blocks of eight vectors, down to a vector or less.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "lanes of eight vectors at once")]
fn blocks<T: Scalar, const W: usize>(x: &mut [T], least: usize) {
    let (vectors, _) = x.as_chunks_mut::<W>();
    for block in vectors.as_chunks_mut::<8>().0 {
        for lane in 0..W {
            let mut x = [T::ZERO; 8];
            for k in 0..8 {
                x[k] = block[k][lane];
            }
            let ((y0, y4), (y1, y5)) = (sums(x[0], x[4]), sums(x[1], x[5]));
            let ((y2, y6), (y3, y7)) = (sums(x[2], x[6]), sums(x[3], x[7]));
            let ((y0, y2), (y1, y3)) = (sums(y0, y2), sums(y1, y3));
            let ((y4, y6), (y5, y7)) = (sums(y4, y6), sums(y5, y7));
            (block[0][lane], block[1][lane]) = sums(y0, y1);
            (block[2][lane], block[3][lane]) = sums(y2, y3);
            (block[4][lane], block[5][lane]) = sums(y4, y5);
            (block[6][lane], block[7][lane]) = sums(y6, y7);
        }
    }
    if least == W {
        return;
    }
    for vector in vectors {
        let mut distance = W / 2;
        while distance >= least {
            for first in (0..W).step_by(2 * distance) {
                for at in first..first + distance {
                    let (a, b) = (vector[at], vector[at + distance]);
                    (vector[at], vector[at + distance]) = (a + b, a - b);
                }
            }
            distance /= 2;
        }
    }
}

/// The three stages of greatest distance.
#[inline(always)]
fn eight<T: Scalar>(x: &mut [T]) {
    let part = x.len() / 8;
    let (x0, x) = x.split_at_mut(part);
    let (x1, x) = x.split_at_mut(part);
    let (x2, x) = x.split_at_mut(part);
    let (x3, x) = x.split_at_mut(part);
    let (x4, x) = x.split_at_mut(part);
    let (x5, x) = x.split_at_mut(part);
    let (x6, x7) = x.split_at_mut(part);
    eight_apart(x0, x1, x2, x3, x4, x5, x6, x7);
}

/// The stages of eight slices. That these are arguments tells the compiler that they do not overlap.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one slice for each part")]
fn eight_apart<T: Scalar>(
    x0: &mut [T],
    x1: &mut [T],
    x2: &mut [T],
    x3: &mut [T],
    x4: &mut [T],
    x5: &mut [T],
    x6: &mut [T],
    x7: &mut [T],
) {
    let part = x0.len();
    let (x1, x2, x3) = (&mut x1[..part], &mut x2[..part], &mut x3[..part]);
    let (x4, x5, x6, x7) = (&mut x4[..part], &mut x5[..part], &mut x6[..part], &mut x7[..part]);
    for i in 0..part {
        let ((y0, y4), (y1, y5)) = (sums(x0[i], x4[i]), sums(x1[i], x5[i]));
        let ((y2, y6), (y3, y7)) = (sums(x2[i], x6[i]), sums(x3[i], x7[i]));
        let ((y0, y2), (y1, y3)) = (sums(y0, y2), sums(y1, y3));
        let ((y4, y6), (y5, y7)) = (sums(y4, y6), sums(y5, y7));
        (x0[i], x1[i]) = sums(y0, y1);
        (x2[i], x3[i]) = sums(y2, y3);
        (x4[i], x5[i]) = sums(y4, y5);
        (x6[i], x7[i]) = sums(y6, y7);
    }
}

/// The two stages of greatest distance.
#[inline(always)]
fn four<T: Scalar>(x: &mut [T]) {
    let part = x.len() / 4;
    let (x0, x) = x.split_at_mut(part);
    let (x1, x) = x.split_at_mut(part);
    let (x2, x3) = x.split_at_mut(part);
    four_apart(x0, x1, x2, x3);
}

#[inline(always)]
fn four_apart<T: Scalar>(x0: &mut [T], x1: &mut [T], x2: &mut [T], x3: &mut [T]) {
    let part = x0.len();
    let (x1, x2, x3) = (&mut x1[..part], &mut x2[..part], &mut x3[..part]);
    for i in 0..part {
        let ((y0, y2), (y1, y3)) = (sums(x0[i], x2[i]), sums(x1[i], x3[i]));
        (x0[i], x1[i]) = sums(y0, y1);
        (x2[i], x3[i]) = sums(y2, y3);
    }
}

/// One stage.
#[inline(always)]
fn two<T: Scalar>(x0: &mut [T], x1: &mut [T]) {
    let x1 = &mut x1[..x0.len()];
    for i in 0..x0.len() {
        (x0[i], x1[i]) = sums(x0[i], x1[i]);
    }
}

/// Sum and difference.
#[inline(always)]
fn sums<T: Scalar>(a: T, b: T) -> (T, T) {
    (a + b, a - b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_products_with_the_matrix_of_signs() {
        for bits in [0, 1, 2, 3, 5, 9, 11, 12, 14] {
            let n = 1usize << bits;
            let x: Vec<f64> = (0..n).map(|i| ((i * 7) % 11) as f64 - 5.0).collect();
            for least in [1, 2, 4, 8, 16].into_iter().filter(|least| *least <= n) {
                let mut y = x.clone();
                stages(&mut y, least);
                let mut narrow: Vec<f32> = x.iter().map(|v| *v as f32).collect();
                stages(&mut narrow, least);
                for i in [0, 1, n / 3, n - 1].into_iter().filter(|i| *i < n) {
                    let sign = |j: usize| if negative(i / least, j) { -1.0 } else { 1.0 };
                    let expected: f64 = (0..n / least).map(|j| sign(j) * x[j * least + i % least]).sum();
                    assert_eq!(y[i], expected, "{n} at {i}, down to {least}");
                    assert_eq!(f64::from(narrow[i]), expected, "{n} at {i}, down to {least}");
                }
            }
        }
    }

    #[test]
    fn few_rows_are_sums_of_neighbours() {
        assert!(summed_stages(16384, 16384, 4) <= 1);
        assert!(summed_stages(16384, 1024, 4) >= 3);
        assert!(summed_stages(16384, 1024, 8) >= 3);
        assert!(summed_stages(16384, 16, 4) > summed_stages(16384, 1024, 4));
        assert_eq!(summed_stages(1, 1, 4), 0);
    }
}
