//! -x; integers wrap.

use margay_loops::Unary;

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// -x; integers wrap.
    Neg = "neg",
    domain: Number, flops: 1, range: -2.0 .. 2.0,
    float: |x| -x,
    int: i128::wrapping_neg,
    scalar: |n, x| n.unary(Unary::Neg, x),
    activation: None, symbolic: Some(Symbolic::Each(|x| Some(&margay_tensor::Dim::default() - x))),
    vjp: |cx| {
        let dy = cx.cotangent()?;
        Grad::all([cx.neg(dy)?])
    },
}
