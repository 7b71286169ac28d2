//! The smallest integer not below x.

use margay_loops::Unary;

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// The smallest integer not below x.
    Ceil = "ceil",
    domain: Float, flops: 1, range: -9.0 .. 9.0,
    float: f64::ceil,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Ceil, x),
    activation: None, symbolic: None,
    vjp: |_| Grad::zero(1),
}
