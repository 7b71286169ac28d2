//! The piecewise approximation of SiLU (Howard et al., arXiv 1905.02244): x min(max(x / 6 + 1/2, 0), 1).

use margay_loops::{Activation, Binary};

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// x min(max(x / 6 + 1/2, 0), 1).
    HardSwish = "hard_swish",
    domain: Float, flops: 5, range: -5.0 .. 5.0,
    float: |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
    int: |x| x,
    scalar: |n, x| {
        let (sixth, half) = (n.number(x, 1.0 / 6.0), n.number(x, 0.5));
        let (zero, one) = (n.number(x, 0.0), n.number(x, 1.0));
        let scaled = n.mul(x, sixth);
        let line = n.add(scaled, half);
        let capped = n.binary(Binary::Min, line, one);
        let gate = n.binary(Binary::Max, capped, zero);
        n.mul(x, gate)
    },
    activation: Some(Activation::HardSwish), symbolic: None,
    vjp: |cx| {
        // 0 below -3, x / 3 + 1/2 up to 3, 1 above.
        let (x, dy) = (cx.input(0), cx.cotangent()?);
        let (low, high) = (cx.number(x, -3.0)?, cx.number(x, 3.0)?);
        let above = cx.less(high, x)?;
        let [of_x, rest] = cx.split(above, dy)?;
        let below = cx.less(x, low)?;
        let [_, within] = cx.split(below, rest)?;
        let (third, half) = (cx.number(x, 1.0 / 3.0)?, cx.number(x, 0.5)?);
        let scaled = cx.mul(x, third)?;
        let slope = cx.add(scaled, half)?;
        let of_line = cx.product(within, slope)?;
        Grad::all([cx.add(of_x, of_line)?])
    },
}
