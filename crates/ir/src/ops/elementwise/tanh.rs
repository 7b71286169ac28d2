//! tanh x.

use margay_loops::{Activation, Unary};

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// tanh x.
    Tanh = "tanh",
    domain: Float, flops: 10, range: -9.0 .. 9.0,
    float: libm::tanh,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Tanh, x),
    activation: Some(Activation::Tanh), symbolic: None,
    vjp: |cx| {
        let (y, dy) = (cx.output(), cx.cotangent()?);
        let y2 = cx.mul(y, y)?;
        let one = cx.number(y, 1.0)?;
        let derivative = cx.sub(one, y2)?;
        Grad::all([cx.product(dy, derivative)?])
    },
}
