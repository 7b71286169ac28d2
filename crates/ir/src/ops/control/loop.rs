//! A graph again and again, on values that each repetition hands to the next.
//!
//! Operands: the number of repetitions (a single i64; none if it is negative, never more than `max`), with `condition`
//! a single bool, then `carried` values, then what every repetition reads. Inputs of the body: the number of the
//! repetition from 0 on (a single i64), the carried values, what every repetition reads. Outputs of the body: with
//! `condition` whether to go on (a single bool), then the carried values of the next repetition, then one row of every
//! stacked result. Results: the carried values behind the last repetition, or the operands if there was none; then the
//! stacked rows of all repetitions, `max` of them, zeros for repetitions that did not run.

use margay_tensor::{DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::control::truth;
use crate::ops::elementwise::Numbers;
use crate::ops::{Case, CaseInput, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, Region, TensorType, TypeError, Types, types};

/// Repeats a graph.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Loop {
    /// What is repeated.
    pub body: Region,
    /// The most repetitions.
    pub max: Dim,
    /// Values handed on.
    pub carried: usize,
    /// Whether a condition, looked at before each repetition, may end it early.
    pub condition: bool,
}

attributes!(Loop { body, max, carried, condition = false });

impl Loop {
    /// Operands before the carried values.
    fn head(&self) -> usize {
        1 + usize::from(self.condition)
    }
}

