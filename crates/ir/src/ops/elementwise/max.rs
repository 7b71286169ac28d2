//! The larger; NaN if either is.

use margay_loops::Binary;

use crate::ops::elementwise::binary;
use crate::ops::facts::larger;
use crate::vjp::Grad;

binary! {
    /// The larger; NaN if either is.
    Max = "max",
    domain: Number, flops: 1, test: false, range: -2.0 .. 2.0,
    float: |x, y| if x.is_nan() || x > y { x } else { y },
    int: |x, y| x.max(y),
    scalar: |n, x, y| n.binary(Binary::Max, x, y),
    neutral: None,
    symbolic: Some(Symbolic::Pairs(larger)),
    parameters: &[],
    vjp: |cx| {
        // Where both are equal, the first one is the larger.
        let (x, y, dz) = (cx.input(0), cx.input(1), cx.cotangent()?);
        let second = cx.less(x, y)?;
        let [dy, dx] = cx.split(second, dz)?;
        Grad::all([dx, dy])
    },
}
