//! xʸ, of floats.

use margay_loops::Binary;

use crate::ops::elementwise::binary;

binary! {
    /// xʸ, of floats.
    Pow = "pow",
    domain: Float, flops: 20, test: false, range: 0.5 .. 2.0,
    float: libm::pow,
    int: |x, _| x,
    scalar: |n, x, y| n.binary(Binary::Pow, x, y),
}
