//! The interface between the GPU device and a driver: memory, kernels, streams and graphs. One driver is that of a device;
//! another is the emulator, by which tests run the whole path.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::time::Duration;

use margay_kernels_gpu::GpuTarget;

use crate::RunError;
use crate::device::Fault;

/// A stream: its operations run in the order in which they were submitted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StreamId(pub u64);

/// Captured operations of a stream, which one call submits again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GraphId(pub u64);

/// A point in a stream at which the device reads its clock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EventId(pub u64);

/// A driver of one device.
///
/// Methods that take a stream submit an operation to it and may return before it ends; an error of an operation may be
/// returned by any later call. Addresses are those that [`allocate`](Driver::allocate) gave, with offsets inside the bytes
/// that were asked for; streams, graphs and events are those of this driver that were not given back.
pub trait Driver: fmt::Debug + Send + Sync {
    /// The device in words, such as `NVIDIA H100 of sm_90`.
    fn name(&self) -> String;

    /// The newest class of devices whose code it runs; `None` where it is older than all of them.
    fn target(&self) -> Option<GpuTarget>;

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

    /// Page-locked memory of the host that holds zeros and begins at a multiple of
    /// [`BUFFER_ALIGN`](margay_kernels_gpu::BUFFER_ALIGN). `bytes` is not 0.
    ///
    /// # Errors
    /// That there is not enough.
    fn allocate_host(&self, bytes: usize) -> io::Result<NonNull<u8>>;

    /// Gives memory back that [`allocate_host`](Driver::allocate_host) gave.
    ///
    /// # Safety
    /// It was asked for with these bytes, and nobody uses it any more, operations of streams included.
    unsafe fn free_host(&self, at: NonNull<u8>, bytes: usize);

    /// Copies bytes of the host to the device, and waits for the end.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Fault>;

    /// Copies bytes of the device to the host, and waits for the end. The caller has waited for the streams that write
    /// them.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Fault>;

    /// Loads a module.
    ///
    /// # Errors
    /// What the device says of it.
    fn load(&self, module: &str) -> Result<Box<dyn LoadedKernel>, String>;

    /// A stream.
    ///
    /// # Errors
    /// What the driver says.
    fn stream(&self) -> Result<StreamId, Fault>;

    /// Gives a stream back.
    fn free_stream(&self, stream: StreamId);

    /// Waits for everything that was submitted to a stream.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn synchronise(&self, stream: StreamId) -> Result<(), Fault>;

    /// Copies page-locked memory of the host to the device.
    ///
    /// # Safety
    /// So many bytes from `from` on lie in memory of [`allocate_host`](Driver::allocate_host). They stay as they are until the
    /// operation has ended, and are given back only after the last graph in which it was captured.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn upload(&self, stream: StreamId, to: u64, from: *const u8, bytes: usize) -> Result<(), Fault>;

    /// Copies memory of the device to page-locked memory of the host.
    ///
    /// # Safety
    /// As for [`upload`](Driver::upload); nobody reads or writes the bytes before the operation has ended.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn download(&self, stream: StreamId, from: u64, to: *mut u8, bytes: usize) -> Result<(), Fault>;

    /// Copies bytes on the device; the two regions do not overlap.
    ///
    /// # Errors
    /// What the driver says.
    fn copy(&self, stream: StreamId, from: u64, to: u64, bytes: usize) -> Result<(), Fault>;

    /// Writes a word of 32 bits so many times, one behind the other.
    ///
    /// # Errors
    /// What the driver says.
    fn fill(&self, stream: StreamId, to: u64, word: u32, count: usize) -> Result<(), Fault>;

    /// Begins a capture: until it ends, operations that are submitted to the stream are recorded and do not run.
    ///
    /// # Errors
    /// What the driver says.
    fn begin_capture(&self, stream: StreamId) -> Result<(), Fault>;

    /// Ends a capture.
    ///
    /// # Errors
    /// What the driver says, such as that an operation could not be captured.
    fn end_capture(&self, stream: StreamId) -> Result<GraphId, Fault>;

    /// Submits everything that was captured.
    ///
    /// # Safety
    /// As for each operation and each launch in it.
    ///
    /// # Errors
    /// What the driver says.
    unsafe fn launch_graph(&self, graph: GraphId, stream: StreamId) -> Result<(), Fault>;

    /// Gives a graph back.
    fn free_graph(&self, graph: GraphId);

    /// An event.
    ///
    /// # Errors
    /// What the driver says.
    fn event(&self) -> Result<EventId, Fault>;

    /// Reads the clock of the device when everything before has ended.
    ///
    /// # Errors
    /// What the driver says.
    fn record(&self, event: EventId, stream: StreamId) -> Result<(), Fault>;

    /// The time between two events that were recorded and have ended.
    ///
    /// # Errors
    /// What the driver says.
    fn elapsed(&self, begin: EventId, end: EventId) -> Result<Duration, Fault>;

    /// Gives an event back.
    fn free_event(&self, event: EventId);
}

/// The kernel of a module on a device.
pub trait LoadedKernel: fmt::Debug + Send + Sync {
    /// Submits a launch to a stream.
    ///
    /// # Safety
    /// The arguments are those that the kernel takes, and the regions are memory of the device that they lead to and
    /// that nobody else writes. If it is captured, the kernel is dropped after the graph.
    ///
    /// # Errors
    /// What the driver says of the launch.
    unsafe fn launch(&self, launch: &LaunchForm<'_>) -> Result<(), Fault>;
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct LaunchForm<'a> {
    /// Where it is submitted.
    pub stream: StreamId,
    /// The number of the step that it belongs to, for messages.
    pub step: usize,
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
