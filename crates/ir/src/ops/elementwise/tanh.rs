//! tanh x.

use margay_loops::Unary;

use crate::ops::elementwise::unary;

unary! {
    /// tanh x.
    Tanh = "tanh",
    domain: Float, flops: 10, range: -9.0 .. 9.0,
    float: libm::tanh,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Tanh, x),
}
