//! sin x.

use margay_loops::Unary;

use crate::ops::elementwise::{Cos, unary};
use crate::vjp::Grad;

unary! {
    /// sin x.
    Sin = "sin",
    domain: Float, flops: 10, range: -9.0 .. 9.0,
    float: libm::sin,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Sin, x),
    activation: None, symbolic: None,
    vjp: |cx| {
        let (x, dy) = (cx.input(0), cx.cotangent()?);
        let derivative = cx.op(Cos, &[x])?;
        Grad::all([cx.product(dy, derivative)?])
    },
}
