//! Extents that a run decides, given their bounds: what an operator answers, and what it is asked with.
//!
//! A symbol whose name ends with `'` stands for an extent that a run decides; `cut` says which number it is. Before a
//! graph is lowered, every such extent becomes its bound. A value then has more positions along an axis than it had:
//! those it had come first, and the others hold anything. An operator answers with nodes whose results have, at the
//! positions there were, what it computed before. The numbers themselves are single i64, the *counts*.

use std::collections::BTreeMap;

use margay_tensor::{Binding, Dim, Factor, Symbol, Tensor, is_decided};

use crate::graph::AddError;
use crate::ops::{Div, Less, Range, Reshape, Select};
use crate::{Builder, Graph, Op, Origin, TensorType, Types, Value};

/// Why a node cannot have bounds in place of extents that a run decides.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PaddingError {
    /// A node that an operator answered with does not type (our fault).
    #[error(transparent)]
    Add(#[from] AddError),
    /// The operator has no answer for such an extent (a limit of margay).
    #[error("{0}")]
    Refused(String),
}

/// What an operator answers: its results.
pub type Padded = Result<Vec<Value>, PaddingError>;

/// What further positions along an axis of an operand do to the result at those there were.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Along {
    /// Nothing: they make further positions behind the others, or none.
    Apart,
    /// Nothing where they hold this number.
    Neutral(f64),
    /// They change it.
    Change,
}

/// Bounds and counts of the extents that a run decides, by their symbols.
#[derive(Clone, Debug, Default)]
pub struct Decided {
    /// The most that they can be.
    pub bounds: Binding,
    /// What they are: i64 without axes.
    pub counts: BTreeMap<Symbol, Value>,
}

/// A node that is to be added with bounds in place of extents that a run decides.
pub struct Padding<'a> {
    graph: &'a mut Graph,
    origin: Origin,
    decided: &'a mut Decided,
    /// Of the operands and results, with symbols.
    types: Vec<TensorType>,
    results: Types,
    inputs: Vec<Value>,
}

