//! The emulator as a driver: memory, kernels, launches, streams.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use margay_kernels_gpu::{BUFFER_ALIGN, Class, GpuTarget};
use margay_runtime::RunError;
use margay_runtime::device::Fault;
use margay_runtime::gpu::{Driver, EventId, GraphId, LaunchForm, LoadedKernel, StreamId};

use crate::launch::{Code, Kernel, Order, Shape, launch};
use crate::memory::Blocks;
use crate::ptx;
use crate::shadow::Shadow;
use crate::stream::{HostPointer, Launch, Operation, Streams};
#[cfg(feature = "gpu")]
use crate::thread::symbols;
use crate::thread::{Array, BlockState, Region};

/// An emulated device.
///
/// Code for it is MLIR, or PTX of any class of devices. Operations of streams run when they are submitted, those of a graph
/// when it is launched; what is found in one is the error of that call. Events hold the clock of the host.
#[derive(Clone)]
pub struct Emulator {
    blocks: Arc<Mutex<Blocks>>,
    streams: Arc<Mutex<Streams>>,
    compiler: Arc<Compiler>,
    seed: u64,
    /// Launches so far: each has an order of its own.
    launches: Arc<AtomicU64>,
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Emulator(seed {})", self.seed)
    }
}

impl Emulator {
    /// A device on which threads take turns in an order that a seed decides, another one in each launch.
    pub fn new(seed: u64) -> Emulator {
        Emulator {
            blocks: Arc::default(),
            streams: Arc::default(),
            compiler: Arc::default(),
            seed,
            launches: Arc::default(),
        }
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an operation, or records it where a capture is under way.
    ///
    /// # Safety
    /// As for the method of [`Driver`] that submits it.
    unsafe fn submit(&self, stream: StreamId, operation: Operation) -> Result<(), Fault> {
        let Some(operation) = self.streams().record(stream, operation) else { return Ok(()) };
        // SAFETY: as the caller promises.
        unsafe { self.run(&operation) }
    }

    /// # Safety
    /// As for [`submit`](Emulator::submit).
    unsafe fn run(&self, operation: &Operation) -> Result<(), Fault> {
        match operation {
            Operation::Upload { to, from, bytes } => {
                // SAFETY: as the caller promises.
                let bytes = unsafe { std::slice::from_raw_parts(from.0.cast_const(), *bytes) };
                self.blocks().write(*to, bytes);
            }
            Operation::Download { from, to, bytes } => {
                // SAFETY: as the caller promises.
                let bytes = unsafe { std::slice::from_raw_parts_mut(to.0, *bytes) };
                self.blocks().read(*from, bytes);
            }
            Operation::Copy { from, to, bytes } => self.blocks().copy(*from, *to, *bytes),
            Operation::Fill { to, word, count } => {
                self.blocks().write(*to, &word.to_le_bytes().repeat(*count))
            }
            Operation::Launch(launch) => {
                let form = LaunchForm {
                    stream: StreamId(0),
                    step: launch.step,
                    blocks: launch.blocks,
                    threads: launch.threads,
                    args: &launch.args,
                    regions: &launch.regions,
                };
                // SAFETY: as the caller promises.
                unsafe { launch.kernel.run(&form) }
                    .map_err(|fault| fault.at(format_args!("step {}", launch.step)))?;
            }
        }
        Ok(())
    }
}

impl Driver for Emulator {
    fn name(&self) -> String {
        "an emulated device".to_owned()
    }

    fn target(&self) -> Option<GpuTarget> {
        Some(GpuTarget::emulated(Class::Sm80))
    }

    fn accepts(&self, _: GpuTarget) -> Result<(), RunError> {
        Ok(())
    }

    fn allocate(&self, bytes: usize, zeroed: bool) -> io::Result<u64> {
        self.blocks().allocate(bytes, zeroed)
    }

    fn free(&self, address: u64) {
        self.blocks().free(address);
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.blocks().write(to, bytes);
        Ok(())
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        self.blocks().read(from, bytes);
        Ok(())
    }

