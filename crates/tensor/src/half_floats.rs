//! Rounding of `f64` to floats of 16 bits.
//!
//! By way of `f32`, and yet once: the first rounding is to odd, which leaves a trace of all that it drops, so that the second one
//! sees what is a tie (Boldo and Melquiond, *Emulation of FMA and correctly rounded sums*, IEEE TC 2008).

use half::{bf16, f16};

/// The nearest `f16`, of two equally near the even one.
pub fn f16_of(x: f64) -> f16 {
    f16::from_f32(rounded_to_odd(x))
}

/// The nearest `bf16`, of two equally near the even one.
pub fn bf16_of(x: f64) -> bf16 {
    bf16::from_f32(rounded_to_odd(x))
}

/// `x` where it is an `f32`, else the one of its two neighbours whose last bit is set.
fn rounded_to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    let towards_zero = if back.abs() > x.abs() { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(towards_zero | u32::from(back != x))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number between two neighbours, in steps finer than an `f32` has, goes to the nearer one.
    #[test]
    fn the_nearest_is_found_about_every_tie() {
        for low in [0x0000u16, 0x0001, 0x007f, 0x0080, 0x3f80, 0x3f81, 0x4000, 0x7f7e] {
            for sign in [0u16, 0x8000] {
                let (a, b) = (bf16::from_bits(low | sign), bf16::from_bits((low + 1) | sign));
                let tie = (a.to_f64() + b.to_f64()) / 2.0;
                let even = if low % 2 == 0 { a } else { b };
                for (off, expected) in [(-1e-12, a), (0.0, even), (1e-12, b)] {
                    let x = tie + off * (b.to_f64() - a.to_f64()).abs() * tie.signum();
                    assert_eq!(bf16_of(x).to_bits(), expected.to_bits(), "{low:#x} {sign:#x} {off}");
                }
                // Ties of `bf16` that an `f32` holds, and its neighbours.
                for last in 0x7ff9u32..0x8008 {
                    let x = f32::from_bits(u32::from(low | sign) << 16 | last);
                    assert_eq!(bf16_of(x.into()), bf16::from_f32(x), "{x:e}");
                }
            }
        }
        for low in [0x0000u16, 0x0001, 0x03ff, 0x0400, 0x3c00, 0x3c01, 0x7bfe] {
            let (a, b) = (f16::from_bits(low), f16::from_bits(low + 1));
            let tie = (a.to_f64() + b.to_f64()) / 2.0;
            let even = if low % 2 == 0 { a } else { b };
            for (off, expected) in [(-1e-12, a), (0.0, even), (1e-12, b)] {
                let x = tie + off * (b.to_f64() - a.to_f64());
                assert_eq!(f16_of(x).to_bits(), expected.to_bits(), "{low:#x} {off}");
            }
        }
    }

    #[test]
    fn ends_of_the_range_are_kept() {
        assert_eq!(bf16_of(1e300), bf16::INFINITY);
        assert_eq!(bf16_of(f64::NEG_INFINITY), bf16::NEG_INFINITY);
        assert_eq!(f16_of(65519.9), f16::MAX);
        assert_eq!(f16_of(65520.0), f16::INFINITY);
        assert_eq!(f16_of(1e-300).to_bits(), 0);
        assert_eq!(bf16_of(-1e-300).to_bits(), 0x8000);
        assert!(f16_of(f64::NAN).is_nan() && bf16_of(f64::NAN).is_nan());
    }
}
