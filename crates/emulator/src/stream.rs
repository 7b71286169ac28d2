//! Streams of the emulated device: which of them capture, what was captured, and when events were reached.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use margay_runtime::device::Fault;
use margay_runtime::gpu::{EventId, GraphId, Region, StreamId};

use crate::driver::EmulatedKernel;

/// An operation of a stream.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Upload { to: u64, from: HostPointer, bytes: usize },
    Download { from: u64, to: HostPointer, bytes: usize },
    Copy { from: u64, to: u64, bytes: usize },
    Fill { to: u64, word: u32, count: usize },
    Launch(Launch),
}

/// Memory of the host. Who submits an operation promises that it is there when the operation runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostPointer(pub(crate) *mut u8);

// SAFETY: it is only followed by operations, whose submitters promise what they need.
unsafe impl Send for HostPointer {}
// SAFETY: as above.
unsafe impl Sync for HostPointer {}

/// A captured launch.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) kernel: EmulatedKernel,
    pub(crate) step: usize,
    pub(crate) blocks: usize,
    pub(crate) threads: usize,
    pub(crate) args: Vec<u64>,
    pub(crate) regions: Vec<Region>,
}

/// All streams, graphs and events.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    ids: u64,
    /// The operations of each stream that captures.
    captures: BTreeMap<StreamId, Vec<Operation>>,
    graphs: BTreeMap<GraphId, Arc<[Operation]>>,
    events: BTreeMap<EventId, Option<Instant>>,
}

fn wrong(problem: &str) -> Fault {
    Fault::Code(problem.to_owned())
}

impl Streams {
    fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    pub(crate) fn stream(&mut self) -> StreamId {
        StreamId(self.id())
    }

    pub(crate) fn free_stream(&mut self, stream: StreamId) {
        self.captures.remove(&stream);
    }

    pub(crate) fn is_capturing(&self, stream: StreamId) -> bool {
        self.captures.contains_key(&stream)
    }

    /// Records an operation if the stream captures, and else gives it back.
    pub(crate) fn record(&mut self, stream: StreamId, operation: Operation) -> Option<Operation> {
        match self.captures.get_mut(&stream) {
            Some(operations) => {
                operations.push(operation);
                None
            }
            None => Some(operation),
        }
    }

    pub(crate) fn wait(&self, stream: StreamId) -> Result<(), Fault> {
        match self.is_capturing(stream) {
            true => Err(wrong("a wait for a stream that captures")),
            false => Ok(()),
        }
    }

    pub(crate) fn begin_capture(&mut self, stream: StreamId) -> Result<(), Fault> {
        match self.captures.insert(stream, Vec::new()) {
            Some(_) => Err(wrong("a capture inside a capture")),
            None => Ok(()),
        }
    }

    pub(crate) fn end_capture(&mut self, stream: StreamId) -> Result<GraphId, Fault> {
        let operations = self.captures.remove(&stream).ok_or_else(|| wrong("no capture has begun"))?;
        let graph = GraphId(self.id());
        self.graphs.insert(graph, operations.into());
        Ok(graph)
    }

    /// The operations of a graph that is launched in a stream.
    pub(crate) fn graph(&self, graph: GraphId, stream: StreamId) -> Result<Arc<[Operation]>, Fault> {
        self.wait(stream)?;
        self.graphs.get(&graph).cloned().ok_or_else(|| wrong("a graph that is not there"))
    }

    pub(crate) fn free_graph(&mut self, graph: GraphId) {
        self.graphs.remove(&graph);
    }

    pub(crate) fn event(&mut self) -> EventId {
        let event = EventId(self.id());
        self.events.insert(event, None);
        event
    }

    pub(crate) fn reach(&mut self, event: EventId) {
        self.events.insert(event, Some(Instant::now()));
    }

    pub(crate) fn elapsed(&self, begin: EventId, end: EventId) -> Result<Duration, Fault> {
        let at = |event| self.events.get(&event).copied().flatten();
        match (at(begin), at(end)) {
            (Some(begin), Some(end)) => Ok(end.duration_since(begin)),
            _ => Err(wrong("an event that was not recorded")),
        }
    }

    pub(crate) fn free_event(&mut self, event: EventId) {
        self.events.remove(&event);
    }
}
