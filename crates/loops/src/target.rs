//! What a family of hand-written kernels answers about a call.

use margay_tensor::Tensor;

use crate::KernelCall;

/// One parallel region of a prepared call. Phases run one after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Phase {
    /// The kernel, by its name in the target's table.
    pub kernel: &'static str,
    /// The words handed to it.
    pub params: Vec<u64>,
    /// Number of work items.
    pub items: usize,
    /// Items a thread should claim at once.
    pub grain: usize,
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

/// How a target runs a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// Parallel regions, in order.
    pub phases: Vec<Phase>,
    /// Bytes of scratch each thread needs, without the header.
    pub scratch_bytes: usize,
    /// What it needs of the program.
    pub needs: Needs,
}

/// No kernel of the target serves a call (a limit of margay).
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

/// A processor class, as far as hand-written kernels go. Answers are pure: the same question gets the same
/// answer on every machine.
pub trait Target {
    /// The name users give to `--target-cpu` and artifacts record.
    fn name(&self) -> &str;

    /// Kernel variants, parameters and memory of a call.
    fn prepare(&self, call: &KernelCall) -> Result<Prepared, NoKernel>;

    /// The bytes of a constant operand in the layout that [`prepare`](Target::prepare) named for it.
    fn pack(&self, call: &KernelCall, operand: usize, tensor: &Tensor) -> Result<Vec<u8>, NoKernel>;

    /// The inverse of [`pack`](Target::pack): the row-major tensor of the given shape.
    fn unpack(&self, layout: &str, shape: &[usize], bytes: &[u8]) -> Result<Tensor, NoKernel>;
}
