//! The library `libcuda` without a device, for tests: the functions that margay calls, over memory of the host and the emulator,
//! which interprets PTX and checks every access.
//!
//! A process that finds this library under the name `libcuda.so` runs the whole way from an artifact to results, the
//! loading of the library included. Where the document "CUDA Driver API" says what a function refuses, it is refused: calls without a
//! context, addresses that nobody allocated, blocks of more threads than a kernel allows, PTX for later
//! devices, and during a capture whatever waits, allocates or copies memory that is not page-locked. What the emulator found
//! goes to standard error.
//!
//! Operations of a stream run as late as the document allows: when the host waits for the stream, or frees memory of the device.
//! So a program that reads results before it has waited, or changes page-locked memory too early, has wrong results here, too. A fault of a
//! kernel is told by the call that waits, and by every call after it, as on a device. Events hold the clock of the host.
//!
//! The variable `MARGAY_FAKE_CUDA` says what the device is like, as words between commas: `devices=0` for none,
//! `capability=75` (else 80), `memory=BYTES` in all, `fault=N` for a device that fails in launch number N, from 0 on, `illegal=N`
//! for a kernel that reaches outside of memory in that launch, `eager=1` for operations that run as early as they may, so that the next
//! call tells of a fault, and `trace=FILE` for a file that receives the name of each function that is called with a context, one a line.
//!
//! Not shown by it: operations of several streams at a time, and what a driver makes of PTX.
//!
//! - this file: devices, contexts, memory, modules, launches; [`stream`]: streams, captures, graphs, events, and copies in
//!   streams.

#![allow(non_snake_case, reason = "the functions have the names of the CUDA driver")]

pub mod stream;

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use margay_emulator::Emulator;
use margay_runtime::gpu::{Driver, LaunchForm, LoadedKernel, Region, StreamId};

use self::stream::{Streams, Work};

/// The errors that are given, by their numbers in the document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Status {
    /// `CUDA_SUCCESS`.
    Success = 0,
    /// `CUDA_ERROR_INVALID_VALUE`.
    InvalidValue = 1,
    /// `CUDA_ERROR_OUT_OF_MEMORY`.
    OutOfMemory = 2,
    /// `CUDA_ERROR_NO_DEVICE`.
    NoDevice = 100,
    /// `CUDA_ERROR_INVALID_DEVICE`.
    InvalidDevice = 101,
    /// `CUDA_ERROR_INVALID_CONTEXT`.
    InvalidContext = 201,
    /// `CUDA_ERROR_NO_BINARY_FOR_GPU`.
    NoBinary = 209,
    /// `CUDA_ERROR_INVALID_PTX`.
    InvalidPtx = 218,
    /// `CUDA_ERROR_INVALID_HANDLE`.
    InvalidHandle = 400,
    /// `CUDA_ERROR_ILLEGAL_STATE`.
    IllegalState = 401,
    /// `CUDA_ERROR_NOT_FOUND`.
    NotFound = 500,
    /// `CUDA_ERROR_NOT_READY`.
    NotReady = 600,
    /// `CUDA_ERROR_ILLEGAL_ADDRESS`.
    IllegalAddress = 700,
    /// `CUDA_ERROR_LAUNCH_FAILED`.
    LaunchFailed = 719,
    /// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`.
    CaptureUnsupported = 900,
    /// `CUDA_ERROR_STREAM_CAPTURE_INVALIDATED`.
    CaptureInvalidated = 901,
}

impl Status {
    /// What the driver says of it.
    fn sentence(self) -> &'static CStr {
        match self {
            Status::Success => c"no error",
            Status::InvalidValue => c"invalid argument",
            Status::OutOfMemory => c"out of memory",
            Status::NoDevice => c"no CUDA-capable device is detected",
            Status::InvalidDevice => c"invalid device ordinal",
            Status::InvalidContext => c"invalid device context",
            Status::NoBinary => c"no kernel image is available for execution on the device",
            Status::InvalidPtx => c"a PTX JIT compilation failed",
            Status::InvalidHandle => c"invalid resource handle",
            Status::IllegalState => c"the operation cannot be performed in the present state",
            Status::NotFound => c"named symbol not found",
            Status::NotReady => c"device not ready",
            Status::IllegalAddress => c"an illegal memory access was encountered",
            Status::LaunchFailed => c"unspecified launch failure",
            Status::CaptureUnsupported => c"operation not permitted when stream is capturing",
            Status::CaptureInvalidated => c"operation failed due to a previous error during capture",
        }
    }
}

