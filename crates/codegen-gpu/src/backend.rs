//! The GPU back end as a value: kernels of programs for one class of devices.

use std::collections::HashMap;

use margay_kernels_gpu::{BUFFER_ALIGN, GpuCode, GpuTarget, Launch, LaunchArg, calls, fault_word};
use margay_loops::{
    Backend, Code, CompileError, Extent, KernelCall, Needs, NoKernel, Operand, Operations, Place,
    Preferences, Program, SizedAt, Step, Stmt, Work,
};
use margay_tensor::StoredTensor;

use crate::nest::{Form, write};
use crate::{CodegenError, Written};

/// The name of the back end.
pub const NAME: &str = "cuda";

/// The name of the emulator of devices, for which code of its own is made.
pub const EMULATED: &str = "emulated";

/// What a vector access has to begin at a multiple of, in bytes.
const VECTOR_BYTES: usize = 16;

/// Elements beyond which positions take 64 bits; in bytes, as an element has one at least.
const LARGE_BYTES: usize = 1 << 31;

/// How many times longer the emulator takes than the device that it stands for: an estimate. It checks every access.
const SLOWER: f64 = 1e6;

/// The back end for a class of devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpuBackend {
    target: GpuTarget,
    /// The number of the device that runs what is compiled in this process.
    device: usize,
}

impl GpuBackend {
    /// The back end for a class.
    pub const fn new(target: GpuTarget) -> GpuBackend {
        GpuBackend { target, device: 0 }
    }

    /// The same, whose code is run by another device of this machine than the first.
    #[must_use]
    pub const fn on(self, device: usize) -> GpuBackend {
        GpuBackend { device, ..self }
    }

    fn refused(&self, call: impl std::fmt::Display, why: &str) -> NoKernel {
        NoKernel { target: self.target.name().to_owned(), call: call.to_string(), why: why.to_owned() }
    }

    /// Seconds on the device as seconds of the target.
    fn taken(&self, seconds: f64) -> f64 {
        if self.target.is_emulated() { SLOWER * seconds } else { seconds }
    }

    /// What is written of a kernel, as the device takes it.
    fn assemble(&self, modules: Vec<String>) -> Result<Vec<String>, CodegenError> {
        if self.target.is_emulated() {
            return Ok(modules);
        }
        assemble(&modules, self.target)
    }
}

#[cfg(feature = "gpu")]
fn assemble(modules: &[String], target: GpuTarget) -> Result<Vec<String>, CodegenError> {
    let mlir = crate::Mlir::new();
    modules.iter().map(|module| mlir.ptx(module, target)).collect()
}

#[cfg(not(feature = "gpu"))]
fn assemble(_: &[String], target: GpuTarget) -> Result<Vec<String>, CodegenError> {
    Err(CodegenError::NoCompiler { target: target.name() })
}

impl Backend for GpuBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn target(&self) -> &str {
        self.target.name()
    }

    fn device(&self) -> String {
        match (self.target.is_emulated(), self.device) {
            (true, _) => EMULATED.to_owned(),
            (false, 0) => NAME.to_owned(),
            (false, number) => format!("{NAME}:{number}"),
        }
    }

    fn preferences(&self) -> Preferences {
        Preferences {
            buffer_align: BUFFER_ALIGN,
            channels_last: true,
            features_in_attention: false,
            max_fused: 48,
            cheap_operations: 4,
            extent_steps: Vec::new(),
        }
    }

    fn packs(&self, call: &KernelCall, operand: usize) -> bool {
        calls::packs(call, operand)
    }

    fn prepare(&self, call: &KernelCall) -> Result<Needs, NoKernel> {
        calls::supports(call).map_err(|why| self.refused(call, &why))?;
        let workspace_bytes = calls::workspace_bytes(call, self.target);
        Ok(Needs { workspace_bytes, packed: calls::packed(call) })
    }

    fn pack(&self, call: &KernelCall, operand: usize, stored: &StoredTensor) -> Result<Vec<u8>, NoKernel> {
        calls::pack(call, operand, stored).map_err(|why| self.refused(call, &why))
    }

    fn unpack(&self, layout: &str, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, NoKernel> {
        calls::unpack(layout, shape, bytes)
            .map_err(|why| self.refused(format!("unpack {layout} {shape:?}"), &why))
    }

    fn compile(&self, program: &Program, constant_offsets: &[usize]) -> Result<Code, CompileError> {
        let mut modules = Modules {
            program,
            target: self.target,
            texts: Vec::new(),
            kernels: HashMap::new(),
            calls: HashMap::new(),
        };
        let mut steps = Vec::new();
        for (number, (_, step)) in program.steps().enumerate() {
            let number = u32::try_from(number).map_err(|e| CompileError::Internal(e.to_string()))?;
            steps.push(modules.launches(number, step, constant_offsets)?);
        }
        let modules = self.assemble(modules.texts)?;
        let code =
            GpuCode { constants: constant_offsets.to_vec(), program: program.to_string(), modules, steps };
        let regions = program.steps().map(|(_, step)| usize::from(step.blocks().is_empty()));
        Ok(Code { bytes: code.encode(), machine: "any".to_owned(), regions: regions.collect() })
    }

    fn cost_model(&self) -> &str {
        "gpu data sheets 3"
    }

    fn call_seconds(&self, call: &KernelCall, _threads: usize) -> f64 {
        self.taken(calls::seconds(call, self.target))
    }

    fn loop_seconds(&self, bytes: u64, operations: Operations, _threads: usize) -> f64 {
        let rates = self.target.rates();
        let computed = (operations.cheap + 20 * operations.evaluations) as f64 / rates.operations;
        self.taken(rates.launch + (bytes as f64 / rates.bytes).max(computed))
    }
}

