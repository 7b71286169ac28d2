//! The functions that a kernel for the processor calls, for one thread of a block: see
//! [`margay_codegen_gpu::host`].

use std::collections::BTreeMap;
use std::ffi::c_void;

use corosensei::Yielder;
use margay_codegen_gpu::host::Access;
use margay_kernels_gpu::Unit;

use crate::multiply::Handed;
use crate::shadow::{Problem, Shadow, Stamp};

/// What a thread waits for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Request {
    /// All threads of the block.
    Barrier,
    /// The value of the thread of the warp whose number differs in the bits of `distance`.
    Shuffle { value: u32, distance: u32 },
    /// A product of the warp on matrix units.
    Multiply(Handed),
}

/// A thread.
pub(crate) struct Thread {
    pub(crate) number: u32,
    /// Barriers that it has passed.
    pub(crate) epoch: u32,
    /// What it received of the last product on matrix units.
    pub(crate) sums: [f32; 4],
    /// By which it waits; null where the kernel never does.
    pub(crate) yielder: *const Yielder<u32, Request>,
    /// What it shares with the other threads of its block.
    pub(crate) block: *mut BlockState,
}

impl Thread {
    /// A thread of a block that has not begun.
    pub(crate) fn new(number: usize, block: *mut BlockState) -> Thread {
        Thread { number: number as u32, epoch: 0, sums: [0.0; 4], yielder: std::ptr::null(), block }
    }
}

/// A region that a launch may touch.
pub(crate) struct Region {
    pub(crate) begin: usize,
    pub(crate) bytes: usize,
    /// Whether somebody has written each byte; as many as the region has bytes.
    pub(crate) held: *mut bool,
    /// Accesses, if the kernel may write the region.
    pub(crate) shadow: Option<Shadow>,
}

impl Region {
    fn holds(&self, address: usize, bytes: usize) -> bool {
        address >= self.begin && address.saturating_add(bytes) <= self.begin.saturating_add(self.bytes)
    }
}

/// An array in shared memory.
pub(crate) struct Array {
    /// Room for it, in pieces of its alignment.
    pub(crate) room: Vec<[u128; 8]>,
    pub(crate) bytes: usize,
    pub(crate) held: Vec<bool>,
    pub(crate) shadow: Shadow,
}

/// Bytes of what kernels hold in shared memory, at least.
const SHARED_ELEMENT: usize = 4;

impl Array {
    pub(crate) fn new(bytes: usize) -> Array {
        // What nobody wrote is no number.
        let room = vec![[u128::MAX; 8]; bytes.div_ceil(128)];
        Array { room, bytes, held: vec![false; bytes], shadow: Shadow::new(bytes, SHARED_ELEMENT) }
    }

    fn begin(&self) -> usize {
        self.room.as_ptr() as usize
    }

    /// As at the start of a block.
    pub(crate) fn reset(&mut self) {
        self.room.fill([u128::MAX; 8]);
        self.held.fill(false);
        self.shadow.reset();
    }
}

/// What the threads of a block share, and what is found.
pub(crate) struct BlockState {
    pub(crate) number: u32,
    pub(crate) regions: Vec<Region>,
    pub(crate) arrays: Vec<Array>,
    /// What is wrong, each at a place of the kernel, and how often.
    pub(crate) found: BTreeMap<(Problem, u32), usize>,
    /// Where accesses go that may not happen.
    pub(crate) aside: Box<[u128; 2]>,
}

impl BlockState {
    fn report(&mut self, problem: Problem, place: u32) {
        *self.found.entry((problem, place)).or_default() += 1;
    }

