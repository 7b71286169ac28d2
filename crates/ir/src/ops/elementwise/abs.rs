//! |x|.

use margay_loops::Unary;

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// |x|.
    Abs = "abs",
    domain: Number, flops: 1, range: -2.0 .. 2.0,
    float: f64::abs,
    int: i128::wrapping_abs,
    scalar: |n, x| n.unary(Unary::Abs, x),
    activation: None, symbolic: None,
    vjp: |cx| {
        let (x, dy) = (cx.input(0), cx.cotangent()?);
        let zero = cx.number(x, 0.0)?;
        let (below, above) = (cx.less(x, zero)?, cx.less(zero, x)?);
        let [up, _] = cx.split(above, dy)?;
        let [down, _] = cx.split(below, dy)?;
        Grad::all([cx.sub(up, down)?])
    },
}
