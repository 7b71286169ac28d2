//! The position that an index means along an axis of a given extent: negative indices count from the end.
//!
//! An index outside the axis is an error of the reference interpreter and a fault of a compiled program, which then
//! goes on with the nearest position.

use margay_tensor::{DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::facts::Elementwise;
use crate::ops::shape::{checked_position, known_extents};
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Indices (i64 or i32) as positions (i64), each checked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    /// The extent of the axis.
    pub extent: Dim,
}

attributes!(Position { extent });

impl OpDef for Position {
    const NAME: &'static str = "position";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [at] = types::inputs(inputs, "1")?;
        types::expect(0, at, matches!(at.dtype, DType::I64 | DType::I32), "i64 or i32")?;
        types::one(DType::I64, at.shape.clone())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let extent = known_extents(std::slice::from_ref(&self.extent))?[0];
        let position = |index: i64| {
            let wrapped = if index < 0 { index.saturating_add(extent as i64) } else { index };
            let inside = (0..extent as i64).contains(&wrapped);
            inside.then_some(i128::from(wrapped)).ok_or(EvalError::Index { index, extent })
        };
        let positions = Numbers::of(inputs[0])?.ints().into_iter().map(position);
        let positions = Numbers::Int(positions.collect::<Result<_, _>>()?);
        Ok(vec![positions.into_tensor(DType::I64, inputs[0].shape())?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::zero(1)
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let known = known_extents(std::slice::from_ref(&self.extent));
        let extent = known.map_err(|e| NotLowered(e.to_string()))?[0];
        if extent == 0 && io.output_elements() > 0 {
            return Err(NotLowered("a position in an axis of extent 0".into()));
        }
        let range = io.inputs[0].range;
        Ok(Lowered::elementwise(move |n, x| checked_position(n, x[0], extent, range)))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 6)
    }

    fn facts(&self) -> Facts {
        Facts::elementwise(Elementwise { neutral: None, activation: None }, None, &[])
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        Some(self.clone().into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let at = cx.indices(0, &self.extent)?;
        cx.replace(0, at);
        cx.apart(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = |dtype, extent: usize, shape: &[usize]| {
            let bound = extent as f64;
            (Position { extent: Dim::from(extent) }, Case::random(dtype, -bound, bound, &[shape]))
        };
        vec![case(DType::I64, 5, &[3, 7]), case(DType::I32, 9, &[4]), case(DType::I64, 1, &[])]
    }
}
