//! Data types, symbolic dimensions, host tensors and counter-based random numbers.
//!
//! This crate is the vocabulary every other crate of margay speaks. It has no internal dependencies and
//! knows nothing of graphs, ONNX or code generation.
//!
//! - [`DType`]: the element types a tensor may have.
//! - [`Dim`]: an integer expression over named symbols, in normal form; [`Shape`] is a list of them.
//! - [`Tensor`]: a host tensor whose bytes are owned or lie in a mapped file.
//! - [`Map`]: a mapped file.
//! - [`f16_of`], [`bf16_of`]: rounding to floats of 16 bits.
//! - [`Storage`]: how a constant is stored; [`StoredTensor`] is a tensor stored so.
//! - [`random`]: Philox streams named by (seed, stream, index).
//!
//! Deliberately absent: arithmetic on tensors (that is `eval` of each op, and generated code), and what is in files.

#![deny(unsafe_code)]

mod dim;
mod dtype;
mod half_floats;
mod map;
pub mod random;
mod storage;
mod tensor;

pub use dim::{
    Binding, Dim, Factor, MAX_TERMS, Shape, Symbol, UnboundSymbol, is_decided, is_named, may_be_empty,
    possibly_empty, shape_of,
};
pub use dtype::{DType, Element};
pub use half_floats::{bf16_of, f16_of};
pub use map::Map;
pub use storage::{Grid, Scales, Signs, Storage, StorageError, StoredLayout, StoredTensor};
pub use tensor::{ContentHash, Tensor, TensorError};
