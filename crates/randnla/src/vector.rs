//! Products of a matrix with a vector, which take as long as the matrix is read.
//!
//! A part of the longer vector stays in the first cache while four columns, or rows, at a time go by.

use faer::{ColRef, MatRef};

use crate::Scalar;
use crate::panel::{self, Work};

/// Numbers of the longer vector that are worked on at a time.
const PART: usize = 1024;

/// Sums that do not wait for each other.
const SUMS: usize = 8;

/// `a · x`, where the rows or the columns of `a` are one piece of memory each.
pub(crate) fn product<T: Scalar>(a: MatRef<'_, T>, x: ColRef<'_, T>) -> Vec<T> {
    let x: Vec<T> = x.iter().copied().collect();
    let mut out = vec![T::ZERO; a.nrows()];
    panel::vectorized(Product { a, x: &x, out: &mut out });
    out
}

struct Product<'a, T> {
    a: MatRef<'a, T>,
    x: &'a [T],
    out: &'a mut [T],
}

impl<T: Scalar> Work for Product<'_, T> {
    #[inline(always)]
    fn run(self) {
        let (rows, columns) = self.a.shape();
        if self.a.row_stride() == 1 {
            for first in (0..rows).step_by(PART) {
                let out = &mut self.out[first..rows.min(first + PART)];
                let part = |j| &panel::column(self.a, j)[first..rows.min(first + PART)];
                let mut j = 0;
                while j + 4 <= columns {
                    let by = [self.x[j], self.x[j + 1], self.x[j + 2], self.x[j + 3]];
                    add_four(out, by, part(j), part(j + 1), part(j + 2), part(j + 3));
                    j += 4;
                }
                for j in j..columns {
                    add_one(out, self.x[j], part(j));
                }
            }
            return;
        }
        let a = self.a.transpose();
        for first in (0..columns).step_by(PART) {
            let x = &self.x[first..columns.min(first + PART)];
            let part = |i| &panel::column(a, i)[first..columns.min(first + PART)];
            let mut i = 0;
            while i + 4 <= rows {
                let sums = four_products(x, part(i), part(i + 1), part(i + 2), part(i + 3));
                for (out, sum) in self.out[i..i + 4].iter_mut().zip(sums) {
                    *out += sum;
                }
                i += 4;
            }
            for i in i..rows {
                self.out[i] += four_products(x, part(i), part(i), part(i), part(i))[0];
            }
        }
    }
}

/// `out += by · (a, b, c, d)`.
#[inline(always)]
fn add_four<T: Scalar>(out: &mut [T], by: [T; 4], a: &[T], b: &[T], c: &[T], d: &[T]) {
    let n = out.len();
    let (a, b, c, d) = (&a[..n], &b[..n], &c[..n], &d[..n]);
    for i in 0..n {
        out[i] += (by[0] * a[i] + by[1] * b[i]) + (by[2] * c[i] + by[3] * d[i]);
    }
}

/// `out += by · a`.
#[inline(always)]
fn add_one<T: Scalar>(out: &mut [T], by: T, a: &[T]) {
    for (out, v) in out.iter_mut().zip(a) {
        *out += by * *v;
    }
}

/// The inner products of `x` with four vectors.
#[inline(always)]
fn four_products<T: Scalar>(x: &[T], a: &[T], b: &[T], c: &[T], d: &[T]) -> [T; 4] {
    let n = x.len();
    let all = [&a[..n], &b[..n], &c[..n], &d[..n]];
    let mut sums = [[T::ZERO; SUMS]; 4];
    let (parts, rest) = x.as_chunks::<SUMS>();
    for (at, x) in parts.iter().enumerate() {
        for k in 0..4 {
            let Some(v) = all[k][at * SUMS..].first_chunk::<SUMS>() else { break };
            let mut sum = sums[k];
            for lane in 0..SUMS {
                sum[lane] += x[lane] * v[lane];
            }
            sums[k] = sum;
        }
    }
    let mut products = [T::ZERO; 4];
    for k in 0..4 {
        for sum in sums[k] {
            products[k] += sum;
        }
        for (x, v) in rest.iter().zip(&all[k][n - rest.len()..]) {
            products[k] += *x * *v;
        }
    }
    products
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Distribution, random_matrix};

    #[test]
    fn products_are_those_by_entries() {
        for (rows, columns) in [(1, 1), (3, 7), (4, 8), (1030, 6), (5, 1100), (2050, 33)] {
            let a = random_matrix(Distribution::Gaussian, rows, columns, 1, 0);
            let x = random_matrix(Distribution::Gaussian, columns, 1, 1, 1);
            let turned = a.transposed();
            let (found, other) = (
                product(a.as_faer(), x.as_faer().col(0)),
                product(turned.as_faer().transpose(), x.as_faer().col(0)),
            );
            for i in 0..rows {
                let expected: f64 = (0..columns).map(|j| a.at(i, j) * x.at(j, 0)).sum();
                let size: f64 = (0..columns).map(|j| (a.at(i, j) * x.at(j, 0)).abs()).sum();
                for v in [found[i], other[i]] {
                    assert!((v - expected).abs() <= 1e-15 * columns as f64 * size, "{rows} x {columns}, {i}");
                }
            }
        }
    }
}
