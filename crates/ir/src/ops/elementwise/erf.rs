//! The error function, 2/√π ∫₀ˣ exp(-t²) dt.

use margay_loops::Unary;

use crate::ops::elementwise::unary;

unary! {
    /// The error function, 2/√π ∫₀ˣ exp(-t²) dt.
    Erf = "erf",
    domain: Float, flops: 10, range: -4.0 .. 4.0,
    float: libm::erf,
    int: |x| x,
    scalar: |n, x| n.unary(Unary::Erf, x),
}
