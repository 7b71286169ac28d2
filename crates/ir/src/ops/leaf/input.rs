//! An input of the graph.

use margay_tensor::{Binding, Tensor};

use crate::ops::{Attributes, Case, Cost, EvalError, Facts, Io, Lowered, NotLowered, OpDef};
use crate::padding::{Padded, Padding};
use crate::vjp::{Grad, GradResult, Vjp};
use crate::{Name, Op, TensorType, TypeError, Types, types};

/// An input; made by [`Graph::add_input`](crate::Graph::add_input), printed in the graph's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Input {
    /// The name in the model.
    pub name: Name,
    /// Its type.
    pub ty: TensorType,
}

impl Attributes for Input {
    fn write(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn read(_: &[(&str, &str)]) -> Result<Self, String> {
        Err("inputs stand in the header of a graph".into())
    }

    fn bind(&self, binding: &Binding) -> Self {
        Input { name: self.name.clone(), ty: self.ty.bind(binding) }
    }
}

impl OpDef for Input {
    const NAME: &'static str = "input";

    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
        let [] = types::inputs(inputs, "none")?;
        Ok([self.ty.clone()].into_iter().collect())
    }

    fn eval(&self, _: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(TypeError::attribute(format!("input `{}` was given no value", self.name)).into())
    }

    fn vjp(&self, _: &mut Vjp<'_>) -> GradResult {
        Grad::zero(0)
    }

    fn lower(&self, _: &Io) -> Result<Lowered, NotLowered> {
        Ok(Lowered::Leaf)
    }

    fn cost(&self, _: &Io) -> Cost {
        Cost::default()
    }

    fn facts(&self) -> Facts {
        Facts::leaf()
    }

    fn permuted(&self, _: &[usize]) -> Option<Op> {
        None
    }

    fn padded(&self, cx: &mut Padding<'_>) -> Padded {
        cx.apart(self.clone())
    }

    fn cases() -> Vec<(Self, Case)> {
        Vec::new()
    }
}
