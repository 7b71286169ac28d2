//! Files mapped into memory, and bytes that stand in for one: the only `unsafe` of this crate.
//!
//! Deliberately absent: write access, and reading from pipes or devices.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::{Mmap, MmapMut};

/// Read-only bytes that begin on a page boundary.
#[derive(Debug)]
pub struct Map {
    map: Mmap,
    of_file: bool,
}

impl Map {
    /// Maps a regular file. Nobody may change or truncate it while it is in use.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for folders, pipes and devices, which are refused before they are opened,
    /// because opening a pipe may wait for ever.
    #[allow(unsafe_code, reason = "the one place that maps a file")]
    pub fn open(path: &Path) -> io::Result<Map> {
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(path)?;
        // SAFETY: the map is shared and read-only, and nothing in this process writes to the file: files are written
        // beside their place and renamed, which leaves a mapped one as it was. That no other process changes or
        // truncates the file is asked of the user.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Map { map, of_file: true })
    }

    /// A copy of bytes.
    ///
    /// # Errors
    /// The machine has not enough memory.
    pub fn copy_of(bytes: &[u8]) -> io::Result<Map> {
        let mut map = MmapMut::map_anon(bytes.len())?;
        map.copy_from_slice(bytes);
        Map::sealed(map)
    }

    /// Zeros but for the first byte, which take no memory until they are read.
    ///
    /// # Errors
    /// The machine has not enough memory.
    pub fn zeros(bytes: usize, first: u8) -> io::Result<Map> {
        let mut map = MmapMut::map_anon(bytes)?;
        map[..1].fill(first);
        Map::sealed(map)
    }

    /// Memory that nobody writes any more.
    ///
    /// # Errors
    /// What the system says.
    pub fn sealed(memory: MmapMut) -> io::Result<Map> {
        Ok(Map { map: memory.make_read_only()?, of_file: false })
    }

    /// Says that a range is not read for a while: the pages of a file then need no memory until they are read again.
    /// Where there is no file, nothing happens.
    #[allow(unsafe_code, reason = "advice on a map of a file")]
    pub fn rest(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        {
            // Pages at the ends may be shared with other ranges.
            const PAGE: usize = 4096;
            let (begin, end) =
                (range.start.next_multiple_of(PAGE), range.end.min(self.map.len()) / PAGE * PAGE);
            if self.of_file && begin < end {
                // SAFETY: the pages are those of a file that nobody writes, so that reading them again gives the same
                // bytes. Advice that the system does not take changes nothing.
                let _ = unsafe {
                    self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, begin, end - begin)
                };
            }
        }
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rests_is_read_again() {
        let bytes: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes");
        std::fs::write(&path, &bytes).unwrap();
        for map in [Map::open(&path).unwrap(), Map::copy_of(&bytes).unwrap()] {
            for range in [0..40_000, 5..39_999, 100..200, 0..usize::MAX - 4096, 0..0] {
                map.rest(range);
                assert!(*map == *bytes);
            }
        }
        assert_eq!(Map::open(folder.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
