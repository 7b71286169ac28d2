//! x y; integers wrap.

use crate::ops::elementwise::binary;
use crate::vjp::Grad;

binary! {
    /// x y; integers wrap.
    Mul = "mul",
    domain: Number, flops: 1, test: false, range: -2.0 .. 2.0,
    float: |x, y| x * y,
    int: i64::wrapping_mul,
    scalar: |n, x, y| n.mul(x, y),
    vjp: |cx| {
        let (x, y, dz) = (cx.input(0), cx.input(1), cx.cotangent()?);
        Grad::all([cx.mul(dz, y)?, cx.mul(dz, x)?])
    },
}
