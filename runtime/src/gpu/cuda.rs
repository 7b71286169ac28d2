//! The driver of NVIDIA devices. The library `libcuda` is looked for when a device is opened: neither building nor starting
//! margay needs it.
//!
//! Everything goes through the default stream of the device's primary context, which keeps the order. A fault of a
//! kernel ends the context: every later call fails with the same error.

use std::ffi::{CString, c_void};
use std::fmt;
use std::io;
use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{DriverError, result, sys};
use margay_kernels_gpu::{ENTRY, GpuTarget};

use super::driver::{Driver, LaunchForm, LoadedKernel};
use crate::RunError;
use crate::device::Fault;

/// A device of this machine, opened.
pub struct CudaDriver {
    context: Arc<Context>,
    name: String,
    /// Ten times the major compute capability and the minor one.
    capability: u32,
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

/// Whether kernels are at fault, or the machine.
fn fault(error: DriverError) -> Fault {
    match error.0 {
        CUresult::CUDA_ERROR_INVALID_VALUE
        | CUresult::CUDA_ERROR_INVALID_PTX
        | CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => Fault::Code(text(error)),
        // Kernels run while the host goes on.
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_INVALID_PC => Fault::Code(format!("in this step or before, {}", text(error))),
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
        Ok(CudaDriver { context: Arc::new(Context { device, raw }), name, capability })
    }

    /// Memory of the device: free and total bytes.
    fn memory(&self) -> Option<(usize, usize)> {
        self.context.bind().and_then(|()| result::mem_get_info()).ok()
    }

    /// Calls the driver with the context of the device.
    fn call<T>(&self, call: impl FnOnce() -> Result<T, DriverError>) -> Result<T, Fault> {
        self.context.bind().and_then(|()| call()).map_err(fault)
    }
}

impl Driver for CudaDriver {
    fn accepts(&self, target: GpuTarget) -> Result<(), RunError> {
        if target.runs_on(self.capability) {
            return Ok(());
        }
        let runs = GpuTarget::all()
            .filter(|t| t.runs_on(self.capability) && !t.allows_tf32())
            .max_by_key(|t| t.class());
        Err(RunError::Class {
            target: target.name().to_owned(),
            device: format!("{} of sm_{}", self.name, self.capability),
            runs: runs.map_or("nothing", GpuTarget::name).to_owned(),
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
            // SAFETY: so many bytes were allocated there.
            unsafe { result::memset_d8_sync(address, 0, bytes) }.map_err(failed)?;
        }
        Ok(address)
    }

    fn free(&self, address: u64) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated above, and nobody uses it any more. After a fault of the device there is nothing to free.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Fault> {
        // SAFETY: the address and so many bytes lie in what was allocated.
        self.call(|| unsafe { result::memcpy_htod_sync(to, bytes) })
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        // SAFETY: the address and so many bytes lie in what was allocated.
        self.call(|| unsafe { result::memcpy_dtoh_sync(bytes, from) })
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Fault> {
        // SAFETY: both regions lie in what was allocated.
        self.call(|| unsafe { result::memcpy_dtod_sync(to, from, bytes) })
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

    fn synchronise(&self) -> Result<(), Fault> {
        self.call(result::ctx::synchronize)
    }
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
                std::ptr::null_mut(),
                &mut params,
            )
        }
        .map_err(fault)
    }
}
