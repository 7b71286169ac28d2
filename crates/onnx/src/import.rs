//! From a checked model to a graph: one function per ONNX operator, one table.
//!
//! Shapes stay symbolic. A named extent of an input becomes a symbol, one without a name gets a made-up one, and the
//! integer arithmetic that exporters put around `Reshape` and its kin is carried out on symbols while the graph is
//! built (see `values`), so that shapes are attributes and not data. Declared types of outputs and inner values are
//! hints that nobody needs: types are inferred.
//!
//! Everything wrong is collected: a node that cannot be imported leaves its outputs unknown, nodes that read those are
//! passed over, and all others still report what is wrong with them.
//!
//! Of training there is only where elements are dropped ([`import_for_training`]). Deliberately absent: strings.

mod activations;
mod assume;
mod attention;
mod call;
mod control;
mod convolutions;
mod decided;
mod einsum;
mod elementwise;
mod floats;
mod formula;
mod grouped;
mod inputs;
mod integers;
mod learning;
mod leaves;
mod losses;
mod machines;
mod microsoft;
mod narrow;
mod normalizations;
mod padding;
mod pixels;
mod places;
mod pools;
mod products;
mod quantized;
mod recurrent;
mod reductions;
mod resize;
mod sampling;
mod sequences;
mod shapes;
mod signals;
mod sketches;
mod slices;
mod statistics;
mod table;
mod transposed;
mod trees;
mod trigonometry;
mod trips;
mod values;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use margay_ir::ops::{Const, Numbers};
use margay_ir::{Builder, Graph, Op, Origin, Part, Payload, TensorType, Value};
use margay_tensor::{DType, Tensor};

use crate::check::reads;
use crate::model::PRODUCER;
use crate::problem::Problems;
use crate::{Kind, Model, Narrow, OnnxDim, OnnxError, OnnxNode, Problem};
pub use assume::KnownInputs;
use assume::{Assumptions, Equation, is_open};
use call::{Call, Refusal};
use sequences::Slots;
use table::{Meaning, OPERATORS, Operator};

/// Turns a model into a graph.
///
/// Inputs and outputs keep their names; nodes keep the model's names as origins, constants those of initializers.
/// What an operator computes along the way may leave nodes that nobody reads.
///
/// # Errors
/// [`OnnxError::Invalid`] lists everything that is unsupported or wrong: operators with the nodes that use them, and
/// nodes whose inputs do not fit.
pub fn import(model: &Model) -> Result<Graph, OnnxError> {
    import_alone(model, None)
}

/// What becomes of the `Dropout` nodes of a model that is to be trained. Whether a node says that it is in training does
/// not count.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Dropout {
    /// Each is a [`margay_ir::ops::Dropout`] of the ratio that it has in the model.
    Model,
    /// Nothing is dropped.
    None,
    /// Each has this ratio, at least 0 and below 1.
    Ratio(f64),
}

/// As [`import`], for a model that is to be trained: its `Dropout` nodes stay in the graph. Those in graphs of operators,
/// and those of ratio 0, drop nothing.
///
/// # Errors
/// As [`import`], and for ratios that are not known or not below 1, and masks that other nodes read.
pub fn import_for_training(model: &Model, dropout: Dropout) -> Result<Graph, OnnxError> {
    import_alone(model, Some(dropout))
}

/// A model of whose inputs nothing is known, to be trained where `dropout` is given.
fn import_alone(model: &Model, dropout: Option<Dropout>) -> Result<Graph, OnnxError> {
    let attempt = |lengths| attempts(model, &KnownInputs::default(), lengths, dropout);
    attempt(Lengths::Known).or_else(|refusal| attempt(Lengths::Decided).map_err(|_| refusal))
}

/// What may say how long a part is that operands bound.
#[derive(Clone, Copy, PartialEq)]
enum Lengths {
    /// What is known before the model runs.
    Known,
    /// A run, too.
    Decided,
}

