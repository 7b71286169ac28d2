//! Mapping files into memory, with the errors of this crate.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use margay_tensor::Map;

use crate::OnnxError;

/// Maps a regular file read-only.
///
/// # Errors
/// [`OnnxError::Read`] where the file cannot be opened or mapped, [`OnnxError::NotAFile`] for directories, pipes and
/// devices.
pub(crate) fn map_file(path: &Path) -> Result<Arc<Map>, OnnxError> {
    Map::open(path).map(Arc::new).map_err(|source| match source.kind() {
        ErrorKind::InvalidInput => OnnxError::NotAFile { path: path.to_path_buf() },
        _ => OnnxError::Read { path: path.to_path_buf(), source },
    })
}

/// A copy of `bytes` as a map that belongs to no file.
///
/// # Errors
/// [`OnnxError::Memory`] where the machine has not enough memory.
pub(crate) fn map_bytes(bytes: &[u8]) -> Result<Arc<Map>, OnnxError> {
    Map::copy_of(bytes).map(Arc::new).map_err(OnnxError::Memory)
}
