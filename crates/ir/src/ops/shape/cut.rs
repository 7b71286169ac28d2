//! The first positions along an axis, as many as the second operand says when it runs. The extent of the result is a
//! symbol, which this operator gives its value: everything that mentions the symbol mentions that number.
//!
//! A number below 0 or beyond the extent of the operand is an error of the reference interpreter; a compiled program
//! takes the nearest that is not.

use margay_tensor::{DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::shape::{indices, pick};
use crate::ops::{
    Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, Range, ScatterAdd, View, strides_of,
};
use crate::padding::{Padded, Padding, PaddingError};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Takes the first positions of the first operand (any type) along an axis, as many as the second says (i64).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cut {
    /// The axis.
    pub axis: usize,
    /// The extent of the result: a symbol that ends with `'`, or its value.
    pub extent: Dim,
}

attributes!(Cut { axis, extent });

impl OpDef for Cut {
    const NAME: &'static str = "cut";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x, count] = types::inputs(inputs, "2")?;
        types::expect_single(1, count, DType::I64)?;
        types::check_axis(self.axis, x.ndim())?;
        let (extent, most) = (self.extent.as_const(), x.shape[self.axis].as_const());
        let decided = self.extent.as_symbol().is_some_and(|s| margay_tensor::is_decided(&s));
        if !decided && extent.is_none_or(|v| v < 0 || most.is_some_and(|most| v > most)) {
            let (extent, axis) = (&self.extent, &x.shape[self.axis]);
            return Err(TypeError::attribute(format!(
                "extent `{extent}` of an axis of {axis}, expected a symbol of a run, or less"
            )));
        }
        let mut shape = x.shape.clone();
        shape[self.axis] = self.extent.clone();
        types::one(x.dtype, shape)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, index) = (inputs[0], Numbers::of(inputs[1])?.ints()[0]);
        let extent = x.shape()[self.axis];
        let count = usize::try_from(index).ok().filter(|n| *n <= extent);
        let count = count.ok_or(EvalError::Index { index, extent })?;
        let mut shape = x.shape().to_vec();
        shape[self.axis] = count;
        let strides = strides_of(x.shape());
        let at = |index: Vec<usize>| {
            Some(index.iter().zip(&strides).map(|(&i, &s)| i * s as usize).sum::<usize>())
        };
        Ok(vec![pick(x, &shape, indices(&shape).map(at), &[])?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        // Put back among zeros.
        let (dy, extent) = (cx.cotangent()?, cx.ty(cx.input(0)).shape[self.axis].clone());
        let places = cx.op(Range { start: Dim::default(), step: 1, count: self.extent.clone() }, &[])?;
        let back = ScatterAdd { axis: self.axis, extent, indices: 1 };
        Ok(Grad::Inputs(vec![Some(cx.op(back, &[dy, places])?), None]))
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        // The number is known to be the extent.
        let ndim = io.inputs[0].shape.len();
        Ok(Lowered::View(View::Slice { starts: vec![0; ndim], steps: vec![1; ndim] }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 0, bytes: 2 * io.outputs[0].bytes() as u64 }
    }

    fn facts(&self) -> Facts {
        Facts::plain(true)
    }

    fn permuted(&self, perm: &[usize]) -> Option<Op> {
        let axis = perm.iter().position(|&p| p == self.axis)?;
        Some(Cut { axis, extent: self.extent.clone() }.into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let Some(symbol) = self.extent.as_symbol() else { return cx.apart(self.clone()) };
        let (x, count) = (cx.input(0), cx.input(1));
        let bound = cx.builder().ty(x).shape[self.axis].as_const();
        let unknown = || PaddingError::Refused(format!("nothing bounds `{symbol}`"));
        cx.decide(&symbol, bound.ok_or_else(unknown)?, count)?;
        Ok(vec![x])
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = |axis, extent: usize, shape: &[usize]| {
            let count = crate::ops::CaseInput::Values(Tensor::scalar(extent as i64));
            (Cut { axis, extent: Dim::from(extent) }, Case::f32(&[shape]).with(count))
        };
        vec![case(0, 3, &[5, 4]), case(1, 2, &[3, 4]), case(0, 0, &[4])]
    }
}
