//! From a graph to a model: every operator as ordinary operators of ONNX, so that any tool can run the result.
//!
//! Dynamic axes stay dynamic. Where an ONNX operator takes a shape as data, extents are computed from the shapes of
//! the inputs (see `extents`), once for each symbol. Nodes are named after their origins, constants after the
//! initializers they were; inputs and outputs keep their names. Nodes that no output depends on are left out.
//!
//! A recurrence with weights of integers, which ONNX lacks, is an operator of onnxruntime.
//!
//! Deliberately absent: other operators of other domains, and anything that depends on values of symbols.

mod adjoints;
mod composed;
mod decided;
mod extents;
mod joined;
mod names;
mod operators;
mod places;
mod quantized;
mod recurrent;
mod regions;
mod spelled;
mod stored;

use std::collections::{BTreeMap, HashMap};

use margay_ir::{Graph, NodeId, Op, Origin, Payload, TensorType, Value};
use margay_tensor::{DType, Dim, Symbol, Tensor};

use crate::{Attribute, Model, OnnxDim, OnnxError, OnnxGraph, OnnxNode, OnnxValue};
use joined::Joined;
use names::Names;
use quantized::Quantized;
use recurrent::Layer;

/// Oldest operator set that is written.
pub const OLDEST_EXPORT_OPSET: i64 = 13;
/// Newest operator set of the default domain that is written.
pub const NEWEST_EXPORT_OPSET: i64 = 23;

/// How a graph is written.
#[derive(Clone, PartialEq, Debug)]
pub struct ExportOptions {
    /// Version of the default operator set, from [`OLDEST_EXPORT_OPSET`] to [`NEWEST_EXPORT_OPSET`].
    pub opset: i64,
    /// Notes for the reader of the model.
    pub metadata: BTreeMap<String, String>,
}

impl ExportOptions {
    /// Operator set 17, or the first one that has nodes for the operators of a graph and for how its constants are stored; no
    /// notes.
    pub fn of(g: &Graph) -> ExportOptions {
        let blocks = g.payloads().iter().any(|p| stored::needs_blocks(p.storage()));
        let usual = ExportOptions::default();
        let stored = if blocks { stored::BLOCKS_SINCE } else { usual.opset };
        let opset = needed_opset(g).max(stored);
        ExportOptions { opset, ..usual }
    }
}

impl Default for ExportOptions {
    /// Operator set 17, no notes.
    fn default() -> ExportOptions {
        ExportOptions { opset: 17, metadata: BTreeMap::new() }
    }
}

/// Turns a graph into a model. The same graph gives the same model.
///
/// # Errors
/// [`OnnxError::ExportOpset`], or [`OnnxError::NotExportable`] for a symbol that is no extent of an input.
pub fn export(g: &Graph, options: &ExportOptions) -> Result<Model, OnnxError> {
    let found = options.opset;
    if !(OLDEST_EXPORT_OPSET..=NEWEST_EXPORT_OPSET).contains(&found) {
        return Err(OnnxError::ExportOpset {
            oldest: OLDEST_EXPORT_OPSET,
            newest: NEWEST_EXPORT_OPSET,
            found,
        });
    }
    let spelled = spelled::spelled_out(g)?;
    let g = spelled.as_ref().unwrap_or(g);
    let mut exporter = Exporter::new(g, options.opset)?;
    for n in live(g) {
        exporter.node(n)?;
    }
    exporter.outputs();
    let mut model = Model::new(options.opset, exporter.graph);
    model.metadata = options.metadata.clone();
    Ok(model)
}

/// The operator set that the operators of a graph need, those inside of loops and choices included.
fn needed_opset(g: &Graph) -> i64 {
    let of_node = |n: NodeId| {
        let inside = g.op(n).regions().iter().map(|region| needed_opset(region.graph())).max();
        places::since(g, n).max(inside.unwrap_or(0))
    };
    g.order().into_iter().map(of_node).max().unwrap_or(0)
}

/// The nodes that outputs depend on, and inputs, in order.
fn live(g: &Graph) -> Vec<NodeId> {
    let live = g.live_by(&|n| match Whole::find(g, n) {
        Some(whole) => whole.operands(g),
        None => g.inputs_of(n).to_vec(),
    });
    g.order().into_iter().filter(|n| live.contains(n)).collect()
}

/// An operator of ONNX that stands for a node and some before it, which are written only if others read them.
enum Whole<'g> {
    Joined(Joined),
    Layer(Box<Layer<'g>>),
    Quantized(Box<Quantized>),
}

