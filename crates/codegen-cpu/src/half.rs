//! 16-bit floats in memory, and lanes of 8-bit integers: in registers a 16-bit float is the f32 it stands for.
//!
//! For a scalar and for four lanes alike; the conversions themselves are [`Arithmetic`]'s.

use cranelift_codegen::ir::types::{I8X16, I16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value};
use margay_loops::Arithmetic;
use margay_tensor::DType;

use crate::scalar::{Ops, little};

impl Ops<'_> {
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
