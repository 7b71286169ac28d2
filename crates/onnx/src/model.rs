//! A model as plain structures, without protobuf.
//!
//! A model that was read keeps these promises:
//!
//! - values are assigned once, and every node and output reads a value that exists;
//! - nodes are in topological order (the order of the file where that is one);
//! - tensors fit their types and extents; their bytes mostly lie in the mapped file;
//! - subgraphs, which may read values of the graphs around them, keep the same promises.
//!
//! A model that is built by hand may break them; [`Model::write`] does not check.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use margay_tensor::{DType, Tensor};

use crate::{External, Narrow, OnnxError, map, reader, writer};

/// Oldest operator set of the default domain that is read.
pub const OLDEST_OPSET: i64 = 1;
/// The producer of models that are made here.
pub(crate) const PRODUCER: &str = "margay";
/// The domain of operators that onnxruntime adds, of which there is one version.
pub(crate) const MICROSOFT: &str = "com.microsoft";
/// Newest operator set of the default domain that is read.
pub const NEWEST_OPSET: i64 = 28;
/// Oldest version of the format that is read: the first with operator sets.
pub const OLDEST_IR: i64 = 3;
/// Newest version of the format that is read. Those since [`OLDEST_IR`] only added element types and messages,
/// each of which has its own error.
pub const NEWEST_IR: i64 = 14;

/// An ONNX model.
#[derive(Clone, PartialEq, Debug)]
pub struct Model {
    /// Version of the format.
    pub ir_version: i64,
    /// The tool that wrote the model.
    pub producer: String,
    /// The version of that tool.
    pub producer_version: String,
    /// Version of the default operator set; [`NEWEST_OPSET`] for a model that neither imports nor uses it.
    pub opset: i64,
    /// Versions of the operator sets of other domains.
    pub domains: BTreeMap<String, i64>,
    /// Versions of the operator sets of single nodes, by their first results, where a function of the model that they were in
    /// names another one.
    pub own_versions: BTreeMap<String, i64>,
    /// Notes of the producer.
    pub metadata: BTreeMap<String, String>,
    /// What the model computes.
    pub graph: OnnxGraph,
}

/// A graph: the main one, or one in an attribute of a node.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OnnxGraph {
    /// Its name.
    pub name: String,
    /// What it is given. Inputs that have an initializer are not listed here.
    pub inputs: Vec<OnnxValue>,
    /// Inputs whose initializer is the value that they have unless another one is given.
    pub defaults: Vec<OnnxValue>,
    /// What it yields.
    pub outputs: Vec<OnnxValue>,
    /// Constants by name, in the order of the file.
    pub initializers: Vec<(String, Tensor)>,
    /// Which constants have elements that stand for others.
    pub narrow: BTreeMap<String, Narrow>,
    /// Operators, in topological order.
    pub nodes: Vec<OnnxNode>,
}

/// An input or output of a graph. Inputs of the main graph have an element type.
#[derive(Clone, PartialEq, Debug)]
pub struct OnnxValue {
    /// Its name.
    pub name: String,
    /// Element type, if declared.
    pub dtype: Option<DType>,
    /// What its elements stand for, if that is no type of graphs; `dtype` is then that of their bytes.
    pub narrow: Option<Narrow>,
    /// Extents, if the number of axes is declared.
    pub dims: Option<Vec<OnnxDim>>,
}

/// An extent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OnnxDim {
    /// Fixed, at least 0.
    Value(i64),
    /// Named: equal names mean equal extents.
    Symbol(String),
    /// Not declared. An extent of −1, which some exporters write, is read as this.
    Unknown,
}

/// A node: one application of an operator.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OnnxNode {
    /// Its name; may be empty, and need not be unique.
    pub name: String,
    /// The operator.
    pub op_type: String,
    /// The domain of the operator; empty for the default one (`ai.onnx`).
    pub domain: String,
    /// Values read; an empty name stands for an absent optional input.
    pub inputs: Vec<String>,
    /// Values produced; an empty name stands for one that is not used.
    pub outputs: Vec<String>,
    /// Attributes by name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// The value of an attribute.
