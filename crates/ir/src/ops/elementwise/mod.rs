//! Operators that compute each element of the result from the elements at the same place of their operands.
//!
//! Operands broadcast by numpy's rules. Two macros write what all of them share; an operator's file states its
//! formula, its scalar code and where its test values lie.

mod abs;
mod add;
mod and;
mod atan;
mod cast;
mod ceil;
mod cos;
mod div;
mod dropout;
mod equal;
mod erf;
mod exp;
mod floor;
mod gelu;
mod hard_swish;
mod less;
mod less_or_equal;
mod log;
mod max;
mod min;
mod mul;
mod mul_or_zero;
mod neg;
mod not;
mod or;
mod position;
mod pow;
mod relu;
mod relu6;
mod round;
mod select;
mod shift_left;
mod shift_right;
mod sigmoid;
mod silu;
mod sin;
mod softplus;
mod sqrt;
mod sub;
mod tanh;
mod xor;

pub use abs::Abs;
pub use add::Add;
pub use and::And;
pub use atan::Atan;
pub use cast::Cast;
pub use ceil::Ceil;
pub use cos::Cos;
pub use div::Div;
pub use dropout::Dropout;
pub use equal::Equal;
pub use erf::Erf;
pub use exp::Exp;
pub use floor::Floor;
pub use gelu::Gelu;
pub use hard_swish::HardSwish;
pub use less::Less;
pub use less_or_equal::LessOrEqual;
pub use log::Log;
pub use max::Max;
pub use min::Min;
pub use mul::Mul;
pub use mul_or_zero::MulOrZero;
pub use neg::Neg;
pub use not::Not;
pub use or::Or;
pub use position::Position;
pub use pow::Pow;
pub use relu::Relu;
pub use relu6::Relu6;
pub use round::Round;
pub use select::Select;
pub use shift_left::ShiftLeft;
pub use shift_right::ShiftRight;
pub use sigmoid::Sigmoid;
pub use silu::Silu;
pub use sin::Sin;
pub use softplus::Softplus;
pub use sqrt::Sqrt;
pub use sub::Sub;
pub use tanh::Tanh;
pub use xor::Xor;

use margay_tensor::{DType, Tensor};

use crate::ops::{Case, CaseInput, EvalError};
use crate::{TensorType, TypeError, types};

/// Which element types an operator takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Domain {
    /// f32 and f64, f16 and bf16.
    Float,
    /// Floats and integers.
    Number,
    /// Truth values.
    Bool,
    /// Integers without a sign.
    Unsigned,
    /// Truth values and integers, which are looked at bit by bit.
    Bits,
    /// Everything.
    Any,
}

impl Domain {
    /// Checks the type of an operand.
    pub fn check(self, input: usize, ty: &TensorType) -> Result<(), TypeError> {
        let (ok, expected) = match self {
            Domain::Float => (ty.dtype.is_float(), "a float type"),
            Domain::Number => (ty.dtype != DType::Bool, "a number type"),
            Domain::Bool => (ty.dtype == DType::Bool, "bool"),
            Domain::Unsigned => (is_unsigned(ty.dtype), "an integer type without a sign"),
            Domain::Bits => (!ty.dtype.is_float(), "bool or an integer type"),
            Domain::Any => (true, "any type"),
        };
        types::expect(input, ty, ok, expected)
    }
}

fn is_unsigned(dtype: DType) -> bool {
    matches!(dtype, DType::U8 | DType::U16 | DType::U32 | DType::U64)
}

/// The elements of a tensor as numbers: floats and truth values as f64, integers as i128, which holds all of them.
#[derive(Clone, Debug)]
pub enum Numbers {
    /// Floats; truth values are 0 and 1.
    Float(Vec<f64>),
    /// Integers.
    Int(Vec<i128>),
}

impl Numbers {
    /// Reads a tensor.
    pub fn of(t: &Tensor) -> Result<Numbers, EvalError> {
        macro_rules! ints {
            ($t:ty) => {
                Numbers::Int(t.as_slice::<$t>()?.iter().map(|&v| i128::from(v)).collect())
            };
        }
        Ok(match t.dtype() {
            DType::F32 => Numbers::Float(t.as_slice::<f32>()?.iter().map(|&v| f64::from(v)).collect()),
            DType::F64 => Numbers::Float(t.to_vec::<f64>()?),
            DType::F16 => Numbers::Float(t.as_slice::<half::f16>()?.iter().map(|v| v.to_f64()).collect()),
            DType::BF16 => Numbers::Float(t.as_slice::<half::bf16>()?.iter().map(|v| v.to_f64()).collect()),
            DType::Bool => Numbers::Float(t.bytes().iter().map(|&v| f64::from(v != 0)).collect()),
            DType::I8 => ints!(i8),
            DType::U8 => ints!(u8),
            DType::I16 => ints!(i16),
            DType::U16 => ints!(u16),
            DType::I32 => ints!(i32),
            DType::U32 => ints!(u32),
            DType::I64 => ints!(i64),
            DType::U64 => ints!(u64),
        })
    }

