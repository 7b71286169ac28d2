//! The GPU device: the host follows the steps of a program and launches their kernels one after the other.
//!
//! Choices and numbers of repetitions that lie in the memory of the device are read when they are needed, which waits for
//! what is under way; everything else is launched without waiting.

#[cfg(feature = "cuda")]
mod cuda;
mod driver;

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use margay_artifact::CodeSection;
use margay_kernels_gpu::{BUFFER_ALIGN, GpuCode, GpuTarget, Launch, LaunchArg, fault_of};
use margay_loops::{BufferId, Extent, Loop, Operand, Place, Program, Step, Work, parse_program, walk};
use margay_tensor::StoredTensor;

#[cfg(feature = "cuda")]
pub use cuda::CudaDriver;
pub use driver::{Driver, LaunchForm, LoadedKernel, Region};

use crate::RunError;
use crate::device::{Address, Device, Fault, Image, Memory, Module, Queue};

/// The name of the back end.
pub const NAME: &str = "cuda";

/// Bytes of the word for faults.
const FAULT_BYTES: usize = 8;

/// A device behind a driver.
#[derive(Clone, Debug)]
pub struct GpuDevice {
    driver: Source,
}

/// Where the driver comes from.
#[derive(Clone, Debug)]
enum Source {
    /// It is there.
    Opened(Arc<dyn Driver>),
    /// That of an NVIDIA device of this machine, by its number. It is opened when something is to be loaded, once.
    Cuda { ordinal: usize, opened: Arc<OnceLock<Arc<dyn Driver>>> },
}

impl GpuDevice {
    /// The device of a driver.
    pub fn new(driver: Arc<dyn Driver>) -> GpuDevice {
        GpuDevice { driver: Source::Opened(driver) }
    }

    /// An NVIDIA device of this machine, which is looked for when code is to be loaded.
    pub fn cuda(ordinal: usize) -> GpuDevice {
        GpuDevice { driver: Source::Cuda { ordinal, opened: Arc::default() } }
    }

