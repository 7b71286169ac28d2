//! What a compiler needs to know of the machine it compiles for: a back end, chosen once and passed down as a value.
//!
//! Nothing above this trait depends on what a back end is. It answers questions about kernel calls while a graph is
//! lowered, packs constants, turns a [`Program`] into code that only itself and its device understand, and predicts
//! times. The calling convention of that code is the back end's own business.

use std::fmt;

use margay_tensor::StoredTensor;

use crate::text::fields;
use crate::{KernelCall, Operations, Program, Step, Work};

/// What a back end likes programs to be like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Preferences {
    /// Alignment in bytes of the arena, of constants and of every buffer in them; a power of two.
    pub buffer_align: usize,
    /// Whether images are to lie channels last before they are lowered.
    pub channels_last: bool,
    /// Whether attention by random features makes the features itself where nobody else reads them; else they are computed before.
    pub features_in_attention: bool,
    /// The most nodes of one expression and the most stages behind one loop nest or call; longer chains go through
    /// memory.
    pub max_fused: usize,
    /// The most operations per element of an expression that is computed again for each of its readers.
    pub cheap_operations: u64,
    /// Extents from which on the code of a loop has another form, in order. Code for a size is made for extents that none
    /// of them lies between.
    pub extent_steps: Vec<usize>,
}

/// A constant operand that is stored in another layout than row-major.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Packed {
    /// Position among the arguments of the call.
    pub operand: usize,
    /// Names the layout; two calls that name the same layout share the packed bytes of one constant.
    pub layout: String,
    /// Size of the packed constant.
    pub bytes: usize,
}

/// What a call needs of the program around it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// Bytes of shared workspace, handed over as the last argument; 0 for none.
    pub workspace_bytes: usize,
    /// Operands to be packed.
    pub packed: Vec<Packed>,
}

fields!(Packed { operand, layout, bytes });
fields!(Needs { workspace_bytes = 0, packed = Vec::new() });

/// A program in the language of a back end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Code {
    /// What the device of the back end loads; nobody else looks inside.
    pub bytes: Vec<u8>,
    /// Architecture and operating system that it needs, such as `x86_64-linux`, or `any`.
    pub machine: String,
    /// Number of timed regions of each step itself, in the order of the steps' numbers.
    pub regions: Vec<usize>,
}

/// No kernel of the back end serves a call (a limit of margay).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("target `{target}` has no kernel for `{call}`: {why}")]
pub struct NoKernel {
    /// The target.
    pub target: String,
    /// The call, as printed.
    pub call: String,
    /// The reason.
    pub why: String,
}

/// A program could not be compiled.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CompileError {
    /// No kernel serves a call (a limit of margay).
    #[error(transparent)]
    NoKernel(#[from] NoKernel),
    /// The program uses a construct that the back end does not translate (a limit of margay).
    #[error("{0}")]
    Unsupported(String),
    /// Our bug: what was made of the program is refused further down.
    #[error("{0}")]
    Internal(String),
}

/// A back end for one class of machines. Answers are pure: the same question gets the same answer wherever it is asked.
pub trait Backend: fmt::Debug + Send + Sync {
    /// The name of the back end, such as `cpu`; artifacts record it.
    fn name(&self) -> &str;

    /// The class of machines compiled for, such as `x86-64-v4`; artifacts and plans record it.
    fn target(&self) -> &str;

    /// The name of the device that runs what is compiled in this process, such as `cpu` or `cuda:1`. Code does not depend on it.
    fn device(&self) -> String;

    /// What programs are to be like.
    fn preferences(&self) -> Preferences;

    /// Whether a constant operand is stored in a layout of the back end's own. Asked when a graph is lowered; the call
    /// says so from then on ([`KernelCall::packed`]), or that it is stored row-major.
    fn packs(&self, call: &KernelCall, operand: usize) -> bool;

    /// What a call needs of the program around it. Asked once, when a graph is lowered; the program carries the answer.
    fn prepare(&self, call: &KernelCall) -> Result<Needs, NoKernel>;

    /// The bytes of a constant operand in the layout that [`prepare`](Backend::prepare) named for it.
    fn pack(&self, call: &KernelCall, operand: usize, stored: &StoredTensor) -> Result<Vec<u8>, NoKernel>;

    /// The inverse of [`pack`](Backend::pack): the stored tensor of the given shape.
    fn unpack(&self, layout: &str, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, NoKernel>;

    /// Compiles a program. `constant_offsets` says where its constants lie in the memory that the device is handed, in
    /// bytes. The result depends on the arguments only.
    fn compile(&self, program: &Program, constant_offsets: &[usize]) -> Result<Code, CompileError>;

    /// The name and version of what times are predicted by; plans record it.
    fn cost_model(&self) -> &str;

    /// The predicted seconds of a call on some threads.
    fn call_seconds(&self, call: &KernelCall, threads: usize) -> f64;

    /// The predicted seconds of a loop nest on some threads, that reads and writes so many bytes.
    fn loop_seconds(&self, bytes: u64, operations: Operations, threads: usize) -> f64;
}

impl Program {
    /// The predicted seconds of one run. Of two ways the more expensive one counts, and loops run as often as they may.
    pub fn seconds(&self, backend: &dyn Backend, threads: usize) -> f64 {
        self.block_seconds(&self.body, backend, threads)
    }

    fn block_seconds(&self, steps: &[Step], backend: &dyn Backend, threads: usize) -> f64 {
        let block = |steps: &[Step]| self.block_seconds(steps, backend, threads);
        let seconds = |step: &Step| match &step.work {
            Work::Call { call, .. } => backend.call_seconds(call, threads),
            Work::Kernel { kernel, .. } => {
                backend.loop_seconds(self.traffic(step), self.kernels[*kernel].operations(), threads)
            }
            Work::Copy { .. } => backend.loop_seconds(self.traffic(step), Operations::default(), threads),
            Work::If { then, otherwise, .. } => block(then).max(block(otherwise)),
            Work::Loop(l) => l.trips.bound() as f64 * block(&l.body),
        };
        steps.iter().map(seconds).sum()
    }

    /// Multiplications and additions of the kernel calls; those inside loops count once.
    pub fn flops(&self) -> u64 {
        let call = |(_, step): (usize, &Step)| match &step.work {
            Work::Call { call, .. } => call.flops(),
            Work::Kernel { .. } | Work::Copy { .. } | Work::If { .. } | Work::Loop(_) => 0,
        };
        self.steps().map(call).sum()
    }
}
