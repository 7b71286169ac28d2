//! What kernels of products do to a result before they store it.

use std::fmt;

use super::CallArg;
use crate::text::{Field, fields};

/// A scalar function applied to every element of a result.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x Φ(x), with the error function.
    GeluErf,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// x / (1 + exp(-x)).
    Silu,
    /// tanh(x).
    Tanh,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
    /// min(max(x, 0), 6).
    Relu6,
    /// x min(max(x / 6 + 1/2, 0), 1).
    HardSwish,
}

/// What happens to a result before it is stored: `activation(result + bias) + residual`, or
/// `activation(result + bias + residual)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Epilogue {
    /// A vector is added: one element per column of a product, one per channel of a convolution.
    pub bias: bool,
    /// Applied after the bias.
    pub activation: Option<Activation>,
    /// A tensor with the layout of the result is added last.
    pub residual: bool,
    /// The residual is added before the activation.
    pub residual_first: bool,
}

impl Field for Activation {
    fn write(&self) -> String {
        self.name().into()
    }
    fn read(text: &str) -> Result<Self, String> {
        let found = Activation::ALL.into_iter().find(|a| a.name() == text);
        found.ok_or_else(|| format!("`{text}` is not an activation"))
    }
}

fields!(Epilogue { bias = false, activation = None, residual = false, residual_first = false });

impl Epilogue {
    /// The arguments of an epilogue: a bias of so many elements, and a residual that lies as the result does.
    pub(super) fn args(&self, bias: usize, result: &CallArg) -> Vec<CallArg> {
        let bias = self.bias.then(|| CallArg::read(result.dtype, &[(bias, 1)]));
        let residual = self.residual.then(|| CallArg::read(result.dtype, &result.axes));
        bias.into_iter().chain(residual).collect()
    }
}

impl Activation {
    const ALL: [Activation; 8] = [
        Activation::Relu,
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Relu6,
        Activation::HardSwish,
    ];

    /// The name used in text forms.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::GeluErf => "gelu_erf",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Silu => "silu",
            Activation::Tanh => "tanh",
            Activation::Sigmoid => "sigmoid",
            Activation::Relu6 => "relu6",
            Activation::HardSwish => "hard_swish",
        }
    }

    /// Whether it takes a few multiplications or comparisons, no more.
    pub fn is_cheap(self) -> bool {
        match self {
            Activation::Relu | Activation::Relu6 | Activation::HardSwish => true,
            Activation::GeluErf
            | Activation::GeluTanh
            | Activation::Silu
            | Activation::Tanh
            | Activation::Sigmoid => false,
        }
    }

    /// Whether it is x for large x and 0 for small ones, so that about half of what is centred is lost.
    pub fn rectifies(self) -> bool {
        match self {
            Activation::Relu
            | Activation::GeluErf
            | Activation::GeluTanh
            | Activation::Silu
            | Activation::Relu6
            | Activation::HardSwish => true,
            Activation::Tanh | Activation::Sigmoid => false,
        }
    }
}

impl fmt::Display for Epilogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bias {
            f.write_str(" +bias")?;
        }
        if self.residual && self.residual_first {
            f.write_str(" +residual")?;
        }
        if let Some(a) = self.activation {
            write!(f, " {}", a.name())?;
        }
        if self.residual && !self.residual_first {
            f.write_str(" +residual")?;
        }
        Ok(())
    }
}
