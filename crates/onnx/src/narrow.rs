//! Element types below eight bits, and floats of eight: how ONNX packs them, and which numbers they are.
//!
//! Nothing computes in them. In a model that was read, and at the border of one that runs, each element has a byte of its
//! own: integers by their value, floats by their bits.

use margay_tensor::{DType, Tensor};

/// An element type that is narrower than those of graphs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Narrow {
    /// Sign, 4 bits of exponent, 3 of mantissa; no infinities.
    F8E4M3,
    /// The same without a negative zero.
    F8E4M3Z,
    /// Sign, 5 bits of exponent, 2 of mantissa.
    F8E5M2,
    /// The same without infinities and a negative zero.
    F8E5M2Z,
    /// Powers of two.
    F8E8M0,
    /// Sign, 2 bits of exponent, 1 of mantissa; neither infinities nor NaN.
    F4E2M1,
    /// Signed 4-bit integer.
    I4,
    /// Unsigned 4-bit integer.
    U4,
    /// Signed 2-bit integer.
    I2,
    /// Unsigned 2-bit integer.
    U2,
}

impl Narrow {
    /// Every type.
    pub const ALL: [Narrow; 10] = [
        Narrow::F8E4M3,
        Narrow::F8E4M3Z,
        Narrow::F8E5M2,
        Narrow::F8E5M2Z,
        Narrow::F8E8M0,
        Narrow::F4E2M1,
        Narrow::I4,
        Narrow::U4,
        Narrow::I2,
        Narrow::U2,
    ];

    /// Its number in ONNX.
    pub fn number(self) -> i32 {
        match self {
            Narrow::F8E4M3 => 17,
            Narrow::F8E4M3Z => 18,
            Narrow::F8E5M2 => 19,
            Narrow::F8E5M2Z => 20,
            Narrow::U4 => 21,
            Narrow::I4 => 22,
            Narrow::F4E2M1 => 23,
            Narrow::F8E8M0 => 24,
            Narrow::U2 => 25,
            Narrow::I2 => 26,
        }
    }

    /// The type with this number.
    pub fn numbered(number: i32) -> Option<Narrow> {
        Narrow::ALL.into_iter().find(|n| n.number() == number)
    }

