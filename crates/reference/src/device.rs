//! A device that is not the host: memory of its own, reached by addresses that are no pointers and by copies only.
//!
//! Code is checked when it is loaded: a text that does not parse, or a program that [does not
//! hold](Program::verify), is refused.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use margay_artifact::CodeSection;
use margay_loops::{Place, Port, Program, parse_program};
use margay_runtime::RunError;
use margay_runtime::device::{Address, Device, Fault, Image, Memory, Module, Purpose, Queue};
use margay_tensor::StoredTensor;

use crate::interpret::{Outcome, interpret};
use crate::{BUFFER_ALIGN, NAME};

/// The reference device.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceDevice;

impl Device for ReferenceDevice {
    fn backend(&self) -> &str {
        NAME
    }

    fn buffer_align(&self) -> usize {
        BUFFER_ALIGN
    }

    fn accepts(&self, section: &CodeSection) -> Result<(), RunError> {
        match section.parts.target.as_str() {
            NAME => Ok(()),
            other => Err(RunError::Target { target: other.to_owned(), supported: NAME.to_owned() }),
        }
    }

    fn load(&self, image: &Image<'_>) -> Result<Arc<dyn Module>, RunError> {
        let weights = image.weights.bytes();
        let load = |(_, code): &(&CodeSection, &[u8])| {
            Loaded::new(code, weights).map_err(|problem| RunError::Code { problem })
        };
        let entries = image.sections.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let code_bytes = image.sections.iter().map(|(_, code)| code.len()).sum();
        Ok(Arc::new(ReferenceModule { entries: Arc::new(entries), code_bytes }))
    }
}

/// Bytes of the constants of an entry for each byte of the weights, at most.
const MOST_OF_WEIGHTS: usize = 8;

/// An entry on the device.
#[derive(Debug)]
struct Loaded {
    program: Program,
    /// The bytes of each constant, as the program stores it.
    constants: Vec<Vec<u8>>,
}

impl Loaded {
    fn new(code: &[u8], weights: &[u8]) -> Result<Loaded, String> {
        let text = std::str::from_utf8(code).map_err(|e| e.to_string())?;
        let (offsets, text) = text.split_once('\n').ok_or("it has one line")?;
        let offsets = offsets.strip_prefix("constants at").ok_or("it does not say where constants lie")?;
        let offset = |word: &str| word.parse::<usize>().map_err(|e| format!("`{word}`: {e}"));
        let offsets = offsets.split_whitespace().map(offset).collect::<Result<Vec<_>, _>>()?;
        // Contents are read below, as they are stored; the text needs their types only. It only claims their sizes: all
        // together they may be a few times the weights, some of which stand for several constants or are packed.
        let left = Cell::new(weights.len().saturating_mul(MOST_OF_WEIGHTS));
        let program = parse_program(text, &|c| {
            let bytes = c.storage.layout(&c.shape).bytes;
            left.set(left.get().checked_sub(bytes)?);
            let zeros = vec![0; bytes];
            StoredTensor::from_bytes(c.dtype, &c.shape, c.storage, &zeros).ok()
        });
        let program = program.map_err(|e| e.to_string())?;
        program.verify().map_err(|v| v.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
        if offsets.len() != program.constants.len() {
            return Err(format!("{} constants, {} places", program.constants.len(), offsets.len()));
        }
        let stored = |(i, &at): (usize, &usize)| {
            let buffer = program.buffers.iter().find(|b| b.place == Place::Constant(i));
            let bytes = buffer.map_or(0, |b| b.bytes);
            let range = at..at.checked_add(bytes).ok_or("a constant lies beyond all memory")?;
            weights.get(range).map(<[u8]>::to_vec).ok_or(format!("constant {i} lies outside of the weights"))
        };
        let constants = offsets.iter().enumerate().map(stored).collect::<Result<_, String>>()?;
        Ok(Loaded { program, constants })
    }
}

#[derive(Debug)]
struct ReferenceModule {
    entries: Arc<Vec<Loaded>>,
    code_bytes: usize,
}

impl Module for ReferenceModule {
    fn code_bytes(&self) -> usize {
        self.code_bytes
    }

