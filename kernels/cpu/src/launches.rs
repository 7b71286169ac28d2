//! The words that a driver launches regions by, and how they follow from sizes.
//!
//! A driver is handed a table of words: the sizes of the program, then for every region its [`Control`] words, then the
//! parameters of all regions. Of a closed program the table is made when it is compiled; of an open one when it runs with
//! new sizes, by asking anew how each call is run.

use margay_loops::{KernelCall, NoKernel, Packed};

use crate::Prepared;

/// The words of a region in the table of a driver, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Control {
    /// Number of work items; 0 where the region has none for these sizes.
    Items,
    /// Items that run together at least.
    Grain,
    /// The kernel's place in the table of functions.
    Slot,
    /// The first of its parameters, as a position in the table of words.
    Params,
}

impl Control {
    /// How many words there are.
    pub const WORDS: usize = 4;

    /// Where a word of a region is, in a program of so many sizes.
    pub fn at(self, sizes: usize, region: usize) -> usize {
        sizes + Control::WORDS * region + self as usize
    }
}

/// A product of a number and sizes, divided by a number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Term {
    /// The number.
    pub factor: u64,
    /// What divides the product; 0 counts as 1.
    pub divisor: u64,
    /// The numbers of the sizes.
    pub sizes: Vec<u32>,
}

impl Term {
    /// A number.
    pub fn number(factor: u64) -> Term {
        Term { factor, divisor: 1, sizes: Vec::new() }
    }

    /// A size, divided by a number.
    pub fn size(size: u32, divisor: u64) -> Term {
        Term { factor: 1, divisor, sizes: vec![size] }
    }

    /// The product of two.
    #[must_use]
    pub fn times(&self, other: &Term) -> Term {
        Term {
            factor: self.factor.saturating_mul(other.factor),
            divisor: self.divisor.max(1).saturating_mul(other.divisor.max(1)),
            sizes: [self.sizes.as_slice(), &other.sizes].concat(),
        }
    }

    fn value(&self, sizes: &[i64]) -> u64 {
        let size = |n: &u32| sizes.get(*n as usize).map_or(0, |v| u64::try_from(*v).unwrap_or(0));
        self.sizes.iter().map(size).fold(self.factor, u64::saturating_mul) / self.divisor.max(1)
    }
}

/// What a step without steps inside launches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Launch {
    /// A generated kernel, in one region.
    Kernel {
        /// The number of the step, which is its first parameter.
        step: u64,
        /// Its place in the table of functions.
        slot: usize,
        /// Work items.
        items: Term,
        /// An estimate of the work of all items, with additions as the unit.
        operations: Vec<Term>,
        /// What the number of items that run together is a multiple of.
        block: usize,
        /// Its other parameters, in order.
        params: Vec<Term>,
    },
    /// A hand-written kernel.
    Call {
        /// The text of the call, which names sizes.
        call: String,
        /// The most regions.
        regions: usize,
        /// The bytes of workspace that the program has for it.
        workspace_bytes: usize,
        /// Layouts of its constants.
        packed: Vec<Packed>,
    },
}

impl Launch {
    /// How many regions it has.
    pub fn regions(&self) -> usize {
        match self {
            Launch::Kernel { .. } => 1,
            Launch::Call { regions, .. } => *regions,
        }
    }
}

/// The table of a driver for some sizes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Table {
    /// The words.
    pub words: Vec<u64>,
    /// Hand-written kernels, in the order of their places in the table of functions, which begin behind those of generated
    /// ones.
    pub imports: Vec<&'static str>,
    /// Bytes of scratch each thread needs for them, without the header.
    pub scratch_bytes: usize,
}

/// Operations that a run of items is worth: a kernel with fewer than two runs' worth is one run.
const OPERATIONS_PER_RUN: u64 = 1 << 16;

/// How calls are run.
pub type Prepare<'a> = &'a dyn Fn(&KernelCall) -> Result<Prepared, NoKernel>;

