//! The functions that gates of recurrent cells are given.

use margay_tensor::Binding;

use crate::graph::AddError;
use crate::ops::{Abs, Attribute, Bits, Exp, Relu, Sigmoid, Softplus, Tanh};
use crate::{Builder, Value};

/// A function of the gates, with its parameters α and β.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Activation {
    /// α x + β.
    Affine(Bits, Bits),
    /// x, and α (eˣ - 1) below 0.
    Elu(Bits),
    /// min(max(α x + β, 0), 1).
    HardSigmoid(Bits, Bits),
    /// x, and α x below 0.
    LeakyRelu(Bits),
    /// max(x, 0).
    Relu,
    /// α tanh(β x).
    ScaledTanh(Bits, Bits),
    /// 1 / (1 + e⁻ˣ).
    Sigmoid,
    /// ln(1 + eˣ).
    Softplus,
    /// x / (1 + |x|).
    Softsign,
    /// tanh(x).
    Tanh,
    /// x above α, else 0.
    ThresholdedRelu(Bits),
}

impl Activation {
    /// The function of a name in ONNX, in any case. It takes its parameters from the lists where they have some left, else
    /// those that ONNX gives it.
    pub fn named(
        name: &str,
        alpha: &mut dyn Iterator<Item = f64>,
        beta: &mut dyn Iterator<Item = f64>,
    ) -> Option<Activation> {
        let mut a = |default: f64| Bits::new(alpha.next().unwrap_or(default));
        let mut b = |default: f64| Bits::new(beta.next().unwrap_or(default));
        Some(match name.to_ascii_lowercase().as_str() {
            "affine" => Activation::Affine(a(1.0), b(0.0)),
            "elu" => Activation::Elu(a(1.0)),
            "hardsigmoid" => Activation::HardSigmoid(a(0.2), b(0.5)),
            "leakyrelu" => Activation::LeakyRelu(a(0.01)),
            "relu" => Activation::Relu,
            "scaledtanh" => Activation::ScaledTanh(a(1.0), b(1.0)),
            "sigmoid" => Activation::Sigmoid,
            "softplus" => Activation::Softplus,
            "softsign" => Activation::Softsign,
            "tanh" => Activation::Tanh,
            "thresholdedrelu" => Activation::ThresholdedRelu(a(1.0)),
            _ => return None,
        })
    }

