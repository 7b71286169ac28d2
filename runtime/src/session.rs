//! Memory, inputs and outputs of runs.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::Duration;

use margay_artifact::{EntryParts, StepNote};
use margay_loops::{Open, Port};
use margay_tensor::Tensor;
use memmap2::MmapMut;

use crate::cpu::pages;
use crate::device::{Address, Fault, Memory, Purpose, Queue};
use crate::entry::{choose, input_of};
use crate::states::States;
use crate::{Executable, RunError};

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
    queue: Box<dyn Queue>,
    arena: Box<dyn Memory>,
    outputs: Box<dyn Memory>,
    /// Copies of the outputs, where the host cannot read the memory of the device.
    copies: Option<MmapMut>,
    states: States,
    /// Copies of inputs that the device does not read where they lie; nothing until there is one.
    staging: Option<Box<dyn Memory>>,
    bases: Vec<Address>,
    /// What the last run found open.
    now: Now,
    /// The values of the symbols that the inputs of a run ask for.
    asked: Vec<i64>,
}

/// The values of what an entry leaves open.
#[derive(Default)]
struct Now {
    /// The entry; `None` before the first run of an open one.
    entry: Option<usize>,
    symbols: Vec<i64>,
    sizes: Vec<i64>,
    /// The outputs of the entry with their extents, which a run may decide.
    outputs: Vec<Port>,
}

impl Session {
    /// A session with memory for the largest entry of the executable. Pages are taken from the machine when they are
    /// first used.
    pub fn new(executable: &Executable, options: SessionOptions) -> Result<Session, RunError> {
        Session::with_memory(executable, options).map_err(|error| error.of_all(executable.planned_bytes()))
    }

