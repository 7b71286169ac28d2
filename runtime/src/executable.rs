//! From an artifact, or the parts of one, to function pointers.

use std::ops::Range;
use std::sync::Arc;

use margay_artifact::{Artifact, Description, Entry, Parts};
use margay_kernels_cpu::abi::{BUFFER_ALIGN, DriverFn, ParallelFn};
use margay_kernels_cpu::math::{RowTable, rows};
use margay_kernels_cpu::{CpuCode, CpuTarget, Import};
use margay_loops::Port;
use memmap2::{Mmap, MmapMut};

use crate::RunError;
use crate::parallel::parallel;

/// Machine code that is ready to run, and its constants. Cloning is cheap; sessions share it.
#[derive(Clone, Debug)]
pub struct Executable {
    loaded: Arc<Loaded>,
    /// Whether memory is asked for in huge pages.
    huge_pages: bool,
}

#[derive(Debug)]
struct Loaded {
    description: Arc<Description>,
    weights: Arc<Mmap>,
    weights_at: Range<usize>,
    entries: Arc<Vec<LoadedEntry>>,
    /// The functions of rows of the processor class.
    rows: &'static RowTable,
}

/// What a run of an entry needs.
#[derive(Debug)]
pub(crate) struct LoadedEntry {
    /// Machine code, readable and executable, never writable.
    code: Mmap,
    /// Where the driver begins in it.
    driver: usize,
    /// The parameter words of all steps.
    pub(crate) params: Vec<u64>,
    /// Bytes of scratch each thread needs, without the header.
    pub(crate) scratch_bytes: usize,
    /// The table the driver calls through: the parallel function, generated kernels, imports.
    pub(crate) table: Vec<usize>,
    /// Where each input would lie in the staging area.
    pub(crate) inputs: Vec<Range<usize>>,
    /// Where each output lies in the output area.
    pub(crate) outputs: Vec<Range<usize>>,
}

impl Executable {
    /// Loads the code of an artifact. **It is run as it is: load only what you trust.**
    ///
    /// Constants stay in the mapped file. Their hashes are not checked; see [`Artifact::verify_weights`].
    pub fn from_artifact(artifact: &Artifact) -> Result<Executable, RunError> {
        let (map, range) = artifact.weights_map();
        Executable::load(Arc::clone(artifact.description()), artifact.code(), map, range)
    }

    /// Loads code that was compiled in this process.
    pub fn from_parts(parts: Parts) -> Result<Executable, RunError> {
        let range = 0..parts.weights.len();
        Executable::load(Arc::new(parts.description), &parts.code, Arc::new(parts.weights), range)
    }

    fn load(
        description: Arc<Description>,
        code: &[u8],
        weights: Arc<Mmap>,
        weights_at: Range<usize>,
    ) -> Result<Executable, RunError> {
        let rows = check_machine(&description)?;
        let mut problems = Vec::new();
        let load = |e: &Entry| load_entry(e, &code[e.code.clone()], &mut problems);
        let entries = description.entries.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        if !problems.is_empty() {
            problems.sort();
            problems.dedup();
            return Err(RunError::Kernels { problems });
        }
        let loaded = Loaded { description, weights, weights_at, entries: Arc::new(entries), rows };
        Ok(Executable { loaded: Arc::new(loaded), huge_pages: false })
    }

    /// The same with its constants, and later the memory of its sessions, in huge pages where the system has some to
    /// give: fewer address translations where products stream through large weights, for a copy of the constants.
    pub fn in_huge_pages(&self) -> Result<Executable, RunError> {
        let bytes = self.weights_bytes();
        let mut weights = memory("weights", bytes, true)?;
        weights.copy_from_slice(self.weights());
        let sealed = weights.make_read_only();
        let weights = sealed.map_err(|source| RunError::Memory { what: "weights", bytes, source })?;
        let loaded = Loaded {
            description: Arc::clone(&self.loaded.description),
            weights: Arc::new(weights),
            weights_at: 0..bytes,
            entries: Arc::clone(&self.loaded.entries),
            rows: self.loaded.rows,
        };
        Ok(Executable { loaded: Arc::new(loaded), huge_pages: true })
    }

    /// Whether [`in_huge_pages`](Executable::in_huge_pages) made it.
    pub(crate) fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// What the executable was compiled from and for.
    pub fn description(&self) -> &Description {
        &self.loaded.description
    }

    /// The compiled graphs.
    pub fn entries(&self) -> &[Entry] {
        &self.loaded.description.entries
    }

    /// Bytes of constants.
    pub fn weights_bytes(&self) -> usize {
        self.loaded.weights_at.len()
    }

    /// Bytes of machine code.
    pub fn code_bytes(&self) -> usize {
        self.loaded.entries.iter().map(|e| e.code.len()).sum()
    }

    /// The constants, aligned for the driver.
    pub(crate) fn weights(&self) -> &[u8] {
        &self.loaded.weights[self.loaded.weights_at.clone()]
    }

