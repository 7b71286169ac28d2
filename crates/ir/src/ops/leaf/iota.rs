//! The integers 0, 1, …, `extent` - 1 in order, as i64.
//!
//! Positions along an axis whose extent is open: what masks, ranges and looked-up places are computed from.

use margay_tensor::{Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::shape::known_extents;
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// The positions along an axis, i64\[extent\].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Iota {
    /// How many.
    pub extent: Dim,
}

attributes!(Iota { extent });

impl OpDef for Iota {
    const NAME: &'static str = "iota";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [] = types::inputs(inputs, "none")?;
        if self.extent.as_const().is_some_and(|v| v < 0) {
            return Err(TypeError::attribute(format!("extent `{}` is negative", self.extent)));
        }
        types::one(margay_tensor::DType::I64, vec![self.extent.clone()])
    }

    fn eval(&self, _: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let extent = known_extents(std::slice::from_ref(&self.extent))?[0];
        let values: Vec<i64> = (0..extent as i64).collect();
        Ok(vec![Tensor::from_slice(&[extent], &values)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::zero(0)
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let extent = io.outputs[0].shape[0];
        Ok(Lowered::nest(move |n| {
            n.for_each(&[extent], |n, i| {
                let value = n.index_value(&i[0]);
                n.store(0, i, value);
            });
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

    fn cases() -> Vec<(Self, Case)> {
        [1usize, 7].map(|n| (Iota { extent: Dim::from(n) }, Case { inputs: Vec::new() })).to_vec()
    }
}
