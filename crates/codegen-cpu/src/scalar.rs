//! Operations on a scalar or on four lanes of f32, written once for both. Lanes of integers of 8 bits are those of i32.
//!
//! A truth value is an I8 of 0 or 1 beside scalars and an I32X4 of all zeros or all ones beside lanes. Every
//! method looks at the type of the value it is given, so that a function composed of them works for both and
//! gives the same bits for both.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::immediates::{Ieee32, Ieee64};
use cranelift_codegen::ir::types::{F32, F32X4, F64, I8, I8X16, I16, I16X8, I32, I32X4, I64};
use cranelift_codegen::ir::{ConstantData, Endianness, InstBuilder, MemFlagsData, Type, Value};
use cranelift_frontend::FunctionBuilder;
use margay_loops::Literal;
use margay_tensor::DType;

use crate::CpuIsa;
use crate::statement::Copies;

/// Writes operations into a function.
pub(crate) struct Ops<'b> {
    pub(crate) b: FunctionBuilder<'b>,
    fused: bool,
    rounding: bool,
}

impl<'b> Ops<'b> {
    pub(crate) fn new(b: FunctionBuilder<'b>, isa: &CpuIsa) -> Ops<'b> {
        Ops { b, fused: isa.fused(), rounding: isa.rounding() }
    }

    pub(crate) fn type_of(&self, x: Value) -> Type {
        self.b.func.dfg.value_type(x)
    }

    /// The float `v` in the type `ty`: F32, F64 or F32X4.
    pub(crate) fn float(&mut self, ty: Type, v: f64) -> Value {
        match ty {
            F64 => self.b.ins().f64const(Ieee64::with_bits(v.to_bits())),
            F32 => self.b.ins().f32const(Ieee32::with_bits((v as f32).to_bits())),
            _ => self.lanes(ty, (v as f32).to_bits()),
        }
    }

    /// The integer `v` in the integer type with the shape of `ty`.
    pub(crate) fn int(&mut self, ty: Type, v: i64) -> Value {
        match int_type(ty) {
            I32X4 => self.lanes(I32X4, v as u32),
            int => self.iconst(int, v),
        }
    }

    /// An integer constant, wrapped to its width.
    pub(crate) fn iconst(&mut self, ty: Type, v: i64) -> Value {
        let v = if ty.bits() < 64 { v & ((1 << ty.bits()) - 1) } else { v };
        self.b.ins().iconst(ty, v)
    }

    fn lanes(&mut self, ty: Type, word: u32) -> Value {
        let data = ConstantData::from(word.to_le_bytes().repeat(4));
        let constant = self.b.func.dfg.constants.insert(data);
        self.b.ins().vconst(ty, constant)
    }

    pub(crate) fn literal(&mut self, value: Literal) -> Value {
        match value {
            Literal::F32(bits) => self.b.ins().f32const(Ieee32::with_bits(bits)),
            Literal::F64(bits) => self.b.ins().f64const(Ieee64::with_bits(bits)),
            Literal::Int(dtype, v) => self.iconst(register_type(dtype), v),
            Literal::Bool(v) => self.iconst(I8, i64::from(v)),
        }
    }

    /// A scalar of type f32, i32 or bool in every lane.
    pub(crate) fn splat(&mut self, dtype: DType, x: Value) -> Value {
        match dtype {
            DType::Bool => {
                let word = self.b.ins().uextend(I32, x);
                let mask = self.b.ins().ineg(word);
                self.b.ins().splat(I32X4, mask)
            }
            DType::I32 => self.b.ins().splat(I32X4, x),
            _ => self.b.ins().splat(F32X4, x),
        }
    }

    /// Lanes of f32 as whole numbers in i32, cut off at the bounds of an integer type of at most 32 bits.
    pub(crate) fn whole_lanes(&mut self, x: Value, to: DType) -> Value {
        let whole = self.b.ins().fcvt_to_sint_sat(I32X4, x);
        let (low, high) = match to {
            DType::I8 => (-128, 127),
            DType::U8 => (0, 255),
            _ => return whole,
        };
        let (low, high) = (self.int(I32X4, low), self.int(I32X4, high));
        let below = self.b.ins().icmp(IntCC::SignedLessThan, whole, low);
        let whole = self.choose(below, low, whole);
        let above = self.b.ins().icmp(IntCC::SignedGreaterThan, whole, high);
        self.choose(above, high, whole)
    }

    /// Lanes of i32 that fit 8 bits as four bytes, packed in an I32.
    pub(crate) fn bytes_of_lanes(&mut self, x: Value, signed: bool) -> Value {
        let v = self.b.ins().snarrow(x, x);
        let v = if signed { self.b.ins().snarrow(v, v) } else { self.b.ins().unarrow(v, v) };
        let v = self.b.ins().bitcast(I32X4, little(), v);
        self.b.ins().extractlane(v, 0)
    }

    /// Four bytes of 0 or not 0, packed in an I32, as lanes.
    pub(crate) fn mask_of_bytes(&mut self, word: Value) -> Value {
        let v = self.b.ins().scalar_to_vector(I32X4, word);
        let v = self.b.ins().bitcast(I8X16, little(), v);
        let v = self.b.ins().uwiden_low(v);
        let v = self.b.ins().uwiden_low(v);
        let zero = self.int(I32X4, 0);
        self.b.ins().icmp(IntCC::NotEqual, v, zero)
    }

    /// Lanes as four bytes of 0 or 1, packed in an I32.
    pub(crate) fn bytes_of_mask(&mut self, mask: Value) -> Value {
        let v = self.b.ins().snarrow(mask, mask);
        debug_assert_eq!(self.type_of(v), I16X8);
        let v = self.b.ins().snarrow(v, v);
        let v = self.b.ins().bitcast(I32X4, little(), v);
        let ones = self.int(I32X4, 0x0101_0101);
        let v = self.b.ins().band(v, ones);
        self.b.ins().extractlane(v, 0)
    }

    /// The columns of four vectors as vectors.
    pub(crate) fn transpose(&mut self, rows: &[Value]) -> Copies {
        let ty = self.type_of(rows[0]);
        let bytes: Copies = rows.iter().map(|row| self.b.ins().bitcast(I8X16, little(), *row)).collect();
        let mut interleave = |x: Value, y: Value, size: u8| {
            [0, 8].map(|half| {
                let place = |i: u8| half + i / (2 * size) * size + i % size + i / size % 2 * 16;
                let mask = ConstantData::from((0..16).map(place).collect::<Vec<u8>>());
                let mask = self.b.func.dfg.immediates.push(mask);
                self.b.ins().shuffle(x, y, mask)
            })
        };
        let [a, b] = interleave(bytes[0], bytes[1], 4);
        let [c, d] = interleave(bytes[2], bytes[3], 4);
        let columns = [interleave(a, c, 8), interleave(b, d, 8)];
        columns.into_iter().flatten().map(|column| self.b.ins().bitcast(ty, little(), column)).collect()
    }

    /// Loads four lanes from any address.
    pub(crate) fn load_lanes(&mut self, ty: Type, flags: MemFlagsData, address: Value, offset: i32) -> Value {
        if !matches!(ty, F32X4 | I32X4) || self.fused {
            return self.b.ins().load(ty, flags, address, offset);
        }
        // Without AVX, operands in memory must be aligned. Cranelift 0.135 merges a load into a vector comparison
        // all the same; the detour through another type keeps it apart.
        let bits = self.b.ins().load(I8X16, flags, address, offset);
        self.b.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), bits)
    }

    /// x y + z, with one rounding where the processor can and with two where it cannot.
    pub(crate) fn fma(&mut self, x: Value, y: Value, z: Value) -> Value {
        if self.fused {
            return self.b.ins().fma(x, y, z);
        }
        let product = self.b.ins().fmul(x, y);
        self.b.ins().fadd(product, z)
    }

    pub(crate) fn compare(&mut self, cc: FloatCC, x: Value, y: Value) -> Value {
        self.b.ins().fcmp(cc, x, y)
    }

    /// `if mask { x } else { y }`.
    pub(crate) fn choose(&mut self, mask: Value, x: Value, y: Value) -> Value {
        match self.type_of(x) {
            F32X4 => {
                let mask = self.b.ins().bitcast(F32X4, little(), mask);
                self.b.ins().bitselect(mask, x, y)
            }
            I32X4 => self.b.ins().bitselect(mask, x, y),
            _ => self.b.ins().select(mask, x, y),
        }
    }

    /// Logical not of a truth value.
    pub(crate) fn not(&mut self, mask: Value) -> Value {
        match self.type_of(mask) {
            I32X4 => self.b.ins().bnot(mask),
            _ => self.b.ins().icmp_imm_u(IntCC::Equal, mask, 0),
        }
    }

    /// The bits of a float.
    pub(crate) fn bits(&mut self, x: Value) -> Value {
        let ty = int_type(self.type_of(x));
        self.b.ins().bitcast(ty, little(), x)
    }

    /// The float with these bits.
    pub(crate) fn float_of_bits(&mut self, x: Value) -> Value {
        let ty = match self.type_of(x) {
            I64 => F64,
            I32 => F32,
            _ => F32X4,
        };
        self.b.ins().bitcast(ty, little(), x)
    }

    pub(crate) fn floor(&mut self, x: Value) -> Value {
        if self.rounding {
            return self.b.ins().floor(x);
        }
        let (nearest, ty) = (self.nearest(x), self.type_of(x));
        let (one, zero) = (self.float(ty, 1.0), self.float(ty, 0.0));
        let above = self.compare(FloatCC::GreaterThan, nearest, x);
        let excess = self.choose(above, one, zero);
        self.b.ins().fsub(nearest, excess)
    }

    pub(crate) fn ceil(&mut self, x: Value) -> Value {
        if self.rounding {
            return self.b.ins().ceil(x);
        }
        let negative = self.b.ins().fneg(x);
        let floor = self.floor(negative);
        self.b.ins().fneg(floor)
    }

    /// The nearest integer, ties to even. Without an instruction for it: adding and taking away the number above
    /// which floats have no fraction.
    pub(crate) fn nearest(&mut self, x: Value) -> Value {
        if self.rounding {
            return self.b.ins().nearest(x);
        }
        let ty = self.type_of(x);
        let (limit, sign_bit) =
            if ty == F64 { (2f64.powi(52), i64::MIN) } else { (2f64.powi(23), 0x8000_0000) };
        let (limit, sign_bit) = (self.float(ty, limit), self.int(ty, sign_bit));
        let bits = self.bits(x);
        let sign = self.b.ins().band(bits, sign_bit);
        let limit_bits = self.bits(limit);
        let shift = self.b.ins().bor(limit_bits, sign);
        let shift = self.float_of_bits(shift);
        let sum = self.b.ins().fadd(x, shift);
        let rounded = self.b.ins().fsub(sum, shift);
        let rounded = self.bits(rounded);
        let rounded = self.b.ins().bor(rounded, sign);
        let rounded = self.float_of_bits(rounded);
        let size = self.b.ins().fabs(x);
        let has_fraction = self.compare(FloatCC::LessThan, size, limit);
        self.choose(has_fraction, rounded, x)
    }

    /// x / y of integers: rounds towards zero, x / 0 is 0, MIN / -1 wraps; never traps.
    pub(crate) fn int_div(&mut self, x: Value, y: Value, signed: bool) -> Value {
        let ty = self.type_of(x);
        let (zero, one) = (self.iconst(ty, 0), self.iconst(ty, 1));
        let by_zero = self.b.ins().icmp(IntCC::Equal, y, zero);
        let safe = self.b.ins().select(by_zero, one, y);
        let quotient = if signed {
            let minus_one = self.iconst(ty, -1);
            let by_minus_one = self.b.ins().icmp(IntCC::Equal, y, minus_one);
            let safe = self.b.ins().select(by_minus_one, one, safe);
            let quotient = self.b.ins().sdiv(x, safe);
            let negative = self.b.ins().ineg(x);
            self.b.ins().select(by_minus_one, negative, quotient)
        } else {
            self.b.ins().udiv(x, safe)
        };
        self.b.ins().select(by_zero, zero, quotient)
    }

    /// x 2ʸ, or x / 2ʸ rounded down, of integers without a sign.
    pub(crate) fn shift(&mut self, x: Value, y: Value, left: bool) -> Value {
        let ty = self.type_of(x);
        let (bits, zero) = (self.iconst(ty, i64::from(ty.bits())), self.iconst(ty, 0));
        let inside = self.b.ins().icmp(IntCC::UnsignedLessThan, y, bits);
        let shifted = if left { self.b.ins().ishl(x, y) } else { self.b.ins().ushr(x, y) };
        self.b.ins().select(inside, shifted, zero)
    }

    /// A scalar conversion.
    pub(crate) fn convert(&mut self, x: Value, from: DType, to: DType) -> Value {
        match (from.is_float(), to.is_float()) {
            _ if to == DType::Bool => self.non_zero(x, from),
            (true, true) => self.resize_float(x, register_type(to)),
            (true, false) => self.float_to_int(x, to),
            (false, true) => self.int_to_float(x, from, register_type(to)),
            (false, false) => self.resize_int(x, signed(from), register_type(to)),
        }
    }

    fn non_zero(&mut self, x: Value, from: DType) -> Value {
        let ty = self.type_of(x);
        if from.is_float() {
            let zero = self.float(ty, 0.0);
            return self.compare(FloatCC::NotEqual, x, zero);
        }
        let zero = self.iconst(ty, 0);
        self.b.ins().icmp(IntCC::NotEqual, x, zero)
    }

    fn resize_float(&mut self, x: Value, to: Type) -> Value {
        match (self.type_of(x), to) {
            (F32, F64) => self.b.ins().fpromote(F64, x),
            (F64, F32) => self.b.ins().fdemote(F32, x),
            _ => x,
        }
    }

    fn resize_int(&mut self, x: Value, signed: bool, to: Type) -> Value {
        let from = self.type_of(x);
        match to.bits().cmp(&from.bits()) {
            std::cmp::Ordering::Less => self.b.ins().ireduce(to, x),
            std::cmp::Ordering::Equal => x,
            std::cmp::Ordering::Greater if signed => self.b.ins().sextend(to, x),
            std::cmp::Ordering::Greater => self.b.ins().uextend(to, x),
        }
    }

    fn int_to_float(&mut self, x: Value, from: DType, to: Type) -> Value {
        if from == DType::U64 {
            return self.b.ins().fcvt_from_uint(to, x);
        }
        let wide = if from == DType::U32 || from == DType::I64 { I64 } else { I32 };
        let x = self.resize_int(x, signed(from), wide);
        self.b.ins().fcvt_from_sint(to, x)
    }

    fn float_to_int(&mut self, x: Value, to: DType) -> Value {
        if to == DType::U64 {
            return self.b.ins().fcvt_to_uint_sat(I64, x);
        }
        let ty = register_type(to);
        let wide = if to == DType::U32 || to == DType::I64 { I64 } else { I32 };
        let whole = self.b.ins().fcvt_to_sint_sat(wide, x);
        if to == DType::I64 || to == DType::I32 {
            return whole;
        }
        let bits = ty.bits();
        let (low, high) =
            if signed(to) { (-(1i64 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
        let (low, high) = (self.iconst(wide, low), self.iconst(wide, high));
        let below = self.b.ins().icmp(IntCC::SignedLessThan, whole, low);
        let whole = self.b.ins().select(below, low, whole);
        let above = self.b.ins().icmp(IntCC::SignedGreaterThan, whole, high);
        let whole = self.b.ins().select(above, high, whole);
        self.b.ins().ireduce(ty, whole)
    }
}

/// Whether comparisons, divisions and conversions of an integer type take a sign into account.
pub(crate) fn signed(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64)
}

/// The Cranelift type of a scalar register. 16-bit floats are f32 in registers.
pub(crate) fn register_type(dtype: DType) -> Type {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => F32,
        DType::F64 => F64,
        DType::I8 | DType::U8 | DType::Bool => I8,
        DType::I16 | DType::U16 => I16,
        DType::I32 | DType::U32 => I32,
        DType::I64 | DType::U64 => I64,
    }
}

fn int_type(ty: Type) -> Type {
    match ty {
        F32X4 => I32X4,
        F64 => I64,
        F32 => I32,
        other => other,
    }
}

/// The memory flags of a bit cast, which count bytes from the lowest.
pub(crate) fn little() -> MemFlagsData {
    MemFlagsData::new().with_endianness(Endianness::Little)
}
