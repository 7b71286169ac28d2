//! Extents as data: an i64 tensor of one axis whose elements are dimensions.
//!
//! Stands for what `Shape` and the arithmetic on it leave over once the importer has turned shapes into attributes. It is
//! folded into a constant when symbols get one value each; a program for a range writes the numbers when it runs.

use margay_loops::{Index, Literal};
use margay_tensor::{Binding, DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::{Case, Concat, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, Reshape};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Extents as data, i64\[values\].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Dims {
    /// The elements.
    pub values: Vec<Dim>,
}

attributes!(Dims { values });

impl OpDef for Dims {
    const NAME: &'static str = "dims";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [] = types::inputs(inputs, "none")?;
        types::one(DType::I64, vec![Dim::from(self.values.len())])
    }

    fn eval(&self, _: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let none = Binding::new();
        let values = self.values.iter().map(|d| d.eval(&none)).collect::<Result<Vec<i64>, _>>()?;
        Ok(vec![Tensor::from_slice(&[values.len()], &values)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::zero(0)
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        let known = |value: &Dim| {
            value.as_const().ok_or_else(|| NotLowered(format!("the extent `{value}` is not known")))
        };
        let values = self.values.iter().map(known).collect::<Result<Vec<i64>, _>>()?;
        Ok(Lowered::nest(move |n| {
            for (i, value) in values.iter().enumerate() {
                let value = n.literal(Literal::Int(DType::I64, *value));
                n.store(0, &[Index::constant(i as i64)], value);
            }
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 0)
    }

    fn facts(&self) -> Facts {
        Facts::leaf()
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let mut parts = Vec::new();
        for value in &self.values {
            let count = cx.count(value)?;
            parts.push(cx.op(Reshape { shape: vec![Dim::from(1usize)] }, &[count])?);
        }
        Ok(vec![cx.op(Concat { axis: 0 }, &parts)?])
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = |values: &[i64]| {
            (Dims { values: values.iter().map(|v| Dim::from(*v)).collect() }, Case { inputs: vec![] })
        };
        vec![case(&[7]), case(&[]), case(&[2, 0, -3, 1 << 40])]
    }
}
