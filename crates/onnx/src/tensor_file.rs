//! Single tensors in files of their own, as in the test data of ONNX (`input_0.pb`).
//!
//! Deliberately absent: sequences, optionals and maps, whose files cannot be told apart from those of tensors.

use std::path::Path;

use margay_tensor::Tensor;

use crate::{OnnxError, map, reader};

/// Reads a file that holds one `TensorProto`; returns its name and the tensor, which mostly lies in the map.
///
/// # Errors
/// As [`Model::open`](crate::Model::open).
pub fn read_tensor(path: &Path) -> Result<(String, Tensor), OnnxError> {
    reader::tensor(&map::map_file(path)?, Some(path))
}
