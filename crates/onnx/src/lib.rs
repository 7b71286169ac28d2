//! ONNX: from untrusted bytes on disk to checked models, from models to graphs, and back.
//!
//! [`Model::open`] reads, [`import`](import()) makes a graph, [`export`](export()) a model, [`Model::write`] writes.
//!
//! Reading goes through five steps, each of which trusts the ones before it:
//!
//! 1. `map`: the file is mapped, never read whole; the only `unsafe` of the crate.
//! 2. `sniff`: files that are something else (Git LFS pointers, web pages, archives, …) are named.
//! 3. `wire`: a bounded, iterative walk over the protobuf bytes. It refuses what would harm the parser, drops
//!    fields nobody needs and cuts the weights out, so that the parser sees a few hundred kilobytes.
//! 4. `reader`: protobuf messages become the plain structures of [`model`]; weights become tensors that point
//!    into the map.
//! 5. `check`: names, single assignment, and topological order.
//!
//! Everything wrong with a model is collected into one [`OnnxError::Invalid`].
//!
//! Writing ([`Model::write`]) encodes the same structures directly, streams the weights, and puts them into a
//! second file where one file would be too large.
//!
//! `import` gives operators their meaning: one function per ONNX operator in `import/`, one row each in
//! `import/table.rs`. `export` writes every operator of the graph as ordinary operators of ONNX: one exhaustive match
//! in `export/operators.rs`.
//!
//! Deliberately absent: training information, documentation strings, and declared types of inner values (they are
//! inferred anew). Reading and writing know no meaning of operators.

#![forbid(unsafe_code)]

mod check;
mod error;
mod export;
mod import;
mod map;
pub mod model;
mod narrow;
mod problem;
mod reader;
mod sniff;
mod tensor_file;
mod wire;
mod writer;

pub use error::{Kind, OnnxError};
pub use export::{ExportOptions, NEWEST_EXPORT_OPSET, OLDEST_EXPORT_OPSET, export};
pub use import::{
    Dropout, Imported, KnownInputs, import, import_for, import_for_training, supported_operators,
};
pub use model::{Attribute, Model, NonFinite, OnnxDim, OnnxGraph, OnnxNode, OnnxValue};
pub use narrow::Narrow;
pub use problem::Problem;
pub use sniff::Lookalike;
pub use tensor_file::read_tensor;
pub use writer::External;

pub(crate) use reader::element_type;
pub(crate) use writer::element_number;