    fn with_memory(executable: &Executable, options: SessionOptions) -> Result<Session, RunError> {
        let mut queue = executable.module().queue(options.threads)?;
        let entries = executable.entries();
        let most = |bytes: &dyn Fn(usize) -> usize| (0..entries.len()).map(bytes).max().unwrap_or(0);
        let ports = most(&|i| entries[i].parts.inputs.len() + entries[i].parts.outputs.len());
        let arena_bytes = most(&|i| executable.section(i).parts.arena_bytes);
        let outputs = queue.allocate(Purpose::Outputs, most(&|i| end(&executable.ports()[i].outputs)))?;
        let copies = match outputs.host() {
            Some(_) => None,
            None => Some(pages("outputs", outputs.bytes(), false)?),
        };
        Ok(Session {
            arena: queue.allocate(Purpose::Arena, arena_bytes)?,
            outputs,
            copies,
            states: States::new(entries, &mut *queue, executable.device().buffer_align())?,
            staging: None,
            bases: Vec::with_capacity(1 + ports),
            now: Now::default(),
            asked: Vec::new(),
            queue,
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
        let staging = self.staging.as_ref().map_or(0, |m| m.bytes());
        self.arena.bytes() + self.queue.own_bytes() + self.outputs.bytes() + staging + self.states.bytes()
    }

    /// Whether the host waits for each step of a device, so that one that fails is told with its step, and not with all that were
    /// submitted together. Runs take longer.
    pub fn wait_for_each_step(&mut self, waits: bool) {
        self.queue.wait_for_each_step(waits);
    }

    /// The names of the states: inputs that every run leaves for the next one. They begin as zeros.
    pub fn states(&self) -> impl Iterator<Item = &str> {
        self.states.names()
    }

    /// Bytes of the states.
    pub fn states_bytes(&self) -> usize {
        self.states.bytes()
    }

    /// What a state holds.
    ///
    /// # Errors
    /// [`RunError::State`] if there is none of this name, [`RunError::Device`] if it cannot be read.
    pub fn state(&self, name: &str) -> Result<Tensor, RunError> {
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
        let index = self.run_entry(inputs, false)?;
        if let Some(copies) = &mut self.copies {
            self.outputs.read(0, &mut copies[..end(&self.executable.ports()[index].outputs)])?;
        }
        self.count(index);
        let parts = &self.executable.entries()[index].parts;
        Ok(Outputs {
            parts,
            ports: if is_fixed(parts) { &parts.outputs } else { &self.now.outputs },
            areas: &self.executable.ports()[index].outputs,
            bytes: self.copies.as_deref().or_else(|| self.outputs.host()).unwrap_or_default(),
        })
    }

    /// Runs like [`run_in_place`](Session::run_in_place) and takes the time of every step, as all threads together
    /// spend it on the clock. What is between the steps is not in it, and reading the clock adds to each. Operations and
    /// bytes of the steps of an entry for a range are those of its greatest extents.
    pub fn profile(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(StepNote, Duration)>, RunError> {
        let index = self.run_entry(inputs, true)?;
        let mut times = self.queue.times().iter();
        let time = |note: &StepNote| (note.clone(), times.by_ref().take(note.regions).sum());
        Ok(self.executable.section(index).parts.steps.iter().map(time).collect())
    }

    /// How long the last run took by the clock of the device, from its first copy to its last; `None` before a run and where
    /// the device has no clock of its own, as the processor.
    pub fn device_time(&self) -> Option<Duration> {
        self.queue.device_time()
    }

    /// Runs the entry that takes these inputs, and says which it is.
    fn run_entry(&mut self, inputs: &[(&str, &Tensor)], timed: bool) -> Result<usize, RunError> {
        let index = choose(self.executable.entries().iter(), inputs, &mut self.asked)?;
        self.resolve(index)?;
        self.fill_bases(index, inputs)?;
        let closed = self.executable.entries()[index].parts.open.is_closed();
        let sizes: &[i64] = if closed { &[] } else { &self.now.sizes };
        // SAFETY: the sizes are those at values that the entry serves, as `choose` has seen. The addresses are those of
        // memory that the queue allocated, of the bytes that the entry asks for and aligned as the device says, and of
        // inputs that it borrowed; all of it outlives the run, and nobody else writes there as long as the session and
        // the inputs are borrowed.
        unsafe { self.queue.launch(index, sizes, &self.bases, timed) };
        let steps = &self.executable.section(index).parts.steps;
        self.queue.synchronise().map_err(|failed| fault(failed, steps))?;
        Ok(index)
    }

    /// Works out sizes and ports where an entry is open and its symbols have other values than in the last run.
    fn resolve(&mut self, index: usize) -> Result<(), RunError> {
        let parts = &self.executable.entries()[index].parts;
        let same = self.now.entry == Some(index) && self.now.symbols == self.asked;
        if is_fixed(parts) || same {
            return Ok(());
        }
        if parts.open.is_closed() {
            let outputs = parts.outputs.clone();
            self.now = Now { entry: Some(index), symbols: self.asked.clone(), outputs, ..Now::default() };
            return Ok(());
        }
        let problem = || RunError::Program { problem: format!("a size has no value at {:?}", self.asked) };
        let sizes = parts.open.sizes_at(&self.asked).ok_or_else(problem)?;
        // No extent is beyond that which memory was taken for.
        Open::ports_at(&parts.inputs, &parts.open.inputs, &sizes).ok_or_else(problem)?;
        let outputs = Open::ports_at(&parts.outputs, &parts.open.outputs, &sizes).ok_or_else(problem)?;
        self.now = Now { entry: Some(index), symbols: self.asked.clone(), sizes, outputs };
        Ok(())
    }

    /// Gives outputs the extents that the run decided, never more than there is room for.
    fn count(&mut self, index: usize) {
        let parts = &self.executable.entries()[index].parts;
        let areas = &self.executable.ports()[index].outputs;
        let bytes = self.copies.as_deref().or_else(|| self.outputs.host()).unwrap_or_default();
        let sizes = &self.now.sizes;
        for c in &parts.counted {
            let count = bytes.get(areas[c.count].clone()).and_then(|area| area.first_chunk());
            let most =
                parts.open.outputs.get(c.output).and_then(|axes| axes.iter().find(|(a, _)| *a == c.axis));
            let most = match most {
                Some((_, size)) => usize::try_from(sizes[size.0 as usize]).unwrap_or(0),
                None => parts.outputs[c.output].shape[c.axis],
            };
            let count = usize::try_from(i64::from_le_bytes(*count.unwrap_or(&[0; 8]))).unwrap_or(0);
            self.now.outputs[c.output].shape[c.axis] = count.min(most);
        }
    }

    /// Fills in the addresses of the memory of a run; copies inputs that the device does not read where they lie.
    fn fill_bases(&mut self, index: usize, inputs: &[(&str, &Tensor)]) -> Result<(), RunError> {
        let (areas, parts) = (&self.executable.ports()[index], &self.executable.entries()[index].parts);
        self.bases.clear();
        self.bases.push(self.arena.address());
        for (i, (port, area)) in parts.inputs.iter().zip(&areas.inputs).enumerate() {
            if parts.carried.iter().any(|c| c.input == i) {
                self.bases.push(self.states.address(port));
                continue;
            }
            let tensor = input_of(port, inputs).expect("the entry was chosen because it takes these inputs");
            let borrowed = self.queue.borrow(tensor.bytes(), tensor.dtype().bytes());
            self.bases.push(match (borrowed, &mut self.staging) {
                (Some(address), _) => address,
                (None, Some(staging)) => {
                    staging.write(area.start, tensor.bytes())?;
                    staging.address().offset(area.start)
                }
                (None, none) => {
                    let most = self.executable.ports().iter().map(|p| end(&p.inputs)).max();
                    let staging = self.queue.allocate(Purpose::Inputs, most.unwrap_or(0));
                    let staging = staging.map_err(|error| error.of_all(self.executable.planned_bytes()))?;
                    let staging = none.insert(staging);
                    staging.write(area.start, tensor.bytes())?;
                    staging.address().offset(area.start)
                }
            });
        }
        for (i, area) in areas.outputs.iter().enumerate() {
            self.bases.push(match parts.carried.iter().find(|c| c.output == i) {
                Some(c) => self.states.address(&parts.inputs[c.input]),
                None => self.outputs.address().offset(area.start),
            });
        }
        Ok(())
    }
}

/// Whether the extents of the outputs of an entry are always the same.
fn is_fixed(parts: &EntryParts) -> bool {
    parts.open.is_closed() && parts.counted.is_empty()
}

/// Where the last of several areas ends.
fn end(areas: &[Range<usize>]) -> usize {
    areas.last().map_or(0, |a| a.end)
}

/// The nodes of a step.
fn label(steps: &[StepNote], step: usize) -> Option<String> {
    steps.get(step).map(|note| note.label.clone()).filter(|label| !label.is_empty())
}

/// What an artifact does not say, as its numbers.
fn fault(fault: Fault, steps: &[StepNote]) -> RunError {
    let (step, requirement) = match fault {
        Fault::Requirement { step, requirement } => (step, requirement),
        Fault::Within { steps: range, fault } => {
            let words = |step: usize| match label(steps, step) {
                Some(label) => format!("{step} (`{label}`)"),
                None => step.to_string(),
            };
            return RunError::from(*fault).within(range, &words);
        }
        Fault::Code(_) | Fault::Kernel(_) | Fault::Device(_) => return fault.into(),
    };
    let note = steps.get(step);
    let label = label(steps, step);
    let required = note.and_then(|s| s.requirements.get(requirement)).cloned();
    RunError::Fault {
        step: label.unwrap_or_else(|| format!("step {step}")),
        requirement: required.unwrap_or_else(|| format!("its requirement {requirement}")),
    }
}

/// The outputs of a run, in the memory of the session.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'s> {
    parts: &'s EntryParts,
    ports: &'s [Port],
    areas: &'s [Range<usize>],
    bytes: &'s [u8],
}

impl<'s> Outputs<'s> {
    /// Every output with its little-endian row-major bytes, aligned to 64 bytes, in the order of the model.
    pub fn iter(&self) -> impl Iterator<Item = (&'s Port, &'s [u8])> + use<'s> {
        let (bytes, areas, ports) = (self.bytes, self.areas, self.ports);
        self.parts.returned().map(move |(i, _)| (&ports[i], &bytes[areas[i].start..][..ports[i].bytes()]))
    }

    /// Copies of the outputs.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> + use<'s> {
        self.iter().map(|(port, bytes)| {
            Tensor::from_bytes(port.dtype, &port.shape, bytes).expect("areas have the sizes of their ports")
        })
    }
}