    fn queue(&self, _threads: usize) -> Result<Box<dyn Queue>, RunError> {
        let entries = Arc::clone(&self.entries);
        Ok(Box::new(ReferenceQueue { entries, space: Space::default(), done: Ok(()), times: Vec::new() }))
    }
}

/// Blocks of memory by their addresses. They lie far apart, and none begins at 0.
#[derive(Clone, Default)]
struct Space(Arc<Mutex<BTreeMap<u64, Vec<u8>>>>);

impl Space {
    fn blocks(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block of zeros.
    fn allocate(&self, bytes: usize) -> u64 {
        const GAP: u64 = 1 << 20;
        let mut blocks = self.blocks();
        let end = blocks.iter().next_back().map_or(0, |(at, block)| at + block.len() as u64);
        let begin = (end + GAP).next_multiple_of(GAP);
        blocks.insert(begin, vec![0; bytes]);
        begin
    }

    /// Does something with bytes, which lie in one block.
    ///
    /// # Panics
    /// If they do not: a bug of whoever gave the address.
    fn with<T>(&self, at: Address, bytes: usize, then: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut blocks = self.blocks();
        let block = blocks.range_mut(..=at.0).next_back().and_then(|(begin, block)| {
            let first = (at.0 - begin) as usize;
            block.get_mut(first..first.checked_add(bytes)?)
        });
        then(block.unwrap_or_else(|| panic!("{bytes} bytes at {at:?} are no memory of the device")))
    }
}

/// A block that a session owns.
struct Block {
    space: Space,
    begin: u64,
    bytes: usize,
}

impl Block {
    fn range(&self, range: Range<usize>) -> (Address, usize) {
        (Address(self.begin).offset(range.start), range.len())
    }
}

impl Memory for Block {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn address(&self) -> Address {
        Address(self.begin)
    }

    fn host(&self) -> Option<&[u8]> {
        None
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), RunError> {
        let (address, len) = self.range(at..at + bytes.len());
        self.space.with(address, len, |to| to.copy_from_slice(bytes));
        Ok(())
    }

    fn read(&self, at: usize, to: &mut [u8]) -> Result<(), RunError> {
        let (address, len) = self.range(at..at + to.len());
        self.space.with(address, len, |from| to.copy_from_slice(from));
        Ok(())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.space.blocks().remove(&self.begin);
    }
}

struct ReferenceQueue {
    entries: Arc<Vec<Loaded>>,
    space: Space,
    done: Result<(), Fault>,
    times: Vec<Duration>,
}

impl fmt::Debug for ReferenceQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReferenceQueue")
    }
}

fn bytes(port: &Port) -> usize {
    port.shape.iter().product::<usize>() * port.dtype.bytes()
}

impl Queue for ReferenceQueue {
    fn allocate(&mut self, _purpose: Purpose, bytes: usize) -> Result<Box<dyn Memory>, RunError> {
        let begin = self.space.allocate(bytes);
        Ok(Box::new(Block { space: self.space.clone(), begin, bytes }))
    }

    fn borrow(&self, _bytes: &[u8], _align: usize) -> Option<Address> {
        None
    }

    fn own_bytes(&self) -> usize {
        0
    }

    // SAFETY: no pointer is followed: an address that is none of the device is a panic.
    #[allow(unsafe_code, reason = "the method is declared so; nothing unsafe is done")]
    unsafe fn launch(&mut self, entry: usize, sizes: &[i64], bases: &[Address], timed: bool) {
        let Loaded { program, constants } = &self.entries[entry];
        let closed = match program.open.is_closed() {
            true => None,
            false => match program.at(sizes) {
                Ok(closed) => Some(closed),
                Err(problem) => {
                    self.done = Err(Fault::Code(problem));
                    return;
                }
            },
        };
        let program = closed.as_ref().unwrap_or(program);
        let (arena, ports) = bases.split_first().expect("the arena comes first");
        self.space.with(*arena, program.arena_bytes, |_| ());
        let (inputs, outputs) = ports.split_at(program.inputs.len());
        let given = program.inputs.iter().zip(inputs);
        let given = given.map(|(port, at)| self.space.with(*at, bytes(port), |b| b.to_vec())).collect();
        let constants = constants.iter().map(Vec::as_slice).collect();
        self.times.clear();
        match interpret(program, given, constants) {
            Ok(Outcome::Done { outputs: values, times }) => {
                for (at, value) in outputs.iter().zip(values) {
                    self.space.with(*at, value.len(), |to| to.copy_from_slice(&value));
                }
                if timed {
                    self.times = times;
                }
                self.done = Ok(());
            }
            Ok(Outcome::Failed { step, requirement }) => {
                self.done = Err(Fault::Requirement { step, requirement });
            }
            Err(error) => self.done = Err(Fault::Code(error.to_string())),
        }
    }

    fn synchronise(&mut self) -> Result<(), Fault> {
        std::mem::replace(&mut self.done, Ok(()))
    }

    fn wait_for_each_step(&mut self, _waits: bool) {
        // No step begins before the one before it has ended.
    }

    fn times(&self) -> &[Duration] {
        &self.times
    }

    fn device_time(&self) -> Option<Duration> {
        None
    }
}
