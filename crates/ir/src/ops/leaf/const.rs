//! A tensor known at compile time.
//!
//! Its text form is written and read by the text module, which resolves the payload.

use margay_tensor::{Binding, Tensor};

use crate::ops::{Attributes, Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, Payload, TensorType, TypeError, Types, types};

/// A constant: a weight, a table, a folded result.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Const {
    /// The contents.
    pub payload: Payload,
}

impl Attributes for Const {
    fn write(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn read(_: &[(&str, &str)]) -> Result<Self, String> {
        Err("a constant needs contents".into())
    }

    fn bind(&self, _: &Binding) -> Self {
        self.clone()
    }
}

impl OpDef for Const {
    const NAME: &'static str = "const";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [] = types::inputs(inputs, "none")?;
        Ok([self.payload.ty()].into_iter().collect())
    }

    fn eval(&self, _: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Ok(vec![self.payload.tensor().clone()])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::zero(0)
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        Ok(Lowered::Leaf)
    }

    fn cost(&self, _: &Io) -> Cost {
        Cost::default()
    }

    fn facts(&self) -> Facts {
        Facts::leaf()
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.apart(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let payload = Payload::new(Tensor::scalar(0.5f32));
        vec![(Const { payload }, Case { inputs: vec![] })]
    }
}