/// A graph for inputs of which something is known.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The graph.
    pub graph: Graph,
    /// Inputs of the model that are constants of the graph, with their values: it holds for no others.
    pub fixed: Vec<(String, Tensor)>,
}

/// Larger inputs are data, never what shapes follow from.
const MAX_DECISIVE: usize = 1024;

/// As [`import`], for inputs of which something is known: it decides what the model leaves open, such as which of two
/// extents that broadcast is the one that is 1. The graph stays open for other values as far as that allows.
///
/// Inputs that are said to be fixed become constants. Where a model is refused because shapes, axes or the like follow from inputs, and these are known, small ones become
/// constants: integers first, then floats too. Where that does not help, a run says how long parts are.
///
/// # Errors
/// See [`import`]. Where constants do not help it is the refusal without them. [`OnnxError::FixedInput`].
pub fn import_for(model: &Model, known: &KnownInputs) -> Result<Imported, OnnxError> {
    let mut own = None;
    let mut said = Vec::new();
    for (name, number) in &known.fixed {
        let tensor = fixed_input(model, name, *number)?;
        fix(own.get_or_insert_with(|| model.clone()), name, &tensor);
        said.push((name.clone(), tensor));
    }
    let model = own.as_ref().unwrap_or(model);
    let refusal = match attempts(model, known, Lengths::Known, None) {
        Ok(graph) => return Ok(Imported { graph, fixed: said }),
        Err(refusal) => refusal,
    };
    for floats in [false, true] {
        let mut model = model.clone();
        let mut fixed = said.clone();
        for (name, tensor) in &known.values {
            let decides = tensor.len() <= MAX_DECISIVE && (floats || !tensor.dtype().is_float());
            let declared =
                model.graph.inputs.iter().any(|i| i.name == *name && i.dtype == Some(tensor.dtype()));
            if decides && declared {
                fix(&mut model, name, tensor);
                fixed.push((name.clone(), tensor.clone()));
            }
        }
        if fixed.len() == said.len() {
            continue;
        }
        if let Ok(graph) = attempts(&model, known, Lengths::Known, None) {
            return Ok(Imported { graph, fixed });
        }
    }
    match attempts(model, known, Lengths::Decided, None) {
        Ok(graph) => Ok(Imported { graph, fixed: said }),
        Err(_) => Err(refusal),
    }
}

/// Makes an input a constant.
fn fix(model: &mut Model, name: &str, tensor: &Tensor) {
    let graph = &mut model.graph;
    graph.inputs.retain(|input| input.name != name);
    graph.defaults.retain(|input| input.name != name);
    graph.initializers.retain(|(other, _)| other != name);
    graph.initializers.push((name.to_owned(), tensor.clone()));
}

/// A number in every element of an input of known extents.
fn fixed_input(model: &Model, name: &str, number: f64) -> Result<Tensor, OnnxError> {
    let failed = |reason: String| OnnxError::FixedInput { input: name.to_owned(), reason };
    let inputs = || model.graph.inputs.iter().chain(&model.graph.defaults);
    let known = || inputs().map(|i| format!("`{}`", i.name)).collect::<Vec<_>>().join(", ");
    let input = inputs().find(|input| input.name == name);
    let input = input.ok_or_else(|| failed(format!("the model has no such input; it has {}", known())))?;
    let extent = |dim: &OnnxDim| match dim {
        OnnxDim::Value(extent) => usize::try_from(*extent).ok(),
        OnnxDim::Symbol(_) | OnnxDim::Unknown => None,
    };
    let shape: Option<Vec<usize>> = input.dims.iter().flatten().map(extent).collect();
    let count = shape.as_ref().and_then(|shape| shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)));
    let (Some(dtype), Some(shape), Some(count @ ..=MAX_DECISIVE)) = (input.dtype, shape, count) else {
        return Err(failed(format!(
            "its extents are not known, or it has more than {MAX_DECISIVE} elements"
        )));
    };
    let numbers = Numbers::Float(vec![number; count]).into_tensor(dtype, &shape);
    let numbers = numbers.map_err(|e| failed(e.to_string()))?;
    let kept = Numbers::of(&numbers).map_err(|e| failed(e.to_string()))?;
    match dtype.is_float() || kept.floats().iter().all(|x| *x == number) {
        true => Ok(numbers),
        false => Err(failed(format!("it is {dtype}, which {number} is not"))),
    }
}

