//! Streams, captures, graphs and events, and the operations that run in streams.

use std::collections::BTreeMap;
use std::ffi::{c_uint, c_void};
use std::thread::ThreadId;
use std::time::Instant;

use margay_runtime::gpu::Driver;

use crate::{Device, Status, give, outside_of_captures, with};

/// An operation of a stream.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Launch { handle: usize, blocks: usize, threads: usize, args: Vec<u64> },
    ToDevice { to: u64, from: Source, bytes: usize },
    ToHost { from: u64, to: usize, bytes: usize },
    Within { from: u64, to: u64, bytes: usize },
    Fill { to: u64, pattern: Vec<u8>, count: usize },
    Reach { event: usize },
}

/// Bytes of the host that are copied.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Page-locked memory, which is read when the operation runs.
    Pinned(usize),
    /// Other memory is copied at the call.
    Bytes(Vec<u8>),
}

/// A stream.
#[derive(Debug, Default)]
struct Stream {
    waiting: Vec<Work>,
    capture: Option<Capture>,
}

/// A capture that has begun.
#[derive(Debug)]
struct Capture {
    thread: ThreadId,
    works: Vec<Work>,
    is_spoilt: bool,
}

/// What an event says.
#[derive(Clone, Copy, Debug)]
enum Event {
    New,
    Waiting,
    Reached(Instant),
}

/// All streams, graphs and events, by their handles, and page-locked memory by its addresses.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: BTreeMap<usize, Stream>,
    /// What was captured.
    graphs: BTreeMap<usize, Vec<Work>>,
    /// What can be launched of it.
    launchable: BTreeMap<usize, Vec<Work>>,
    events: BTreeMap<usize, Event>,
    pub(crate) pinned: BTreeMap<usize, usize>,
}

impl Streams {
    /// Makes captures that this thread has begun fail; whether there are any.
    pub(crate) fn spoil_captures(&mut self) -> bool {
        let this = std::thread::current().id();
        let captures = self.streams.values_mut().filter_map(|stream| stream.capture.as_mut());
        captures.filter(|capture| capture.thread == this).fold(false, |_, capture| {
            capture.is_spoilt = true;
            true
        })
    }

    fn is_pinned(&self, at: usize, bytes: usize) -> bool {
        let begun = self.pinned.range(..=at).next_back();
        begun.is_some_and(|(begin, size)| at - begin <= *size && bytes <= *size - (at - begin))
    }
}

impl Device {
    /// Puts an operation at the end of a stream, or into what it captures.
    pub(crate) fn submit(&mut self, handle: usize, work: Work) -> Status {
        let Some(stream) = self.streams.streams.get_mut(&handle) else { return Status::InvalidHandle };
        match &mut stream.capture {
            Some(Capture { is_spoilt: true, .. }) => return Status::CaptureInvalidated,
            Some(capture) => capture.works.push(work),
            None => stream.waiting.push(work),
        }
        if self.eager {
            self.run(handle);
        }
        Status::Success
    }

    /// Runs everything that was submitted to a stream.
    fn run(&mut self, stream: usize) {
        let Some(stream) = self.streams.streams.get_mut(&stream) else { return };
        for work in std::mem::take(&mut stream.waiting) {
            if self.failed.is_none() {
                self.run_one(work);
            }
        }
    }

    /// Runs everything that was submitted.
    pub(crate) fn run_all(&mut self) {
        let streams: Vec<usize> = self.streams.streams.keys().copied().collect();
        streams.into_iter().for_each(|stream| self.run(stream));
    }

