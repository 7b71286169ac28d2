//! Memory of the emulated device: blocks of the host, and which of their bytes hold something.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::io;

use margay_kernels_gpu::BUFFER_ALIGN;

/// A block of memory.
#[derive(Debug)]
pub(crate) struct Block {
    begin: *mut u8,
    layout: Layout,
    /// For every byte, whether somebody has written it.
    pub(crate) written: Box<[bool]>,
}

// SAFETY: a block owns its memory, which only its methods and the one launch that borrows it reach.
unsafe impl Send for Block {}

impl Block {
    fn new(bytes: usize, zeroed: bool) -> io::Result<Block> {
        let none = || io::Error::from(io::ErrorKind::OutOfMemory);
        let layout = Layout::from_size_align(bytes.max(1), BUFFER_ALIGN).map_err(|_| none())?;
        // SAFETY: the layout has a size.
        let begin = unsafe { alloc_zeroed(layout) };
        if begin.is_null() {
            return Err(none());
        }
        Ok(Block { begin, layout, written: vec![zeroed; layout.size()].into_boxed_slice() })
    }

    /// Its bytes.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the block owns that many bytes, all of which have held something since it was made.
        unsafe { std::slice::from_raw_parts_mut(self.begin, self.layout.size()) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.begin, self.layout) };
    }
}

/// All blocks, by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Blocks(BTreeMap<u64, Block>);

impl Blocks {
    pub(crate) fn allocate(&mut self, bytes: usize, zeroed: bool) -> io::Result<u64> {
        let block = Block::new(bytes, zeroed)?;
        let address = block.begin as u64;
        self.0.insert(address, block);
        Ok(address)
    }

    pub(crate) fn free(&mut self, address: u64) {
        self.0.remove(&address);
    }

    /// The block that holds so many bytes from an address on, and where in it they begin.
    pub(crate) fn find(&mut self, address: u64, bytes: usize) -> Option<(&mut Block, usize)> {
        let (begin, block) = self.0.range_mut(..=address).next_back()?;
        let at = (address - begin) as usize;
        (at.checked_add(bytes)? <= block.layout.size()).then_some((block, at))
    }

    fn expect(&mut self, address: u64, bytes: usize) -> (&mut Block, usize) {
        self.find(address, bytes)
            .unwrap_or_else(|| panic!("{bytes} bytes at {address:#x} are no memory of the device"))
    }

    pub(crate) fn write(&mut self, to: u64, bytes: &[u8]) {
        let (block, at) = self.expect(to, bytes.len());
        block.bytes()[at..at + bytes.len()].copy_from_slice(bytes);
        block.written[at..at + bytes.len()].fill(true);
    }

    /// Copies bytes out, and says whether all of them were written.
    pub(crate) fn read(&mut self, from: u64, bytes: &mut [u8]) -> bool {
        let (block, at) = self.expect(from, bytes.len());
        bytes.copy_from_slice(&block.bytes()[at..at + bytes.len()]);
        block.written[at..at + bytes.len()].iter().all(|&written| written)
    }

    pub(crate) fn copy(&mut self, from: u64, to: u64, bytes: usize) {
        let mut held = vec![0; bytes];
        let (block, at) = self.expect(from, bytes);
        held.copy_from_slice(&block.bytes()[at..at + bytes]);
        let written = block.written[at..at + bytes].to_vec();
        let (block, at) = self.expect(to, bytes);
        block.bytes()[at..at + bytes].copy_from_slice(&held);
        block.written[at..at + bytes].copy_from_slice(&written);
    }
}