impl OpDef for Loop {
    const NAME: &'static str = "loop";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let least = self.head() + self.carried;
        if inputs.len() < least {
            let expected = format!("{} operands for {} carried values", inputs.len(), self.carried);
            return Err(TypeError::attribute(format!("{expected}, expected at least {least}")));
        }
        types::expect_single(0, inputs[0], DType::I64)?;
        if self.condition {
            types::expect_single(1, inputs[1], DType::Bool)?;
        }
        let slots = std::iter::once(0).chain(self.head()..inputs.len());
        let outputs = self.body.infer(&slots.map(|i| (i, inputs[i])).collect::<Vec<_>>())?;
        let expected: Vec<TensorType> = inputs[1..least].iter().map(|t| (*t).clone()).collect();
        if !outputs.starts_with(&expected) {
            let list = |t: &[TensorType]| t.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let (expected, found) = (list(&expected), list(&outputs));
            return Err(TypeError::attribute(format!("the body gives ({found}), expected ({expected})")));
        }
        let rows = outputs[expected.len()..].iter().map(|row| {
            let shape = std::iter::once(&self.max).chain(&row.shape).cloned().collect();
            TensorType::new(row.dtype, shape)
        });
        let results: Types = outputs[self.head() - 1..expected.len()].iter().cloned().chain(rows).collect();
        if results.is_empty() {
            return Err(TypeError::attribute("a loop has at least one result".to_owned()));
        }
        Ok(results)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (head, carried) = (self.head(), self.carried);
        let max = self.max.eval(&margay_tensor::Binding::new())?;
        let trips = Numbers::of(inputs[0])?.ints()[0].clamp(0, max.max(0));
        let mut goes_on = !self.condition || inputs[1].bytes() != [0];
        let mut state: Vec<Tensor> = inputs[head..head + carried].iter().map(|t| (*t).clone()).collect();
        let rows = self.body.graph().outputs().iter().skip(head - 1 + carried);
        let rows = rows.map(|o| self.body.graph().ty(o.value)).map(|row| {
            let extents = row.shape.iter().map(|d| d.eval(&margay_tensor::Binding::new()));
            let extents =
                std::iter::once(Ok(max)).chain(extents).map(|d| Ok(usize::try_from(d?).unwrap_or(0)));
            Ok(Tensor::zeros(row.dtype, &extents.collect::<Result<Vec<_>, EvalError>>()?)?)
        });
        let rows: Vec<Tensor> = rows.collect::<Result<_, EvalError>>()?;
        let mut stacked: Vec<Vec<u8>> = vec![Vec::new(); rows.len()];
        for i in 0..trips {
            if !goes_on {
                break;
            }
            let number = Tensor::scalar(i);
            let operands: Vec<&Tensor> = std::iter::once(&number)
                .chain(&state)
                .chain(inputs[head + carried..].iter().copied())
                .collect();
            let mut next = self.body.eval(&operands)?;
            if self.condition {
                goes_on = next.remove(0).bytes() != [0];
            }
            stacked.iter_mut().zip(next.drain(carried..)).for_each(|(all, row)| all.extend(row.bytes()));
            state = next;
        }
        for (zeros, mut bytes) in rows.iter().zip(stacked) {
            bytes.extend(&zeros.bytes()[bytes.len()..]);
            state.push(Tensor::from_bytes(zeros.dtype(), zeros.shape(), &bytes)?);
        }
        Ok(state)
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::none("the derivative of a loop needs the values of every repetition, which are not kept")
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        let max =
            self.max.as_extent().ok_or_else(|| NotLowered(format!("at most `{}` repetitions", self.max)))?;
        Ok(Lowered::Loop { body: self.body.clone(), max, carried: self.carried, condition: self.condition })
    }

    fn cost(&self, _: &Io) -> Cost {
        let (each, times) = (self.body.cost(), self.max.as_extent().unwrap_or(1) as u64);
        Cost { flops: each.flops.saturating_mul(times), bytes: each.bytes.saturating_mul(times) }
    }

    fn facts(&self) -> Facts {
        Facts::region()
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.none(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let given = |shape: &[usize]| CaseInput::Random {
            dtype: DType::F32,
            shape: shape.to_vec(),
            low: -1.0,
            high: 1.0,
        };
        let trips = |n: i64| CaseInput::Values(Tensor::scalar(n));
        // The two values change places, and one takes up what every repetition reads.
        let swap = Region::parse(
            "graph @swap(%i: i64, %a: f32[5], %b: f32[5], %w: f32[5]) -> (a: f32[5], b: f32[5]) {
               %0 = cast %i {to = f32} : f32
               %1 = mul %a, %w : f32[5]
               %2 = add %1, %0 : f32[5]
               return %b, %2
             }",
        );
        let swaps = Loop { body: swap, max: Dim::from(6usize), carried: 2, condition: false };
        let swapped = |n| Case { inputs: vec![trips(n), given(&[5]), given(&[5]), given(&[5])] };
        // Doubles until the sum is large.
        let double = Region::parse(
            "graph @double(%i: i64, %x: f32[3]) -> (more: bool, x: f32[3]) {
               %0 = add %x, %x : f32[3]
               %1 = abs %0 : f32[3]
               %2 = reduce %1 {kind = sum, axes = [0]} : f32
               %3 = const 40.0 : f32
               %4 = less %2, %3 : bool
               return %4, %0
             }",
        );
        let doubles = Loop { body: double, max: Dim::from(30usize), carried: 1, condition: true };
        let doubled =
            |first: bool| Case { inputs: vec![trips(30), CaseInput::Values(truth(first)), given(&[3])] };
        // Sums up rows of an operand; every sum is a row of a result, and so is every number.
        let sum = Region::parse(
            "graph @sum(%i: i64, %s: f32[3], %x: f32[4, 3]) -> (s: f32[3], all: f32[3], numbers: i64) {
               %0 = gather %x, %i {axis = 0} : f32[3]
               %1 = add %s, %0 : f32[3]
               return %1, %1, %i
             }",
        );
        let sums = Loop { body: sum, max: Dim::from(4usize), carried: 1, condition: false };
        let summed = |n| Case { inputs: vec![trips(n), given(&[3]), given(&[4, 3])] };
        // Nothing is handed on.
        let square = Region::parse(
            "graph @square(%i: i64, %x: f32[2, 5]) -> (y: f32[2, 5]) {
               %0 = cast %i {to = f32} : f32
               %1 = mul %x, %0 : f32[2, 5]
               %2 = mul %1, %1 : f32[2, 5]
               return %2
             }",
        );
        let squares = Loop { body: square, max: Dim::from(3usize), carried: 0, condition: false };
        vec![
            (sums.clone(), summed(4)),
            (sums, summed(2)),
            (squares, Case { inputs: vec![trips(3), given(&[2, 5])] }),
            (swaps.clone(), swapped(3)),
            (swaps.clone(), swapped(0)),
            (swaps.clone(), swapped(-4)),
            (swaps, swapped(100)),
            (doubles.clone(), doubled(true)),
            (doubles, doubled(false)),
        ]
    }
}
