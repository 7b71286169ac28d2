//! What the importer takes for granted of open extents.
//!
//! An operator may need two extents to be equal where nothing proves it: two inputs whose batches have different names, a
//! table of positions as long as the sequence. No model that runs breaks such an equation, so it is assumed. If it can
//! be solved for a symbol, that symbol is replaced everywhere: the import starts over, and the graph keeps a
//! [`Guard`]. Otherwise the operand is given the other extent by a reshape, which is checked when symbols are bound.
//!
//! Extents that broadcast are taken for equal too, not for 1, unless values that are known say so.

use std::collections::BTreeMap;

use margay_ir::ops::Reshape;
use margay_ir::{Graph, Guard, Name, TypeError, Value};
use margay_tensor::{Binding, Dim, Symbol, Tensor, possibly_empty};

use super::Importer;
use super::call::Refusal;
use crate::{Model, OnnxValue};

/// What is known of the inputs of a model before it is imported.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct KnownInputs {
    /// Values of symbols.
    pub dims: Binding,
    /// Symbols that may be 0; others are at least 1.
    pub empty: Vec<Symbol>,
    /// Extents of inputs, by name.
    pub extents: Vec<(String, Vec<usize>)>,
    /// Inputs themselves, by name: what the model is to be run on, and nothing else.
    pub values: Vec<(String, Tensor)>,
    /// Inputs that become constants, by name: this number in every element.
    pub fixed: Vec<(String, f64)>,
}

impl KnownInputs {
    /// All that inputs say.
    pub fn of(inputs: &[(String, Tensor)]) -> KnownInputs {
        let extents = inputs.iter().map(|(name, t)| (name.clone(), t.shape().to_vec())).collect();
        KnownInputs { extents, values: inputs.to_vec(), ..KnownInputs::default() }
    }
}

/// What attempts to import a model have found so far.
#[derive(Default)]
pub(super) struct Assumptions {
    /// Replaced symbols, with values that mention none of them, and the node that asked for it.
    replaced: BTreeMap<Symbol, (Dim, Name)>,
    /// Symbols in the order of the model. Of two equal ones the later one is replaced.
    order: Vec<Symbol>,
    known: KnownInputs,
}

/// An equation that one attempt found.
pub(super) struct Equation {
    symbol: Symbol,
    value: Dim,
    node: Name,
}

impl Assumptions {
    /// None yet.
    pub(super) fn new(known: &KnownInputs) -> Assumptions {
        Assumptions { known: known.clone(), ..Assumptions::default() }
    }

    /// Inputs with a default value for which another value is given.
    pub(super) fn overridden<'m>(
        &self,
        model: &'m Model,
    ) -> impl Iterator<Item = &'m OnnxValue> + use<'_, 'm> {
        let given = |input: &&OnnxValue| self.known.extents.iter().any(|(name, _)| *name == input.name);
        model.graph.defaults.iter().filter(given)
    }

    /// The shape of an input with symbols replaced.
    pub(super) fn input(&mut self, name: &str, shape: &[Dim]) -> Vec<Dim> {
        let given = self.known.extents.iter().find(|(n, extents)| n == name && extents.len() == shape.len());
        for (dim, extent) in shape.iter().zip(given.iter().flat_map(|(_, extents)| extents)) {
            if let Some(symbol) = dim.as_symbol() {
                self.known.dims.entry(symbol).or_insert(i64::try_from(*extent).unwrap_or(i64::MAX));
            }
        }
        shape.iter().map(|dim| self.apply(dim)).collect()
    }

    /// Symbols that are known to be 0, which those of a graph never are, and are not replaced yet.
    pub(super) fn empty(&self) -> Vec<Symbol> {
        let known = &self.known.dims;
        let empty =
            self.order.iter().filter(|s| known.get(*s) == Some(&0) && !self.replaced.contains_key(*s));
        empty.cloned().collect()
    }

    /// An extent with symbols replaced.
    fn apply(&mut self, dim: &Dim) -> Dim {
        let empty = |s: &Symbol| self.known.empty.contains(s).then(|| Dim::symbol(&possibly_empty(s)));
        let dim = dim.replace(&empty);
        let mut symbols = Vec::new();
        dim.collect_symbols(&mut symbols);
        symbols.retain(|s| !self.order.contains(s));
        self.order.extend(symbols);
        dim.replace(&|s| self.replaced.get(s).map(|(value, _)| value.clone()))
    }

    /// Takes up what an attempt found; whether that was something new.
    pub(super) fn learn(&mut self, found: Vec<Equation>) -> bool {
        let mut news = false;
        for Equation { symbol, value, node } in found {
            let mut symbols = vec![symbol.clone()];
            value.collect_symbols(&mut symbols);
            // Another equation of this attempt came first; the next attempt finds what is left of this one.
            if symbols.iter().any(|s| self.replaced.contains_key(s)) {
                continue;
            }
            let of = |s: &Symbol| (*s == symbol).then(|| value.clone());
            self.replaced.values_mut().for_each(|(v, _)| *v = v.replace(&of));
            self.replaced.insert(symbol, (value, node));
            news = true;
        }
        news
    }

    /// Writes down in the graph what was assumed.
    pub(super) fn guard(&self, g: &mut Graph) {
        for (symbol, (value, node)) in &self.replaced {
            g.add_guard(Guard { symbol: symbol.clone(), value: value.clone(), node: node.clone() });
        }
    }

    fn rank(&self, symbol: &Symbol) -> usize {
        self.order.iter().position(|s| s == symbol).unwrap_or(usize::MAX)
    }
}

