//! The functions that gates of recurrent cells are given.

use margay_ir::ops::{Abs, Exp, Relu, Sigmoid, Softplus, Tanh};
use margay_ir::{AddError, Builder, Value};

/// A function of the gates, with its parameters.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Activation {
    Affine(f64, f64),
    Elu(f64),
    HardSigmoid(f64, f64),
    LeakyRelu(f64),
    Relu,
    ScaledTanh(f64, f64),
    Sigmoid,
    Softplus,
    Softsign,
    Tanh,
    ThresholdedRelu(f64),
}

impl Activation {
    /// The function of a name, which takes its parameters from the lists where they have some left.
    pub(super) fn named(
        name: &str,
        alpha: &mut dyn Iterator<Item = f64>,
        beta: &mut dyn Iterator<Item = f64>,
    ) -> Option<Activation> {
        let mut a = |default: f64| alpha.next().unwrap_or(default);
        let mut b = |default: f64| beta.next().unwrap_or(default);
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

    pub(super) fn apply(self, b: &mut Builder, x: Value) -> Result<Value, AddError> {
        match self {
            Activation::Affine(alpha, beta) => {
                let scaled = b.scale(x, alpha)?;
                b.offset(scaled, beta)
            }
            Activation::Elu(alpha) => {
                // Of negative x only, so that nothing overflows.
                let below = b.at_most(x, 0.0)?;
                let power = b.op(Exp, &[below])?;
                let less_one = b.offset(power, -1.0)?;
                let negative = b.scale(less_one, alpha)?;
                let positive = b.at_least(x, 0.0)?;
                b.add(positive, negative)
            }
            Activation::HardSigmoid(alpha, beta) => {
                let scaled = b.scale(x, alpha)?;
                let shifted = b.offset(scaled, beta)?;
                let low = b.at_least(shifted, 0.0)?;
                b.at_most(low, 1.0)
            }
            Activation::LeakyRelu(alpha) => {
                let positive = b.at_least(x, 0.0)?;
                let below = b.at_most(x, 0.0)?;
                let negative = b.scale(below, alpha)?;
                b.add(positive, negative)
            }
            Activation::Relu => b.op(Relu, &[x]),
            Activation::ScaledTanh(alpha, beta) => {
                let inner = b.scale(x, beta)?;
                let tanh = b.op(Tanh, &[inner])?;
                b.scale(tanh, alpha)
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
                let threshold = b.number(x, alpha)?;
                let above = b.less(threshold, x)?;
                b.where_or(above, x, 0.0)
            }
        }
    }
}
