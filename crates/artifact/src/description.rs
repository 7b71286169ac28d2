//! What an artifact says of its contents.

use std::collections::BTreeMap;
use std::ops::Range;

use margay_loops::{Carried, Counted, Open, Port, Program, SizeId, Step, Work};
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

/// A compiled graph, with every dimension bound to a value or to ranges of values.
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
    /// The dimensions of the model that were bound, and their values; of those that are open the greatest.
    pub symbols: BTreeMap<String, i64>,
    /// What is left open; nothing where every extent is known. Ports have their greatest extents.
    pub open: Open,
    /// Inputs, in the order of the program. Names differ.
    pub inputs: Vec<Port>,
    /// Outputs, in the order of the program. Names differ.
    pub outputs: Vec<Port>,
    /// States: outputs that are inputs of the next run. The caller neither gives nor gets them.
    pub carried: Vec<Carried>,
    /// Extents of outputs that a run decides, each by another output, which the caller does not get.
    pub counted: Vec<Counted>,
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
    /// Finds the values of the open dimensions for inputs of the shapes that `shape_of` tells by name; false if some input
    /// has no such shape. Whether the entry serves the values is another question. Allocates nothing where `symbols` has
    /// room for as many.
    pub fn solve<'t>(&self, shape_of: &dyn Fn(&str) -> Option<&'t [usize]>, symbols: &mut Vec<i64>) -> bool {
        // Extents are at least 0, so that this is none.
        const UNKNOWN: i64 = i64::MIN;
        symbols.clear();
        symbols.resize(self.open.symbols.len(), UNKNOWN);
        // An extent may follow from a symbol that another one tells.
        for _ in 0..=self.open.symbols.len() {
            for (i, port) in self.given() {
                let Some(shape) = shape_of(&port.name).filter(|s| s.len() == port.shape.len()) else {
                    return false;
                };
                for (axis, size) in self.open.inputs.get(i).map_or(&[][..], Vec::as_slice) {
                    self.solve_axis(*size, shape[*axis] as i64, symbols);
                }
            }
        }
        let fits = |(i, port): (usize, &Port)| {
            let open = self.open.inputs.get(i).map_or(&[][..], Vec::as_slice);
            shape_of(&port.name).is_some_and(|shape| {
                shape.iter().zip(&port.shape).enumerate().all(|(axis, (found, most))| {
                    match open.iter().find(|(a, _)| *a == axis) {
                        None => found == most,
                        Some((_, size)) => self.open.size_at(*size, symbols) == Some(*found as i64),
                    }
                })
            })
        };
        !symbols.contains(&UNKNOWN) && self.given().all(fits)
    }

    /// Sets the one symbol without a value that an extent follows from in a straight line.
    fn solve_axis(&self, size: SizeId, extent: i64, symbols: &mut [i64]) {
        let value = &self.open.sizes[size.0 as usize].value;
        for k in 0..symbols.len() {
            let at = |v: i64| {
                value.value(&|name| {
                    let place = self.open.symbols.iter().position(|s| **s == *name)?;
                    if place == k { Some(v) } else { Some(symbols[place]).filter(|v| *v != i64::MIN) }
                })
            };
            if symbols[k] == i64::MIN
                && let (Some(zero), Some(one)) = (at(0), at(1))
                && let (Some(rest), Some(slope)) = (extent.checked_sub(zero), one.checked_sub(zero))
                && rest.checked_rem(slope) == Some(0)
                && let Some(value) = rest.checked_div(slope)
            {
                symbols[k] = value;
            }
        }
    }

    fn extents(&self, port: &Port, open: &[(usize, SizeId)]) -> Vec<String> {
        let extent = |(axis, n): (usize, &usize)| match open.iter().find(|(a, _)| *a == axis) {
            Some((_, size)) => self.open.sizes[size.0 as usize].value.to_string(),
            None => n.to_string(),
        };
        port.shape.iter().enumerate().map(extent).collect()
    }

    /// The extents of every input and of every output, open ones as they follow from symbols: `1`, `seq`.
    pub fn shapes(&self) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
        let all = |ports: &[Port], open: &[Vec<(usize, SizeId)>]| {
            let of = |(i, port)| self.extents(port, open.get(i).map_or(&[][..], Vec::as_slice));
            ports.iter().enumerate().map(of).collect()
        };
        (all(&self.inputs, &self.open.inputs), all(&self.outputs, &self.open.outputs))
    }

    /// The inputs that the caller gives, with their numbers.
    pub fn given(&self) -> impl Iterator<Item = (usize, &Port)> + Clone {
        self.inputs.iter().enumerate().filter(|(i, _)| self.carried.iter().all(|c| c.input != *i))
    }

    /// The outputs that the caller gets, with their numbers.
    pub fn returned(&self) -> impl Iterator<Item = (usize, &Port)> + Clone {
        let kept = |i: usize| {
            self.carried.iter().any(|c| c.output == i) || self.counted.iter().any(|c| c.count == i)
        };
        self.outputs.iter().enumerate().filter(move |(i, _)| !kept(*i))
    }
}

/// What an entry says of a step, for people; of an open entry at the greatest extents.
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
            Work::Kernel { kernel, .. } => {
                let kernel = &program.kernels[*kernel];
                let required = kernel.requirements().into_iter().map(|what| program.open.spelled(what));
                ("loops".to_owned(), 0, required.collect())
            }
            Work::Call { call, .. } => (call.to_string(), call.flops(), Vec::new()),
            Work::Copy { .. } => ("copy".to_owned(), 0, Vec::<String>::new()),
            Work::If { .. } => ("if".to_owned(), 0, Vec::new()),
            Work::Loop(_) => ("loop".to_owned(), 0, Vec::new()),
        };
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
