//! The stream of a session: its graphs, its events, and the memory by which host and device exchange inputs, outputs and
//! faults.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use margay_kernels_gpu::fault_of;
use margay_loops::Program;

use super::Shared;
use super::driver::{EventId, GraphId, StreamId};
use super::owned::{self, Block, Mirrored, MirroredMemory, Owned, Pinned};
use super::run::Run;
use crate::RunError;
use crate::device::{Address, Fault, Memory, Purpose, Queue};

/// Bytes of the word for faults.
pub(super) const FAULT_BYTES: usize = 8;
/// The most bytes that a decision of the host depends on.
pub(super) const DECISION_BYTES: usize = 8;
/// The most sets of graphs that a queue keeps; the one that was not used for longest is dropped.
const MOST_CAPTURED: usize = 16;

/// The graphs of an entry where its sizes and the addresses of its memory have certain values.
pub(super) struct Captured {
    entry: usize,
    sizes: Vec<i64>,
    bases: Vec<Address>,
    /// Each with what it holds.
    graphs: Vec<(Part, Owned<GraphId>)>,
}

/// The part of a run that a graph holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// All of it, with the copies of inputs and outputs.
    Run,
    /// The steps from that of a number on, up to a decision of the host.
    Steps(usize),
}

impl Captured {
    pub(super) fn get(&self, part: Part) -> Option<GraphId> {
        self.graphs.iter().find(|(known, _)| *known == part).map(|(_, graph)| graph.id)
    }

    pub(super) fn add(&mut self, part: Part, graph: Owned<GraphId>) {
        self.graphs.push((part, graph));
    }
}

/// Events of a run whose times are taken.
#[derive(Default)]
pub(super) struct Events {
    all: Vec<Owned<EventId>>,
    used: usize,
}

impl Events {
    /// An event that was not used since [`restart`](Events::restart).
    pub(super) fn next(&mut self, shared: &Shared) -> Result<EventId, Fault> {
        if self.used == self.all.len() {
            self.all.push(owned::event(&shared.driver)?);
        }
        self.used += 1;
        Ok(self.all[self.used - 1].id)
    }

    fn restart(&mut self) {
        self.used = 0;
    }
}

/// Where one session runs.
pub(super) struct GpuQueue {
    shared: Arc<Shared>,
    stream: Owned<StreamId>,
    /// The last used one last.
    captured: Vec<Captured>,
    events: Events,
    /// Around the last run.
    begun_and_ended: [Owned<EventId>; 2],
    /// Events around each step of the last run, by its number, if times were taken.
    around: Vec<(usize, EventId, EventId)>,
    fault: Block,
    /// Copies of the word for faults and of what decides.
    words: Pinned,
    mirrored: Vec<Arc<Mirrored>>,
    /// The program of an open entry where its sizes have certain values: that of the last run.
    closed: Option<(usize, Vec<i64>, Arc<Program>)>,
    done: Result<(), Fault>,
    times: Vec<Duration>,
    device_time: Option<Duration>,
    /// The entry of the last run, if times of steps were taken.
    timed: Option<usize>,
    /// Whether the host waits for each step.
    waits: bool,
    /// The steps that were submitted since the device was last known to be well.
    pending: Option<RangeInclusive<usize>>,
}

impl fmt::Debug for GpuQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GpuQueue")
    }
}

impl Drop for GpuQueue {
    fn drop(&mut self) {
        // Nothing is given back that an operation still uses. A device that has failed runs nothing.
        let _ = self.shared.driver.synchronise(self.stream.id);
    }
}

impl GpuQueue {
    pub(super) fn new(shared: &Arc<Shared>) -> Result<GpuQueue, RunError> {
        let driver = &shared.driver;
        Ok(GpuQueue {
            stream: owned::stream(driver)?,
            captured: Vec::new(),
            events: Events::default(),
            begun_and_ended: [owned::event(driver)?, owned::event(driver)?],
            around: Vec::new(),
            fault: Block::new(driver, "faults", FAULT_BYTES, true)?,
            words: Pinned::new(driver, "faults", FAULT_BYTES + DECISION_BYTES)?,
            mirrored: Vec::new(),
            closed: None,
            done: Ok(()),
            times: Vec::new(),
            device_time: None,
            timed: None,
            waits: false,
            pending: None,
            shared: Arc::clone(shared),
        })
    }

    /// The program of an open entry at sizes, and whether the last run was one of it; `None` for an entry without any.
    fn closed(&mut self, entry: usize, sizes: &[i64]) -> Result<Option<(Arc<Program>, bool)>, String> {
        let program = &self.shared.entries[entry].program;
        if program.open.is_closed() {
            return Ok(None);
        }
        if let Some((of, at, closed)) = &self.closed
            && (*of, at.as_slice()) == (entry, sizes)
        {
            return Ok(Some((Arc::clone(closed), true)));
        }
        let closed = Arc::new(program.at(sizes)?);
        self.closed = Some((entry, sizes.to_vec(), Arc::clone(&closed)));
        Ok(Some((closed, false)))
    }

