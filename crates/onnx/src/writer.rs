//! From the structures of [`model`](crate::model) to files.
//!
//! The messages are encoded here and not by the protobuf crate, which would copy every weight. An encoded
//! message is a list of pieces: bytes, and tensors that are written from where they lie.
//!
//! The last field of a file is the import of the operator set, which readers insist on, so that a file cut short
//! anywhere is an error when it is read.
//!
//! Deliberately absent: checking what is written, and typed tensor fields (data is always raw).

use std::io::{self, Write};
use std::path::Path;

use margay_files::Pending;
use margay_tensor::{DType, Tensor};

use crate::{Attribute, Model, Narrow, OnnxDim, OnnxError, OnnxGraph, OnnxNode, OnnxValue};

/// Where the weights go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum External {
    /// Into the model, unless that makes it larger than 1.5 GB.
    #[default]
    Auto,
    /// Into the model: fails over two gigabytes.
    Never,
    /// Into a second file, but for initializers of less than a kilobyte and constants inside nodes.
    Always,
}

/// Size in bytes above which [`External::Auto`] makes a second file.
const AUTO_BYTES: u64 = 1_500_000_000;
/// Greatest size of a protobuf message in bytes.
const MAX_BYTES: u64 = i32::MAX as u64;
/// Smallest initializer that goes to a second file, in bytes.
const EXTERNAL_BYTES: usize = 1024;
/// Offsets in the second file are multiples of this, so that tensors can be mapped by page.
const PAGE: u64 = 4096;
/// Greatest number of graphs in one another, the most a reader takes.
const MAX_GRAPHS: usize = 32;

pub(crate) fn write(model: &Model, path: &Path, external: External) -> Result<(), OnnxError> {
    let unnamed = || OnnxError::FileName { path: path.to_path_buf() };
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(unnamed)?;
    let beside = format!("{name}.data");

    let mut encoder = Encoder { second: None };
    let mut whole = encoder.model(model)?;
    if external == External::Always || external == External::Auto && whole.bytes > AUTO_BYTES {
        encoder.second = Some(Second { location: &beside, tensors: Vec::new(), bytes: 0 });
        whole = encoder.model(model)?;
    }
    check_size(&whole)?;

    let model_file = pending(path, |out| {
        whole.pieces.iter().try_for_each(|piece| match piece {
            Piece::Bytes(bytes) => out.write_all(bytes),
            Piece::Payload(tensor) => out.write_all(tensor.bytes()),
        })
    })?;
    let tensors = encoder.second.map(|s| s.tensors).unwrap_or_default();
    if !tensors.is_empty() {
        let data_place = path.with_file_name(&beside);
        let data_file = pending(&data_place, |out| {
            let mut at = 0;
            for (offset, tensor) in tensors {
                io::copy(&mut io::Read::take(io::repeat(0), offset - at), out)?;
                out.write_all(tensor.bytes())?;
                at = offset + tensor.bytes().len() as u64;
            }
            Ok(())
        })?;
        data_file.keep().map_err(|source| unwritten(&data_place, source))?;
    }
    model_file.keep().map_err(|source| unwritten(path, source))
}

pub(crate) fn to_bytes(model: &Model) -> Result<Vec<u8>, OnnxError> {
    let whole = Encoder { second: None }.model(model)?;
    check_size(&whole)?;
    let mut bytes = Vec::with_capacity(whole.bytes as usize);
    for piece in &whole.pieces {
        bytes.extend_from_slice(match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Payload(tensor) => tensor.bytes(),
        });
    }
    Ok(bytes)
}

fn check_size(whole: &Encoded) -> Result<(), OnnxError> {
    if whole.bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(OnnxError::TooLarge { what: "the model as one message", limit: MAX_BYTES, found: whole.bytes })
}

/// A file with these contents that is not in its place yet.
fn pending(place: &Path, fill: impl FnOnce(&mut Pending) -> io::Result<()>) -> Result<Pending, OnnxError> {
    let mut file = Pending::create(place).map_err(|source| unwritten(place, source))?;
    fill(&mut file).map_err(|source| unwritten(place, source))?;
    Ok(file)
}

fn unwritten(place: &Path, source: io::Error) -> OnnxError {
    OnnxError::Write { path: place.to_path_buf(), source }
}

/// An encoded message.
#[derive(Default)]
struct Encoded {
    pieces: Vec<Piece>,
    bytes: u64,
}

enum Piece {
    Bytes(Vec<u8>),
    Payload(Tensor),
}

