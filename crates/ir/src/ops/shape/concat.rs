//! Joins one or more operands along an axis; all other extents are equal. The extent of the axis is the sum.

use margay_loops::Index;
use margay_tensor::{Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::{Case, Cost, EvalError, Facts, Io, LessOrEqual, Lowered, NotLowered, OpDef, Select, Slice};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Joins operands along an axis.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Concat {
    /// The axis along which the operands follow each other.
    pub axis: usize,
}

attributes!(Concat { axis });

impl OpDef for Concat {
    const NAME: &'static str = "concat";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let Some(first) = inputs.first() else {
            return Err(TypeError::Arity { expected: "at least 1", found: 0 });
        };
        types::check_axis(self.axis, first.ndim())?;
        let mut shape = first.shape.clone();
        shape[self.axis] = Dim::default();
        for (input, x) in inputs.iter().enumerate() {
            types::expect_dtype(input, x, first.dtype)?;
            if x.ndim() != shape.len() {
                return Err(TypeError::Ndim { input, expected: shape.len().to_string(), found: x.ndim() });
            }
            for (axis, extent) in x.shape.iter().enumerate().filter(|(axis, _)| *axis != self.axis) {
                types::same_extent(&format!("axis {axis} of inputs 0 and {input}"), &shape[axis], extent)?;
            }
            shape[self.axis] = &shape[self.axis] + &x.shape[self.axis];
        }
        types::one(first.dtype, shape)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let mut shape = inputs[0].shape().to_vec();
        shape[self.axis] = inputs.iter().map(|x| x.shape()[self.axis]).sum();
        let outer: usize = shape[..self.axis].iter().product();
        let mut bytes = Vec::new();
        for row in 0..outer {
            for x in inputs {
                let size = x.bytes().len() / outer;
                bytes.extend_from_slice(&x.bytes()[row * size..(row + 1) * size]);
            }
        }
        Ok(vec![Tensor::from_bytes(inputs[0].dtype(), &shape, &bytes)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let dy = cx.cotangent()?;
        let (mut cotangents, mut before) = (Vec::new(), Dim::default());
        for i in 0..cx.arity() {
            let shape = cx.ty(cx.input(i)).shape.clone();
            let mut starts = vec![Dim::default(); shape.len()];
            let mut ends = shape.clone();
            ends[self.axis] = &before + &shape[self.axis];
            starts[self.axis] = before;
            before = ends[self.axis].clone();
            let steps = vec![1; shape.len()];
            cotangents.push(cx.op(Slice { starts, ends, steps }, &[dy])?);
        }
        Grad::all(cotangents)
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let axis = self.axis;
        let shapes: Vec<Vec<usize>> = io.inputs.iter().map(|p| p.shape.clone()).collect();
        Ok(Lowered::nest(move |n| {
            n.for_each(&shapes[0][..axis], |n, i| {
                let mut before = 0;
                for (input, shape) in shapes.iter().enumerate() {
                    n.serial_each(&shape[axis..], i, &mut |n, index| {
                        let x = n.load(input, index);
                        let mut to = index.to_vec();
                        to[axis] = to[axis].plus(&Index::constant(before), 1);
                        n.store(0, &to, x);
                    });
                    before += shape[axis] as i64;
                }
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 0)
    }

    fn facts(&self) -> Facts {
        Facts::moving(true, &[], &[])
    }

    fn permuted(&self, perm: &[usize]) -> Option<Op> {
        Some(Concat { axis: perm.iter().position(|&p| p == self.axis)? }.into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let extents: Vec<Dim> = (0..cx.arity()).map(|i| cx.type_of(i).shape[self.axis].clone()).collect();
        let joined = cx.apart(self.clone())?[0];
        let (mut at, mut before) = (cx.iota(&cx.result().shape[self.axis].clone())?, Dim::default());
        let places = at;
        // What stands behind an operand begins where that ends in the run.
        let decided = extents[..extents.len() - 1].iter().any(Dim::is_decided);
        for extent in extents.iter().take(extents.len() - 1).filter(|_| decided) {
            before = &before + extent;
            let (count, bound) = (cx.count(&before)?, cx.bound(&before));
            let mut builder = cx.builder();
            let behind = builder.op(LessOrEqual, &[count, places])?;
            let inside = builder.sub(places, count)?;
            let there = builder.offset(inside, bound.as_const().unwrap_or(0) as f64)?;
            at = builder.op(Select, &[behind, there, at])?;
        }
        Ok(vec![if decided { cx.gathered(joined, self.axis, at)? } else { joined }])
    }

    fn cases() -> Vec<(Self, Case)> {
        vec![
            (Concat { axis: 0 }, Case::f32(&[&[3, 5], &[2, 5]])),
            (Concat { axis: 1 }, Case::f32(&[&[2, 1, 7], &[2, 4, 7], &[2, 2, 7]])),
            (Concat { axis: 2 }, Case::f32(&[&[3, 2, 5], &[3, 2, 1]])),
            (Concat { axis: 0 }, Case::random(margay_tensor::DType::I64, -9.0, 9.0, &[&[3]])),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_tensor::DType;

    #[test]
    fn symbolic_extents_add_up() {
        let ty = |text: &[&str]| {
            TensorType::new(DType::F32, text.iter().map(|t| Dim::parse(t).unwrap()).collect())
        };
        let (x, y) = (ty(&["B", "S"]), ty(&["B", "1"]));
        assert_eq!(Concat { axis: 1 }.infer(&[&x, &y]).unwrap()[0], ty(&["B", "S + 1"]));
        let error = Concat { axis: 0 }.infer(&[&x, &y]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "axis 1 of inputs 0 and 1: extents `S` and `1` differ or are not known to be equal"
        );
        assert_eq!(
            Concat { axis: 0 }.infer(&[]).unwrap_err().to_string(),
            "expected at least 1 inputs, found 0"
        );
    }
}
