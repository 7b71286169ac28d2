//! The nearest integer, ties to even.

use margay_loops::Unary;

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// The nearest integer, ties to even.
    Round = "round",
    domain: Float, flops: 1, range: -9.0 .. 9.0,
    float: f64::round_ties_even,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Round, x),
    activation: None, symbolic: None,
    vjp: |_| Grad::zero(1),
}
