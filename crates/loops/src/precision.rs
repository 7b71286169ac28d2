//! How the operands of a product are rounded, and the rounding itself: kernels and the reference share it.

use crate::text::Field;

/// How the operands of a product are rounded before they are multiplied. Products are summed in f32, and what enters
/// and leaves a call is f32, whatever the precision.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// Both operands to bf16, see [`bf16`]. Subnormal operands and sums may count as zero.
    Bf16,
    /// The right operand to [`int8`] times the [`int8_scale`] of its column. The left one stays as it is.
    Int8,
}

impl Field for Precision {
    fn write(&self) -> String {
        self.name().into()
    }
    fn read(text: &str) -> Result<Self, String> {
        Precision::from_name(text).ok_or_else(|| format!("`{text}` is not a precision"))
    }
}

impl Precision {
    /// Every precision, the widest first.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

    /// The name used in text forms and options.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }

    /// The precision with a name.
    pub fn from_name(name: &str) -> Option<Precision> {
        Precision::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Stored bytes of a right operand of `k` rows and `n` columns, scales of columns included.
    pub fn stored_bytes(self, k: u64, n: u64) -> u64 {
        let elements = k.saturating_mul(n);
        match self {
            Precision::F32 => elements.saturating_mul(4),
            Precision::Bf16 => elements.saturating_mul(2),
            Precision::Int8 => elements.saturating_add(n.saturating_mul(4)),
        }
    }
}

/// The bf16 nearest to a number, ties to even: the upper half of an f32. Numbers beyond the largest bf16 become
/// infinite; a NaN stays a NaN.
#[inline(always)]
pub fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The number a bf16 stands for.
#[inline(always)]
pub fn from_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// The step of a column in int8: its largest magnitude divided by 127; NaN if an element is not finite.
pub fn int8_scale(column: impl Iterator<Item = f32>) -> f32 {
    let largest = column.fold(0.0f32, |most, x| if x.is_nan() { f32::INFINITY } else { most.max(x.abs()) });
    if largest.is_finite() { largest / 127.0 } else { f32::NAN }
}

/// The multiple of `scale` nearest to a number, ties to even, from -127 to 127; 0 if the scale is 0 or NaN.
pub fn int8(x: f32, scale: f32) -> i8 {
    if scale > 0.0 { (x / scale).round_ties_even().clamp(-127.0, 127.0) as i8 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        let rounded = |x: f32| from_bf16(bf16(x));
        for (x, expected) in [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 1.0 / 64.0),
            (-1.0 - 1.01 / 256.0, -1.0 - 1.0 / 128.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            (-0.0, 0.0),
        ] {
            assert_eq!(rounded(x), expected, "{x}");
        }
        for bits in [0x7f80_0001, 0xffff_ffffu32] {
            assert!(rounded(f32::from_bits(bits)).is_nan());
        }
    }

    #[test]
    fn int8_keeps_what_it_can_say() {
        let column = [0.5f32, -127.0, 63.4, 0.0];
        let scale = int8_scale(column.into_iter());
        assert_eq!(scale, 1.0);
        assert_eq!(column.map(|x| int8(x, scale)), [0, -127, 63, 0]);
        assert_eq!(int8_scale([0.0, 0.0].into_iter()), 0.0);
        assert_eq!(int8(0.0, 0.0), 0);
        for odd in [f32::NAN, f32::INFINITY] {
            assert!(int8_scale([1.0, odd, 2.0].into_iter()).is_nan());
        }
    }

    #[test]
    fn int8_of_what_int8_says_is_the_same() {
        for bits in (0x3f80_0000..0x4000_0000u32).step_by(97) {
            let scale = f32::from_bits(bits);
            let again = int8_scale([127.0 * scale].into_iter());
            for q in -127..=127 {
                assert_eq!(int8(f32::from(q as i8) * scale, again), q as i8);
            }
        }
    }

    #[test]
    fn names_are_read_back() {
        for p in Precision::ALL {
            assert_eq!(Precision::from_name(p.name()), Some(p));
        }
        assert_eq!(Precision::from_name("fp4"), None);
    }
}
