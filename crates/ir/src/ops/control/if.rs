//! One of two graphs: `then` where the first operand is true, else `otherwise`. The other operands are the inputs of
//! both, in order. Only the graph that is chosen runs.

use margay_tensor::{DType, Tensor};

use crate::ops::attributes::attributes;
use crate::ops::control::truth;
use crate::ops::{Case, CaseInput, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Op, Region, TensorType, TypeError, Types, types};

/// Chooses between two graphs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct If {
    /// Runs where the test is true.
    pub then: Region,
    /// Runs where the test is false. Inputs and outputs have the types of those of the other graph.
    pub otherwise: Region,
}

attributes!(If { then, otherwise });

impl OpDef for If {
    const NAME: &'static str = "if";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let Some(test) = inputs.first() else {
            return Err(TypeError::Arity { expected: "at least 1", found: 0 });
        };
        types::expect_single(0, test, DType::Bool)?;
        let operands: Vec<_> = inputs.iter().copied().enumerate().skip(1).collect();
        let (then, otherwise) = (self.then.infer(&operands)?, self.otherwise.infer(&operands)?);
        if then != otherwise || then.is_empty() {
            let list = |t: &Types| t.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let (then, otherwise) = (list(&then), list(&otherwise));
            return Err(TypeError::attribute(format!("`then` gives ({then}), `otherwise` ({otherwise})")));
        }
        Ok(then)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let region = if inputs[0].bytes() == [0] { &self.otherwise } else { &self.then };
        region.eval(&inputs[1..])
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::none("the derivative of a choice between two graphs is not written yet")
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        Ok(Lowered::If { then: self.then.clone(), otherwise: self.otherwise.clone() })
    }

    fn cost(&self, _: &Io) -> Cost {
        let (then, otherwise) = (self.then.cost(), self.otherwise.cost());
        Cost { flops: then.flops.max(otherwise.flops), bytes: then.bytes.max(otherwise.bytes) }
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
        let region = |text: &str| Region::parse(text);
        let head = "(%x: f32[3, 4], %y: f32[4]) -> (a: f32[3, 4], b: f32[4])";
        let then = format!(
            "graph @then{head} {{\n%0 = add %x, %y : f32[3, 4]\n%1 = exp %y : f32[4]\nreturn %0, %1\n}}"
        );
        // An input passed on, and a constant.
        let otherwise =
            format!("graph @otherwise{head} {{\n%0 = const [1.0, 2.0, 3.0, 4.0] : f32[4]\nreturn %x, %0\n}}");
        let op = If { then: region(&then), otherwise: region(&otherwise) };
        let case = |test: bool| {
            let test = truth(test);
            let given = |shape: &[usize]| CaseInput::Random {
                dtype: DType::F32,
                shape: shape.to_vec(),
                low: -2.0,
                high: 2.0,
            };
            Case { inputs: vec![CaseInput::Values(test), given(&[3, 4]), given(&[4])] }
        };
        vec![(op.clone(), case(true)), (op, case(false))]
    }
}
