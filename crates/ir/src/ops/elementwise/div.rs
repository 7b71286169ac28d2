//! x / y; integers round towards zero, and x / 0 is 0.

use crate::ops::elementwise::binary;
use crate::ops::facts::quotient;
use crate::vjp::Grad;

binary! {
    /// x / y; integers round towards zero, and x / 0 is 0.
    Div = "div",
    domain: Number, flops: 4, test: false, range: 0.5 .. 2.0,
    float: |x, y| x / y,
    int: |x, y| if y == 0 { 0 } else { x.wrapping_div(y) },
    scalar: |n, x, y| n.div(x, y),
    neutral: Some(Neutral::second(1.0)),
    symbolic: Some(Symbolic::Pairs(quotient)),
    parameters: &[],
    vjp: |cx| {
        let (y, z, dz) = (cx.input(1), cx.output(), cx.cotangent()?);
        let dx = cx.quotient(dz, y)?;
        let product = cx.product(dx, z)?;
        Grad::all([dx, cx.neg(product)?])
    },
}