    fn run_one(&mut self, work: Work) {
        // What was right when it was submitted may have been freed since.
        let held = match &work {
            Work::Launch { .. } | Work::Reach { .. } => true,
            Work::ToDevice { to, bytes, .. } => self.holds(*to, *bytes),
            Work::ToHost { from, to, bytes } => {
                self.holds(*from, *bytes) && self.streams.is_pinned(*to, *bytes)
            }
            Work::Within { from, to, bytes } => self.holds(*from, *bytes) && self.holds(*to, *bytes),
            Work::Fill { to, pattern, count } => self.holds(*to, pattern.len() * count),
        };
        let done = match work {
            _ if !held => Err(()),
            Work::Launch { handle, blocks, threads, args } => {
                self.launch(handle, blocks, threads, &args);
                Ok(())
            }
            Work::ToDevice { to, from: Source::Bytes(bytes), .. } => {
                self.emulator.write(to, &bytes).map_err(drop)
            }
            Work::ToDevice { from: Source::Pinned(at), bytes, .. } if !self.streams.is_pinned(at, bytes) => {
                Err(())
            }
            Work::ToDevice { to, from: Source::Pinned(at), bytes } => {
                // SAFETY: page-locked memory, which holds so many bytes.
                let bytes = unsafe { std::slice::from_raw_parts(at as *const u8, bytes) };
                self.emulator.write(to, bytes).map_err(drop)
            }
            Work::ToHost { from, to, bytes } => {
                // SAFETY: page-locked memory, which holds so many bytes and which nobody else uses.
                let to = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, bytes) };
                self.emulator.read(from, to).map_err(drop)
            }
            Work::Within { from, to, bytes } => self.emulator.copy(self.own, from, to, bytes).map_err(drop),
            Work::Fill { to, pattern, count } => {
                self.emulator.write(to, &pattern.repeat(count)).map_err(drop)
            }
            Work::Reach { event } => {
                if let Some(event) = self.streams.events.get_mut(&event) {
                    *event = Event::Reached(Instant::now());
                }
                Ok(())
            }
        };
        if done.is_err() {
            eprintln!("fake CUDA driver: memory that is not there any more");
            self.failed = Some(Status::IllegalAddress);
        }
    }

    /// What a call that waited says.
    fn waited(&self) -> Status {
        self.failed.unwrap_or(Status::Success)
    }
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to a place for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(to: *mut *mut c_void, flags: c_uint) -> Status {
    with("cuStreamCreate", |device| {
        if flags > 1 {
            return Status::InvalidValue;
        }
        let handle = device.handle();
        device.streams.streams.insert(handle, Stream::default());
        // SAFETY: as the caller promises.
        unsafe { give(to, handle as *mut c_void) }
    })
}

/// As the CUDA driver. What was submitted still runs.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> Status {
    with("cuStreamDestroy", |device| {
        device.run(stream as usize);
        match device.streams.streams.remove(&(stream as usize)) {
            Some(_) => Status::Success,
            None => Status::InvalidHandle,
        }
    })
}

/// As the CUDA driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> Status {
    outside_of_captures("cuStreamSynchronize", |device| {
        match device.streams.streams.get_mut(&(stream as usize)) {
            None => Status::InvalidHandle,
            Some(Stream { capture: Some(capture), .. }) => {
                capture.is_spoilt = true;
                Status::CaptureUnsupported
            }
            Some(_) => {
                device.run(stream as usize);
                device.waited()
            }
        }
    })
}

/// As the CUDA driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(stream: *mut c_void, mode: c_uint) -> Status {
    with("cuStreamBeginCapture", |device| match device.streams.streams.get_mut(&(stream as usize)) {
        None => Status::InvalidHandle,
        Some(Stream { capture: Some(_), .. }) => Status::IllegalState,
        Some(_) if mode > 2 => Status::InvalidValue,
        Some(stream) => {
            let thread = std::thread::current().id();
            stream.capture = Some(Capture { thread, works: Vec::new(), is_spoilt: false });
            Status::Success
        }
    })
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to a place for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: *mut c_void, to: *mut *mut c_void) -> Status {
    with("cuStreamEndCapture", |device| {
        let Some(stream) = device.streams.streams.get_mut(&(stream as usize)) else {
            return Status::InvalidHandle;
        };
        match stream.capture.take() {
            None => Status::IllegalState,
            Some(Capture { is_spoilt: true, .. }) => Status::CaptureInvalidated,
            Some(Capture { works, .. }) => {
                let handle = device.handle();
                device.streams.graphs.insert(handle, works);
                // SAFETY: as the caller promises.
                unsafe { give(to, handle as *mut c_void) }
            }
        }
    })
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to a place for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    to: *mut *mut c_void,
    graph: *mut c_void,
    _flags: u64,
) -> Status {
    with("cuGraphInstantiate", |device| match device.streams.graphs.get(&(graph as usize)).cloned() {
        None => Status::InvalidHandle,
        Some(works) => {
            let handle = device.handle();
            device.streams.launchable.insert(handle, works);
            // SAFETY: as the caller promises.
            unsafe { give(to, handle as *mut c_void) }
        }
    })
}

/// As the CUDA driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: *mut c_void) -> Status {
    with("cuGraphDestroy", |device| match device.streams.graphs.remove(&(graph as usize)) {
        None => Status::InvalidHandle,
        Some(_) => Status::Success,
    })
}

/// As the CUDA driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(graph: *mut c_void) -> Status {
    with("cuGraphExecDestroy", |device| match device.streams.launchable.remove(&(graph as usize)) {
        None => Status::InvalidHandle,
        Some(_) => Status::Success,
    })
}

