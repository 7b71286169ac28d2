//! Activation functions, alone or composed from simpler operators.

use margay_ir::Value;
use margay_ir::ops::{Add, Gelu, HardSwish, Max, Min, Mul, Relu, Sigmoid, Silu, Softplus, Tanh};
use margay_tensor::DType;

use super::Importer;
use super::call::{Call, Imported, Refusal};

/// `Relu`.
pub(super) fn relu(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    Ok(vec![cx.add(Relu, &[x])?])
}

/// `Sigmoid`.
pub(super) fn sigmoid(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    Ok(vec![cx.add(Sigmoid, &[x])?])
}

/// `Softplus`.
pub(super) fn softplus(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    Ok(vec![cx.add(Softplus, &[x])?])
}

/// `Gelu`, exact or by its tanh approximation.
pub(super) fn gelu(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let tanh = match call.text("approximate", "none")? {
        "none" => false,
        "tanh" => true,
        other => {
            return Err(Refusal::Invalid(format!("expected approximation none or tanh, found `{other}`")));
        }
    };
    Ok(vec![cx.add(Gelu { tanh }, &[x])?])
}

/// `LeakyRelu`: α x below 0.
pub(super) fn leaky_relu(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let slope = cx.number(x, call.float("alpha", 0.01)?)?;
    let below = cx.add(Mul, &[x, slope])?;
    Ok(vec![below_zero(cx, x, below)?])
}

/// `PRelu`: a slope below 0 that is an operand.
pub(super) fn prelu(cx: &mut Importer, call: &Call) -> Imported {
    let (x, mut slope) = (call.input(0)?, call.input(1)?);
    if call.opset < 7 && cx.ty(slope).ndim() == 1 {
        slope = super::normalizations::channels(cx, slope, x)?;
    }
    let below = cx.add(Mul, &[x, slope])?;
    Ok(vec![below_zero(cx, x, below)?])
}

/// `Elu`: α (eˣ - 1) below 0.
pub(super) fn elu(cx: &mut Importer, call: &Call) -> Imported {
    let (x, alpha) = (call.input(0)?, call.float("alpha", 1.0)?);
    cx.widely(x, |cx, x| {
        let below = grown_below_zero(cx, x, alpha, 1.0)?;
        below_zero(cx, x, below)
    })
}

/// `Selu`: γ x, and γ α (eˣ - 1) below 0.
pub(super) fn selu(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let alpha = call.float("alpha", 1.673_263_192_176_818_8)?;
    let gamma = call.float("gamma", 1.050_701_022_148_132_3)?;
    cx.widely(x, |cx, x| {
        let below = grown_below_zero(cx, x, alpha, 1.0)?;
        let bent = below_zero(cx, x, below)?;
        cx.scaled(bent, gamma)
    })
}

/// `Celu`: α (exp(x / α) - 1) below 0.
pub(super) fn celu(cx: &mut Importer, call: &Call) -> Imported {
    let (x, alpha) = (call.input(0)?, call.float("alpha", 1.0)?);
    cx.widely(x, |cx, x| {
        let below = grown_below_zero(cx, x, alpha, 1.0 / alpha)?;
        below_zero(cx, x, below)
    })
}

/// α (exp(s x) - 1) for x below 0. Elsewhere 0, so that what is not taken is finite, and so is its derivative.
fn grown_below_zero(cx: &mut Importer, x: Value, alpha: f64, slope: f64) -> Result<Value, Refusal> {
    let capped = cx.capped(x, 0.0)?;
    let inner = cx.scaled(capped, slope)?;
    let power = cx.exp(inner)?;
    let shifted = cx.offset(power, -1.0)?;
    cx.scaled(shifted, alpha)
}

/// `Swish`: x sigmoid(α x).
pub(super) fn swish(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let alpha = call.float("alpha", 1.0)?;
    if alpha == 1.0 {
        return cx.one(Silu, &[x]);
    }
    let inner = cx.scaled(x, alpha)?;
    let share = cx.add(Sigmoid, &[inner])?;
    Ok(vec![cx.times(x, share)?])
}

/// `SwiGLU`: A sigmoid(α A) B.
pub(super) fn swiglu(cx: &mut Importer, call: &Call) -> Imported {
    let (gate, x) = (call.input(0)?, call.input(1)?);
    let alpha = call.float("alpha", 1.0)?;
    if cx.ty(gate).shape != cx.ty(x).shape {
        return Err(Refusal::Invalid(format!("a gate {} for {}", cx.ty(gate), cx.ty(x))));
    }
    cx.widely(gate, |cx, gate| {
        let inner = cx.scaled(gate, alpha)?;
        let share = cx.add(Sigmoid, &[inner])?;
        let swish = cx.times(gate, share)?;
        let x = cx.cast(x, cx.ty(gate).dtype)?;
        cx.times(swish, x)
    })
}

/// `Mish`: x tanh(ln(1 + eˣ)).
pub(super) fn mish(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    cx.widely(x, |cx, x| {
        let soft = cx.add(Softplus, &[x])?;
        let share = cx.add(Tanh, &[soft])?;
        cx.times(x, share)
    })
}

/// `ThresholdedRelu`: x above α, else 0.
pub(super) fn thresholded_relu(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let above = cx.above(x, call.float("alpha", 1.0)?)?;
    Ok(vec![cx.chosen_or(above, x, 0.0)?])
}

/// `Shrink`: x + bias below -λ, x - bias above λ, else 0. Integers are compared as f64.
pub(super) fn shrink(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let dtype = cx.ty(x).dtype;
    let (bias, lambda) = (call.float("bias", 0.0)?, call.float("lambd", 0.5)?);
    let x = cx.cast(x, if dtype.is_float() { dtype } else { DType::F64 })?;
    let (low, high) = (cx.below(x, -lambda)?, cx.above(x, lambda)?);
    let (raised, lowered) = (cx.offset(x, bias)?, cx.offset(x, -bias)?);
    let outer = cx.chosen_or(high, lowered, 0.0)?;
    let y = cx.chosen(low, raised, outer)?;
    Ok(vec![cx.cast(y, dtype)?])
}

/// `Softsign`: x / (1 + |x|).
pub(super) fn softsign(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let size = cx.size(x)?;
    let divisor = cx.offset(size, 1.0)?;
    Ok(vec![cx.over(x, divisor)?])
}

fn below_zero(cx: &mut Importer, x: Value, below: Value) -> Result<Value, Refusal> {
    let negative = cx.below(x, 0.0)?;
    cx.chosen(negative, below, x)
}

/// `HardSigmoid`: α x + β between 0 and 1.
pub(super) fn hard_sigmoid(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let (alpha, beta) = (call.float("alpha", 0.2)?, call.float("beta", 0.5)?);
    Ok(vec![ramp(cx, x, alpha, beta)?])
}

/// `HardSwish`: x times x/6 + 1/2 between 0 and 1.
pub(super) fn hard_swish(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    cx.one(HardSwish, &[x])
}

fn ramp(cx: &mut Importer, x: Value, slope: f64, offset: f64) -> Result<Value, Refusal> {
    let (slope, offset) = (cx.number(x, slope)?, cx.number(x, offset)?);
    let (zero, one) = (cx.number(x, 0.0)?, cx.number(x, 1.0)?);
    let scaled = cx.add(Mul, &[x, slope])?;
    let line = cx.add(Add, &[scaled, offset])?;
    let capped = cx.add(Min, &[line, one])?;
    cx.add(Max, &[capped, zero])
}
