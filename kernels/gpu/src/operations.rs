//! Arithmetic on registers.
//!
//! Products and sums are never fused but where the code says so, and nothing is reassociated: results do not depend on the
//! optimizer.

use margay_loops::{Arithmetic, Comparison, Literal};
use margay_tensor::DType;

use crate::Writer;
use crate::value::{Element, Type, Value};

/// Whether comparisons, divisions and conversions of an integer type take a sign into account.
pub fn is_signed(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64)
}

impl Writer {
    fn two(&mut self, operation: &str, x: Value, y: Value) -> Value {
        assert_eq!(x.ty, y.ty, "operands of `{operation}` are of one type");
        self.define(x.ty, &format!("{operation} {x}, {y} : {}", x.ty))
    }

    fn intrinsic(&mut self, name: &str, x: Value) -> Value {
        let ty = x.ty;
        self.define(ty, &format!("llvm.call_intrinsic \"llvm.{name}.{}\"({x}) : ({ty}) -> {ty}", ty.suffix()))
    }

    fn shift(&mut self, operation: &str, x: Value, by: u32) -> Value {
        let by = self.int(x.ty, i64::from(by));
        self.two(operation, x, by)
    }

    fn test(&mut self, operation: &str, x: Value, y: Value) -> Value {
        assert_eq!(x.ty, y.ty, "what is compared is of one type");
        self.define(x.ty.with(Element::I1), &format!("{operation}, {x}, {y} : {}", x.ty))
    }

    /// x y of integers.
    pub fn imul(&mut self, x: Value, y: Value) -> Value {
        self.two("arith.muli", x, y)
    }

    /// x / y of integers without a sign, for y above 0.
    pub fn divide(&mut self, x: Value, y: Value) -> Value {
        self.two("arith.divui", x, y)
    }

    /// What x / y leaves over, of integers without a sign, for y above 0.
    pub fn remainder(&mut self, x: Value, y: Value) -> Value {
        self.two("arith.remui", x, y)
    }

    /// The smallest integer not below x, as a float.
    pub fn ceil(&mut self, x: Value) -> Value {
        self.intrinsic("ceil", x)
    }

    /// The nearest integer, ties to even, as a float.
    pub fn nearest(&mut self, x: Value) -> Value {
        self.intrinsic("roundeven", x)
    }

    /// Compares integers without a sign.
    pub fn compare_unsigned(&mut self, how: Comparison, x: Value, y: Value) -> Value {
        let how = match how {
            Comparison::Equal => "eq",
            Comparison::NotEqual => "ne",
            Comparison::Less => "ult",
            Comparison::LessOrEqual => "ule",
            Comparison::Greater => "ugt",
            Comparison::GreaterOrEqual => "uge",
            Comparison::Unordered => unreachable!("integers are ordered"),
        };
        self.test(&format!("arith.cmpi {how}"), x, y)
    }

    /// The smaller or the larger integer.
    pub fn int_bound(&mut self, larger: bool, signed: bool, x: Value, y: Value) -> Value {
        let operation = match (larger, signed) {
            (false, false) => "arith.minui",
            (false, true) => "arith.minsi",
            (true, false) => "arith.maxui",
            (true, true) => "arith.maxsi",
        };
        self.two(operation, x, y)
    }

    /// x / y of integers: rounds towards zero, x / 0 is 0, the least by -1 wraps.
    pub fn int_div(&mut self, x: Value, y: Value, signed: bool) -> Value {
        let (zero, one) = (self.int(x.ty, 0), self.int(x.ty, 1));
        let by_zero = self.compare_ints(Comparison::Equal, y, zero);
        let safe = self.choose(by_zero, one, y);
        let quotient = if signed {
            let minus_one = self.int(x.ty, -1);
            let by_minus_one = self.compare_ints(Comparison::Equal, y, minus_one);
            let safe = self.choose(by_minus_one, one, safe);
            let quotient = self.two("arith.divsi", x, safe);
            let negative = self.isub(zero, x);
            self.choose(by_minus_one, negative, quotient)
        } else {
            self.divide(x, safe)
        };
        self.choose(by_zero, zero, quotient)
    }

    /// x 2ʸ, or x / 2ʸ rounded down, of integers without a sign; 0 where y is at least the width.
    pub fn int_shift(&mut self, left: bool, x: Value, y: Value) -> Value {
        let (width, zero) = (self.int(x.ty, i64::from(x.ty.element.bits())), self.int(x.ty, 0));
        let inside = self.compare_unsigned(Comparison::Less, y, width);
        let safe = self.choose(inside, y, zero);
        let shifted = self.two(if left { "arith.shli" } else { "arith.shrui" }, x, safe);
        self.choose(inside, shifted, zero)
    }

