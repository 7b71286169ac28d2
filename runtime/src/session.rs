//! Memory, inputs and outputs of runs.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::Duration;

use margay_artifact::{EntryParts, StepNote};
use margay_loops::Port;
use margay_loops::abi::{BUFFER_ALIGN, SCRATCH_HEADER_BYTES};
use margay_tensor::Tensor;
use memmap2::MmapMut;

use crate::entry::{choose, input_of};
use crate::executable::memory;
use crate::parallel::Context;
use crate::states::States;
use crate::{Executable, Pool, RunError};

/// How a session runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionOptions {
    /// Threads that work on a step, the caller's included; 0 counts as 1.
    pub threads: usize,
}

impl Default for SessionOptions {
    /// As many threads as the machine runs at once.
    fn default() -> SessionOptions {
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        SessionOptions { threads }
    }
}

/// Runs an executable, one run at a time. Owns the memory and the threads for it; independent sessions of one
/// executable share code and constants and may run at once.
pub struct Session {
    executable: Executable,
    pool: Pool,
    threads: usize,
    arena: MmapMut,
    scratch: MmapMut,
    scratch_stride: usize,
    outputs: MmapMut,
    states: States,
    /// Copies of inputs that are not aligned for their element type; empty until there is one.
    staging: MmapMut,
    bases: Bases,
}

/// The pointers handed to a driver; filled anew for every run.
struct Bases(Vec<*mut u8>);

// SAFETY: between runs nobody follows the pointers; during a run the session is borrowed by the thread that runs it.
unsafe impl Send for Bases {}

impl Session {
    /// A session with memory for the largest entry of the executable. Pages are taken from the machine when they are
    /// first used.
    pub fn new(executable: &Executable, options: SessionOptions) -> Result<Session, RunError> {
        let pool = Pool::new(options.threads);
        let threads = pool.threads();
        let entries = executable.entries();
        let most = |bytes: &dyn Fn(usize) -> usize| (0..entries.len()).map(bytes).max().unwrap_or(0);
        let scratch_bytes = most(&|i| entries[i].parts.scratch_bytes);
        // An even number of cache lines, so that threads do not share the pairs that processors fetch together.
        let scratch_stride = (SCRATCH_HEADER_BYTES + scratch_bytes).next_multiple_of(2 * BUFFER_ALIGN);
        let ports = most(&|i| entries[i].parts.inputs.len() + entries[i].parts.outputs.len());
        let huge = executable.huge_pages();
        Ok(Session {
            pool,
            threads,
            arena: memory("intermediate results", most(&|i| entries[i].parts.arena_bytes), huge)?,
            scratch: memory("scratch", scratch_stride.saturating_mul(threads), false)?,
            scratch_stride,
            outputs: memory("outputs", most(&|i| end(&executable.loaded_entry(i).outputs)), huge)?,
            states: States::new(entries, huge)?,
            staging: memory("inputs", 0, false)?,
            bases: Bases(Vec::with_capacity(2 + ports)),
            executable: executable.clone(),
        })
    }

    /// What it runs.
    pub fn executable(&self) -> &Executable {
        &self.executable
    }

    /// Bytes of memory a run needs besides code, constants and the caller's tensors: intermediate results, scratch
    /// of all threads, outputs, states.
    pub fn peak_bytes(&self) -> usize {
        self.arena.len() + self.scratch.len() + self.outputs.len() + self.staging.len() + self.states.bytes()
    }

    /// The names of the states: inputs that every run leaves for the next one. They begin as zeros.
    pub fn states(&self) -> impl Iterator<Item = &str> {
        self.states.names()
    }

    /// Bytes of the states.
    pub fn states_bytes(&self) -> usize {
        self.states.bytes()
    }

    /// What a state holds; `None` if there is none of this name.
    pub fn state(&self, name: &str) -> Option<Tensor> {
        self.states.get(name)
    }

    /// Gives a state its contents.
    pub fn set_state(&mut self, name: &str, value: &Tensor) -> Result<(), RunError> {
        self.states.set(name, value)
    }

