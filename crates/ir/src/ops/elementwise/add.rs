//! x + y; integers wrap.

use crate::ops::elementwise::binary;
use crate::vjp::Grad;

binary! {
    /// x + y; integers wrap.
    Add = "add",
    domain: Number, flops: 1, test: false, range: -2.0 .. 2.0,
    float: |x, y| x + y,
    int: i128::wrapping_add,
    scalar: |n, x, y| n.add(x, y),
    neutral: Some(Neutral::either(-0.0)),
    symbolic: Some(Symbolic::Pairs(|x, y| Some(x + y))),
    parameters: &[Some(Parameter::Shift), Some(Parameter::Shift)],
    vjp: |cx| {
        let dz = cx.cotangent()?;
        Grad::all([dz, dz])
    },
}
