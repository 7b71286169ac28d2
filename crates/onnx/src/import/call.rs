//! A node as the function of its operator sees it: inputs by position, attributes by name.
//!
//! What a function does not ask for is refused afterwards, so that no attribute is ignored by oversight.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use margay_ir::{AddError, TypeError, Value};
use margay_tensor::Tensor;

use crate::{Attribute, Kind, Narrow, OnnxGraph, OnnxNode};

/// Why a node is not imported.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The node may be right, but not for us. Nodes with the same reason are reported together.
    Unsupported(String),
    /// The node is wrong.
    Invalid(String),
    /// The node needs extents to be equal that were not known to be; the import starts over.
    Assumed,
    /// What is wrong stands in a graph inside the node and was said there.
    Reported,
    /// An operator of the graph refuses the types.
    Type(AddError),
}

impl From<AddError> for Refusal {
    fn from(error: AddError) -> Refusal {
        Refusal::Type(error)
    }
}

/// What the function of an operator returns: one value per output.
pub(crate) type Imported = Result<Vec<Value>, Refusal>;

/// Whether a type error shows a wrong model. Extents that are merely not known to be equal do not.
pub(crate) fn kind_of(error: &TypeError) -> Kind {
    match error {
        TypeError::Extent { left, right, .. } | TypeError::Broadcast { left, right, .. }
            if left.as_const().is_some() && right.as_const().is_some() =>
        {
            Kind::Malformed
        }
        TypeError::Arity { .. } | TypeError::Ndim { .. } => Kind::Malformed,
        TypeError::Extent { .. }
        | TypeError::Broadcast { .. }
        | TypeError::DType { .. }
        | TypeError::Attribute(_) => Kind::Unsupported,
    }
}