    /// Runs the entry that takes these inputs, given by name in any order, and returns its outputs in the order of
    /// the model. The inputs are only read.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, RunError> {
        let outputs = self.run_in_place(inputs)?;
        Ok(outputs.iter().map(|(port, _)| port.name.clone()).zip(outputs.tensors()).collect())
    }

    /// Like [`run`](Session::run) without copies of the outputs: they are the session's until its next run.
    /// Allocates nothing from the second run with the same inputs on.
    pub fn run_in_place(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Outputs<'_>, RunError> {
        let index = choose(self.executable.entries().iter(), inputs)?;
        self.run_entry(index, inputs, None)?;
        Ok(Outputs {
            parts: &self.executable.entries()[index].parts,
            areas: &self.executable.loaded_entry(index).outputs,
            bytes: &self.outputs,
        })
    }

    /// Runs like [`run_in_place`](Session::run_in_place) and takes the time of every step, as all threads together
    /// spend it on the clock. What is between the steps is not in it, and reading the clock adds to each.
    pub fn profile(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(StepNote, Duration)>, RunError> {
        let index = choose(self.executable.entries().iter(), inputs)?;
        let steps = self.executable.entries()[index].parts.steps.clone();
        let mut times = vec![Duration::ZERO; steps.iter().map(|s| s.regions).sum()];
        self.run_entry(index, inputs, Some(&mut times))?;
        let mut times = times.into_iter();
        let time = |note: StepNote| {
            let spent = times.by_ref().take(note.regions).sum();
            (note, spent)
        };
        Ok(steps.into_iter().map(time).collect())
    }

    fn run_entry(
        &mut self,
        index: usize,
        inputs: &[(&str, &Tensor)],
        times: Option<&mut [Duration]>,
    ) -> Result<(), RunError> {
        self.fill_bases(index, inputs)?;
        let driver = self.executable.driver(index);
        let table = self.executable.loaded_entry(index).table.as_ptr();
        let parts = &self.executable.entries()[index].parts;
        let mut context = Context {
            pool: &mut self.pool,
            scratch: self.scratch.as_mut_ptr(),
            stride: self.scratch_stride,
            threads: self.threads,
            times,
            fault: 0,
        };
        context.write_headers(self.executable.rows());
        // SAFETY: the table holds the functions that the entry names, of this architecture and of a class that the
        // processor supports; the context is what `parallel` expects; the bases point at memory of the sizes that the
        // entry asks for, aligned as `abi` says; nobody else uses that memory until the driver returns.
        // That the code keeps to it is the trust that loading an executable asks for.
        unsafe {
            let context = (&raw mut context).cast::<u8>();
            driver(table, context, self.bases.0.as_ptr(), parts.params.as_ptr());
        }
        match context.fault {
            0 => Ok(()),
            word => Err(fault(word, &parts.steps)),
        }
    }

    /// Points the bases at the memory of a run; copies inputs that are not aligned for their element type.
    fn fill_bases(&mut self, index: usize, inputs: &[(&str, &Tensor)]) -> Result<(), RunError> {
        let entry = self.executable.loaded_entry(index);
        let parts = &self.executable.entries()[index].parts;
        let misaligned =
            |t: &Tensor| !t.bytes().as_ptr().cast::<u8>().addr().is_multiple_of(t.dtype().bytes());
        if inputs.iter().any(|(_, t)| misaligned(t)) && self.staging.len() < end(&entry.inputs) {
            let most = self.executable.loaded_entries().iter().map(|e| end(&e.inputs)).max();
            self.staging = memory("inputs", most.unwrap_or(0), false)?;
        }
        let bases = &mut self.bases.0;
        bases.clear();
        bases.push(self.arena.as_mut_ptr());
        bases.push(self.executable.weights().as_ptr().cast_mut());
        for (i, (port, area)) in parts.inputs.iter().zip(&entry.inputs).enumerate() {
            if parts.carried.iter().any(|c| c.input == i) {
                bases.push(self.states.pointer(port));
                continue;
            }
            let tensor = input_of(port, inputs).expect("the entry was chosen because it takes these inputs");
            if misaligned(tensor) {
                self.staging[area.clone()].copy_from_slice(tensor.bytes());
                bases.push(self.staging[area.clone()].as_mut_ptr());
            } else {
                bases.push(tensor.bytes().as_ptr().cast_mut());
            }
        }
        let outputs = self.outputs.as_mut_ptr();
        for (i, area) in entry.outputs.iter().enumerate() {
            bases.push(match parts.carried.iter().find(|c| c.output == i) {
                Some(c) => self.states.pointer(&parts.inputs[c.input]),
                None => outputs.wrapping_add(area.start),
            });
        }
        Ok(())
    }
}

/// Where the last of several areas ends.
fn end(areas: &[Range<usize>]) -> usize {
    areas.last().map_or(0, |a| a.end)
}

fn fault(word: u64, steps: &[StepNote]) -> RunError {
    let step = usize::try_from(word - 1).ok();
    let label = step.and_then(|s| steps.get(s)).map(|s| &s.label).filter(|label| !label.is_empty());
    RunError::Fault { step: label.cloned().unwrap_or_else(|| format!("step {}", word - 1)) }
}

/// The outputs of a run, in the memory of the session.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'s> {
    parts: &'s EntryParts,
    areas: &'s [Range<usize>],
    bytes: &'s [u8],
}

impl<'s> Outputs<'s> {
    /// Every output with its little-endian row-major bytes, aligned to 64 bytes, in the order of the model.
    pub fn iter(&self) -> impl Iterator<Item = (&'s Port, &'s [u8])> + use<'s> {
        let (bytes, areas) = (self.bytes, self.areas);
        self.parts.returned().map(move |(i, port)| (port, &bytes[areas[i].clone()]))
    }

    /// Copies of the outputs.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> + use<'s> {
        self.iter().map(|(port, bytes)| {
            Tensor::from_bytes(port.dtype, &port.shape, bytes).expect("areas have the sizes of their ports")
        })
    }
}
