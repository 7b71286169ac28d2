//! The error function, 2/√π ∫₀ˣ exp(-t²) dt.

use margay_loops::Unary;

use crate::ops::elementwise::{Exp, unary};
use crate::vjp::Grad;

unary! {
    /// The error function, 2/√π ∫₀ˣ exp(-t²) dt.
    Erf = "erf",
    domain: Float, flops: 10, range: -4.0 .. 4.0,
    float: libm::erf,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Erf, x),
    activation: None, symbolic: None,
    vjp: |cx| {
        let (x, dy) = (cx.input(0), cx.cotangent()?);
        let x2 = cx.mul(x, x)?;
        let minus_x2 = cx.neg(x2)?;
        let exp = cx.op(Exp, &[minus_x2])?;
        let derivative = cx.scale(exp, std::f64::consts::FRAC_2_SQRT_PI)?;
        Grad::all([cx.product(dy, derivative)?])
    },
}
