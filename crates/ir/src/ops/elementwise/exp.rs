//! eˣ.

use margay_loops::Unary;

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// eˣ.
    Exp = "exp",
    domain: Float, flops: 10, range: -9.0 .. 9.0,
    float: libm::exp,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Exp, x),
    activation: None, symbolic: None,
    vjp: |cx| {
        let (y, dy) = (cx.output(), cx.cotangent()?);
        Grad::all([cx.product(dy, y)?])
    },
}
