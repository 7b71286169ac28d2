//! Numbers of every element type, and what kernel IR does with them.
//!
//! A float is held as an f64 that its type can represent: an operation is computed in f64 and rounded once to the type
//! of its result, which for sums, differences, products, quotients and square roots of f32 is the correctly rounded
//! f32. An integer is held as what it stands for and wrapped to its type after every operation. A truth value is 0 or
//! 1.

use half::{bf16, f16};
use margay_loops::{Binary, Combine, Literal, Unary};
use margay_tensor::DType;
use margay_tensor::{bf16_of, f16_of};

use crate::Problem;

/// A number of some type; which one, its register says.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Number {
    Float(f64),
    Int(i128),
}

impl Number {
    pub(crate) fn bool(x: bool) -> Number {
        Number::Int(i128::from(x))
    }

    pub(crate) fn of(literal: Literal) -> Number {
        match literal {
            Literal::F32(bits) => Number::Float(f32::from_bits(bits).into()),
            Literal::F64(bits) => Number::Float(f64::from_bits(bits)),
            Literal::Int(dtype, x) => Number::Int(wrapped(dtype, x.into())),
            Literal::Bool(x) => Number::bool(x),
        }
    }

    /// As a float, rounded to f64 where it is an integer beyond 2⁵³.
    pub(crate) fn float(self) -> f64 {
        match self {
            Number::Float(x) => x,
            Number::Int(x) => x as f64,
        }
    }

    /// As an integer; fractions are cut off.
    pub(crate) fn int(self) -> i128 {
        match self {
            Number::Float(x) => x as i128,
            Number::Int(x) => x,
        }
    }

    pub(crate) fn is_true(self) -> bool {
        match self {
            Number::Float(x) => x != 0.0,
            Number::Int(x) => x != 0,
        }
    }

    /// The element at the start of little-endian bytes.
    pub(crate) fn read(dtype: DType, bytes: &[u8]) -> Number {
        let int = |signed: bool| {
            let size = dtype.bytes();
            let fill = if signed && bytes[size - 1] >= 0x80 { 0xff } else { 0 };
            let mut wide = [fill; 16];
            wide[..size].copy_from_slice(&bytes[..size]);
            Number::Int(i128::from_le_bytes(wide))
        };
        match dtype {
            DType::F32 => Number::Float(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into()),
            DType::F64 => {
                let mut word = [0; 8];
                word.copy_from_slice(&bytes[..8]);
                Number::Float(f64::from_le_bytes(word))
            }
            DType::F16 => Number::Float(f16::from_le_bytes([bytes[0], bytes[1]]).to_f64()),
            DType::BF16 => Number::Float(bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64()),
            DType::Bool => Number::bool(bytes[0] != 0),
            DType::I8 | DType::I16 | DType::I32 | DType::I64 => int(true),
            DType::U8 | DType::U16 | DType::U32 | DType::U64 => int(false),
        }
    }

    /// Writes the element to the start of `bytes`.
    pub(crate) fn write(self, dtype: DType, bytes: &mut [u8]) {
        match dtype {
            DType::F32 => bytes[..4].copy_from_slice(&(self.float() as f32).to_le_bytes()),
            DType::F64 => bytes[..8].copy_from_slice(&self.float().to_le_bytes()),
            DType::F16 => bytes[..2].copy_from_slice(&f16_of(self.float()).to_le_bytes()),
            DType::BF16 => bytes[..2].copy_from_slice(&bf16_of(self.float()).to_le_bytes()),
            DType::Bool => bytes[0] = u8::from(self.is_true()),
            DType::I8
            | DType::U8
            | DType::I16
            | DType::U16
            | DType::I32
            | DType::U32
            | DType::I64
            | DType::U64 => {
                let size = dtype.bytes();
                bytes[..size].copy_from_slice(&self.int().to_le_bytes()[..size]);
            }
        }
    }

    /// Conversion to a type: floats to integers truncate and saturate, NaN gives 0, integers wrap, numbers to truth
    /// values by `!= 0`.
    pub(crate) fn cast(self, to: DType) -> Number {
        match (self, to) {
            (x, DType::Bool) => Number::bool(x.is_true()),
            (Number::Float(x), d) if d.is_float() => Number::Float(rounded(d, x)),
            (Number::Int(x), DType::F32) => Number::Float((x as f32).into()),
            (Number::Int(x), d) if d.is_float() => Number::Float(rounded(d, x as f64)),
            (Number::Float(x), d) => {
                let (low, high) = range(d);
                Number::Int((x as i128).clamp(low, high))
            }
            (Number::Int(x), d) => Number::Int(wrapped(d, x)),
        }
    }
}

/// A float rounded to a type, ties to even.
pub(crate) fn rounded(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F32 => (x as f32).into(),
        DType::F16 => f16_of(x).to_f64(),
        DType::BF16 => bf16_of(x).to_f64(),
        _ => x,
    }
}

