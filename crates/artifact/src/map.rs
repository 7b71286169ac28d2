//! Mapping files into memory: the only unsafe code of the crate.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a regular file, read-only.
///
/// A file that another program shortens while it is mapped ends this process with a bus error when the missing part
/// is read. margay itself only ever replaces a file by renaming another over it, which leaves maps as they are.
pub(crate) fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // SAFETY: the map is private to this process and only read. That nobody changes the file in place while it is
    // mapped is what the documentation above asks of the machine's users; no system can promise it.
    unsafe { Mmap::map(&file) }
}