    /// The elements as f64.
    pub fn floats(self) -> Vec<f64> {
        match self {
            Numbers::Float(v) => v,
            Numbers::Int(v) => v.into_iter().map(|x| x as f64).collect(),
        }
    }

    /// The elements as i64: floats truncate and saturate, integers wrap.
    pub fn ints(self) -> Vec<i64> {
        match self {
            Numbers::Float(v) => v.into_iter().map(|x| x as i64).collect(),
            Numbers::Int(v) => v.into_iter().map(|x| x as i64).collect(),
        }
    }

    /// A tensor of the given type, rounded, truncated or wrapped as a cast does.
    pub fn into_tensor(self, dtype: DType, shape: &[usize]) -> Result<Tensor, EvalError> {
        macro_rules! ints {
            ($t:ty) => {{
                let v: Vec<$t> = match self {
                    Numbers::Float(v) => v.into_iter().map(|x| x as $t).collect(),
                    Numbers::Int(v) => v.into_iter().map(|x| x as $t).collect(),
                };
                Tensor::from_slice(shape, &v)?
            }};
        }
        macro_rules! floats {
            ($f:expr) => {{
                let v: Vec<_> = self.floats().into_iter().map($f).collect();
                Tensor::from_slice(shape, &v)?
            }};
        }
        Ok(match dtype {
            DType::F32 => floats!(|x| x as f32),
            DType::F64 => floats!(|x| x),
            DType::F16 => floats!(margay_tensor::f16_of),
            DType::BF16 => floats!(margay_tensor::bf16_of),
            DType::Bool => {
                let v: Vec<bool> = match self {
                    Numbers::Float(v) => v.into_iter().map(|x| x != 0.0).collect(),
                    Numbers::Int(v) => v.into_iter().map(|x| x != 0).collect(),
                };
                Tensor::from_bools(shape, &v)?
            }
            DType::I8 => ints!(i8),
            DType::U8 => ints!(u8),
            DType::I16 => ints!(i16),
            DType::U16 => ints!(u16),
            DType::I32 => ints!(i32),
            DType::U32 => ints!(u32),
            DType::I64 => ints!(i64),
            DType::U64 => ints!(u64),
        })
    }
}

/// Pairs of the largest and smallest integers of 64 bits, and of others that are told apart from them by their sign only.
pub(crate) fn extremes() -> [Case; 2] {
    let (high, low) = (1u64 << 63, 5u64);
    let unsigned = [[u64::MAX, high, low, low, u64::MAX, 0], [low, u64::MAX, high, low, high, u64::MAX]];
    let signed = [[i64::MIN, i64::MAX, -7, 7, i64::MIN, -1], [-1, i64::MIN, 2, -2, 3, i64::MAX]];
    let case = |[x, y]: [Tensor; 2]| Case { inputs: vec![CaseInput::Values(x), CaseInput::Values(y)] };
    let expect = "six values in six places";
    [
        case(unsigned.map(|v| Tensor::from_slice(&[6], &v).expect(expect))),
        case(signed.map(|v| Tensor::from_slice(&[6], &v).expect(expect))),
    ]
}

/// The shape tensors broadcast to.
pub fn broadcast_extents(inputs: &[&Tensor]) -> Result<Vec<usize>, TypeError> {
    let mut shape = Vec::new();
    for t in inputs {
        shape = types::broadcast_shapes(&shape, &TensorType::of(t).shape)?;
    }
    Ok(shape.iter().map(|d| d.as_extent().unwrap_or(0)).collect())
}

/// For every element of `out`, the position of the element of a tensor of shape `of` it reads by broadcasting.
pub fn broadcast_positions(out: &[usize], of: &[usize]) -> Vec<usize> {
    let mut strides = vec![0usize; out.len()];
    let mut size = 1;
    for (i, &d) in of.iter().enumerate().rev() {
        strides[i + out.len() - of.len()] = if d == 1 { 0 } else { size };
        size *= d;
    }
    let total: usize = out.iter().product();
    let mut positions = Vec::with_capacity(total);
    let mut index = vec![0usize; out.len()];
    let mut at = 0;
    for _ in 0..total {
        positions.push(at);
        for axis in (0..out.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < out[axis] {
                break;
            }
            at -= strides[axis] * out[axis];
            index[axis] = 0;
        }
    }
    positions
}

