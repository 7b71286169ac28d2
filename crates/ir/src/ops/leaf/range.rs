//! Positions as data: `result[i] = start + i * step`.
//!
//! Start and length may be expressions over symbols: positions of tokens, masks and tables of positions stay open until
//! the symbols are bound.

use margay_loops::Literal;
use margay_tensor::{Binding, DType, Dim, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::{Add, Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// Equally spaced integers, i64\[count\].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Range {
    /// The first element.
    pub start: Dim,
    /// From one element to the next; not 0.
    pub step: i64,
    /// Number of elements.
    pub count: Dim,
}

attributes!(Range { start, step, count });

impl OpDef for Range {
    const NAME: &'static str = "range";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [] = types::inputs(inputs, "none")?;
        if self.count.as_const().is_some_and(|v| v < 0) {
            return Err(TypeError::attribute(format!("a range of {} elements", self.count)));
        }
        if self.step == 0 {
            return Err(TypeError::attribute("a range with step 0"));
        }
        types::one(DType::I64, vec![self.count.clone()])
    }

    fn eval(&self, _: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let none = Binding::new();
        let (start, count) = (self.start.eval(&none)?, self.count.eval(&none)?);
        let values: Vec<i64> = (0..count).map(|i| start.wrapping_add(i.wrapping_mul(self.step))).collect();
        Ok(vec![Tensor::from_slice(&[values.len()], &values)?])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::zero(0)
    }

    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
        let unknown = || NotLowered(format!("the start `{}` is not known", self.start));
        let start = self.start.as_const().ok_or_else(unknown)?;
        let (step, count) = (self.step, io.outputs[0].shape[0]);
        Ok(Lowered::nest(move |n| {
            n.for_each(&[count], |n, i| {
                let position = n.index_value(&i[0]);
                let [start, step] = [start, step].map(|v| n.literal(Literal::Int(DType::I64, v)));
                let advanced = n.mul(position, step);
                let value = n.add(start, advanced);
                n.store(0, i, value);
            });
        }))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 2)
    }

    fn facts(&self) -> Facts {
        Facts::leaf()
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        let from_zero = Range { start: Dim::default(), ..self.clone() };
        let places = cx.apart(from_zero)?[0];
        let start = cx.count(&self.start)?;
        Ok(vec![cx.op(Add, &[places, start])?])
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = |start: i64, step: i64, count: usize| {
            (Range { start: Dim::from(start), step, count: Dim::from(count) }, Case { inputs: vec![] })
        };
        vec![case(0, 1, 17), case(3, -2, 5), case(-7, 4, 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_elements_is_not_negative() {
        let range = |count: &str| Range { start: Dim::default(), step: 1, count: Dim::parse(count).unwrap() };
        assert!(range("S").infer(&[]).is_ok() && range("0").infer(&[]).is_ok());
        assert_eq!(range("-1").infer(&[]).unwrap_err().to_string(), "a range of -1 elements");
        assert!(range("S").eval(&[]).is_err());
    }
}
