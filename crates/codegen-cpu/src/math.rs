//! Cranelift's operations under the names that functions such as exp are [written](Arithmetic) over.
//!
//! Beyond 1e4 sines and cosines are computed in f64 (`calls.rs`).

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32, F32X4, I32X4};
use cranelift_codegen::ir::{InstBuilder, Type, Value};
use margay_loops::{Arithmetic, Comparison};

use crate::scalar::Ops;

impl Arithmetic for Ops<'_> {
    type Value = Value;
    type Type = Type;

    fn type_of(&self, x: Value) -> Type {
        self.type_of(x)
    }

    fn float(&mut self, ty: Type, v: f64) -> Value {
        self.float(ty, v)
    }

    fn int(&mut self, ty: Type, v: i64) -> Value {
        self.int(ty, v)
    }

    fn fadd(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().fadd(x, y)
    }

    fn fsub(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().fsub(x, y)
    }

    fn fmul(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().fmul(x, y)
    }

    fn fdiv(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().fdiv(x, y)
    }

    fn fneg(&mut self, x: Value) -> Value {
        self.b.ins().fneg(x)
    }

    fn fabs(&mut self, x: Value) -> Value {
        self.b.ins().fabs(x)
    }

    fn sqrt(&mut self, x: Value) -> Value {
        self.b.ins().sqrt(x)
    }

    fn floor(&mut self, x: Value) -> Value {
        self.floor(x)
    }

    fn fma(&mut self, x: Value, y: Value, z: Value) -> Value {
        self.fma(x, y, z)
    }

    fn compare(&mut self, how: Comparison, x: Value, y: Value) -> Value {
        let how = match how {
            Comparison::Equal => FloatCC::Equal,
            Comparison::NotEqual => FloatCC::NotEqual,
            Comparison::Less => FloatCC::LessThan,
            Comparison::LessOrEqual => FloatCC::LessThanOrEqual,
            Comparison::Greater => FloatCC::GreaterThan,
            Comparison::GreaterOrEqual => FloatCC::GreaterThanOrEqual,
            Comparison::Unordered => FloatCC::Unordered,
        };
        self.compare(how, x, y)
    }

    fn compare_ints(&mut self, how: Comparison, x: Value, y: Value) -> Value {
        let how = match how {
            Comparison::Equal => IntCC::Equal,
            Comparison::NotEqual => IntCC::NotEqual,
            Comparison::Less => IntCC::SignedLessThan,
            Comparison::LessOrEqual => IntCC::SignedLessThanOrEqual,
            Comparison::Greater => IntCC::SignedGreaterThan,
            Comparison::GreaterOrEqual => IntCC::SignedGreaterThanOrEqual,
            Comparison::Unordered => unreachable!("integers are ordered"),
        };
        self.b.ins().icmp(how, x, y)
    }

    fn choose(&mut self, test: Value, x: Value, y: Value) -> Value {
        self.choose(test, x, y)
    }

    fn not(&mut self, test: Value) -> Value {
        self.not(test)
    }

    fn bits(&mut self, x: Value) -> Value {
        self.bits(x)
    }

    fn float_of_bits(&mut self, x: Value) -> Value {
        self.float_of_bits(x)
    }

    fn float_from_int(&mut self, x: Value) -> Value {
        let ty = if self.type_of(x) == I32X4 { F32X4 } else { F32 };
        self.b.ins().fcvt_from_sint(ty, x)
    }

    fn iadd(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().iadd(x, y)
    }

    fn isub(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().isub(x, y)
    }

    fn and(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().band(x, y)
    }

    fn or(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().bor(x, y)
    }

    fn xor(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().bxor(x, y)
    }

    fn shift_left(&mut self, x: Value, by: u32) -> Value {
        self.b.ins().ishl_imm_u(x, i64::from(by))
    }

    fn shift_right(&mut self, x: Value, by: u32) -> Value {
        self.b.ins().ushr_imm_u(x, i64::from(by))
    }

    fn shift_right_signed(&mut self, x: Value, by: u32) -> Value {
        self.b.ins().sshr_imm_u(x, i64::from(by))
    }
}