/// The modules of a program.
struct Modules<'p> {
    program: &'p Program,
    target: GpuTarget,
    texts: Vec<String>,
    /// Those of loop nests, with how they are launched.
    kernels: HashMap<(usize, Form), (usize, Written)>,
    /// Those of calls, in the order in which they are launched.
    calls: HashMap<KernelCall, Vec<(usize, calls::Written)>>,
}

impl Modules<'_> {
    /// What a step launches.
    fn launches(
        &mut self,
        number: u32,
        step: &Step,
        constant_offsets: &[usize],
    ) -> Result<Vec<Launch>, CompileError> {
        match &step.work {
            Work::Kernel { kernel, args } => {
                let form = self.form(*kernel, step, args, constant_offsets);
                Ok(self.kernel(number, *kernel, form)?.into_iter().collect())
            }
            Work::Call { call, .. } if step.sizes.iter().any(|(at, _)| matches!(at, SizedAt::Call(_))) => {
                // Kernels of calls are made for their extents.
                Err(CompileError::Unsupported(format!("`{call}` for a range of extents, on GPUs")))
            }
            Work::Call { call, args, .. } => self.call(call, args.len()),
            Work::Copy { .. } | Work::If { .. } | Work::Loop(_) => Ok(Vec::new()),
        }
    }

    fn module(&mut self, text: &str) -> usize {
        self.texts.push(text.to_owned());
        self.texts.len() - 1
    }

    fn kernel(&mut self, number: u32, kernel: usize, form: Form) -> Result<Option<Launch>, CompileError> {
        let loops = self.program.kernels[kernel].parallel_nest().1;
        let nothing = |stmt: &&Stmt| matches!(stmt, Stmt::Loop { extent: Extent::Known(0), .. });
        if loops.iter().any(nothing) {
            return Ok(None);
        }
        if !self.kernels.contains_key(&(kernel, form)) {
            let written = write(&self.program.kernels[kernel], &format!("k{kernel}"), form)?;
            let module = self.module(&written.text);
            self.kernels.insert((kernel, form), (module, written));
        }
        let (module, Written { mapping, sizes, .. }) = &self.kernels[&(kernel, form)];
        let operands = self.program.kernels[kernel].args.len();
        let mut args: Vec<LaunchArg> = (0..operands).map(LaunchArg::Operand).collect();
        args.push(LaunchArg::Fault);
        args.push(LaunchArg::Word(fault_word(number, 0)));
        args.extend(sizes.iter().map(|size| LaunchArg::Size(size.0)));
        Ok(Some(Launch { module: *module, blocks: mapping.blocks, threads: mapping.threads, args }))
    }

    fn call(&mut self, call: &KernelCall, operands: usize) -> Result<Vec<Launch>, CompileError> {
        if !self.calls.contains_key(call) {
            let written = calls::write(call, self.target).map_err(|why| {
                CompileError::Internal(format!("`{call}` was lowered without a kernel: {why}"))
            })?;
            let made = written.into_iter().map(|written| (self.module(&written.text), written));
            let made = made.collect();
            self.calls.insert(call.clone(), made);
        }
        let launch = |(module, written): &(usize, calls::Written)| Launch {
            module: *module,
            blocks: written.blocks,
            threads: written.threads,
            args: (0..operands).map(LaunchArg::Operand).collect(),
        };
        Ok(self.calls[call].iter().map(launch).collect())
    }

    fn form(&self, kernel: usize, step: &Step, args: &[Operand], constant_offsets: &[usize]) -> Form {
        let program = self.program;
        let moves = step.sizes.iter().any(|(at, _)| matches!(at, SizedAt::Offset(_)));
        let aligned = |operand: &Operand| {
            let base = match program.buffers[operand.buffer.0].place {
                Place::Arena(at) => at,
                Place::Constant(i) => constant_offsets[i],
                Place::Input(_) | Place::Output(_) => 0,
            };
            (base + operand.offset_bytes).is_multiple_of(VECTOR_BYTES)
        };
        let formal = &program.kernels[kernel].args;
        let written = || args.iter().zip(formal).filter(|(_, arg)| arg.written).map(|(operand, _)| *operand);
        let in_place = args
            .iter()
            .zip(formal)
            .filter(|(_, arg)| !arg.written)
            .any(|(read, _)| written().any(|w| self.overlap(*read, w)));
        let large = args.iter().any(|operand| program.buffers[operand.buffer.0].bytes >= LARGE_BYTES);
        Form { aligned: !moves && args.iter().all(aligned), in_place, large }
    }

    /// Whether two operands may share memory.
    fn overlap(&self, a: Operand, b: Operand) -> bool {
        let program = self.program;
        let (x, y) = (&program.buffers[a.buffer.0], &program.buffers[b.buffer.0]);
        match (&x.place, &y.place) {
            (Place::Arena(i), Place::Arena(j)) => *i < j + y.bytes && *j < i + x.bytes,
            (Place::Input(i), Place::Output(j)) | (Place::Output(j), Place::Input(i)) => {
                program.carried.iter().any(|c| (c.input, c.output) == (*i, *j))
            }
            (p, q) => p == q,
        }
    }
}

impl From<CodegenError> for CompileError {
    fn from(error: CodegenError) -> CompileError {
        match error {
            CodegenError::Unsupported { .. } | CodegenError::NoCompiler { .. } => {
                CompileError::Unsupported(error.to_string())
            }
            CodegenError::Mlir(_) => CompileError::Internal(error.to_string()),
        }
    }
}
