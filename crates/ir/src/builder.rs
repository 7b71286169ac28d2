//! Formulas as nodes: added to a graph, or to a patch of one, under one origin.

use margay_tensor::{DType, Tensor};

use crate::graph::AddError;
use crate::ops::{
    Add, Broadcast, Cast, Const, Dims, Div, Less, Max, Min, Mul, Neg, Reduce, ReduceKind, Reshape, Round,
    Select, Sqrt, Sub, Transpose,
};
use crate::{Graph, Op, Origin, Patch, Payload, TensorType, Value};

/// Adds nodes that carry one origin. Constants that it makes on the way have none.
pub struct Builder<'a> {
    place: Place<'a>,
    origin: Origin,
}

/// Where nodes go.
enum Place<'a> {
    Graph(&'a mut Graph),
    Patch(&'a Graph, &'a mut Patch),
}

impl<'a> Builder<'a> {
    /// Adds to a graph.
    pub fn new(graph: &'a mut Graph, origin: Origin) -> Builder<'a> {
        Builder { place: Place::Graph(graph), origin }
    }

    /// Adds to a patch of a graph; reads values of both.
    pub fn patching(graph: &'a Graph, patch: &'a mut Patch, origin: Origin) -> Builder<'a> {
        Builder { place: Place::Patch(graph, patch), origin }
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &TensorType {
        match &self.place {
            Place::Graph(g) => g.ty(v),
            Place::Patch(g, patch) => patch.ty(g, v),
        }
    }

    /// What new nodes carry.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The numbers and the origin of a constant; `None` for any other value.
    pub fn constant_of(&self, v: Value) -> Option<(&Payload, &Origin)> {
        match &self.place {
            Place::Graph(g) => Some((g.constant(v)?, &g.node(v.node).origin)),
            Place::Patch(g, patch) => patch.constant(g, v),
        }
    }

    /// The two constants that a value is the product of; `None` for any other value.
    pub fn factors_of(&self, v: Value) -> Option<[Value; 2]> {
        let (op, operands) = match &self.place {
            Place::Graph(g) => (g.op(v.node), g.inputs_of(v.node).to_vec()),
            Place::Patch(g, patch) => patch.source(g, v),
        };
        let factors: [Value; 2] = operands.try_into().ok()?;
        let both = factors.iter().all(|factor| self.constant_of(*factor).is_some());
        (matches!(op, Op::MatMul(_)) && both).then_some(factors)
    }

    /// Adds a node.
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, AddError> {
        let origin = self.origin.clone();
        self.op_for(op, inputs, origin)
    }

    /// Adds a node of another origin.
    pub fn op_for(&mut self, op: impl Into<Op>, inputs: &[Value], origin: Origin) -> Result<Value, AddError> {
        match &mut self.place {
            Place::Graph(g) => g.add(op, inputs, origin),
            Place::Patch(g, patch) => patch.add(g, op, inputs, origin),
        }
    }

    /// A constant.
    pub fn constant(&mut self, tensor: Tensor) -> Result<Value, AddError> {
        self.op_for(Const { payload: Payload::new(tensor) }, &[], Origin::default())
    }

    /// A number as a constant without axes, rounded to the type.
    pub fn scalar(&mut self, dtype: DType, x: f64) -> Result<Value, AddError> {
        self.op_for(Const { payload: Payload::number(dtype, x) }, &[], Origin::default())
    }

    /// The number `x` in the element type of a value.
    pub fn number(&mut self, like: Value, x: f64) -> Result<Value, AddError> {
        self.scalar(self.ty(like).dtype, x)
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

    /// A value as elements of a type.
    pub fn cast(&mut self, v: Value, to: DType) -> Result<Value, AddError> {
        if self.ty(v).dtype == to { Ok(v) } else { self.op(Cast { to }, &[v]) }
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

    /// √x.
    pub fn sqrt(&mut self, x: Value) -> Result<Value, AddError> {
        self.op(Sqrt, &[x])
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

    /// max(x, bound).
    pub fn at_least(&mut self, x: Value, bound: f64) -> Result<Value, AddError> {
        let bound = self.number(x, bound)?;
        self.op(Max, &[x, bound])
    }

    /// min(x, bound).
    pub fn at_most(&mut self, x: Value, bound: f64) -> Result<Value, AddError> {
        let bound = self.number(x, bound)?;
        self.op(Min, &[x, bound])
    }

    /// Whether x < y.
    pub fn less(&mut self, x: Value, y: Value) -> Result<Value, AddError> {
        self.op(Less, &[x, y])
    }

    /// Whether x > 0.
    pub fn positive(&mut self, x: Value) -> Result<Value, AddError> {
        let zero = self.number(x, 0.0)?;
        self.less(zero, x)
    }

    /// x where `test`, else a number.
    pub fn where_or(&mut self, test: Value, x: Value, other: f64) -> Result<Value, AddError> {
        let other = self.number(x, other)?;
        self.op(Select, &[test, x, other])
    }

    /// `x` where `test`, else 0; and the other way round.
    pub fn split(&mut self, test: Value, x: Value) -> Result<[Value; 2], AddError> {
        let zero = self.number(x, 0.0)?;
        Ok([self.op(Select, &[test, x, zero])?, self.op(Select, &[test, zero, x])?])
    }

    /// x as u8, by its range: elements, scale and zero point, where x is about (element - zero) scale. The range is that of all
    /// elements of x, an f32, and of 0.
    pub fn quantized_by_range(&mut self, x: Value) -> Result<[Value; 3], AddError> {
        let low = self.join(ReduceKind::Min, x, 0)?;
        let low = self.at_most(low, 0.0)?;
        let high = self.join(ReduceKind::Max, x, 0)?;
        let high = self.at_least(high, 0.0)?;
        let range = self.sub(high, low)?;
        let levels = self.number(range, 255.0)?;
        let scale = self.div(range, levels)?;
        let some = self.positive(range)?;
        let scale = self.where_or(some, scale, 1.0)?;
        let byte = |b: &mut Self, level: Value| {
            let level = b.at_most(level, 255.0)?;
            let level = b.at_least(level, 0.0)?;
            b.cast(level, DType::U8)
        };
        let negative = self.neg(low)?;
        let zero = self.div(negative, scale)?;
        let zero = self.op(Round, &[zero])?;
        let zero = byte(self, zero)?;
        let elements = self.div(x, scale)?;
        let elements = self.op(Round, &[elements])?;
        let shift = self.cast(zero, DType::F32)?;
        let elements = self.add(elements, shift)?;
        Ok([byte(self, elements)?, scale, zero])
    }

    /// x rounded to what [`quantized_by_range`](Builder::quantized_by_range) makes of it.
    pub fn rounded_by_range(&mut self, x: Value) -> Result<Value, AddError> {
        let [elements, scale, zero] = self.quantized_by_range(x)?;
        let (elements, zero) = (self.cast(elements, DType::I32)?, self.cast(zero, DType::I32)?);
        let centred = self.sub(elements, zero)?;
        let centred = self.cast(centred, DType::F32)?;
        self.mul(centred, scale)
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

    /// The sum over the last axis, which disappears.
    pub fn sum_last(&mut self, x: Value) -> Result<Value, AddError> {
        let axis = self.ty(x).ndim() - 1;
        self.op(Reduce { kind: ReduceKind::Sum, axes: vec![axis], keepdims: false }, &[x])
    }

    /// The sum of all elements. Rows first, so that rows can be summed side by side.
    pub fn sum_all(&mut self, x: Value) -> Result<Value, AddError> {
        let rows = if self.ty(x).ndim() > 1 { self.sum_last(x)? } else { x };
        self.join(ReduceKind::Sum, rows, 0)
    }

    /// Joins the axes from `first` on; x itself if it has none.
    pub fn join(&mut self, kind: ReduceKind, x: Value, first: usize) -> Result<Value, AddError> {
        let axes: Vec<usize> = (first..self.ty(x).ndim()).collect();
        if axes.is_empty() { Ok(x) } else { self.op(Reduce { kind, axes, keepdims: false }, &[x]) }
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
}
