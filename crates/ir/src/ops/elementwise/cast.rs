//! Conversion between element types: floats to integers truncate and saturate, NaN gives 0; numbers to truth
//! values by `!= 0`; integers wrap.

use margay_tensor::{DType, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::facts::{Elementwise, Symbolic, truth};
use crate::ops::{Case, CaseInput, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

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

    fn facts(&self) -> Facts {
        let symbolic = match self.to {
            DType::Bool => Some(Symbolic::Each(truth)),
            DType::I64 | DType::I32 => Some(Symbolic::Each(|x| Some(x.clone()))),
            _ => None,
        };
        let known = Elementwise { neutral: None, activation: None };
        Facts { identity: true, ..Facts::elementwise(known, symbolic, &[]) }
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        Some(self.clone().into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.apart(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let small = |to: DType| {
            let from = if to == DType::F32 { DType::I64 } else { DType::F32 };
            (Cast { to }, Case::random(from, -3.0, 3.0, &[&[3, 7]]))
        };
        let large = |to: DType| {
            let values = [u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 40, 7];
            let values = Tensor::from_slice(&[5], &values).expect("five values in five places");
            (Cast { to }, Case { inputs: vec![CaseInput::Values(values)] })
        };
        let wide = [DType::F32, DType::F64, DType::I64, DType::I32, DType::Bool];
        // Halves are not compiled.
        let whole = DType::ALL.into_iter().filter(|to| !matches!(to, DType::F16 | DType::BF16));
        whole.map(small).chain(wide.map(large)).collect()
    }
}
