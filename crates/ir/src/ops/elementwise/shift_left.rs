//! x 2ʸ, of integers without a sign, cut off as products are.

use margay_loops::Binary;

use crate::ops::elementwise::binary;
use crate::vjp::Grad;

binary! {
    /// x 2ʸ, of integers without a sign, cut off as products are.
    ShiftLeft = "shift_left",
    domain: Unsigned, flops: 3, test: false, range: 0.0 .. 40.0,
    float: |x, _| x,
    int: |x, y| if (0..64).contains(&y) { x << y } else { 0 },
    scalar: |n, x, y| n.binary(Binary::ShiftLeft, x, y),
    neutral: None, symbolic: None, parameters: &[],
    vjp: |_| Grad::none("it is about bits"),
}