    /// An integer in another width; where that is larger, with its sign or with zeros.
    pub fn resize(&mut self, x: Value, to: Element, signed: bool) -> Value {
        let (from, into) = (x.ty, x.ty.with(to));
        let operation = match to.bits().cmp(&from.element.bits()) {
            std::cmp::Ordering::Less => "arith.trunci",
            std::cmp::Ordering::Equal => return x,
            std::cmp::Ordering::Greater if signed => "arith.extsi",
            std::cmp::Ordering::Greater => "arith.extui",
        };
        self.define(into, &format!("{operation} {x} : {from} to {into}"))
    }

    /// A conversion as [`Stmt::Cast`](margay_loops::Stmt::Cast) states it.
    pub fn convert(&mut self, x: Value, from: DType, to: DType) -> Value {
        let into = x.ty.with(Element::of(to));
        match (from.is_float(), to.is_float()) {
            _ if to == DType::Bool && from == DType::Bool => x,
            (true, _) if to == DType::Bool => {
                let zero = self.float(x.ty, 0.0);
                self.compare(Comparison::NotEqual, x, zero)
            }
            (false, _) if to == DType::Bool => {
                let zero = self.int(x.ty, 0);
                self.compare_ints(Comparison::NotEqual, x, zero)
            }
            (true, true) => self.resize_float(x, into),
            (true, false) => self.float_to_int(x, to),
            (false, true) => {
                let operation = if is_signed(from) { "arith.sitofp" } else { "arith.uitofp" };
                self.define(into, &format!("{operation} {x} : {} to {into}", x.ty))
            }
            (false, false) => self.resize(x, into.element, is_signed(from)),
        }
    }

    fn resize_float(&mut self, x: Value, into: Type) -> Value {
        match (x.ty.element, into.element) {
            (Element::F32, Element::F64) => {
                self.define(into, &format!("arith.extf {x} : {} to {into}", x.ty))
            }
            (Element::F64, Element::F32) => {
                self.define(into, &format!("arith.truncf {x} : {} to {into}", x.ty))
            }
            _ => x,
        }
    }

