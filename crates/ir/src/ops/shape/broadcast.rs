//! Repeats the operand along axes of extent 1 and along new axes in front, up to `shape` (numpy's rules).

use margay_tensor::{Binding, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::broadcast_positions;
use crate::ops::shape::pick;
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, View};
use crate::padding::{Padded, Padding};
use crate::types::ShapeText;
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Repeats the operand up to a shape.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Broadcast {
    /// The shape of the result; the operand's must broadcast to exactly this one.
    pub shape: Vec<Dim>,
}

attributes!(Broadcast { shape });

impl OpDef for Broadcast {
    const NAME: &'static str = "broadcast";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        check_shape(&self.shape)?;
        match types::broadcast_shapes(&x.shape, &self.shape) {
            Ok(shape) if shape == self.shape => types::one(x.dtype, shape),
            _ => {
                let (from, to) = (ShapeText(&x.shape), ShapeText(&self.shape));
                Err(TypeError::attribute(format!("shape `{from}` does not broadcast to `{to}`")))
            }
        }
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let shape = known_extents(&self.shape)?;
        let positions = broadcast_positions(&shape, inputs[0].shape());
        Ok(vec![pick(inputs[0], &shape, positions.into_iter().map(Some), &[])?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        // The sum over repeated axes is taken by who collects cotangents.
        Grad::all([cx.cotangent()?])
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        Ok(Lowered::View(View::Broadcast))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 0)
    }

    fn facts(&self) -> Facts {
        Facts::moving(true, &[], &[])
    }

    fn permuted(&self, perm: &[usize]) -> Option<Op> {
        // Axes that the operand lacks cannot be moved.
        (perm.len() == self.shape.len())
            .then(|| Broadcast { shape: perm.iter().map(|&p| self.shape[p].clone()).collect() }.into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.apart(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let to = |shape: &[usize]| Broadcast { shape: margay_tensor::shape_of(shape) };
        vec![
            (to(&[2, 3, 5]), Case::f32(&[&[3, 1]])),
            (to(&[4, 7]), Case::f32(&[&[]])),
            (to(&[3, 5]), Case::f32(&[&[3, 5]])),
        ]
    }
}

/// Checks that no extent of a shape attribute is known to be negative.
pub(super) fn check_shape(shape: &[Dim]) -> Result<(), TypeError> {
    match shape.iter().find(|d| d.as_const().is_some_and(|v| v < 0)) {
        None => Ok(()),
        Some(d) => Err(TypeError::attribute(format!("extent `{d}` of the shape is negative"))),
    }
}

/// The extents of a checked shape whose symbols have been replaced.
pub(crate) fn known_extents(shape: &[Dim]) -> Result<Vec<usize>, EvalError> {
    let none = Binding::new();
    shape.iter().map(|d| Ok(usize::try_from(d.eval(&none)?).unwrap_or(0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_tensor::DType;

    #[test]
    fn the_result_is_exactly_the_stated_shape() {
        let b = Dim::symbol("B");
        let to_one = Broadcast { shape: vec![Dim::from(1usize), Dim::from(3usize)] };
        let x = TensorType::new(DType::F32, vec![b.clone(), Dim::from(3usize)]);
        let message = to_one.infer(&[&x]).unwrap_err().to_string();
        assert_eq!(message, "shape `[B, 3]` does not broadcast to `[1, 3]`");
        let to_batch = Broadcast { shape: vec![b, Dim::from(3usize)] };
        assert_eq!(to_batch.infer(&[&TensorType::known(DType::F32, &[3])]).unwrap()[0], x);
    }
}
