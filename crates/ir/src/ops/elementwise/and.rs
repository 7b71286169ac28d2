//! Logical and; bit by bit, of integers.

use margay_loops::Binary;

use crate::ops::elementwise::binary;
use crate::vjp::Grad;

binary! {
    /// Logical and; bit by bit, of integers.
    And = "and",
    domain: Bits, flops: 1, test: false, range: 0.0 .. 2.0,
    float: |x, y| x * y,
    int: |x, y| x & y,
    scalar: |n, x, y| n.binary(Binary::And, x, y),
    neutral: None, symbolic: None, parameters: &[],
    vjp: |_| Grad::none("it is about bits"),
}
