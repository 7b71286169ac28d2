//! The steps of one run.
//!
//! Truth values and numbers of repetitions that a run computes are *decisions* of the host: it waits for the stream and reads
//! them. Steps between two decisions are captured once and launched as one graph from then on. Loops of a known number of
//! repetitions are unrolled, up to [`MOST_UNROLLED`] operations. Where nothing is decided the whole run is one graph, with the copies of
//! inputs and outputs, and the host waits once, at the end.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use margay_kernels_gpu::LaunchArg;
use margay_loops::{BufferId, Extent, Loop, Operand, Place, Program, Step, Work, walk};

use super::driver::{EventId, LaunchForm, Region, StreamId};
use super::owned::{self, Mirrored, Pinned};
use super::queue::{Captured, DECISION_BYTES, Events, FAULT_BYTES, Part};
use super::{Loaded, Shared};
use crate::device::{Address, Fault};

/// The most operations of a loop that is unrolled.
const MOST_UNROLLED: usize = 4096;

/// Where the events around steps go, each pair with the number of its step.
pub(super) type Timed<'r> = (&'r mut Events, &'r mut Vec<(usize, EventId, EventId)>);

/// A run that is submitted.
pub(super) struct Run<'r> {
    pub(super) shared: &'r Shared,
    pub(super) loaded: &'r Loaded,
    pub(super) program: &'r Program,
    pub(super) sizes: &'r [i64],
    pub(super) bases: &'r [Address],
    pub(super) stream: StreamId,
    pub(super) fault: u64,
    pub(super) words: &'r Pinned,
    pub(super) mirrored: &'r [Arc<Mirrored>],
    /// The graphs of runs like this one; `None` where nothing is captured.
    pub(super) captured: Option<&'r mut Captured>,
    pub(super) timed: Option<Timed<'r>>,
    /// Whether the host waits for each step.
    pub(super) waits: bool,
    /// The steps that were submitted since the device was last known to be well.
    pub(super) pending: &'r mut Option<RangeInclusive<usize>>,
    pub(super) args: Vec<u64>,
    pub(super) regions: Vec<Region>,
}

impl<'r> Run<'r> {
    /// Submits all of it.
    ///
    /// # Safety
    /// As for [`Queue::launch`](crate::device::Queue::launch).
    pub(super) unsafe fn submit(mut self) -> Result<(), Fault> {
        let program = self.program;
        let is_decided = self.straight_steps(&program.body, 0) < program.body.len();
        // SAFETY: as the caller promises.
        unsafe {
            match is_decided {
                false => self.part(Part::Run, 0..walk(&program.body).count(), &mut |run| {
                    run.begin()?;
                    run.straight(&program.body, 0)?;
                    run.end()
                }),
                true => {
                    self.begin()?;
                    self.block(&program.body, 0)?;
                    self.end()
                }
            }
        }
    }

    /// Clears the word for faults and brings the inputs to the device.
    fn begin(&mut self) -> Result<(), Fault> {
        let driver = &self.shared.driver;
        driver.fill(self.stream, self.fault, 0, FAULT_BYTES / 4)?;
        for (port, base) in self.program.inputs.iter().zip(&self.bases[1..]) {
            let bytes = port.bytes();
            let mut copies = self.mirrored.iter().filter_map(|m| m.copy_of(base.0, bytes));
            if let (Some(from), true) = (copies.next(), bytes > 0) {
                // SAFETY: the copy is page-locked memory of so many bytes. It outlives the queue's graphs, and the session
                // changes it only when a run has ended.
                unsafe { driver.upload(self.stream, base.0, from, bytes) }?;
            }
        }
        // A copy that fails is no fault of the first step.
        if self.waits { self.wait() } else { Ok(()) }
    }