    fn load(&self, module: &str) -> Result<Box<dyn LoadedKernel>, String> {
        let compiled = match module.contains(".visible .entry") {
            true => interpreted(module)?,
            false => self.compiler.compile(module)?,
        };
        Ok(Box::new(EmulatedKernel { emulator: self.clone(), compiled: Arc::new(compiled) }))
    }

    fn allocate_host(&self, bytes: usize) -> io::Result<NonNull<u8>> {
        let none = || io::Error::from(io::ErrorKind::OutOfMemory);
        let layout = Layout::from_size_align(bytes, BUFFER_ALIGN).map_err(|_| none())?;
        assert!(bytes > 0, "there are bytes");
        // SAFETY: the layout has a size.
        NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(none)
    }

    unsafe fn free_host(&self, at: NonNull<u8>, bytes: usize) {
        let layout = Layout::from_size_align(bytes, BUFFER_ALIGN).expect("it was allocated so");
        // SAFETY: allocated with this layout; otherwise as the caller promises.
        unsafe { dealloc(at.as_ptr(), layout) };
    }

    fn stream(&self) -> Result<StreamId, Fault> {
        Ok(self.streams().stream())
    }

    fn free_stream(&self, stream: StreamId) {
        self.streams().free_stream(stream);
    }

    fn synchronise(&self, stream: StreamId) -> Result<(), Fault> {
        self.streams().wait(stream)
    }

    unsafe fn upload(&self, stream: StreamId, to: u64, from: *const u8, bytes: usize) -> Result<(), Fault> {
        let from = HostPointer(from.cast_mut());
        // SAFETY: as the caller promises.
        unsafe { self.submit(stream, Operation::Upload { to, from, bytes }) }
    }

    unsafe fn download(&self, stream: StreamId, from: u64, to: *mut u8, bytes: usize) -> Result<(), Fault> {
        let to = HostPointer(to);
        // SAFETY: as the caller promises.
        unsafe { self.submit(stream, Operation::Download { from, to, bytes }) }
    }

    fn copy(&self, stream: StreamId, from: u64, to: u64, bytes: usize) -> Result<(), Fault> {
        // SAFETY: memory of the device is looked up.
        unsafe { self.submit(stream, Operation::Copy { from, to, bytes }) }
    }

    fn fill(&self, stream: StreamId, to: u64, word: u32, count: usize) -> Result<(), Fault> {
        // SAFETY: memory of the device is looked up.
        unsafe { self.submit(stream, Operation::Fill { to, word, count }) }
    }

    fn begin_capture(&self, stream: StreamId) -> Result<(), Fault> {
        self.streams().begin_capture(stream)
    }

    fn end_capture(&self, stream: StreamId) -> Result<GraphId, Fault> {
        self.streams().end_capture(stream)
    }

    unsafe fn launch_graph(&self, graph: GraphId, stream: StreamId) -> Result<(), Fault> {
        let operations = self.streams().graph(graph, stream)?;
        // SAFETY: as the caller promises.
        operations.iter().try_for_each(|operation| unsafe { self.run(operation) })
    }

    fn free_graph(&self, graph: GraphId) {
        self.streams().free_graph(graph);
    }

    fn event(&self) -> Result<EventId, Fault> {
        Ok(self.streams().event())
    }

    fn record(&self, event: EventId, _stream: StreamId) -> Result<(), Fault> {
        self.streams().reach(event);
        Ok(())
    }

    fn elapsed(&self, begin: EventId, end: EventId) -> Result<Duration, Fault> {
        self.streams().elapsed(begin, end)
    }