#[derive(Clone, PartialEq, Debug)]
pub enum Attribute {
    /// A number.
    Float(f32),
    /// An integer.
    Int(i64),
    /// Text.
    String(String),
    /// A constant.
    Tensor(Tensor),
    /// A constant with elements that stand for others.
    NarrowTensor(Narrow, Tensor),
    /// A subgraph.
    Graph(Box<OnnxGraph>),
    /// Numbers.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
    /// Texts.
    Strings(Vec<String>),
    /// Constants.
    Tensors(Vec<Tensor>),
    /// Subgraphs.
    Graphs(Vec<OnnxGraph>),
    /// Something margay has no use for, by what ONNX calls it: "sparse tensor", "type", …
    Other(&'static str),
}

/// A floating-point constant with elements that are not finite. Masks hold infinities on purpose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NonFinite {
    /// The name of the initializer, or node and attribute.
    pub tensor: String,
    /// Number of elements that are not a number.
    pub nan: usize,
    /// Number of infinite elements.
    pub infinite: usize,
    /// Position of the first of either in row-major order.
    pub first: usize,
}

impl OnnxGraph {
    /// The domains besides the default one that nodes name, those of subgraphs included.
    fn domains(&self) -> BTreeSet<&str> {
        fn inside(attribute: &Attribute) -> BTreeSet<&str> {
            match attribute {
                Attribute::Graph(graph) => graph.domains(),
                Attribute::Graphs(graphs) => graphs.iter().flat_map(OnnxGraph::domains).collect(),
                _ => BTreeSet::new(),
            }
        }
        let own = self.nodes.iter().map(|node| node.domain.as_str()).filter(|domain| !domain.is_empty());
        own.chain(self.nodes.iter().flat_map(|node| node.attributes.values().flat_map(inside))).collect()
    }
}

impl Model {
    /// The operator set that a node is written in; 0 if the model names none for its domain.
    pub fn opset_of(&self, node: &OnnxNode) -> i64 {
        let first = node.outputs.iter().find(|o| !o.is_empty());
        let own = first.and_then(|first| self.own_versions.get(first)).copied();
        own.unwrap_or_else(|| match node.domain.as_str() {
            "" => self.opset,
            domain => self.domains.get(domain).copied().unwrap_or(0),
        })
    }

    /// The batch normalizations, those inside of loops and choices included, that take mean and variance of the batch at hand: what
    /// the model says of a sample depends on the others in its batch.
    pub fn batch_statistics(&self) -> Vec<&OnnxNode> {
        fn of(graph: &OnnxGraph) -> Vec<&OnnxNode> {
            let trains = |n: &&OnnxNode| {
                n.domain.is_empty()
                    && n.op_type == "BatchNormalization"
                    && n.attributes.get("training_mode") == Some(&Attribute::Int(1))
            };
            let inner = graph.nodes.iter().flat_map(|n| n.attributes.values());
            let inner = inner.flat_map(|attribute| match attribute {
                Attribute::Graph(graph) => of(graph),
                _ => Vec::new(),
            });
            graph.nodes.iter().filter(trains).chain(inner).collect()
        }
        of(&self.graph)
    }

    /// Reads and checks the model in a file.
    ///
    /// The file, and files of external data beside it, stay mapped while tensors of the model live. They must
    /// not be changed or truncated in that time: as with every program that maps files, a truncated one ends the
    /// process at the next access. Replacing them by renaming is safe.
    ///
    /// # Errors
    /// Any [`OnnxError`] but those of writing; [`OnnxError::Invalid`] lists everything wrong with the contents.
    pub fn open(path: &Path) -> Result<Model, OnnxError> {
        reader::model(&map::map_file(path)?, Some(path))
    }

