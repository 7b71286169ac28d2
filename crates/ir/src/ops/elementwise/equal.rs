//! Whether x and y are the same number.

use margay_loops::Binary;

use crate::ops::elementwise::binary;
use crate::ops::facts::{equal, flag};
use crate::vjp::Grad;

binary! {
    /// Whether x and y are the same number.
    Equal = "equal",
    domain: Any, flops: 1, test: true, range: 0.0 .. 2.0,
    float: |x, y| f64::from(x == y),
    int: |x, y| i128::from(x == y),
    scalar: |n, x, y| n.binary(Binary::Eq, x, y),
    neutral: None,
    symbolic: Some(Symbolic::Pairs(|x, y| equal(x, y).map(flag))),
    parameters: &[],
    vjp: |_| Grad::none("it gives truth values"),
}
