//! What can be wrong with a model, a file or a request to write one.
//!
//! [`OnnxError`] ends the reading of a file. What is wrong with the *contents* of a readable file is a list of
//! [`Problem`]s, all of which are found before reading fails.

use std::fmt;
use std::io;
use std::path::PathBuf;

use margay_tensor::DType;

use crate::Lookalike;

/// A file cannot be read as an ONNX model, or a model cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The file cannot be opened or mapped (the user's or the machine's fault).
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The path names a directory, a pipe or a device (the user's fault).
    #[error("cannot read `{}`: expected a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Not enough memory for a copy (the machine's fault).
    #[error("cannot allocate memory: {0}")]
    Memory(io::Error),
    /// The file is something else than ONNX (the user's fault).
    #[error("not an ONNX model: found {0}")]
    NotOnnx(Lookalike),
    /// The file ends in the middle of a message (the file's fault).
    #[error("the file is cut short inside `{within}`: expected at least {expected} bytes, found {found}")]
    Truncated {
        /// The message that is incomplete.
        within: &'static str,
        /// Bytes the file must have at least.
        expected: u64,
        /// Bytes it has.
        found: u64,
    },
    /// The bytes are not protobuf, or not the messages of ONNX (the file's fault).
    #[error("malformed `{within}` at byte {at}: expected {expected}, found {found}")]
    Malformed {
        /// Offset in the file, in bytes.
        at: usize,
        /// The message it happens in.
        within: &'static str,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Messages or subgraphs are nested beyond any honest model (the file's or, in writing, the caller's fault).
    #[error("messages are nested too deeply at byte {at}: expected at most {limit} levels")]
    TooDeep {
        /// Offset in the file, in bytes.
        at: usize,
        /// The greatest number of levels.
        limit: usize,
    },
    /// Reading would take far more memory than the file has bytes (the file's fault), or writing would pass the
    /// two gigabytes a protobuf message may have (the caller's choice of [`External`](crate::External)).
    #[error("{what} is too large: expected at most {limit} bytes, found {found}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The greatest number of bytes.
        limit: u64,
        /// The number of bytes it would take at least.
        found: u64,
    },
    /// The parser refuses the bytes: text that is not UTF-8, packed numbers cut short (the file's fault).
    #[error("malformed `{within}`: {message}")]
    Parse {
        /// The message that was parsed.
        within: &'static str,
        /// What the parser says.
        message: String,
    },
    /// The file holds no graph (the file's fault).
    #[error("the model has no graph")]
    NoGraph,
    /// The model is readable but wrong, or uses what margay does not support.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
    /// A file cannot be written (the machine's or the user's fault).
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// An attribute that was read as [`Attribute::Other`](crate::Attribute::Other) has nothing to write (the
    /// caller's fault).
    #[error("cannot write attribute `{attribute}`: its value, a {kind}, was not kept")]
    NotWritable {
        /// The attribute.
        attribute: String,
        /// What ONNX calls its value.
        kind: &'static str,
    },
    /// The path to write to has no file name (the user's fault).
    #[error("cannot write `{}`: expected a path that ends in a file name of valid UTF-8", path.display())]
    FileName {
        /// The path.
        path: PathBuf,
    },
}

/// Whether a model is wrong, or right but beyond us. They have different exit codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The file is unreadable or breaks the rules of ONNX.
    Malformed,
    /// The file keeps the rules but uses something that margay does not support.
    Unsupported,
}

impl OnnxError {
    /// Whether the file is unreadable or breaks the rules of ONNX, as opposed to using what margay lacks.
    pub fn is_malformed(&self) -> bool {
        match self {
            OnnxError::Invalid(problems) => problems.iter().any(|p| p.kind() == Kind::Malformed),
            OnnxError::TooLarge { .. } | OnnxError::TooDeep { .. } => true,
            OnnxError::Memory(_)
            | OnnxError::Write { .. }
            | OnnxError::NotWritable { .. }
            | OnnxError::FileName { .. } => false,
            OnnxError::Read { .. }
            | OnnxError::NotAFile { .. }
            | OnnxError::NotOnnx(_)
            | OnnxError::Truncated { .. }
            | OnnxError::Malformed { .. }
            | OnnxError::Parse { .. }
            | OnnxError::NoGraph => true,
        }
    }

    /// What a person may do about it, in one line.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            OnnxError::NotOnnx(lookalike) => Some(lookalike.help()),
            OnnxError::Truncated { .. } => Some("the download or copy did not finish; fetch the file again"),
            OnnxError::Malformed { .. } | OnnxError::Parse { .. } | OnnxError::NoGraph => {
                Some("the file is damaged or no ONNX model; compare its size and checksum with the source")
            }
            OnnxError::Invalid(problems) => problems.iter().find_map(Problem::help),
            OnnxError::TooLarge { .. } => Some("keep large tensors as external data"),
            _ => None,
        }
    }
}

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
    /// A node calls a function defined in the model itself (unsupported).
    #[error("node {node}: expected an operator, found a function that the model defines, `{function}`")]
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
            Problem::InputType { .. } => Some("run `onnx.shape_inference.infer_shapes` on the model, or export it again"),
            Problem::Function { .. } => Some("inline functions with `onnx.inliner.inline_local_functions`"),
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

/// The problem, or a heading and one line each.
fn list(problems: &[Problem]) -> String {
    match problems {
        [only] => only.to_string(),
        _ => {
            let lines: Vec<String> = problems.iter().map(|p| format!("\n  {p}")).collect();
            format!("the model has several problems:{}", lines.concat())
        }
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
