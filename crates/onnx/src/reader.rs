//! From the messages of protobuf to the structures of [`model`](crate::model).
//!
//! The messages have been through `wire`, so they are few and not deep. Nothing in them is believed beyond that:
//! what is missing, contradictory or unsupported becomes a [`Problem`], and reading goes on to find the rest.
//! Types of protobuf are known here and in `wire` only.

mod functions;
mod tensor;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use margay_tensor::{Map, Tensor};

pub(crate) use tensor::TEXTS;

use crate::model::{NEWEST_IR, NEWEST_OPSET, OLDEST_IR, OLDEST_OPSET};
use crate::problem::Problems;
use crate::sniff::sniff;
use crate::wire::proto::{
    AttributeProto, AttributeType, Dimension, Extent, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, TypeValue, ValueInfoProto,
};
use crate::wire::{self, Message};
use crate::{Attribute, Model, Narrow, OnnxDim, OnnxError, OnnxGraph, OnnxNode, OnnxValue, Problem, check};
use functions::Functions;
use tensor::Store;

pub(crate) use tensor::element_type;

/// Reads the model that a map holds. `path` says where the map comes from, for external data.
pub(crate) fn model(map: &Arc<Map>, path: Option<&Path>) -> Result<Model, OnnxError> {
    let (proto, payloads) = parse::<ModelProto>(map, Message::Model)?;
    let Some(mut graph) = proto.graph else { return Err(OnnxError::NoGraph) };
    let mut reader = Reader {
        store: Store::new(map, payloads, path),
        problems: Problems::default(),
        functions: Functions::new(proto.functions, &proto.opset_import),
        called: BTreeSet::new(),
    };
    if !(OLDEST_IR..=NEWEST_IR).contains(&proto.ir_version) {
        reader.problems.push(Problem::IrVersion {
            oldest: OLDEST_IR,
            newest: NEWEST_IR,
            found: proto.ir_version,
        });
    }
    reader.functions.inline(&mut graph);
    let standard = graph.node.iter().any(|n| matches!(n.domain.as_str(), "" | "ai.onnx"));
    let (opset, domains) = reader.opsets(proto.opset_import, standard);
    let own_versions = reader.functions.own_versions();
    let mut graph = reader.graph(graph, true);
    check::check(&mut graph, &mut reader.problems);
    reader.problems.into_result()?;
    Ok(Model {
        ir_version: proto.ir_version,
        producer: proto.producer_name,
        producer_version: proto.producer_version,
        opset,
        domains,
        own_versions,
        metadata: proto.metadata_props.into_iter().map(|e| (e.key, e.value)).collect(),
        graph,
    })
}

/// Reads the tensor that a map holds, and its name.
pub(crate) fn tensor(map: &Arc<Map>, path: Option<&Path>) -> Result<(String, Tensor), OnnxError> {
    let (proto, payloads) = parse::<TensorProto>(map, Message::Tensor)?;
    let name = proto.name.clone();
    let tensor = Store::new(map, payloads, path).tensor(&name, proto);
    Ok((name, tensor.map_err(|problem| OnnxError::Invalid(vec![problem]))?))
}

/// The message of a map without its payloads, and where those lie.
fn parse<M: prost::Message + Default>(
    map: &Map,
    root: Message,
) -> Result<(M, Vec<std::ops::Range<usize>>), OnnxError> {
    if let Some(found) = sniff(map) {
        return Err(OnnxError::NotOnnx(found));
    }
    let cut = wire::cut(map, root)?;
    let message = M::decode(&*cut.rest)
        .map_err(|e| OnnxError::Parse { within: root.name(), message: e.to_string() })?;
    Ok((message, cut.payloads))
}

struct Reader<'a> {
    store: Store<'a>,
    problems: Problems,
    functions: Functions,
    /// Functions that are still called, each reported once.
    called: BTreeSet<String>,
}

