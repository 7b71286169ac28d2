//! sin x.

use margay_loops::Unary;

use crate::ops::elementwise::unary;

unary! {
    /// sin x.
    Sin = "sin",
    domain: Float, flops: 10, range: -9.0 .. 9.0,
    float: libm::sin,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Sin, x),
}
