//! min(max(x, 0), 6) (Krizhevsky, "Convolutional Deep Belief Networks on CIFAR-10"); NaN stays NaN.

use margay_loops::{Activation, Binary};

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// min(max(x, 0), 6); NaN stays NaN.
    Relu6 = "relu6",
    domain: Float, flops: 2, range: -3.0 .. 9.0,
    float: |x| x.clamp(0.0, 6.0),
    int: |x| x,
    scalar: |n, x| {
        let (zero, six) = (n.number(x, 0.0), n.number(x, 6.0));
        let lifted = n.binary(Binary::Max, x, zero);
        n.binary(Binary::Min, lifted, six)
    },
    activation: Some(Activation::Relu6), symbolic: None,
    vjp: |cx| {
        let (x, dy) = (cx.input(0), cx.cotangent()?);
        let (zero, six) = (cx.number(x, 0.0)?, cx.number(x, 6.0)?);
        let below = cx.less(x, zero)?;
        let [_, kept] = cx.split(below, dy)?;
        let above = cx.less(six, x)?;
        let [_, dx] = cx.split(above, kept)?;
        Grad::all([dx])
    },
}
