//! Formulas as nodes: a graph that grows, and the name under which it does.

use margay_ir::ops::{
    Add, Cast, Const, Div, Less, Max, Min, Mul, Numbers, Reduce, ReduceKind, Select, Sqrt, Sub,
};
use margay_ir::{Graph, Op, Origin, Payload, TensorType, Value};
use margay_tensor::{DType, Tensor};

use crate::TrainError;

/// Adds nodes to a graph.
pub(crate) struct Nodes<'g> {
    graph: &'g mut Graph,
    origin: Origin,
}

impl<'g> Nodes<'g> {
    /// Nodes that carry this name.
    pub(crate) fn new(graph: &'g mut Graph, name: &str) -> Nodes<'g> {
        Nodes { graph, origin: Origin::named(name) }
    }

    pub(crate) fn ty(&self, v: Value) -> &TensorType {
        self.graph.ty(v)
    }

    pub(crate) fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, TrainError> {
        self.graph
            .add(op, inputs, self.origin.clone())
            .map_err(|error| TrainError::Add { what: self.origin.name().to_string(), error: error.into() })
    }

    pub(crate) fn constant(&mut self, tensor: Tensor) -> Result<Value, TrainError> {
        let constant = Const { payload: Payload::new(tensor) };
        self.graph
            .add(constant, &[], Origin::default())
            .map_err(|error| TrainError::Add { what: self.origin.name().to_string(), error: error.into() })
    }

    /// The number `x` in the element type of a value.
    pub(crate) fn number(&mut self, like: Value, x: f64) -> Result<Value, TrainError> {
        let tensor = Numbers::Float(vec![x]).into_tensor(self.ty(like).dtype, &[]);
        self.constant(tensor.expect("a scalar of any type can be made"))
    }

    /// A value as elements of a type.
    pub(crate) fn cast(&mut self, v: Value, to: DType) -> Result<Value, TrainError> {
        if self.ty(v).dtype == to { Ok(v) } else { self.op(Cast { to }, &[v]) }
    }

    pub(crate) fn add(&mut self, x: Value, y: Value) -> Result<Value, TrainError> {
        self.op(Add, &[x, y])
    }

    pub(crate) fn sub(&mut self, x: Value, y: Value) -> Result<Value, TrainError> {
        self.op(Sub, &[x, y])
    }

    pub(crate) fn mul(&mut self, x: Value, y: Value) -> Result<Value, TrainError> {
        self.op(Mul, &[x, y])
    }

    pub(crate) fn div(&mut self, x: Value, y: Value) -> Result<Value, TrainError> {
        self.op(Div, &[x, y])
    }

    pub(crate) fn sqrt(&mut self, x: Value) -> Result<Value, TrainError> {
        self.op(Sqrt, &[x])
    }

    pub(crate) fn scale(&mut self, x: Value, by: f64) -> Result<Value, TrainError> {
        let by = self.number(x, by)?;
        self.mul(x, by)
    }

    pub(crate) fn offset(&mut self, x: Value, by: f64) -> Result<Value, TrainError> {
        let by = self.number(x, by)?;
        self.add(x, by)
    }

    pub(crate) fn at_least(&mut self, x: Value, bound: f64) -> Result<Value, TrainError> {
        let bound = self.number(x, bound)?;
        self.op(Max, &[x, bound])
    }

    pub(crate) fn at_most(&mut self, x: Value, bound: f64) -> Result<Value, TrainError> {
        let bound = self.number(x, bound)?;
        self.op(Min, &[x, bound])
    }

    /// Whether x > 0.
    pub(crate) fn positive(&mut self, x: Value) -> Result<Value, TrainError> {
        let zero = self.number(x, 0.0)?;
        self.op(Less, &[zero, x])
    }

    /// x where `test`, else a number.
    pub(crate) fn where_or(&mut self, test: Value, x: Value, other: f64) -> Result<Value, TrainError> {
        let other = self.number(x, other)?;
        self.op(Select, &[test, x, other])
    }

    /// The sum over the last axis, which disappears.
    pub(crate) fn sum_last(&mut self, x: Value) -> Result<Value, TrainError> {
        let axis = self.ty(x).ndim() - 1;
        self.op(Reduce { kind: ReduceKind::Sum, axes: vec![axis], keepdims: false }, &[x])
    }

    /// The sum of all elements. Rows first, so that rows can be summed side by side.
    pub(crate) fn sum_all(&mut self, x: Value) -> Result<Value, TrainError> {
        let rows = if self.ty(x).ndim() > 1 { self.sum_last(x)? } else { x };
        self.join(ReduceKind::Sum, rows, 0)
    }

    /// Joins the axes from `first` on; x itself if it has none.
    pub(crate) fn join(&mut self, kind: ReduceKind, x: Value, first: usize) -> Result<Value, TrainError> {
        let axes: Vec<usize> = (first..self.ty(x).ndim()).collect();
        if axes.is_empty() { Ok(x) } else { self.op(Reduce { kind, axes, keepdims: false }, &[x]) }
    }
}
