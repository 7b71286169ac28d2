//! The same elements in row-major order under another shape.

use margay_tensor::{Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::shape::broadcast::{check_shape, known_extents};
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, View};
use crate::padding::{Padded, Padding};
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

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let (from, to) = (cx.type_of(0).shape.clone(), self.shape.clone());
        match in_step(&from, &to) {
            true => cx.apart(self.clone()),
            false => match cx.decided_axes(0).first() {
                Some(&axis) => Err(cx.refused(0, axis)),
                None => cx.none(self.clone()),
            },
        }
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

/// Whether elements at positions there were keep their places when extents that a run decides become larger: apart from
/// axes that stay, at most one such extent is on either side, with as many elements in front of it as on the other.
fn in_step(from: &[Dim], to: &[Dim]) -> bool {
    let same = from.iter().zip(to).take_while(|(a, b)| a == b).count();
    let (from, to) = (&from[same..], &to[same..]);
    let same = from.iter().rev().zip(to.iter().rev()).take_while(|(a, b)| a == b).count();
    let (from, to) = (&from[..from.len() - same], &to[..to.len() - same]);
    let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1usize), |n, d| &n * d);
    let decided = |dims: &[Dim]| dims.iter().filter(|d| d.is_decided()).count();
    if product(from) != product(to) || decided(from) > 1 || decided(to) > 1 {
        return false;
    }
    let before = |dims: &[Dim]| dims.iter().position(Dim::is_decided).map(|at| product(&dims[..at]));
    before(from) == before(to)
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
    fn elements_keep_their_places_behind_what_a_run_does_not_decide() {
        let stays = |from: &[&str], to: &[&str]| in_step(&shape(from), &shape(to));
        assert!(stays(&["n'", "4"], &["4*n'"]) && stays(&["n'"], &["1", "n'", "1"]));
        assert!(stays(&["n'", "2", "6"], &["n'", "12"]) && stays(&["2", "n'", "6"], &["2", "n'", "3", "2"]));
        assert!(
            !stays(&["2", "n'"], &["2*n'"]) && !stays(&["n'"], &["m'"]) && !stays(&["n'", "m'"], &["m'*n'"])
        );
    }

    #[test]
    fn negative_extents_are_refused() {
        let x = TensorType::known(DType::F32, &[6]);
        let error = Reshape { shape: shape(&["-2", "-3"]) }.infer(&[&x]).unwrap_err();
        assert_eq!(error.to_string(), "extent `-2` of the shape is negative");
    }
}