impl<'g> Whole<'g> {
    /// What a node is the last one of.
    fn find(g: &'g Graph, n: NodeId) -> Option<Whole<'g>> {
        let joined = || Joined::find(g, n).map(Whole::Joined);
        let layer = || Layer::find(g, n).map(|found| Whole::Layer(Box::new(found)));
        let quantized = || Quantized::find(g, n).map(|found| Whole::Quantized(Box::new(found)));
        joined().or_else(layer).or_else(quantized)
    }

    /// The values that are read by name.
    fn operands(&self, g: &Graph) -> Vec<Value> {
        match self {
            Whole::Joined(joined) => vec![joined.operand()],
            Whole::Layer(layer) => layer.operands(g),
            Whole::Quantized(quantized) => quantized.operands(),
        }
    }
}

/// A model in the making.
struct Exporter<'a> {
    g: &'a Graph,
    opset: i64,
    /// Whether it is a graph inside an operator.
    inner: bool,
    graph: OnnxGraph,
    value_names: Names,
    node_names: Names,
    /// The name of each value so far.
    results: HashMap<Value, String>,
    /// What nodes are named after at the moment.
    base: String,
    /// Initializers by contents, so that equal ones are written once.
    constants: HashMap<Payload, String>,
    /// Where a symbol is the extent of an input: its name and axis.
    sources: BTreeMap<Symbol, (String, usize)>,
    /// Shapes of inputs that nodes compute.
    shapes: HashMap<String, String>,
    /// Extents that nodes compute, as tensors of one axis and one element.
    extents: HashMap<Dim, String>,
}