/// Writes an operator of one operand: its struct without attributes and its [`OpDef`](crate::OpDef).
macro_rules! unary {
    (
        $(#[$doc:meta])* $name:ident = $mnemonic:literal,
        domain: $domain:ident, flops: $flops:literal, range: $low:literal .. $high:literal,
        float: $float:expr, int: $int:expr, scalar: $scalar:expr,
        activation: $activation:expr, symbolic: $symbolic:expr, vjp: $vjp:expr $(,)?
    ) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, Debug)]
        pub struct $name;

        $crate::ops::attributes::attributes!($name {});

        impl $crate::ops::OpDef for $name {
            const NAME: &'static str = $mnemonic;

            fn infer(&self, inputs: &[&$crate::TensorType]) -> Result<$crate::Types, $crate::TypeError> {
                let [x] = $crate::types::inputs(inputs, "1")?;
                $crate::ops::elementwise::Domain::$domain.check(0, x)?;
                $crate::types::one(x.dtype, x.shape.clone())
            }

            fn eval(
                &self,
                inputs: &[&margay_tensor::Tensor],
            ) -> Result<Vec<margay_tensor::Tensor>, $crate::ops::EvalError> {
                use $crate::ops::elementwise::Numbers;
                let float: fn(f64) -> f64 = $float;
                let int: fn(i128) -> i128 = $int;
                let out = match Numbers::of(inputs[0])? {
                    Numbers::Float(v) => Numbers::Float(v.into_iter().map(float).collect()),
                    Numbers::Int(v) => Numbers::Int(v.into_iter().map(int).collect()),
                };
                Ok(vec![out.into_tensor(inputs[0].dtype(), inputs[0].shape())?])
            }

            fn vjp(&self, cx: &mut $crate::vjp::Vjp<'_>) -> $crate::vjp::GradResult {
                let rule: fn(&mut $crate::vjp::Vjp<'_>) -> $crate::vjp::GradResult = $vjp;
                rule(cx)
            }

            fn lower(&self, _: &$crate::ops::Io) -> Result<$crate::ops::Lowered, $crate::ops::NotLowered> {
                let scalar: fn(&mut margay_loops::Nest, margay_loops::Reg) -> margay_loops::Reg = $scalar;
                Ok($crate::ops::Lowered::elementwise(move |n, x| scalar(n, x[0])))
            }

            fn cost(&self, io: &$crate::ops::Io) -> $crate::ops::Cost {
                $crate::ops::Cost::per_element(io, $flops)
            }

            fn facts(&self) -> $crate::ops::Facts {
                #[allow(unused_imports, reason = "what an operator says is written in these words")]
                use $crate::ops::facts::{Elementwise, Neutral, Parameter, Symbolic};
                let known = Elementwise { neutral: None, activation: $activation };
                $crate::ops::Facts::elementwise(known, $symbolic, &[])
            }

            fn permuted(&self, _: &[usize]) -> Option<$crate::Op> {
                Some($name.into())
            }

            fn padded(&self, cx: &mut $crate::padding::Padding<'_>) -> $crate::padding::Padded {
                cx.apart($name)
            }

            fn cases() -> Vec<(Self, $crate::ops::Case)> {
                use $crate::ops::elementwise::Domain;
                let dtype = match Domain::$domain {
                    Domain::Bool => margay_tensor::DType::Bool,
                    _ => margay_tensor::DType::F32,
                };
                [&[7usize][..], &[2, 3, 5], &[33, 16], &[]]
                    .map(|s| ($name, $crate::ops::Case::random(dtype, $low, $high, &[s])))
                    .to_vec()
            }
        }
    };
}
pub(crate) use unary;

