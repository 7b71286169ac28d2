//! arctan x, between -π/2 and π/2.
//!
//! The compiled code brings |x| to at most tan(π/12) by arctan x = π/2 - arctan 1/x and
//! arctan x = π/6 + arctan (√3 x - 1) / (x + √3). There the series x - x³/3 + x⁵/5 - … has the precision of f64 after
//! fifteen terms.

use std::f64::consts::{FRAC_PI_2, FRAC_PI_6};

use margay_loops::{Binary, Nest, Reg, Unary};

use crate::ops::elementwise::unary;
use crate::vjp::Grad;

unary! {
    /// arctan x, between -π/2 and π/2.
    Atan = "atan",
    domain: Float, flops: 48, range: -9.0 .. 9.0,
    float: libm::atan,
    int: |x| x,
    scalar: arctan,
    activation: None, symbolic: None,
    vjp: |cx| {
        let (x, dy) = (cx.input(0), cx.cotangent()?);
        let square = cx.mul(x, x)?;
        let slope = cx.offset(square, 1.0)?;
        Grad::all([cx.quotient(dy, slope)?])
    },
}

const SQRT_3: f64 = 1.732_050_807_568_877_2;

/// tan(π/12).
const SMALL: f64 = 2.0 - SQRT_3;

const TERMS: i32 = 15;

fn arctan(n: &mut Nest, x: Reg) -> Reg {
    let (zero, one, root) = (n.number(x, 0.0), n.number(x, 1.0), n.number(x, SQRT_3));
    let size = n.unary(Unary::Abs, x);
    let large = n.binary(Binary::Lt, one, size);
    let inverse = n.div(one, size);
    let at_most_one = n.select(large, inverse, size);
    let small = n.number(x, SMALL);
    let medium = n.binary(Binary::Lt, small, at_most_one);
    let scaled = n.mul(root, at_most_one);
    let (above, below) = (n.sub(scaled, one), n.add(at_most_one, root));
    let turned = n.div(above, below);
    let z = n.select(medium, turned, at_most_one);
    let square = n.mul(z, z);
    let coefficient = |k: i32| {
        let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
        sign / f64::from(2 * k + 1)
    };
    let mut series = n.number(x, coefficient(TERMS - 1));
    for k in (0..TERMS - 1).rev() {
        let (product, next) = (n.mul(series, square), n.number(x, coefficient(k)));
        series = n.add(product, next);
    }
    let angle = n.mul(z, series);
    let sixth = n.number(x, FRAC_PI_6);
    let base = n.select(medium, sixth, zero);
    let angle = n.add(base, angle);
    let right = n.number(x, FRAC_PI_2);
    let complement = n.sub(right, angle);
    let angle = n.select(large, complement, angle);
    let negative = n.binary(Binary::Lt, x, zero);
    let minus = n.unary(Unary::Neg, angle);
    n.select(negative, minus, angle)
}