/// As the CUDA driver; a graph is not made part of another one.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(graph: *mut c_void, stream: *mut c_void) -> Status {
    outside_of_captures("cuGraphLaunch", |device| {
        match device.streams.launchable.get(&(graph as usize)).cloned() {
            None => Status::InvalidHandle,
            Some(works) => {
                let submitted = works.into_iter().map(|work| device.submit(stream as usize, work));
                let failed = submitted.filter(|status| *status != Status::Success).last();
                failed.unwrap_or(Status::Success)
            }
        }
    })
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to so many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: *mut c_void,
) -> Status {
    with("cuMemcpyHtoDAsync", |device| {
        if bytes == 0 || !device.holds(to, bytes) {
            return Status::InvalidValue;
        }
        let from = match device.streams.is_pinned(from as usize, bytes) {
            true => Source::Pinned(from as usize),
            false if device.streams.spoil_captures() => return Status::CaptureUnsupported,
            // SAFETY: as the caller promises.
            false => Source::Bytes(unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) }.to_vec()),
        };
        device.submit(stream as usize, Work::ToDevice { to, from, bytes })
    })
}

/// As the CUDA driver. A copy to memory that is not page-locked has ended when it returns.
///
/// # Safety
/// The pointer leads to so many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    stream: *mut c_void,
) -> Status {
    with("cuMemcpyDtoHAsync", |device| {
        if bytes == 0 || !device.holds(from, bytes) {
            return Status::InvalidValue;
        }
        if device.streams.is_pinned(to as usize, bytes) {
            return device.submit(stream as usize, Work::ToHost { from, to: to as usize, bytes });
        }
        if device.streams.spoil_captures() {
            return Status::CaptureUnsupported;
        }
        device.run(stream as usize);
        // SAFETY: as the caller promises.
        let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), bytes) };
        match device.waited() {
            Status::Success => {
                device.emulator.read(from, to).map_or(Status::InvalidValue, |()| Status::Success)
            }
            failed => failed,
        }
    })
}

/// As the CUDA driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: *mut c_void) -> Status {
    with("cuMemcpyDtoDAsync", |device| match device.holds(to, bytes) && device.holds(from, bytes) {
        true if bytes > 0 => device.submit(stream as usize, Work::Within { from, to, bytes }),
        _ => Status::InvalidValue,
    })
}

/// As the CUDA driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, byte: u8, count: usize, stream: *mut c_void) -> Status {
    with("cuMemsetD8Async", |device| match device.holds(to, count) {
        true if count > 0 => device.submit(stream as usize, Work::Fill { to, pattern: vec![byte], count }),
        _ => Status::InvalidValue,
    })
}

/// As the CUDA driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD32Async(to: u64, word: c_uint, count: usize, stream: *mut c_void) -> Status {
    with("cuMemsetD32Async", |device| match device.holds(to, 4 * count) && to.is_multiple_of(4) {
        true if count > 0 => {
            let pattern = word.to_le_bytes().to_vec();
            device.submit(stream as usize, Work::Fill { to, pattern, count })
        }
        _ => Status::InvalidValue,
    })
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to a place for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(to: *mut *mut c_void, _flags: c_uint) -> Status {
    with("cuEventCreate", |device| {
        let handle = device.handle();
        device.streams.events.insert(handle, Event::New);
        // SAFETY: as the caller promises.
        unsafe { give(to, handle as *mut c_void) }
    })
}

/// As the CUDA driver. In a capture it says nothing of times.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> Status {
    with("cuEventRecord", |device| {
        let Some(known) = device.streams.events.get_mut(&(event as usize)) else {
            return Status::InvalidHandle;
        };
        *known = Event::Waiting;
        device.submit(stream as usize, Work::Reach { event: event as usize })
    })
}

/// As the CUDA driver.
///
/// # Safety
/// The pointer leads to a place for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(to: *mut f32, begin: *mut c_void, end: *mut c_void) -> Status {
    with("cuEventElapsedTime", |device| {
        let event = |handle: *mut c_void| device.streams.events.get(&(handle as usize));
        match (event(begin), event(end)) {
            // SAFETY: as the caller promises.
            (Some(Event::Reached(begin)), Some(Event::Reached(end))) => unsafe {
                give(to, end.duration_since(*begin).as_secs_f32() * 1e3)
            },
            (Some(Event::Waiting | Event::Reached(_)), Some(Event::Waiting | Event::Reached(_))) => {
                Status::NotReady
            }
            _ => Status::InvalidHandle,
        }
    })
}

/// As the CUDA driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> Status {
    with("cuEventDestroy", |device| match device.streams.events.remove(&(event as usize)) {
        None => Status::InvalidHandle,
        Some(_) => Status::Success,
    })
}