    /// Towards zero, and no further than the type reaches; NaN gives 0.
    fn float_to_int(&mut self, x: Value, to: DType) -> Value {
        let narrow = Element::of(to);
        let wide = if narrow.bits() < 32 { Element::I32 } else { narrow };
        let into = x.ty.with(wide);
        let name = if is_signed(to) || wide != narrow { "fptosi" } else { "fptoui" };
        let whole = self.define(
            into,
            &format!(
                "llvm.call_intrinsic \"llvm.{name}.sat.{}.{}\"({x}) : ({}) -> {into}",
                into.suffix(),
                x.ty.suffix(),
                x.ty
            ),
        );
        if wide == narrow {
            return whole;
        }
        let bits = narrow.bits();
        let (low, high) =
            if is_signed(to) { (-(1i64 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
        let (low, high) = (self.int(into, low), self.int(into, high));
        let whole = self.int_bound(true, true, whole, low);
        let whole = self.int_bound(false, true, whole, high);
        self.resize(whole, narrow, false)
    }

    /// A constant.
    pub fn literal(&mut self, value: Literal) -> Value {
        match value {
            Literal::F32(bits) => self.constant(Type::F32, &format!("0x{bits:08X}")),
            Literal::F64(bits) => self.constant(Type::scalar(Element::F64), &format!("0x{bits:016X}")),
            Literal::Int(dtype, v) => self.int(Type::scalar(Element::of(dtype)), v),
            Literal::Bool(v) => self.int(Type::I1, i64::from(v)),
        }
    }

    /// One lane of a vector.
    pub fn lane(&mut self, x: Value, lane: usize) -> Value {
        let at = self.int(Type::I32, lane as i64);
        let ty = Type::scalar(x.ty.element);
        self.define(ty, &format!("llvm.extractelement {x}[{at} : i32] : {}", x.ty))
    }

    /// A scalar in every lane.
    pub fn splat(&mut self, x: Value, lanes: usize) -> Value {
        if x.ty.lanes == lanes {
            return x;
        }
        assert_eq!(x.ty.lanes, 1, "only scalars are repeated");
        let ty = Type { element: x.ty.element, lanes };
        let zero = self.int(Type::I32, 0);
        let nothing = self.define(ty, &format!("llvm.mlir.poison : {ty}"));
        let one = self.define(ty, &format!("llvm.insertelement {x}, {nothing}[{zero} : i32] : {ty}"));
        let order = vec!["0"; lanes].join(", ");
        self.define(ty, &format!("llvm.shufflevector {one}, {nothing} [{order}] : {ty}"))
    }
}

impl Arithmetic for Writer {
    type Value = Value;
    type Type = Type;

    fn type_of(&self, x: Value) -> Type {
        x.ty
    }

    fn float(&mut self, ty: Type, v: f64) -> Value {
        match ty.element {
            Element::F64 => self.constant(ty, &format!("0x{:016X}", v.to_bits())),
            _ => self.constant(ty, &format!("0x{:08X}", (v as f32).to_bits())),
        }
    }

    fn int(&mut self, ty: Type, v: i64) -> Value {
        let ty = ty.with(ty.element.as_int());
        match ty.element.bits() {
            1 => self.constant(ty, if v & 1 == 1 { "true" } else { "false" }),
            64 => self.constant(ty, &v.to_string()),
            bits => self.constant(ty, &((v << (64 - bits)) >> (64 - bits)).to_string()),
        }
    }

    fn fadd(&mut self, x: Value, y: Value) -> Value {
        self.two("arith.addf", x, y)
    }

    fn fsub(&mut self, x: Value, y: Value) -> Value {
        self.two("arith.subf", x, y)
    }

    fn fmul(&mut self, x: Value, y: Value) -> Value {
        self.two("arith.mulf", x, y)
    }

    fn fdiv(&mut self, x: Value, y: Value) -> Value {
        self.two("arith.divf", x, y)
    }

    fn fneg(&mut self, x: Value) -> Value {
        self.define(x.ty, &format!("arith.negf {x} : {}", x.ty))
    }

    fn fabs(&mut self, x: Value) -> Value {
        self.intrinsic("fabs", x)
    }

    fn sqrt(&mut self, x: Value) -> Value {
        self.intrinsic("sqrt", x)
    }

    fn floor(&mut self, x: Value) -> Value {
        self.intrinsic("floor", x)
    }

    fn fma(&mut self, x: Value, y: Value, z: Value) -> Value {
        let ty = x.ty;
        self.define(ty, &format!("llvm.intr.fma({x}, {y}, {z}) : ({ty}, {ty}, {ty}) -> {ty}"))
    }

    fn compare(&mut self, how: Comparison, x: Value, y: Value) -> Value {
        let how = match how {
            Comparison::Equal => "oeq",
            Comparison::NotEqual => "une",
            Comparison::Less => "olt",
            Comparison::LessOrEqual => "ole",
            Comparison::Greater => "ogt",
            Comparison::GreaterOrEqual => "oge",
            Comparison::Unordered => "uno",
        };
        self.test(&format!("arith.cmpf {how}"), x, y)
    }

    fn compare_ints(&mut self, how: Comparison, x: Value, y: Value) -> Value {
        let how = match how {
            Comparison::Equal => "eq",
            Comparison::NotEqual => "ne",
            Comparison::Less => "slt",
            Comparison::LessOrEqual => "sle",
            Comparison::Greater => "sgt",
            Comparison::GreaterOrEqual => "sge",
            Comparison::Unordered => unreachable!("integers are ordered"),
        };
        self.test(&format!("arith.cmpi {how}"), x, y)
    }

    fn choose(&mut self, test: Value, x: Value, y: Value) -> Value {
        assert_eq!(x.ty, y.ty, "both sides of a choice are of one type");
        let types = match x.ty.lanes {
            1 => x.ty.to_string(),
            _ => format!("{}, {}", test.ty, x.ty),
        };
        self.define(x.ty, &format!("arith.select {test}, {x}, {y} : {types}"))
    }

    fn not(&mut self, test: Value) -> Value {
        let yes = self.int(test.ty, 1);
        self.xor(test, yes)
    }

    fn bits(&mut self, x: Value) -> Value {
        let into = x.ty.with(x.ty.element.as_int());
        self.define(into, &format!("arith.bitcast {x} : {} to {into}", x.ty))
    }

    fn float_of_bits(&mut self, x: Value) -> Value {
        let into = x.ty.with(if x.ty.element == Element::I64 { Element::F64 } else { Element::F32 });
        self.define(into, &format!("arith.bitcast {x} : {} to {into}", x.ty))
    }

    fn float_from_int(&mut self, x: Value) -> Value {
        let into = x.ty.with(Element::F32);
        self.define(into, &format!("arith.sitofp {x} : {} to {into}", x.ty))
    }

    fn iadd(&mut self, x: Value, y: Value) -> Value {
        self.two("arith.addi", x, y)
    }

    fn isub(&mut self, x: Value, y: Value) -> Value {
        self.two("arith.subi", x, y)
    }

    fn and(&mut self, x: Value, y: Value) -> Value {
        self.two("arith.andi", x, y)
    }

    fn or(&mut self, x: Value, y: Value) -> Value {
        self.two("arith.ori", x, y)
    }

    fn xor(&mut self, x: Value, y: Value) -> Value {
        self.two("arith.xori", x, y)
    }

    fn shift_left(&mut self, x: Value, by: u32) -> Value {
        self.shift("arith.shli", x, by)
    }

    fn shift_right(&mut self, x: Value, by: u32) -> Value {
        self.shift("arith.shrui", x, by)
    }

    fn shift_right_signed(&mut self, x: Value, by: u32) -> Value {
        self.shift("arith.shrsi", x, by)
    }
}