    /// Its name in ONNX.
    pub fn name(self) -> &'static str {
        match self {
            Narrow::F8E4M3 => "FLOAT8E4M3FN",
            Narrow::F8E4M3Z => "FLOAT8E4M3FNUZ",
            Narrow::F8E5M2 => "FLOAT8E5M2",
            Narrow::F8E5M2Z => "FLOAT8E5M2FNUZ",
            Narrow::F8E8M0 => "FLOAT8E8M0",
            Narrow::F4E2M1 => "FLOAT4E2M1",
            Narrow::I4 => "INT4",
            Narrow::U4 => "UINT4",
            Narrow::I2 => "INT2",
            Narrow::U2 => "UINT2",
        }
    }

    /// Bits of an element.
    pub fn bits(self) -> usize {
        match self {
            Narrow::F8E4M3 | Narrow::F8E4M3Z | Narrow::F8E5M2 | Narrow::F8E5M2Z | Narrow::F8E8M0 => 8,
            Narrow::F4E2M1 | Narrow::I4 | Narrow::U4 => 4,
            Narrow::I2 | Narrow::U2 => 2,
        }
    }

    /// Whether elements are floats.
    pub fn is_float(self) -> bool {
        match self {
            Narrow::F8E4M3 | Narrow::F8E4M3Z | Narrow::F8E5M2 | Narrow::F8E5M2Z => true,
            Narrow::F8E8M0 | Narrow::F4E2M1 => true,
            Narrow::I4 | Narrow::U4 | Narrow::I2 | Narrow::U2 => false,
        }
    }

    /// Whether elements have a sign.
    pub fn is_signed(self) -> bool {
        match self {
            Narrow::F8E4M3 | Narrow::F8E4M3Z | Narrow::F8E5M2 | Narrow::F8E5M2Z | Narrow::F4E2M1 => true,
            Narrow::I4 | Narrow::I2 => true,
            Narrow::F8E8M0 | Narrow::U4 | Narrow::U2 => false,
        }
    }

    /// The type of the byte that stands for an element.
    pub fn carrier(self) -> DType {
        if self.is_float() || !self.is_signed() { DType::U8 } else { DType::I8 }
    }

    /// The smallest and largest integer.
    pub(crate) fn bounds(self) -> (f64, f64) {
        let values = f64::from(1u32 << self.bits());
        if self.is_signed() { (-values / 2.0, values / 2.0 - 1.0) } else { (0.0, values - 1.0) }
    }

    /// The bits that stand for no number, those for infinity, and whether -0 is told from 0.
    pub(crate) fn special(self) -> (Option<u8>, Option<u8>, bool) {
        match self {
            Narrow::F8E4M3 => (Some(0x7f), None, true),
            Narrow::F8E4M3Z | Narrow::F8E5M2Z => (Some(0x80), None, false),
            Narrow::F8E5M2 => (Some(0x7e), Some(0x7c), true),
            Narrow::F8E8M0 => (Some(0xff), None, false),
            // No number is -0, as others have it.
            Narrow::F4E2M1 => (Some(0x8), None, true),
            Narrow::I4 | Narrow::U4 | Narrow::I2 | Narrow::U2 => (None, None, false),
        }
    }

    /// Bits of the mantissa, and the number that is taken from the bits of the exponent.
    fn format(self) -> (u32, i32) {
        match self {
            Narrow::F8E4M3 => (3, 7),
            Narrow::F8E4M3Z => (3, 8),
            Narrow::F8E5M2 => (2, 15),
            Narrow::F8E5M2Z => (2, 16),
            Narrow::F8E8M0 => (0, 127),
            Narrow::F4E2M1 => (1, 1),
            Narrow::I4 | Narrow::U4 | Narrow::I2 | Narrow::U2 => (0, 0),
        }
    }

    /// The numbers of the bits 0, 1, … without a sign, ascending, up to the largest that is finite.
    pub(crate) fn magnitudes(self) -> Vec<f64> {
        let (mantissa, bias) = self.format();
        let last = match self {
            Narrow::F8E4M3 => 0x7e,
            Narrow::F8E4M3Z | Narrow::F8E5M2Z => 0x7f,
            Narrow::F8E5M2 => 0x7b,
            Narrow::F8E8M0 => 0xfe,
            Narrow::F4E2M1 => 0x7,
            Narrow::I4 | Narrow::U4 | Narrow::I2 | Narrow::U2 => 0,
        };
        let number = |bits: u32| {
            let (exponent, rest) = ((bits >> mantissa) as i32, f64::from(bits & ((1 << mantissa) - 1)));
            let unit = f64::from(1u32 << mantissa);
            match exponent {
                // Without a bit in front, but for powers of two.
                0 if mantissa > 0 => rest / unit * 2f64.powi(1 - bias),
                _ => (1.0 + rest / unit) * 2f64.powi(exponent - bias),
            }
        };
        (0..=last).map(number).collect()
    }

    /// The number of every byte, for floats.
    pub(crate) fn numbers(self) -> Vec<f64> {
        let magnitudes = self.magnitudes();
        let (nan, infinite, _) = self.special();
        let sign = if self.is_signed() { 1usize << (self.bits() - 1) } else { 256 };
        let number = |byte: usize| {
            let (negative, bits) = (byte & sign != 0, byte & !sign & ((1 << self.bits()) - 1));
            let same = |special: Option<u8>, bits: usize| special.is_some_and(|s| usize::from(s) == bits);
            let size = match magnitudes.get(bits) {
                _ if self != Narrow::F4E2M1 && same(nan, byte) => f64::NAN,
                Some(size) => *size,
                None if same(infinite, bits) => f64::INFINITY,
                None => f64::NAN,
            };
            if negative { -size } else { size }
        };
        (0..256).map(number).collect()
    }

    /// Elements with a byte for each as ONNX packs them, a list of bytes.
    pub(crate) fn packed(self, elements: &Tensor) -> Tensor {
        let (bits, per_byte) = (self.bits(), 8 / self.bits());
        let mask = ((1u16 << bits) - 1) as u8;
        let byte = |part: &[u8]| part.iter().enumerate().fold(0, |b, (i, &e)| b | (e & mask) << (bits * i));
        let bytes: Vec<u8> = elements.bytes().chunks(per_byte).map(byte).collect();
        Tensor::from_slice(&[bytes.len()], &bytes).expect("a list has as many bytes as it has")
    }

    /// Elements that ONNX packed, the first in the lowest bits, with a byte for each.
    pub(crate) fn unpacked(self, shape: &[usize], packed: &[u8]) -> Option<Tensor> {
        let count: usize = shape.iter().product();
        let (bits, per_byte) = (self.bits(), 8 / self.bits());
        let element = |i: usize| {
            let byte = *packed.get(i / per_byte)?;
            let value = (u16::from(byte) >> (bits * (i % per_byte))) as u8 & ((1u16 << bits) - 1) as u8;
            // The highest bit of a signed integer counts negative.
            let negative = !self.is_float() && self.is_signed() && value >> (bits - 1) != 0;
            Some(if negative { value | !(((1u16 << bits) - 1) as u8) } else { value })
        };
        let bytes = (0..count).map(element).collect::<Option<Vec<u8>>>()?;
        Tensor::from_bytes(self.carrier(), shape, &bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_formats() {
        let last = |n: Narrow| n.magnitudes().last().copied();
        assert_eq!(last(Narrow::F8E4M3), Some(448.0));
        assert_eq!(last(Narrow::F8E4M3Z), Some(240.0));
        assert_eq!(last(Narrow::F8E5M2), Some(57344.0));
        assert_eq!(last(Narrow::F8E5M2Z), Some(57344.0));
        assert_eq!(Narrow::F4E2M1.magnitudes(), [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
        assert_eq!(Narrow::F8E4M3.magnitudes()[1], 2f64.powi(-9));
        let numbers = Narrow::F8E5M2.numbers();
        assert_eq!((numbers[0xfc], numbers[0xbc]), (f64::NEG_INFINITY, -1.0));
        assert!(numbers[0x7e].is_nan() && numbers[0xff].is_nan());
        let numbers = Narrow::F8E4M3Z.numbers();
        assert!(numbers[0x80].is_nan());
        assert_eq!((numbers[0x40], numbers[0xff]), (1.0, -240.0));
        assert_eq!(Narrow::F8E8M0.numbers()[128], 2.0);
    }

    #[test]
    fn elements_are_packed_from_the_lowest_bits_on() {
        let unpacked =
            |n: Narrow, count, packed: &[u8]| n.unpacked(&[count], packed).map(|t| t.bytes().to_vec());
        assert_eq!(unpacked(Narrow::U4, 3, &[0x21, 0x0f]), Some(vec![1, 2, 15]));
        assert_eq!(unpacked(Narrow::I4, 3, &[0x81, 0x0f]), Some(vec![1, 0xf8, 0xff]));
        assert_eq!(unpacked(Narrow::I2, 4, &[0b11_10_01_00]), Some(vec![0, 1, 0xfe, 0xff]));
        assert_eq!(unpacked(Narrow::U4, 3, &[0x21]), None);
        for narrow in Narrow::ALL {
            let bytes = [0x21, 0x83, 0xfe];
            let elements = narrow.unpacked(&[24 / narrow.bits()], &bytes).unwrap();
            assert_eq!(narrow.packed(&elements).bytes(), bytes, "{narrow:?}");
        }
    }
}
