//! The emulator as a driver: memory, kernels, launches.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use margay_kernels_gpu::GpuTarget;
use margay_runtime::RunError;
use margay_runtime::device::Fault;
use margay_runtime::gpu::{Driver, LaunchForm, LoadedKernel};

use crate::launch::{Code, Kernel, Order, Shape, launch};
use crate::memory::Blocks;
use crate::ptx;
use crate::shadow::Shadow;
#[cfg(feature = "gpu")]
use crate::thread::symbols;
use crate::thread::{Array, BlockState, Region};

/// An emulated device.
///
/// Code for it is MLIR, or PTX of any class of devices. Launches run when they are asked for; what is found in one is the
/// error of its launch.
#[derive(Clone)]
pub struct Emulator {
    blocks: Arc<Mutex<Blocks>>,
    compiler: Arc<Compiler>,
    seed: u64,
    /// Launches so far: each has an order of its own.
    launches: Arc<AtomicU64>,
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Emulator(seed {})", self.seed)
    }
}

impl Emulator {
    /// A device on which threads take turns in an order that a seed decides, another one in each launch.
    pub fn new(seed: u64) -> Emulator {
        Emulator { blocks: Arc::default(), compiler: Arc::default(), seed, launches: Arc::default() }
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for Emulator {
    fn accepts(&self, _: GpuTarget) -> Result<(), RunError> {
        Ok(())
    }

    fn allocate(&self, bytes: usize, zeroed: bool) -> io::Result<u64> {
        self.blocks().allocate(bytes, zeroed)
    }

    fn free(&self, address: u64) {
        self.blocks().free(address);
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.blocks().write(to, bytes);
        Ok(())
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        self.blocks().read(from, bytes);
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Fault> {
        self.blocks().copy(from, to, bytes);
        Ok(())
    }

    fn load(&self, module: &str) -> Result<Box<dyn LoadedKernel>, String> {
        let compiled = match module.contains(".visible .entry") {
            true => interpreted(module)?,
            false => self.compiler.compile(module)?,
        };
        Ok(Box::new(EmulatedKernel { emulator: self.clone(), compiled }))
    }

    fn synchronise(&self) -> Result<(), Fault> {
        Ok(())
    }
}

/// A kernel of the emulated device.
#[derive(Debug)]
struct EmulatedKernel {
    emulator: Emulator,
    compiled: Compiled,
}

impl LoadedKernel for EmulatedKernel {
    unsafe fn launch(&self, form: &LaunchForm<'_>) -> Result<(), Fault> {
        let Compiled { kernel, params, shared, .. } = &self.compiled;
        if form.args.len() != *params {
            return Err(Fault::Code(format!("{} arguments for {params} parameters", form.args.len())));
        }
        let mut blocks = self.emulator.blocks();
        let mut regions = Vec::new();
        for region in form.regions {
            let found = blocks.find(region.address, region.bytes);
            let none = || Fault::Code("an argument that is no memory of the device".to_owned());
            let (block, at) = found.ok_or_else(none)?;
            regions.push(Region {
                begin: region.address as usize,
                bytes: region.bytes,
                held: block.written[at..].as_mut_ptr(),
                shadow: region.written.then(|| Shadow::new(region.bytes, region.element)),
            });
        }
        let state = BlockState {
            number: 0,
            regions,
            arrays: shared.iter().map(|&bytes| Array::new(bytes)).collect(),
            found: Default::default(),
            aside: Box::new([0; 2]),
        };
        let shape = Shape { blocks: form.blocks, threads: form.threads };
        let number = self.emulator.launches.fetch_add(1, Ordering::Relaxed);
        let mut order = Order::new(self.emulator.seed.wrapping_add(number));
        // SAFETY: the kernel takes so many parameters, all of 64 bits; every access goes through the calls, which let
        // through what lies in a region, and no block of memory is freed as long as they are locked.
        let found = unsafe { launch(kernel, shape, form.args, state, &mut order) };
        let found = found.map_err(Fault::Code)?;
        if found.is_empty() {
            return Ok(());
        }
        let line = |((problem, place), times): (&(_, u32), &usize)| {
            format!("{problem} (access {place}, {times} times)")
        };
        let lines: Vec<String> = found.iter().map(line).collect();
        Err(Fault::Code(lines.join("; ")))
    }
}

/// A kernel that can be launched.
#[derive(Debug)]
struct Compiled {
    kernel: Kernel,
    shared: Vec<usize>,
    params: usize,
    #[cfg(feature = "gpu")]
    _code: Option<margay_codegen_gpu::HostCode>,
}

/// A kernel of PTX.
fn interpreted(module: &str) -> Result<Compiled, String> {
    let code = ptx::parse(module)?;
    let (params, shared) = (code.params, code.shared.clone());
    Ok(Compiled {
        kernel: Kernel { waits: code.waits, code: Code::Ptx(Arc::new(code)) },
        shared,
        params,
        #[cfg(feature = "gpu")]
        _code: None,
    })
}

/// What makes machine code of the processor.
#[derive(Default)]
struct Compiler {
    #[cfg(feature = "gpu")]
    mlir: Mutex<Option<margay_codegen_gpu::Mlir>>,
}

impl Compiler {
    #[cfg(feature = "gpu")]
    fn compile(&self, module: &str) -> Result<Compiled, String> {
        let mut mlir = self.mlir.lock().unwrap_or_else(PoisonError::into_inner);
        let mlir = mlir.get_or_insert_with(margay_codegen_gpu::Mlir::new);
        // SAFETY: the functions are those that `for_host` states.
        let code = unsafe { mlir.host(module, &symbols()) }.map_err(|e| e.to_string())?;
        Ok(Compiled {
            kernel: Kernel { code: Code::Host(code.function), waits: code.kernel.waits },
            shared: code.kernel.shared.clone(),
            params: code.kernel.params,
            _code: Some(code),
        })
    }

    #[cfg(not(feature = "gpu"))]
    fn compile(&self, _module: &str) -> Result<Compiled, String> {
        Err("this build compiles no kernels: it is without the feature `gpu`".to_owned())
    }
}