impl Encoded {
    fn raw(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        match self.pieces.last_mut() {
            Some(Piece::Bytes(last)) => last.extend_from_slice(bytes),
            _ => self.pieces.push(Piece::Bytes(bytes.to_vec())),
        }
    }

    fn varint(&mut self, mut value: u64) {
        let mut bytes = [0; 10];
        let mut length = 0;
        for byte in &mut bytes {
            length += 1;
            *byte = value as u8 & 0x7f;
            value >>= 7;
            if value == 0 {
                break;
            }
            *byte |= 0x80;
        }
        self.raw(&bytes[..length]);
    }

    fn int(&mut self, field: u64, value: i64) {
        self.varint(field << 3);
        self.varint(value as u64);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.raw(&value.to_le_bytes());
    }

    fn text(&mut self, field: u64, value: &str) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.raw(value.as_bytes());
    }

    /// Text that is left out if empty.
    fn name(&mut self, field: u64, value: &str) {
        if !value.is_empty() {
            self.text(field, value);
        }
    }

    fn message(&mut self, field: u64, message: Encoded) {
        self.varint(field << 3 | 2);
        self.varint(message.bytes);
        for piece in message.pieces {
            match piece {
                Piece::Bytes(bytes) => self.raw(&bytes),
                Piece::Payload(tensor) => self.payload(tensor),
            }
        }
    }

    fn payload(&mut self, tensor: Tensor) {
        self.bytes += tensor.bytes().len() as u64;
        self.pieces.push(Piece::Payload(tensor));
    }

    fn entry(&mut self, field: u64, key: &str, value: &str) {
        let mut entry = Encoded::default();
        entry.text(1, key);
        entry.text(2, value);
        self.message(field, entry);
    }
}

/// The second file: its name, and the tensors that go there with their offsets.
struct Second<'a> {
    location: &'a str,
    tensors: Vec<(u64, Tensor)>,
    bytes: u64,
}

struct Encoder<'a> {
    second: Option<Second<'a>>,
}

impl Encoder<'_> {
    fn model(&mut self, model: &Model) -> Result<Encoded, OnnxError> {
        let mut out = Encoded::default();
        out.int(1, model.ir_version);
        out.name(2, &model.producer);
        out.name(3, &model.producer_version);
        for (key, value) in &model.metadata {
            out.entry(14, key, value);
        }
        let graph = self.graph(&model.graph, 1)?;
        out.message(7, graph);
        let domains = model.domains.iter().map(|(domain, version)| (domain.as_str(), *version));
        for (domain, version) in domains.chain([("", model.opset)]) {
            let mut import = Encoded::default();
            import.text(1, domain);
            import.int(2, version);
            out.message(8, import);
        }
        Ok(out)
    }

    fn graph(&mut self, graph: &OnnxGraph, depth: usize) -> Result<Encoded, OnnxError> {
        if depth > MAX_GRAPHS {
            return Err(OnnxError::TooDeep { at: 0, limit: MAX_GRAPHS });
        }
        let mut out = Encoded::default();
        for node in &graph.nodes {
            let node = self.node(node, depth)?;
            out.message(1, node);
        }
        out.name(2, &graph.name);
        for (name, tensor) in &graph.initializers {
            let tensor = match graph.narrow.get(name) {
                Some(narrow) => narrow_tensor(name, *narrow, tensor),
                None => self.initializer(name, tensor, depth),
            };
            out.message(5, tensor);
        }
        for (field, values) in [(11, &graph.inputs), (11, &graph.defaults), (12, &graph.outputs)] {
            values.iter().for_each(|v| out.message(field, value(v)));
        }
        Ok(out)
    }

    fn node(&mut self, node: &OnnxNode, depth: usize) -> Result<Encoded, OnnxError> {
        let mut out = Encoded::default();
        node.inputs.iter().for_each(|i| out.text(1, i));
        node.outputs.iter().for_each(|o| out.text(2, o));
        out.name(3, &node.name);
        out.text(4, &node.op_type);
        for (name, value) in &node.attributes {
            let attribute = self.attribute(name, value, depth)?;
            out.message(5, attribute);
        }
        out.name(7, &node.domain);
        Ok(out)
    }

    fn attribute(&mut self, name: &str, value: &Attribute, depth: usize) -> Result<Encoded, OnnxError> {
        let mut out = Encoded::default();
        out.text(1, name);
        let kind = match value {
            Attribute::Float(v) => {
                out.float(2, *v);
                1
            }
            Attribute::Int(v) => {
                out.int(3, *v);
                2
            }
            Attribute::String(v) => {
                out.text(4, v);
                3
            }
            Attribute::Tensor(v) => {
                out.message(5, tensor("", v));
                4
            }
            Attribute::NarrowTensor(narrow, v) => {
                out.message(5, narrow_tensor("", *narrow, v));
                4
            }
            Attribute::Graph(v) => {
                let graph = self.graph(v, depth + 1)?;
                out.message(6, graph);
                5
            }
            Attribute::Floats(v) => {
                v.iter().for_each(|&v| out.float(7, v));
                6
            }
            Attribute::Ints(v) => {
                v.iter().for_each(|&v| out.int(8, v));
                7
            }
            Attribute::Strings(v) => {
                v.iter().for_each(|v| out.text(9, v));
                8
            }
            Attribute::Tensors(v) => {
                v.iter().for_each(|v| out.message(10, tensor("", v)));
                9
            }
            Attribute::Graphs(v) => {
                for graph in v {
                    let graph = self.graph(graph, depth + 1)?;
                    out.message(11, graph);
                }
                10
            }
            Attribute::Other(kind) => {
                return Err(OnnxError::NotWritable { attribute: name.to_owned(), kind });
            }
        };
        out.int(20, kind);
        Ok(out)
    }

    /// An initializer, in the second file if there is one and the tensor is large enough.
    fn initializer(&mut self, name: &str, value: &Tensor, depth: usize) -> Encoded {
        let Some(second) =
            self.second.as_mut().filter(|_| depth == 1 && value.bytes().len() >= EXTERNAL_BYTES)
        else {
            return tensor(name, value);
        };
        let offset = second.bytes.next_multiple_of(PAGE);
        let length = value.bytes().len() as u64;
        second.tensors.push((offset, value.clone()));
        second.bytes = offset + length;
        let mut out = header(name, value);
        out.entry(13, "location", second.location);
        out.entry(13, "offset", &offset.to_string());
        out.entry(13, "length", &length.to_string());
        out.int(14, 1);
        out
    }
}

