//! Looks up parts of the first operand by the second: `result[o…, j…, i…] = data[o…, indices[j…], i…]`, where
//! `o…` are the axes before `axis` and `i…` those after it.
//!
//! Negative indices count from the end. An index outside the axis is an error of the reference interpreter and a
//! fault of a compiled program, which then reads the nearest element instead.

use margay_loops::{Binary, Index, Literal, Nest, Reg};
use margay_tensor::{DType, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::facts::Parameter;
use crate::ops::{Case, CaseInput, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, ScatterAdd};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Looks up parts of the first operand (any type) by the second (i64 or i32).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Gather {
    /// The axis of the first operand that is looked up.
    pub axis: usize,
}

attributes!(Gather { axis });

impl OpDef for Gather {
    const NAME: &'static str = "gather";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [data, at] = types::inputs(inputs, "2")?;
        types::expect(1, at, matches!(at.dtype, DType::I64 | DType::I32), "i64 or i32")?;
        types::check_axis(self.axis, data.ndim())?;
        let (outer, inner) = (&data.shape[..self.axis], &data.shape[self.axis + 1..]);
        types::one(data.dtype, [outer, &at.shape, inner].concat())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (data, at) = (inputs[0], inputs[1]);
        let (outer, rest) = data.shape().split_at(self.axis);
        let (extent, inner) = (rest[0], &rest[1..]);
        let position = |&index: &i64| {
            let wrapped = if index < 0 { index + extent as i64 } else { index };
            let found = usize::try_from(wrapped).ok().filter(|&p| p < extent);
            found.ok_or(EvalError::Index { index, extent })
        };
        let positions: Vec<usize> = Numbers::of(at)?.ints().iter().map(position).collect::<Result<_, _>>()?;
        let size = inner.iter().product::<usize>() * data.dtype().bytes();
        let mut bytes = Vec::new();
        for row in 0..outer.iter().product() {
            for p in &positions {
                let start = (row * extent + p) * size;
                bytes.extend_from_slice(&data.bytes()[start..start + size]);
            }
        }
        let shape = [outer, at.shape(), inner].concat();
        Ok(vec![Tensor::from_bytes(data.dtype(), &shape, &bytes)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let (data, at, dy) = (cx.input(0), cx.input(1), cx.cotangent()?);
        let extent = cx.ty(data).shape[self.axis].clone();
        let op = ScatterAdd { axis: self.axis, extent, indices: cx.ty(at).ndim() };
        Ok(Grad::Inputs(vec![Some(cx.op(op, &[dy, at])?), None]))
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (axis, extent) = (self.axis, io.inputs[0].shape[self.axis]);
        if extent == 0 && io.output_elements() > 0 {
            return Err(NotLowered("a gather from an axis of extent 0".into()));
        }
        let inner = io.inputs[0].shape[axis + 1..].to_vec();
        let (shape, range) = (io.outputs[0].shape.clone(), io.inputs[1].range);
        Ok(Lowered::nest(move |n| {
            n.for_each(&shape[..shape.len() - inner.len()], |n, i| {
                let given = n.load(1, &i[axis..]);
                let position = Index::reg(checked_position(n, given, extent, range));
                n.serial_each(&inner, i, &mut |n, to| {
                    let mut from = i[..axis].to_vec();
                    from.push(position.clone());
                    from.extend_from_slice(&to[i.len()..]);
                    let x = n.load(0, &from);
                    n.store(0, to, x);
                });
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        let moved = 2 * io.outputs[0].bytes() + io.inputs[1].bytes();
        Cost { flops: 0, bytes: moved as u64 }
    }

    fn facts(&self) -> Facts {
        Facts::moving(false, &[1], &[Some(Parameter::Table)])
    }

    fn permuted(&self, perm: &[usize]) -> Option<Op> {
        Some(Gather { axis: perm.iter().position(|&p| p == self.axis)? }.into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let extent = cx.type_of(0).shape[self.axis].clone();
        let at = cx.indices(1, &extent)?;
        cx.replace(1, at);
        cx.apart(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = |data: &[usize], dtype: DType, shape: &[usize], extent: f64| {
            let shape = shape.to_vec();
            Case::f32(&[data]).with(CaseInput::Random { dtype, shape, low: -extent, high: extent })
        };
        vec![
            (Gather { axis: 0 }, case(&[5, 7], DType::I64, &[2, 3], 5.0)),
            (Gather { axis: 1 }, case(&[2, 5, 3], DType::I32, &[4], 5.0)),
            (Gather { axis: 2 }, case(&[2, 3, 9], DType::I64, &[], 9.0)),
            (Gather { axis: 0 }, case(&[1], DType::I64, &[3], 1.0)),
        ]
    }
}

/// The position that an index means, after a check that it lies in the axis, where its `range` does not tell that. Clamped, so
/// that memory outside the operand is not read when the check fails.
pub(crate) fn checked_position(n: &mut Nest, given: Reg, extent: usize, range: Option<[i64; 2]>) -> Reg {
    let extent = extent as i64;
    let given = n.cast(given, DType::I64);
    if range.is_some_and(|[least, greatest]| least >= 0 && greatest < extent) {
        return given;
    }
    let [low, zero, last, count] =
        [-extent, 0, extent - 1, extent].map(|v| n.literal(Literal::Int(DType::I64, v)));
    let above = n.binary(Binary::Le, low, given);
    let below = n.binary(Binary::Lt, given, count);
    let inside = n.binary(Binary::And, above, below);
    n.require(inside, &format!("indices from {} to {}", -extent, extent - 1));
    let negative = n.binary(Binary::Lt, given, zero);
    let shifted = n.add(given, count);
    let wrapped = n.select(negative, shifted, given);
    let capped = n.binary(Binary::Min, wrapped, last);
    n.binary(Binary::Max, capped, zero)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_outside_the_axis_are_errors() {
        let data = Tensor::from_slice(&[3], &[1f32, 2.0, 3.0]).unwrap();
        let look = |i: i64| Gather { axis: 0 }.eval(&[&data, &Tensor::scalar(i)]);
        assert_eq!(look(-3).unwrap()[0], Tensor::scalar(1f32));
        assert_eq!(look(3).unwrap_err().to_string(), "index 3 is outside an axis of 3");
        assert_eq!(look(-4), Err(EvalError::Index { index: -4, extent: 3 }));
        assert_eq!(look(i64::MIN), Err(EvalError::Index { index: i64::MIN, extent: 3 }));
    }

    #[test]
    fn indices_are_integers() {
        let x = TensorType::known(DType::F32, &[3]);
        let error = Gather { axis: 0 }.infer(&[&x, &x]).unwrap_err();
        assert_eq!(error.to_string(), "input 1 is f32, expected i64 or i32");
    }
}