impl Importer<'_> {
    /// Makes operands fit that were refused for the sake of two extents, or says why that cannot be.
    pub(super) fn reconcile(&mut self, operands: &mut [Value], error: &TypeError) -> Result<(), Refusal> {
        let (left, right) = match error {
            TypeError::Extent { left, right, .. } => (left, right),
            TypeError::Broadcast { left, right, .. } => {
                self.broadcast_one(left, right)?;
                (left, right)
            }
            _ => return Ok(()),
        };
        self.assume_equal(left, right)?;
        for (from, to) in [(right, left), (left, right)] {
            let has = |v: &Value| self.ty(*v).shape.contains(from);
            let Some(at) = operands.iter().position(has) else { continue };
            let shape = self.ty(operands[at]).shape.iter().map(|d| if d == from { to } else { d }).cloned();
            let op = Reshape { shape: shape.collect() };
            operands[at] = self.graph.add(op, &[operands[at]], self.origin.clone())?;
            return Ok(());
        }
        Ok(())
    }

    /// Takes two extents for equal. Fails with [`Refusal::Assumed`] if that is news which the import has to start over for;
    /// succeeds if they are equal, and if the equation cannot be solved for a symbol.
    pub(super) fn assume_equal(&mut self, left: &Dim, right: &Dim) -> Result<(), Refusal> {
        match Dim::solve(left, right, &|s| self.assumptions.rank(s)) {
            Some((symbol, value)) => Err(self.assumed(symbol, value)),
            None => Ok(()),
        }
    }

    /// The value of an extent; `None` if it is open. One that is known from the use of the model is taken for fixed.
    pub(super) fn value_of(&mut self, dim: &Dim) -> Result<Option<i64>, Refusal> {
        if dim.as_const().is_some() {
            return Ok(dim.as_const());
        }
        let mut symbols = Vec::new();
        dim.collect_symbols(&mut symbols);
        let known = &self.assumptions.known.dims;
        let values: Option<Vec<i64>> = symbols.iter().map(|s| known.get(s).copied()).collect();
        let Some(values) = values else { return Ok(None) };
        let refusals = symbols.into_iter().zip(values).map(|(s, v)| self.assumed(s, Dim::from(v)));
        refusals.last().map_or(Ok(None), Err)
    }

    /// The value of an extent for the use of the model that is known; it stays open.
    pub(super) fn known_value(&self, dim: &Dim) -> Option<i64> {
        dim.eval(&self.assumptions.known.dims).ok()
    }

    /// Whether bounds of a slice are known to lie outside of an extent, or to be in the wrong order.
    pub(super) fn is_outside(&self, start: &Dim, end: &Dim, step: i64, extent: &Dim) -> bool {
        let [Some(start), Some(end), Some(extent)] = [start, end, extent].map(|d| self.known_value(d)) else {
            return false;
        };
        match step > 0 {
            true => !(0 <= start && start <= end && end <= extent),
            false => !(-1 <= end && end <= start && start < extent.max(1)),
        }
    }

    /// Extents, those that are known taken for fixed.
    pub(super) fn values_of(&mut self, dims: &[Dim]) -> Result<(), Refusal> {
        dims.iter().try_for_each(|d| self.value_of(d).map(|_| ()))
    }

    pub(super) fn assumed(&mut self, symbol: Symbol, value: Dim) -> Refusal {
        let node = self.origin.name().into();
        self.found.push(Equation { symbol, value, node });
        Refusal::Assumed
    }

    /// Of two extents that broadcast, takes one for 1 that is known to be 1 where the other is not.
    fn broadcast_one(&mut self, left: &Dim, right: &Dim) -> Result<(), Refusal> {
        let known = &self.assumptions.known.dims;
        let (x, y) = (left.eval(known), right.eval(known));
        let one = Dim::from(1usize);
        match (x, y) {
            (Ok(1), Ok(y)) if y != 1 => self.assume_equal(left, &one),
            (Ok(x), Ok(1)) if x != 1 => self.assume_equal(right, &one),
            _ => Ok(()),
        }
    }
}

/// Whether a type error may be mended by an assumption: extents that are not known to differ.
pub(super) fn is_open(error: &TypeError) -> bool {
    let (TypeError::Extent { left, right, .. } | TypeError::Broadcast { left, right, .. }) = error else {
        return false;
    };
    (left - right).as_const().is_none()
}