const ALL: [Status; 16] = [
    Status::Success,
    Status::InvalidValue,
    Status::OutOfMemory,
    Status::NoDevice,
    Status::InvalidDevice,
    Status::InvalidContext,
    Status::NoBinary,
    Status::InvalidPtx,
    Status::InvalidHandle,
    Status::IllegalState,
    Status::NotFound,
    Status::NotReady,
    Status::IllegalAddress,
    Status::LaunchFailed,
    Status::CaptureUnsupported,
    Status::CaptureInvalidated,
];

/// The one context, as a handle.
const CONTEXT: usize = 1;

/// The name of the device.
const NAME: &CStr = c"a device that is not there";

/// The most threads of a block.
const MOST_THREADS: usize = 1024;

/// A loaded module.
struct Module {
    kernel: Box<dyn LoadedKernel>,
    params: usize,
    most_threads: usize,
}

/// The device.
struct Device {
    emulator: Emulator,
    devices: c_int,
    capability: c_int,
    memory: usize,
    /// The launch in which something fails, and what is said of it.
    fault: Option<(usize, Status)>,
    /// Whether operations run when they are submitted.
    eager: bool,
    launches: usize,
    allocated: BTreeMap<u64, usize>,
    /// By their handles.
    modules: BTreeMap<usize, Module>,
    handles: usize,
    streams: Streams,
    /// The stream of the emulator, in which everything runs.
    own: StreamId,
    trace: Option<File>,
    retained: usize,
    /// What every call says from now on.
    failed: Option<Status>,
}

impl Device {
    fn new() -> Device {
        let said = std::env::var("MARGAY_FAKE_CUDA").unwrap_or_default();
        let number = |name: &str| {
            let words = said.split(',').filter_map(|word| word.split_once('='));
            words.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse::<usize>().ok())
        };
        let emulator = Emulator::new(1);
        let own = emulator.stream().expect("an emulator has streams");
        let path = said.split(',').find_map(|word| word.strip_prefix("trace="));
        Device {
            emulator,
            own,
            streams: Streams::default(),
            trace: path.map(|path| File::create(path).expect("the file can be written")),
            devices: number("devices").unwrap_or(1) as c_int,
            capability: number("capability").unwrap_or(80) as c_int,
            memory: number("memory").unwrap_or(1 << 30),
            fault: number("fault")
                .map(|n| (n, Status::LaunchFailed))
                .or_else(|| Some((number("illegal")?, Status::IllegalAddress))),
            eager: number("eager").is_some_and(|n| n > 0),
            launches: 0,
            allocated: BTreeMap::new(),
            modules: BTreeMap::new(),
            handles: 0,
            retained: 0,
            failed: None,
        }
    }

    /// Whether so many bytes from an address on are memory of one allocation.
    fn holds(&self, address: u64, bytes: usize) -> bool {
        let begun = self.allocated.range(..=address).next_back();
        begun.is_some_and(|(begin, size)| {
            (address - begin) as usize <= *size && bytes <= *size - (address - begin) as usize
        })
    }

    fn used(&self) -> usize {
        self.allocated.values().sum()
    }

    fn handle(&mut self) -> usize {
        self.handles += 1;
        self.handles
    }

    /// Runs a kernel.
    fn launch(&mut self, handle: usize, blocks: usize, threads: usize, args: &[u64]) {
        let regions = self.allocated.iter();
        let regions = regions.map(|(&address, &bytes)| Region { address, bytes, element: 1, written: true });
        let regions: Vec<Region> = regions.collect();
        let form = LaunchForm { stream: self.own, step: 0, blocks, threads, args, regions: &regions };
        let Some(module) = self.modules.get(&handle) else {
            self.failed = Some(Status::LaunchFailed);
            return;
        };
        // SAFETY: the emulator checks every access.
        let ended = unsafe { module.kernel.launch(&form) };
        if let Err(found) = ended {
            eprintln!("fake CUDA driver: launch {}: {found:?}", self.launches);
            self.failed = Some(Status::IllegalAddress);
        }
        if let Some((_, status)) = self.fault.filter(|(launch, _)| *launch == self.launches) {
            self.failed = Some(status);
        }
        self.launches += 1;
    }
}

