//! x - y; integers wrap.

use crate::ops::elementwise::binary;
use crate::vjp::Grad;

binary! {
    /// x - y; integers wrap.
    Sub = "sub",
    domain: Number, flops: 1, test: false, range: -2.0 .. 2.0,
    float: |x, y| x - y,
    int: i128::wrapping_sub,
    scalar: |n, x, y| n.sub(x, y),
    neutral: Some(Neutral::second(0.0)),
    symbolic: Some(Symbolic::Pairs(|x, y| Some(x - y))),
    parameters: &[],
    vjp: |cx| {
        let dz = cx.cotangent()?;
        Grad::all([dz, cx.neg(dz)?])
    },
}
