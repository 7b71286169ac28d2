//! A regular part of the operand: element `i` along an axis is element `start + i step` of the operand, as long
//! as that lies before `end`.
//!
//! Nothing is clamped. A positive step needs `0 <= start <= end <= extent`; a negative one walks down and needs
//! `-1 <= end <= start <= extent - 1`. The length is `floordiv(|end - start| + |step| - 1, |step|)`. Conditions
//! on symbols are checked when these get their values.

use margay_tensor::{Binding, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::lowering::strides_of;
use crate::ops::shape::known_extents;
use crate::ops::shape::{indices, pick};
use crate::ops::{
    Broadcast, Case, Concat, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, Reshape, View,
};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{AddError, Op, TensorType, TypeError, Types, Value, types};

/// Takes a regular part of the operand; one start, end and step per axis.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Slice {
    /// First element.
    pub starts: Vec<Dim>,
    /// One past the last element in the direction of the step.
    pub ends: Vec<Dim>,
    /// Distance between elements; not 0.
    pub steps: Vec<i64>,
}

attributes!(Slice { starts, ends, steps });

impl OpDef for Slice {
    const NAME: &'static str = "slice";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        let ndim = x.ndim();
        for (name, found) in
            [("starts", self.starts.len()), ("ends", self.ends.len()), ("steps", self.steps.len())]
        {
            if found != ndim {
                return Err(TypeError::attribute(format!("{name} has {found} values for {ndim} axes")));
            }
        }
        let shape = (0..ndim).map(|axis| self.length(axis, &x.shape[axis]));
        types::one(x.dtype, shape.collect::<Result<_, _>>()?)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = inputs[0];
        let shape = known_extents(&self.infer(&[&TensorType::of(x)])?[0].shape)?;
        let none = Binding::new();
        let starts = self.starts.iter().map(|s| s.eval(&none)).collect::<Result<Vec<_>, _>>()?;
        let strides = strides_of(x.shape());
        let at = |index: Vec<usize>| {
            let along = |axis: usize| starts[axis] + index[axis] as i64 * self.steps[axis];
            Some((0..index.len()).map(|axis| along(axis) * strides[axis]).sum::<i64>() as usize)
        };
        Ok(vec![pick(x, &shape, indices(&shape).map(at), &[])?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let (x, mut dy) = (cx.input(0), cx.cotangent()?);
        for axis in 0..self.steps.len() {
            dy = match self.widened(cx, axis, cx.ty(x).shape[axis].clone(), dy)? {
                Some(dy) => dy,
                None => {
                    return Grad::none(format!(
                        "there is no rule for step {} along an open axis",
                        self.steps[axis]
                    ));
                }
            };
        }
        Grad::all([dy])
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let start = |(s, &extent): (&Dim, &usize)| match s.as_const() {
            // An empty part may start outside the operand.
            Some(_) if extent == 0 => Ok(0),
            Some(v) => Ok(v),
            None => Err(NotLowered(format!("a slice that starts at `{s}`, which has no value"))),
        };
        let starts = self.starts.iter().zip(&io.outputs[0].shape).map(start);
        let starts = starts.collect::<Result<_, _>>()?;
        Ok(Lowered::View(View::Slice { starts, steps: self.steps.clone() }))
    }

    fn cost(&self, io: &Io) -> Cost {
        let bytes = io.outputs.iter().map(|p| 2 * p.bytes() as u64).sum();
        Cost { flops: 0, bytes }
    }

    fn facts(&self) -> Facts {
        Facts::moving(self.steps.iter().all(|&step| step == 1), &[], &[])
    }

    fn permuted(&self, perm: &[usize]) -> Option<Op> {
        let list = |dims: &[Dim]| perm.iter().map(|&p| dims[p].clone()).collect();
        let steps = perm.iter().map(|&p| self.steps[p]).collect();
        Some(Slice { starts: list(&self.starts), ends: list(&self.ends), steps }.into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let to = cx.result().shape.clone();
        let mut x = cx.input(0);
        // Along axes that begin where a run says, or go backwards, elements are looked up.
        let mut rest = self.clone();
        for (axis, length) in to.iter().enumerate() {
            let (start, step) = (&self.starts[axis], self.steps[axis]);
            if !start.is_decided() && (step > 0 || !self.ends[axis].is_decided()) {
                continue;
            }
            let (places, start) = (cx.iota(length)?, cx.count(start)?);
            let mut builder = cx.builder();
            let places = builder.scale(places, step as f64)?;
            let at = builder.add(places, start)?;
            x = cx.gathered(x, axis, at)?;
            (rest.starts[axis], rest.ends[axis], rest.steps[axis]) = (Dim::default(), cx.bound(length), 1);
        }
        cx.replace(0, x);
        cx.apart(rest)
    }

    fn cases() -> Vec<(Self, Case)> {
        let slice = |starts: &[i64], ends: &[i64], steps: &[i64]| {
            let dims = |v: &[i64]| v.iter().map(|&v| Dim::from(v)).collect();
            Slice { starts: dims(starts), ends: dims(ends), steps: steps.to_vec() }
        };
        vec![
            (slice(&[1, 0], &[4, 7], &[1, 1]), Case::f32(&[&[5, 7]])),
            (slice(&[0, 1, 2], &[2, 5, 9], &[1, 2, 3]), Case::f32(&[&[2, 5, 9]])),
            (slice(&[4, 6], &[-1, 0], &[-1, -4]), Case::f32(&[&[5, 7]])),
        ]
    }
}

impl Slice {
    /// A cotangent of the result, put back along one axis among zeros to the extent of the operand.
    fn widened(
        &self,
        cx: &mut Vjp<'_>,
        axis: usize,
        extent: Dim,
        dy: Value,
    ) -> Result<Option<Value>, AddError> {
        let (step, one) = (self.steps[axis], Dim::from(1usize));
        let mut dy = dy;
        let length = cx.ty(dy).shape[axis].clone();
        if length.is(0) {
            let mut shape = cx.ty(dy).shape.clone();
            shape[axis] = extent;
            let zero = cx.number(dy, 0.0)?;
            return Ok(Some(cx.op(Broadcast { shape }, &[zero])?));
        }
        let mut start = self.starts[axis].clone();
        if step < 0 {
            // The last element taken is the first in memory.
            start = &start + &(&Dim::from(step) * &(&length - &one));
            dy = reversed(cx, axis, dy)?;
        }
        let distance = step.unsigned_abs() as usize;
        if distance > 1 {
            // Each element is followed by the zeros that were stepped over, the last one by none.
            let Some(n) = length.as_extent() else { return Ok(None) };
            let mut shape = cx.ty(dy).shape.clone();
            shape.insert(axis + 1, one);
            dy = cx.op(Reshape { shape: shape.clone() }, &[dy])?;
            dy = joined(cx, axis + 1, [Dim::default(), Dim::from(distance - 1)], dy)?;
            shape.remove(axis + 1);
            shape[axis] = Dim::from(n * distance);
            dy = cx.op(Reshape { shape: shape.clone() }, &[dy])?;
            let mut ends = shape.clone();
            ends[axis] = Dim::from(n * distance - (distance - 1));
            let (starts, steps) = (vec![Dim::default(); shape.len()], vec![1; shape.len()]);
            dy = cx.op(Slice { starts, ends, steps }, &[dy])?;
        }
        let after = &(&extent - &start) - &cx.ty(dy).shape[axis];
        Ok(Some(joined(cx, axis, [start, after], dy)?))
    }

    /// The extent of the result along an axis.
    fn length(&self, axis: usize, extent: &Dim) -> Result<Dim, TypeError> {
        let (start, end, step) = (&self.starts[axis], &self.ends[axis], self.steps[axis]);
        let [none, one] = [0i64, 1].map(Dim::from);
        // What must not be negative; the one in the middle is what the slice spans.
        let needed = match step > 0 {
            true => [start - &none, end - start, extent - end],
            false => [end + &one, start - end, &(extent - &one) - start],
        };
        if needed.iter().any(|d| d.as_const().is_some_and(|v| v < 0)) {
            return Err(TypeError::attribute(format!(
                "axis {axis}: `{start}` to `{end}` by {step} does not lie in the extent `{extent}`"
            )));
        }
        let distance = step.saturating_abs();
        let rounded = &needed[1] + &Dim::from(distance - 1);
        rounded
            .floor_div(&Dim::from(distance))
            .ok_or_else(|| TypeError::attribute(format!("axis {axis}: step is 0")))
    }
}

/// `v` with an axis reversed.
fn reversed(cx: &mut Vjp<'_>, axis: usize, v: Value) -> Result<Value, AddError> {
    let shape = cx.ty(v).shape.clone();
    let (mut starts, mut ends) = (vec![Dim::default(); shape.len()], shape.clone());
    let mut steps = vec![1; shape.len()];
    starts[axis] = &shape[axis] - &Dim::from(1usize);
    (ends[axis], steps[axis]) = (Dim::from(-1i64), -1);
    cx.op(Slice { starts, ends, steps }, &[v])
}

/// `v` between so many zeros along an axis.
fn joined(cx: &mut Vjp<'_>, axis: usize, zeros: [Dim; 2], v: Value) -> Result<Value, AddError> {
    let mut parts = Vec::new();
    for extent in zeros {
        let mut shape = cx.ty(v).shape.clone();
        shape[axis] = extent.clone();
        parts.push(if extent.is(0) {
            None
        } else {
            let zero = cx.number(v, 0.0)?;
            Some(cx.op(Broadcast { shape }, &[zero])?)
        });
    }
    let all: Vec<Value> = [parts[0], Some(v), parts[1]].into_iter().flatten().collect();
    if all.len() == 1 { Ok(v) } else { cx.op(Concat { axis }, &all) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay_tensor::DType;

    fn slice(start: &str, end: &str, step: i64) -> Slice {
        let dim = |t: &str| vec![Dim::parse(t).unwrap()];
        Slice { starts: dim(start), ends: dim(end), steps: vec![step] }
    }

    fn length(s: &Slice, extent: &str) -> Result<String, String> {
        let x = TensorType::new(DType::F32, vec![Dim::parse(extent).unwrap()]);
        s.infer(&[&x]).map(|t| t[0].shape[0].to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn violations_name_end_and_extent() {
        let outside = |text: &str| Err(format!("axis 0: {text} does not lie in the extent `5`"));
        assert_eq!(length(&slice("0", "7", 1), "5"), outside("`0` to `7` by 1"));
        assert_eq!(length(&slice("-1", "3", 1), "5"), outside("`-1` to `3` by 1"));
        assert_eq!(length(&slice("3", "2", 1), "5"), outside("`3` to `2` by 1"));
        assert_eq!(length(&slice("5", "0", -1), "5"), outside("`5` to `0` by -1"));
        assert_eq!(length(&slice("4", "-2", -1), "5"), outside("`4` to `-2` by -1"));
        assert_eq!(length(&slice("2", "2", 0), "5"), Err("axis 0: step is 0".into()));
    }

    #[test]
    fn symbolic_bounds_stay_symbolic() {
        assert_eq!(length(&slice("0", "S", 1), "S"), Ok("S".into()));
        assert_eq!(length(&slice("1", "S", 2), "S"), Ok("floordiv(S, 2)".into()));
        assert_eq!(length(&slice("S - 1", "-1", -1), "S"), Ok("S".into()));
        assert_eq!(
            length(&slice("0", "S + 1", 1), "S"),
            Err("axis 0: `0` to `S + 1` by 1 does not lie in the extent `S`".into())
        );
    }

    #[test]
    fn what_symbols_hid_is_an_error_once_known() {
        let x = Tensor::zeros(DType::F32, &[3]).unwrap();
        assert!(matches!(slice("0", "S", 1).eval(&[&x]), Err(EvalError::Unbound(_))));
        assert!(matches!(slice("0", "4", 1).eval(&[&x]), Err(EvalError::Type(_))));
        assert!(slice("3", "3", 1).eval(&[&x]).unwrap()[0].is_empty());
    }
}
