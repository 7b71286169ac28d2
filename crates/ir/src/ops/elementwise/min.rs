//! The smaller; NaN if either is.

use margay_loops::Binary;

use crate::ops::elementwise::{Equal, Select, binary};
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
        let (second, first) = (cx.less(y, x)?, cx.less(x, y)?);
        let ([_, dx], [_, dy]) = (cx.split(second, share)?, cx.split(first, share)?);
        Grad::all([dx, dy])
    },
}
