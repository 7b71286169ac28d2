//! The statements of a kernel, one function per construct.

use margay_kernels_gpu::{Type, Value, fault_word, is_signed};
use margay_loops::{Arithmetic, Binary, Comparison, Literal, Reg, Stmt, Unary};
use margay_tensor::DType;

use crate::CodegenError;
use crate::nest::{Emitter, Slot};

impl<'k> Emitter<'k> {
    /// Writes a list of statements.
    pub(crate) fn block(&mut self, body: &'k [Stmt]) -> Result<(), CodegenError> {
        body.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    fn stmt(&mut self, stmt: &'k Stmt) -> Result<(), CodegenError> {
        match stmt {
            Stmt::Literal { to, value } => {
                let literal = match value {
                    Literal::F32(bits) => Some(f32::from_bits(*bits)).filter(|v| !v.is_nan()),
                    Literal::F64(_) | Literal::Int(..) | Literal::Bool(_) => None,
                };
                let value = self.w.literal(*value);
                self.regs[to.0 as usize] = Some(Slot { value, literal });
            }
            Stmt::Size { to, size, inverse } => {
                let (mut value, mut from) = (self.size_value(*size), DType::I64);
                if *inverse {
                    value = self.w.convert(value, from, DType::F64);
                    let one = self.w.float(value.ty, 1.0);
                    (value, from) = (self.w.fdiv(one, value), DType::F64);
                }
                let value = self.w.convert(value, from, self.dtype(*to));
                self.set(*to, value);
            }
            Stmt::IndexValue { to, index } => {
                let value = self.index(index, Type::I64);
                self.set(*to, value);
            }
            Stmt::Unary { to, op, x } => {
                let value = self.unary(*op, self.dtype(*x), self.get(*x))?;
                self.set(*to, value);
            }
            Stmt::Binary { to, op, x, y } => {
                let value = self.binary(*op, *x, *y)?;
                self.set(*to, value);
            }
            Stmt::Select { to, test, x, y } => {
                let [test, x, y] = self.alike([*test, *x, *y]);
                let value = self.w.choose(test, x, y);
                self.set(*to, value);
            }
            Stmt::Cast { to, x } => {
                let value = self.w.convert(self.get(*x), self.dtype(*x), self.dtype(*to));
                self.set(*to, value);
            }
            Stmt::Load { to, arg, index, guard } => {
                let value = self.read(*arg, index, *guard);
                self.set(*to, value);
            }
            Stmt::Store { arg, index, value } => self.write(*arg, index, *value),
            Stmt::Require { test, what } => self.require(*test, what),
            Stmt::Loop { axis, extent, body, .. } => self.run(*axis, *extent, &[], body)?,
            Stmt::Reduce { axis, extent, results, body } => self.run(*axis, *extent, results, body)?,
        }
        Ok(())
    }

    pub(crate) fn slot(&self, r: Reg) -> Slot {
        self.regs[r.0 as usize].expect("registers are defined before they are used")
    }

    /// What a register holds: a scalar, or lanes where it varies between neighbours.
    pub(crate) fn get(&self, r: Reg) -> Value {
        self.slot(r).value
    }

    /// What a register holds that does not vary between neighbours.
    pub(crate) fn scalar(&self, r: Reg) -> Value {
        let value = self.get(r);
        debug_assert_eq!(value.ty.lanes, 1, "%{} varies between neighbours", r.0);
        value
    }

    fn set(&mut self, to: Reg, value: Value) {
        self.regs[to.0 as usize] = Some(Slot { value, literal: None });
    }

    /// Registers, all with as many lanes as the widest of them.
    fn alike<const N: usize>(&mut self, regs: [Reg; N]) -> [Value; N] {
        let lanes = regs.iter().map(|r| self.get(*r).ty.lanes).max().unwrap_or(1);
        regs.map(|r| {
            let value = self.get(r);
            self.w.splat(value, lanes)
        })
    }

    fn unary(&mut self, op: Unary, dtype: DType, x: Value) -> Result<Value, CodegenError> {
        match (op, dtype) {
            (Unary::Not, DType::Bool) => Ok(self.w.not(x)),
            (_, DType::F32) => self.unary_f32(op, x),
            (_, DType::F64) => self.unary_f64(op, x),
            (Unary::Neg, d) if d.is_int() => {
                let zero = self.w.int(x.ty, 0);
                Ok(self.w.isub(zero, x))
            }
            (Unary::Abs, d) if is_signed(d) => {
                let zero = self.w.int(x.ty, 0);
                let negative = self.w.isub(zero, x);
                Ok(self.w.int_bound(true, true, x, negative))
            }
            (Unary::Abs, d) if d.is_int() => Ok(x),
            (_, d) => self.unsupported(format!("{op:?} of {d}")),
        }
    }

    fn unary_f32(&mut self, op: Unary, x: Value) -> Result<Value, CodegenError> {
        let w = &mut self.w;
        Ok(match op {
            Unary::Neg => w.fneg(x),
            Unary::Abs => w.fabs(x),
            Unary::Exp => w.exp(x),
            Unary::Log => w.log(x),
            Unary::Sqrt => w.sqrt(x),
            Unary::Erf => w.erf(x),
            Unary::Tanh => w.tanh(x),
            Unary::Sigmoid => w.sigmoid(x),
            Unary::Sin => w.sin(x),
            Unary::Cos => w.cos(x),
            Unary::Floor => w.floor(x),
            Unary::Ceil => w.ceil(x),
            Unary::Round => w.nearest(x),
            Unary::IsNan => w.compare(Comparison::Unordered, x, x),
            Unary::RoundF16 => w.round_half(x, DType::F16),
            Unary::RoundBf16 => w.round_half(x, DType::BF16),
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
            Unary::Exp
            | Unary::Log
            | Unary::Erf
            | Unary::Tanh
            | Unary::Sigmoid
            | Unary::Sin
            | Unary::Cos
            | Unary::Not
            | Unary::RoundF16
            | Unary::RoundBf16 => self.unsupported(format!("{op:?} of f64")),
        }
    }

    fn binary(&mut self, op: Binary, x: Reg, y: Reg) -> Result<Value, CodegenError> {
        let dtype = self.dtype(x);
        let literals = (self.slot(x).literal, self.slot(y).literal);
        let [x, y] = self.alike([x, y]);
        match dtype {
            DType::F32 | DType::F64 => self.binary_float(op, dtype, x, y, literals),
            DType::Bool => self.binary_bool(op, x, y),
            d => self.binary_int(op, d, x, y),
        }
    }

    fn binary_float(
        &mut self,
        op: Binary,
        dtype: DType,
        x: Value,
        y: Value,
        literals: (Option<f32>, Option<f32>),
    ) -> Result<Value, CodegenError> {
        let w = &mut self.w;
        Ok(match (op, literals) {
            (Binary::Add, _) => w.fadd(x, y),
            (Binary::Sub, _) => w.fsub(x, y),
            (Binary::Mul, _) => w.fmul(x, y),
            (Binary::Div, _) => w.fdiv(x, y),
            (Binary::Min, (_, Some(_))) => w.at_most(x, y),
            (Binary::Min, (Some(_), None)) => w.at_most(y, x),
            (Binary::Min, (None, None)) => w.min(x, y),
            (Binary::Max, (_, Some(_))) => w.at_least(x, y),
            (Binary::Max, (Some(_), None)) => w.at_least(y, x),
            (Binary::Max, (None, None)) => w.max(x, y),
            (Binary::Pow, (_, exponent)) if dtype == DType::F32 => w.pow(x, y, exponent),
            (Binary::Eq, _) => w.compare(Comparison::Equal, x, y),
            (Binary::Lt, _) => w.compare(Comparison::Less, x, y),
            (Binary::Le, _) => w.compare(Comparison::LessOrEqual, x, y),
            (
                Binary::Pow | Binary::And | Binary::Or | Binary::Xor | Binary::ShiftLeft | Binary::ShiftRight,
                _,
            ) => return self.unsupported(format!("{op:?} of {dtype}")),
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

    pub(crate) fn binary_int(
        &mut self,
        op: Binary,
        dtype: DType,
        x: Value,
        y: Value,
    ) -> Result<Value, CodegenError> {
        let signed = is_signed(dtype);
        let w = &mut self.w;
        Ok(match op {
            Binary::Add => w.iadd(x, y),
            Binary::Sub => w.isub(x, y),
            Binary::Mul => w.imul(x, y),
            Binary::Div => w.int_div(x, y, signed),
            Binary::Min => w.int_bound(false, signed, x, y),
            Binary::Max => w.int_bound(true, signed, x, y),
            Binary::Eq => w.compare_ints(Comparison::Equal, x, y),
            Binary::Lt if signed => w.compare_ints(Comparison::Less, x, y),
            Binary::Lt => w.compare_unsigned(Comparison::Less, x, y),
            Binary::Le if signed => w.compare_ints(Comparison::LessOrEqual, x, y),
            Binary::Le => w.compare_unsigned(Comparison::LessOrEqual, x, y),
            Binary::And => w.and(x, y),
            Binary::Or => w.or(x, y),
            Binary::Xor => w.xor(x, y),
            Binary::ShiftLeft => w.int_shift(true, x, y),
            Binary::ShiftRight => w.int_shift(false, x, y),
            Binary::Pow => return self.unsupported(format!("{op:?} of {dtype}")),
        })
    }

    /// Raises the word for faults when the test fails: the word of the first requirement and the number of this one.
    fn require(&mut self, test: Reg, what: &str) {
        let number = self.kernel.requirements().iter().position(|w| *w == what);
        let number = number.and_then(|n| u32::try_from(n).ok()).expect("a kernel lists its own requirements");
        let failed = self.scalar(test);
        let failed = self.w.not(failed);
        self.w.begin_if(failed, &[]);
        let further = fault_word(u32::MAX, number) as i64;
        let further = self.w.int(Type::I64, further);
        let word = self.w.or(self.step, further);
        self.w.raise(self.fault, word);
        self.w.end_if(&[]);
    }
}
