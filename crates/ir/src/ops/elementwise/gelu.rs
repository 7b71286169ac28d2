//! The Gaussian error linear unit (Hendrycks and Gimpel, arXiv 1606.08415): x Φ(x), or its tanh approximation
//! x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))).

use margay_loops::{Activation, Unary};
use margay_tensor::Tensor;

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::facts::Elementwise;
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::ops::{Erf, Exp, Tanh};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// x Φ(x).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Gelu {
    /// Use the tanh approximation.
    pub tanh: bool,
}

attributes!(Gelu { tanh = false });

const CUBIC: f64 = 0.044715;

impl OpDef for Gelu {
    const NAME: &'static str = "gelu";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        types::expect_float(0, x)?;
        types::one(x.dtype, x.shape.clone())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let gelu = |x: f64| match self.tanh {
            true => {
                let inner = std::f64::consts::FRAC_2_PI.sqrt() * (x + CUBIC * x * x * x);
                0.5 * x * (1.0 + libm::tanh(inner))
            }
            false => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        };
        let out = Numbers::of(inputs[0])?.floats().into_iter().map(gelu).collect();
        Ok(vec![Numbers::Float(out).into_tensor(inputs[0].dtype(), inputs[0].shape())?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let (x, dy) = (cx.input(0), cx.cotangent()?);
        let x2 = cx.mul(x, x)?;
        let derivative = if self.tanh {
            // t = tanh u, u = √(2/π) (x + c x³): (1 + t) / 2 + (1 - t²) x u'/2, where u' = √(2/π) (1 + 3 c x²).
            let root = std::f64::consts::FRAC_2_PI.sqrt();
            let cubic = cx.scale(x2, CUBIC)?;
            let factor = cx.offset(cubic, 1.0)?;
            let scaled = cx.scale(x, root)?;
            let u = cx.mul(scaled, factor)?;
            let t = cx.op(Tanh, &[u])?;
            let half = cx.scale(t, 0.5)?;
            let first = cx.offset(half, 0.5)?;
            let t2 = cx.mul(t, t)?;
            let one = cx.number(x, 1.0)?;
            let one_minus_t2 = cx.sub(one, t2)?;
            let half_du = cx.scale(x2, 1.5 * root * CUBIC)?;
            let half_du = cx.offset(half_du, 0.5 * root)?;
            let x_half_du = cx.mul(x, half_du)?;
            let second = cx.product(one_minus_t2, x_half_du)?;
            cx.add(first, second)?
        } else {
            // Φ(x) + x φ(x), where φ(x) = exp(-x²/2) / √(2π).
            let inner = cx.scale(x, std::f64::consts::FRAC_1_SQRT_2)?;
            let erf = cx.op(Erf, &[inner])?;
            let half = cx.scale(erf, 0.5)?;
            let cdf = cx.offset(half, 0.5)?;
            let exponent = cx.scale(x2, -0.5)?;
            let exp = cx.op(Exp, &[exponent])?;
            let scaled =
                cx.scale(x, 0.5 * std::f64::consts::FRAC_1_SQRT_2 * std::f64::consts::FRAC_2_SQRT_PI)?;
            let x_pdf = cx.product(exp, scaled)?;
            cx.add(cdf, x_pdf)?
        };
        Grad::all([cx.product(dy, derivative)?])
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        let tanh = self.tanh;
        Ok(Lowered::elementwise(move |n, x| {
            let x = x[0];
            let f = if tanh {
                let (square, cubic) = (n.mul(x, x), n.number(x, CUBIC));
                let (scaled, one) = (n.mul(square, cubic), n.number(x, 1.0));
                let factor = n.add(scaled, one);
                let root = n.number(x, std::f64::consts::FRAC_2_PI.sqrt());
                let (inner, root) = (n.mul(x, factor), root);
                let inner = n.mul(inner, root);
                n.unary(Unary::Tanh, inner)
            } else {
                let scale = n.number(x, std::f64::consts::FRAC_1_SQRT_2);
                let inner = n.mul(x, scale);
                n.unary(Unary::Erf, inner)
            };
            let half = n.number(x, 0.5);
            let half = n.mul(x, half);
            let product = n.mul(half, f);
            n.add(half, product)
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 14)
    }

    fn facts(&self) -> Facts {
        let activation = Some(if self.tanh { Activation::GeluTanh } else { Activation::GeluErf });
        Facts::elementwise(Elementwise { neutral: None, activation }, None, &[])
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        Some(self.clone().into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.apart(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = || Case::random(margay_tensor::DType::F32, -5.0, 5.0, &[&[3, 21]]);
        vec![(Gelu { tanh: false }, case()), (Gelu { tanh: true }, case())]
    }
}
