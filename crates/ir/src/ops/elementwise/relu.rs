//! max(x, 0); NaN stays NaN.

use margay_loops::{Activation, Binary};

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// max(x, 0); NaN stays NaN.
    Relu = "relu",
    domain: Number, flops: 1, range: -2.0 .. 2.0,
    float: |x| if x < 0.0 { 0.0 } else { x },
    int: |x| x.max(0),
    scalar: |n, x| {
        let zero = n.number(x, 0.0);
        let negative = n.binary(Binary::Lt, x, zero);
        n.select(negative, zero, x)
    },
    activation: Some(Activation::Relu), symbolic: None,
    vjp: |cx| {
        let (x, dy) = (cx.input(0), cx.cotangent()?);
        let zero = cx.number(x, 0.0)?;
        let above = cx.less(zero, x)?;
        let [dx, _] = cx.split(above, dy)?;
        Grad::all([dx])
    },
}