impl Reader<'_> {
    /// The versions of the default and of other operator sets; `standard` says whether a node needs the former.
    fn opsets(&mut self, imports: Vec<OperatorSetIdProto>, standard: bool) -> (i64, BTreeMap<String, i64>) {
        let mut versions: BTreeMap<String, i64> = BTreeMap::new();
        for import in imports {
            let domain = domain(import.domain);
            let first = *versions.entry(domain.clone()).or_insert(import.version);
            if first != import.version {
                self.problems.push(Problem::TwoOpsets { domain, first, second: import.version });
            }
        }
        let opset = versions.remove("");
        match opset {
            None if standard || versions.is_empty() => self.problems.push(Problem::NoOpset),
            Some(found) if !(OLDEST_OPSET..=NEWEST_OPSET).contains(&found) => {
                self.problems.push(Problem::Opset { oldest: OLDEST_OPSET, newest: NEWEST_OPSET, found });
            }
            _ => {}
        }
        (opset.unwrap_or(NEWEST_OPSET), versions)
    }

    fn graph(&mut self, proto: GraphProto, main: bool) -> OnnxGraph {
        let constants: BTreeSet<String> = proto.initializer.iter().map(|t| t.name.clone()).collect();
        let (inputs, defaults): (Vec<_>, Vec<_>) =
            proto.input.into_iter().partition(|i| i.name.is_empty() || !constants.contains(&i.name));
        let inputs = inputs.into_iter().map(|i| self.value(i, main)).collect();
        let defaults = defaults.into_iter().map(|i| self.value(i, false)).collect();
        let outputs = proto.output.into_iter().map(|o| self.value(o, false)).collect();
        let mut narrow = BTreeMap::new();
        let initializers = proto.initializer.into_iter().map(|t| {
            let name = t.name.clone();
            narrow.extend(Narrow::numbered(t.data_type).map(|narrow| (name.clone(), narrow)));
            let tensor = self.tensor(&name, t);
            (name, tensor)
        });
        let initializers = initializers.collect();
        for sparse in proto.sparse_initializer {
            let tensor = sparse.values.unwrap_or_default().name;
            self.problems.push(Problem::Storage { tensor, found: "sparse tensors" });
        }
        let nodes = proto.node.into_iter().enumerate().map(|(index, n)| self.node(index, n)).collect();
        OnnxGraph { name: proto.name, inputs, defaults, outputs, initializers, narrow, nodes }
    }

    /// An input or output; `typed` says whether it must have an element type.
    fn value(&mut self, proto: ValueInfoProto, typed: bool) -> OnnxValue {
        let mut value = OnnxValue { name: proto.name, dtype: None, narrow: None, dims: None };
        let not_a_tensor = match proto.r#type.and_then(|t| t.value) {
            Some(TypeValue::Tensor(ty)) => {
                value.narrow = Narrow::numbered(ty.elem_type);
                let carried = value.narrow.map(|narrow| Ok(narrow.carrier()));
                match carried.unwrap_or_else(|| tensor::element_type("value", &value.name, ty.elem_type)) {
                    Ok(dtype) => value.dtype = Some(dtype),
                    // Texts that a model yields are the business of who imports it.
                    Err(_) if !typed && matches!(ty.elem_type, 0 | TEXTS) => {}
                    Err(problem) => self.problems.push(problem),
                }
                let dims = ty.shape.map(|s| s.dim);
                value.dims = dims.map(|d| d.into_iter().map(|d| self.dim(&value.name, d)).collect());
                return value;
            }
            Some(TypeValue::Sequence(_)) => "a sequence",
            Some(TypeValue::Map(_)) => "a map",
            Some(TypeValue::Optional(_)) => "an optional value",
            Some(TypeValue::SparseTensor(_)) => "a sparse tensor",
            None => {
                if typed {
                    self.problems.push(Problem::ValueType {
                        value: value.name.clone(),
                        expected: "a graph input with a type",
                        found: "none".to_owned(),
                    });
                }
                return value;
            }
        };
        // Sequences inside of a model are the business of who imports it.
        if typed {
            self.problems.push(Problem::NotATensor { value: value.name.clone(), found: not_a_tensor });
        }
        value
    }

    fn dim(&mut self, value: &str, proto: Dimension) -> OnnxDim {
        match proto.value {
            Some(Extent::DimValue(extent @ 0..)) => OnnxDim::Value(extent),
            Some(Extent::DimParam(name)) if !name.is_empty() => OnnxDim::Symbol(name),
            Some(Extent::DimValue(found)) if found != -1 => {
                self.problems.push(Problem::ValueType {
                    value: value.to_owned(),
                    expected: "extents of at least 0, or -1 for an unknown one",
                    found: found.to_string(),
                });
                OnnxDim::Unknown
            }
            _ => OnnxDim::Unknown,
        }
    }

    fn node(&mut self, index: usize, proto: NodeProto) -> OnnxNode {
        let mut node = OnnxNode {
            name: proto.name,
            op_type: proto.op_type,
            domain: domain(proto.domain),
            inputs: proto.input,
            outputs: proto.output,
            attributes: BTreeMap::new(),
        };
        if node.op_type.is_empty() {
            self.problems.push(Problem::NoOperator { node: node.label(index) });
        }
        if self.functions.has(&node.domain, &node.op_type) && self.called.insert(node.operator()) {
            self.problems.push(Problem::Function { node: node.label(index), function: node.operator() });
        }
        for mut attribute in proto.attribute {
            let name = std::mem::take(&mut attribute.name);
            let value = match self.attribute(&node, &name, attribute) {
                Ok(value) => value,
                Err((expected, found)) => {
                    let node = node.label(index);
                    self.problems.push(Problem::Attribute { node, attribute: name, expected, found });
                    continue;
                }
            };
            if node.attributes.insert(name.clone(), value).is_some() {
                let problem = ("given once", "it twice".to_owned());
                let node = node.label(index);
                self.problems.push(Problem::Attribute {
                    node,
                    attribute: name,
                    expected: problem.0,
                    found: problem.1,
                });
            }
        }
        node
    }

    /// The value of an attribute, or what was expected and found instead.
    fn attribute(
        &mut self,
        node: &OnnxNode,
        name: &str,
        proto: AttributeProto,
    ) -> Result<Attribute, (&'static str, String)> {
        if !proto.ref_attr_name.is_empty() {
            let found = format!("a reference to attribute `{}` of a function", proto.ref_attr_name);
            return Err(("a value", found));
        }
        let text = |bytes| String::from_utf8(bytes).map_err(|e| ("text in UTF-8", e.to_string()));
        let label = || format!("{}.{name}", node.outputs.first().unwrap_or(&node.name));
        let none = |expected| (expected, "none".to_owned());
        match AttributeType::try_from(proto.r#type) {
            Ok(AttributeType::Float) => Ok(Attribute::Float(proto.f)),
            Ok(AttributeType::Int) => Ok(Attribute::Int(proto.i)),
            Ok(AttributeType::String) => Ok(Attribute::String(text(proto.s)?)),
            Ok(AttributeType::Tensor) => {
                let tensor = proto.t.ok_or(none("a tensor"))?;
                let narrow = Narrow::numbered(tensor.data_type);
                let tensor = self.tensor(&label(), *tensor);
                Ok(match narrow {
                    Some(narrow) => Attribute::NarrowTensor(narrow, tensor),
                    None => Attribute::Tensor(tensor),
                })
            }
            Ok(AttributeType::Graph) => {
                let graph = proto.g.ok_or(none("a graph"))?;
                Ok(Attribute::Graph(Box::new(self.graph(*graph, false))))
            }
            Ok(AttributeType::Floats) => Ok(Attribute::Floats(proto.floats)),
            Ok(AttributeType::Ints) => Ok(Attribute::Ints(proto.ints)),
            Ok(AttributeType::Strings) => {
                Ok(Attribute::Strings(proto.strings.into_iter().map(text).collect::<Result<_, _>>()?))
            }
            Ok(AttributeType::Tensors) => {
                Ok(Attribute::Tensors(proto.tensors.into_iter().map(|t| self.tensor(&label(), t)).collect()))
            }
            Ok(AttributeType::Graphs) => {
                Ok(Attribute::Graphs(proto.graphs.into_iter().map(|g| self.graph(g, false)).collect()))
            }
            Ok(AttributeType::SparseTensor) => Ok(Attribute::Other("sparse tensor")),
            Ok(AttributeType::SparseTensors) => Ok(Attribute::Other("sparse tensors")),
            Ok(AttributeType::TypeProto) => Ok(Attribute::Other("type")),
            Ok(AttributeType::TypeProtos) => Ok(Attribute::Other("types")),
            Ok(AttributeType::Undefined) => Err(("of a declared type", "none".to_owned())),
            Err(_) => Err(("of a type of ONNX", format!("number {}", proto.r#type))),
        }
    }

    /// A tensor, or something in its place if it has a problem: reading fails then, but later.
    fn tensor(&mut self, name: &str, proto: TensorProto) -> Tensor {
        self.store.tensor(name, proto).unwrap_or_else(|problem| {
            self.problems.push(problem);
            Tensor::scalar(0u8)
        })
    }
}

/// The domain under one name: the default one has two.
fn domain(name: String) -> String {
    if name == "ai.onnx" { String::new() } else { name }
}
