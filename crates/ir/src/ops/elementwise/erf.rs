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
        let square = cx.mul(x, x)?;
        let negative = cx.neg(square)?;
        let bell = cx.op(Exp, &[negative])?;
        let slope = cx.scale(bell, std::f64::consts::FRAC_2_SQRT_PI)?;
        Grad::all([cx.mul(dy, slope)?])
    },
}