    fn driver(&self) -> Result<Arc<dyn Driver>, RunError> {
        match &self.driver {
            Source::Opened(driver) => Ok(Arc::clone(driver)),
            Source::Cuda { ordinal, opened } => match opened.get() {
                Some(driver) => Ok(Arc::clone(driver)),
                None => {
                    let driver = cuda_driver(*ordinal)?;
                    Ok(Arc::clone(opened.get_or_init(|| driver)))
                }
            },
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda_driver(ordinal: usize) -> Result<Arc<dyn Driver>, RunError> {
    Ok(Arc::new(CudaDriver::open(ordinal)?))
}

#[cfg(not(feature = "cuda"))]
fn cuda_driver(_: usize) -> Result<Arc<dyn Driver>, RunError> {
    let problem = "this build of margay drives no GPUs: it is without the feature `cuda`".to_owned();
    Err(RunError::NoDevice { problem })
}

impl Device for GpuDevice {
    fn backend(&self) -> &str {
        NAME
    }

    fn buffer_align(&self) -> usize {
        BUFFER_ALIGN
    }

    fn accepts(&self, section: &CodeSection) -> Result<(), RunError> {
        match GpuTarget::from_name(&section.parts.target) {
            Some(target) => self.driver()?.accepts(target),
            None => Err(RunError::Code { problem: format!("unknown target `{}`", section.parts.target) }),
        }
    }

    fn load(&self, image: &Image<'_>) -> Result<Arc<dyn Module>, RunError> {
        let (driver, bytes) = (self.driver()?, image.weights.bytes());
        let weights = Block::new(&driver, "constants", bytes.len(), false)?;
        driver.write(weights.address, bytes)?;
        let load = |(_, code): &(&CodeSection, &[u8])| {
            Loaded::new(code, bytes.len(), &driver).map_err(|problem| RunError::Code { problem })
        };
        let entries = image.sections.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let code_bytes = image.sections.iter().map(|(_, code)| code.len()).sum();
        let shared = Shared { driver, entries, weights };
        Ok(Arc::new(GpuModule { shared: Arc::new(shared), code_bytes }))
    }
}

/// An entry on the device.
#[derive(Debug)]
struct Loaded {
    program: Program,
    constants: Vec<usize>,
    kernels: Vec<Box<dyn LoadedKernel>>,
    steps: Vec<Vec<Launch>>,
}

impl Loaded {
    fn new(code: &[u8], weights_bytes: usize, driver: &Arc<dyn Driver>) -> Result<Loaded, String> {
        let code = GpuCode::decode(code)?;
        let program = parse_program(&code.program, &|c| {
            // Contents are on the device; the text needs their types only.
            let zeros = vec![0; c.storage.layout(&c.shape).bytes.min(weights_bytes)];
            StoredTensor::from_bytes(c.dtype, &c.shape, c.storage, &zeros).ok()
        });
        let program = program.map_err(|e| e.to_string())?;
        program.verify().map_err(|v| v.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
        let steps = program.steps().count();
        if code.steps.len() != steps || code.constants.len() != program.constants.len() {
            return Err(format!("launches of {} steps for {steps}", code.steps.len()));
        }
        for (i, &at) in code.constants.iter().enumerate() {
            let bytes = program.buffers.iter().find(|b| b.place == Place::Constant(i)).map_or(0, |b| b.bytes);
            if at.checked_add(bytes).is_none_or(|end| end > weights_bytes) {
                return Err(format!("constant {i} lies outside of the weights"));
            }
        }
        for (number, (_, step)) in program.steps().enumerate() {
            let operands = step.operands().len();
            for launch in &code.steps[number] {
                let known = |arg: &LaunchArg| match arg {
                    LaunchArg::Operand(i) => *i < operands,
                    LaunchArg::Size(i) => (*i as usize) < program.open.sizes.len(),
                    LaunchArg::Fault | LaunchArg::Word(_) => true,
                };
                if launch.module >= code.modules.len() || !launch.args.iter().all(known) {
                    return Err(format!("a launch of step {number} names what is not there"));
                }
            }
        }
        let kernels = code.modules.iter().map(|text| driver.load(text)).collect::<Result<_, _>>()?;
        Ok(Loaded { program, constants: code.constants, kernels, steps: code.steps })
    }
}

/// What sessions share.
#[derive(Debug)]
struct Shared {
    driver: Arc<dyn Driver>,
    entries: Vec<Loaded>,
    weights: Block,
}

#[derive(Debug)]
struct GpuModule {
    shared: Arc<Shared>,
    code_bytes: usize,
}

impl Module for GpuModule {
    fn code_bytes(&self) -> usize {
        self.code_bytes
    }

    fn queue(&self, _threads: usize) -> Result<Box<dyn Queue>, RunError> {
        let fault = Block::new(&self.shared.driver, "faults", FAULT_BYTES, true)?;
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(GpuQueue { shared, fault, closed: None, done: Ok(()), times: Vec::new() }))
    }
}

/// Memory of the device.
#[derive(Debug)]
struct Block {
    driver: Arc<dyn Driver>,
    address: u64,
    bytes: usize,
}

impl Block {
    fn new(
        driver: &Arc<dyn Driver>,
        what: &'static str,
        bytes: usize,
        zeroed: bool,
    ) -> Result<Block, RunError> {
        // What holds nothing has an address of its own, too.
        let address = driver
            .allocate(bytes.max(1), zeroed)
            .map_err(|source: io::Error| RunError::Memory { what, bytes, source })?;
        Ok(Block { driver: Arc::clone(driver), address, bytes })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.driver.free(self.address);
    }
}

impl Memory for Block {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn address(&self) -> Address {
        Address(self.address)
    }

    fn host(&self) -> Option<&[u8]> {
        None
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), RunError> {
        assert!(at + bytes.len() <= self.bytes, "what is written lies inside");
        Ok(self.driver.write(self.address + at as u64, bytes)?)
    }

    fn read(&self, at: usize, to: &mut [u8]) -> Result<(), RunError> {
        assert!(at + to.len() <= self.bytes, "what is read lies inside");
        Ok(self.driver.read(self.address + at as u64, to)?)
    }
}

struct GpuQueue {
    shared: Arc<Shared>,
    fault: Block,
    /// The program of an open entry where its sizes have certain values: that of the last run.
    closed: Option<(usize, Vec<i64>, Arc<Program>)>,
    done: Result<(), Fault>,
    times: Vec<Duration>,
}

impl fmt::Debug for GpuQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GpuQueue")
    }
}

impl Queue for GpuQueue {
    fn allocate(&self, what: &'static str, bytes: usize) -> Result<Box<dyn Memory>, RunError> {
        // Every run writes intermediate results and outputs before anything reads them.
        let zeroed = what == "states";
        Ok(Box::new(Block::new(&self.shared.driver, what, bytes, zeroed)?))
    }

    fn borrow(&self, _bytes: &[u8], _align: usize) -> Option<Address> {
        None
    }

    fn own_bytes(&self) -> usize {
        FAULT_BYTES
    }

    unsafe fn launch(&mut self, entry: usize, sizes: &[i64], bases: &[Address], timed: bool) {
        self.times.clear();
        let cleared = self.shared.driver.write(self.fault.address, &[0; FAULT_BYTES]);
        let closed = cleared.and_then(|()| self.closed(entry, sizes).map_err(Fault::Code));
        let closed = match closed {
            Ok(closed) => closed,
            Err(fault) => {
                self.done = Err(fault);
                return;
            }
        };
        let loaded = &self.shared.entries[entry];
        let mut run = Run {
            shared: &self.shared,
            loaded,
            program: closed.as_deref().unwrap_or(&loaded.program),
            sizes,
            bases,
            fault: self.fault.address,
            times: timed.then(|| vec![Duration::ZERO; loaded.steps.len()]),
            args: Vec::new(),
            regions: Vec::new(),
        };
        // SAFETY: the caller promises that the bases are memory as the entry asks for it.
        self.done = unsafe { run.block(&run.program.body, 0) };
        if let Some(times) = run.times.take() {
            let own = loaded.program.steps().zip(times).filter(|((_, step), _)| step.blocks().is_empty());
            self.times = own.map(|(_, time)| time).collect();
        }
    }

