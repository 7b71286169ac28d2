//! Puts `before[i]` and `after[i]` copies of a value around the operand along axis `i`.

use margay_loops::{Binary, Index, Literal, Nest, Reg};
use margay_tensor::{DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::lowering::strides_of;
use crate::ops::shape::known_extents;
use crate::ops::shape::{indices, pick};
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, Number, OpDef, Slice};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Surrounds the operand with a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pad {
    /// Elements put in front of each axis; not negative.
    pub before: Vec<i64>,
    /// Elements put behind each axis; not negative.
    pub after: Vec<i64>,
    /// The value, converted to the type of the operand.
    pub value: Number,
}

attributes!(Pad { before, after, value = Number::float(0.0) });

impl OpDef for Pad {
    const NAME: &'static str = "pad";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        let ndim = x.ndim();
        for (name, pads) in [("before", &self.before), ("after", &self.after)] {
            if pads.len() != ndim {
                let message = format!("{name} has {} values for {ndim} axes", pads.len());
                return Err(TypeError::attribute(message));
            }
            if let Some(pad) = pads.iter().find(|p| **p < 0) {
                return Err(TypeError::attribute(format!("{name} contains {pad}, which is negative")));
            }
        }
        let pads = self.before.iter().zip(&self.after).map(|(&b, &a)| &Dim::from(b) + &Dim::from(a));
        types::one(x.dtype, x.shape.iter().zip(pads).map(|(d, p)| d + &p).collect())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = inputs[0];
        let shape = known_extents(&self.infer(&[&TensorType::of(x)])?[0].shape)?;
        let strides = strides_of(x.shape());
        let at = |index: Vec<usize>| {
            let inner = |axis: usize| index[axis].checked_sub(self.before[axis] as usize);
            (0..index.len()).try_fold(0, |sum, axis| {
                let i = inner(axis).filter(|&i| i < x.shape()[axis])?;
                Some(sum + i * strides[axis] as usize)
            })
        };
        let filler = self.value.tensor(x.dtype());
        Ok(vec![pick(x, &shape, indices(&shape).map(at), filler.bytes())?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let (dy, shape) = (cx.cotangent()?, cx.ty(cx.input(0)).shape.clone());
        let starts: Vec<Dim> = self.before.iter().map(|&b| Dim::from(b)).collect();
        let ends = starts.iter().zip(&shape).map(|(start, extent)| start + extent).collect();
        let steps = vec![1; shape.len()];
        Grad::all([cx.op(Slice { starts, ends, steps }, &[dy])?])
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (op, inner) = (self.clone(), io.inputs[0].shape.clone());
        let (dtype, shape) = (io.outputs[0].dtype, io.outputs[0].shape.clone());
        Ok(Lowered::nest(move |n| {
            n.for_each(&shape, |n, i| {
                let mut guard = None;
                let mut from = Vec::new();
                for (axis, at) in i.iter().enumerate() {
                    let (before, after) = (op.before[axis], op.after[axis]);
                    let at = at.plus(&Index::constant(before), -1);
                    let upper = (after > 0).then_some(inner[axis]);
                    guard = inside(n, guard, &at, before > 0, upper);
                    from.push(at);
                }
                let x = match guard {
                    Some(test) => match op.value {
                        Number::Float(v) => n.load_guarded(0, &from, test, v.get()),
                        Number::Int(v) if dtype.is_float() => n.load_guarded(0, &from, test, v as f64),
                        Number::Int(v) => {
                            let x = n.load_guarded(0, &from, test, 0.0);
                            let value = n.literal(Literal::Int(dtype, v as i64));
                            n.select(test, x, value)
                        }
                    },
                    None => n.load(0, &from),
                };
                n.store(0, i, x);
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 0)
    }

    fn facts(&self) -> Facts {
        Facts {
            elementwise: None,
            cheap: true,
            identity: self.before.iter().chain(&self.after).all(|&d| d == 0),
            symbolic: None,
            parameters: &[],
            image: None,
            with_all_results: None,
        }
    }

    fn permuted(&self, perm: &[usize]) -> Option<Op> {
        let list = |amounts: &[i64]| perm.iter().map(|&p| amounts[p]).collect();
        Some(Pad { before: list(&self.before), after: list(&self.after), value: self.value }.into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.along(self.clone(), |_, axis| match (self.before[axis], self.after[axis]) {
            (0, 0) => Along::Apart,
            _ => Along::Change,
        })
    }

    fn cases() -> Vec<(Self, Case)> {
        let pad = |before: &[i64], after: &[i64], value: f64| Pad {
            before: before.to_vec(),
            after: after.to_vec(),
            value: Number::float(value),
        };
        vec![
            (pad(&[1, 2], &[0, 3], 0.0), Case::f32(&[&[3, 5]])),
            (pad(&[0, 0, 1], &[2, 0, 0], -1.5), Case::f32(&[&[2, 1, 4]])),
            (pad(&[0], &[0], 0.0), Case::f32(&[&[7]])),
            (pad(&[2], &[1], 3.0), Case::random(DType::I64, -9.0, 9.0, &[&[5]])),
            // No f64 is this integer.
            (
                Pad { value: Number::int((1 << 53) + 1), ..pad(&[1], &[1], 0.0) },
                Case::random(DType::I64, -9.0, 9.0, &[&[2]]),
            ),
        ]
    }
}

/// `guard`, and `0 <= at` where `lower` says so, and `at < upper` if there is such a bound.
fn inside(n: &mut Nest, guard: Option<Reg>, at: &Index, lower: bool, upper: Option<usize>) -> Option<Reg> {
    if !lower && upper.is_none() {
        return guard;
    }
    let at = n.index_value(at);
    let mut tests: Vec<Reg> = guard.into_iter().collect();
    if lower {
        let zero = n.literal(Literal::Int(DType::I64, 0));
        tests.push(n.binary(Binary::Le, zero, at));
    }
    if let Some(extent) = upper {
        let extent = n.literal(Literal::Int(DType::I64, extent as i64));
        tests.push(n.binary(Binary::Lt, at, extent));
    }
    tests.into_iter().reduce(|x, y| n.binary(Binary::And, x, y))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_padding_is_refused() {
        let x = TensorType::known(DType::F32, &[5]);
        let pad = Pad { before: vec![-1], after: vec![0], value: Number::float(0.0) };
        assert_eq!(pad.infer(&[&x]).unwrap_err().to_string(), "before contains -1, which is negative");
        let pad = Pad { before: vec![1, 1], ..pad };
        assert_eq!(pad.infer(&[&x]).unwrap_err().to_string(), "before has 2 values for 1 axes");
    }
}
