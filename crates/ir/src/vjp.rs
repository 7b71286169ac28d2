//! Reverse-mode derivatives: what the rule of an operator sees, and what it answers.
//!
//! For a node `y = f(x₀, x₁, …)` and the derivative of a scalar by `y`, its *cotangent*, a rule adds nodes that compute
//! the cotangents of the inputs (a vector-Jacobian product). Summing over axes along which an input was repeated, and
//! adding up what several readers contribute, is not the business of rules: a rule may answer with the shape of the
//! output wherever that broadcasts from the shape of the input.

use margay_tensor::Tensor;

use crate::graph::AddError;
use crate::ops::{
    Add, Broadcast, Cast, Const, Dims, Div, Less, Mul, Neg, Numbers, Reduce, ReduceKind, Reshape, Select,
    Sub, Transpose,
};
use crate::{Graph, NodeId, Op, Origin, Payload, TensorType, Value};

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

/// A node whose derivative is asked for, and the graph to which the answer is added.
pub struct Vjp<'g> {
    graph: &'g mut Graph,
    node: NodeId,
    inputs: Vec<Value>,
    cotangents: Vec<Option<Value>>,
    wanted: Vec<bool>,
    origin: Origin,
}

impl<'g> Vjp<'g> {
    /// Asks for the derivative of a node by those of its inputs that are `wanted`, given the cotangents of its outputs
    /// (`None` for zero). New nodes carry `origin`.
    pub fn new(
        graph: &'g mut Graph,
        node: NodeId,
        cotangents: Vec<Option<Value>>,
        wanted: Vec<bool>,
        origin: Origin,
    ) -> Vjp<'g> {
        let inputs = graph.inputs_of(node).to_vec();
        Vjp { graph, node, inputs, cotangents, wanted, origin }
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
            None => self.filled(self.node.into(), 0.0),
        }
    }

    /// The cotangent of an output, `None` for zero.
    pub fn cotangent_of(&self, out: usize) -> Option<Value> {
        self.cotangents.get(out).copied().flatten()
    }

    /// Whether anybody asks for the cotangent of an input.
    pub fn wants(&self, input: usize) -> bool {
        self.wanted[input]
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &TensorType {
        self.graph.ty(v)
    }

    /// Adds a node.
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, AddError> {
        self.graph.add(op, inputs, self.origin.clone())
    }

    /// Adds a node that does what the node itself does and more, such as a further result. It stands for the node, so
    /// that the two are merged later.
    pub fn again(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, AddError> {
        let origin = self.graph.node(self.node).origin.clone();
        self.graph.add(op, inputs, origin)
    }

    /// The number `x` in the element type of a value.
    pub fn number(&mut self, like: Value, x: f64) -> Result<Value, AddError> {
        let dtype = self.ty(like).dtype;
        let one = Numbers::Float(vec![x]).into_tensor(dtype, &[]).expect("a scalar of any type can be made");
        self.graph.add(Const { payload: Payload::new(one) }, &[], Origin::default())
    }

    /// The number `x` in every element of the type of a value.
    pub fn filled(&mut self, like: Value, x: f64) -> Result<Value, AddError> {
        let one = self.number(like, x)?;
        self.broadcast_like(one, like)
    }

    /// `v` repeated to the shape of `like`.
    pub fn broadcast_like(&mut self, v: Value, like: Value) -> Result<Value, AddError> {
        let shape = self.ty(like).shape.clone();
        self.op(Broadcast { shape }, &[v])
    }

    /// `v` under the shape of `like`.
    pub fn reshape_like(&mut self, v: Value, like: Value) -> Result<Value, AddError> {
        let shape = self.ty(like).shape.clone();
        if self.ty(v).shape == shape { Ok(v) } else { self.op(Reshape { shape }, &[v]) }
    }

    /// x + y.
    pub fn add(&mut self, x: Value, y: Value) -> Result<Value, AddError> {
        self.op(Add, &[x, y])
    }

    /// x - y.
    pub fn sub(&mut self, x: Value, y: Value) -> Result<Value, AddError> {
        self.op(Sub, &[x, y])
    }

    /// x y.
    pub fn mul(&mut self, x: Value, y: Value) -> Result<Value, AddError> {
        self.op(Mul, &[x, y])
    }

    /// x / y.
    pub fn div(&mut self, x: Value, y: Value) -> Result<Value, AddError> {
        self.op(Div, &[x, y])
    }

    /// -x.
    pub fn neg(&mut self, x: Value) -> Result<Value, AddError> {
        self.op(Neg, &[x])
    }

    /// x times a number.
    pub fn scale(&mut self, x: Value, by: f64) -> Result<Value, AddError> {
        let by = self.number(x, by)?;
        self.mul(x, by)
    }

    /// x plus a number.
    pub fn offset(&mut self, x: Value, by: f64) -> Result<Value, AddError> {
        let by = self.number(x, by)?;
        self.add(x, by)
    }

    /// `x` where `test`, else 0; and the other way round.
    pub fn split(&mut self, test: Value, x: Value) -> Result<[Value; 2], AddError> {
        let zero = self.number(x, 0.0)?;
        Ok([self.op(Select, &[test, x, zero])?, self.op(Select, &[test, zero, x])?])
    }

    /// Whether x < y.
    pub fn less(&mut self, x: Value, y: Value) -> Result<Value, AddError> {
        self.op(Less, &[x, y])
    }

    /// x with its last two axes exchanged.
    pub fn transposed(&mut self, x: Value) -> Result<Value, AddError> {
        let n = self.ty(x).ndim();
        let mut perm: Vec<usize> = (0..n).collect();
        perm.swap(n - 2, n - 1);
        self.op(Transpose { perm }, &[x])
    }

    /// The sum over axes, which stay with extent 1.
    pub fn sum_kept(&mut self, x: Value, axes: Vec<usize>) -> Result<Value, AddError> {
        self.op(Reduce { kind: ReduceKind::Sum, axes, keepdims: true }, &[x])
    }

    /// The number of elements along axes of a value, as a scalar of its element type.
    pub fn count(&mut self, of: Value, axes: &[usize]) -> Result<Value, AddError> {
        let (dtype, shape) = (self.ty(of).dtype, self.ty(of).shape.clone());
        let values: Vec<_> = axes.iter().map(|&axis| shape[axis].clone()).collect();
        if let Some(known) = values.iter().map(|d| d.as_extent()).product::<Option<usize>>() {
            return self.number(of, known as f64);
        }
        let dims = self.op(Dims { values }, &[])?;
        let all = Reduce { kind: ReduceKind::Prod, axes: vec![0], keepdims: false };
        let count = self.op(all, &[dims])?;
        self.op(Cast { to: dtype }, &[count])
    }

    /// A constant.
    pub fn constant(&mut self, tensor: Tensor) -> Result<Value, AddError> {
        self.graph.add(Const { payload: Payload::new(tensor) }, &[], Origin::default())
    }
}