    /// Notes an access and says where it is to go.
    fn access(&mut self, address: usize, access: Access, now: Stamp) -> usize {
        let bytes = access.bytes as usize;
        if !address.is_multiple_of(access.align.max(1) as usize) {
            self.report(Problem::Misaligned, access.place);
            return self.aside.as_mut_ptr() as usize;
        }
        let holds = |region: &Region| region.holds(address, bytes);
        // What may be written is looked at first: in place, a region that is read is one that is written.
        let writable = self.regions.iter_mut().filter(|r| r.shadow.is_some()).find(|r| holds(r));
        if let Some(region) = writable {
            let at = address - region.begin;
            // SAFETY: `held` has as many elements as the region has bytes.
            let held = unsafe { std::slice::from_raw_parts_mut(region.held.add(at), bytes) };
            let unwritten = !access.writes && !held.iter().all(|&written| written);
            if access.writes {
                held.fill(true);
            }
            let race =
                region.shadow.as_mut().and_then(|s| s.access(at, bytes, access.writes, access.atomic, now));
            for problem in race.into_iter().chain(unwritten.then_some(Problem::Uninitialized)) {
                self.report(problem, access.place);
            }
            return address;
        }
        let Some(region) = self.regions.iter().find(|r| holds(r)) else {
            self.report(Problem::OutOfBounds, access.place);
            return self.aside.as_mut_ptr() as usize;
        };
        if access.writes {
            self.report(Problem::ReadOnly, access.place);
            return self.aside.as_mut_ptr() as usize;
        }
        // SAFETY: `held` has as many elements as the region has bytes.
        let held = unsafe { std::slice::from_raw_parts(region.held.add(address - region.begin), bytes) };
        if !held.iter().all(|&written| written) {
            self.report(Problem::Uninitialized, access.place);
        }
        address
    }

    /// The same for shared memory. A read `ahead` may be one whose value is dropped: of it only the use would tell.
    fn access_shared(&mut self, address: usize, access: Access, ahead: bool, now: Stamp) -> usize {
        let bytes = access.bytes as usize;
        if !address.is_multiple_of(access.align.max(1) as usize) {
            self.report(Problem::Misaligned, access.place);
            return self.aside.as_mut_ptr() as usize;
        }
        let holds = |array: &Array| {
            address >= array.begin() && address.saturating_add(bytes) <= array.begin() + array.bytes
        };
        let Some(array) = self.arrays.iter_mut().find(|array| holds(array)) else {
            self.report(Problem::OutOfBounds, access.place);
            return self.aside.as_mut_ptr() as usize;
        };
        let at = address - array.begin();
        let held = &mut array.held[at..at + bytes];
        let unwritten = !access.writes && !ahead && !held.iter().all(|&written| written);
        if access.writes {
            held.fill(true);
        }
        let race = array.shadow.access(at, bytes, access.writes, access.atomic, now);
        for problem in race.into_iter().chain(unwritten.then_some(Problem::Uninitialized)) {
            self.report(problem, access.place);
        }
        address
    }
}

/// The parts of a thread that a call is handed.
///
/// # Safety
/// `thread` is that of a launch in progress, and nobody else uses it or its block meanwhile.
unsafe fn parts<'t>(thread: *mut Thread) -> (&'t mut Thread, &'t mut BlockState, Stamp) {
    // SAFETY: as the caller promises; threads of a launch take turns on one thread of the host.
    let (thread, block) = unsafe { (&mut *thread, &mut *(*thread).block) };
    let now = Stamp { block: block.number, thread: thread.number, epoch: thread.epoch };
    (thread, block, now)
}

pub(crate) unsafe extern "C-unwind" fn gpu_thread(thread: *mut Thread) -> u32 {
    // SAFETY: kernels hand on the thread that they were called with.
    unsafe { parts(thread).0.number }
}

pub(crate) unsafe extern "C-unwind" fn gpu_block(thread: *mut Thread) -> u32 {
    // SAFETY: kernels hand on the thread that they were called with.
    unsafe { parts(thread).1.number }
}

/// Waits as a request says. The thread is not borrowed meanwhile: others run.
///
/// # Safety
/// `thread` is that of a launch in progress.
unsafe fn wait(thread: *mut Thread, request: Request) -> u32 {
    // SAFETY: a kernel that waits runs on a fiber, whose yielder lives as long as it runs.
    unsafe { (*(*thread).yielder).suspend(request) }
}

