//! Programs: a tree of steps over planned buffers.
//!
//! The steps of a [`Program`] are numbered in the order in which they are written down: a step before those inside it,
//! those inside it before the next one. Faults, notes and profiles name steps by these numbers.

use margay_tensor::{DType, StoredTensor};

use crate::{Kernel, KernelCall, Needs, Open, Packed, SizeId};

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

impl Port {
    /// Bytes of its elements.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}

/// A constant of the program.
#[derive(Clone, Debug)]
pub struct Constant {
    /// The names it has in the graph: keys of payloads, several where constants are equal.
    pub names: Vec<String>,
    /// The contents, in the storage that the program reads.
    pub stored: StoredTensor,
    /// The call that reads it, and how it is packed for that call; `None` for row-major, with its parts where
    /// [`Storage::layout`](margay_tensor::Storage::layout) says.
    pub packed: Option<(KernelCall, Packed)>,
}

impl Constant {
    /// Its bytes where steps read it, scales and padding of its layout included: the one count of what it takes.
    pub fn bytes(&self) -> usize {
        match &self.packed {
            Some((_, packed)) => packed.bytes,
            None => self.stored.storage().layout(self.stored.shape()).bytes,
        }
    }
}

/// A number of repetitions: known, a size, or read when it is needed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Extent<R> {
    /// So many.
    Known(usize),
    /// A size, which is never below `least` nor above `most`.
    Sized {
        /// The size.
        size: SizeId,
        /// The fewest.
        least: usize,
        /// The most.
        most: usize,
    },
    /// What an I64 says: none if it is negative, and never more than the bound.
    Read {
        /// Where it is read.
        from: R,
        /// The most.
        bound: usize,
    },
}

impl<R> From<usize> for Extent<R> {
    fn from(n: usize) -> Extent<R> {
        Extent::Known(n)
    }
}

impl<R> Extent<R> {
    /// The most repetitions there can be.
    pub fn bound(&self) -> usize {
        match self {
            Extent::Known(n) | Extent::Sized { most: n, .. } | Extent::Read { bound: n, .. } => *n,
        }
    }
}

/// What a step runs.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "a program has hundreds of steps, not millions")]
pub enum Work {
    /// A generated kernel.
    Kernel {
        /// Its number in [`Program::kernels`].
        kernel: usize,
        /// Memory, in the order of the kernel's arguments.
        args: Vec<Operand>,
    },
    /// A hand-written kernel.
    Call {
        /// What it computes.
        call: KernelCall,
        /// What the target needs for it.
        needs: Needs,
        /// Memory, in the order of the call's arguments.
        args: Vec<Operand>,
    },
    /// Copies bytes. The two regions do not overlap.
    Copy {
        /// The first byte read.
        from: Operand,
        /// The first byte written.
        to: Operand,
        /// How many.
        bytes: usize,
    },
    /// One of two lists of steps.
    If {
        /// A truth value in memory.
        test: Operand,
        /// The steps that run where it is true.
        then: Vec<Step>,
        /// The steps that run where it is false.
        otherwise: Vec<Step>,
    },
    /// A list of steps, again and again.
    Loop(Loop),
}

/// A loop over steps. Before each repetition the condition is read, if there is one, and false ends the loop; then the
/// counter is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loop {
    /// How often, read once before the first repetition.
    pub trips: Extent<Operand>,
    /// A truth value in memory that the body may change.
    pub condition: Option<Operand>,
    /// An I64 in memory that receives the number of the repetition, from 0 on.
    pub counter: Option<Operand>,
    /// What is repeated.
    pub body: Vec<Step>,
}

/// A number in the work of a step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum SizedAt {
    /// The number of so many before it in the [text](KernelCall::text) of a call.
    Call(usize),
    /// The first byte of so many operands before it.
    Offset(usize),
    /// The bytes of a copy.
    Bytes,
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// The nodes it stands for, for people.
    pub label: String,
    /// What it runs.
    pub work: Work,
    /// The numbers of a kernel's, call's or copy's work that are sizes, in order; the work has the greatest of each.
    pub sizes: Vec<(SizedAt, SizeId)>,
}

impl Step {
    /// The memory that the step itself touches, in the order of its arguments; not that of the steps inside it.
    pub fn operands(&self) -> Vec<Operand> {
        match &self.work {
            Work::Kernel { args, .. } | Work::Call { args, .. } => args.clone(),
            Work::Copy { from, to, .. } => vec![*from, *to],
            Work::If { test, .. } => vec![*test],
            Work::Loop(l) => {
                let trips = match l.trips {
                    Extent::Known(_) | Extent::Sized { .. } => None,
                    Extent::Read { from, .. } => Some(from),
                };
                trips.into_iter().chain(l.condition).chain(l.counter).collect()
            }
        }
    }

