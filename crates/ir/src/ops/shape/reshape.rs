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
    /// The shape of the result. The product of its extents must be the operand's in normal form.
    pub shape: Vec<Dim>,
}

attributes!(Reshape { shape });

impl OpDef for Reshape {
    const NAME: &'static str = "reshape";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        check_shape(&self.shape)?;
        let result = TensorType::new(x.dtype, self.shape.clone());
        types::same_extent("number of elements", &x.elements(), &result.elements())?;
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
    fn symbolic_counts_must_agree_in_normal_form() {
        let x = TensorType::new(DType::F32, shape(&["B", "S", "384"]));
        assert!(Reshape { shape: shape(&["B*S", "12", "32"]) }.infer(&[&x]).is_ok());
        let error = Reshape { shape: shape(&["B", "384"]) }.infer(&[&x]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "number of elements: extents `384*B*S` and `384*B` differ or are not known to be equal"
        );
    }

    #[test]
    fn negative_extents_are_refused() {
        let x = TensorType::known(DType::F32, &[6]);
        let error = Reshape { shape: shape(&["-2", "-3"]) }.infer(&[&x]).unwrap_err();
        assert_eq!(error.to_string(), "extent `-2` of the shape is negative");
    }
}
