//! x - y; integers wrap.

use crate::ops::elementwise::binary;
use crate::vjp::Grad;

binary! {
    /// x - y; integers wrap.
    Sub = "sub",
    domain: Number, flops: 1, test: false, range: -2.0 .. 2.0,
    float: |x, y| x - y,
    int: i64::wrapping_sub,
    scalar: |n, x, y| n.sub(x, y),
    vjp: |cx| {
        let dz = cx.cotangent()?;
        Grad::all([dz, cx.neg(dz)?])
    },
}
