//! What an artifact says of its contents.

use std::collections::BTreeMap;
use std::ops::Range;

use margay_loops::{Carried, Port, Program, Step, Work};
use margay_tensor::{DType, Storage};

/// Everything in an artifact but the bytes themselves.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Description {
    /// Program and version that wrote it.
    pub producer: String,
    /// The name of the model.
    pub model: String,
    /// Constants, in the order of their bytes.
    pub constants: Vec<StoredConstant>,
    /// Compiled graphs.
    pub entries: Vec<Entry>,
    /// Pieces of source by name.
    pub sources: BTreeMap<String, SourcePiece>,
}

/// A compiled graph, with every dimension bound.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// What it takes and gives, whatever runs it.
    pub parts: EntryParts,
    /// Its code for one or several back ends and targets, the preferred one first.
    pub sections: Vec<CodeSection>,
}

/// What an entry takes and gives.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EntryParts {
    /// The dimensions of the model that were bound, and their values.
    pub symbols: BTreeMap<String, i64>,
    /// Inputs, in the order of the program. Names differ.
    pub inputs: Vec<Port>,
    /// Outputs, in the order of the program. Names differ.
    pub outputs: Vec<Port>,
    /// States: outputs that are inputs of the next run. The caller neither gives nor gets them.
    pub carried: Vec<Carried>,
}

/// The code of an entry for one back end and target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CodeSection {
    /// What is known of it without looking inside.
    pub parts: SectionParts,
    /// Where it lies in the code section of the file, as the back end wrote it; begins on a multiple of 64 bytes.
    pub code: Range<usize>,
}

/// What is known of the code of an entry without looking inside.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SectionParts {
    /// The back end that wrote it and whose device reads it; the name of a [`Backend`](margay_loops::Backend).
    pub backend: String,
    /// The class of machines that it was compiled for.
    pub target: String,
    /// Architecture and operating system that it needs, such as `x86_64-linux`, or `any`.
    pub machine: String,
    /// Size of the arena.
    pub arena_bytes: usize,
    /// The steps, in the order of their numbers; faults and profiles are reported with them.
    pub steps: Vec<StepNote>,
    /// The constants it reads, as positions in [`Description::constants`].
    pub constants: Vec<usize>,
}

impl EntryParts {
    /// The inputs that the caller gives, with their numbers.
    pub fn given(&self) -> impl Iterator<Item = (usize, &Port)> + Clone {
        self.inputs.iter().enumerate().filter(|(i, _)| self.carried.iter().all(|c| c.input != *i))
    }

    /// The outputs that the caller gets, with their numbers.
    pub fn returned(&self) -> impl Iterator<Item = (usize, &Port)> + Clone {
        self.outputs.iter().enumerate().filter(|(i, _)| self.carried.iter().all(|c| c.output != *i))
    }
}

/// What an entry says of a step, for people.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StepNote {
    /// The nodes it stands for.
    pub label: String,
    /// What runs: a kernel call as it is printed, or `loops`.
    pub work: String,
    /// Multiplications and additions of a kernel call; 0 for loops, whose limit is memory.
    pub flops: u64,
    /// Bytes of the operands it touches.
    pub bytes: u64,
    /// Parallel regions, one after the other.
    pub regions: usize,
    /// What it requires of its data, by the number that its faults give.
    pub requirements: Vec<String>,
}

impl StepNote {
    /// What is to be said of a step of a program that was compiled to so many parallel regions.
    pub fn of(program: &Program, step: &Step, regions: usize) -> StepNote {
        let (work, flops, requirements) = match &step.work {
            Work::Kernel { kernel, .. } => ("loops".to_owned(), 0, program.kernels[*kernel].requirements()),
            Work::Call { call, .. } => (call.to_string(), call.flops(), Vec::new()),
            Work::Copy { .. } => ("copy".to_owned(), 0, Vec::new()),
            Work::If { .. } => ("if".to_owned(), 0, Vec::new()),
            Work::Loop(_) => ("loop".to_owned(), 0, Vec::new()),
        };
        let requirements = requirements.into_iter().map(str::to_owned).collect();
        let label = step.label.clone();
        StepNote { label, work, flops, bytes: program.traffic(step), regions, requirements }
    }

    /// What is to be said of every step of a program, in the order of their numbers.
    pub fn all(program: &Program, regions: &[usize]) -> Vec<StepNote> {
        let steps = program.steps().zip(regions);
        steps.map(|((_, step), &regions)| StepNote::of(program, step, regions)).collect()
    }
}

/// A constant as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredConstant {
    /// The names under which it was added, in that order. Constants of equal contents may have several.
    pub names: Vec<String>,
    /// The [`content_hash`](margay_tensor::StoredTensor::content_hash) of what is stored, which names it in the text of
    /// graphs.
    pub tensor: [u8; 32],
    /// Type of its numbers.
    pub dtype: DType,
    /// Extents of the tensor.
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub storage: Storage,
    /// The layout that a back end packed it into; `None` for row-major.
    pub layout: Option<Layout>,
    /// Where its bytes lie in the weights section; begins on a multiple of 64 bytes.
    pub range: Range<usize>,
    /// blake3 hash of those bytes; zeros where they were never in a file.
    pub hash: [u8; 32],
}

impl StoredConstant {
    /// Whether it was added under this name.
    pub fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }
}

/// A layout that only one back end knows.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    /// The name of the back end.
    pub backend: String,
    /// Its name for the layout.
    pub name: String,
}

/// Where a piece of source lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourcePiece {
    /// Its bytes in the source section.
    pub range: Range<usize>,
    /// blake3 hash of those bytes.
    pub hash: [u8; 32],
}