impl<'a> Padding<'a> {
    /// For a node with operands and results of these types, and those operands with bounds, which are values of `graph`.
    pub fn new(
        graph: &'a mut Graph,
        origin: Origin,
        decided: &'a mut Decided,
        types: Vec<TensorType>,
        results: Types,
        inputs: Vec<Value>,
    ) -> Padding<'a> {
        Padding { graph, origin, decided, types, results, inputs }
    }

    /// Adds nodes of the origin of the node.
    pub fn builder(&mut self) -> Builder<'_> {
        Builder::new(self.graph, self.origin.clone())
    }

    /// Adds one.
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, PaddingError> {
        Ok(self.builder().op(op, inputs)?)
    }

    /// An operand with bounds.
    pub fn input(&self, i: usize) -> Value {
        self.inputs[i]
    }

    /// Number of operands.
    pub fn arity(&self) -> usize {
        self.inputs.len()
    }

    /// The type of an operand before.
    pub fn type_of(&self, i: usize) -> &TensorType {
        &self.types[i]
    }

    /// The type of the first result before.
    pub fn result(&self) -> &TensorType {
        &self.results[0]
    }

    /// The most that an extent can be.
    pub fn bound(&self, dim: &Dim) -> Dim {
        dim.substitute(&self.decided.bounds)
    }

    /// The operator with bounds in its attributes.
    pub fn bound_op(&self, op: impl Into<Op>) -> Op {
        op.into().bind(&self.decided.bounds)
    }

    /// The axes of an operand whose extents a run decides.
    pub fn decided_axes(&self, i: usize) -> Vec<usize> {
        decided_axes(&self.types[i])
    }

    /// The refusal of an axis of an operand.
    pub fn refused(&self, input: usize, axis: usize) -> PaddingError {
        let ty = &self.types[input];
        PaddingError::Refused(format!(
            "a run decides the extent `{}` of axis {axis} of {ty}, its operand {input}",
            ty.shape[axis]
        ))
    }

    /// The operator on operands as they are, with bounds in its attributes; all results.
    pub fn apart(&mut self, op: impl Into<Op>) -> Padded {
        let (op, inputs) = (self.bound_op(op), self.inputs.clone());
        let first = self.op(op, &inputs)?;
        Ok(self.graph.values_of(first.node).collect())
    }

    /// The operator where operands hold what it says along axes of theirs.
    pub fn along(&mut self, op: impl Into<Op>, of: impl Fn(usize, usize) -> Along) -> Padded {
        for input in 0..self.inputs.len() {
            for axis in self.decided_axes(input) {
                match of(input, axis) {
                    Along::Apart => {}
                    Along::Neutral(number) => self.inputs[input] = self.masked(input, axis, number)?,
                    Along::Change => return Err(self.refused(input, axis)),
                }
            }
        }
        self.apart(op)
    }

    /// The operator, if no run decides an extent of its operands or attributes.
    pub fn none(&mut self, op: impl Into<Op>) -> Padded {
        let op = op.into();
        if self.bound_op(op.clone()) != op {
            let why = "a run decides an extent that it or a graph inside it mentions";
            return Err(PaddingError::Refused(why.into()));
        }
        self.along(op, |_, _| Along::Change)
    }

    /// Puts another value in the place of an operand.
    pub fn replace(&mut self, input: usize, by: Value) {
        self.inputs[input] = by;
    }

    /// An operand with a number at the positions along an axis that it did not have.
    pub fn masked(&mut self, input: usize, axis: usize, number: f64) -> Result<Value, PaddingError> {
        let count = self.count(&self.types[input].shape[axis].clone())?;
        let x = self.inputs[input];
        let shape = self.graph.ty(x).shape.clone();
        let extent = shape[axis].clone();
        let places = self.op(Range { start: Dim::default(), step: 1, count: extent.clone() }, &[])?;
        let mut along = vec![Dim::from(1usize); shape.len()];
        along[axis] = extent;
        let places = self.op(Reshape { shape: along }, &[places])?;
        let there = self.op(Less, &[places, count])?;
        Ok(self.builder().where_or(there, x, number)?)
    }

    /// Indices into an axis of an extent, which a run may decide: those that count from its end from its beginning, and 0
    /// in place of those at positions there were not.
    pub fn indices(&mut self, input: usize, extent: &Dim) -> Result<Value, PaddingError> {
        for axis in self.decided_axes(input) {
            self.inputs[input] = self.masked(input, axis, 0.0)?;
        }
        let at = self.inputs[input];
        if extent.is_decided() { self.from_start(at, extent) } else { Ok(at) }
    }

    /// Indices that count from the end of an axis from its beginning.
    pub fn from_start(&mut self, at: Value, extent: &Dim) -> Result<Value, PaddingError> {
        let count = self.count(extent)?;
        let dtype = self.graph.ty(at).dtype;
        let mut builder = self.builder();
        let count = builder.cast(count, dtype)?;
        let shifted = builder.add(at, count)?;
        let zero = builder.number(at, 0.0)?;
        let negative = builder.less(at, zero)?;
        self.op(Select, &[negative, shifted, at])
    }

    /// Elements of a value at computed positions along an axis, which are brought into it.
    pub fn gathered(&mut self, x: Value, axis: usize, at: Value) -> Result<Value, PaddingError> {
        let extent = self.graph.ty(x).shape[axis].as_const().unwrap_or(0);
        let mut builder = self.builder();
        let at = builder.at_most(at, (extent - 1) as f64)?;
        let at = builder.at_least(at, 0.0)?;
        self.op(crate::ops::Gather { axis }, &[x, at])
    }

    /// `0, 1, …`, as many as an extent can be.
    pub fn iota(&mut self, extent: &Dim) -> Result<Value, PaddingError> {
        let count = self.bound(extent);
        self.op(Range { start: Dim::default(), step: 1, count }, &[])
    }

    /// What an extent is in a run.
    pub fn count(&mut self, dim: &Dim) -> Result<Value, PaddingError> {
        let mut builder = Builder::new(self.graph, self.origin.clone());
        count(&mut builder, self.decided, dim)
    }

    /// Says which number a symbol is, and the most that it can be. A symbol that has them already keeps the same.
    pub fn decide(&mut self, symbol: &Symbol, bound: i64, count: Value) -> Result<(), PaddingError> {
        let same = |found: Option<(i64, Value)>| found.is_none_or(|found| found == (bound, count));
        let (bounds, counts) = (&mut self.decided.bounds, &mut self.decided.counts);
        if !same(bounds.get(symbol).copied().zip(counts.get(symbol).copied())) {
            return Err(PaddingError::Refused(format!("`{symbol}` has two numbers or two bounds")));
        }
        bounds.insert(symbol.clone(), bound);
        counts.insert(symbol.clone(), count);
        Ok(())
    }
}

