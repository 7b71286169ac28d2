//! One launch: the blocks one after the other, and the threads of a block in turns.
//!
//! Each thread is a fiber. Warps run in a random order, each as far as it can get, and so do the threads of a warp: what
//! only works in one order fails in another. A kernel in which no thread ever waits needs no fibers.

use std::collections::BTreeMap;
#[cfg(feature = "gpu")]
use std::ffi::c_void;
use std::sync::Arc;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult};
#[cfg(feature = "gpu")]
use margay_codegen_gpu::host::HostFn;
use margay_kernels_gpu::WARP;

use crate::multiply::{Handed, products};
use crate::ptx::{self, Ptx};
use crate::shadow::Problem;
use crate::thread::{BlockState, Request, Thread};

/// Bytes of the stack of a fiber.
const STACK_BYTES: usize = 64 << 10;

type Fiber = Coroutine<u32, Request, (), DefaultStack>;

/// A kernel that can be launched.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) code: Code,
    /// Whether a thread may wait for others.
    pub(crate) waits: bool,
}

/// What a thread of a kernel does.
#[derive(Clone, Debug)]
pub(crate) enum Code {
    /// Machine code of the processor.
    #[cfg(feature = "gpu")]
    Host(HostFn),
    /// PTX that is interpreted.
    Ptx(Arc<Ptx>),
}

/// The extents of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) blocks: usize,
    pub(crate) threads: usize,
}

/// Numbers in an order that a seed decides: xorshift.
#[derive(Debug)]
pub(crate) struct Order(u64);