    /// Brings the outputs and the word for faults to the host.
    fn end(&mut self) -> Result<(), Fault> {
        let driver = &self.shared.driver;
        let outputs = &self.bases[1 + self.program.inputs.len()..];
        for (port, base) in self.program.outputs.iter().zip(outputs) {
            let bytes = port.bytes();
            let mut copies = self.mirrored.iter().filter_map(|m| m.copy_of(base.0, bytes));
            if let (Some(to), true) = (copies.next(), bytes > 0) {
                // SAFETY: as for inputs; the session reads it when the run has ended.
                unsafe { driver.download(self.stream, base.0, to, bytes) }?;
            }
        }
        // SAFETY: as above, of memory of the queue.
        unsafe { driver.download(self.stream, self.fault, self.words.pointer(0, FAULT_BYTES), FAULT_BYTES) }
    }

    /// How many operations a step submits; `None` if the host decides in it. `number` is that of the step.
    fn operations(&self, step: &Step, number: usize) -> Option<usize> {
        match &step.work {
            Work::Kernel { .. } | Work::Call { .. } => Some(self.loaded.steps[number].len()),
            Work::Copy { .. } => Some(1),
            Work::If { .. } => None,
            Work::Loop(l) => {
                let trips = self.known_trips(l).filter(|_| l.condition.is_none())?;
                let (mut inside, mut number) = (2, number + 1);
                for step in &l.body {
                    inside += self.operations(step, number)?;
                    number += count(step);
                }
                Some(trips.checked_mul(inside)?).filter(|n| *n <= MOST_UNROLLED)
            }
        }
    }

    /// How many steps at the begin of a list, the first of which has a number, are without a decision of the host.
    fn straight_steps(&self, steps: &[Step], mut number: usize) -> usize {
        let is_straight = |step: &&Step| {
            let of_step = number;
            number += count(step);
            self.operations(step, of_step).is_some()
        };
        steps.iter().take_while(is_straight).count()
    }

    /// Submits a list of steps, the first of which has a number.
    ///
    /// # Safety
    /// As for [`submit`](Run::submit).
    unsafe fn block(&mut self, mut steps: &'r [Step], mut number: usize) -> Result<(), Fault> {
        while !steps.is_empty() {
            let (before, rest) = steps.split_at(self.straight_steps(steps, number));
            let next = number + walk(before).count();
            if !before.is_empty() {
                // SAFETY: as the caller promises.
                unsafe {
                    self.part(Part::Steps(number), number..next, &mut |run| run.straight(before, number))
                }?;
            }
            (steps, number) = (rest, next);
            if let Some((step, rest)) = steps.split_first() {
                // SAFETY: as the caller promises.
                unsafe { self.step(step, number) }?;
                (steps, number) = (rest, number + count(step));
            }
        }
        Ok(())
    }

    /// Remembers that steps of these numbers are submitted.
    fn submits(&mut self, steps: Range<usize>) {
        if let Some(last) = steps.end.checked_sub(1).filter(|last| *last >= steps.start) {
            let known = self.pending.take();
            let (begin, end) = known.map_or((steps.start, last), |all| (*all.start(), *all.end()));
            *self.pending = Some(begin.min(steps.start)..=end.max(last));
        }
    }

    /// Waits for what was submitted.
    fn wait(&mut self) -> Result<(), Fault> {
        let ended = self.shared.driver.synchronise(self.stream);
        ended.map_err(|fault| fault.within(self.pending.clone()))?;
        *self.pending = None;
        Ok(())
    }

    /// Submits what `submit` does, of steps of these numbers: as a graph, which is captured if there is none yet, or operation by
    /// operation.
    ///
    /// # Safety
    /// As for [`submit`](Run::submit); `submit` submits the same operations each time and waits for nothing.
    unsafe fn part(
        &mut self,
        part: Part,
        steps: Range<usize>,
        submit: &mut dyn FnMut(&mut Self) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (shared, stream) = (self.shared, self.stream);
        if self.captured.is_some() {
            self.submits(steps);
        }
        // Without a graph each step says when it is submitted.
        let Some(captured) = self.captured.as_ref() else { return submit(self) };
        let graph = match captured.get(part) {
            Some(graph) => graph,
            None => {
                shared.driver.begin_capture(stream)?;
                let submitted = submit(self);
                // The stream is of use again only when the capture has ended.
                let graph = shared.driver.end_capture(stream);
                let graph = graph.map(|graph| owned::graph(&shared.driver, graph));
                submitted?;
                let graph = graph?;
                let id = graph.id;
                if let Some(captured) = &mut self.captured {
                    captured.add(part, graph);
                }
                id
            }
        };
        // SAFETY: kernels and memory outlive the queue, which owns the graph; otherwise as the caller promises.
        unsafe { shared.driver.launch_graph(graph, stream) }
    }

