//! 16-bit floats: in memory two bytes, in registers the f32 they stand for.
//!
//! Written for a scalar and for four lanes alike: the bits of an f32 are an I32 or an I32X4, and so are those of a
//! 16-bit float, in the lower half.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{I8X16, I16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value};
use margay_tensor::DType;

use crate::scalar::{Ops, little};

/// The bits of ½: adding it to a magnitude below 2⁻¹⁴ leaves the multiple of 2⁻²⁴ nearest to that in the low bits.
const HALF: i64 = 0x3f00_0000;
/// What the exponents of f32 and f16 differ by, in place.
const REBIAS: i64 = 112 << 23;

impl Ops<'_> {
    /// The number of a 16-bit type nearest to an f32, ties to even, as an f32.
    pub(crate) fn round_half(&mut self, x: Value, dtype: DType) -> Value {
        match dtype {
            DType::F16 => self.round_f16(x),
            _ => self.round_bf16(x),
        }
    }

    /// The bits of an f32 with so many of them dropped, rounded to even.
    fn drop_bits(&mut self, bits: Value, count: u32) -> Value {
        let ty = self.type_of(bits);
        let kept = self.b.ins().ushr_imm_u(bits, i64::from(count));
        let (one, most) = (self.int(ty, 1), self.int(ty, (1 << (count - 1)) - 1));
        let odd = self.b.ins().band(kept, one);
        let sum = self.b.ins().iadd(bits, most);
        let sum = self.b.ins().iadd(sum, odd);
        let mask = self.int(ty, !((1i64 << count) - 1));
        self.b.ins().band(sum, mask)
    }

    fn round_bf16(&mut self, x: Value) -> Value {
        let bits = self.bits(x);
        let ty = self.type_of(bits);
        let rounded = self.drop_bits(bits, 16);
        let (quiet, mask) = (self.int(ty, 0x40_0000), self.int(ty, !0xffff));
        let nan = self.b.ins().bor(bits, quiet);
        let nan = self.b.ins().band(nan, mask);
        let (rounded, nan) = (self.float_of_bits(rounded), self.float_of_bits(nan));
        let is_nan = self.compare(FloatCC::Unordered, x, x);
        self.choose(is_nan, nan, rounded)
    }

    fn round_f16(&mut self, x: Value) -> Value {
        let float = self.type_of(x);
        let bits = self.bits(x);
        let ty = self.type_of(bits);
        let (size, sign) = self.split_sign(bits);
        let rounded = self.drop_bits(size, 13);
        let rounded = self.float_of_bits(rounded);
        let size = self.float_of_bits(size);
        // Below the smallest normal number the steps are 2⁻²⁴ wide.
        let half = self.float(float, 0.5);
        let sum = self.b.ins().fadd(size, half);
        let stepped = self.b.ins().fsub(sum, half);
        let (normal, beyond) = (self.float(float, 2f64.powi(-14)), self.float(float, 65_520.0));
        let is_small = self.compare(FloatCC::LessThan, size, normal);
        let rounded = self.choose(is_small, stepped, rounded);
        let infinite = self.float(float, f64::INFINITY);
        let is_beyond = self.compare(FloatCC::GreaterThanOrEqual, size, beyond);
        let rounded = self.choose(is_beyond, infinite, rounded);
        let rounded = self.bits(rounded);
        let rounded = self.b.ins().bor(rounded, sign);
        let rounded = self.float_of_bits(rounded);
        let quiet = self.int(ty, 0x40_0000);
        let nan = self.b.ins().bor(bits, quiet);
        let nan = self.float_of_bits(nan);
        let is_nan = self.compare(FloatCC::Unordered, x, x);
        self.choose(is_nan, nan, rounded)
    }

    /// The bits of a magnitude, and the bit of a sign, of an f32.
    fn split_sign(&mut self, bits: Value) -> (Value, Value) {
        let ty = self.type_of(bits);
        let (size, sign) = (self.int(ty, 0x7fff_ffff), self.int(ty, 0x8000_0000));
        (self.b.ins().band(bits, size), self.b.ins().band(bits, sign))
    }

    /// The bits of a 16-bit float as the f32 they stand for.
    fn widen_half(&mut self, half: Value, dtype: DType) -> Value {
        if dtype == DType::BF16 {
            let bits = self.b.ins().ishl_imm_u(half, 16);
            return self.float_of_bits(bits);
        }
        let ty = self.type_of(half);
        let (size_mask, sign_mask) = (self.int(ty, 0x7fff), self.int(ty, 0x8000));
        let size = self.b.ins().band(half, size_mask);
        let sign = self.b.ins().band(half, sign_mask);
        let sign = self.b.ins().ishl_imm_u(sign, 16);
        let (rebias, infinite, normal) = (self.int(ty, REBIAS), self.int(ty, 0x7c00), self.int(ty, 0x400));
        let moved = self.b.ins().ishl_imm_u(size, 13);
        let moved = self.b.ins().iadd(moved, rebias);
        let special = self.b.ins().iadd(moved, rebias);
        let is_finite = self.b.ins().icmp(IntCC::SignedLessThan, size, infinite);
        let moved = self.choose(is_finite, moved, special);
        // Subnormal numbers are multiples of 2⁻²⁴.
        let half_bits = self.int(ty, HALF);
        let sum = self.b.ins().bor(half_bits, size);
        let sum = self.float_of_bits(sum);
        let half = self.float(self.type_of(sum), 0.5);
        let small = self.b.ins().fsub(sum, half);
        let small = self.bits(small);
        let is_small = self.b.ins().icmp(IntCC::SignedLessThan, size, normal);
        let bits = self.choose(is_small, small, moved);
        let bits = self.b.ins().bor(bits, sign);
        self.float_of_bits(bits)
    }

    /// The bits of the 16-bit float that an f32 rounds to.
    fn narrow_half(&mut self, x: Value, dtype: DType) -> Value {
        let x = self.round_half(x, dtype);
        let bits = self.bits(x);
        if dtype == DType::BF16 {
            return self.b.ins().ushr_imm_u(bits, 16);
        }
        let ty = self.type_of(bits);
        let (size, sign) = self.split_sign(bits);
        let sign = self.b.ins().ushr_imm_u(sign, 16);
        // A NaN is quiet by now; infinity and NaN have the largest exponent of either type.
        let (rebias, special, normal) =
            (self.int(ty, REBIAS), self.int(ty, 0x7f80_0000), self.int(ty, 113 << 23));
        let moved = self.b.ins().isub(size, rebias);
        let twice = self.b.ins().isub(moved, rebias);
        let is_finite = self.b.ins().icmp(IntCC::SignedLessThan, size, special);
        let moved = self.choose(is_finite, moved, twice);
        let moved = self.b.ins().ushr_imm_u(moved, 13);
        let magnitude = self.float_of_bits(size);
        let half = self.float(self.type_of(magnitude), 0.5);
        let sum = self.b.ins().fadd(magnitude, half);
        let sum = self.bits(sum);
        let half_bits = self.int(ty, HALF);
        let small = self.b.ins().isub(sum, half_bits);
        let is_small = self.b.ins().icmp(IntCC::SignedLessThan, size, normal);
        let half = self.choose(is_small, small, moved);
        self.b.ins().bor(half, sign)
    }

    /// Loads a 16-bit float, or four.
    pub(crate) fn load_half(
        &mut self,
        dtype: DType,
        wide: bool,
        flags: MemFlagsData,
        address: Value,
        offset: i32,
    ) -> Value {
        let half = if wide {
            let word = self.b.ins().load(I64, flags, address, offset);
            let v = self.b.ins().scalar_to_vector(I64X2, word);
            let v = self.b.ins().bitcast(I16X8, little(), v);
            self.b.ins().uwiden_low(v)
        } else {
            let half = self.b.ins().load(I16, flags, address, offset);
            self.b.ins().uextend(I32, half)
        };
        self.widen_half(half, dtype)
    }

    /// Stores an f32 as a 16-bit float, or four.
    pub(crate) fn store_half(
        &mut self,
        dtype: DType,
        x: Value,
        flags: MemFlagsData,
        address: Value,
        offset: i32,
    ) {
        let half = self.narrow_half(x, dtype);
        let value = if self.type_of(half) == I32X4 {
            // Sign-extended, so that packing does not saturate.
            let v = self.b.ins().ishl_imm_u(half, 16);
            let v = self.b.ins().sshr_imm_u(v, 16);
            let v = self.b.ins().snarrow(v, v);
            let v = self.b.ins().bitcast(I64X2, little(), v);
            self.b.ins().extractlane(v, 0)
        } else {
            self.b.ins().ireduce(I16, half)
        };
        self.b.ins().store(flags, value, address, offset);
    }

    /// Loads four 8-bit integers, widened.
    pub(crate) fn load_bytes(
        &mut self,
        signed: bool,
        flags: MemFlagsData,
        address: Value,
        offset: i32,
    ) -> Value {
        let word = self.b.ins().load(I32, flags, address, offset);
        let v = self.b.ins().scalar_to_vector(I32X4, word);
        let v = self.b.ins().bitcast(I8X16, little(), v);
        if signed {
            let v = self.b.ins().swiden_low(v);
            self.b.ins().swiden_low(v)
        } else {
            let v = self.b.ins().uwiden_low(v);
            self.b.ins().uwiden_low(v)
        }
    }
}
