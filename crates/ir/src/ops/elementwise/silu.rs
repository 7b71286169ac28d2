//! The sigmoid linear unit (Elfwing, Uchibe and Doya, arXiv 1702.03118), also called swish: x / (1 + e⁻ˣ).

use margay_loops::{Activation, Unary};

use crate::ops::elementwise::{Sigmoid, unary};
use crate::vjp::Grad;

unary! {
    /// x / (1 + e⁻ˣ).
    Silu = "silu",
    domain: Float, flops: 11, range: -9.0 .. 9.0,
    float: |x| x / (1.0 + libm::exp(-x)),
    int: |x| x,
    scalar: |n, x| {
        let s = n.unary(Unary::Sigmoid, x);
        n.mul(x, s)
    },
    activation: Some(Activation::Silu), symbolic: None,
    vjp: |cx| {
        // s + y (1 - s), where y = x s.
        let (x, y, dy) = (cx.input(0), cx.output(), cx.cotangent()?);
        let s = cx.op(Sigmoid, &[x])?;
        let one = cx.number(x, 1.0)?;
        let one_minus_s = cx.sub(one, s)?;
        let product = cx.product(one_minus_s, y)?;
        let derivative = cx.add(s, product)?;
        Grad::all([cx.product(dy, derivative)?])
    },
}
