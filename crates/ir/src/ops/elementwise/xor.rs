//! Exclusive or, of truth values; bit by bit, of integers.

use margay_loops::Binary;

use crate::ops::elementwise::binary;
use crate::vjp::Grad;

binary! {
    /// Exclusive or, of truth values; bit by bit, of integers.
    Xor = "xor",
    domain: Bits, flops: 1, test: false, range: 0.0 .. 2.0,
    float: |x, y| f64::from(x != y),
    int: |x, y| x ^ y,
    scalar: |n, x, y| n.binary(Binary::Xor, x, y),
    neutral: None, symbolic: None, parameters: &[],
    vjp: |_| Grad::none("it is about bits"),
}
