//! From what the back end wrote to function pointers.

use margay_kernels_cpu::abi::{DriverFn, ParallelFn};
use margay_kernels_cpu::math::RowTable;
use margay_kernels_cpu::{CpuCode, CpuTarget, Import, Launch, table};
use memmap2::{Mmap, MmapMut};

use super::parallel::parallel;
use crate::RunError;

/// What a driver is handed.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    /// The table the driver calls through: the parallel function, generated kernels, imports.
    pub(super) functions: Vec<usize>,
    /// The table of words.
    pub(super) words: Vec<u64>,
}

/// The code of an entry, ready to run.
#[derive(Debug)]
pub(super) struct LoadedCode {
    /// Readable and executable, never writable.
    code: Mmap,
    /// Where the driver begins.
    driver: usize,
    /// The table the driver calls through, and its words; of an open program without imports and words.
    pub(super) tables: Tables,
    /// What an open program launches.
    launches: Vec<Launch>,
    /// The kernels of the processor class.
    target: CpuTarget,
    /// Bytes of scratch each thread needs, without the header.
    pub(super) scratch_bytes: usize,
    /// Number of parallel regions of all steps.
    pub(super) regions: usize,
    /// The functions of rows of the processor class.
    pub(super) rows: &'static RowTable,
}

impl LoadedCode {
    /// Reads code. Kernels that this program lacks go to `problems`.
    pub(super) fn new(
        bytes: &[u8],
        regions: usize,
        (target, rows): (CpuTarget, &'static RowTable),
        problems: &mut Vec<String>,
    ) -> Result<LoadedCode, RunError> {
        let CpuCode { scratch_bytes, kernels, driver, imports, params, launches, machine_code } =
            CpuCode::decode(bytes).map_err(|problem| RunError::Code { problem })?;
        let code = executable_memory(&machine_code)?;
        let mut functions = vec![parallel as ParallelFn as usize];
        functions.extend(kernels.iter().map(|&at| code[at..].as_ptr() as usize));
        for import in &imports {
            match kernel(import) {
                Ok(address) => functions.push(address),
                Err(problem) => problems.push(problem),
            }
        }
        let tables = Tables { functions, words: params };
        Ok(LoadedCode { code, driver, tables, launches, target, scratch_bytes, regions, rows })
    }

    /// Whether what the driver is handed follows from sizes.
    pub(super) fn is_open(&self) -> bool {
        !self.launches.is_empty()
    }

    /// What the driver of an open program is handed for sizes.
    ///
    /// # Errors
    /// In words: kernels that this program lacks, and calls that ask for more than the program was compiled with.
    pub(super) fn tables_at(&self, sizes: &[i64]) -> Result<Tables, String> {
        let mut functions = self.tables.functions.clone();
        let made = table(&self.launches, sizes, functions.len(), &|call| self.target.prepare(call))?;
        if made.scratch_bytes > self.scratch_bytes {
            return Err(format!("a step needs {} bytes of scratch at {sizes:?}", made.scratch_bytes));
        }
        for name in made.imports {
            let found = margay_kernels_cpu::lookup(name).filter(|kernel| kernel.class.supported_here());
            functions.push(found.ok_or_else(|| format!("`{name}` does not run here"))?.function as usize);
        }
        Ok(Tables { functions, words: made.words })
    }

    /// Bytes of machine code.
    pub(super) fn bytes(&self) -> usize {
        self.code.len()
    }

    /// The driver. It lives as long as the code.
    pub(super) fn driver(&self) -> DriverFn {
        let at = self.code[self.driver..].as_ptr();
        // SAFETY: the code says that a driver begins here. That it does is the trust that loading an executable asks
        // for; memory, architecture and processor class have been checked.
        unsafe { std::mem::transmute::<*const u8, DriverFn>(at) }
    }
}

/// A copy of the code in memory that can be run and, from then on, not be written.
fn executable_memory(code: &[u8]) -> Result<Mmap, RunError> {
    let memory = |source| RunError::Memory { what: "code", bytes: code.len(), all: None, source };
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
