//! What can be wrong with the contents of a readable model.

use std::fmt;

use margay_tensor::DType;

use crate::{Kind, OnnxError};

/// One thing that is wrong with a model, or unsupported in it.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum Problem {
    /// The version of the format is missing or from the time before operator sets (the model's fault).
    #[error("model: expected IR version {oldest} to {newest}, found {found}")]
    IrVersion {
        /// Oldest version read.
        oldest: i64,
        /// Newest version read.
        newest: i64,
        /// Version of the model; 0 where it says none.
        found: i64,
    },
    /// The model does not say which operator set its nodes mean (the model's fault).
    #[error("model: expected an operator set import for the default domain, found none")]
    NoOpset,
    /// The operator set is older or newer than those margay knows (unsupported).
    #[error("model: expected operator set {oldest} to {newest}, found {found}")]
    Opset {
        /// Oldest operator set read.
        oldest: i64,
        /// Newest operator set read.
        newest: i64,
        /// Operator set of the model.
        found: i64,
    },
    /// Two versions of one operator set are imported (the model's fault).
    #[error("model: expected one version of operator domain `{domain}`, found {first} and {second}")]
    TwoOpsets {
        /// The domain.
        domain: String,
        /// The version imported first.
        first: i64,
        /// The other one.
        second: i64,
    },
    /// A node calls a function of the model that cannot take its place: it is written for other operator sets, or calls
    /// itself, or is very large (unsupported).
    #[error(
        "node {node}: expected an operator, found a function of the model that is written for other operator sets or calls \
         itself, `{function}`"
    )]
    Function {
        /// The first such node.
        node: String,
        /// Domain and name of the function.
        function: String,
    },
    /// Something that must have a name has none (the model's fault).
    #[error("{what} number {index}: expected a name, found none")]
    Unnamed {
        /// What has no name: "input", "initializer", …
        what: &'static str,
        /// Its position.
        index: usize,
    },
    /// A name has two definitions (the model's fault).
    #[error("value `{name}`: expected one definition, found {first} and {second}")]
    Duplicate {
        /// The name.
        name: String,
        /// The definition found first.
        first: String,
        /// The other one.
        second: String,
    },
    /// A node reads a value that nothing produces (the model's fault).
    #[error(
        "node {node}: expected input `{input}` to be a graph input, initializer or node output, found none"
    )]
    MissingInput {
        /// The node.
        node: String,
        /// The value it reads.
        input: String,
    },
    /// A graph output is produced nowhere (the model's fault).
    #[error("output `{output}`: expected a graph input, initializer or node output, found none")]
    MissingOutput {
        /// The output.
        output: String,
    },
    /// Nodes depend on one another in a circle (the model's fault).
    #[error("expected no cycle, found {}", cycle(.nodes))]
    Cycle {
        /// The nodes of the circle, each reading what the one before it produces.
        nodes: Vec<String>,
    },
    /// A node names no operator (the model's fault).
    #[error("node {node}: expected an operator name, found none")]
    NoOperator {
        /// The node.
        node: String,
    },
    /// An attribute contradicts itself (the model's fault).
    #[error("node {node}: expected attribute `{attribute}` to be {expected}, found {found}")]
    Attribute {
        /// The node.
        node: String,
        /// The attribute.
        attribute: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// An input or output of the model has no type, or an impossible one (the model's fault).
    #[error("value `{value}`: expected {expected}, found {found}")]
    ValueType {
        /// The name of the value.
        value: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// An input or output is a sequence, map, optional or sparse tensor (unsupported).
    #[error("value `{value}`: expected a tensor, found {found}")]
    NotATensor {
        /// The name of the value.
        value: String,
        /// What it is.
        found: &'static str,
    },
    /// Elements of a type margay has no counterpart for (unsupported).
    #[error("{what} `{name}`: element type `{found}` is not supported")]
    ElementType {
        /// "tensor" or "value".
        what: &'static str,
        /// Its name.
        name: String,
        /// The element type as ONNX calls it.
        found: &'static str,
    },
    /// An element type that ONNX does not define (the model's fault).
    #[error("{what} `{name}`: expected an element type of ONNX, found number {found}")]
    UnknownElementType {
        /// "tensor" or "value".
        what: &'static str,
        /// Its name.
        name: String,
        /// The number.
        found: i32,
    },
    /// A tensor is stored sparsely or in segments (unsupported).
    #[error("tensor `{tensor}`: {found} are not supported")]
    Storage {
        /// The tensor.
        tensor: String,
        /// "sparse tensors" or "segments".
        found: &'static str,
    },
    /// A tensor with a negative extent (the model's fault).
    #[error("tensor `{tensor}`: expected axis {axis} to have an extent of at least 0, found {found}")]
    NegativeDim {
        /// The tensor.
        tensor: String,
        /// The axis.
        axis: usize,
        /// Its extent.
        found: i64,
    },
    /// A tensor with more axes than any tensor has (the model's fault).
    #[error("tensor `{tensor}`: expected at most {limit} axes, found {found}")]
    Axes {
        /// The tensor.
        tensor: String,
        /// The greatest number of axes.
        limit: usize,
        /// Its number of axes.
        found: usize,
    },
    /// The size of a tensor in bytes overflows (the model's fault).
    #[error("tensor `{tensor}`: size of {dtype}{dims:?} overflows")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Element type.
        dtype: DType,
        /// Extents.
        dims: Vec<i64>,
    },
    /// The data of a tensor does not fit its type and extents (the model's fault).
    #[error("tensor `{tensor}`: expected {expected} {unit} for {dtype}{dims:?}, found {found}")]
    Length {
        /// The tensor.
        tensor: String,
        /// Element type.
        dtype: DType,
        /// Extents.
        dims: Vec<i64>,
        /// "bytes" or "elements".
        unit: &'static str,
        /// What type and extents ask for.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// The data of a tensor is in the wrong field, or in several (the model's fault).
    #[error("tensor `{tensor}`: expected its data in {expected}, found it in {found}")]
    Field {
        /// The tensor.
        tensor: String,
        /// Where it should be.
        expected: String,
        /// Where it is.
        found: String,
    },
    /// An element that its type cannot hold (the model's fault).
    #[error("tensor `{tensor}`: expected element {index} to fit {dtype}, found {found}")]
    Element {
        /// The tensor.
        tensor: String,
        /// Position of the element in row-major order.
        index: usize,
        /// Element type.
        dtype: DType,
        /// The element.
        found: i128,
    },
    /// External data whose entries make no sense (the model's fault).
    #[error("tensor `{tensor}`: expected external data with {expected}, found {found}")]
    ExternalEntry {
        /// The tensor.
        tensor: String,
        /// What the entry should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// External data outside the folder of the model: an absolute path, `..` or a link (refused for safety).
    #[error("tensor `{tensor}`: expected external data inside the model's folder, found `{}`", location.escape_debug())]
    ExternalOutside {
        /// The tensor.
        tensor: String,
        /// The path as the model has it.
        location: String,
    },
    /// An external file that cannot be read (the user's fault: a file is missing).
    #[error("tensor `{tensor}`: cannot read external data `{}`: {message}", location.escape_debug())]
    ExternalRead {
        /// The tensor.
        tensor: String,
        /// The path as the model has it.
        location: String,
        /// What the system says.
        message: String,
    },
    /// An external file that is too short (the file's fault).
    #[error(
        "tensor `{tensor}`: expected {expected} bytes at offset {offset} of external data `{}`, found {found}",
        location.escape_debug()
    )]
    ExternalLength {
        /// The tensor.
        tensor: String,
        /// The path as the model has it.
        location: String,
        /// Where the data should begin.
        offset: u64,
        /// Bytes there should be.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// An operator that is not imported, or not in this way (unsupported).
    #[error("operator `{operator}`: {reason}; used by {}", users(.nodes))]
    Operator {
        /// Its name, with its domain where that is not the default one.
        operator: String,
        /// What is not supported.
        reason: String,
        /// The nodes, in the order of the file.
        nodes: Vec<String>,
    },
    /// A node does not fit its inputs (the model's fault, or unsupported).
    #[error("node {node}: {message}; inputs are {inputs}")]
    Node {
        /// The node.
        node: String,
        /// The types of its inputs.
        inputs: String,
        /// What is wrong.
        message: String,
        /// Whether the model is wrong or merely unsupported.
        kind: Kind,
    },
    /// An input whose type is not declared in full (unsupported).
    #[error("input `{input}`: expected {expected} to be declared, found none")]
    InputType {
        /// The input.
        input: String,
        /// "an element type" or "a number of axes".
        expected: &'static str,
    },
    /// More problems were found than are kept.
    #[error("{count} more problems")]
    More {
        /// How many were left out.
        count: usize,
        /// Whether one of them is [`Kind::Malformed`].
        kind: Kind,
    },
}

impl Problem {
    /// Whether the model is wrong or merely unsupported.
    pub fn kind(&self) -> Kind {
        match self {
            Problem::IrVersion { newest, found, .. } if found > newest => Kind::Unsupported,
            Problem::More { kind, .. } | Problem::Node { kind, .. } => *kind,
            Problem::Opset { .. }
            | Problem::Operator { .. }
            | Problem::InputType { .. }
            | Problem::Function { .. }
            | Problem::NotATensor { .. }
            | Problem::ElementType { .. }
            | Problem::Storage { .. } => Kind::Unsupported,
            Problem::IrVersion { .. }
            | Problem::NoOpset
            | Problem::TwoOpsets { .. }
            | Problem::Unnamed { .. }
            | Problem::Duplicate { .. }
            | Problem::MissingInput { .. }
            | Problem::MissingOutput { .. }
            | Problem::Cycle { .. }
            | Problem::NoOperator { .. }
            | Problem::Attribute { .. }
            | Problem::ValueType { .. }
            | Problem::UnknownElementType { .. }
            | Problem::NegativeDim { .. }
            | Problem::Axes { .. }
            | Problem::Overflow { .. }
            | Problem::Length { .. }
            | Problem::Field { .. }
            | Problem::Element { .. }
            | Problem::ExternalEntry { .. }
            | Problem::ExternalOutside { .. }
            | Problem::ExternalRead { .. }
            | Problem::ExternalLength { .. } => Kind::Malformed,
        }
    }

    /// What a person may do about it, in one line.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Problem::NoOpset => Some("the file may be cut short; compare its size with the source"),
            Problem::Opset { .. } | Problem::IrVersion { .. } => {
                Some("convert the model with `onnx.version_converter`, or export it again")
            }
            Problem::InputType { .. } => {
                Some("run `onnx.shape_inference.infer_shapes` on the model, or export it again")
            }
            Problem::Function { .. } => Some(
                "convert the model to one operator set, or inline functions with `onnx.inliner.inline_local_functions`",
            ),
            Problem::ExternalRead { .. } | Problem::ExternalLength { .. } => {
                Some("fetch the data file that belongs to the model and keep it in the same folder")
            }
            Problem::ExternalOutside { .. } => {
                Some("copy the model and its data files into one folder, as files and not as links")
            }
            _ => None,
        }
    }
}

