//! Formulas in few words, for operators that are composed of those of the graph.

use margay_ir::Op;
use margay_ir::Value;
use margay_ir::ops::{
    Abs, Add, And, Cast, Div, Equal, Exp, Less, LessOrEqual, Log, Max, Min, Mul, Neg, Not, Or, Range, Reduce,
    ReduceKind, Reshape, Select, Sqrt, Sub, Transpose,
};
use margay_tensor::{DType, Dim, Shape, Tensor};

use super::Importer;
use super::call::Refusal;

/// Positions up to so many are a constant at once, so that what is computed from them is known too.
const MAX_POSITIONS: usize = 1 << 16;

type Made = Result<Value, Refusal>;

/// Writes methods for operators with two operands.
macro_rules! pairs {
    ($($(#[$doc:meta])* $name:ident = $op:expr),* $(,)?) => {
        impl Importer<'_> { $(
            $(#[$doc])*
            pub(crate) fn $name(&mut self, x: Value, y: Value) -> Made {
                self.add($op, &[x, y])
            }
        )* }
    };
}
pairs! {
    /// x + y.
    plus = Add,
    /// x - y.
    minus = Sub,
    /// x y.
    times = Mul,
    /// x / y.
    over = Div,
    /// The larger.
    larger = Max,
    /// The smaller.
    smaller = Min,
    /// x = y.
    equal = Equal,
    /// x < y.
    less = Less,
    /// x <= y.
    at_most = LessOrEqual,
    /// x and y.
    both = And,
    /// x or y.
    either = Or,
}

/// Writes methods for operators with one operand.
macro_rules! singles {
    ($($(#[$doc:meta])* $name:ident = $op:expr),* $(,)?) => {
        impl Importer<'_> { $(
            $(#[$doc])*
            pub(crate) fn $name(&mut self, x: Value) -> Made {
                self.add($op, &[x])
            }
        )* }
    };
}
singles! {
    /// |x|.
    size = Abs,
    /// eˣ.
    exp = Exp,
    /// Natural logarithm.
    log = Log,
    /// √x.
    sqrt = Sqrt,
    /// -x.
    negated = Neg,
    /// Not x.
    not = Not,
}

impl Importer<'_> {
    /// x plus a number.
    pub(crate) fn offset(&mut self, x: Value, by: f64) -> Made {
        if by == 0.0 {
            return Ok(x);
        }
        let by = self.number(x, by)?;
        self.plus(x, by)
    }

    /// x times a number.
    pub(crate) fn scaled(&mut self, x: Value, by: f64) -> Made {
        if by == 1.0 {
            return Ok(x);
        }
        let by = self.number(x, by)?;
        self.times(x, by)
    }

    /// x, or a number where that is larger.
    pub(crate) fn floored(&mut self, x: Value, bound: f64) -> Made {
        let bound = self.number(x, bound)?;
        self.larger(x, bound)
    }

    /// x, or a number where that is smaller.
    pub(crate) fn capped(&mut self, x: Value, bound: f64) -> Made {
        let bound = self.number(x, bound)?;
        self.smaller(x, bound)
    }

    /// Whether x is less than a number.
    pub(crate) fn below(&mut self, x: Value, bound: f64) -> Made {
        let bound = self.number(x, bound)?;
        self.less(x, bound)
    }

    /// Whether x is more than a number.
    pub(crate) fn above(&mut self, x: Value, bound: f64) -> Made {
        let bound = self.number(x, bound)?;
        self.less(bound, x)
    }

    /// x where `test`, else y.
    pub(crate) fn chosen(&mut self, test: Value, x: Value, y: Value) -> Made {
        self.add(Select, &[test, x, y])
    }

    /// x where `test`, else a number.
    pub(crate) fn chosen_or(&mut self, test: Value, x: Value, other: f64) -> Made {
        let other = self.number(x, other)?;
        self.chosen(test, x, other)
    }

    /// x joined along axes.
    pub(crate) fn joined(&mut self, kind: ReduceKind, x: Value, axes: &[usize], keepdims: bool) -> Made {
        let mut axes = axes.to_vec();
        axes.sort_unstable();
        self.add(Reduce { kind, axes, keepdims }, &[x])
    }

    /// x as elements of a type.
    pub(crate) fn cast(&mut self, x: Value, to: DType) -> Made {
        if self.ty(x).dtype == to { Ok(x) } else { self.add(Cast { to }, &[x]) }
    }

    /// The type in which sums of a type are taken: f32 for halves, else itself.
    pub(crate) fn wide(&self, x: Value) -> DType {
        match self.ty(x).dtype {
            DType::F16 | DType::BF16 => DType::F32,
            other => other,
        }
    }

    /// What `f` makes of x in [`wide`](Importer::wide), in the type of x again.
    pub(crate) fn widely(
        &mut self,
        x: Value,
        f: impl FnOnce(&mut Importer, Value) -> Made,
    ) -> super::call::Imported {
        let (dtype, wide) = (self.ty(x).dtype, self.wide(x));
        let x = self.cast(x, wide)?;
        let y = f(self, x)?;
        Ok(vec![self.cast(y, dtype)?])
    }

    /// x with its axes in another order.
    pub(crate) fn transposed(&mut self, x: Value, perm: &[usize]) -> Made {
        if perm.is_sorted() { Ok(x) } else { self.add(Transpose { perm: perm.to_vec() }, &[x]) }
    }

    /// x with its axes in another order; of a constant, a constant.
    pub(crate) fn turned(&mut self, x: Value, perm: &[usize]) -> Made {
        let op = Op::from(Transpose { perm: perm.to_vec() });
        let origin = self.graph.node(x.node).origin.clone();
        let constant = self.graph.constant(x).map(|p| p.tensor().clone());
        match constant.and_then(|t| op.eval(&[&t]).ok()?.pop()) {
            Some(t) => self.leaf(t, origin),
            None => self.add(op, &[x]),
        }
    }

    /// x under another shape.
    pub(crate) fn shaped(&mut self, x: Value, shape: Shape) -> Made {
        if self.ty(x).shape == shape { Ok(x) } else { self.add(Reshape { shape }, &[x]) }
    }

    /// x with an axis of extent 1 more.
    pub(crate) fn unsqueezed(&mut self, x: Value, axis: usize) -> Made {
        let mut shape = self.ty(x).shape.clone();
        if axis > shape.len() {
            return Err(Refusal::Invalid(format!("expected at least {axis} axes, found {}", self.ty(x))));
        }
        shape.insert(axis, Dim::from(1usize));
        self.shaped(x, shape)
    }

    /// x repeated to a shape.
    pub(crate) fn spread(&mut self, x: Value, shape: Shape) -> Made {
        super::shapes::broadcast_to(self, x, shape)
    }

    /// x, of one axis, along an axis among so many, those others of extent 1.
    pub(crate) fn along(&mut self, x: Value, axis: usize, ndim: usize) -> Made {
        let [extent] = &self.ty(x).shape[..] else {
            return Err(Refusal::Invalid(format!("expected one axis, found {}", self.ty(x))));
        };
        let mut shape = vec![Dim::from(1usize); ndim];
        shape[axis] = extent.clone();
        self.shaped(x, shape)
    }

    /// The integers below an extent, as i64.
    pub(crate) fn iota(&mut self, extent: &Dim) -> Made {
        match extent.as_extent().filter(|&n| n <= MAX_POSITIONS) {
            Some(n) => {
                let positions: Vec<i64> = (0..n as i64).collect();
                self.list(&positions)
            }
            None => self.add(Range { start: Dim::default(), step: 1, count: extent.clone() }, &[]),
        }
    }

    /// The integers below the extent of axis `axis` of a shape, along that axis.
    pub(crate) fn positions(&mut self, shape: &[Dim], axis: usize) -> Made {
        let extent = shape.get(axis).ok_or_else(|| {
            let ndim = shape.len();
            Refusal::Invalid(format!("expected a tensor with more than {axis} axes, found {ndim}"))
        })?;
        let positions = self.iota(extent)?;
        self.along(positions, axis, shape.len())
    }

    /// Integers along one axis, as i64.
    pub(crate) fn list(&mut self, values: &[i64]) -> Made {
        let tensor = Tensor::from_slice(&[values.len()], values);
        self.constant(tensor.map_err(|e| Refusal::Invalid(e.to_string()))?)
    }

    /// An extent as a number without axes, in a type.
    pub(crate) fn extent(&mut self, extent: &Dim, dtype: DType) -> Made {
        match extent.as_const() {
            Some(v) => self.scalar(dtype, v as f64),
            None => {
                let extent = self.dim(extent.clone())?;
                self.cast(extent, dtype)
            }
        }
    }

    /// Numbers under a shape, in a type.
    pub(crate) fn table(&mut self, dtype: DType, shape: &[usize], values: Vec<f64>) -> Made {
        let tensor = margay_ir::ops::Numbers::Float(values).into_tensor(dtype, shape);
        self.constant(tensor.map_err(|e| Refusal::Invalid(e.to_string()))?)
    }

    /// The number that a value is, if it is a constant of one element.
    pub(crate) fn one_number(&self, v: Value) -> Option<f64> {
        self.numbers(v).filter(|all| all.len() == 1).and_then(|all| all.first().copied())
    }

    /// An operator of one result.
    pub(crate) fn one(&mut self, op: impl Into<Op>, inputs: &[Value]) -> super::call::Imported {
        Ok(vec![self.add(op, inputs)?])
    }
}
