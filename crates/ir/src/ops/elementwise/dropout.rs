//! A place where training drops elements: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, *Dropout: A Simple
//! Way to Prevent Neural Networks from Overfitting*, JMLR 15, 2014.
//!
//! The operator itself is the identity, which is what dropout is in inference. A training step puts a random mask in its
//! place: each element is 0 with probability `ratio`, else it is divided by `1 - ratio`.

use margay_tensor::Tensor;

use crate::ops::attributes::{Bits, attributes};
use crate::ops::elementwise::Domain;
use crate::ops::facts::Elementwise;
use crate::ops::{Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, TensorType, TypeError, Types, types};

/// The identity on floats, where training drops elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Dropout {
    /// The probability that an element is dropped, at least 0 and below 1.
    pub ratio: Bits,
    /// Tells apart the masks of a graph: places of the same number drop the same elements. Below 2³⁰.
    pub stream: usize,
}

attributes!(Dropout { ratio, stream });

/// Numbers of streams are below this.
const STREAMS: usize = 1 << 30;

impl OpDef for Dropout {
    const NAME: &'static str = "dropout";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [x] = types::inputs(inputs, "1")?;
        Domain::Float.check(0, x)?;
        let ratio = self.ratio.get();
        if !(0.0..1.0).contains(&ratio) {
            return Err(TypeError::attribute(format!("a ratio of {ratio}, expected at least 0 and below 1")));
        }
        if self.stream >= STREAMS {
            return Err(TypeError::attribute(format!("stream {}, expected below {STREAMS}", self.stream)));
        }
        types::one(x.dtype, x.shape.clone())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Ok(vec![inputs[0].clone()])
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
        let dy = cx.cotangent()?;
        Grad::all([dy])
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        Ok(Lowered::elementwise(|_, x| x[0]))
    }

    fn cost(&self, io: &Io) -> Cost {
        Cost::per_element(io, 0)
    }

    fn facts(&self) -> Facts {
        // Not said to be an identity: it would be taken out before training sees it.
        Facts::elementwise(Elementwise { neutral: None, activation: None }, None, &[])
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        Some(self.clone().into())
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.apart(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        let case = |ratio: f64, stream, shape: &[usize]| {
            (Dropout { ratio: Bits::new(ratio), stream }, Case::f32(&[shape]))
        };
        vec![case(0.5, 0, &[3, 7]), case(0.0, 7, &[4])]
    }
}

#[cfg(test)]
mod tests {
    use margay_tensor::DType;

    use super::*;

    #[test]
    fn ratios_are_probabilities_below_1() {
        let refused = |ratio: f64, stream, dtype| {
            let dropout = Dropout { ratio: Bits::new(ratio), stream };
            dropout.infer(&[&TensorType::known(dtype, &[3])]).err().map(|e| e.to_string())
        };
        assert_eq!(refused(0.999, 0, DType::F32), None);
        for ratio in [-0.1, 1.0, f64::NAN] {
            let said = refused(ratio, 0, DType::F32).unwrap();
            assert_eq!(said, format!("a ratio of {ratio}, expected at least 0 and below 1"));
        }
        assert!(refused(0.5, STREAMS, DType::F64).unwrap().starts_with("stream "));
        assert!(refused(0.5, 0, DType::I64).is_some());
    }
}
