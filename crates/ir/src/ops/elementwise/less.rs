//! x < y; false if either is NaN.

use margay_loops::Binary;

use crate::ops::elementwise::binary;
use crate::ops::facts::{flag, less_or_equal};
use crate::vjp::Grad;

binary! {
    /// x < y; false if either is NaN.
    Less = "less",
    domain: Number, flops: 1, test: true, range: -2.0 .. 2.0,
    float: |x, y| f64::from(x < y),
    int: |x, y| i128::from(x < y),
    scalar: |n, x, y| n.binary(Binary::Lt, x, y),
    neutral: None,
    symbolic: Some(Symbolic::Pairs(|x, y| less_or_equal(y, x).map(|not| flag(!not)))),
    parameters: &[],
    vjp: |_| Grad::none("it gives truth values"),
}
