//! Memory that outlives runs: what one run leaves for the next.

use std::ops::Range;

use margay_artifact::Entry;
use margay_loops::Port;
use margay_tensor::Tensor;

use crate::RunError;
use crate::device::{Address, Memory, Purpose, Queue};

/// Every state of some entries with its place.
type Places = Vec<(Port, Range<usize>)>;

/// Where the states of entries lie, and bytes of all of them.
///
/// # Errors
/// [`RunError::State`] for one that is not the same in all entries.
pub(crate) fn places_of(entries: &[Entry], align: usize) -> Result<(Places, usize), RunError> {
    let mut places = Places::new();
    let mut end = 0usize;
    for parts in entries.iter().map(|e| &e.parts) {
        for port in parts.carried.iter().map(|c| &parts.inputs[c.input]) {
            match places.iter().find(|(known, _)| known.name == port.name) {
                Some((known, _)) if known == port => {}
                Some((known, _)) => {
                    let problem = format!(
                        "state `{}` is {}{:?} in one entry and {}{:?} in another",
                        port.name, known.dtype, known.shape, port.dtype, port.shape
                    );
                    return Err(RunError::State { problem });
                }
                None => {
                    let begin = end.next_multiple_of(align);
                    end = begin + port.dtype.bytes() * port.shape.iter().product::<usize>();
                    places.push((port.clone(), begin..end));
                }
            }
        }
    }
    Ok((places, end))
}

/// The states of an executable: tensors that a session owns, by name. Entries share those of one name.
pub(crate) struct States {
    places: Places,
    memory: Box<dyn Memory>,
}

impl States {
    /// Zeros for every state of the entries.
    pub(crate) fn new(entries: &[Entry], queue: &mut dyn Queue, align: usize) -> Result<States, RunError> {
        let (places, bytes) = places_of(entries, align)?;
        Ok(States { places, memory: queue.allocate(Purpose::States, bytes)? })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|(port, _)| port.name.as_str())
    }

    fn place(&self, name: &str) -> Option<&(Port, Range<usize>)> {
        self.places.iter().find(|(port, _)| port.name == name)
    }

    pub(crate) fn set(&mut self, name: &str, value: &Tensor) -> Result<(), RunError> {
        let Some((port, range)) = self.place(name) else {
            return Err(RunError::State { problem: format!("there is no state `{name}`") });
        };
        if port.dtype != value.dtype() || port.shape != value.shape() {
            let problem = format!(
                "state `{name}` is {}{:?}, found {}{:?}",
                port.dtype,
                port.shape,
                value.dtype(),
                value.shape()
            );
            return Err(RunError::State { problem });
        }
        let at = range.start;
        self.memory.write(at, value.bytes())
    }

    pub(crate) fn get(&self, name: &str) -> Result<Tensor, RunError> {
        let unknown = || RunError::State { problem: format!("there is no state `{name}`") };
        let (port, range) = self.place(name).ok_or_else(unknown)?;
        let mut bytes = vec![0; range.len()];
        self.memory.read(range.start, &mut bytes)?;
        let tensor = Tensor::from_bytes(port.dtype, &port.shape, &bytes);
        Ok(tensor.expect("places have the sizes of their ports"))
    }

    /// Where the state of an input lies.
    pub(crate) fn address(&self, port: &Port) -> Address {
        let begin = self.place(&port.name).expect("every carried input has a place").1.start;
        self.memory.address().offset(begin)
    }
}
