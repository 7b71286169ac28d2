//! What a driver gave and takes back: memory, streams, graphs, events.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use super::driver::{Driver, EventId, GraphId, StreamId};
use crate::RunError;
use crate::device::{Address, Fault, Memory};

/// An object of a driver that is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Owned<T: Copy> {
    driver: Arc<dyn Driver>,
    pub(super) id: T,
    free: fn(&dyn Driver, T),
}

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        (self.free)(&*self.driver, self.id);
    }
}

/// A stream.
pub(super) fn stream(driver: &Arc<dyn Driver>) -> Result<Owned<StreamId>, Fault> {
    Ok(Owned { driver: Arc::clone(driver), id: driver.stream()?, free: |driver, id| driver.free_stream(id) })
}

/// A graph, which is owned from here on.
pub(super) fn graph(driver: &Arc<dyn Driver>, id: GraphId) -> Owned<GraphId> {
    Owned { driver: Arc::clone(driver), id, free: |driver, id| driver.free_graph(id) }
}

/// An event.
pub(super) fn event(driver: &Arc<dyn Driver>) -> Result<Owned<EventId>, Fault> {
    Ok(Owned { driver: Arc::clone(driver), id: driver.event()?, free: |driver, id| driver.free_event(id) })
}

/// Memory of the device.
#[derive(Debug)]
pub(super) struct Block {
    driver: Arc<dyn Driver>,
    pub(super) address: u64,
    pub(super) bytes: usize,
}

impl Block {
    pub(super) fn new(
        driver: &Arc<dyn Driver>,
        what: &'static str,
        bytes: usize,
        zeroed: bool,
    ) -> Result<Block, RunError> {
        // A block of 0 bytes has an address of its own, too.
        let address = driver
            .allocate(bytes.max(1), zeroed)
            .map_err(|source: io::Error| RunError::Memory { what, bytes, all: None, source })?;
        Ok(Block { driver: Arc::clone(driver), address, bytes })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.driver.free(self.address);
    }
}

impl Memory for Block {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn address(&self) -> Address {
        Address(self.address)
    }

    fn host(&self) -> Option<&[u8]> {
        None
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), RunError> {
        assert!(at + bytes.len() <= self.bytes, "what is written lies inside");
        Ok(self.driver.write(self.address + at as u64, bytes)?)
    }

    fn read(&self, at: usize, to: &mut [u8]) -> Result<(), RunError> {
        assert!(at + to.len() <= self.bytes, "what is read lies inside");
        Ok(self.driver.read(self.address + at as u64, to)?)
    }
}

/// Page-locked memory of the host.
#[derive(Debug)]
pub(super) struct Pinned {
    driver: Arc<dyn Driver>,
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to it alone; who reads and writes when is said at each use.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(super) fn new(
        driver: &Arc<dyn Driver>,
        what: &'static str,
        bytes: usize,
    ) -> Result<Pinned, RunError> {
        let at = driver.allocate_host(bytes.max(1)).map_err(|source: io::Error| RunError::Memory {
            what,
            bytes,
            all: None,
            source,
        })?;
        Ok(Pinned { driver: Arc::clone(driver), at, bytes })
    }

    /// Where byte `at` lies, before which at least `bytes` follow.
    pub(super) fn pointer(&self, at: usize, bytes: usize) -> *mut u8 {
        assert!(at.saturating_add(bytes) <= self.bytes, "{bytes} bytes at {at} of {}", self.bytes);
        // SAFETY: it lies inside.
        unsafe { self.at.as_ptr().add(at) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated with these bytes. Whoever submits operations on it drops it after it has waited for them.
        unsafe { self.driver.free_host(self.at, self.bytes.max(1)) };
    }
}

/// Memory of the device with a copy in page-locked memory of the host. The host writes and reads the copy; operations of
/// a run bring inputs to the device and outputs back.
#[derive(Debug)]
pub(super) struct Mirrored {
    block: Block,
    pinned: Pinned,
}

impl Mirrored {
    pub(super) fn new(
        driver: &Arc<dyn Driver>,
        what: &'static str,
        bytes: usize,
    ) -> Result<Mirrored, RunError> {
        let block = Block::new(driver, what, bytes, false)?;
        Ok(Mirrored { block, pinned: Pinned::new(driver, what, bytes)? })
    }

    /// The copy of so many bytes of the device, if they lie in the block.
    pub(super) fn copy_of(&self, address: u64, bytes: usize) -> Option<*mut u8> {
        let at = usize::try_from(address.checked_sub(self.block.address)?).ok()?;
        (at.checked_add(bytes)? <= self.block.bytes).then(|| self.pinned.pointer(at, bytes))
    }
}

/// The part of a [`Mirrored`] block that a session holds.
pub(super) struct MirroredMemory(pub(super) Arc<Mirrored>);

impl Memory for MirroredMemory {
    fn bytes(&self) -> usize {
        self.0.block.bytes
    }

    fn address(&self) -> Address {
        self.0.block.address()
    }

    fn host(&self) -> Option<&[u8]> {
        let pinned = &self.0.pinned;
        // SAFETY: so many bytes, which held zeros at first. Only operations of a run write them, and a session waits for
        // the end of a run before it looks here.
        Some(unsafe { std::slice::from_raw_parts(pinned.at.as_ptr(), pinned.bytes) })
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), RunError> {
        let to = self.0.pinned.pointer(at, bytes.len());
        // SAFETY: it lies inside, and no run is under way, whose operations would read it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn read(&self, at: usize, to: &mut [u8]) -> Result<(), RunError> {
        let from = self.0.pinned.pointer(at, to.len());
        // SAFETY: as for `host`.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }
}
