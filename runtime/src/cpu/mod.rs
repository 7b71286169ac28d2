//! The processor as a device: its memory is that of the host, so that nothing is copied.
//!
//! - `code`: from what the back end wrote to function pointers.
//! - `memory`: zeroed pages.
//! - `parallel`: the parallel function that compiled drivers call.
//! - `pool`: threads.

mod code;
mod memory;
mod parallel;
mod pool;

use std::sync::Arc;
use std::time::Duration;

use margay_artifact::CodeSection;
use margay_kernels_cpu::abi::{BUFFER_ALIGN, SCRATCH_HEADER_BYTES, fault_of};
use margay_kernels_cpu::math::{RowTable, rows};
use margay_kernels_cpu::{CpuTarget, this_machine};
use margay_tensor::Map;
use memmap2::MmapMut;

use self::code::{LoadedCode, Tables};
use self::memory::HostMemory;
pub(crate) use self::memory::pages;
use self::parallel::Context;
pub use self::pool::{Job, Pool};
use crate::RunError;
use crate::device::{Address, Device, Fault, Image, Memory, Module, Purpose, Queue, Weights};

/// The processor of this machine.
#[derive(Clone, Copy, Debug)]
pub struct CpuDevice;

impl Device for CpuDevice {
    fn backend(&self) -> &str {
        "cpu"
    }

    fn buffer_align(&self) -> usize {
        BUFFER_ALIGN
    }

    fn accepts(&self, section: &CodeSection) -> Result<(), RunError> {
        let (here, found) = (this_machine(), &section.parts.machine);
        if *found != here {
            return Err(RunError::Machine { expected: here, found: found.clone() });
        }
        rows_of(&section.parts.target).map(drop)
    }

    fn load(&self, image: &Image<'_>) -> Result<Arc<dyn Module>, RunError> {
        let mut problems = Vec::new();
        let mut entries = Vec::new();
        for (section, bytes) in &image.sections {
            let regions = section.parts.steps.iter().map(|s| s.regions).sum();
            let class = rows_of(&section.parts.target)?;
            entries.push(LoadedCode::new(bytes, regions, class, &mut problems)?);
        }
        if !problems.is_empty() {
            problems.sort();
            problems.dedup();
            return Err(RunError::Kernels { problems });
        }
        let weights = match image.huge_pages {
            true => in_huge_pages(&image.weights)?,
            false => image.weights.clone(),
        };
        let loaded = Loaded { entries, weights, huge_pages: image.huge_pages };
        Ok(Arc::new(CpuModule(Arc::new(loaded))))
    }
}

/// A processor class and its functions of rows, if this processor supports it.
fn rows_of(class: &str) -> Result<(CpuTarget, &'static RowTable), RunError> {
    let target = CpuTarget::by_name(class).ok();
    let target = target.filter(|t| t.name() == class && t.supported_here());
    target.and_then(|t| Some((t, rows(t.class())?))).ok_or_else(|| RunError::Target {
        target: class.to_owned(),
        supported: CpuTarget::native().name().to_owned(),
    })
}

fn in_huge_pages(weights: &Weights) -> Result<Weights, RunError> {
    let bytes = weights.bytes().len();
    let mut copy = pages("weights", bytes, true)?;
    copy.copy_from_slice(weights.bytes());
    let map =
        Map::sealed(copy).map_err(|source| RunError::Memory { what: "weights", bytes, all: None, source })?;
    Ok(Weights { map: Arc::new(map), range: 0..bytes })
}

/// Machine code that is ready to run, and its constants.
#[derive(Debug)]
struct CpuModule(Arc<Loaded>);

#[derive(Debug)]
struct Loaded {
    entries: Vec<LoadedCode>,
    weights: Weights,
    huge_pages: bool,
}

impl Module for CpuModule {
    fn code_bytes(&self) -> usize {
        self.0.entries.iter().map(LoadedCode::bytes).sum()
    }

    fn queue(&self, threads: usize) -> Result<Box<dyn Queue>, RunError> {
        let pool = Pool::new(threads);
        let threads = pool.threads();
        let scratch_bytes = self.0.entries.iter().map(|e| e.scratch_bytes).max().unwrap_or(0);
        // An even number of cache lines, so that threads do not share the pairs that processors fetch together.
        let stride = (SCRATCH_HEADER_BYTES + scratch_bytes).next_multiple_of(2 * BUFFER_ALIGN);
        Ok(Box::new(CpuQueue {
            loaded: Arc::clone(&self.0),
            pool,
            threads,
            scratch: pages("scratch", stride.saturating_mul(threads), false)?,
            stride,
            bases: Bases(Vec::new()),
            times: Vec::new(),
            fault: 0,
            problem: None,
            made: Vec::new(),
        }))
    }
}

