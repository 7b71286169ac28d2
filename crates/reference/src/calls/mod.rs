//! Kernel calls, each by the formula of its documentation.
//!
//! An operand is read whole into row-major numbers, the formula is computed in f64 by plain loops, and the result is
//! rounded where it is written.

mod attention;
mod conv;
mod feature_attention;
mod hadamard;
mod linear_attention;
mod matmul;

use margay_loops::{Activation, Epilogue, KernelCall, Operand, ProductTypes, Scale};
use margay_tensor::DType;

use crate::Problem;
use crate::memory::Memory;
use crate::number::{Number, rounded};

/// The arguments of a call, taken in order.
pub(crate) struct Arguments<'a, 'm> {
    args: &'a [Operand],
    /// Types of their elements.
    dtypes: Vec<DType>,
    memory: &'a mut Memory<'m>,
    next: usize,
}

/// An argument, by its position.
#[derive(Clone, Copy)]
pub(crate) struct Argument(usize);

/// Runs a call.
pub(crate) fn run(call: &KernelCall, args: &[Operand], memory: &mut Memory<'_>) -> Result<(), Problem> {
    let dtypes = types_of(call);
    let mut args = Arguments { args, dtypes, memory, next: 0 };
    match call {
        KernelCall::MatMul(c) => matmul::run(c, &mut args),
        KernelCall::Conv(c) => conv::run(c, &mut args),
        KernelCall::ConvKernelGradient(c) => conv::kernel_gradient(c, &mut args),
        KernelCall::FeatureAttention(c) => feature_attention::run(c, &mut args),
        KernelCall::Hadamard(c) => hadamard::run(c, &mut args),
        KernelCall::Attention(c) => attention::run(c, &mut args),
        KernelCall::AttentionGradient(c) => attention::gradient(c, &mut args),
        KernelCall::LinearAttention(c) => linear_attention::run(c, &mut args),
        KernelCall::NonMaxSuppression(_) | KernelCall::Pool(_) | KernelCall::TopK(_) => {
            Err(Problem::Undefined(format!("the call `{call}`, which runs as a loop nest")))
        }
    }
}

/// Types of the arguments of a call in memory. A packed constant beside floats lies there as numbers.
fn types_of(call: &KernelCall) -> Vec<DType> {
    let mut types: Vec<DType> = call.args().iter().map(|arg| arg.dtype).collect();
    if matches!(call, KernelCall::MatMul(c) if c.b_packed && !c.types.left.is_int()) {
        types[1] = DType::F32;
    }
    types
}

impl Arguments<'_, '_> {
    /// The next argument.
    fn take(&mut self) -> Argument {
        self.next += 1;
        Argument(self.next - 1)
    }

    /// The next argument, if the call has it.
    fn take_if(&mut self, present: bool) -> Option<Argument> {
        present.then(|| self.take())
    }

    fn operand(&self, argument: Argument) -> Result<Operand, Problem> {
        let found = self.args.get(argument.0).copied();
        found.ok_or_else(|| Problem::Undefined(format!("a call without argument {}", argument.0)))
    }

    /// Elements of an operand in the order of `extents`, the first of them at `start`.
    fn read(
        &self,
        argument: Argument,
        start: usize,
        extents: &[usize],
        strides: &[usize],
    ) -> Result<Vec<f64>, Problem> {
        let (operand, dtype) = (self.operand(argument)?, self.dtypes[argument.0]);
        let element = |at: usize| Ok(self.memory.read(operand, argument.0, at as i64, dtype)?.float());
        positions(start, extents, strides).into_iter().map(element).collect()
    }

    /// Rounds numbers to the type of an operand and writes them to where [`read`](Arguments::read) reads them.
    fn write(
        &mut self,
        argument: Argument,
        start: usize,
        extents: &[usize],
        strides: &[usize],
        values: &[f64],
    ) -> Result<(), Problem> {
        let (operand, dtype) = (self.operand(argument)?, self.dtypes[argument.0]);
        for (at, value) in positions(start, extents, strides).into_iter().zip(values) {
            self.memory.write(operand, argument.0, at as i64, dtype, Number::Float(*value))?;
        }
        Ok(())
    }
}

/// Where the elements of a strided tensor lie, in row-major order.
fn positions(start: usize, extents: &[usize], strides: &[usize]) -> Vec<usize> {
    extents.iter().zip(strides).fold(vec![start], |outer, (&extent, &stride)| {
        outer.into_iter().flat_map(|at| (0..extent).map(move |i| at + i * stride)).collect()
    })
}

/// Strides of a row-major tensor.
fn row_major(extents: &[usize]) -> Vec<usize> {
    (0..extents.len()).map(|axis| extents[axis + 1..].iter().product()).collect()
}

/// What is done to sums of integers before the rest of an epilogue; nothing to those of floats.
struct Sums {
    integers: bool,
    result: DType,
    offset: Option<Vec<f64>>,
    scale: Option<Vec<f64>>,
}

impl Sums {
    /// Reads the offset and the scale of so many columns.
    fn of(
        types: &ProductTypes,
        epilogue: &Epilogue,
        columns: usize,
        [offset, scale]: [Option<Argument>; 2],
        args: &Arguments<'_, '_>,
    ) -> Result<Sums, Problem> {
        let step = usize::from(epilogue.scale == Some(Scale::Columns));
        Ok(Sums {
            integers: types.left.is_int(),
            result: types.result,
            offset: offset.map(|offset| args.read(offset, 0, &[columns], &[1])).transpose()?,
            scale: scale.map(|scale| args.read(scale, 0, &[columns], &[step])).transpose()?,
        })
    }

    /// A sum of a column; sums of bytes are exact in f64.
    fn finished(&self, sum: f64, column: usize) -> f64 {
        if !self.integers {
            return sum;
        }
        let whole = sum as i64 + self.offset.as_ref().map_or(0, |offset| offset[column] as i64);
        let sum = rounded(self.result, (whole as i32).into());
        sum * self.scale.as_ref().map_or(1.0, |scale| scale[column])
    }
}

/// A result with its epilogue: `bias` and `residual` belong to the element.
fn finished(epilogue: &Epilogue, x: f64, bias: f64, residual: f64) -> f64 {
    let x = x + bias;
    let activated = |x: f64| epilogue.activation.map_or(x, |a| activation(a, x));
    if epilogue.residual_first { activated(x + residual) } else { activated(x) + residual }
}

fn activation(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Relu if x.is_nan() => x,
        Activation::Relu => x.max(0.0),
        Activation::GeluErf => x * 0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x * 0.5 * (1.0 + libm::tanh(inner))
        }
        Activation::Silu => x / (1.0 + libm::exp(-x)),
        Activation::Tanh => libm::tanh(x),
        Activation::Relu6 => x.clamp(0.0, 6.0),
        Activation::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Activation::Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
    }
}