    fn synchronise(&mut self) -> Result<(), Fault> {
        std::mem::replace(&mut self.done, Ok(()))?;
        self.shared.driver.synchronise()?;
        let mut word = [0; FAULT_BYTES];
        self.shared.driver.read(self.fault.address, &mut word)?;
        match fault_of(u64::from_le_bytes(word)) {
            None => Ok(()),
            Some((step, requirement)) => {
                Err(Fault::Requirement { step: step as usize, requirement: requirement as usize })
            }
        }
    }

    fn times(&self) -> &[Duration] {
        &self.times
    }
}

impl GpuQueue {
    /// The program of an open entry at sizes; `None` for an entry without any.
    fn closed(&mut self, entry: usize, sizes: &[i64]) -> Result<Option<Arc<Program>>, String> {
        let program = &self.shared.entries[entry].program;
        if program.open.is_closed() {
            return Ok(None);
        }
        if let Some((of, at, closed)) = &self.closed
            && (*of, at.as_slice()) == (entry, sizes)
        {
            return Ok(Some(Arc::clone(closed)));
        }
        let closed = Arc::new(program.at(sizes)?);
        self.closed = Some((entry, sizes.to_vec(), Arc::clone(&closed)));
        Ok(Some(closed))
    }
}

/// A run in progress.
struct Run<'r> {
    shared: &'r Shared,
    loaded: &'r Loaded,
    program: &'r Program,
    sizes: &'r [i64],
    bases: &'r [Address],
    fault: u64,
    /// The time of every step by its number, if they are taken.
    times: Option<Vec<Duration>>,
    args: Vec<u64>,
    regions: Vec<Region>,
}

impl<'r> Run<'r> {
    /// Runs a list of steps, the first of which has a number.
    ///
    /// # Safety
    /// As for [`Queue::launch`].
    unsafe fn block(&mut self, steps: &'r [Step], mut number: usize) -> Result<(), Fault> {
        for step in steps {
            let begin = self.times.is_some().then(Instant::now);
            // SAFETY: as the caller promises.
            unsafe { self.step(step, number) }?;
            if let (Some(begin), true) = (begin, step.blocks().is_empty()) {
                self.shared.driver.synchronise().map_err(|fault| fault.at(format_args!("step {number}")))?;
                if let Some(times) = &mut self.times {
                    times[number] += begin.elapsed();
                }
            }
            number += walk(std::slice::from_ref(step)).count();
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Queue::launch`].
    unsafe fn step(&mut self, step: &'r Step, number: usize) -> Result<(), Fault> {
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
            Work::Copy { from, to, bytes } => {
                let copied = self.shared.driver.copy(self.address(*from), self.address(*to), *bytes);
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
            Work::Loop(l) => {
                for i in 0..self.trips(l)? {
                    if let Some(condition) = l.condition
                        && !self.truth(condition)?
                    {
                        break;
                    }
                    if let Some(counter) = l.counter {
                        self.shared.driver.write(self.address(counter), &(i as i64).to_le_bytes())?;
                    }
                    // SAFETY: as the caller promises.
                    unsafe { self.block(&l.body, number + 1) }?;
                }
                Ok(())
            }
        }
    }

    /// Launches what belongs to a step. `of` says how large the elements of an argument are, and whether it is written.
    ///
    /// # Safety
    /// As for [`Queue::launch`].
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
            let form =
                LaunchForm { blocks: launch.blocks, threads: launch.threads, args: &args, regions: &regions };
            // SAFETY: the back end wrote which arguments the kernel takes; regions are buffers of the program, in memory
            // that the caller promises.
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

    fn truth(&self, operand: Operand) -> Result<bool, Fault> {
        let mut byte = [0];
        self.shared.driver.read(self.address(operand), &mut byte)?;
        Ok(byte[0] != 0)
    }

    fn trips(&self, l: &Loop) -> Result<usize, Fault> {
        match l.trips {
            Extent::Known(n) => Ok(n),
            Extent::Sized { size, most, .. } => {
                Ok(usize::try_from(self.sizes[size.0 as usize]).unwrap_or(0).min(most))
            }
            Extent::Read { from, bound } => {
                let mut word = [0; 8];
                self.shared.driver.read(self.address(from), &mut word)?;
                Ok(usize::try_from(i64::from_le_bytes(word)).unwrap_or(0).min(bound))
            }
        }
    }
}
