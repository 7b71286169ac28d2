//! ln(1 + eˣ), computed as max(x, 0) + ln(1 + e^-|x|) so that nothing overflows.

use margay_loops::{Binary, Unary};

use crate::ops::elementwise::{Sigmoid, unary};
use crate::vjp::Grad;

unary! {
    /// ln(1 + eˣ).
    Softplus = "softplus",
    domain: Float, flops: 26, range: -20.0 .. 9.0,
    float: |x| x.max(0.0) + libm::log1p(libm::exp(-x.abs())),
    int: |x| x,
    scalar: |n, x| {
        let (zero, one) = (n.number(x, 0.0), n.number(x, 1.0));
        let above = n.binary(Binary::Max, x, zero);
        let size = n.unary(Unary::Abs, x);
        let negative = n.unary(Unary::Neg, size);
        let power = n.unary(Unary::Exp, negative);
        // ln(1 + p) as p ln(s) / (s - 1) for the rounded sum s, so that small p lose nothing.
        let sum = n.add(one, power);
        let rest = n.sub(sum, one);
        let log = n.unary(Unary::Log, sum);
        let product = n.mul(power, log);
        let quotient = n.div(product, rest);
        let tiny = n.binary(Binary::Eq, rest, zero);
        let log = n.select(tiny, power, quotient);
        n.add(above, log)
    },
    activation: None, symbolic: None,
    vjp: |cx| {
        let (x, dy) = (cx.input(0), cx.cotangent()?);
        let derivative = cx.op(Sigmoid, &[x])?;
        Grad::all([cx.product(dy, derivative)?])
    },
}