/// The smallest and the largest integer of a type.
fn range(dtype: DType) -> (i128, i128) {
    let bits = 8 * dtype.bytes();
    match dtype {
        DType::Bool => (0, 1),
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        _ => (0, (1 << bits) - 1),
    }
}

/// The integer of a type with the same lowest bits.
fn wrapped(dtype: DType, x: i128) -> i128 {
    let (low, high) = range(dtype);
    (x - low).rem_euclid(high - low + 1) + low
}

fn undefined(op: impl std::fmt::Debug, dtype: DType) -> Problem {
    Problem::Undefined(format!("{op:?} of {dtype}"))
}

/// A function of a number of type `dtype`.
pub(crate) fn unary(op: Unary, dtype: DType, x: Number) -> Result<Number, Problem> {
    let x = match (op, x) {
        (Unary::Not, Number::Int(x)) if dtype == DType::Bool => return Ok(Number::bool(x == 0)),
        (Unary::Neg, Number::Int(x)) if dtype.is_int() => return Ok(Number::Int(wrapped(dtype, -x))),
        (Unary::Abs, Number::Int(x)) if dtype.is_int() => return Ok(Number::Int(wrapped(dtype, x.abs()))),
        (_, Number::Float(x)) => x,
        (_, Number::Int(_)) => return Err(undefined(op, dtype)),
    };
    let y = match op {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Exp => libm::exp(x),
        Unary::Log => libm::log(x),
        Unary::Sqrt => x.sqrt(),
        Unary::Erf => libm::erf(x),
        Unary::Tanh => libm::tanh(x),
        Unary::Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
        Unary::Sin => libm::sin(x),
        Unary::Cos => libm::cos(x),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::RoundF16 => rounded(DType::F16, x),
        Unary::RoundBf16 => rounded(DType::BF16, x),
        Unary::IsNan => return Ok(Number::bool(x.is_nan())),
        Unary::Not => return Err(undefined(op, dtype)),
    };
    Ok(Number::Float(rounded(dtype, y)))
}

/// A function of two numbers of type `dtype`.
pub(crate) fn binary(op: Binary, dtype: DType, x: Number, y: Number) -> Result<Number, Problem> {
    match (x, y) {
        (Number::Float(x), Number::Float(y)) => {
            let z = match op {
                Binary::Add => x + y,
                Binary::Sub => x - y,
                Binary::Mul => x * y,
                Binary::Div => x / y,
                Binary::Min => smaller(x, y),
                Binary::Max => -smaller(-x, -y),
                Binary::Pow => libm::pow(x, y),
                Binary::Eq => return Ok(Number::bool(x == y)),
                Binary::Lt => return Ok(Number::bool(x < y)),
                Binary::Le => return Ok(Number::bool(x <= y)),
                Binary::And | Binary::Or | Binary::Xor | Binary::ShiftLeft | Binary::ShiftRight => {
                    return Err(undefined(op, dtype));
                }
            };
            Ok(Number::Float(rounded(dtype, z)))
        }
        (Number::Int(x), Number::Int(y)) => {
            let truth = dtype == DType::Bool;
            let z = match op {
                Binary::Eq => return Ok(Number::bool(x == y)),
                Binary::Lt => return Ok(Number::bool(x < y)),
                Binary::Le => return Ok(Number::bool(x <= y)),
                Binary::And => x & y,
                Binary::Or => x | y,
                Binary::Xor => x ^ y,
                Binary::ShiftLeft if !truth => {
                    if (0..64).contains(&y) {
                        x << y
                    } else {
                        0
                    }
                }
                Binary::ShiftRight if !truth => {
                    if (0..64).contains(&y) {
                        x >> y
                    } else {
                        0
                    }
                }
                Binary::Min => x.min(y),
                Binary::Max => x.max(y),
                Binary::Add if !truth => x + y,
                Binary::Sub if !truth => x - y,
                Binary::Mul if !truth => x.wrapping_mul(y),
                Binary::Div if !truth => x.checked_div(y).unwrap_or(0),
                Binary::Add
                | Binary::Sub
                | Binary::Mul
                | Binary::Div
                | Binary::Pow
                | Binary::ShiftLeft
                | Binary::ShiftRight => return Err(undefined(op, dtype)),
            };
            Ok(Number::Int(wrapped(dtype, z)))
        }
        _ => Err(Problem::Undefined(format!("{op:?} of a float and an integer"))),
    }
}

/// The smaller float; NaN if either is.
fn smaller(x: f64, y: f64) -> f64 {
    if x.is_nan() || y.is_nan() { f64::NAN } else { x.min(y) }
}

