//! The sigmoid linear unit (Elfwing, Uchibe and Doya, arXiv 1702.03118), also called swish: x / (1 + e⁻ˣ).

use margay_loops::Unary;

use crate::ops::elementwise::unary;

unary! {
    /// x / (1 + e⁻ˣ).
    Silu = "silu",
    domain: Float, flops: 11, range: -9.0 .. 9.0,
    float: |x| x / (1.0 + libm::exp(-x)),
    int: |x| x,
    scalar: |n, x| {
        let share = n.unary(Unary::Sigmoid, x);
        n.mul(x, share)
    },
}
