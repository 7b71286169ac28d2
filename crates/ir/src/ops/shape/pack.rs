//! The elements at the first positions along axes, as many as further operands say, row-major one behind the other; zeros
//! behind them, up to as many as the first operand has. What an output holds whose extents a run decides.
//!
//! A number below 0 or beyond the extent of its axis counts as the nearest that is not.

use margay_loops::nest::Nest;
use margay_loops::{Binary, Extent, Index, Literal, Reg};
use margay_tensor::{DType, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::shape::{indices, pick};
use crate::ops::{Case, CaseInput, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef, strides_of};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Packs the first positions along axes of the first operand (any type); the others (i64) say how many.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pack {
    /// The axes, ascending; one further operand for each.
    pub axes: Vec<usize>,
}

attributes!(Pack { axes });

impl OpDef for Pack {
    const NAME: &'static str = "pack";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let Some((x, counts)) = inputs.split_first().filter(|(_, counts)| counts.len() == self.axes.len())
        else {
            return Err(TypeError::Arity { expected: "1 and 1 for each axis", found: inputs.len() });
        };
        counts.iter().enumerate().try_for_each(|(i, ty)| types::expect_single(1 + i, ty, DType::I64))?;
        self.axes.iter().try_for_each(|&axis| types::check_axis(axis, x.ndim()))?;
        if !self.axes.is_sorted_by(|a, b| a < b) {
            return Err(TypeError::attribute(format!("axes {:?} are not ascending", self.axes)));
        }
        types::one(x.dtype, vec![x.elements()])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = inputs[0];
        let mut kept = x.shape().to_vec();
        for (&axis, count) in self.axes.iter().zip(&inputs[1..]) {
            let count = Numbers::of(count)?.ints()[0].clamp(0, kept[axis] as i64);
            kept[axis] = count as usize;
        }
        let strides = strides_of(x.shape());
        let place =
            |index: Vec<usize>| index.iter().zip(&strides).map(|(&i, &s)| i * s as usize).sum::<usize>();
        let mut places: Vec<Option<usize>> = indices(&kept).map(|index| Some(place(index))).collect();
        places.resize(x.len(), None);
        Ok(vec![pick(x, &[x.len()], places.into_iter(), &[0; 8][..x.dtype().bytes()])?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::none("there is no rule for a part whose extent a run decides")
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (shape, dtype, axes) = (io.inputs[0].shape.clone(), io.inputs[0].dtype, self.axes.clone());
        Ok(Lowered::nest(move |n| {
            n.for_each(&[] as &[usize], |n, _| {
                let zero = n.literal(Literal::of(dtype.computed(), 0.0));
                n.serial(shape.iter().product::<usize>(), |n, i| n.store_raw(0, &[i], zero));
                let counts: Vec<Option<Reg>> = (0..shape.len())
                    .map(|axis| {
                        let at = axes.iter().position(|a| *a == axis)?;
                        let count = n.load(1 + at, &[]);
                        let [zero, most] =
                            [0, shape[axis] as i64].map(|v| n.literal(Literal::Int(DType::I64, v)));
                        let count = n.binary(Binary::Max, count, zero);
                        Some(n.binary(Binary::Min, count, most))
                    })
                    .collect();
                let start = n.literal(Literal::Int(DType::I64, 0));
                packed(n, &shape, &counts, &mut Vec::new(), start);
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 2)
    }

    fn facts(&self) -> Facts {
        Facts::plain(false)
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.none(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = |axes: &[usize], counts: &[i64], shape: &[usize]| {
            let counts = counts.iter().map(|&v| CaseInput::Values(Tensor::scalar(v)));
            (Pack { axes: axes.to_vec() }, counts.fold(Case::f32(&[shape]), Case::with))
        };
        vec![
            case(&[1], &[2], &[3, 5]),
            case(&[0, 2], &[1, 3], &[2, 3, 4]),
            case(&[0], &[0], &[4]),
            case(&[1], &[9], &[2, 3]),
        ]
    }
}

/// Writes the loops over the axes from that of the length of `at` on; `place` counts what stands before.
fn packed(n: &mut Nest, shape: &[usize], counts: &[Option<Reg>], at: &mut Vec<Index>, place: Reg) {
    let axis = at.len();
    if axis == shape.len() {
        let x = n.load(0, at);
        return n.store_raw(0, &[Index::reg(place)], x);
    }
    let (extent, count) = match counts[axis] {
        Some(count) => (Extent::Read { from: count, bound: shape[axis] }, count),
        None => (Extent::Known(shape[axis]), n.literal(Literal::Int(DType::I64, shape[axis] as i64))),
    };
    let scaled = n.mul(place, count);
    n.serial(extent, |n, i| {
        let position = n.index_value(&i);
        let place = n.add(scaled, position);
        at.push(i);
        packed(n, shape, counts, at, place);
        at.pop();
    });
}