/// What a reduction starts from.
pub(crate) fn identity(combine: Combine, dtype: DType) -> Result<Number, Problem> {
    if dtype.is_float() {
        return Ok(Number::Float(match combine {
            Combine::Sum => 0.0,
            Combine::Product => 1.0,
            Combine::Max => f64::NEG_INFINITY,
            Combine::Min => f64::INFINITY,
        }));
    }
    let (low, high) = range(dtype);
    match combine {
        Combine::Sum | Combine::Product if dtype == DType::Bool => Err(undefined(combine, dtype)),
        Combine::Sum => Ok(Number::Int(0)),
        Combine::Product => Ok(Number::Int(1)),
        Combine::Max => Ok(Number::Int(low)),
        Combine::Min => Ok(Number::Int(high)),
    }
}

/// Joins a value into a partial result. Partial sums and products of floats are f64 whatever the type is.
pub(crate) fn join(combine: Combine, dtype: DType, partial: Number, x: Number) -> Result<Number, Problem> {
    let op = match combine {
        Combine::Sum => Binary::Add,
        Combine::Product => Binary::Mul,
        Combine::Max => Binary::Max,
        Combine::Min => Binary::Min,
    };
    binary(op, if dtype.is_float() { DType::F64 } else { dtype }, partial, x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(op: Binary, dtype: DType, x: i128, y: i128) -> i128 {
        binary(op, dtype, Number::Int(x), Number::Int(y)).unwrap().int()
    }

    #[test]
    fn integers_wrap_as_their_type_does() {
        assert_eq!(int(Binary::Add, DType::I8, 127, 1), -128);
        assert_eq!(int(Binary::Sub, DType::U8, 0, 1), 255);
        assert_eq!(int(Binary::Mul, DType::U64, u64::MAX.into(), u64::MAX.into()), 1);
        assert_eq!(int(Binary::Mul, DType::I64, i64::MIN.into(), -1), i64::MIN.into());
        assert_eq!(int(Binary::Div, DType::I32, i32::MIN.into(), -1), i32::MIN.into());
        assert_eq!(int(Binary::Div, DType::I32, -7, 2), -3);
        assert_eq!(int(Binary::Div, DType::U16, 7, 0), 0);
        assert_eq!(int(Binary::Lt, DType::U64, 1, u64::MAX.into()), 1);
        assert_eq!(unary(Unary::Abs, DType::I8, Number::Int(-128)), Ok(Number::Int(-128)));
        assert_eq!(unary(Unary::Neg, DType::U8, Number::Int(1)), Ok(Number::Int(255)));
    }

    #[test]
    fn casts_truncate_and_saturate() {
        let cast = |x: f64, to| Number::Float(x).cast(to);
        assert_eq!(cast(-1.9, DType::I8), Number::Int(-1));
        assert_eq!(cast(300.0, DType::I8), Number::Int(127));
        assert_eq!(cast(-1.0, DType::U64), Number::Int(0));
        assert_eq!(cast(1e30, DType::U64), Number::Int(u64::MAX.into()));
        assert_eq!(cast(f64::NAN, DType::I32), Number::Int(0));
        assert_eq!(cast(-0.5, DType::Bool), Number::Int(1));
        assert_eq!(Number::Int(-1).cast(DType::U32), Number::Int(u32::MAX.into()));
        assert_eq!(Number::Int(u64::MAX.into()).cast(DType::F32), Number::Float(2f64.powi(64)));
        // One rounding, not two: by way of f64 this would be 2^24.
        let odd = (1i128 << 60) + (1 << 36) + 1;
        assert_eq!(Number::Int(odd).cast(DType::F32), Number::Float((odd as f32).into()));
    }

    #[test]
    fn a_nan_stays_one() {
        for op in [Binary::Min, Binary::Max] {
            for (x, y) in [(f64::NAN, 1.0), (1.0, f64::NAN)] {
                let z = binary(op, DType::F32, Number::Float(x), Number::Float(y)).unwrap();
                assert!(z.float().is_nan());
            }
        }
    }

    #[test]
    fn bytes_read_back() {
        for dtype in DType::ALL {
            let (low, high) = if dtype.is_float() { (-2, 3) } else { range(dtype) };
            for x in [low, high, 1] {
                let x = Number::Int(x).cast(dtype);
                let mut bytes = [0; 8];
                x.write(dtype, &mut bytes);
                assert_eq!(Number::read(dtype, &bytes), x, "{dtype}");
            }
        }
    }

    #[test]
    fn what_compiled_code_lacks_is_refused() {
        assert!(binary(Binary::Pow, DType::I32, Number::Int(2), Number::Int(2)).is_err());
        assert!(binary(Binary::Add, DType::Bool, Number::Int(1), Number::Int(1)).is_err());
        assert!(unary(Unary::Exp, DType::I64, Number::Int(1)).is_err());
        assert!(identity(Combine::Sum, DType::Bool).is_err());
    }
}