/// The symbols of extents that a run decides in a type.
pub fn decided_symbols(ty: &TensorType) -> Vec<Symbol> {
    let mut symbols = Vec::new();
    ty.shape.iter().for_each(|d| d.collect_symbols(&mut symbols));
    symbols.retain(|s| is_decided(s));
    symbols
}

/// The axes of a type whose extents a run decides.
pub fn decided_axes(ty: &TensorType) -> Vec<usize> {
    (0..ty.ndim()).filter(|&axis| ty.shape[axis].is_decided()).collect()
}

/// What an extent is in a run, as an i64 without axes.
pub fn count(builder: &mut Builder<'_>, decided: &Decided, dim: &Dim) -> Result<Value, PaddingError> {
    if let Some(known) = dim.as_const() {
        return constant(builder, known);
    }
    let mut sum: Option<Value> = None;
    for (factors, coefficient) in dim.terms() {
        let mut product = if coefficient == 1 { None } else { Some(constant(builder, coefficient)?) };
        for factor in factors {
            let value = match factor {
                Factor::Symbol(symbol) => match decided.counts.get(symbol) {
                    Some(count) => *count,
                    None => return Err(PaddingError::Refused(format!("nothing says what `{symbol}` is"))),
                },
                Factor::FloorDiv(a, b) => {
                    let (a, b) = (count(builder, decided, a)?, count(builder, decided, b)?);
                    // No extent is negative; one of 0 divides nothing.
                    let b = builder.at_least(b, 1.0)?;
                    builder.op(Div, &[a, b])?
                }
            };
            product = Some(match product {
                None => value,
                Some(product) => builder.mul(product, value)?,
            });
        }
        let product = match product {
            Some(product) => product,
            None => constant(builder, coefficient)?,
        };
        sum = Some(match sum {
            None => product,
            Some(sum) => builder.add(sum, product)?,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => constant(builder, 0),
    }
}

fn constant(builder: &mut Builder<'_>, v: i64) -> Result<Value, PaddingError> {
    Ok(builder.constant(Tensor::scalar(v))?)
}

impl Graph {
    /// The most that extents which a run decides can be, with other symbols at these values; those that are not bounded so
    /// are left out.
    pub fn bounds_of_decided(&self, binding: &Binding) -> Binding {
        let (mut known, mut bounds) = (binding.clone(), Binding::new());
        for n in self.order() {
            let Op::Cut(cut) = self.op(n) else { continue };
            let most =
                self.inputs_of(n).first().and_then(|x| self.ty(*x).shape.get(cut.axis)?.eval(&known).ok());
            if let (Some(symbol), Some(most)) = (cut.extent.as_symbol(), most) {
                known.insert(symbol.clone(), most);
                bounds.insert(symbol, most);
            }
        }
        bounds
    }
}

/// Whether an extent is never larger than with bounds in place of what a run decides, as far as its form shows.
pub fn is_bounded(dim: &Dim) -> bool {
    dim.terms().all(|(factors, coefficient)| {
        let decided = |factor: &Factor<'_>| match factor {
            Factor::Symbol(symbol) => is_decided(symbol),
            Factor::FloorDiv(a, b) => a.is_decided() || b.is_decided(),
        };
        let grows = |factor: &Factor<'_>| match factor {
            Factor::Symbol(_) => true,
            Factor::FloorDiv(a, b) => is_bounded(a) && !b.is_decided(),
        };
        !factors.iter().any(decided) || (coefficient > 0 && factors.iter().all(grows))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_bounded_where_they_grow_with_what_a_run_decides() {
        let bounded = |text: &str| is_bounded(&Dim::parse(text).unwrap());
        assert!(bounded("n'") && bounded("2*n'*B - 1") && bounded("floordiv(n' + 1, 2)") && bounded("7 - B"));
        assert!(!bounded("7 - n'") && !bounded("n' - m'") && !bounded("floordiv(8, n')"));
    }
}
