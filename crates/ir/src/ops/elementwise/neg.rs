//! -x; integers wrap.

use margay_loops::Unary;

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// -x; integers wrap.
    Neg = "neg",
    domain: Number, flops: 1, range: -2.0 .. 2.0,
    float: |x| -x,
    int: i64::wrapping_neg,
    scalar: |n, x| n.unary(Unary::Neg, x),
    vjp: |cx| {
        let dy = cx.cotangent()?;
        Grad::all([cx.neg(dy)?])
    },
}
