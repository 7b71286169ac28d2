//! Reorders axes: axis `i` of the result is axis `perm[i]` of the operand.

use margay_tensor::Tensor;

use crate::ops::attributes::attributes;
use crate::ops::lowering::strides_of;
use crate::ops::shape::{indices, pick};
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, View};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Reorders axes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Transpose {
    /// The axis of the operand that each axis of the result is.
    pub perm: Vec<usize>,
}

attributes!(Transpose { perm });

impl OpDef for Transpose {
    const NAME: &'static str = "transpose";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        let mut sorted = self.perm.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..x.ndim()) {
            let message = format!("perm {:?} does not reorder {} axes", self.perm, x.ndim());
            return Err(TypeError::attribute(message));
        }
        types::one(x.dtype, self.perm.iter().map(|&p| x.shape[p].clone()).collect())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = inputs[0];
        let shape: Vec<usize> = self.perm.iter().map(|&p| x.shape()[p]).collect();
        let strides = strides_of(x.shape());
        let at = |index: Vec<usize>| {
            Some(index.iter().zip(&self.perm).map(|(i, &p)| i * strides[p] as usize).sum())
        };
        Ok(vec![pick(x, &shape, indices(&shape).map(at), &[])?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let mut perm = vec![0; self.perm.len()];
        self.perm.iter().enumerate().for_each(|(to, &from)| perm[from] = to);
        let dy = cx.cotangent()?;
        Grad::all([cx.op(Transpose { perm }, &[dy])?])
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        Ok(Lowered::View(View::Permute(self.perm.clone())))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 0)
    }

    fn facts(&self) -> Facts {
        Facts::moving(self.perm.iter().copied().eq(0..self.perm.len()), &[], &[])
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.apart(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        vec![
            (Transpose { perm: vec![1, 0] }, Case::f32(&[&[3, 5]])),
            (Transpose { perm: vec![0, 2, 1, 3] }, Case::f32(&[&[2, 3, 4, 5]])),
            (Transpose { perm: vec![] }, Case::f32(&[&[]])),
        ]
    }
}
