//! Mapping files into memory: the only `unsafe` of this crate.
//!
//! Deliberately absent: write access and reading from pipes or devices.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};

use crate::OnnxError;

/// Maps a regular file read-only.
///
/// # Errors
/// [`OnnxError::Read`] where the file cannot be opened or mapped, [`OnnxError::NotAFile`] for directories,
/// pipes and devices; these are refused before they are opened, because opening a pipe may wait for ever.
#[allow(unsafe_code, reason = "the one place of this crate that maps a file")]
pub(crate) fn map_file(path: &Path) -> Result<Arc<Mmap>, OnnxError> {
    let failed = |source| OnnxError::Read { path: path.to_path_buf(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(OnnxError::NotAFile { path: path.to_path_buf() });
    }
    let file = File::open(path).map_err(failed)?;
    // SAFETY: the map is shared and read-only, and nothing in this process writes to the file: `writer`
    // creates new files and renames them, which leaves the mapped one as it was. That no other process
    // changes or truncates the file while the model is in use is asked of the user (see `Model::open`).
    let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
    Ok(Arc::new(map))
}

/// A copy of `bytes` as a map that belongs to no file.
///
/// # Errors
/// [`OnnxError::Memory`] where the machine has not enough memory.
pub(crate) fn map_bytes(bytes: &[u8]) -> Result<Arc<Mmap>, OnnxError> {
    let mut map = MmapMut::map_anon(bytes.len()).map_err(OnnxError::Memory)?;
    map.copy_from_slice(bytes);
    Ok(Arc::new(map.make_read_only().map_err(OnnxError::Memory)?))
}