/// How many items of a generated kernel run together: [`OPERATIONS_PER_RUN`], or all items when that would leave less than
/// two runs, in whole blocks.
fn grain(items: u64, operations: u64, block: usize) -> u64 {
    if operations < 2 * OPERATIONS_PER_RUN || items < 2 {
        return items.max(1);
    }
    let grain = (u128::from(items) * u128::from(OPERATIONS_PER_RUN) / u128::from(operations)).max(1);
    u64::try_from(grain).unwrap_or(u64::MAX).next_multiple_of(block.max(1) as u64)
}

/// The table for sizes, where the table of functions has room for so many before the imported ones.
///
/// # Errors
/// In words: a call that no kernel serves, or that asks for more than the program has for it.
pub fn table(launches: &[Launch], sizes: &[i64], own: usize, prepare: Prepare<'_>) -> Result<Table, String> {
    let regions: usize = launches.iter().map(Launch::regions).sum();
    let mut out = Table { words: vec![0; sizes.len() + Control::WORDS * regions], ..Table::default() };
    for (word, size) in out.words.iter_mut().zip(sizes) {
        *word = size.cast_unsigned();
    }
    let mut region = 0;
    for launch in launches {
        match launch {
            Launch::Kernel { step, slot, items, operations, block, params } => {
                let items = items.value(sizes);
                let operations = operations.iter().map(|t| t.value(sizes)).fold(0, u64::saturating_add);
                // A parameter may be negative: it is not a count but an offset.
                let param = |t: &Term| match (t.factor, t.divisor, t.sizes.as_slice()) {
                    (1, 1, [size]) => sizes.get(*size as usize).map_or(0, |v| v.cast_unsigned()),
                    _ => t.value(sizes),
                };
                let params: Vec<u64> = std::iter::once(*step).chain(params.iter().map(param)).collect();
                out.region(
                    sizes.len(),
                    region,
                    [items, grain(items, operations, *block), *slot as u64],
                    &params,
                );
            }
            Launch::Call { call, regions, workspace_bytes, packed } => {
                let prepared = prepare_at(call, sizes, prepare)?;
                let needs = &prepared.needs;
                if needs.workspace_bytes > *workspace_bytes
                    || needs.packed != *packed
                    || prepared.phases.len() > *regions
                {
                    return Err(format!("`{call}` needs more at {sizes:?} than it was compiled with"));
                }
                out.scratch_bytes = out.scratch_bytes.max(prepared.scratch_bytes);
                for (i, phase) in prepared.phases.iter().enumerate() {
                    let slot = (own + out.import(phase.kernel)) as u64;
                    let control = [phase.items as u64, phase.grain as u64, slot];
                    out.region(sizes.len(), region + i, control, &phase.params);
                }
            }
        }
        region += launch.regions();
    }
    Ok(out)
}

/// How the call of a text is run where its sizes are these.
///
/// # Errors
/// In words: a text that is no call, and one that no kernel serves.
pub fn prepare_at(text: &str, sizes: &[i64], prepare: Prepare<'_>) -> Result<Prepared, String> {
    let (family, fields) = text.split_once(' ').ok_or_else(|| format!("`{text}` is not a call"))?;
    let call = KernelCall::read(family, &margay_loops::open::with_sizes(fields, sizes))?;
    prepare(&call).map_err(|e| e.to_string())
}

impl Table {
    fn import(&mut self, kernel: &'static str) -> usize {
        self.imports.iter().position(|name| *name == kernel).unwrap_or_else(|| {
            self.imports.push(kernel);
            self.imports.len() - 1
        })
    }

    fn region(&mut self, sizes: usize, region: usize, [items, grain, slot]: [u64; 3], params: &[u64]) {
        let at = self.words.len() as u64;
        for (control, word) in
            [(Control::Items, items), (Control::Grain, grain), (Control::Slot, slot), (Control::Params, at)]
        {
            self.words[control.at(sizes, region)] = word;
        }
        self.words.extend(params);
    }
}
