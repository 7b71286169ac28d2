//! x / y; integers round towards zero, and x / 0 is 0.

use crate::ops::elementwise::binary;

binary! {
    /// x / y; integers round towards zero, and x / 0 is 0.
    Div = "div",
    domain: Number, flops: 4, test: false, range: 0.5 .. 2.0,
    float: |x, y| x / y,
    int: |x, y| if y == 0 { 0 } else { x.wrapping_div(y) },
    scalar: |n, x, y| n.div(x, y),
}