    /// Submits steps in which the host decides nothing, unless times are taken.
    ///
    /// # Safety
    /// As for [`submit`](Run::submit).
    unsafe fn straight(&mut self, steps: &'r [Step], mut number: usize) -> Result<(), Fault> {
        for step in steps {
            // SAFETY: as the caller promises.
            unsafe { self.step(step, number) }?;
            number += count(step);
        }
        Ok(())
    }

    /// # Safety
    /// As for [`submit`](Run::submit).
    unsafe fn step(&mut self, step: &'r Step, number: usize) -> Result<(), Fault> {
        let begin = match step.blocks().is_empty() {
            true => self.event()?,
            false => None,
        };
        // Of a loop or a choice the steps inside are submitted.
        if step.blocks().is_empty() {
            self.submits(number..number + 1);
        }
        match &step.work {
            Work::Kernel { kernel, args } => {
                let kernel = &self.program.kernels[*kernel];
                let of = |i: usize| (kernel.args[i].dtype.bytes(), kernel.args[i].written);
                // SAFETY: as the caller promises.
                unsafe { self.launches(number, args, &of) }
            }
            Work::Call { call, args, .. } => {
                let formal = call.args();
                // Behind the arguments of a call there is its workspace.
                let of = |i: usize| formal.get(i).map_or((1, true), |arg| (arg.dtype.bytes(), arg.written));
                // SAFETY: as the caller promises.
                unsafe { self.launches(number, args, &of) }
            }
            Work::Copy { bytes: 0, .. } => Ok(()),
            Work::Copy { from, to, bytes } => {
                let (from, to) = (self.address(*from), self.address(*to));
                let copied = self.shared.driver.copy(self.stream, from, to, *bytes);
                copied.map_err(|fault| fault.at(format_args!("step {number}")))
            }
            Work::If { test, then, otherwise } => {
                let (steps, first) = match self.truth(*test)? {
                    true => (then, number + 1),
                    false => (otherwise, number + 1 + walk(then).count()),
                };
                // SAFETY: as the caller promises.
                unsafe { self.block(steps, first) }
            }
            // SAFETY: as the caller promises.
            Work::Loop(l) => unsafe { self.repeat(l, step, number) },
        }?;
        if self.waits {
            self.wait()?;
        }
        if let (Some(begin), Some(end)) = (begin, self.event()?)
            && let Some((_, around)) = &mut self.timed
        {
            around.push((number, begin, end));
        }
        Ok(())
    }

    /// # Safety
    /// As for [`submit`](Run::submit).
    unsafe fn repeat(&mut self, l: &'r Loop, step: &'r Step, number: usize) -> Result<(), Fault> {
        let is_straight = self.operations(step, number).is_some();
        let trips = match (l.trips, self.known_trips(l)) {
            (_, Some(trips)) => trips,
            (Extent::Read { from, bound }, None) => {
                let word = i64::from_le_bytes(self.read(from, 8)?);
                usize::try_from(word).unwrap_or(0).min(bound)
            }
            (Extent::Known(_) | Extent::Sized { .. }, None) => unreachable!("these are known"),
        };
        for i in 0..trips {
            if let Some(condition) = l.condition
                && !self.truth(condition)?
            {
                break;
            }
            if let Some(counter) = l.counter {
                let (to, i) = (self.address(counter), i as u64);
                self.shared.driver.fill(self.stream, to, i as u32, 1)?;
                self.shared.driver.fill(self.stream, to + 4, (i >> 32) as u32, 1)?;
            }
            // SAFETY: as the caller promises.
            unsafe {
                match is_straight {
                    true => self.straight(&l.body, number + 1),
                    false => self.block(&l.body, number + 1),
                }
            }?;
        }
        Ok(())
    }

