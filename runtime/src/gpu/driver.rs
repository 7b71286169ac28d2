//! What the GPU device asks of a driver: memory, kernels and their launches, in order. One is that of a device; another is
//! the emulator, by which tests run the whole path.

use std::fmt;
use std::io;

use margay_kernels_gpu::GpuTarget;

use crate::RunError;
use crate::device::Fault;

/// A driver of one device. Everything happens in the order in which it is asked for; launches may still run when they
/// return, so that what went wrong in one may be the error of anything later.
///
/// Addresses are those that [`allocate`](Driver::allocate) gave, with offsets inside what it was asked for.
pub trait Driver: fmt::Debug + Send + Sync {
    /// Whether the device runs code for a target.
    ///
    /// # Errors
    /// What it lacks.
    fn accepts(&self, target: GpuTarget) -> Result<(), RunError>;

    /// Memory that begins at a multiple of [`BUFFER_ALIGN`](margay_kernels_gpu::BUFFER_ALIGN). It holds zeros if `zeroed`,
    /// and else nothing that may be read.
    ///
    /// # Errors
    /// That there is not enough.
    fn allocate(&self, bytes: usize, zeroed: bool) -> io::Result<u64>;

    /// Gives memory back that [`allocate`](Driver::allocate) gave and nobody uses any more.
    fn free(&self, address: u64);

    /// Copies bytes of the host to the device.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Fault>;

    /// Copies bytes of the device to the host, when everything before has ended.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Fault>;

    /// Copies bytes on the device; the two regions do not overlap.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Fault>;

    /// Loads a module.
    ///
    /// # Errors
    /// What the device says of it.
    fn load(&self, module: &str) -> Result<Box<dyn LoadedKernel>, String>;

    /// Waits until everything has ended.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn synchronise(&self) -> Result<(), Fault>;
}

/// The kernel of a module on a device.
pub trait LoadedKernel: fmt::Debug + Send + Sync {
    /// Launches it.
    ///
    /// # Safety
    /// The arguments are those that the kernel takes, and the regions are memory of the device that they lead to and
    /// that nobody else writes.
    ///
    /// # Errors
    /// What the driver says of the launch.
    unsafe fn launch(&self, launch: &LaunchForm<'_>) -> Result<(), Fault>;
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct LaunchForm<'a> {
    /// Blocks.
    pub blocks: usize,
    /// Threads of a block.
    pub threads: usize,
    /// The arguments.
    pub args: &'a [u64],
    /// All memory that the kernel may touch. Only a driver that checks accesses looks at it.
    pub regions: &'a [Region],
}

/// A region of memory that a kernel may touch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Where it begins.
    pub address: u64,
    /// Bytes.
    pub bytes: usize,
    /// Bytes of an element.
    pub element: usize,
    /// Whether the kernel may write it.
    pub written: bool,
}
