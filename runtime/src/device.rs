//! What a session asks of the device it runs on: memory, the code of a back end, and runs of it one after the other.
//!
//! A device has a memory space of its own. Where the host can read that space, nothing is copied: inputs are read where
//! they lie ([`Queue::borrow`]) and outputs are shown where they were written ([`Memory::host`]).

use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use margay_artifact::CodeSection;
use margay_tensor::Map;

use crate::RunError;

/// A place in the memory space of a device: on the host a pointer, elsewhere what the device makes of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Address(pub u64);

impl Address {
    /// The address so many bytes further on.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// A kind of device: it runs the code of one back end.
pub trait Device: fmt::Debug + Send + Sync {
    /// The back end, by the name that artifacts record.
    fn backend(&self) -> &str;

    /// What every buffer begins at a multiple of, in bytes; a power of two.
    fn buffer_align(&self) -> usize;

    /// Whether the device that is at hand can run code for a target and a machine.
    ///
    /// # Errors
    /// What it lacks.
    fn accepts(&self, section: &CodeSection) -> Result<(), RunError>;

    /// Brings code and constants to the device. Every section was [accepted](Device::accepts).
    fn load(&self, image: &Image<'_>) -> Result<Arc<dyn Module>, RunError>;
}

/// What a device loads: one accepted section of code for each entry, and the constants.
#[derive(Debug)]
pub struct Image<'a> {
    /// The section of each entry, and the code as the back end wrote it.
    pub sections: Vec<(&'a CodeSection, &'a [u8])>,
    /// The constants, on a page boundary; sections say where theirs lie.
    pub weights: Weights,
    /// Whether memory is asked for in huge pages.
    pub huge_pages: bool,
}

/// Constants in a mapped file or in memory.
#[derive(Clone, Debug)]
pub struct Weights {
    /// The mapping.
    pub map: Arc<Map>,
    /// Where in it the constants lie.
    pub range: Range<usize>,
}

impl Weights {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

/// Code and constants on a device, shared by sessions.
pub trait Module: fmt::Debug + Send + Sync {
    /// Bytes of code.
    fn code_bytes(&self) -> usize;

    /// What a session of so many threads runs on.
    fn queue(&self, threads: usize) -> Result<Box<dyn Queue>, RunError>;
}

/// The use of a session's memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// Intermediate results.
    Arena,
    /// Copies of inputs that the device does not read where they lie.
    Inputs,
    /// Outputs.
    Outputs,
    /// States.
    States,
}

impl Purpose {
    /// Its name in errors.
    pub const fn name(self) -> &'static str {
        match self {
            Purpose::Arena => "intermediate results",
            Purpose::Inputs => "inputs",
            Purpose::Outputs => "outputs",
            Purpose::States => "states",
        }
    }
}

/// Where one session runs: its memory, and its runs in order.
pub trait Queue: Send {
    /// Memory; for states it is filled with zeros. A session writes inputs and reads outputs only while no run is under way.
    fn allocate(&mut self, purpose: Purpose, bytes: usize) -> Result<Box<dyn Memory>, RunError>;

    /// The address of memory of the host that lies at a multiple of `align`, if the device reads it as it is.
    fn borrow(&self, bytes: &[u8], align: usize) -> Option<Address>;

    /// Bytes that the queue holds besides what was allocated.
    fn own_bytes(&self) -> usize;

    /// Begins to run an entry where its sizes have these values. The result is there when [`synchronise`](Queue::synchronise) returns.
    ///
    /// # Safety
    /// `sizes` are the values of the entry's sizes at values of symbols that it serves. `bases` are the addresses of the
    /// arena, the inputs and the outputs, of the bytes and the alignment that the entry asks for, and nobody else writes
    /// there before the run has ended.
    unsafe fn launch(&mut self, entry: usize, sizes: &[i64], bases: &[Address], timed: bool);

    /// Waits for the end of what was launched. `Err` says why it has no result.
    fn synchronise(&mut self) -> Result<(), Fault>;

    /// Whether the host waits for each step of a run before it submits the next one, so that a device that fails is told with
    /// its step. Where steps end before the next one begins, nothing changes.
    fn wait_for_each_step(&mut self, waits: bool);

    /// How long each region of the last run took, if it was timed.
    fn times(&self) -> &[Duration];

    /// How long the last run took by the clock of the device, copies of inputs and outputs included; `None` where the
    /// device has no clock of its own.
    fn device_time(&self) -> Option<Duration>;
}

/// Why a run has no result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The data do not meet a requirement of a step.
    Requirement {
        /// The number of the step.
        step: usize,
        /// The number among its requirements.
        requirement: usize,
    },
    /// The code does what no code may; the text names the place. Only a device that notices it says so.
    Code(String),
    /// A kernel did what no code may, and a later call told of it: kernels run while the host goes on. The text says what, and
    /// knows no place.
    Kernel(String),
    /// The device failed, or its driver; the text says how.
    Device(String),
    /// One of these steps is at fault: those that were submitted when the device was last known to be well.
    Within {
        /// Their numbers.
        steps: RangeInclusive<usize>,
        /// What is wrong; of the code, a kernel or the device.
        fault: Box<Fault>,
    },
}

impl Fault {
    /// The fault with the place where it was found, if it is one of the code.
    #[must_use]
    pub fn at(self, place: impl fmt::Display) -> Fault {
        match self {
            Fault::Code(problem) => Fault::Code(format!("{place}: {problem}")),
            Fault::Requirement { .. } | Fault::Kernel(_) | Fault::Device(_) | Fault::Within { .. } => self,
        }
    }

    /// The fault as one of some steps, if it is one of the code, a kernel or the device.
    #[must_use]
    pub fn within(self, steps: Option<RangeInclusive<usize>>) -> Fault {
        match (self, steps) {
            (fault @ (Fault::Code(_) | Fault::Kernel(_) | Fault::Device(_)), Some(steps)) => {
                Fault::Within { steps, fault: Box::new(fault) }
            }
            (fault, _) => fault,
        }
    }
}

impl From<Fault> for RunError {
    /// Of a fault that no data made.
    fn from(fault: Fault) -> RunError {
        match fault {
            Fault::Code(problem) => RunError::Program { problem },
            Fault::Kernel(problem) => RunError::Kernel { problem, steps: None },
            Fault::Device(problem) => RunError::Device { problem, steps: None },
            Fault::Within { steps, fault } => {
                let named = |step: usize| step.to_string();
                RunError::from(*fault).within(steps, &named)
            }
            Fault::Requirement { step, requirement } => RunError::Fault {
                step: format!("step {step}"),
                requirement: format!("its requirement {requirement}"),
            },
        }
    }
}

/// Memory of a device that a session owns.
pub trait Memory: Send {
    /// Its size.
    fn bytes(&self) -> usize;

    /// Where it begins.
    fn address(&self) -> Address;

    /// Its contents, if the host can read them in place.
    fn host(&self) -> Option<&[u8]>;

    /// Copies bytes of the host to the memory from byte `at` on.
    ///
    /// # Errors
    /// How the device failed.
    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), RunError>;

    /// Copies the memory from byte `at` on to the host.
    ///
    /// # Errors
    /// How the device failed; `to` then holds nothing of use.
    fn read(&self, at: usize, to: &mut [u8]) -> Result<(), RunError>;
}
