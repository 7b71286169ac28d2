//! The places of the elements that are not zero: their row-major positions in ascending order, then zeros, as many
//! numbers as there are elements; and how many they are. NaN is not zero.
//!
//! How many is known when it runs only. What reads the places reads as many as the second result says.

use margay_loops::{Extent, Index, Literal};
use margay_tensor::{DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::elementwise::Numbers;
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Along, Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Finds the elements that are not zero.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NonZero;

attributes!(NonZero {});

impl OpDef for NonZero {
    const NAME: &'static str = "non_zero";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        let elements = x.shape.iter().fold(Dim::from(1usize), |n, d| &n * d);
        let places = TensorType::new(DType::I64, vec![elements]);
        Ok([places, TensorType::new(DType::I64, Vec::new())].into_iter().collect())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = inputs[0];
        let found: Vec<i64> = match Numbers::of(x)? {
            Numbers::Float(v) => (0i64..).zip(v).filter(|(_, x)| *x != 0.0).map(|(i, _)| i).collect(),
            Numbers::Int(v) => (0i64..).zip(v).filter(|(_, x)| *x != 0).map(|(i, _)| i).collect(),
        };
        let count = found.len() as i64;
        let mut places = found;
        places.resize(x.len(), 0);
        Ok(vec![Tensor::from_slice(&[x.len()], &places)?, Tensor::scalar(count)])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::zero(1)
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let (shape, elements) = (io.inputs[0].shape.clone(), io.inputs[0].elements());
        Ok(Lowered::nest(move |n| {
            let none = n.literal(Literal::Int(DType::I64, 0));
            n.store_raw(1, &[], none);
            let strides = crate::ops::strides_of(&shape);
            n.serial_each(&shape, &[], &mut |n, at| {
                let place = at.iter().zip(&strides).fold(Index::default(), |p, (i, &s)| p.plus(i, s));
                let x = n.load(0, at);
                let count = n.reload(1, &[]);
                // A place that is no find is overwritten by the next one.
                let value = n.index_value(&place);
                n.store_raw(0, &[Index::reg(count)], value);
                let truth = n.cast(x, DType::Bool);
                let one = n.cast(truth, DType::I64);
                let more = n.add(count, one);
                n.store_raw(1, &[], more);
            });
            let count = n.reload(1, &[]);
            let all = n.literal(Literal::Int(DType::I64, elements as i64));
            let rest = n.sub(all, count);
            n.serial(Extent::Read { from: rest, bound: elements }, |n, i| {
                let zero = n.literal(Literal::Int(DType::I64, 0));
                n.store_raw(0, &[Index::reg(count).plus(&i, 1)], zero);
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost { flops: 2 * io.inputs[0].elements() as u64, bytes: io.bytes() }
    }

    fn facts(&self) -> Facts {
        Facts::leaf()
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        // Places are counted row by row, so that only the first axis may have further positions.
        cx.along(self.clone(), |_, axis| if axis == 0 { Along::Neutral(0.0) } else { Along::Change })
    }

    fn cases() -> Vec<(Self, Case)> {
        let some = |dtype: DType, shape: &[usize]| Case::random(dtype, 0.0, 2.0, &[shape]);
        vec![
            (NonZero, some(DType::I64, &[3, 7])),
            (NonZero, some(DType::Bool, &[16])),
            (NonZero, Case::f32(&[&[2, 3]])),
            (NonZero, some(DType::I32, &[])),
            (NonZero, some(DType::I64, &[0, 3])),
        ]
    }
}
