//! The smaller; NaN if either is.

use margay_loops::Binary;

use crate::ops::elementwise::binary;
use crate::ops::facts::smaller;
use crate::vjp::Grad;

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
        // Where both are equal, the first one is the smaller.
        let (x, y, dz) = (cx.input(0), cx.input(1), cx.cotangent()?);
        let second = cx.less(y, x)?;
        let [dy, dx] = cx.split(second, dz)?;
        Grad::all([dx, dy])
    },
}
