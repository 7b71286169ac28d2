//! Programs: steps over planned buffers.

use margay_tensor::{DType, Tensor};

use crate::{Kernel, KernelCall};

/// Names a buffer of a program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct BufferId(pub usize);

/// Where a buffer lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// The caller's memory of input number so and so.
    Input(usize),
    /// The caller's memory of output number so and so.
    Output(usize),
    /// A constant, by its number in [`Program::constants`].
    Constant(usize),
    /// The session's arena, from this byte on.
    Arena(usize),
}

/// A region of memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Buffer {
    /// Where it lies.
    pub place: Place,
    /// Its size.
    pub bytes: usize,
}

/// A buffer as an argument of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operand {
    /// The buffer.
    pub buffer: BufferId,
    /// First byte.
    pub offset_bytes: usize,
}

/// A named input or output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// The name in the model.
    pub name: String,
    /// Type of the elements.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
}

/// A constant of the program.
#[derive(Clone, Debug)]
pub struct Constant {
    /// The values, row-major.
    pub tensor: Tensor,
    /// The call and the operand whose layout it is stored in; `None` for row-major.
    pub packed_for: Option<(KernelCall, usize)>,
}

/// What a step runs.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "a program has hundreds of steps, not millions")]
pub enum Work {
    /// A generated kernel, by its number in [`Program::kernels`].
    Loops(usize),
    /// A hand-written kernel.
    Call(KernelCall),
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// What it runs.
    pub work: Work,
    /// Memory, in the order of the kernel's arguments.
    pub args: Vec<Operand>,
    /// The nodes it stands for, for people.
    pub label: String,
}

/// An output that is an input of the next run: both are one region of memory, which outlives runs. The two have one type.
///
/// No step reads the input after a step has begun to write the output, except at the very position it writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Carried {
    /// Its number among the inputs.
    pub input: usize,
    /// Its number among the outputs.
    pub output: usize,
}

/// A compiled graph at the loop level: every extent is known, every buffer has its place.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Inputs in the order of the graph.
    pub inputs: Vec<Port>,
    /// Outputs in the order of the graph.
    pub outputs: Vec<Port>,
    /// States: what a run leaves for the next one.
    pub carried: Vec<Carried>,
    /// Constants.
    pub constants: Vec<Constant>,
    /// Buffers.
    pub buffers: Vec<Buffer>,
    /// Distinct generated kernels.
    pub kernels: Vec<Kernel>,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// Size of the arena.
    pub arena_bytes: usize,
}

impl Program {
    /// Bytes that a step reads and writes: every operand once, but no more of one that is gathered from than is
    /// written.
    pub fn traffic(&self, step: usize) -> u64 {
        let step = &self.steps[step];
        let size = |i: usize| self.buffers[step.args[i].buffer.0].bytes;
        let total: usize = match &step.work {
            Work::Call(_) => (0..step.args.len()).map(size).sum(),
            Work::Loops(k) => {
                let kernel = &self.kernels[*k];
                let args = 0..kernel.args.len();
                let written: usize = args.clone().filter(|&i| kernel.args[i].written).map(size).sum();
                let touched = |i: usize| if kernel.gathers_from(i) { size(i).min(written) } else { size(i) };
                args.map(touched).sum()
            }
        };
        total as u64
    }
}