    /// An event behind what was submitted, if times are taken.
    fn event(&mut self) -> Result<Option<EventId>, Fault> {
        let Some((events, _)) = &mut self.timed else { return Ok(None) };
        let event = events.next(self.shared)?;
        self.shared.driver.record(event, self.stream)?;
        Ok(Some(event))
    }

    /// Launches the kernels of a step. `of` says how large the elements of an argument are, and whether it is written.
    ///
    /// # Safety
    /// As for [`submit`](Run::submit).
    unsafe fn launches(
        &mut self,
        number: usize,
        operands: &[Operand],
        of: &dyn Fn(usize) -> (usize, bool),
    ) -> Result<(), Fault> {
        let mut regions = std::mem::take(&mut self.regions);
        regions.clear();
        regions.extend(operands.iter().enumerate().map(|(i, operand)| {
            let buffer = &self.program.buffers[operand.buffer.0];
            let (element, written) = of(i);
            Region { address: self.base(operand.buffer), bytes: buffer.bytes, element, written }
        }));
        regions.push(Region { address: self.fault, bytes: FAULT_BYTES, element: FAULT_BYTES, written: true });
        let mut args = std::mem::take(&mut self.args);
        let mut result = Ok(());
        for launch in &self.loaded.steps[number] {
            args.clear();
            args.extend(launch.args.iter().map(|arg| match arg {
                LaunchArg::Operand(i) => self.address(operands[*i]),
                LaunchArg::Fault => self.fault,
                LaunchArg::Word(word) => *word,
                LaunchArg::Size(size) => self.sizes[*size as usize] as u64,
            }));
            let form = LaunchForm {
                stream: self.stream,
                step: number,
                blocks: launch.blocks,
                threads: launch.threads,
                args: &args,
                regions: &regions,
            };
            // SAFETY: the back end wrote which arguments the kernel takes; regions are buffers of the program, in memory
            // that the caller promises. The queue, which owns the graphs, holds the kernels.
            result = unsafe { self.loaded.kernels[launch.module].launch(&form) };
            if result.is_err() {
                break;
            }
        }
        (self.args, self.regions) = (args, regions);
        result.map_err(|fault| fault.at(format_args!("step {number}")))
    }

    fn base(&self, buffer: BufferId) -> u64 {
        let inputs = self.program.inputs.len();
        match self.program.buffers[buffer.0].place {
            Place::Arena(at) => self.bases[0].offset(at).0,
            Place::Input(i) => self.bases[1 + i].0,
            Place::Output(i) => self.bases[1 + inputs + i].0,
            Place::Constant(i) => self.shared.weights.address + self.loaded.constants[i] as u64,
        }
    }

    fn address(&self, operand: Operand) -> u64 {
        self.base(operand.buffer) + operand.offset_bytes as u64
    }

    /// Waits for what was submitted, and reads up to 8 bytes; the others are 0.
    fn read(&mut self, from: Operand, bytes: usize) -> Result<[u8; DECISION_BYTES], Fault> {
        let (driver, to) = (&self.shared.driver, self.words.pointer(FAULT_BYTES, DECISION_BYTES));
        // SAFETY: page-locked memory of the queue; nobody reads it before the wait.
        unsafe { driver.download(self.stream, self.address(from), to, bytes) }?;
        self.wait()?;
        let mut word = [0; DECISION_BYTES];
        // SAFETY: the copy has ended; it wrote that many bytes.
        unsafe { std::ptr::copy_nonoverlapping(to, word.as_mut_ptr(), bytes) };
        Ok(word)
    }

    fn truth(&mut self, operand: Operand) -> Result<bool, Fault> {
        Ok(self.read(operand, 1)?[0] != 0)
    }

    /// The repetitions of a loop, where no run decides them.
    fn known_trips(&self, l: &Loop) -> Option<usize> {
        match l.trips {
            Extent::Known(n) => Some(n),
            Extent::Sized { size, most, .. } => {
                Some(usize::try_from(self.sizes[size.0 as usize]).unwrap_or(0).min(most))
            }
            Extent::Read { .. } => None,
        }
    }
}

/// A step and those inside it.
fn count(step: &Step) -> usize {
    walk(std::slice::from_ref(step)).count()
}
