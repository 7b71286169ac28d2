//! x y; integers wrap.

use crate::ops::elementwise::binary;

binary! {
    /// x y; integers wrap.
    Mul = "mul",
    domain: Number, flops: 1, test: false, range: -2.0 .. 2.0,
    float: |x, y| x * y,
    int: i64::wrapping_mul,
    scalar: |n, x, y| n.mul(x, y),
}