thread_local! {
    /// Whether the context is the current one of the thread.
    static CURRENT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn device() -> MutexGuard<'static, Device> {
    static DEVICE: OnceLock<Mutex<Device>> = OnceLock::new();
    DEVICE.get_or_init(|| Mutex::new(Device::new())).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does what a function of the driver does if the context is current and nothing has failed.
fn with(function: &str, then: impl FnOnce(&mut Device) -> Status) -> Status {
    let mut device = device();
    if let Some(trace) = &mut device.trace {
        writeln!(trace, "{function}").expect("the trace can be written");
    }
    match device.failed {
        Some(status) => status,
        None if device.retained == 0 || !CURRENT.get() => Status::InvalidContext,
        None => then(&mut device),
    }
}

/// The same for a function that the document calls unsafe during a capture of this thread: it fails, and so does the capture.
fn outside_of_captures(function: &str, then: impl FnOnce(&mut Device) -> Status) -> Status {
    with(function, |device| match device.streams.spoil_captures() {
        true => Status::CaptureUnsupported,
        false => then(device),
    })
}

/// Writes an answer.
///
/// # Safety
/// `to` is where the caller of a function of the driver wants it.
unsafe fn give<T>(to: *mut T, value: T) -> Status {
    // SAFETY: as the caller promises.
    unsafe { to.write(value) };
    Status::Success
}

/// As the CUDA driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> Status {
    if device().devices == 0 { Status::NoDevice } else { Status::Success }
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to a place for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: c_int, to: *mut *const c_char) -> Status {
    match ALL.into_iter().find(|status| *status as c_int == error) {
        // SAFETY: as the caller promises.
        Some(status) => unsafe { give(to, status.sentence().as_ptr()) },
        None => Status::InvalidValue,
    }
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to a place for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(to: *mut c_int) -> Status {
    // SAFETY: as the caller promises.
    unsafe { give(to, device().devices) }
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to a place for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(to: *mut c_int, ordinal: c_int) -> Status {
    match (0..device().devices).contains(&ordinal) {
        // SAFETY: as the caller promises.
        true => unsafe { give(to, ordinal) },
        false => Status::InvalidDevice,
    }
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to so many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(to: *mut c_char, bytes: c_int, _device: c_int) -> Status {
    let name = NAME.to_bytes_with_nul();
    if (bytes as usize) < name.len() {
        return Status::InvalidValue;
    }
    // SAFETY: as the caller promises.
    unsafe { std::ptr::copy_nonoverlapping(name.as_ptr().cast(), to, name.len()) };
    Status::Success
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to a place for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(to: *mut c_int, attribute: c_int, _device: c_int) -> Status {
    let capability = device().capability;
    match attribute {
        // SAFETY: as the caller promises.
        75 => unsafe { give(to, capability / 10) },
        // SAFETY: as the caller promises.
        76 => unsafe { give(to, capability % 10) },
        _ => Status::InvalidValue,
    }
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to a place for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(to: *mut *mut c_void, _device: c_int) -> Status {
    device().retained += 1;
    // SAFETY: as the caller promises.
    unsafe { give(to, CONTEXT as *mut c_void) }
}

/// As the CUDA driver. With the last one memory and modules are gone.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Status {
    let mut device = device();
    match device.retained {
        0 => Status::InvalidContext,
        n => {
            device.retained = n - 1;
            if n == 1 {
                device.run_all();
                device.modules.clear();
                let all = std::mem::take(&mut device.allocated);
                all.keys().for_each(|address| device.emulator.free(*address));
            }
            Status::Success
        }
    }
}

/// As the CUDA driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> Status {
    let device = device();
    if context as usize != CONTEXT || device.retained == 0 {
        return Status::InvalidContext;
    }
    CURRENT.set(true);
    device.failed.unwrap_or(Status::Success)
}

/// As the CUDA driver.
///
/// # Safety
/// The pointers lead to places for the answers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    with("cuMemGetInfo", |device| {
        // SAFETY: as the caller promises.
        unsafe {
            give(free, device.memory - device.used());
            give(total, device.memory)
        }
    })
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to a place for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(to: *mut u64, bytes: usize) -> Status {
    outside_of_captures("cuMemAlloc", |device| match bytes {
        0 => Status::InvalidValue,
        _ if bytes > device.memory - device.used() => Status::OutOfMemory,
        _ => match device.emulator.allocate(bytes, false) {
            Ok(address) => {
                device.allocated.insert(address, bytes);
                // SAFETY: as the caller promises.
                unsafe { give(to, address) }
            }
            Err(_) => Status::OutOfMemory,
        },
    })
}

/// As the CUDA driver. It waits for everything.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Status {
    outside_of_captures("cuMemFree", |device| {
        device.run_all();
        match device.allocated.remove(&address) {
            _ if device.failed.is_some() => device.failed.unwrap_or(Status::Success),
            None => Status::InvalidValue,
            Some(_) => {
                device.emulator.free(address);
                Status::Success
            }
        }
    })
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to a place for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(to: *mut *mut c_void, bytes: usize, flags: c_uint) -> Status {
    outside_of_captures("cuMemHostAlloc", |device| match (bytes, flags) {
        (0, _) | (_, 8..) => Status::InvalidValue,
        _ => match device.emulator.allocate_host(bytes) {
            Ok(at) => {
                // As from the driver: it holds anything.
                // SAFETY: so many bytes were allocated.
                unsafe { at.as_ptr().write_bytes(0xaa, bytes) };
                device.streams.pinned.insert(at.as_ptr() as usize, bytes);
                // SAFETY: as the caller promises.
                unsafe { give(to, at.as_ptr().cast()) }
            }
            Err(_) => Status::OutOfMemory,
        },
    })
}

/// As the CUDA driver.
///
/// # Safety
/// Nobody uses the memory any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(at: *mut c_void) -> Status {
    outside_of_captures("cuMemFreeHost", |device| {
        match (device.streams.pinned.remove(&(at as usize)), std::ptr::NonNull::new(at.cast())) {
            (Some(bytes), Some(at)) => {
                // SAFETY: allocated so; otherwise as the caller promises.
                unsafe { device.emulator.free_host(at, bytes) };
                Status::Success
            }
            _ => Status::InvalidValue,
        }
    })
}

