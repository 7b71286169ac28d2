//! The driver of NVIDIA devices. The library `libcuda` is looked for when a device is opened: neither building nor starting
//! margay needs it.
//!
//! Sessions have streams of their own in the primary context of the device; constants and states go through another one.
//! None of them waits for the default stream, which is not used. A fault of a kernel ends the context: every later call
//! fails with the same error.
//!
//! A handle of the driver is a pointer, and an id of [`Driver`] is its address.

use std::ffi::{CString, c_void};
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cudarc::driver::result::stream::StreamKind;
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{DriverError, result, sys};
use margay_kernels_gpu::{ENTRY, GpuTarget};

use super::driver::{Driver, EventId, GraphId, LaunchForm, LoadedKernel, StreamId};
use crate::RunError;
use crate::device::Fault;

/// A device of this machine, opened.
pub struct CudaDriver {
    context: Arc<Context>,
    name: String,
    /// Ten times the major compute capability and the minor one.
    capability: u32,
    /// The stream of constants and states, made when it is first needed.
    transfers: Mutex<Option<StreamId>>,
}

impl fmt::Debug for CudaDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaDriver({}, compute capability {})", self.name, self.capability)
    }
}

/// The primary context of a device, held as long as anything of it is in use.
struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

// SAFETY: a context may be used from any thread that makes it its current one, as every method does.
unsafe impl Send for Context {}
// SAFETY: as above; the driver library locks its own state.
unsafe impl Sync for Context {}