/// Imports until nothing is left to be assumed.
fn attempts(
    model: &Model,
    known: &KnownInputs,
    lengths: Lengths,
    dropout: Option<Dropout>,
) -> Result<Graph, OnnxError> {
    let mut assumptions = Assumptions::new(known);
    // Each attempt but the last replaces a symbol, and makes none.
    loop {
        let mut importer = Importer::new(model, assumptions, lengths, dropout);
        importer.inputs();
        for (index, node) in model.graph.nodes.iter().enumerate() {
            importer.node(index, node);
        }
        importer.outputs();
        let Importer { graph, problems, unsupported, found, assumptions: given, .. } = importer;
        assumptions = given;
        if !assumptions.learn(found) {
            return finish(graph, problems, unsupported, &assumptions);
        }
    }
}

fn finish(
    mut graph: Graph,
    mut problems: Problems,
    unsupported: Vec<(String, String, Vec<String>)>,
    assumptions: &Assumptions,
) -> Result<Graph, OnnxError> {
    assumptions.guard(&mut graph);
    for (operator, reason, nodes) in unsupported {
        problems.push(Problem::Operator { operator, reason, nodes });
    }
    problems.into_result()?;
    Ok(graph)
}

/// The operators that [`import`] knows, sorted: domain, which is empty for the default one, name, and the operator set of
/// the domain that introduced it.
pub fn supported_operators() -> impl Iterator<Item = (&'static str, &'static str, i64)> {
    OPERATORS.iter().map(|o| (o.domain, o.name, o.since))
}

/// The name before `/left` and its like, and the part. Names that were given to several things end with a number.
fn part_of(name: &str) -> Option<(&str, Part)> {
    let (rest, last) = name.rsplit_once('/')?;
    let word = last.split_once('_').map_or(last, |(word, number)| {
        if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) { word } else { last }
    });
    let part = Part::ALL.into_iter().find(|p| p.name() == word)?;
    (!rest.is_empty()).then_some((rest, part))
}

/// What became of an ONNX value.
#[derive(Clone, Copy)]
enum Slot {
    Known(Value),
    /// A sequence, by its number in [`Importer::lists`].
    List(usize),
    /// An optional that holds nothing.
    Nothing,
    /// The node or input that yields it was refused.
    Unknown,
}

/// Longest text of an extent. Products of sums grow fast, and no honest model has such.
const MAX_EXTENT_TEXT: usize = 1000;

/// Extents of the operands of one node that are made equal.
const MAX_RECONCILED: usize = 32;

/// A graph in the making.
pub(crate) struct Importer<'a> {
    model: &'a Model,
    graph: Graph,
    slots: HashMap<&'a str, Slot>,
    /// Sequences.
    lists: Vec<Vec<Value>>,
    /// Constants that no node has read yet.
    initializers: HashMap<&'a str, &'a Tensor>,
    /// The origin of the node at hand.
    origin: Origin,
    problems: Problems,
    assumptions: Assumptions,
    /// Equations of extents that this attempt has found to need.
    found: Vec<Equation>,
    /// Values whose bytes stand for elements of narrow types.
    narrow: HashMap<Value, Narrow>,
    /// Which constants have such elements.
    narrow_names: HashMap<&'a str, Narrow>,
    /// Values that stand for texts: labels of classes. Nobody computes with them, and outputs that are such are left out.
    texts: BTreeSet<Value>,
    /// What may bound a part.
    lengths: Lengths,
    /// Extents so far that a run decides.
    decided: usize,
    /// Names of the model's nodes so far.
    node_names: HashSet<&'a str>,
    /// Graphs around the one at hand.
    depth: usize,
    /// What becomes of dropout where the model is to be trained.
    dropout: Option<Dropout>,
    /// Places so far where elements are dropped.
    dropped: usize,
    /// Operator, reason, nodes.
    unsupported: Vec<(String, String, Vec<String>)>,
}

