//! What kernels of products do to a result before they store it.

use std::fmt;

use margay_tensor::DType;

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

/// What sums of integers are multiplied with when they become f32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scale {
    /// One number for all.
    One,
    /// One for each column of a product.
    Columns,
}

/// What happens to a result before it is stored: `activation(result + bias) + residual`, or
/// `activation(result + bias + residual)`. Of a product of integers the result is `(sum + offset) scale`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Epilogue {
    /// A vector of i32 is added to sums of integers: one element per column.
    pub offset: bool,
    /// What sums of integers are multiplied with once they are f32; nothing where the result is i32.
    pub scale: Option<Scale>,
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

impl Field for Scale {
    fn write(&self) -> String {
        self.name().into()
    }
    fn read(text: &str) -> Result<Self, String> {
        let found = [Scale::One, Scale::Columns].into_iter().find(|s| s.name() == text);
        found.ok_or_else(|| format!("`{text}` is no scale"))
    }
}

impl Scale {
    /// The name used in text forms.
    pub fn name(self) -> &'static str {
        match self {
            Scale::One => "scale",
            Scale::Columns => "scales",
        }
    }

    /// Elements for a result of so many columns.
    pub fn elements(self, columns: usize) -> usize {
        match self {
            Scale::One => 1,
            Scale::Columns => columns,
        }
    }
}

fields!(Epilogue { offset = false, scale = None, bias = false, activation = None, residual = false, residual_first = false });

impl Epilogue {
    /// The arguments of an epilogue of so many columns: offset, scale and bias, and a residual that lies as the result
    /// does.
    pub(super) fn args(&self, columns: usize, result: &CallArg) -> Vec<CallArg> {
        let offset = self.offset.then(|| CallArg::read(DType::I32, &[(columns, 1)]));
        let scale = self.scale.map(|scale| CallArg::read(DType::F32, &[(scale.elements(columns), 1)]));
        let bias = self.bias.then(|| CallArg::read(result.dtype, &[(columns, 1)]));
        let residual = self.residual.then(|| CallArg::read(result.dtype, &result.axes));
        offset.into_iter().chain(scale).chain(bias).chain(residual).collect()
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
        if self.offset {
            f.write_str(" +offset")?;
        }
        if let Some(scale) = self.scale {
            write!(f, " {}", scale.name())?;
        }
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