fn tensor(name: &str, value: &Tensor) -> Encoded {
    with_data(header(name, value), value)
}

/// A tensor of bytes that stand for elements of a narrow type, which are packed.
fn narrow_tensor(name: &str, narrow: Narrow, value: &Tensor) -> Encoded {
    let header = typed_header(name, value.shape(), narrow.number().into());
    with_data(header, &narrow.packed(value))
}

fn with_data(mut out: Encoded, value: &Tensor) -> Encoded {
    out.varint(9 << 3 | 2);
    out.varint(value.bytes().len() as u64);
    out.payload(value.clone());
    out
}

/// The part of a tensor that is not its data.
fn header(name: &str, value: &Tensor) -> Encoded {
    typed_header(name, value.shape(), element_number(value.dtype()))
}

fn typed_header(name: &str, shape: &[usize], number: i64) -> Encoded {
    let mut out = Encoded::default();
    shape.iter().for_each(|&d| out.int(1, d as i64));
    out.int(2, number);
    out.name(8, name);
    out
}

fn value(value: &OnnxValue) -> Encoded {
    let mut out = Encoded::default();
    out.text(1, &value.name);
    if value.dtype.is_none() && value.dims.is_none() {
        return out;
    }
    let mut ty = Encoded::default();
    if let Some(dtype) = value.dtype {
        ty.int(1, value.narrow.map_or_else(|| element_number(dtype), |narrow| narrow.number().into()));
    }
    if let Some(dims) = &value.dims {
        let mut shape = Encoded::default();
        for dim in dims {
            let mut dimension = Encoded::default();
            match dim {
                OnnxDim::Value(extent) => dimension.int(1, *extent),
                OnnxDim::Symbol(name) => dimension.text(2, name),
                OnnxDim::Unknown => {}
            }
            shape.message(1, dimension);
        }
        ty.message(2, shape);
    }
    let mut typed = Encoded::default();
    typed.message(1, ty);
    out.message(2, typed);
    out
}

/// The number of an element type in ONNX.
pub(crate) fn element_number(dtype: DType) -> i64 {
    match dtype {
        DType::F32 => 1,
        DType::U8 => 2,
        DType::I8 => 3,
        DType::U16 => 4,
        DType::I16 => 5,
        DType::I32 => 6,
        DType::I64 => 7,
        DType::Bool => 9,
        DType::F16 => 10,
        DType::F64 => 11,
        DType::U32 => 12,
        DType::U64 => 13,
        DType::BF16 => 16,
    }
}
