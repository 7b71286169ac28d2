//! x y, and 0 where x is 0, whatever y is: the product of a cotangent with a derivative.
//!
//! A cotangent of 0 says that the result does not depend on the element, so the derivative there, which may be infinite
//! or no number, does not matter.

use margay_loops::Binary;

use crate::ops::elementwise::binary;
use crate::vjp::Grad;

binary! {
    /// x y, and 0 where x is 0, whatever y is.
    MulOrZero = "mul_or_zero",
    domain: Float, flops: 3, test: false, range: -2.0 .. 2.0,
    float: |x, y| if x == 0.0 { 0.0 } else { x * y },
    int: |x, _| x,
    scalar: |n, x, y| {
        let (zero, product) = (n.number(x, 0.0), n.mul(x, y));
        let nothing = n.binary(Binary::Eq, x, zero);
        n.select(nothing, zero, product)
    },
    neutral: None,
    symbolic: None,
    parameters: &[],
    vjp: |cx| {
        let (x, y, dz) = (cx.input(0), cx.input(1), cx.cotangent()?);
        Grad::all([cx.product(dz, y)?, cx.product(dz, x)?])
    },
}