impl Context {
    /// Makes it the current context of this thread.
    fn bind(&self) -> Result<(), DriverError> {
        // SAFETY: the context is held.
        unsafe { result::ctx::set_current(self.raw) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, when it was made.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// What the driver says: its sentence and the name of the error.
fn text(error: DriverError) -> String {
    let said = error.error_string().ok().map(|s| s.to_string_lossy().into_owned());
    let name = error.0;
    said.map_or_else(|| format!("{name:?}"), |said| format!("{said} ({name:?})"))
}

/// Whether the call is at fault, a kernel that ran before it, or the machine.
fn fault(error: DriverError) -> Fault {
    match error.0 {
        CUresult::CUDA_ERROR_INVALID_VALUE
        | CUresult::CUDA_ERROR_INVALID_PTX
        | CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
        | CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        | CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED => Fault::Code(text(error)),
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_INVALID_PC => Fault::Kernel(text(error)),
        _ => Fault::Device(text(error)),
    }
}

impl CudaDriver {
    /// Opens device number `ordinal`.
    ///
    /// # Errors
    /// [`RunError::NoDevice`], with what is missing: the driver, or the device.
    pub fn open(ordinal: usize) -> Result<CudaDriver, RunError> {
        let missing = |problem: String| RunError::NoDevice { problem };
        // SAFETY: the library is loaded as the system finds it, which is what is asked for.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing("no CUDA driver is installed (the library `libcuda.so.1`)".to_owned()));
        }
        let failed = |error| missing(format!("the CUDA driver says: {}", text(error)));
        result::init().map_err(failed)?;
        let count = result::device::get_count().map_err(failed)?;
        let number = i32::try_from(ordinal).ok().filter(|n| *n < count);
        let number = number
            .ok_or_else(|| missing(format!("the CUDA driver has {count}, asked for number {ordinal}")))?;
        let device = result::device::get(number).map_err(failed)?;
        let name = result::device::get_name(device).map_err(failed)?;
        let attribute = |which| {
            // SAFETY: the device was just found.
            unsafe { result::device::get_attribute(device, which) }.map_err(failed)
        };
        let major = attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        // SAFETY: the device was just found.
        let raw = unsafe { result::primary_ctx::retain(device) }.map_err(failed)?;
        let capability = u32::try_from(10 * major + minor).unwrap_or(0);
        let context = Arc::new(Context { device, raw });
        Ok(CudaDriver { context, name, capability, transfers: Mutex::new(None) })
    }

    /// Memory of the device: free and total bytes.
    fn memory(&self) -> Option<(usize, usize)> {
        self.context.bind().and_then(|()| result::mem_get_info()).ok()
    }

    /// The stream of constants and states. The context is the current one.
    fn transfers(&self) -> Result<sys::CUstream, DriverError> {
        let mut made = self.transfers.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = match *made {
            Some(stream) => stream,
            None => StreamId(result::stream::create(StreamKind::NonBlocking)? as u64),
        };
        *made = Some(stream);
        Ok(handle(stream.0))
    }

    /// Calls the driver with the context of the device.
    fn call<T>(&self, call: impl FnOnce() -> Result<T, DriverError>) -> Result<T, Fault> {
        self.context.bind().and_then(|()| call()).map_err(fault)
    }
}

impl Driver for CudaDriver {
    fn name(&self) -> String {
        format!("{} of sm_{}", self.name, self.capability)
    }

    fn target(&self) -> Option<GpuTarget> {
        let exact = GpuTarget::all().filter(|t| t.runs_on(self.capability) && !t.allows_tf32());
        exact.max_by_key(|t| t.class())
    }

    fn accepts(&self, target: GpuTarget) -> Result<(), RunError> {
        if target.runs_on(self.capability) {
            return Ok(());
        }
        Err(RunError::Class {
            target: target.name().to_owned(),
            device: self.name(),
            runs: self.target().map_or("nothing", GpuTarget::name).to_owned(),
        })
    }

    fn allocate(&self, bytes: usize, zeroed: bool) -> io::Result<u64> {
        let failed = |error: DriverError| {
            let memory = self.memory();
            let free =
                memory.map_or(String::new(), |(free, total)| format!(", {free} of {total} bytes are free"));
            io::Error::new(io::ErrorKind::OutOfMemory, format!("{}{free}", text(error)))
        };
        self.context.bind().map_err(failed)?;
        // SAFETY: what is not zeroed is written before it is read, as the trait says.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(failed)?;
        if zeroed {
            // SAFETY: so many bytes were allocated there; the stream is that of the driver.
            let zeros = self.transfers().and_then(|stream| unsafe {
                result::memset_d8_async(address, 0, bytes, stream)?;
                result::stream::synchronize(stream)
            });
            if let Err(error) = zeros {
                self.free(address);
                return Err(failed(error));
            }
        }
        Ok(address)
    }

    fn free(&self, address: u64) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated above, and nobody uses it any more. After a fault of the device there is nothing to free.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn allocate_host(&self, bytes: usize) -> io::Result<NonNull<u8>> {
        let failed = |error: DriverError| io::Error::new(io::ErrorKind::OutOfMemory, text(error));
        self.context.bind().map_err(failed)?;
        // Neither mapped nor write-combined: the host reads outputs from it.
        // SAFETY: what is returned is filled before anybody reads it.
        let at = unsafe { result::malloc_host(bytes, 0) }.map_err(failed)?.cast::<u8>();
        let at = NonNull::new(at).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: so many bytes were allocated there.
        unsafe { at.as_ptr().write_bytes(0, bytes) };
        Ok(at)
    }

    unsafe fn free_host(&self, at: NonNull<u8>, _bytes: usize) {
        if self.context.bind().is_ok() {
            // SAFETY: as the caller promises.
            let _ = unsafe { result::free_host(at.as_ptr().cast()) };
        }
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Fault> {
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the address and so many bytes lie in what was allocated; the bytes are there until the copy has ended.
        self.call(|| unsafe {
            let stream = self.transfers()?;
            result::memcpy_htod_async(to, bytes, stream)?;
            result::stream::synchronize(stream)
        })
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the address and so many bytes lie in what was allocated; the bytes are there until the copy has ended.
        self.call(|| unsafe {
            let stream = self.transfers()?;
            result::memcpy_dtoh_async(bytes, from, stream)?;
            result::stream::synchronize(stream)
        })
    }

    fn load(&self, module: &str) -> Result<Box<dyn LoadedKernel>, String> {
        self.context.bind().map_err(text)?;
        let image = CString::new(module).map_err(|e| e.to_string())?;
        // SAFETY: the text ends with a zero.
        let raw = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(text)?;
        let name = CString::new(ENTRY).map_err(|e| e.to_string())?;
        let context = Arc::clone(&self.context);
        let mut kernel = CudaKernel { context, module: raw, function: std::ptr::null_mut() };
        // SAFETY: the module is loaded.
        kernel.function = unsafe { result::module::get_function(raw, name) }.map_err(text)?;
        Ok(Box::new(kernel))
    }

    fn stream(&self) -> Result<StreamId, Fault> {
        let stream = self.call(|| result::stream::create(StreamKind::NonBlocking))?;
        Ok(StreamId(stream as u64))
    }

    fn free_stream(&self, stream: StreamId) {
        if self.context.bind().is_ok() {
            // SAFETY: a stream of this driver, which nobody uses any more.
            let _ = unsafe { result::stream::destroy(handle(stream.0)) };
        }
    }

    fn synchronise(&self, stream: StreamId) -> Result<(), Fault> {
        // SAFETY: a stream of this driver.
        self.call(|| unsafe { result::stream::synchronize(handle(stream.0)) })
    }

    unsafe fn upload(&self, stream: StreamId, to: u64, from: *const u8, bytes: usize) -> Result<(), Fault> {
        // SAFETY: as the caller promises.
        self.call(|| unsafe {
            let from = std::slice::from_raw_parts(from, bytes);
            result::memcpy_htod_async(to, from, handle(stream.0))
        })
    }

    unsafe fn download(&self, stream: StreamId, from: u64, to: *mut u8, bytes: usize) -> Result<(), Fault> {
        // SAFETY: as the caller promises.
        self.call(|| unsafe {
            let to = std::slice::from_raw_parts_mut(to, bytes);
            result::memcpy_dtoh_async(to, from, handle(stream.0))
        })
    }

    fn copy(&self, stream: StreamId, from: u64, to: u64, bytes: usize) -> Result<(), Fault> {
        // SAFETY: both regions lie in what was allocated.
        self.call(|| unsafe { result::memcpy_dtod_async(to, from, bytes, handle(stream.0)) })
    }

    fn fill(&self, stream: StreamId, to: u64, word: u32, count: usize) -> Result<(), Fault> {
        // SAFETY: so many words lie in what was allocated.
        self.call(|| unsafe { sys::cuMemsetD32Async(to, word, count, handle(stream.0)) }.result())
    }

    fn begin_capture(&self, stream: StreamId) -> Result<(), Fault> {
        // Other threads may allocate and wait meanwhile.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream of this driver.
        self.call(|| unsafe { result::stream::begin_capture(handle(stream.0), mode) })
    }

    fn end_capture(&self, stream: StreamId) -> Result<GraphId, Fault> {
        // SAFETY: a stream of this driver. What can be launched does not need what was captured.
        self.call(|| unsafe {
            let captured = result::stream::end_capture(handle(stream.0))?;
            let graph = result::graph::instantiate(captured, CUgraphInstantiate_flags(0));
            let destroyed = result::graph::destroy(captured);
            let graph = graph?;
            destroyed?;
            Ok(GraphId(graph as u64))
        })
    }

    unsafe fn launch_graph(&self, graph: GraphId, stream: StreamId) -> Result<(), Fault> {
        // SAFETY: as the caller promises.
        self.call(|| unsafe { result::graph::launch(handle(graph.0), handle(stream.0)) })
    }

    fn free_graph(&self, graph: GraphId) {
        if self.context.bind().is_ok() {
            // SAFETY: a graph of this driver, which nobody uses any more.
            let _ = unsafe { result::graph::exec_destroy(handle(graph.0)) };
        }
    }

    fn event(&self) -> Result<EventId, Fault> {
        let event = self.call(|| result::event::create(CUevent_flags::CU_EVENT_DEFAULT))?;
        Ok(EventId(event as u64))
    }

    fn record(&self, event: EventId, stream: StreamId) -> Result<(), Fault> {
        // SAFETY: an event and a stream of this driver.
        self.call(|| unsafe { result::event::record(handle(event.0), handle(stream.0)) })
    }

    fn elapsed(&self, begin: EventId, end: EventId) -> Result<Duration, Fault> {
        // SAFETY: events of this driver.
        let ms = self.call(|| unsafe { result::event::elapsed(handle(begin.0), handle(end.0)) })?;
        Ok(Duration::try_from_secs_f64(f64::from(ms) / 1e3).unwrap_or_default())
    }

    fn free_event(&self, event: EventId) {
        if self.context.bind().is_ok() {
            // SAFETY: an event of this driver, which nobody uses any more.
            let _ = unsafe { result::event::destroy(handle(event.0)) };
        }
    }
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        let made = self.transfers.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stream) = made {
            self.free_stream(stream);
        }
    }
}

/// The handle of an id.
fn handle<T>(id: u64) -> *mut T {
    std::ptr::with_exposed_provenance_mut(id as usize)
}

/// A kernel of a loaded module.
struct CudaKernel {
    context: Arc<Context>,
    module: sys::CUmodule,
    function: sys::CUfunction,
}

// SAFETY: modules and functions belong to the context, see above.
unsafe impl Send for CudaKernel {}
// SAFETY: as above.
unsafe impl Sync for CudaKernel {}

impl fmt::Debug for CudaKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CudaKernel")
    }
}

impl Drop for CudaKernel {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: loaded once, when it was made.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

impl LoadedKernel for CudaKernel {
    unsafe fn launch(&self, form: &LaunchForm<'_>) -> Result<(), Fault> {
        let extent = |n: usize| u32::try_from(n).map_err(|e| Fault::Code(e.to_string()));
        let (blocks, threads) = (extent(form.blocks)?, extent(form.threads)?);
        let mut params: Vec<*mut c_void> =
            form.args.iter().map(|arg| std::ptr::from_ref(arg).cast_mut().cast()).collect();
        self.context.bind().map_err(fault)?;
        // SAFETY: the caller promises that the kernel takes these arguments; the driver copies them before it returns.
        unsafe {
            result::launch_kernel(
                self.function,
                (blocks, 1, 1),
                (threads, 1, 1),
                0,
                handle(form.stream.0),
                &mut params,
            )
        }
        .map_err(fault)
    }
}
