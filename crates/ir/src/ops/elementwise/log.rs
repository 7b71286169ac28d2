//! The natural logarithm.

use margay_loops::Unary;

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// The natural logarithm.
    Log = "log",
    domain: Float, flops: 10, range: 0.01 .. 9.0,
    float: libm::log,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Log, x),
    activation: None, symbolic: None,
    vjp: |cx| {
        let (x, dy) = (cx.input(0), cx.cotangent()?);
        Grad::all([cx.quotient(dy, x)?])
    },
}
