//! xʸ, of floats.

use margay_loops::Binary;

use crate::ops::elementwise::{Equal, Log, Select, binary};
use crate::vjp::Grad;

binary! {
    /// xʸ, of floats.
    Pow = "pow",
    domain: Float, flops: 20, test: false, range: 0.5 .. 2.0,
    float: libm::pow,
    int: |x, _| x,
    scalar: |n, x, y| n.binary(Binary::Pow, x, y),
    neutral: Some(Neutral::second(1.0)),
    symbolic: None,
    parameters: &[],
    vjp: |cx| {
        let (x, y, z, dz) = (cx.input(0), cx.input(1), cx.output(), cx.cotangent()?);
        let lower = cx.offset(y, -1.0)?;
        let power = cx.op(Pow, &[x, lower])?;
        let by_x = cx.product(y, power)?;
        let dx = cx.product(dz, by_x)?;
        // Asked for only, because it is not defined for negative x.
        let dy = if cx.wants(1) {
            // 0ʸ does not change with y where it is a number.
            let zero = cx.number(x, 0.0)?;
            let at_zero = cx.op(Equal, &[x, zero])?;
            let one = cx.number(x, 1.0)?;
            let base = cx.op(Select, &[at_zero, one, x])?;
            let log = cx.op(Log, &[base])?;
            let by_y = cx.product(z, log)?;
            Some(cx.product(dz, by_y)?)
        } else {
            None
        };
        Ok(Grad::Inputs(vec![Some(dx), dy]))
    },
}