pub(crate) unsafe extern "C-unwind" fn gpu_barrier(thread: *mut Thread) {
    // SAFETY: kernels hand on the thread that they were called with.
    unsafe { wait(thread, Request::Barrier) };
}

pub(crate) unsafe extern "C-unwind" fn gpu_shuffle(thread: *mut Thread, value: u32, distance: u32) -> u32 {
    // SAFETY: kernels hand on the thread that they were called with.
    unsafe { wait(thread, Request::Shuffle { value, distance }) }
}

pub(crate) unsafe extern "C-unwind" fn gpu_multiply(
    thread: *mut Thread,
    unit: u32,
    a0: u32,
    a1: u32,
    a2: u32,
    a3: u32,
    b0: u32,
    b1: u32,
    c0: f32,
    c1: f32,
    c2: f32,
    c3: f32,
) {
    let unit = Unit::ALL[unit as usize];
    let handed = Handed { unit, a: [a0, a1, a2, a3], b: [b0, b1], c: [c0, c1, c2, c3] };
    // SAFETY: kernels hand on the thread that they were called with.
    unsafe { wait(thread, Request::Multiply(handed)) };
}

pub(crate) unsafe extern "C-unwind" fn gpu_sum(thread: *mut Thread, number: u32) -> f32 {
    // SAFETY: kernels hand on the thread that they were called with.
    unsafe { parts(thread).0.sums[number as usize] }
}

pub(crate) unsafe extern "C-unwind" fn gpu_access(thread: *mut Thread, address: usize, what: u64) -> usize {
    // SAFETY: kernels hand on the thread that they were called with.
    let (_, block, now) = unsafe { parts(thread) };
    block.access(address, Access::of(what), now)
}

pub(crate) unsafe extern "C-unwind" fn gpu_access_shared(
    thread: *mut Thread,
    address: usize,
    what: u64,
) -> usize {
    // SAFETY: kernels hand on the thread that they were called with.
    let (_, block, now) = unsafe { parts(thread) };
    block.access_shared(address, Access::of(what), false, now)
}

/// Whether so many bytes of global memory may be touched.
pub(crate) unsafe fn holds(thread: *mut Thread, address: usize, bytes: usize) -> bool {
    // SAFETY: as the caller promises.
    let (_, block, _) = unsafe { parts(thread) };
    block.regions.iter().any(|region| region.holds(address, bytes))
}

/// As [`gpu_access_shared`], for a read that an optimizer may have moved to where its value is not needed. What nobody has
/// written is no number, so that its use shows in results.
pub(crate) unsafe fn access_shared_ahead(thread: *mut Thread, address: usize, what: u64) -> usize {
    // SAFETY: as the caller promises.
    let (_, block, now) = unsafe { parts(thread) };
    block.access_shared(address, Access::of(what), true, now)
}

pub(crate) unsafe extern "C-unwind" fn gpu_shared(thread: *mut Thread, array: u32) -> usize {
    // SAFETY: kernels hand on the thread that they were called with.
    let (_, block, _) = unsafe { parts(thread) };
    block.arrays[array as usize].begin()
}

/// The functions that a kernel for the processor calls, by their names. They are handed the thread that the kernel was called
/// with, and nothing else calls them.
pub fn symbols() -> [(&'static str, *mut c_void); 9] {
    [
        ("gpu_thread", gpu_thread as *mut c_void),
        ("gpu_block", gpu_block as *mut c_void),
        ("gpu_barrier", gpu_barrier as *mut c_void),
        ("gpu_shuffle", gpu_shuffle as *mut c_void),
        ("gpu_multiply", gpu_multiply as *mut c_void),
        ("gpu_sum", gpu_sum as *mut c_void),
        ("gpu_access", gpu_access as *mut c_void),
        ("gpu_access_shared", gpu_access_shared as *mut c_void),
        ("gpu_shared", gpu_shared as *mut c_void),
    ]
}
