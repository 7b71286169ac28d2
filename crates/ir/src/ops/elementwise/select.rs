//! `if test { x } else { y }`, element by element; operands broadcast.

use margay_tensor::{DType, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::{Numbers, broadcast_extents, broadcast_positions};
use crate::ops::facts::{Elementwise, Symbolic};
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Chooses between the second and the third operand by the first.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Select;

attributes!(Select {});

impl OpDef for Select {
    const NAME: &'static str = "select";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [test, x, y] = types::inputs(inputs, "3")?;
        types::expect_dtype(0, test, DType::Bool)?;
        types::expect_dtype(2, y, x.dtype)?;
        let shape = types::broadcast_shapes(&types::broadcast_shapes(&x.shape, &y.shape)?, &test.shape)?;
        types::one(x.dtype, shape)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let shape = broadcast_extents(inputs)?;
        let at = [0, 1, 2].map(|i| broadcast_positions(&shape, inputs[i].shape()));
        let test = inputs[0].bytes();
        let choose = |i: usize| test[at[0][i]] != 0;
        let (x, y) = (Numbers::of(inputs[1])?, Numbers::of(inputs[2])?);
        let all = 0..at[0].len();
        let out = match (x, y) {
            (Numbers::Int(x), Numbers::Int(y)) => {
                Numbers::Int(all.map(|i| if choose(i) { x[at[1][i]] } else { y[at[2][i]] }).collect())
            }
            (x, y) => {
                let (x, y) = (x.floats(), y.floats());
                Numbers::Float(all.map(|i| if choose(i) { x[at[1][i]] } else { y[at[2][i]] }).collect())
            }
        };
        Ok(vec![out.into_tensor(inputs[1].dtype(), &shape)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let (test, dz) = (cx.input(0), cx.cotangent()?);
        let [dx, dy] = cx.split(test, dz)?;
        Ok(Grad::Inputs(vec![None, Some(dx), Some(dy)]))
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        Ok(Lowered::elementwise(|n, x| n.select(x[0], x[1], x[2])))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 1)
    }

    fn facts(&self) -> Facts {
        let known = Elementwise { neutral: None, activation: None };
        Facts::elementwise(known, Some(Symbolic::Moves(&[0])), &[])
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        Some(self.clone().into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.apart(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let shapes: [[&[usize]; 3]; 2] = [[&[3, 5], &[3, 5], &[5]], [&[5], &[], &[2, 5]]];
        shapes
            .map(|[test, x, y]| {
                let mut case = Case::random(DType::Bool, 0.0, 2.0, &[test]);
                case.inputs.extend(Case::f32(&[x, y]).inputs);
                (Select, case)
            })
            .to_vec()
    }
}
