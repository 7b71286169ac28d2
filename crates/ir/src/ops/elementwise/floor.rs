//! The largest integer not above x.

use margay_loops::Unary;

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// The largest integer not above x.
    Floor = "floor",
    domain: Float, flops: 1, range: -9.0 .. 9.0,
    float: f64::floor,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Floor, x),
    activation: None, symbolic: None,
    vjp: |_| Grad::zero(1),
}
