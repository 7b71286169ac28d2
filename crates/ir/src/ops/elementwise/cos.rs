//! cos x.

use margay_loops::Unary;

use crate::ops::elementwise::unary;

unary! {
    /// cos x.
    Cos = "cos",
    domain: Float, flops: 10, range: -9.0 .. 9.0,
    float: libm::cos,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Cos, x),
}
