//! 1 / (1 + e⁻ˣ).

use margay_loops::Unary;

use crate::ops::elementwise::unary;

unary! {
    /// 1 / (1 + e⁻ˣ).
    Sigmoid = "sigmoid",
    domain: Float, flops: 10, range: -9.0 .. 9.0,
    float: |x| 1.0 / (1.0 + libm::exp(-x)),
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Sigmoid, x),
}
