//! The larger; NaN if either is.

use margay_loops::Binary;

use crate::Value;
use crate::ops::elementwise::{Equal, Select, binary};
use crate::ops::facts::larger;
use crate::vjp::{Grad, GradResult, Vjp};

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
        let (x, y) = (cx.input(0), cx.input(1));
        let (second, first) = (cx.less(x, y)?, cx.less(y, x)?);
        gradient_of_chosen(cx, first, second)
    },
}

/// The derivative of a function that is one of its two operands, where these say which. Two that are equal share the
/// cotangent equally; one whose derivative alone is asked for, such as x between constant bounds, takes all.
pub(super) fn gradient_of_chosen(cx: &mut Vjp<'_>, first: Value, second: Value) -> GradResult {
    let (x, y, dz) = (cx.input(0), cx.input(1), cx.cotangent()?);
    let share = match cx.wants(0) && cx.wants(1) {
        true => {
            let equal = cx.op(Equal, &[x, y])?;
            let half = cx.scale(dz, 0.5)?;
            cx.op(Select, &[equal, half, dz])?
        }
        false => dz,
    };
    let ([_, dx], [_, dy]) = (cx.split(second, share)?, cx.split(first, share)?);
    Grad::all([dx, dy])
}