    /// Its name in ONNX.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Affine(..) => "Affine",
            Activation::Elu(_) => "Elu",
            Activation::HardSigmoid(..) => "HardSigmoid",
            Activation::LeakyRelu(_) => "LeakyRelu",
            Activation::Relu => "Relu",
            Activation::ScaledTanh(..) => "ScaledTanh",
            Activation::Sigmoid => "Sigmoid",
            Activation::Softplus => "Softplus",
            Activation::Softsign => "Softsign",
            Activation::Tanh => "Tanh",
            Activation::ThresholdedRelu(_) => "ThresholdedRelu",
        }
    }

    /// α, then β, as far as it has them.
    pub fn parameters(self) -> [Option<f64>; 2] {
        let (alpha, beta) = match self {
            Activation::Affine(a, b) | Activation::HardSigmoid(a, b) | Activation::ScaledTanh(a, b) => {
                (Some(a), Some(b))
            }
            Activation::Elu(a) | Activation::LeakyRelu(a) | Activation::ThresholdedRelu(a) => (Some(a), None),
            Activation::Relu
            | Activation::Sigmoid
            | Activation::Softplus
            | Activation::Softsign
            | Activation::Tanh => (None, None),
        };
        [alpha, beta].map(|p| p.map(Bits::get))
    }

    /// Of a number.
    pub(super) fn of(self, x: f64) -> f64 {
        match self {
            Activation::Affine(a, b) => a.get() * x + b.get(),
            Activation::Elu(a) if x < 0.0 => a.get() * libm::expm1(x),
            Activation::HardSigmoid(a, b) => (a.get() * x + b.get()).clamp(0.0, 1.0),
            Activation::LeakyRelu(a) if x < 0.0 => a.get() * x,
            Activation::Elu(_) | Activation::LeakyRelu(_) => x,
            Activation::Relu => x.max(0.0),
            Activation::ScaledTanh(a, b) => a.get() * libm::tanh(b.get() * x),
            Activation::Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
            Activation::Softplus => x.max(0.0) + libm::log1p(libm::exp(-x.abs())),
            Activation::Softsign => x / (1.0 + x.abs()),
            Activation::Tanh => libm::tanh(x),
            Activation::ThresholdedRelu(a) => {
                if x > a.get() {
                    x
                } else {
                    0.0
                }
            }
        }
    }

    /// As nodes.
    pub(super) fn apply(self, b: &mut Builder, x: Value) -> Result<Value, AddError> {
        match self {
            Activation::Affine(alpha, beta) => {
                let scaled = b.scale(x, alpha.get())?;
                b.offset(scaled, beta.get())
            }
            Activation::Elu(alpha) => {
                // Of negative x only, so that nothing overflows.
                let below = b.at_most(x, 0.0)?;
                let power = b.op(Exp, &[below])?;
                let less_one = b.offset(power, -1.0)?;
                let negative = b.scale(less_one, alpha.get())?;
                let positive = b.at_least(x, 0.0)?;
                b.add(positive, negative)
            }
            Activation::HardSigmoid(alpha, beta) => {
                let scaled = b.scale(x, alpha.get())?;
                let shifted = b.offset(scaled, beta.get())?;
                let low = b.at_least(shifted, 0.0)?;
                b.at_most(low, 1.0)
            }
            Activation::LeakyRelu(alpha) => {
                let positive = b.at_least(x, 0.0)?;
                let below = b.at_most(x, 0.0)?;
                let negative = b.scale(below, alpha.get())?;
                b.add(positive, negative)
            }
            Activation::Relu => b.op(Relu, &[x]),
            Activation::ScaledTanh(alpha, beta) => {
                let inner = b.scale(x, beta.get())?;
                let tanh = b.op(Tanh, &[inner])?;
                b.scale(tanh, alpha.get())
            }
            Activation::Sigmoid => b.op(Sigmoid, &[x]),
            Activation::Softplus => b.op(Softplus, &[x]),
            Activation::Softsign => {
                let size = b.op(Abs, &[x])?;
                let divisor = b.offset(size, 1.0)?;
                b.div(x, divisor)
            }
            Activation::Tanh => b.op(Tanh, &[x]),
            Activation::ThresholdedRelu(alpha) => {
                let threshold = b.number(x, alpha.get())?;
                let above = b.less(threshold, x)?;
                b.where_or(above, x, 0.0)
            }
        }
    }
}

impl Attribute for Activation {
    /// `Tanh`, `ScaledTanh(1.5, 0.5)`.
    fn write(&self) -> String {
        let parameters: Vec<String> =
            self.parameters().into_iter().flatten().map(|p| Bits::new(p).write()).collect();
        match parameters.is_empty() {
            true => self.name().to_owned(),
            false => format!("{}({})", self.name(), parameters.join(", ")),
        }
    }

    fn read(text: &str) -> Result<Self, String> {
        let unknown = || format!("`{text}` is no activation");
        let (name, inside) = match text.split_once('(') {
            Some((name, rest)) => (name, rest.strip_suffix(')').ok_or_else(unknown)?),
            None => (text, ""),
        };
        let numbers = inside.split(',').map(str::trim).filter(|part| !part.is_empty());
        let numbers: Vec<f64> =
            numbers.map(|part| Bits::read(part).map(Bits::get)).collect::<Result<_, _>>()?;
        let (mut alpha, mut beta) =
            (numbers.first().copied().into_iter(), numbers.get(1).copied().into_iter());
        let found = Activation::named(name, &mut alpha, &mut beta).ok_or_else(unknown)?;
        let expected = found.parameters().into_iter().flatten().count();
        match numbers.len() == expected {
            true => Ok(found),
            false => Err(format!("expected {expected} parameters in `{text}`, found {}", numbers.len())),
        }
    }

    fn bind(&self, _: &Binding) -> Self {
        *self
    }
}
