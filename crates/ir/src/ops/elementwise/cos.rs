//! cos x.

use margay_loops::Unary;

use crate::ops::elementwise::{Sin, unary};
use crate::vjp::Grad;

unary! {
    /// cos x.
    Cos = "cos",
    domain: Float, flops: 10, range: -9.0 .. 9.0,
    float: libm::cos,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Cos, x),
    activation: None, symbolic: None,
    vjp: |cx| {
        let (x, dy) = (cx.input(0), cx.cotangent()?);
        let sine = cx.op(Sin, &[x])?;
        let product = cx.product(dy, sine)?;
        Grad::all([cx.neg(product)?])
    },
}
