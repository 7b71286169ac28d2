//! |x|.

use margay_loops::Unary;

use crate::ops::elementwise::unary;

unary! {
    /// |x|.
    Abs = "abs",
    domain: Number, flops: 1, range: -2.0 .. 2.0,
    float: f64::abs,
    int: i64::wrapping_abs,
    scalar: |n, x| n.unary(Unary::Abs, x),
}
