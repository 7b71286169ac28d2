//! Reverse-mode derivatives: what the rule of an operator sees, and what it answers.
//!
//! For a node `y = f(x₀, x₁, …)` and the derivative of a scalar by `y`, its *cotangent*, a rule adds nodes that compute
//! the cotangents of the inputs (a vector-Jacobian product). Summing over axes along which an input was repeated, and
//! adding up what several readers contribute, is not the business of rules: a rule may answer with the shape of the
//! output wherever that broadcasts from the shape of the input. That is what [`derivatives`] does, which asks the rules one after
//! the other.

mod reverse;

pub use reverse::{DerivativeError, derivatives};

use std::ops::{Deref, DerefMut};

use crate::graph::AddError;
use crate::ops::{MulOrZero, Numbers};
use crate::{Builder, Graph, NodeId, Op, Origin, Patch, Value};

/// What a rule answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Grad {
    /// One cotangent per input; `None` for one that is zero, or of an input without derivatives.
    Inputs(Vec<Option<Value>>),
    /// There is no derivative, or no rule for it.
    None {
        /// Why.
        why: String,
    },
}

/// A rule's failure to build a node.
pub type GradResult = Result<Grad, AddError>;

impl Grad {
    /// The cotangents of all inputs.
    pub fn all(cotangents: impl IntoIterator<Item = Value>) -> GradResult {
        Ok(Grad::Inputs(cotangents.into_iter().map(Some).collect()))
    }

    /// `inputs` inputs that do not matter to the output, as far as derivatives go.
    pub fn zero(inputs: usize) -> GradResult {
        Ok(Grad::Inputs(vec![None; inputs]))
    }

    /// No rule.
    pub fn none(why: impl Into<String>) -> GradResult {
        Ok(Grad::None { why: why.into() })
    }
}

/// A node whose derivative is asked for: a [`Builder`] of what answers.
pub struct Vjp<'a> {
    graph: &'a Graph,
    builder: Builder<'a>,
    node: NodeId,
    /// Origin of the node.
    of: Origin,
    inputs: Vec<Value>,
    cotangents: Vec<Option<Value>>,
    wanted: Vec<bool>,
}

impl<'a> Deref for Vjp<'a> {
    type Target = Builder<'a>;

    fn deref(&self) -> &Builder<'a> {
        &self.builder
    }
}

impl<'a> DerefMut for Vjp<'a> {
    fn deref_mut(&mut self) -> &mut Builder<'a> {
        &mut self.builder
    }
}

impl<'a> Vjp<'a> {
    /// Asks for the derivative of a node by those of its inputs that are `wanted`, given the cotangents of its outputs
    /// (`None` for zero), which are values of the graph or of the patch. New nodes go to the patch and carry `origin`.
    pub fn new(
        graph: &'a Graph,
        patch: &'a mut Patch,
        node: NodeId,
        cotangents: Vec<Option<Value>>,
        wanted: Vec<bool>,
        origin: Origin,
    ) -> Vjp<'a> {
        let (of, inputs) = (graph.node(node).origin.clone(), graph.inputs_of(node).to_vec());
        Vjp { graph, builder: Builder::patching(graph, patch, origin), node, of, inputs, cotangents, wanted }
    }

    /// An input of the node.
    pub fn input(&self, i: usize) -> Value {
        self.inputs[i]
    }

    /// Number of inputs.
    pub fn arity(&self) -> usize {
        self.inputs.len()
    }

    /// The first output of the node.
    pub fn output(&self) -> Value {
        self.node.into()
    }

    /// The cotangent of the first output: zeros if it has none.
    pub fn cotangent(&mut self) -> Result<Value, AddError> {
        match self.cotangents[0] {
            Some(v) => Ok(v),
            None => {
                let y = self.output();
                self.filled(y, 0.0)
            }
        }
    }

    /// The cotangent of an output, `None` for zero.
    pub fn cotangent_of(&self, out: usize) -> Option<Value> {
        self.cotangents.get(out).copied().flatten()
    }

    /// A cotangent times a derivative; 0 where the cotangent is, whatever the derivative is there.
    pub fn product(&mut self, cotangent: Value, derivative: Value) -> Result<Value, AddError> {
        if self.is_finite(derivative) {
            return self.mul(cotangent, derivative);
        }
        self.op(MulOrZero, &[cotangent, derivative])
    }

    /// A cotangent over the reciprocal of a derivative; 0 where the cotangent is.
    pub fn quotient(&mut self, cotangent: Value, divisor: Value) -> Result<Value, AddError> {
        if self.is_finite(divisor) {
            return self.div(cotangent, divisor);
        }
        let one = self.number(divisor, 1.0)?;
        let derivative = self.div(one, divisor)?;
        self.product(cotangent, derivative)
    }

    /// Whether a value of the graph is a constant of numbers other than 0.
    fn is_finite(&self, v: Value) -> bool {
        let constant = self.inputs.contains(&v).then(|| self.graph.constant(v)).flatten();
        let numbers = constant.and_then(|c| Numbers::of(c.tensor()).ok()).map(Numbers::floats);
        numbers.is_some_and(|all| all.iter().all(|x| x.is_finite() && *x != 0.0))
    }

    /// Whether anybody asks for the cotangent of an input.
    pub fn wants(&self, input: usize) -> bool {
        self.wanted[input]
    }

    /// Adds a node that does what the node itself does and more, such as a further result. It stands for the node, so
    /// that the two are merged later.
    pub fn again(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, AddError> {
        let origin = self.of.clone();
        self.builder.op_for(op, inputs, origin)
    }
}