    /// Reads and checks a model that is already in memory. Tensors point into a copy of `bytes`; external data
    /// is an error, since there is no folder to look for it.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Model, OnnxError> {
        reader::model(&map::map_bytes(bytes)?, None)
    }

    /// A model made by margay, without notes, in the oldest format for its operator set, and in the first version of the
    /// other domains that its nodes name.
    pub fn new(opset: i64, graph: OnnxGraph) -> Model {
        Model {
            ir_version: match opset {
                ..9 => 3,
                9 => 4,
                10 => 5,
                11 => 6,
                12..15 => 7,
                15..19 => 8,
                19..21 => 9,
                21..23 => 10,
                23 => 11,
                24 => 12,
                25.. => 13,
            },
            producer: PRODUCER.to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            opset,
            domains: graph.domains().into_iter().map(|domain| (domain.to_owned(), 1)).collect(),
            own_versions: BTreeMap::new(),
            metadata: BTreeMap::new(),
            graph,
        }
    }

    /// Writes the model; equal models give equal bytes.
    ///
    /// The file is written beside its place and renamed, so that a failure leaves what was there and a model
    /// may replace the file it was read from. External data goes to a file named like the model with `.data`
    /// appended. Tensors are written from where they lie, without a copy.
    ///
    /// # Errors
    /// [`OnnxError::Write`], [`OnnxError::FileName`], [`OnnxError::TooDeep`] for more than 32 graphs in one
    /// another, or [`OnnxError::TooLarge`] for a file over two gigabytes.
    pub fn write(&self, path: &Path, external: External) -> Result<(), OnnxError> {
        writer::write(self, path, external)
    }

    /// The bytes [`Model::write`] would write without external data.
    ///
    /// # Errors
    /// [`OnnxError::TooDeep`] or [`OnnxError::TooLarge`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, OnnxError> {
        writer::to_bytes(self)
    }

    /// The floating-point constants with elements that are not finite, those of subgraphs included.
    ///
    /// Reads all weights, so it takes as long as reading the file.
    pub fn non_finite(&self) -> Vec<NonFinite> {
        let mut found = Vec::new();
        let mut graphs = vec![&self.graph];
        while let Some(graph) = graphs.pop() {
            found.extend(graph.initializers.iter().filter_map(|(name, t)| non_finite(t, || name.clone())));
            for (index, node) in graph.nodes.iter().enumerate() {
                for (name, attribute) in &node.attributes {
                    let label = || format!("{} attribute `{name}`", node.label(index));
                    match attribute {
                        Attribute::Tensor(t) => found.extend(non_finite(t, label)),
                        Attribute::Tensors(all) => {
                            found.extend(all.iter().filter_map(|t| non_finite(t, label)))
                        }
                        Attribute::Graph(g) => graphs.push(g),
                        Attribute::Graphs(all) => graphs.extend(all),
                        _ => {}
                    }
                }
            }
        }
        found
    }
}

impl OnnxNode {
    /// How error messages name the node; `index` is its place in the graph and serves where it has no name.
    pub fn label(&self, index: usize) -> String {
        if self.name.is_empty() {
            format!("number {index} ({})", self.operator())
        } else {
            format!("`{}` ({})", self.name, self.operator())
        }
    }

    /// The operator with its domain, where that is not the default one.
    pub fn operator(&self) -> String {
        let dot = if self.domain.is_empty() { "" } else { "." };
        format!("{}{dot}{}", self.domain, self.op_type)
    }
}

impl fmt::Display for OnnxDim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OnnxDim::Value(value) => write!(f, "{value}"),
            OnnxDim::Symbol(name) => f.write_str(name),
            OnnxDim::Unknown => f.write_str("?"),
        }
    }
}

/// What is not finite in a tensor. Exponent bits all set mean so in every floating-point type.
fn non_finite(tensor: &Tensor, name: impl Fn() -> String) -> Option<NonFinite> {
    let found = match tensor.dtype() {
        DType::F64 => scan(tensor.bytes(), |e| u64::from_le_bytes(e) << 1, 0x7ff0 << 49),
        DType::F32 => scan(tensor.bytes(), |e| u32::from_le_bytes(e) << 1, 0x7f80_0000 << 1),
        DType::F16 => scan(tensor.bytes(), |e| u16::from_le_bytes(e) << 1, 0x7c00 << 1),
        DType::BF16 => scan(tensor.bytes(), |e| u16::from_le_bytes(e) << 1, 0x7f80 << 1),
        _ => None,
    };
    found.map(|[nan, infinite, first]| NonFinite { tensor: name(), nan, infinite, first })
}

/// How many elements are no number and how many infinite, and where the first of either is. `magnitude` is the bits of an
/// element without its sign; those of infinity are given, and what is no number has larger ones.
fn scan<const N: usize, W: Ord + Copy>(
    bytes: &[u8],
    magnitude: impl Fn([u8; N]) -> W,
    infinity: W,
) -> Option<[usize; 3]> {
    const BLOCK: usize = 1 << 12;
    let (mut nan, mut infinite, mut first) = (0, 0, None);
    for (index, block) in bytes.as_chunks::<N>().0.chunks(BLOCK).enumerate() {
        // Without a branch for each element: nearly all blocks are finite.
        if !block.iter().fold(false, |any, e| any | (magnitude(*e) >= infinity)) {
            continue;
        }
        for (at, element) in block.iter().enumerate() {
            let bits = magnitude(*element);
            if bits >= infinity {
                first.get_or_insert(index * BLOCK + at);
                if bits == infinity { infinite += 1 } else { nan += 1 }
            }
        }
    }
    first.map(|first| [nan, infinite, first])
}