/// The number behind a word in a text.
fn number_behind(text: &str, word: &str) -> Option<usize> {
    let rest = text.split_once(word)?.1.trim_start();
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// As the CUDA driver.
///
/// # Safety
/// The first pointer leads to a place for the answer, the second to a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(to: *mut *mut c_void, image: *const c_void) -> Status {
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
    outside_of_captures("cuModuleLoadData", |device| {
        let class = number_behind(&text, ".target sm_");
        let (Some(class), Some(most_threads)) = (class, number_behind(&text, ".maxntid")) else {
            return Status::InvalidPtx;
        };
        if class as c_int > device.capability {
            return Status::NoBinary;
        }
        let kernel = match device.emulator.load(&text) {
            Ok(kernel) => kernel,
            Err(problem) => {
                eprintln!("fake CUDA driver: {problem}");
                return Status::InvalidPtx;
            }
        };
        let params = text.lines().filter(|line| line.trim_start().starts_with(".param")).count();
        let handle = device.handle();
        device.modules.insert(handle, Module { kernel, params, most_threads });
        // SAFETY: as the caller promises.
        unsafe { give(to, handle as *mut c_void) }
    })
}

/// As the CUDA driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: *mut c_void) -> Status {
    outside_of_captures("cuModuleUnload", |device| match device.modules.remove(&(module as usize)) {
        Some(_) => Status::Success,
        None => Status::InvalidHandle,
    })
}

/// As the CUDA driver. A function has the handle of its module.
///
/// # Safety
/// The first pointer leads to a place for the answer, the last to a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    to: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> Status {
    // SAFETY: as the caller promises.
    let name = unsafe { CStr::from_ptr(name) };
    with("cuModuleGetFunction", |device| match device.modules.contains_key(&(module as usize)) {
        false => Status::InvalidHandle,
        true if name != c"kernel" => Status::NotFound,
        // SAFETY: as the caller promises.
        true => unsafe { give(to, module) },
    })
}

/// As the CUDA driver.
///
/// # Safety
/// `params` leads to as many pointers to words of 64 bits as the kernel has parameters.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    blocks: c_uint,
    blocks_y: c_uint,
    blocks_z: c_uint,
    threads: c_uint,
    threads_y: c_uint,
    threads_z: c_uint,
    _shared_bytes: c_uint,
    stream: *mut c_void,
    params: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> Status {
    with("cuLaunchKernel", |device| {
        let handle = function as usize;
        let Some(module) = device.modules.get(&handle) else { return Status::InvalidHandle };
        let flat = [blocks_y, blocks_z, threads_y, threads_z].iter().all(|&n| n == 1);
        let (blocks, threads) = (blocks as usize, threads as usize);
        let most = module.most_threads.min(MOST_THREADS);
        if !flat || blocks == 0 || blocks > i32::MAX as usize || threads == 0 || threads > most {
            return Status::InvalidValue;
        }
        // SAFETY: as the caller promises.
        let args = (0..module.params).map(|i| unsafe { (*params.add(i)).cast::<u64>().read() });
        let args: Vec<u64> = args.collect();
        // A launch does not wait.
        device.submit(stream as usize, Work::Launch { handle, blocks, threads, args })
    })
}