/// Writes an operator of two operands; `test: true` when the result is a truth value.
macro_rules! binary {
    (
        $(#[$doc:meta])* $name:ident = $mnemonic:literal,
        domain: $domain:ident, flops: $flops:literal, test: $test:literal, range: $low:literal .. $high:literal,
        float: $float:expr, int: $int:expr, scalar: $scalar:expr,
        neutral: $neutral:expr, symbolic: $symbolic:expr, parameters: $parameters:expr, vjp: $vjp:expr $(,)?
    ) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, Debug)]
        pub struct $name;

        $crate::ops::attributes::attributes!($name {});

        impl $crate::ops::OpDef for $name {
            const NAME: &'static str = $mnemonic;

            fn infer(&self, inputs: &[&$crate::TensorType]) -> Result<$crate::Types, $crate::TypeError> {
                let [x, y] = $crate::types::inputs(inputs, "2")?;
                $crate::ops::elementwise::Domain::$domain.check(0, x)?;
                $crate::types::expect_dtype(1, y, x.dtype)?;
                let shape = $crate::types::broadcast_shapes(&x.shape, &y.shape)?;
                $crate::types::one(if $test { margay_tensor::DType::Bool } else { x.dtype }, shape)
            }

            fn eval(
                &self,
                inputs: &[&margay_tensor::Tensor],
            ) -> Result<Vec<margay_tensor::Tensor>, $crate::ops::EvalError> {
                use $crate::ops::elementwise::{Numbers, broadcast_extents, broadcast_positions};
                let float: fn(f64, f64) -> f64 = $float;
                let int: fn(i128, i128) -> i128 = $int;
                let shape = broadcast_extents(inputs)?;
                let at = [0, 1].map(|i| broadcast_positions(&shape, inputs[i].shape()));
                let pairs = at[0].iter().zip(&at[1]);
                let out = match (Numbers::of(inputs[0])?, Numbers::of(inputs[1])?) {
                    (Numbers::Int(x), Numbers::Int(y)) => {
                        Numbers::Int(pairs.map(|(&i, &j)| int(x[i], y[j])).collect())
                    }
                    (x, y) => {
                        let (x, y) = (x.floats(), y.floats());
                        Numbers::Float(pairs.map(|(&i, &j)| float(x[i], y[j])).collect())
                    }
                };
                let dtype = if $test { margay_tensor::DType::Bool } else { inputs[0].dtype() };
                Ok(vec![out.into_tensor(dtype, &shape)?])
            }

            fn vjp(&self, cx: &mut $crate::vjp::Vjp<'_>) -> $crate::vjp::GradResult {
                let rule: fn(&mut $crate::vjp::Vjp<'_>) -> $crate::vjp::GradResult = $vjp;
                rule(cx)
            }

            fn lower(&self, _: &$crate::ops::Io) -> Result<$crate::ops::Lowered, $crate::ops::NotLowered> {
                type Code = fn(&mut margay_loops::Nest, margay_loops::Reg, margay_loops::Reg) -> margay_loops::Reg;
                let scalar: Code = $scalar;
                Ok($crate::ops::Lowered::elementwise(move |n, x| scalar(n, x[0], x[1])))
            }

            fn cost(&self, io: &$crate::ops::Io) -> $crate::ops::Cost {
                $crate::ops::Cost::per_element(io, $flops)
            }

            fn facts(&self) -> $crate::ops::Facts {
                #[allow(unused_imports, reason = "what an operator says is written in these words")]
                use $crate::ops::facts::{Elementwise, Neutral, Parameter, Symbolic};
                let known = Elementwise { neutral: $neutral, activation: None };
                $crate::ops::Facts::elementwise(known, $symbolic, $parameters)
            }

            fn permuted(&self, _: &[usize]) -> Option<$crate::Op> {
                Some($name.into())
            }

            fn padded(&self, cx: &mut $crate::padding::Padding<'_>) -> $crate::padding::Padded {
                cx.apart($name)
            }

            fn cases() -> Vec<(Self, $crate::ops::Case)> {
                use $crate::ops::elementwise::Domain;
                let (dtype, low, high) = match Domain::$domain {
                    Domain::Bool | Domain::Bits => (margay_tensor::DType::Bool, 0.0, 2.0),
                    Domain::Unsigned => (margay_tensor::DType::U32, $low, $high),
                    _ => (margay_tensor::DType::F32, $low, $high),
                };
                let mut cases = vec![];
                let shapes: [&[&[usize]]; 4] =
                    [&[&[7], &[7]], &[&[2, 3, 5], &[5]], &[&[4, 1, 3], &[2, 1]], &[&[33, 16], &[]]];
                for s in shapes {
                    cases.push(($name, $crate::ops::Case::random(dtype, low, high, s)));
                }
                if matches!(Domain::$domain, Domain::Number | Domain::Bits) {
                    let i64 = margay_tensor::DType::I64;
                    cases.push(($name, $crate::ops::Case::random(i64, 1.0, 9.0, &[&[3, 5], &[5]])));
                    cases.extend($crate::ops::elementwise::extremes().map(|case| ($name, case)));
                }
                cases
            }
        }
    };
}
pub(crate) use binary;