    fn free_event(&self, event: EventId) {
        self.streams().free_event(event);
    }
}

/// A kernel of the emulated device.
#[derive(Clone, Debug)]
pub(crate) struct EmulatedKernel {
    emulator: Emulator,
    compiled: Arc<Compiled>,
}

impl LoadedKernel for EmulatedKernel {
    unsafe fn launch(&self, form: &LaunchForm<'_>) -> Result<(), Fault> {
        if !self.emulator.streams().is_capturing(form.stream) {
            // SAFETY: as the caller promises.
            return unsafe { self.run(form) };
        }
        let launch = Operation::Launch(Launch {
            kernel: self.clone(),
            step: form.step,
            blocks: form.blocks,
            threads: form.threads,
            args: form.args.to_vec(),
            regions: form.regions.to_vec(),
        });
        // SAFETY: as the caller promises.
        unsafe { self.emulator.submit(form.stream, launch) }
    }
}

impl EmulatedKernel {
    /// Runs it for all threads of a launch.
    ///
    /// # Safety
    /// As for [`launch`](LoadedKernel::launch).
    unsafe fn run(&self, form: &LaunchForm<'_>) -> Result<(), Fault> {
        let Compiled { kernel, params, shared, .. } = &*self.compiled;
        if form.args.len() != *params {
            return Err(Fault::Code(format!("{} arguments for {params} parameters", form.args.len())));
        }
        let mut blocks = self.emulator.blocks();
        let mut regions = Vec::new();
        for region in form.regions {
            let found = blocks.find(region.address, region.bytes);
            let none = || Fault::Code("an argument that is no memory of the device".to_owned());
            let (block, at) = found.ok_or_else(none)?;
            regions.push(Region {
                begin: region.address as usize,
                bytes: region.bytes,
                held: block.written[at..].as_mut_ptr(),
                shadow: region.written.then(|| Shadow::new(region.bytes, region.element)),
            });
        }
        let state = BlockState {
            number: 0,
            regions,
            arrays: shared.iter().map(|&bytes| Array::new(bytes)).collect(),
            found: Default::default(),
            aside: Box::new([0; 2]),
        };
        let shape = Shape { blocks: form.blocks, threads: form.threads };
        let number = self.emulator.launches.fetch_add(1, Ordering::Relaxed);
        let mut order = Order::new(self.emulator.seed.wrapping_add(number));
        // SAFETY: the kernel takes so many parameters, all of 64 bits; every access goes through the calls, which let
        // through what lies in a region, and no block of memory is freed as long as they are locked.
        let found = unsafe { launch(kernel, shape, form.args, state, &mut order) };
        let found = found.map_err(Fault::Code)?;
        if found.is_empty() {
            return Ok(());
        }
        let line = |((problem, place), times): (&(_, u32), &usize)| {
            format!("{problem} (access {place}, {times} times)")
        };
        let lines: Vec<String> = found.iter().map(line).collect();
        Err(Fault::Code(lines.join("; ")))
    }
}

/// A kernel that can be launched.
#[derive(Debug)]
struct Compiled {
    kernel: Kernel,
    shared: Vec<usize>,
    params: usize,
    #[cfg(feature = "gpu")]
    _code: Option<margay_codegen_gpu::HostCode>,
}

/// A kernel of PTX.
fn interpreted(module: &str) -> Result<Compiled, String> {
    let code = ptx::parse(module)?;
    let (params, shared) = (code.params, code.shared.clone());
    Ok(Compiled {
        kernel: Kernel { waits: code.waits, code: Code::Ptx(Arc::new(code)) },
        shared,
        params,
        #[cfg(feature = "gpu")]
        _code: None,
    })
}

/// What makes machine code of the processor.
#[derive(Default)]
struct Compiler {
    #[cfg(feature = "gpu")]
    mlir: Mutex<Option<margay_codegen_gpu::Mlir>>,
}

impl Compiler {
    #[cfg(feature = "gpu")]
    fn compile(&self, module: &str) -> Result<Compiled, String> {
        let mut mlir = self.mlir.lock().unwrap_or_else(PoisonError::into_inner);
        let mlir = mlir.get_or_insert_with(margay_codegen_gpu::Mlir::new);
        // SAFETY: the functions are those that `for_host` states.
        let code = unsafe { mlir.host(module, &symbols()) }.map_err(|e| e.to_string())?;
        Ok(Compiled {
            kernel: Kernel { code: Code::Host(code.function), waits: code.kernel.waits },
            shared: code.kernel.shared.clone(),
            params: code.kernel.params,
            _code: Some(code),
        })
    }

    #[cfg(not(feature = "gpu"))]
    fn compile(&self, _module: &str) -> Result<Compiled, String> {
        Err("this build compiles no kernels: it is without the feature `gpu`".to_owned())
    }
}
