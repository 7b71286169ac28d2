//! x y; integers wrap.

use crate::ops::elementwise::binary;
use crate::vjp::Grad;

binary! {
    /// x y; integers wrap.
    Mul = "mul",
    domain: Number, flops: 1, test: false, range: -2.0 .. 2.0,
    float: |x, y| x * y,
    int: i128::wrapping_mul,
    scalar: |n, x, y| n.mul(x, y),
    neutral: Some(Neutral::either(1.0)),
    symbolic: Some(Symbolic::Pairs(|x, y| Some(x * y))),
    parameters: &[Some(Parameter::Scale), Some(Parameter::Scale)],
    vjp: |cx| {
        let (x, y, dz) = (cx.input(0), cx.input(1), cx.cotangent()?);
        Grad::all([cx.product(dz, y)?, cx.product(dz, x)?])
    },
}