impl<'a> Exporter<'a> {
    fn new(g: &'a Graph, opset: i64) -> Result<Exporter<'a>, OnnxError> {
        let mut exporter = Exporter {
            g,
            opset,
            inner: false,
            graph: OnnxGraph { name: g.name().to_owned(), ..OnnxGraph::default() },
            value_names: Names::default(),
            node_names: Names::default(),
            results: HashMap::new(),
            base: String::new(),
            constants: HashMap::new(),
            sources: BTreeMap::new(),
            shapes: HashMap::new(),
            extents: HashMap::new(),
        };
        for &n in g.inputs() {
            let Op::Input(input) = g.op(n) else { continue };
            exporter.value_names.reserve(&input.name);
            exporter.results.insert(n.into(), input.name.to_string());
            for (axis, dim) in input.ty.shape.iter().enumerate() {
                if let Some(symbol) = Dim::as_symbol(dim) {
                    exporter.sources.entry(symbol).or_insert_with(|| (input.name.to_string(), axis));
                }
            }
            let text = |d: &Dim| OnnxDim::Symbol(named(d).to_string());
            exporter.graph.inputs.push(declared(&input.name, &input.ty, text));
        }
        for output in g.outputs() {
            let itself = exporter.results.get(&output.value).is_some_and(|name| **name == *output.name);
            if !exporter.value_names.reserve(&output.name) && !itself {
                let reason = "its name is that of another output or of an input".to_owned();
                return Err(OnnxError::NotExportable { what: format!("output `{}`", output.name), reason });
            }
            let text = |d: &Dim| match Dim::as_symbol(&named(d)) {
                Some(symbol) => OnnxDim::Symbol(symbol.to_string()),
                None => OnnxDim::Unknown,
            };
            exporter.graph.outputs.push(declared(&output.name, g.ty(output.value), text));
        }
        Ok(exporter)
    }

    fn node(&mut self, n: NodeId) -> Result<(), OnnxError> {
        let g = self.g;
        let (node, v) = (g.node(n), Value::from(n));
        match &node.op {
            Op::Input(_) => return Ok(()),
            Op::Const(c) => {
                let name = self.constant(&c.payload, &label(&node.origin, "constant"));
                self.results.insert(v, name);
                return Ok(());
            }
            _ => {}
        }
        self.base = label(&node.origin, node.op.name());
        let before = self.graph.nodes.len();
        let names = match Whole::find(g, n) {
            Some(Whole::Joined(joined)) => vec![self.joined(&joined)?],
            Some(Whole::Layer(layer)) => self.recurrence(&layer)?,
            Some(Whole::Quantized(quantized)) => vec![self.quantized(&quantized)?],
            None => self.operator(n)?,
        };
        for (v, mut name) in g.values_of(n).zip(names) {
            // A value that is an output is named after it. `dims` may have given an extent that others read as well.
            let wanted = g.outputs().iter().find(|o| o.value == v).map(|o| o.name.to_string());
            let own = &mut self.graph.nodes[before..];
            let made = own.iter().any(|node| node.outputs.contains(&name));
            if let Some(wanted) = wanted.filter(|_| made && !self.inner && !matches!(node.op, Op::Dims(_))) {
                for node in own {
                    let names = node.inputs.iter_mut().chain(&mut node.outputs);
                    names.filter(|other| **other == name).for_each(|other| other.clone_from(&wanted));
                }
                name = wanted;
            }
            self.results.insert(v, name);
        }
        Ok(())
    }

    /// Copies values to outputs that are not named yet.
    fn outputs(&mut self) {
        for output in self.g.outputs() {
            let name = self.results[&output.value].clone();
            if *name != *output.name {
                self.base = output.name.to_string();
                self.emit_to(&output.name, "Identity", "", &[&name], vec![]);
            }
        }
    }

    /// The names of the operands of a node.
    fn operands(&self, n: NodeId) -> Vec<String> {
        self.g.inputs_of(n).iter().map(|v| self.results[v].clone()).collect()
    }

    /// Adds a node and returns the name of its output. `part` tells the nodes of one operator apart; it is empty for
    /// the one that stands for the whole.
    fn emit(
        &mut self,
        op_type: &str,
        part: &str,
        inputs: &[&str],
        attributes: Vec<(&str, Attribute)>,
    ) -> String {
        let name = self.node_name(part);
        let output = self.value_names.fresh(&format!("{name}_output"));
        self.push(name, &output, op_type, inputs, attributes);
        output
    }

    fn emit_to(
        &mut self,
        output: &str,
        op_type: &str,
        part: &str,
        inputs: &[&str],
        attributes: Vec<(&str, Attribute)>,
    ) {
        let name = self.node_name(part);
        self.push(name, output, op_type, inputs, attributes);
    }

    fn node_name(&mut self, part: &str) -> String {
        let wish = if part.is_empty() { self.base.clone() } else { format!("{}/{part}", self.base) };
        self.node_names.fresh(&wish)
    }

    fn push(
        &mut self,
        name: String,
        output: &str,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<(&str, Attribute)>,
    ) {
        self.graph.nodes.push(OnnxNode {
            name,
            op_type: op_type.to_owned(),
            domain: String::new(),
            inputs: inputs.iter().map(|&i| i.to_owned()).collect(),
            outputs: vec![output.to_owned()],
            attributes: attributes.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        });
    }

    fn initializer(&mut self, payload: &Payload, wish: &str) -> String {
        if let Some(name) = self.constants.get(payload) {
            return name.clone();
        }
        let name = self.value_names.fresh(wish);
        self.constants.insert(payload.clone(), name.clone());
        self.graph.initializers.push((name.clone(), payload.tensor().clone()));
        name
    }

    /// A number without axes.
    fn number(&mut self, dtype: DType, number: f64) -> String {
        self.initializer(&Payload::number(dtype, number), "number")
    }

    /// Integers along one axis.
    fn integers(&mut self, values: &[i64]) -> Result<String, OnnxError> {
        let tensor = Tensor::from_slice(&[values.len()], values);
        let tensor = tensor.map_err(|e| self.refusal(e.to_string()))?;
        Ok(self.initializer(&Payload::new(tensor), "integers"))
    }

    fn refusal(&self, reason: String) -> OnnxError {
        OnnxError::NotExportable { what: format!("node `{}`", self.base), reason }
    }
}

/// The name of an origin with its part; `default` if it has none.
fn label(origin: &Origin, default: &str) -> String {
    let name = if origin.name().is_empty() { default } else { origin.name() };
    match origin.part {
        Some(part) => format!("{name}/{}", part.name()),
        None => name.to_owned(),
    }
}

/// An extent by the names that models give them: `past` may be 0 in ONNX as well.
fn named(d: &Dim) -> Dim {
    d.replace(&|s| Some(Dim::symbol(s.strip_suffix('?')?)))
}

fn declared(name: &str, ty: &TensorType, text: impl Fn(&Dim) -> OnnxDim) -> OnnxValue {
    let dim = |d: &Dim| d.as_const().map_or_else(|| text(d), OnnxDim::Value);
    OnnxValue {
        name: name.to_owned(),
        dtype: Some(ty.dtype),
        narrow: None,
        dims: Some(ty.shape.iter().map(dim).collect()),
    }
}