    /// The place in `captured` for the graphs of a run, the last one.
    fn captured(&mut self, entry: usize, sizes: &[i64], bases: &[Address]) -> &mut Captured {
        let is_same = |c: &Captured| c.entry == entry && c.sizes == sizes && c.bases == bases;
        let found = match self.captured.iter().position(is_same) {
            Some(at) => self.captured.remove(at),
            None => Captured { entry, sizes: sizes.to_vec(), bases: bases.to_vec(), graphs: Vec::new() },
        };
        if self.captured.len() == MOST_CAPTURED {
            self.captured.remove(0);
        }
        self.captured.push(found);
        self.captured.last_mut().expect("just pushed")
    }

    /// Submits a run.
    ///
    /// # Safety
    /// As for [`Queue::launch`].
    unsafe fn submit(
        &mut self,
        entry: usize,
        sizes: &[i64],
        bases: &[Address],
        timed: bool,
    ) -> Result<(), Fault> {
        let shared = Arc::clone(&self.shared);
        let (driver, loaded) = (&shared.driver, &shared.entries[entry]);
        let closed = self.closed(entry, sizes).map_err(Fault::Code)?;
        let (closed, again) = closed.map_or((None, true), |(program, again)| (Some(program), again));
        // A capture costs more than the launches in it: sizes that change from run to run are not worth one.
        let captures = again && !timed && !self.waits;
        let mut captured = match captures {
            true => {
                self.captured(entry, sizes, bases);
                self.captured.pop()
            }
            false => None,
        };
        let [begun, ended] = [self.begun_and_ended[0].id, self.begun_and_ended[1].id];
        let run = Run {
            shared: &shared,
            loaded,
            program: closed.as_deref().unwrap_or(&loaded.program),
            sizes,
            bases,
            stream: self.stream.id,
            fault: self.fault.address,
            words: &self.words,
            mirrored: &self.mirrored,
            captured: captured.as_mut(),
            timed: timed.then_some((&mut self.events, &mut self.around)),
            waits: self.waits,
            pending: &mut self.pending,
            args: Vec::new(),
            regions: Vec::new(),
        };
        driver.record(begun, self.stream.id)?;
        // SAFETY: as the caller promises.
        let submitted = unsafe { run.submit() };
        self.captured.extend(captured);
        submitted?;
        driver.record(ended, self.stream.id)
    }

    /// Reads the clocks of the last run.
    fn read_times(&mut self) -> Result<(), Fault> {
        let driver = &self.shared.driver;
        let [begun, ended] = &self.begun_and_ended;
        self.device_time = Some(driver.elapsed(begun.id, ended.id)?);
        if let Some(entry) = self.timed {
            let loaded = &self.shared.entries[entry];
            let mut of_steps = vec![Duration::ZERO; loaded.steps.len()];
            for &(step, begin, end) in &self.around {
                of_steps[step] += driver.elapsed(begin, end)?;
            }
            let own = loaded.program.steps().zip(of_steps).filter(|((_, step), _)| step.blocks().is_empty());
            self.times = own.map(|(_, time)| time).collect();
        }
        Ok(())
    }
}

impl Queue for GpuQueue {
    fn allocate(&mut self, purpose: Purpose, bytes: usize) -> Result<Box<dyn Memory>, RunError> {
        let (driver, what) = (&self.shared.driver, purpose.name());
        match purpose {
            // Every run writes intermediate results before anything reads them.
            Purpose::Arena => Ok(Box::new(Block::new(driver, what, bytes, false)?)),
            Purpose::States => Ok(Box::new(Block::new(driver, what, bytes, true)?)),
            Purpose::Inputs | Purpose::Outputs => {
                let mirrored = Arc::new(Mirrored::new(driver, what, bytes)?);
                self.mirrored.push(Arc::clone(&mirrored));
                Ok(Box::new(MirroredMemory(mirrored)))
            }
        }
    }

    fn borrow(&self, _bytes: &[u8], _align: usize) -> Option<Address> {
        None
    }

    fn own_bytes(&self) -> usize {
        FAULT_BYTES
    }

    unsafe fn launch(&mut self, entry: usize, sizes: &[i64], bases: &[Address], timed: bool) {
        self.times.clear();
        self.around.clear();
        self.events.restart();
        self.timed = timed.then_some(entry);
        self.device_time = None;
        self.pending = None;
        // SAFETY: as the caller promises.
        let submitted = unsafe { self.submit(entry, sizes, bases, timed) };
        self.done = submitted.map_err(|fault| match fault {
            // A call may tell of what an operation before it did; a fault of the code is told with its own step.
            Fault::Kernel(_) | Fault::Device(_) => fault.within(self.pending.clone()),
            other => other,
        });
    }

    fn synchronise(&mut self) -> Result<(), Fault> {
        let done = std::mem::replace(&mut self.done, Ok(()));
        // Also after an error: what was submitted before it uses memory that the caller is about to use.
        let ended = self.shared.driver.synchronise(self.stream.id);
        done?;
        ended.map_err(|fault| fault.within(self.pending.take()))?;
        // SAFETY: a run has written the word, if there was one, and has ended.
        let word = unsafe { self.words.pointer(0, FAULT_BYTES).cast::<u64>().read_unaligned() };
        match fault_of(u64::from_le(word)) {
            None => self.read_times(),
            Some((step, requirement)) => {
                Err(Fault::Requirement { step: step as usize, requirement: requirement as usize })
            }
        }
    }

    fn wait_for_each_step(&mut self, waits: bool) {
        self.waits = waits;
    }

    fn times(&self) -> &[Duration] {
        &self.times
    }

    fn device_time(&self) -> Option<Duration> {
        self.device_time
    }
}
