//! `exp(x - max) / Σ exp(x - max)` along one axis.

use margay_loops::{Combine, Index, Unary};
use margay_tensor::Tensor;

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Softmax along one axis.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Softmax {
    /// The axis that sums to 1.
    pub axis: usize,
}

attributes!(Softmax { axis });

impl OpDef for Softmax {
    const NAME: &'static str = "softmax";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        types::expect_float(0, x)?;
        types::check_axis(self.axis, x.ndim())?;
        types::one(x.dtype, x.shape.clone())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let shape = inputs[0].shape();
        let mut v = Numbers::of(inputs[0])?.floats();
        let (n, inner) = (shape[self.axis], shape[self.axis + 1..].iter().product::<usize>());
        let outer: usize = shape[..self.axis].iter().product();
        for row in (0..outer).flat_map(|o| (0..inner).map(move |i| o * n * inner + i)) {
            let at = |j: usize| row + j * inner;
            let max = (0..n).map(|j| v[at(j)]).fold(f64::NEG_INFINITY, |m, x| if x > m { x } else { m });
            let sum: f64 = (0..n).map(|j| libm::exp(v[at(j)] - max)).sum();
            (0..n).for_each(|j| v[at(j)] = libm::exp(v[at(j)] - max) / sum);
        }
        Ok(vec![Numbers::Float(v).into_tensor(inputs[0].dtype(), shape)?])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        // y (dy - Σ dy y).
        let (y, dy) = (cx.output(), cx.cotangent()?);
        let product = cx.product(dy, y)?;
        let sum = cx.sum_kept(product, vec![self.axis])?;
        let centred = cx.sub(dy, sum)?;
        Grad::all([cx.product(centred, y)?])
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (axis, shape) = (self.axis, io.outputs[0].shape.clone());
        Ok(Lowered::nest(move |n| {
            let extent = shape[axis];
            let mut outer = shape.clone();
            outer[axis] = 1;
            n.for_each(&outer, |n, i| {
                let at = |j: Index| {
                    let mut index = i.to_vec();
                    index[axis] = j;
                    index
                };
                let max = n.reduce(extent, &[Combine::Max], |n, j| vec![n.load(0, &at(j))])[0];
                // The exponentials go through the output, so that each is computed once.
                n.serial(extent, |n, j| {
                    let x = n.load(0, &at(j.clone()));
                    let shifted = n.sub(x, max);
                    let e = n.unary(Unary::Exp, shifted);
                    n.store_raw(0, &at(j), e);
                });
                let sum = n.reduce(extent, &[Combine::Sum], |n, j| vec![n.reload(0, &at(j))])[0];
                let one = n.number(sum, 1.0);
                let scale = n.div(one, sum);
                n.serial(extent, |n, j| {
                    let e = n.reload(0, &at(j.clone()));
                    let y = n.mul(e, scale);
                    n.store(0, &at(j), y);
                });
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 14)
    }

    fn facts(&self) -> Facts {
        Facts::plain(true)
    }

    fn permuted(&self, perm: &[usize]) -> Option<Op> {
        Some(Softmax { axis: perm.iter().position(|&p| p == self.axis)? }.into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.along(self.clone(), |_, axis| {
            if axis == self.axis { Along::Neutral(f64::NEG_INFINITY) } else { Along::Apart }
        })
    }

    fn cases() -> Vec<(Self, Case)> {
        vec![
            (Softmax { axis: 1 }, Case::f32(&[&[3, 17]])),
            (Softmax { axis: 0 }, Case::f32(&[&[5, 4]])),
            (Softmax { axis: 3 }, Case::f32(&[&[2, 3, 4, 32]])),
        ]
    }
}
