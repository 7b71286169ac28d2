//! Activation functions, alone or composed from simpler operators.

use margay_ir::Value;
use margay_ir::ops::{Add, Exp, Gelu, Less, Max, Min, Mul, Relu, Select, Sigmoid, Softplus, Sub};

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
    below_zero(cx, x, below)
}

/// `PRelu`: a slope below 0 that is an operand.
pub(super) fn prelu(cx: &mut Importer, call: &Call) -> Imported {
    let (x, slope) = (call.input(0)?, call.input(1)?);
    let below = cx.add(Mul, &[x, slope])?;
    below_zero(cx, x, below)
}

/// `Elu`: α (eˣ - 1) below 0.
pub(super) fn elu(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let alpha = cx.number(x, call.float("alpha", 1.0)?)?;
    let one = cx.number(x, 1.0)?;
    let power = cx.add(Exp, &[x])?;
    let shifted = cx.add(Sub, &[power, one])?;
    let below = cx.add(Mul, &[shifted, alpha])?;
    below_zero(cx, x, below)
}

fn below_zero(cx: &mut Importer, x: Value, below: Value) -> Imported {
    let zero = cx.number(x, 0.0)?;
    let negative = cx.add(Less, &[x, zero])?;
    Ok(vec![cx.add(Select, &[negative, below, x])?])
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
    let gate = ramp(cx, x, 1.0 / 6.0, 0.5)?;
    Ok(vec![cx.add(Mul, &[x, gate])?])
}

fn ramp(cx: &mut Importer, x: Value, slope: f64, offset: f64) -> Result<Value, Refusal> {
    let (slope, offset) = (cx.number(x, slope)?, cx.number(x, offset)?);
    let (zero, one) = (cx.number(x, 0.0)?, cx.number(x, 1.0)?);
    let scaled = cx.add(Mul, &[x, slope])?;
    let line = cx.add(Add, &[scaled, offset])?;
    let capped = cx.add(Min, &[line, one])?;
    cx.add(Max, &[capped, zero])
}