    pub(crate) fn rows(&self) -> &'static RowTable {
        self.loaded.rows
    }

    pub(crate) fn loaded_entry(&self, index: usize) -> &LoadedEntry {
        &self.loaded.entries[index]
    }

    pub(crate) fn loaded_entries(&self) -> &[LoadedEntry] {
        &self.loaded.entries
    }

    /// The driver of an entry. It lives as long as the executable.
    pub(crate) fn driver(&self, index: usize) -> DriverFn {
        let entry = &self.loaded.entries[index];
        let at = entry.code[entry.driver..].as_ptr();
        // SAFETY: the code says that a driver begins here. That it does is the trust that loading an
        // executable asks for; memory, architecture and processor class have been checked.
        unsafe { std::mem::transmute::<*const u8, DriverFn>(at) }
    }
}

/// The functions of rows of the processor class, if this machine can run the code at all.
fn check_machine(description: &Description) -> Result<&'static RowTable, RunError> {
    let here = Description::this_machine();
    if description.machine != here {
        return Err(RunError::Machine { expected: here, found: description.machine.clone() });
    }
    let target = CpuTarget::by_name(&description.target).ok();
    let target = target.filter(|t| t.name() == description.target && t.supported_here());
    target.and_then(|t| rows(t.class())).ok_or_else(|| RunError::Target {
        target: description.target.clone(),
        supported: CpuTarget::native().name().to_owned(),
    })
}

/// Zeroed memory on a page boundary, in huge pages if asked for and possible.
pub(crate) fn memory(what: &'static str, bytes: usize, huge_pages: bool) -> Result<MmapMut, RunError> {
    let map = MmapMut::map_anon(bytes).map_err(|source| RunError::Memory { what, bytes, source })?;
    #[cfg(target_os = "linux")]
    if huge_pages {
        // Advice: a system without huge pages goes on without them.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = huge_pages;
    Ok(map)
}

/// A copy of the code in memory that can be run and, from then on, not be written.
fn executable_memory(code: &[u8]) -> Result<Mmap, RunError> {
    let memory = |source| RunError::Memory { what: "code", bytes: code.len(), source };
    let mut writable = MmapMut::map_anon(code.len()).map_err(memory)?;
    writable.copy_from_slice(code);
    let executable = writable.make_exec().map_err(memory)?;
    announce(&executable);
    Ok(executable)
}

/// Tells the processor that there is new code; x86-64 sees it by itself.
#[cfg(target_arch = "x86_64")]
fn announce(_code: &[u8]) {}

/// Tells the processor that there is new code.
#[cfg(target_arch = "aarch64")]
fn announce(code: &[u8]) {
    use std::arch::asm;
    // The shortest cache line that the architecture allows.
    const LINE: usize = 16;
    let begin = code.as_ptr().addr() & !(LINE - 1);
    let lines = (begin..code.as_ptr().addr() + code.len()).step_by(LINE);
    // SAFETY: the sequence that the architecture prescribes: clean data caches, then invalidate instruction caches. It
    // changes no memory, and every address lies on a page of `code`.
    unsafe {
        lines.clone().for_each(|at| asm!("dc cvau, {}", in(reg) at, options(nostack, preserves_flags)));
        asm!("dsb ish", options(nostack, preserves_flags));
        lines.for_each(|at| asm!("ic ivau, {}", in(reg) at, options(nostack, preserves_flags)));
        asm!("dsb ish", "isb", options(nostack, preserves_flags));
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("how to announce new code is not known for this architecture");

fn load_entry(entry: &Entry, bytes: &[u8], problems: &mut Vec<String>) -> Result<LoadedEntry, RunError> {
    let CpuCode { scratch_bytes, kernels, driver, imports, params, machine_code } =
        CpuCode::decode(bytes).map_err(|problem| RunError::Code { problem })?;
    let code = executable_memory(&machine_code)?;
    let mut table = vec![parallel as ParallelFn as usize];
    table.extend(kernels.iter().map(|&at| code[at..].as_ptr() as usize));
    for import in &imports {
        match kernel(import) {
            Ok(address) => table.push(address),
            Err(problem) => problems.push(problem),
        }
    }
    let parts = &entry.parts;
    // States have memory of their own.
    let input = |i: usize| parts.carried.iter().all(|c| c.input != i);
    let output = |i: usize| parts.carried.iter().all(|c| c.output != i);
    let (inputs, outputs) = (areas(&parts.inputs, &input), areas(&parts.outputs, &output));
    Ok(LoadedEntry { code, driver, params, scratch_bytes, table, inputs, outputs })
}

/// The address of a hand-written kernel with the contract that the code was compiled for.
fn kernel(import: &Import) -> Result<usize, String> {
    let Import { name, version } = import;
    match margay_kernels_cpu::lookup(name) {
        None => Err(format!("`{name}` does not exist")),
        Some(found) if found.version != *version => {
            Err(format!("`{name}`: expected version {version}, found {}", found.version))
        }
        Some(found) if !found.class.supported_here() => {
            Err(format!("`{name}` does not run on this processor"))
        }
        Some(found) => Ok(found.function as usize),
    }
}

/// Aligned places one after the other for those of several tensors that need one; the others get no bytes.
fn areas(ports: &[Port], needed: &dyn Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut end = 0;
    let place = |(i, port): (usize, &Port)| {
        let begin = usize::next_multiple_of(end, BUFFER_ALIGN);
        end = begin + if needed(i) { port.dtype.bytes() * port.shape.iter().product::<usize>() } else { 0 };
        begin..end
    };
    ports.iter().enumerate().map(place).collect()
}