/// The threads and the scratch of a session.
struct CpuQueue {
    loaded: Arc<Loaded>,
    pool: Pool,
    threads: usize,
    scratch: MmapMut,
    stride: usize,
    bases: Bases,
    times: Vec<Duration>,
    /// What the last run reported, as [`margay_kernels_cpu::abi::fault_word`] encodes it; 0 for none.
    fault: u64,
    /// Why the last run did not begin.
    problem: Option<String>,
    /// What drivers of open entries were handed in the last runs, with entry and sizes, the latest last.
    made: Vec<(usize, Vec<i64>, Tables)>,
}

/// How many tables of open entries a queue keeps.
const KEPT_TABLES: usize = 16;

impl CpuQueue {
    /// The place of what the driver of an open entry is handed for sizes.
    fn tables(&mut self, entry: usize, sizes: &[i64]) -> Result<usize, String> {
        if let Some(at) = self.made.iter().position(|(e, s, _)| *e == entry && s == sizes) {
            return Ok(at);
        }
        let tables = self.loaded.entries[entry].tables_at(sizes)?;
        if self.made.len() == KEPT_TABLES {
            self.made.remove(0);
        }
        self.made.push((entry, sizes.to_vec(), tables));
        Ok(self.made.len() - 1)
    }
}

/// The pointers handed to a driver; filled anew for every run.
struct Bases(Vec<*mut u8>);

// SAFETY: between runs nobody follows the pointers; during a run the queue is borrowed by the thread that runs it.
unsafe impl Send for Bases {}

impl Queue for CpuQueue {
    fn allocate(&mut self, purpose: Purpose, bytes: usize) -> Result<Box<dyn Memory>, RunError> {
        Ok(Box::new(HostMemory(pages(purpose.name(), bytes, self.loaded.huge_pages)?)))
    }

    fn borrow(&self, bytes: &[u8], align: usize) -> Option<Address> {
        let at = bytes.as_ptr();
        at.addr().is_multiple_of(align).then(|| Address(at.expose_provenance() as u64))
    }

    fn own_bytes(&self) -> usize {
        self.scratch.len()
    }

    unsafe fn launch(&mut self, entry: usize, sizes: &[i64], bases: &[Address], timed: bool) {
        self.fault = 0;
        let made = match self.loaded.entries[entry].is_open() {
            false => None,
            true => match self.tables(entry, sizes) {
                Ok(at) => Some(at),
                Err(problem) => {
                    self.problem = Some(problem);
                    return;
                }
            },
        };
        let code = &self.loaded.entries[entry];
        let tables = made.map_or(&code.tables, |at| &self.made[at].2);
        let pointer = |address: &Address| std::ptr::with_exposed_provenance_mut(address.0 as usize);
        let (arena, ports) = bases.split_first().expect("the arena comes first");
        self.bases.0.clear();
        self.bases.0.push(pointer(arena));
        self.bases.0.push(self.loaded.weights.bytes().as_ptr().cast_mut());
        self.bases.0.extend(ports.iter().map(pointer));
        self.times.clear();
        if timed {
            self.times.resize(code.regions, Duration::ZERO);
        }
        let mut context = Context {
            pool: &mut self.pool,
            scratch: self.scratch.as_mut_ptr(),
            stride: self.stride,
            threads: self.threads,
            times: timed.then_some(self.times.as_mut_slice()),
            fault: 0,
        };
        context.write_headers(code.rows);
        let driver = code.driver();
        // SAFETY: the table holds the functions that the code names, of this architecture and of a class that the
        // processor supports; the context is what `parallel` expects; the caller promises that the bases point at
        // memory of the sizes and the alignment that the entry asks for, which nobody else uses until the driver
        // returns. That the code keeps to it is the trust that loading an executable asks for.
        unsafe {
            let context = (&raw mut context).cast::<u8>();
            driver(tables.functions.as_ptr(), context, self.bases.0.as_ptr(), tables.words.as_ptr());
        }
        self.fault = context.fault;
    }

    fn synchronise(&mut self) -> Result<(), Fault> {
        if let Some(problem) = self.problem.take() {
            return Err(Fault::Code(problem));
        }
        match fault_of(self.fault) {
            None => Ok(()),
            Some((step, requirement)) => {
                Err(Fault::Requirement { step: step as usize, requirement: requirement as usize })
            }
        }
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