    /// The lists of steps inside the step, in order.
    pub fn blocks(&self) -> Vec<&[Step]> {
        match &self.work {
            Work::Kernel { .. } | Work::Call { .. } | Work::Copy { .. } => Vec::new(),
            Work::If { then, otherwise, .. } => vec![then, otherwise],
            Work::Loop(l) => vec![&l.body],
        }
    }
}

/// The steps of a list and those inside them in the order of their numbers, each with the number of steps around it.
pub fn walk(body: &[Step]) -> impl Iterator<Item = (usize, &Step)> {
    let mut open = vec![(0, body.iter())];
    std::iter::from_fn(move || {
        loop {
            let (depth, steps) = open.last_mut()?;
            let depth = *depth;
            match steps.next() {
                Some(step) => {
                    // A step with two lists ends the first before it begins the second.
                    open.extend(step.blocks().into_iter().rev().map(|block| (depth + 1, block.iter())));
                    return Some((depth, step));
                }
                None => drop(open.pop()),
            }
        }
    })
}

/// Shows every operand of a list of steps and those inside them.
pub fn for_each_operand(body: &mut [Step], change: &mut dyn FnMut(&mut Operand)) {
    for step in body {
        match &mut step.work {
            Work::Kernel { args, .. } | Work::Call { args, .. } => args.iter_mut().for_each(&mut *change),
            Work::Copy { from, to, .. } => [from, to].into_iter().for_each(&mut *change),
            Work::If { test, then, otherwise } => {
                change(test);
                for_each_operand(then, change);
                for_each_operand(otherwise, change);
            }
            Work::Loop(l) => {
                if let Extent::Read { from, .. } = &mut l.trips {
                    change(from);
                }
                l.condition.iter_mut().chain(&mut l.counter).for_each(&mut *change);
                for_each_operand(&mut l.body, change);
            }
        }
    }
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

/// An output that says how many positions another output has along an axis: an I64, which a run decides. The other one has
/// room for the most there can be; the elements at the positions that count come first, row by row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Counted {
    /// The number of the output that is counted.
    pub output: usize,
    /// Its axis.
    pub axis: usize,
    /// The number of the output that says how many.
    pub count: usize,
}

/// A compiled graph at the loop level: every buffer has its place, and every extent is known, or follows from symbols
/// where the program is [open](Open).
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// What it leaves open; nothing where every extent is known. Ports and buffers have their greatest extents.
    pub open: Open,
    /// Inputs in the order of the graph.
    pub inputs: Vec<Port>,
    /// Outputs in the order of the graph.
    pub outputs: Vec<Port>,
    /// States: what a run leaves for the next one.
    pub carried: Vec<Carried>,
    /// Extents of outputs that a run decides.
    pub counted: Vec<Counted>,
    /// Constants.
    pub constants: Vec<Constant>,
    /// Buffers.
    pub buffers: Vec<Buffer>,
    /// Distinct generated kernels.
    pub kernels: Vec<Kernel>,
    /// What runs, in order.
    pub body: Vec<Step>,
    /// Size of the arena.
    pub arena_bytes: usize,
}

impl Program {
    /// Every step in the order of their numbers, with the number of steps around it.
    pub fn steps(&self) -> impl Iterator<Item = (usize, &Step)> {
        walk(&self.body)
    }

    /// Bytes of all constants as they are stored, scales and padding of layouts included.
    pub fn constant_bytes(&self) -> u64 {
        self.constants.iter().map(|c| c.bytes() as u64).sum()
    }

    /// Bytes of the constants that kernels read in layouts of their own, the weights of products and convolutions.
    pub fn packed_bytes(&self) -> u64 {
        self.constants.iter().filter(|c| c.packed.is_some()).map(|c| c.bytes() as u64).sum()
    }

    /// Bytes that a step itself reads and writes: every operand once, but no more of one that is gathered from than
    /// is written. Elements and scales of one constant are one operand.
    pub fn traffic(&self, step: &Step) -> u64 {
        let size = |operand: &Operand| self.buffers[operand.buffer.0].bytes;
        let total: usize = match &step.work {
            Work::Call { args, .. } => args.iter().map(size).sum(),
            Work::Kernel { kernel, args } => {
                let kernel = &self.kernels[*kernel];
                let args = || kernel.args.iter().zip(args).enumerate();
                let written: usize = args().filter(|(_, (a, _))| a.written).map(|(_, (_, o))| size(o)).sum();
                let parts = |(i, (_, operand)): &(usize, (_, &Operand))| {
                    let constant = matches!(self.buffers[operand.buffer.0].place, Place::Constant(_));
                    constant && args().take(*i).any(|(_, (_, before))| before.buffer == operand.buffer)
                };
                let touched = |(i, (_, operand)): (usize, (_, &Operand))| match kernel.gathers_from(i) {
                    true => size(operand).min(written),
                    false => size(operand),
                };
                args().filter(|arg| !parts(arg)).map(touched).sum()
            }
            Work::Copy { bytes, .. } => 2 * bytes,
            Work::If { .. } | Work::Loop(_) => step.operands().iter().map(size).sum(),
        };
        total as u64
    }
}
