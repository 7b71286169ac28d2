//! The larger; NaN if either is.

use margay_loops::Binary;

use crate::ops::elementwise::{Equal, Select, binary};
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
        // Two that are equal share the cotangent equally; one alone, such as x between constant bounds, takes all.
        let (x, y, dz) = (cx.input(0), cx.input(1), cx.cotangent()?);
        let share = match cx.wants(0) && cx.wants(1) {
            true => {
                let equal = cx.op(Equal, &[x, y])?;
                let half = cx.scale(dz, 0.5)?;
                cx.op(Select, &[equal, half, dz])?
            }
            false => dz,
        };
        let (second, first) = (cx.less(x, y)?, cx.less(y, x)?);
        let ([_, dx], [_, dy]) = (cx.split(second, share)?, cx.split(first, share)?);
        Grad::all([dx, dy])
    },
}
