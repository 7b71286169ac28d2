//! Memory of the host.

use memmap2::MmapMut;

use crate::RunError;
use crate::device::{Address, Memory};

/// Zeroed memory on a page boundary, in huge pages if asked for and possible.
pub(crate) fn pages(what: &'static str, bytes: usize, huge_pages: bool) -> Result<MmapMut, RunError> {
    let map =
        MmapMut::map_anon(bytes).map_err(|source| RunError::Memory { what, bytes, all: None, source })?;
    #[cfg(target_os = "linux")]
    if huge_pages {
        // Advice: a system without huge pages goes on without them.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = huge_pages;
    Ok(map)
}

/// Pages that a session owns.
pub(super) struct HostMemory(pub(super) MmapMut);

impl Memory for HostMemory {
    fn bytes(&self) -> usize {
        self.0.len()
    }

    fn address(&self) -> Address {
        Address(self.0.as_ptr().expose_provenance() as u64)
    }

    fn host(&self) -> Option<&[u8]> {
        Some(&self.0)
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), RunError> {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, at: usize, to: &mut [u8]) -> Result<(), RunError> {
        to.copy_from_slice(&self.0[at..at + to.len()]);
        Ok(())
    }
}