impl Order {
    pub(crate) fn new(seed: u64) -> Order {
        Order(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % below
    }

    fn shuffled(&mut self, range: std::ops::Range<usize>) -> Vec<usize> {
        let mut order: Vec<usize> = range.collect();
        for i in (1..order.len()).rev() {
            let j = self.next(i + 1);
            order.swap(i, j);
        }
        order
    }
}

/// Runs a kernel. Returns what was found, or why it does not end.
///
/// # Safety
/// The kernel takes these arguments, and behaves where every access is let through by the calls.
pub(crate) unsafe fn launch(
    kernel: &Kernel,
    shape: Shape,
    args: &[u64],
    mut state: BlockState,
    order: &mut Order,
) -> Result<BTreeMap<(Problem, u32), usize>, String> {
    let mut stacks = Vec::new();
    for number in order.shuffled(0..shape.blocks) {
        state.number = number as u32;
        state.arrays.iter_mut().for_each(|array| array.reset());
        match kernel.waits {
            // SAFETY: as the caller promises.
            false => unsafe { straight(kernel, shape, args, &mut state, order) },
            // SAFETY: as the caller promises.
            true => unsafe { in_turns(kernel, shape, args, &mut state, order, &mut stacks) }?,
        }
    }
    Ok(state.found)
}

/// Calls the kernel for one thread.
///
/// # Safety
/// As for [`launch`]; the thread is one of the launch.
unsafe fn call(code: &Code, thread: *mut Thread, args: &[u64]) {
    match code {
        #[cfg(feature = "gpu")]
        Code::Host(function) => {
            let thread: *const c_void = thread.cast();
            let mut addresses = Vec::with_capacity(1 + args.len());
            addresses.push((&raw const thread).cast::<c_void>());
            addresses.extend(args.iter().map(|arg| std::ptr::from_ref(arg).cast::<c_void>()));
            // SAFETY: the addresses are those of the parameters that the kernel takes.
            unsafe { function(addresses.as_ptr()) };
        }
        // SAFETY: as the caller promises.
        Code::Ptx(code) => unsafe { ptx::run(code, thread, args) },
    }
}

/// Runs the threads of a block one after the other.
///
/// # Safety
/// As for [`launch`].
unsafe fn straight(kernel: &Kernel, shape: Shape, args: &[u64], state: &mut BlockState, order: &mut Order) {
    let state: *mut BlockState = state;
    for number in order.shuffled(0..shape.threads) {
        let mut thread = Thread::new(number, state);
        // SAFETY: as the caller promises.
        unsafe { call(&kernel.code, &mut thread, args) };
    }
}

/// A thread of a block that waits for others.
struct Turn {
    thread: Box<Thread>,
    /// None once the thread has ended.
    fiber: Option<Fiber>,
    request: Option<Request>,
    /// What it is given when it goes on.
    answer: u32,
}

/// Runs the threads of a block in turns.
///
/// # Safety
/// As for [`launch`].
unsafe fn in_turns(
    kernel: &Kernel,
    shape: Shape,
    args: &[u64],
    state: &mut BlockState,
    order: &mut Order,
    stacks: &mut Vec<DefaultStack>,
) -> Result<(), String> {
    let number = state.number;
    let state: *mut BlockState = state;
    let mut turns = Vec::with_capacity(shape.threads);
    for number in 0..shape.threads {
        let mut thread = Box::new(Thread::new(number, state));
        let stack = match stacks.pop() {
            Some(stack) => stack,
            None => DefaultStack::new(STACK_BYTES).map_err(|e| format!("a thread has no stack: {e}"))?,
        };
        let (at, args): (*mut Thread, Vec<u64>) = (&mut *thread, args.to_vec());
        let code = kernel.code.clone();
        let fiber = Fiber::with_stack(stack, move |yielder, _| {
            // SAFETY: the thread outlives its fiber, and as the caller of `launch` promises.
            unsafe {
                (*at).yielder = yielder;
                call(&code, at, &args);
            }
        });
        turns.push(Turn { thread, fiber: Some(fiber), request: None, answer: 0 });
    }
    let result = block(&mut turns, shape, order);
    for turn in turns {
        match turn.fiber {
            // A fiber that has not ended is in the middle of the kernel, which cannot be taken down: its stack is lost.
            Some(fiber) if !fiber.done() => std::mem::forget(fiber),
            Some(fiber) => stacks.push(fiber.into_stack()),
            None => {}
        }
    }
    result.map_err(|problem| format!("block {number}: {problem}"))
}

/// Runs a block until every thread has ended.
fn block(turns: &mut [Turn], shape: Shape, order: &mut Order) -> Result<(), String> {
    let warps = shape.threads.div_ceil(WARP);
    loop {
        for warp in order.shuffled(0..warps) {
            let lanes = warp * WARP..((warp + 1) * WARP).min(shape.threads);
            run_warp(turns, lanes, order)?;
        }
        let ended = turns.iter().filter(|turn| is_done(turn)).count();
        if ended == turns.len() {
            return Ok(());
        }
        if ended > 0 {
            return Err(format!("{ended} threads ended while {} wait at a barrier", turns.len() - ended));
        }
        // Every warp has run as far as it can get, so that all wait here.
        for turn in turns.iter_mut() {
            turn.request = None;
            turn.thread.epoch += 1;
        }
    }
}

fn is_done(turn: &Turn) -> bool {
    turn.fiber.as_ref().is_none_or(Coroutine::done)
}

/// Runs the threads of a warp until all have ended or wait at a barrier.
fn run_warp(turns: &mut [Turn], lanes: std::ops::Range<usize>, order: &mut Order) -> Result<(), String> {
    loop {
        for lane in order.shuffled(lanes.clone()) {
            let turn = &mut turns[lane];
            if is_done(turn) || turn.request.is_some() {
                continue;
            }
            let fiber = turn.fiber.as_mut().expect("a thread that has not ended");
            turn.request = match fiber.resume(turn.answer) {
                CoroutineResult::Yield(request) => Some(request),
                CoroutineResult::Return(()) => None,
            };
        }
        // What a warp does together its threads do at one time.
        let together =
            |turn: &&Turn| matches!(turn.request, Some(Request::Shuffle { .. } | Request::Multiply(_)));
        match turns[lanes.clone()].iter().filter(together).count() {
            0 => return Ok(()),
            WARP => exchange(&mut turns[lanes.clone()])?,
            some => {
                return Err(format!("{some} of the {} threads of a warp exchange values", lanes.len()));
            }
        }
    }
}

/// Gives each thread of a warp what the others handed over for it.
fn exchange(warp: &mut [Turn]) -> Result<(), String> {
    let (mut values, mut handed) = (Vec::new(), Vec::new());
    for turn in warp.iter() {
        match turn.request {
            Some(Request::Shuffle { value, .. }) => values.push(value),
            Some(Request::Multiply(of_thread)) => handed.push(of_thread),
            Some(Request::Barrier) | None => {}
        }
    }
    if values.len() == WARP {
        for (lane, turn) in warp.iter_mut().enumerate() {
            if let Some(Request::Shuffle { distance, .. }) = turn.request.take() {
                turn.answer = values[(lane ^ distance as usize) % WARP];
            }
        }
        return Ok(());
    }
    let handed: &[Handed; WARP] = handed
        .as_slice()
        .try_into()
        .map_err(|_| format!("{} threads of a warp multiply while others exchange values", handed.len()))?;
    if handed.iter().any(|of_thread| of_thread.unit != handed[0].unit) {
        return Err("the threads of a warp multiply numbers of different types".to_owned());
    }
    for (turn, sums) in warp.iter_mut().zip(products(handed)) {
        turn.thread.sums = sums;
        turn.request = None;
    }
    Ok(())
}
