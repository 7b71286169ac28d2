//! √x; NaN below zero.

use margay_loops::Unary;

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// √x; NaN below zero.
    Sqrt = "sqrt",
    domain: Float, flops: 4, range: 0.0 .. 9.0,
    float: f64::sqrt,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Sqrt, x),
    activation: None, symbolic: None,
    vjp: |cx| {
        let (y, dy) = (cx.output(), cx.cotangent()?);
        let half = cx.scale(dy, 0.5)?;
        Grad::all([cx.quotient(half, y)?])
    },
}
