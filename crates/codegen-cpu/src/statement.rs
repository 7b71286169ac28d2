//! The statements of a kernel, one function per construct.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32X4, F64, I8, I64};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Type, Value};
use margay_kernels_cpu::abi::{ScalarFunction, fault_word};
use margay_loops::{Arithmetic, Binary, Combine, Literal, Reg, Stmt, Unary};
use margay_tensor::DType;
use smallvec::{SmallVec, smallvec};

use crate::CodegenError;
use crate::kernel::{Emitter, Slot};
use crate::scalar::signed;
use crate::vector::{LoopView, UNROLL};

/// The values of a register: one, or one per copy of an unrolled loop.
pub(crate) type Copies = SmallVec<[Value; UNROLL as usize]>;

impl<'k> Emitter<'k, '_> {
    /// Writes a list of statements.
    pub(crate) fn block(&mut self, body: &'k [Stmt]) -> Result<(), CodegenError> {
        body.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    /// Writes one statement.
    pub(crate) fn stmt(&mut self, stmt: &'k Stmt) -> Result<(), CodegenError> {
        match stmt {
            Stmt::Literal { to, value } => {
                self.literal(*to, *value);
                Ok(())
            }
            Stmt::Size { to, size, inverse } => {
                let (mut value, dtype) = (self.size(*size), self.dtype(*to));
                let mut from = DType::I64;
                if *inverse {
                    let (one, size) = (self.ops.float(F64, 1.0), self.ops.convert(value, from, DType::F64));
                    (value, from) = (self.ops.b.ins().fdiv(one, size), DType::F64);
                }
                let value = self.ops.convert(value, from, dtype);
                self.define(*to, smallvec![value], false);
                Ok(())
            }
            Stmt::IndexValue { to, index } => {
                let value = self.index(index, 1, index.offset);
                self.define(*to, smallvec![value], false);
                Ok(())
            }
            Stmt::Unary { to, op, x } => self.unary(*to, *op, *x),
            Stmt::Binary { to, op, x, y } => self.binary(*to, *op, *x, *y),
            Stmt::Select { to, test, x, y } => {
                self.select(*to, *test, *x, *y);
                Ok(())
            }
            Stmt::Cast { to, x } => {
                self.cast(*to, *x);
                Ok(())
            }
            Stmt::Load { to, arg, index, guard: None } => {
                let (values, wide) = self.read(*arg, index);
                self.define(*to, values, wide);
                Ok(())
            }
            Stmt::Load { to, arg, index, guard: Some((test, other)) } => {
                self.guarded_load(*to, *arg, index, *test, *other);
                Ok(())
            }
            Stmt::Store { arg, index, value } => {
                self.store(*arg, index, *value);
                Ok(())
            }
            Stmt::Require { test, what } => {
                self.require(*test, what);
                Ok(())
            }
            Stmt::Loop { .. } | Stmt::Reduce { .. } => {
                let view = LoopView::of(stmt).expect("both are loops");
                self.run_whole(view)
            }
        }
    }

    /// Sets a register.
    pub(crate) fn define(&mut self, to: Reg, values: Copies, wide: bool) {
        let slot = Slot { values, wide, depth: self.depth, literal: None };
        self.regs[to.0 as usize] = Some(slot);
    }

    pub(crate) fn slot(&self, r: Reg) -> &Slot {
        self.regs[r.0 as usize].as_ref().expect("registers are defined before they are used")
    }

    /// What a register holds: one scalar, or vectors when `wide` (one where it does not vary).
    pub(crate) fn values(&mut self, r: Reg, wide: bool) -> Copies {
        let slot = self.slot(r).clone();
        if slot.wide || !wide {
            return slot.values;
        }
        smallvec![self.ops.splat(self.kernel.regs[r.0 as usize], slot.values[0])]
    }

    pub(crate) fn scalar(&self, r: Reg) -> Value {
        let slot = self.slot(r);
        debug_assert!(!slot.wide, "%{} varies from lane to lane", r.0);
        slot.values[0]
    }

    /// Applies `f` to every copy of the operands.
    fn map(
        &mut self,
        to: Reg,
        operands: &[Reg],
        mut f: impl FnMut(&mut Self, &[Value]) -> Result<Value, CodegenError>,
    ) -> Result<(), CodegenError> {
        let wide = operands.iter().any(|r| self.slot(*r).wide);
        let operands: SmallVec<[Copies; 3]> = operands.iter().map(|r| self.values(*r, wide)).collect();
        let copies = operands.iter().map(|v| v.len()).max().unwrap_or(1);
        let mut values = Copies::new();
        for c in 0..copies {
            let at: SmallVec<[Value; 3]> = operands.iter().map(|v| v[c % v.len()]).collect();
            values.push(f(self, &at)?);
        }
        self.define(to, values, wide);
        Ok(())
    }

    fn literal(&mut self, to: Reg, value: Literal) {
        let v = self.ops.literal(value);
        let slot = Slot { values: smallvec![v], wide: false, depth: self.depth, literal: Some(value) };
        self.regs[to.0 as usize] = Some(slot);
    }

    fn unary(&mut self, to: Reg, op: Unary, x: Reg) -> Result<(), CodegenError> {
        let dtype = self.dtype(x);
        self.map(to, &[x], |e, v| match (op, dtype) {
            (Unary::Not, DType::Bool) => Ok(e.ops.not(v[0])),
            (_, DType::F32) => e.unary_f32(op, v[0]),
            (_, DType::F64) => e.unary_f64(op, v[0]),
            (Unary::Neg, d) if d.is_int() => Ok(e.ops.b.ins().ineg(v[0])),
            (Unary::Abs, d) if signed(d) => Ok(e.ops.b.ins().iabs(v[0])),
            (Unary::Abs, d) if d.is_int() => Ok(v[0]),
            (_, d) => e.unsupported(format!("{op:?} of {d}")),
        })
    }

    fn unary_f32(&mut self, op: Unary, x: Value) -> Result<Value, CodegenError> {
        let ops = &mut self.ops;
        Ok(match op {
            Unary::Neg => ops.b.ins().fneg(x),
            Unary::Abs => ops.b.ins().fabs(x),
            Unary::Exp => ops.exp(x),
            Unary::Log => ops.log(x),
            Unary::Sqrt => ops.b.ins().sqrt(x),
            Unary::Erf => ops.erf(x),
            Unary::Tanh => ops.tanh(x),
            Unary::Sigmoid => ops.sigmoid(x),
            Unary::Sin => return Ok(self.circular(ScalarFunction::Sin, x)),
            Unary::Cos => return Ok(self.circular(ScalarFunction::Cos, x)),
            Unary::Floor => ops.floor(x),
            Unary::Ceil => ops.ceil(x),
            Unary::Round => ops.nearest(x),
            Unary::IsNan => ops.compare(FloatCC::Unordered, x, x),
            Unary::RoundF16 => ops.round_half(x, DType::F16),
            Unary::RoundBf16 => ops.round_half(x, DType::BF16),
            Unary::Not => return self.unsupported("Not of f32".to_string()),
        })
    }

    fn unary_f64(&mut self, op: Unary, x: Value) -> Result<Value, CodegenError> {
        match op {
            Unary::Neg
            | Unary::Abs
            | Unary::Sqrt
            | Unary::Floor
            | Unary::Ceil
            | Unary::Round
            | Unary::IsNan => self.unary_f32(op, x),
            Unary::Exp => Ok(self.call_scalar(ScalarFunction::Exp, x, x)),
            Unary::Log => Ok(self.call_scalar(ScalarFunction::Log, x, x)),
            Unary::Erf => Ok(self.call_scalar(ScalarFunction::Erf, x, x)),
            Unary::Tanh => Ok(self.call_scalar(ScalarFunction::Tanh, x, x)),
            Unary::Sigmoid => Ok(self.call_scalar(ScalarFunction::Sigmoid, x, x)),
            Unary::Sin => Ok(self.call_scalar(ScalarFunction::Sin, x, x)),
            Unary::Cos => Ok(self.call_scalar(ScalarFunction::Cos, x, x)),
            Unary::Not | Unary::RoundF16 | Unary::RoundBf16 => self.unsupported(format!("{op:?} of f64")),
        }
    }

    fn binary(&mut self, to: Reg, op: Binary, x: Reg, y: Reg) -> Result<(), CodegenError> {
        let dtype = self.dtype(x);
        let number = |slot: &Slot| match slot.literal {
            Some(Literal::F32(bits)) => Some(f32::from_bits(bits)).filter(|v| !v.is_nan()),
            Some(_) | None => None,
        };
        let literals = (number(self.slot(x)), number(self.slot(y)));
        self.map(to, &[x, y], |e, v| {
            let (x, y) = (v[0], v[1]);
            match dtype {
                DType::F32 | DType::F64 => e.binary_float(op, dtype, x, y, literals),
                DType::Bool => e.binary_bool(op, x, y),
                d => e.binary_int(op, d, x, y),
            }
        })
    }

    fn binary_float(
        &mut self,
        op: Binary,
        dtype: DType,
        x: Value,
        y: Value,
        literals: (Option<f32>, Option<f32>),
    ) -> Result<Value, CodegenError> {
        let ops = &mut self.ops;
        Ok(match (op, literals) {
            (Binary::Add, _) => ops.b.ins().fadd(x, y),
            (Binary::Sub, _) => ops.b.ins().fsub(x, y),
            (Binary::Mul, _) => ops.b.ins().fmul(x, y),
            (Binary::Div, _) => ops.b.ins().fdiv(x, y),
            (Binary::Min, (_, Some(_))) => ops.at_most(x, y),
            (Binary::Min, (Some(_), None)) => ops.at_most(y, x),
            (Binary::Min, (None, None)) => ops.min(x, y),
            (Binary::Max, (_, Some(_))) => ops.at_least(x, y),
            (Binary::Max, (Some(_), None)) => ops.at_least(y, x),
            (Binary::Max, (None, None)) => ops.max(x, y),
            (Binary::Pow, (_, exponent)) if dtype == DType::F32 => ops.pow(x, y, exponent),
            (Binary::Pow, _) => self.call_scalar(ScalarFunction::Pow, x, y),
            (Binary::Eq, _) => ops.compare(FloatCC::Equal, x, y),
            (Binary::Lt, _) => ops.compare(FloatCC::LessThan, x, y),
            (Binary::Le, _) => ops.compare(FloatCC::LessThanOrEqual, x, y),
            (Binary::And | Binary::Or | Binary::Xor | Binary::ShiftLeft | Binary::ShiftRight, _) => {
                return self.unsupported(format!("{op:?} of {dtype}"));
            }
        })
    }

    /// Truth values are ordered false, true.
    fn binary_bool(&mut self, op: Binary, x: Value, y: Value) -> Result<Value, CodegenError> {
        match op {
            Binary::And
            | Binary::Or
            | Binary::Xor
            | Binary::Eq
            | Binary::Lt
            | Binary::Le
            | Binary::Min
            | Binary::Max => self.binary_int(op, DType::Bool, x, y),
            Binary::Add
            | Binary::Sub
            | Binary::Mul
            | Binary::Div
            | Binary::Pow
            | Binary::ShiftLeft
            | Binary::ShiftRight => self.unsupported(format!("{op:?} of bool")),
        }
    }

    fn binary_int(&mut self, op: Binary, dtype: DType, x: Value, y: Value) -> Result<Value, CodegenError> {
        let (less, less_or_equal) = if signed(dtype) {
            (IntCC::SignedLessThan, IntCC::SignedLessThanOrEqual)
        } else {
            (IntCC::UnsignedLessThan, IntCC::UnsignedLessThanOrEqual)
        };
        let ops = &mut self.ops;
        Ok(match op {
            Binary::Add => ops.b.ins().iadd(x, y),
            Binary::Sub => ops.b.ins().isub(x, y),
            Binary::Mul => ops.b.ins().imul(x, y),
            Binary::Div => ops.int_div(x, y, signed(dtype)),
            Binary::Min | Binary::Max => {
                let below = ops.b.ins().icmp(less, x, y);
                let (x, y) = if op == Binary::Min { (x, y) } else { (y, x) };
                ops.b.ins().select(below, x, y)
            }
            Binary::Eq => ops.b.ins().icmp(IntCC::Equal, x, y),
            Binary::Lt => ops.b.ins().icmp(less, x, y),
            Binary::Le => ops.b.ins().icmp(less_or_equal, x, y),
            Binary::And => ops.b.ins().band(x, y),
            Binary::Or => ops.b.ins().bor(x, y),
            Binary::Xor => ops.b.ins().bxor(x, y),
            Binary::ShiftLeft => ops.shift(x, y, true),
            Binary::ShiftRight => ops.shift(x, y, false),
            Binary::Pow => {
                return self.unsupported(format!("{op:?} of {dtype}"));
            }
        })
    }

    fn select(&mut self, to: Reg, test: Reg, x: Reg, y: Reg) {
        let chosen = self.map(to, &[test, x, y], |e, v| Ok(e.ops.choose(v[0], v[1], v[2])));
        chosen.expect("a selection has a translation for every type");
    }

    fn cast(&mut self, to: Reg, x: Reg) {
        let (from, into) = (self.dtype(x), self.dtype(to));
        let converted = self.map(to, &[x], |e, v| {
            Ok(match (e.ops.type_of(v[0]).is_vector(), from, into) {
                (true, DType::Bool, DType::F32) => {
                    let (one, zero) = (e.ops.float(F32X4, 1.0), e.ops.float(F32X4, 0.0));
                    e.ops.choose(v[0], one, zero)
                }
                (true, DType::F32, DType::Bool) => {
                    let zero = e.ops.float(F32X4, 0.0);
                    e.ops.compare(FloatCC::NotEqual, v[0], zero)
                }
                (true, DType::I8 | DType::U8 | DType::I32, DType::F32) => {
                    e.ops.b.ins().fcvt_from_sint(F32X4, v[0])
                }
                (true, DType::F32, DType::I8 | DType::U8 | DType::I32) => e.ops.whole_lanes(v[0], into),
                (true, _, _) => v[0],
                (false, _, _) => e.ops.convert(v[0], from, into),
            })
        });
        converted.expect("every conversion between scalar types has a translation");
    }

    /// Writes the number of the step and of the requirement into the header of the scratch memory when the test fails.
    /// The greatest word stays, so that what is reported depends on the data alone.
    fn require(&mut self, test: Reg, what: &str) {
        let number = self.kernel.requirements().iter().position(|w| *w == what);
        let number = number.and_then(|n| u32::try_from(n).ok()).expect("a kernel lists its own requirements");
        let (fault, after) = (self.ops.b.create_block(), self.ops.b.create_block());
        let test = self.scalar(test);
        self.ops.b.ins().brif(test, after, &[], fault, &[]);
        self.ops.b.set_cold_block(fault);
        self.ops.b.switch_to_block(fault);
        let flags = MemFlagsData::trusted();
        let step = self.ops.b.ins().load(I64, flags, self.params, 0);
        let first = fault_word(0, number).cast_signed();
        let word = self.ops.b.ins().iadd_imm_s(step, first);
        let there = self.ops.b.ins().load(I64, flags, self.scratch, 0);
        let word = self.ops.b.ins().umax(word, there);
        self.ops.b.ins().store(flags, word, self.scratch, 0);
        self.ops.b.ins().jump(after, &[]);
        self.ops.b.switch_to_block(after);
    }

    /// The value that a reduction starts from, in the type `ty`.
    pub(crate) fn identity(
        &mut self,
        combine: Combine,
        dtype: DType,
        ty: Type,
    ) -> Result<Value, CodegenError> {
        let ops = &mut self.ops;
        if dtype.is_float() {
            return Ok(match combine {
                Combine::Sum => ops.float(ty, 0.0),
                Combine::Product => ops.float(ty, 1.0),
                Combine::Max => ops.float(ty, f64::NEG_INFINITY),
                Combine::Min => ops.float(ty, f64::INFINITY),
            });
        }
        let (low, high) = match (dtype, ty.bits()) {
            (DType::Bool, _) => (0, 1),
            (d, bits) if signed(d) => (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits)),
            (_, _) => (0, -1),
        };
        match combine {
            Combine::Sum | Combine::Product if ty == I8 && dtype == DType::Bool => {
                self.unsupported(format!("{combine:?} of bool"))
            }
            Combine::Sum => Ok(ops.iconst(ty, 0)),
            Combine::Product => Ok(ops.iconst(ty, 1)),
            Combine::Max => Ok(ops.iconst(ty, low)),
            Combine::Min => Ok(ops.iconst(ty, high)),
        }
    }

    /// Joins a value into a partial result.
    pub(crate) fn combine(
        &mut self,
        combine: Combine,
        dtype: DType,
        value: Value,
        sum: Value,
    ) -> Result<Value, CodegenError> {
        match dtype {
            DType::F32 | DType::F64 => Ok(self.combine_float(combine, value, sum)),
            d => self.binary_int(binary_of(combine), d, value, sum),
        }
    }

    /// Joins two floats or vectors of them.
    pub(crate) fn combine_float(&mut self, combine: Combine, value: Value, sum: Value) -> Value {
        match combine {
            Combine::Sum => self.ops.b.ins().fadd(sum, value),
            Combine::Product => self.ops.b.ins().fmul(sum, value),
            Combine::Max => self.ops.max(value, sum),
            Combine::Min => self.ops.min(value, sum),
        }
    }
}

fn binary_of(combine: Combine) -> Binary {
    match combine {
        Combine::Sum => Binary::Add,
        Combine::Product => Binary::Mul,
        Combine::Max => Binary::Max,
        Combine::Min => Binary::Min,
    }
}
