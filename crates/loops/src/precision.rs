//! Settings of products with constants that people name by one word.

use margay_tensor::{DType, Storage};

use crate::ProductTypes;

/// How constants of products are stored, and what products with them round: a word for common settings. Inputs, sums
/// and results are f32, whatever the precision.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Precision {
    /// Stored as they are.
    #[default]
    F32,
    /// Stored in bf16; the other operand is rounded to bf16 too.
    Bf16,
    /// Stored in int8, with a scale for every result. The other operand stays as it is.
    Int8,
    /// Stored in 4 bits, with a scale and a zero point for every 64 terms of a result. The other operand stays as it is.
    Int4,
}

impl Precision {
    /// Every precision, the widest first.
    pub const ALL: [Precision; 4] = [Precision::F32, Precision::Bf16, Precision::Int8, Precision::Int4];

    /// The name used in text forms and options.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
        }
    }

    /// The precision with a name.
    pub fn from_name(name: &str) -> Option<Precision> {
        Precision::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Element types of a product with a constant matrix.
    pub fn types(self) -> ProductTypes {
        match self {
            Precision::F32 => ProductTypes::F32,
            Precision::Bf16 => {
                ProductTypes { left_rounded: DType::BF16, right: self.storage(1), ..ProductTypes::F32 }
            }
            Precision::Int8 | Precision::Int4 => ProductTypes { right: self.storage(1), ..ProductTypes::F32 },
        }
    }

    /// How a constant is stored whose axis of results has a number. Its terms lie along the axis before, or along the second
    /// one where results are the first.
    pub fn storage(self, axis: usize) -> Storage {
        match self {
            Precision::F32 => Storage::plain(DType::F32),
            Precision::Bf16 => Storage::plain(DType::BF16),
            Precision::Int8 => Storage::int8(axis),
            Precision::Int4 => Storage::blocks(4, if axis == 0 { 1 } else { axis - 1 }),
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
    fn names_are_read_back() {
        for p in Precision::ALL {
            assert_eq!(Precision::from_name(p.name()), Some(p));
        }
        assert_eq!(Precision::from_name("fp4"), None);
    }
}
