//! The same elements in row-major order under another shape.

use margay_tensor::{Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::shape::broadcast::{check_shape, known_extents};
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, View};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Gives the operand another shape with as many elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Reshape {
    /// The shape of the result. Its elements are as many as the operand's; where symbols hide that, it is assumed, and
    /// checked when they are bound.
    pub shape: Vec<Dim>,
}

attributes!(Reshape { shape });

impl OpDef for Reshape {
    const NAME: &'static str = "reshape";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        check_shape(&self.shape)?;
        let result = TensorType::new(x.dtype, self.shape.clone());
        let (given, wanted) = (x.elements(), result.elements());
        let more = |a: &Dim, b: &Dim| (a - b).is_positive();
        if more(&given, &wanted) || more(&wanted, &given) {
            types::same_extent("number of elements", &given, &wanted)?;
        }
        types::one(x.dtype, result.shape)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Ok(vec![inputs[0].reshaped(&known_extents(&self.shape)?)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let dy = cx.cotangent()?;
        let x = cx.input(0);
        Grad::all([cx.reshape_like(dy, x)?])
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        Ok(Lowered::View(View::Reshape))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 0)
    }

    fn facts(&self) -> Facts {
        Facts::moving(true, &[], &[])
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn cases() -> Vec<(Self, Case)> {
        let to = |shape: &[usize]| Reshape { shape: margay_tensor::shape_of(shape) };
        vec![
            (to(&[3, 2, 5]), Case::f32(&[&[6, 5]])),
            (to(&[1]), Case::f32(&[&[]])),
            (to(&[28]), Case::f32(&[&[4, 1, 7]])),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_tensor::DType;

    fn shape(text: &[&str]) -> Vec<Dim> {
        text.iter().map(|t| Dim::parse(t).unwrap()).collect()
    }

    #[test]
    fn counts_must_not_be_known_to_differ() {
        let x = TensorType::new(DType::F32, shape(&["B", "S", "384"]));
        let to = |text: &[&str]| Reshape { shape: shape(text) }.infer(&[&x]).map_err(|e| e.to_string());
        assert!(to(&["B*S", "12", "32"]).is_ok());
        assert!(to(&["T", "384"]).is_ok(), "checked with the values of B, S and T");
        assert_eq!(
            to(&["B*S", "12", "33"]).unwrap_err(),
            "number of elements: extents `384*B*S` and `396*B*S` differ or are not known to be equal"
        );
    }

    #[test]
    fn negative_extents_are_refused() {
        let x = TensorType::known(DType::F32, &[6]);
        let error = Reshape { shape: shape(&["-2", "-3"]) }.infer(&[&x]).unwrap_err();
        assert_eq!(error.to_string(), "extent `-2` of the shape is negative");
    }
}
