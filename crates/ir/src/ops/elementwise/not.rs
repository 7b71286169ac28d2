//! Logical not.

use margay_loops::Unary;

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// Logical not.
    Not = "not",
    domain: Bool, flops: 1, range: 0.0 .. 2.0,
    float: |x| if x == 0.0 { 1.0 } else { 0.0 },
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Not, x),
    activation: None, symbolic: None,
    vjp: |_| Grad::none("it gives truth values"),
}
