//! Conversion between element types: floats to integers truncate and saturate, NaN gives 0; numbers to truth
//! values by `!= 0`; integers wrap.

use margay_tensor::{DType, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::{Case, Cost, EvalError, Io, Lowered, NotLowered, OpDef};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{TensorType, TypeError, Types, types};

/// Conversion to another element type.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cast {
    /// Type of the result.
    pub to: DType,
}

attributes!(Cast { to });

impl OpDef for Cast {
    const NAME: &'static str = "cast";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        types::one(self.to, x.shape.clone())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Ok(vec![Numbers::of(inputs[0])?.into_tensor(self.to, inputs[0].shape())?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let from = cx.ty(cx.input(0)).dtype;
        if !from.is_float() || !self.to.is_float() {
            return Grad::zero(1);
        }
        let dy = cx.cotangent()?;
        Grad::all([cx.op(Cast { to: from }, &[dy])?])
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        let to = self.to;
        Ok(Lowered::elementwise(move |n, x| n.cast(x[0], to)))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 1)
    }

    fn cases() -> Vec<(Self, Case)> {
        [
            (DType::F32, DType::I64),
            (DType::I64, DType::F32),
            (DType::Bool, DType::F32),
            (DType::I32, DType::Bool),
        ]
        .map(|(from, to)| (Cast { to }, Case::random(from, -3.0, 3.0, &[&[3, 7]])))
        .to_vec()
    }
}
