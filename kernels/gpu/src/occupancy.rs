//! How many warps a multiprocessor holds at once, by its data sheet: what hides the time that memory takes.
//!
//! A block stays on a multiprocessor with all of its warps, registers and shared memory, so that the scarcest of these decides
//! how many blocks there are (*CUDA C++ Programming Guide*, "Hardware Multithreading" and the table of compute capabilities).
//! Nothing here was measured.

use crate::WARP;
use crate::target::Class;

/// What one multiprocessor of a class of devices has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Multiprocessor {
    /// The most warps.
    pub warps: usize,
    /// The most blocks.
    pub blocks: usize,
    /// Registers of 32 bits.
    pub registers: usize,
    /// Bytes of shared memory, what the system reserves included.
    pub shared_bytes: usize,
    /// Bytes of shared memory that the system reserves for each block.
    pub reserved_bytes: usize,
}

/// The most registers of a thread.
pub const MOST_REGISTERS: usize = 255;
/// Registers are given to warps in multiples of so many.
const REGISTER_UNIT: usize = 256;
/// Registers lie in so many parts, each with the same number of warps.
const PARTS: usize = 4;
/// Shared memory is given to blocks in multiples of so many bytes.
const SHARED_UNIT: usize = 128;

impl Class {
    /// What a multiprocessor has.
    pub const fn multiprocessor(self) -> Multiprocessor {
        let (warps, blocks, kib, reserved_bytes) = match self {
            Class::Sm75 => (32, 16, 64, 0),
            Class::Sm80 => (64, 32, 164, 1024),
            Class::Sm90 => (64, 32, 228, 1024),
        };
        Multiprocessor { warps, blocks, registers: 65536, shared_bytes: kib << 10, reserved_bytes }
    }
}

/// What a block of a kernel takes of a multiprocessor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockUse {
    /// Threads.
    pub threads: usize,
    /// Registers of a thread.
    pub registers: usize,
    /// Bytes of shared memory.
    pub shared_bytes: usize,
}

impl Multiprocessor {
    /// The most registers that a thread can have where one block of so many threads has to fit: what ptxas is bound to by
    /// `.maxntid` and `.minnctapersm 1`.
    pub fn most_registers(&self, threads: usize) -> usize {
        let of_part = threads.div_ceil(WARP).max(1).next_multiple_of(PARTS);
        let of_warp = self.registers / of_part / REGISTER_UNIT * REGISTER_UNIT;
        (of_warp / WARP).min(MOST_REGISTERS)
    }

    /// The warps that are there at once of a kernel whose launches have blocks enough.
    pub fn resident_warps(&self, block: BlockUse) -> usize {
        let warps = block.threads.div_ceil(WARP).max(1);
        let of_warp = (block.registers * WARP).next_multiple_of(REGISTER_UNIT).max(REGISTER_UNIT);
        let by_registers = self.registers / PARTS / of_warp * PARTS / warps;
        let shared = block.shared_bytes.checked_add(self.reserved_bytes);
        let by_shared = match shared.and_then(|bytes| bytes.checked_next_multiple_of(SHARED_UNIT)) {
            Some(0) => self.blocks,
            Some(bytes) => self.shared_bytes / bytes,
            None => 0,
        };
        let blocks = (self.warps / warps).min(self.blocks).min(by_registers).min(by_shared);
        blocks * warps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of NVIDIA's occupancy calculator.
    #[test]
    fn the_scarcest_resource_decides() {
        let warps = |class: Class, threads, registers, shared_bytes| {
            class.multiprocessor().resident_warps(BlockUse { threads, registers, shared_bytes })
        };
        // Nothing is scarce but warps; blocks; registers; shared memory.
        assert_eq!(warps(Class::Sm80, 256, 32, 0), 64);
        assert_eq!(warps(Class::Sm80, 32, 16, 0), 32);
        assert_eq!(warps(Class::Sm80, 256, 64, 0), 32);
        assert_eq!(warps(Class::Sm80, 256, 255, 0), 8);
        assert_eq!(warps(Class::Sm80, 256, 32, 48 << 10), 24);
        assert_eq!(warps(Class::Sm75, 256, 32, 0), 32);
        assert_eq!(warps(Class::Sm75, 128, 96, 0), 20);
        assert_eq!(warps(Class::Sm90, 256, 32, 48 << 10), 32);
        assert_eq!(warps(Class::Sm75, 1024, 65, 0), 0, "a block that does not fit");
        assert_eq!(warps(Class::Sm80, 256, 32, usize::MAX), 0, "nor this one");
    }

    #[test]
    fn a_block_with_the_most_registers_fits() {
        for class in Class::ALL {
            let multiprocessor = class.multiprocessor();
            for threads in [32, 64, 96, 128, 224, 256, 512, 768, 1024] {
                let registers = multiprocessor.most_registers(threads);
                let fits = |registers| {
                    multiprocessor.resident_warps(BlockUse { threads, registers, shared_bytes: 0 }) > 0
                };
                assert!(fits(registers), "{threads} threads of {registers}");
                assert!(
                    registers == MOST_REGISTERS || !fits(registers + 1),
                    "{threads} threads of {registers}"
                );
            }
        }
    }
}