/// A node with its inputs resolved.
pub(crate) struct Call<'a> {
    node: &'a OnnxNode,
    inputs: Vec<Option<Value>>,
    /// The version of the default operator set.
    pub(crate) opset: i64,
    inputs_asked: Cell<usize>,
    attributes_asked: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(node: &'a OnnxNode, inputs: Vec<Option<Value>>, opset: i64) -> Call<'a> {
        // Which operands a runtime may overwrite, in the oldest operator sets.
        let always = if opset < 8 { BTreeSet::from(["consumed_inputs"]) } else { BTreeSet::new() };
        Call { node, inputs, opset, inputs_asked: Cell::default(), attributes_asked: RefCell::new(always) }
    }

    /// An input that must be there.
    pub(crate) fn input(&self, at: usize) -> Result<Value, Refusal> {
        self.optional(at).ok_or_else(|| Refusal::Invalid(format!("expected input {at}, found none")))
    }

    /// An input that may be absent.
    pub(crate) fn optional(&self, at: usize) -> Option<Value> {
        self.inputs_asked.set(self.inputs_asked.get().max(at + 1));
        self.inputs.get(at).copied().flatten()
    }

    /// All inputs of an operator that takes one or more.
    pub(crate) fn all(&self) -> Result<Vec<Value>, Refusal> {
        (0..self.inputs.len().max(1)).map(|at| self.input(at)).collect()
    }

    /// The inputs that are there.
    pub(crate) fn values(&self) -> impl Iterator<Item = Value> {
        self.inputs.iter().copied().flatten()
    }

    /// Number of inputs, absent ones included.
    pub(crate) fn given(&self) -> usize {
        self.inputs.len()
    }

    /// Number of outputs.
    pub(crate) fn outputs(&self) -> usize {
        self.node.outputs.len()
    }

    /// Whether somebody may read an output.
    pub(crate) fn wants(&self, output: usize) -> bool {
        self.named(output).is_some()
    }

    /// The name of an output that somebody may read.
    pub(crate) fn named(&self, output: usize) -> Option<&'a str> {
        self.node.outputs.get(output).map(String::as_str).filter(|name| !name.is_empty())
    }

    fn attribute(&self, name: &'static str) -> Option<&'a Attribute> {
        self.attributes_asked.borrow_mut().insert(name);
        self.node.attributes.get(name)
    }

    /// Says that attributes may be there and change nothing.
    pub(crate) fn ignore(&self, names: &[&'static str]) {
        self.attributes_asked.borrow_mut().extend(names);
    }

    /// An integer; `default` where it is absent.
    pub(crate) fn int(&self, name: &'static str, default: i64) -> Result<i64, Refusal> {
        Ok(self.optional_int(name)?.unwrap_or(default))
    }

    /// An integer that may be absent.
    pub(crate) fn optional_int(&self, name: &'static str) -> Result<Option<i64>, Refusal> {
        match self.attribute(name) {
            None => Ok(None),
            Some(Attribute::Int(v)) => Ok(Some(*v)),
            Some(_) => Err(wrong(name, "an integer")),
        }
    }

    /// A truth value, written as 0 or 1.
    pub(crate) fn flag(&self, name: &'static str, default: bool) -> Result<bool, Refusal> {
        Ok(self.int(name, i64::from(default))? != 0)
    }

    /// A number; `default` where it is absent.
    pub(crate) fn float(&self, name: &'static str, default: f64) -> Result<f64, Refusal> {
        Ok(self.optional_float(name)?.unwrap_or(default))
    }

    /// A number that may be absent.
    pub(crate) fn optional_float(&self, name: &'static str) -> Result<Option<f64>, Refusal> {
        match self.attribute(name) {
            None => Ok(None),
            Some(Attribute::Float(v)) => Ok(Some(shortest(*v))),
            Some(_) => Err(wrong(name, "a number")),
        }
    }

    /// A list of integers that may be absent.
    pub(crate) fn ints(&self, name: &'static str) -> Result<Option<&'a [i64]>, Refusal> {
        match self.attribute(name) {
            None => Ok(None),
            Some(Attribute::Ints(v)) => Ok(Some(v)),
            Some(_) => Err(wrong(name, "a list of integers")),
        }
    }

    /// A list of numbers that may be absent.
    pub(crate) fn floats(&self, name: &'static str) -> Result<Option<&'a [f32]>, Refusal> {
        match self.attribute(name) {
            None => Ok(None),
            Some(Attribute::Floats(v)) => Ok(Some(v)),
            Some(_) => Err(wrong(name, "a list of numbers")),
        }
    }

    /// A text; `default` where it is absent.
    pub(crate) fn text(&self, name: &'static str, default: &'a str) -> Result<&'a str, Refusal> {
        match self.attribute(name) {
            None => Ok(default),
            Some(Attribute::String(v)) => Ok(v),
            Some(_) => Err(wrong(name, "a text")),
        }
    }

    /// A list of texts that may be absent.
    pub(crate) fn texts(&self, name: &'static str) -> Result<Option<&'a [String]>, Refusal> {
        match self.attribute(name) {
            None => Ok(None),
            Some(Attribute::Strings(v)) => Ok(Some(v)),
            Some(_) => Err(wrong(name, "a list of texts")),
        }
    }

    /// A constant that may be absent.
    pub(crate) fn tensor(&self, name: &'static str) -> Result<Option<&'a Tensor>, Refusal> {
        match self.attribute(name) {
            None => Ok(None),
            Some(Attribute::Tensor(v)) => Ok(Some(v)),
            Some(_) => Err(wrong(name, "a tensor")),
        }
    }

    /// A constant of a narrow type that may be absent.
    pub(crate) fn narrow_tensor(&self, name: &'static str) -> Option<(Narrow, &'a Tensor)> {
        match self.attribute(name) {
            Some(Attribute::NarrowTensor(narrow, v)) => Some((*narrow, v)),
            _ => None,
        }
    }

    /// A graph.
    pub(crate) fn graph(&self, name: &'static str) -> Result<&'a OnnxGraph, Refusal> {
        match self.attribute(name) {
            Some(Attribute::Graph(v)) => Ok(v),
            Some(_) => Err(wrong(name, "a graph")),
            None => Err(Refusal::Invalid(format!("expected attribute `{name}`, found none"))),
        }
    }

    /// Checks that everything the node has was asked for, and that no output is used that is not there.
    pub(crate) fn finish<T>(&self, values: Vec<T>) -> Result<Vec<T>, Refusal> {
        let asked = self.attributes_asked.borrow();
        if let Some(name) = self.node.attributes.keys().find(|name| !asked.contains(name.as_str())) {
            return Err(Refusal::Unsupported(format!("attribute `{name}` is not supported")));
        }
        let inputs = self.inputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        if inputs > self.inputs_asked.get() {
            let expected = self.inputs_asked.get();
            return Err(Refusal::Invalid(format!("expected at most {expected} inputs, found {inputs}")));
        }
        match (values.len()..self.outputs()).find(|&i| !self.node.outputs[i].is_empty()) {
            Some(output) => Err(Refusal::Unsupported(format!("output {output} is not supported"))),
            None => Ok(values),
        }
    }
}

fn wrong(name: &str, expected: &str) -> Refusal {
    Refusal::Invalid(format!("expected attribute `{name}` to be {expected}"))
}

/// The double that prints as the float does: `1e-5` is meant, not 9.999999747378752e-6.
pub(super) fn shortest(v: f32) -> f64 {
    v.to_string().parse().unwrap_or(f64::from(v))
}

/// An axis counted from the end if negative; `ndim` axes.
pub(crate) fn axis(axis: i64, ndim: usize) -> Result<usize, Refusal> {
    let count = ndim as i64;
    let found = if axis < 0 { axis.checked_add(count) } else { Some(axis) };
    found
        .filter(|found| (0..count).contains(found))
        .map(|found| found as usize)
        .ok_or_else(|| Refusal::Invalid(format!("axis {axis} of a tensor with {ndim} axes")))
}

/// Axes counted from the end if negative, each once, in ascending order.
pub(crate) fn axes(given: &[i64], ndim: usize) -> Result<Vec<usize>, Refusal> {
    let mut found = given.iter().map(|&a| axis(a, ndim)).collect::<Result<Vec<_>, _>>()?;
    found.sort_unstable();
    match found.windows(2).find(|w| w[0] == w[1]) {
        Some(twice) => Err(Refusal::Invalid(format!("axis {} is given twice", twice[0]))),
        None => Ok(found),
    }
}
