//! The Gaussian error linear unit (Hendrycks and Gimpel, arXiv 1606.08415): x Φ(x), or its tanh approximation
//! x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))).

use margay_loops::Unary;
use margay_tensor::Tensor;

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::{Case, Cost, EvalError, Io, Lowered, NotLowered, OpDef};
use crate::{TensorType, TypeError, Types, types};

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

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        let tanh = self.tanh;
        Ok(Lowered::elementwise(move |n, x| {
            let x = x[0];
            let bent = if tanh {
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
            let rest = n.mul(half, bent);
            n.add(half, rest)
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 14)
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = || Case::random(margay_tensor::DType::F32, -5.0, 5.0, &[&[3, 21]]);
        vec![(Gelu { tanh: false }, case()), (Gelu { tanh: true }, case())]
    }
}