/// Collects problems, but not without limit.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    kept: Vec<Problem>,
    more: usize,
    more_malformed: bool,
}

impl Problems {
    /// Problems kept; the rest is counted.
    const LIMIT: usize = 100;

    pub(crate) fn push(&mut self, problem: Problem) {
        if self.kept.len() < Problems::LIMIT {
            self.kept.push(problem);
        } else {
            self.more += 1;
            self.more_malformed |= problem.kind() == Kind::Malformed;
        }
    }

    /// Fails if there are any.
    pub(crate) fn into_result(mut self) -> Result<(), OnnxError> {
        if self.more > 0 {
            let kind = if self.more_malformed { Kind::Malformed } else { Kind::Unsupported };
            self.kept.push(Problem::More { count: self.more, kind });
        }
        if self.kept.is_empty() { Ok(()) } else { Err(OnnxError::Invalid(self.kept)) }
    }
}

/// `a` -> `b` -> `a`, without the middle of long circles.
fn cycle(nodes: &[String]) -> impl fmt::Display {
    const SHOWN: usize = 8;
    let mut names: Vec<&str> = nodes.iter().map(String::as_str).take(SHOWN).collect();
    if nodes.len() > SHOWN {
        names.push("…");
    }
    names.extend(nodes.first().map(String::as_str));
    names.join(" -> ")
}

/// "2 nodes: `a` (Loop), `b` (Loop)", without the end of long lists.
fn users(nodes: &[String]) -> impl fmt::Display {
    const SHOWN: usize = 3;
    let shown: Vec<&str> = nodes.iter().map(String::as_str).take(SHOWN).collect();
    let count = match nodes.len() {
        1 => "node".to_owned(),
        n => format!("{n} nodes:"),
    };
    format!("{count} {}{}", shown.join(", "), if nodes.len() > SHOWN { ", …" } else { "" })
}