impl<'a> Importer<'a> {
    fn new(
        model: &'a Model,
        assumptions: Assumptions,
        lengths: Lengths,
        dropout: Option<Dropout>,
    ) -> Importer<'a> {
        let name = if model.graph.name.is_empty() { "model" } else { &model.graph.name };
        let mut initializers: HashMap<&str, &Tensor> =
            model.graph.initializers.iter().map(|(n, t)| (n.as_str(), t)).collect();
        assumptions.overridden(model).for_each(|input| _ = initializers.remove(input.name.as_str()));
        Importer {
            model,
            graph: Graph::new(name),
            slots: HashMap::new(),
            lists: Vec::new(),
            initializers,
            origin: Origin::default(),
            problems: Problems::default(),
            assumptions,
            found: Vec::new(),
            narrow: HashMap::new(),
            narrow_names: model.graph.narrow.iter().map(|(name, n)| (name.as_str(), *n)).collect(),
            texts: BTreeSet::new(),
            lengths,
            decided: 0,
            node_names: HashSet::new(),
            depth: 0,
            dropout,
            dropped: 0,
            unsupported: Vec::new(),
        }
    }

    fn node(&mut self, index: usize, node: &'a OnnxNode) {
        let label = node.label(index);
        let opset = self.model.opset_of(node);
        let operator = table::operator(&node.domain, &node.op_type);
        let (mut inputs, mut slots) = (Vec::new(), Vec::new());
        let (mut readable, mut reads_texts) = (true, false);
        for name in &node.inputs {
            let slot = if name.is_empty() { None } else { self.slot(name) };
            slots.push(slot);
            match slot {
                Some(Slot::Known(v)) => {
                    reads_texts |= self.texts.contains(&v);
                    inputs.push(Some(v));
                }
                Some(Slot::Unknown) => readable = false,
                Some(Slot::List(_) | Slot::Nothing) => inputs.push(None),
                None if name.is_empty() => inputs.push(None),
                None => {
                    readable = false;
                    let (node, input) = (label.clone(), name.clone());
                    self.problems.push(Problem::MissingInput { node, input });
                }
            }
        }
        let imported = match operator {
            None => Err(Refusal::Unsupported("the operator is not supported".into())),
            Some(_) if !readable => Ok(Vec::new()),
            // Texts stay what they are, whoever hands them on.
            Some(_) if reads_texts && values::hands_on(node) => Ok(slots.iter().flatten().copied().collect()),
            Some(_) if reads_texts => {
                Err(Refusal::Unsupported("labels that are texts are not supported as an operand".into()))
            }
            Some(operator) if opset < operator.since => Err(Refusal::Invalid(format!(
                "expected operator set {} or newer, found {}",
                operator.since, opset
            ))),
            Some(operator) => {
                let first_output = node.outputs.iter().find(|o| !o.is_empty()).map_or("", |o| o);
                // Names of values are unique, those of nodes should be; nodes of inner graphs run several times.
                let own = !node.name.is_empty() && (self.depth > 0 || self.node_names.insert(&node.name));
                self.origin = self.origin_of(if own { &node.name } else { first_output });
                let call = Call::new(node, inputs.clone(), opset);
                self.meaning(operator, &call, node, &slots).and_then(|found| call.finish(found))
            }
        };
        let values = imported.unwrap_or_else(|refusal| {
            self.refuse(label, node, &inputs, refusal);
            Vec::new()
        });
        for (i, name) in node.outputs.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            self.slots.insert(name, values.get(i).copied().unwrap_or(Slot::Unknown));
        }
    }

    /// What the outputs of a node stand for.
    fn meaning(
        &mut self,
        operator: &Operator,
        call: &Call<'a>,
        node: &'a OnnxNode,
        slots: &[Option<Slot>],
    ) -> Slots {
        match operator.import {
            Meaning::Values(import) => {
                if slots.iter().any(|slot| matches!(slot, Some(Slot::List(_) | Slot::Nothing))) {
                    return Err(Refusal::Unsupported(
                        "a sequence or an optional is not supported by it".into(),
                    ));
                }
                let values = self.with_narrow(call, node, |importer| import(importer, call))?;
                Ok(values.into_iter().map(Slot::Known).collect())
            }
            Meaning::Lists(import) => import(self, call, slots),
        }
    }

    fn refuse(&mut self, label: String, node: &OnnxNode, inputs: &[Option<Value>], refusal: Refusal) {
        let (message, kind) = match refusal {
            Refusal::Assumed => return,
            Refusal::Unsupported(reason) => {
                let operator = node.operator();
                match self.unsupported.iter_mut().find(|(o, r, _)| *o == operator && *r == reason) {
                    Some((_, _, nodes)) => nodes.push(label),
                    None => self.unsupported.push((operator, reason, vec![label])),
                }
                return;
            }
            Refusal::Reported => return,
            Refusal::Invalid(message) => (message, Kind::Malformed),
            Refusal::Type(error) => {
                let kind = call::kind_of(&error.error);
                (error.to_string(), kind)
            }
        };
        let types = inputs.iter().map(|v| v.map_or_else(|| "none".into(), |v| self.ty(v).to_string()));
        let inputs: Vec<String> = types.collect();
        self.problems.push(Problem::Node { node: label, inputs: inputs.join(", "), message, kind });
    }

    /// What a node or constant of this name stands for. Models that margay wrote say in names what part of a rewritten
    /// layer something is; others mean nothing by it.
    fn origin_of(&self, name: &str) -> Origin {
        let own = self.model.producer == PRODUCER;
        part_of(name)
            .filter(|_| own)
            .map_or_else(|| Origin::named(name), |(name, part)| Origin::named(name).part(part))
    }

    /// What a name stands for; a constant enters the graph when it is read for the first time.
    fn slot(&mut self, name: &'a str) -> Option<Slot> {
        if let Some(slot) = self.slots.get(name) {
            return Some(*slot);
        }
        let tensor = (*self.initializers.get(name)?).clone();
        let slot = match self.leaf(tensor, self.origin_of(name)) {
            Ok(v) => {
                self.narrow.extend(self.narrow_names.get(name).map(|narrow| (v, *narrow)));
                Slot::Known(v)
            }
            Err(_) => Slot::Unknown,
        };
        self.slots.insert(name, slot);
        Some(slot)
    }

    /// Whether a node of the model reads a value, or an output of the model is it.
    fn is_read(&self, name: &str) -> bool {
        let graph = &self.model.graph;
        let outputs = graph.outputs.iter().map(|o| o.name.as_str());
        graph.nodes.iter().flat_map(reads).chain(outputs).any(|read| read == name)
    }

    fn outputs(&mut self) {
        let mut seen: BTreeMap<&str, ()> = BTreeMap::new();
        let is_text = |importer: &Self, name: &str| matches!(importer.slots.get(name), Some(Slot::Known(v)) if importer.texts.contains(v));
        let nothing_else = self.model.graph.outputs.iter().all(|output| is_text(self, &output.name));
        for output in &self.model.graph.outputs {
            match self.slot(&output.name) {
                _ if seen.insert(&output.name, ()).is_some() => {
                    let [first, second] = ["a graph output"; 2].map(str::to_owned);
                    self.problems.push(Problem::Duplicate { name: output.name.clone(), first, second });
                }
                Some(Slot::Known(v)) if self.texts.contains(&v) => {
                    let (value, found) =
                        (output.name.clone(), "labels that are texts, and no other output is there");
                    if nothing_else {
                        self.problems.push(Problem::NotATensor { value, found });
                    }
                }
                Some(Slot::Known(v)) => self.graph.add_output(&output.name, v),
                Some(Slot::List(_) | Slot::Nothing) => {
                    let found = "a sequence or an optional";
                    self.problems.push(Problem::NotATensor { value: output.name.clone(), found });
                }
                Some(Slot::Unknown) => {}
                None => self.problems.push(Problem::MissingOutput { output: output.name.clone() }),
            }
        }
    }

    /// Applies an operator. What can be computed from constants and symbols alone becomes a leaf at once.
    pub(crate) fn add(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, Refusal> {
        let op = op.into();
        let mut inputs = inputs.to_vec();
        for _ in 0..MAX_RECONCILED {
            match self.try_add(&op, &inputs) {
                Err(Refusal::Type(refused)) if is_open(&refused.error) => {
                    self.reconcile(&mut inputs, &refused.error)?;
                }
                other => return other,
            }
        }
        self.try_add(&op, &inputs)
    }

    /// Applies an operator with several results.
    pub(crate) fn add_all(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Vec<Value>, Refusal> {
        let first = self.add(op, inputs)?;
        Ok(self.graph.values_of(first.node).collect())
    }

    fn try_add(&mut self, op: &Op, inputs: &[Value]) -> Result<Value, Refusal> {
        if let Some(known) = self.known(op, inputs)? {
            return Ok(known);
        }
        // A weight that is only moved keeps its name, so that the node that uses it is the one that is found.
        let origin = match inputs {
            [x] if self.graph.constant(*x).is_some() => self.graph.node(x.node).origin.clone(),
            _ => self.origin.clone(),
        };
        let v = self.graph.add(op.clone(), inputs, origin)?;
        match self.ty(v).shape.iter().find(|d| d.to_string().len() > MAX_EXTENT_TEXT) {
            None => Ok(v),
            Some(_) => {
                Err(Refusal::Unsupported("an extent that grows beyond reason is not supported".into()))
            }
        }
    }

    /// A constant without origin.
    pub(crate) fn constant(&mut self, tensor: Tensor) -> Result<Value, Refusal> {
        self.leaf(tensor, Origin::default())
    }

    fn leaf(&mut self, tensor: Tensor, origin: Origin) -> Result<Value, Refusal> {
        Ok(self.graph.add(Const { payload: Payload::new(tensor) }, &[], origin)?)
    }

    /// A number as a constant without axes, of the type of a value.
    pub(crate) fn number(&mut self, like: Value, number: f64) -> Result<Value, Refusal> {
        let dtype = self.ty(like).dtype;
        self.scalar(dtype, number)
    }

    /// A number as a constant without axes.
    pub(crate) fn scalar(&mut self, dtype: DType, number: f64) -> Result<Value, Refusal> {
        Ok(Builder::new(&mut self.graph, Origin::default()).scalar(dtype, number)?)
    }

    /// The type of a value.
    pub(crate) fn ty(&self, v: Value) -> &TensorType {
        self.graph.ty(v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_parts() {
        assert_eq!(part_of("fc1/MatMul/left"), Some(("fc1/MatMul", Part::Left)));
        assert_eq!(part_of("fc1.bias/bias_2"), Some(("fc1.bias", Part::Bias)));
        for name in
            ["left", "/left", "fc1/left_", "fc1/left_a", "fc1/Left", "fc1/left/MatMul", "fc1/leftover"]
        {
            assert_eq!(part_of(name), None, "{name}");
        }
    }
}
