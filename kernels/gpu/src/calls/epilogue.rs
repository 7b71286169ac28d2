//! What is done to sums of products before they are stored, and how elements are read and written.

use margay_loops::{Activation, Arithmetic, Epilogue};
use margay_tensor::DType;

use crate::value::{Element, Type, Value};
use crate::writer::Writer;

/// Reads an element as an f32.
pub(super) fn read(w: &mut Writer, base: Value, index: Value, dtype: DType) -> Value {
    let held = load(w, base, index, dtype);
    widened(w, held, dtype)
}

/// Reads an element as it lies in memory.
pub(super) fn load(w: &mut Writer, base: Value, index: Value, dtype: DType) -> Value {
    let address = w.element(base, index, Element::in_memory(dtype));
    w.load(Type::scalar(Element::in_memory(dtype)), address)
}

/// The f32 that an element as it lies in memory stands for.
pub(super) fn widened(w: &mut Writer, held: Value, dtype: DType) -> Value {
    match dtype {
        DType::F16 | DType::BF16 => {
            let bits = w.resize(held, Element::I32, false);
            w.widen_half(bits, dtype)
        }
        _ => held,
    }
}

/// Zero as it lies in memory.
pub(super) fn zero(w: &mut Writer, dtype: DType) -> Value {
    match Type::scalar(Element::in_memory(dtype)) {
        ty if ty.element.is_float() => w.float(ty, 0.0),
        ty => w.int(ty, 0),
    }
}

/// Writes an f32 as an element.
pub(super) fn write(w: &mut Writer, base: Value, index: Value, dtype: DType, x: Value) {
    let address = w.element(base, index, Element::in_memory(dtype));
    let held = match dtype {
        DType::F16 | DType::BF16 => {
            let bits = w.narrow_half(x, dtype);
            w.resize(bits, Element::I16, false)
        }
        _ => x,
    };
    w.store(held, address);
}

/// A sum with its bias and residual, which belong to it.
pub(super) fn finished(
    w: &mut Writer,
    epilogue: &Epilogue,
    sum: Value,
    bias: Option<Value>,
    residual: Option<Value>,
) -> Value {
    let mut x = sum;
    if let Some(bias) = bias {
        x = w.fadd(x, bias);
    }
    if let (Some(residual), true) = (residual, epilogue.residual_first) {
        x = w.fadd(x, residual);
    }
    if let Some(function) = epilogue.activation {
        x = activation(w, function, x);
    }
    match residual {
        Some(residual) if !epilogue.residual_first => w.fadd(x, residual),
        _ => x,
    }
}

fn activation(w: &mut Writer, function: Activation, x: Value) -> Value {
    let ty = x.ty;
    match function {
        Activation::Relu => {
            let zero = w.float(ty, 0.0);
            w.at_least(x, zero)
        }
        Activation::GeluErf => {
            let root_half = w.float(ty, std::f64::consts::FRAC_1_SQRT_2);
            let scaled = w.fmul(x, root_half);
            let erf = w.erf(scaled);
            half_of(w, x, erf)
        }
        Activation::GeluTanh => {
            let (cubic, scale) = (w.float(ty, 0.044_715), w.float(ty, (2.0 / std::f64::consts::PI).sqrt()));
            let square = w.fmul(x, x);
            let cube = w.fmul(square, x);
            let inner = w.fma(cubic, cube, x);
            let inner = w.fmul(scale, inner);
            let tanh = w.tanh(inner);
            half_of(w, x, tanh)
        }
        Activation::Silu => {
            let (one, negative) = (w.float(ty, 1.0), w.fneg(x));
            let power = w.exp(negative);
            let below = w.fadd(one, power);
            w.fdiv(x, below)
        }
        Activation::Tanh => w.tanh(x),
        Activation::Sigmoid => w.sigmoid(x),
        Activation::Relu6 => clamped(w, x, 6.0),
        Activation::HardSwish => {
            let (sixth, half) = (w.float(ty, 1.0 / 6.0), w.float(ty, 0.5));
            let gate = w.fma(x, sixth, half);
            let gate = clamped(w, gate, 1.0);
            w.fmul(x, gate)
        }
    }
}

/// x / 2 (1 + y).
fn half_of(w: &mut Writer, x: Value, y: Value) -> Value {
    let (one, half) = (w.float(x.ty, 1.0), w.float(x.ty, 0.5));
    let sum = w.fadd(one, y);
    let half = w.fmul(x, half);
    w.fmul(half, sum)
}

/// x between 0 and a bound.
fn clamped(w: &mut Writer, x: Value, bound: f64) -> Value {
    let (zero, bound) = (w.float(x.ty, 0.0), w.float(x.ty, bound));
    let x = w.at_least(x, zero);
    w.at_most(x, bound)
}
