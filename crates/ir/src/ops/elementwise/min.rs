//! The smaller; NaN if either is.

use margay_loops::Binary;

use crate::ops::elementwise::binary;
use crate::ops::elementwise::max::gradient_of_chosen;
use crate::ops::facts::smaller;

binary! {
    /// The smaller; NaN if either is.
    Min = "min",
    domain: Number, flops: 1, test: false, range: -2.0 .. 2.0,
    float: |x, y| if x.is_nan() || x < y { x } else { y },
    int: |x, y| x.min(y),
    scalar: |n, x, y| n.binary(Binary::Min, x, y),
    neutral: None,
    symbolic: Some(Symbolic::Pairs(smaller)),
    parameters: &[],
    vjp: |cx| {
        let (x, y) = (cx.input(0), cx.input(1));
        let (second, first) = (cx.less(y, x)?, cx.less(x, y)?);
        gradient_of_chosen(cx, first, second)
    },
}
