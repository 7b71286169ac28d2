//! 1 / (1 + e⁻ˣ).

use margay_loops::{Activation, Unary};

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// 1 / (1 + e⁻ˣ).
    Sigmoid = "sigmoid",
    domain: Float, flops: 10, range: -9.0 .. 9.0,
    float: |x| 1.0 / (1.0 + libm::exp(-x)),
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Sigmoid, x),
    activation: Some(Activation::Sigmoid), symbolic: None,
    vjp: |cx| {
        let (y, dy) = (cx.output(), cx.cotangent()?);
        let one = cx.number(y, 1.0)?;
        let one_minus_y = cx.sub(one, y)?;
        let derivative = cx.mul(y, one_minus_y)?;
        Grad::all([cx.product(dy, derivative)?])
    },
}
