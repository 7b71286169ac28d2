//! A loop nest as one kernel.

use margay_kernels_gpu::{ENTRY, Element, Param, Type, Value, Writer};
use margay_loops::{Arithmetic, Axis, Comparison, Extent, Factor, Index, Kernel, Reg, SizeId, Stmt};
use margay_tensor::DType;

use crate::mapping::{LANES, Mapping, Share};
use crate::{CodegenError, map};

/// What a kernel is compiled for, besides its statements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Form {
    /// Every argument begins at a multiple of 16 bytes.
    pub aligned: bool,
    /// An argument that is read may be the memory of one that is written.
    pub in_place: bool,
    /// Some argument has elements that 31 bits do not count.
    pub large: bool,
}

/// A kernel as MLIR.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// The module.
    pub text: String,
    /// How it is launched.
    pub mapping: Mapping,
    /// Its sizes, which are handed over behind the arguments, the word for faults and the number of the step.
    pub sizes: Vec<SizeId>,
}

/// What a register holds.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) value: Value,
    /// The number, if it is a literal of f32.
    pub(crate) literal: Option<f32>,
}

/// Writes one kernel.
pub(crate) struct Emitter<'k> {
    pub(crate) w: Writer,
    pub(crate) kernel: &'k Kernel,
    name: &'k str,
    pub(crate) args: Vec<Value>,
    pub(crate) fault: Value,
    pub(crate) step: Value,
    sizes: Vec<(SizeId, Value)>,
    axes: Vec<Option<Value>>,
    pub(crate) regs: Vec<Option<Slot>>,
    pub(crate) mapping: Mapping,
    /// The type of positions in memory.
    pub(crate) index: Type,
    /// The innermost parallel loop, where neighbours go together.
    pub(crate) lanes_along: Option<Axis>,
    /// How many loops inside a position surround the current place.
    pub(crate) depth: usize,
    pub(crate) thread: Value,
    /// What the warps of a block exchange partial results by, once they do.
    pub(crate) exchange: Option<Value>,
}

/// Writes a kernel as MLIR, a function named [`ENTRY`]. Its parameters are the arguments, the address of the word for faults,
/// the [fault word](margay_kernels_gpu::fault_word) of requirement 0 of the step, and its sizes. `name` is told in errors.
///
/// # Errors
/// [`CodegenError::Unsupported`] for a construct without translation.
pub fn write(kernel: &Kernel, name: &str, form: Form) -> Result<Written, CodegenError> {
    let mapping = map(kernel, form.aligned);
    let align = |dtype: DType| if form.aligned { 16 } else { Element::in_memory(dtype).bits() as usize / 8 };
    let mut params: Vec<Param> = kernel
        .args
        .iter()
        .map(|arg| Param::Pointer { align: align(arg.dtype), constant: !arg.written && !form.in_place })
        .collect();
    params.push(Param::Pointer { align: 8, constant: false });
    params.push(Param::Word);
    let sizes = kernel.sizes();
    params.extend(sizes.iter().map(|_| Param::Word));
    let (mut w, values) = Writer::new(&params, mapping.threads);
    let (args, rest) = values.split_at(kernel.args.len());
    let thread = w.thread();
    let mut e = Emitter {
        w,
        kernel,
        name,
        args: args.to_vec(),
        fault: rest[0],
        step: rest[1],
        sizes: sizes.iter().copied().zip(rest[2..].iter().copied()).collect(),
        axes: vec![None; usize::from(kernel.axes)],
        regs: vec![None; kernel.regs.len()],
        mapping,
        index: if form.large { Type::I64 } else { Type::I32 },
        lanes_along: None,
        depth: 0,
        thread,
        exchange: None,
    };
    e.positions()?;
    debug_assert!(!ENTRY.is_empty());
    Ok(Written { text: e.w.finish(), mapping, sizes })
}

impl<'k> Emitter<'k> {
    /// The error for a construct without translation.
    pub(crate) fn unsupported<T>(&self, construct: String) -> Result<T, CodegenError> {
        Err(CodegenError::Unsupported { kernel: self.name.to_string(), construct })
    }

    pub(crate) fn dtype(&self, r: Reg) -> DType {
        self.kernel.regs[r.0 as usize]
    }

    /// Runs the inside of the parallel loops for every position that falls to the thread or the block.
    fn positions(&mut self) -> Result<(), CodegenError> {
        let kernel = self.kernel;
        let (before, loops, inside) = kernel.parallel_nest();
        self.block(before)?;
        let loops: Vec<(Axis, Extent<Reg>)> = loops
            .into_iter()
            .filter_map(|stmt| match stmt {
                Stmt::Loop { axis, extent, .. } => Some((*axis, *extent)),
                _ => None,
            })
            .collect();
        let lanes = if let Share::Thread { lanes } = self.mapping.share { lanes } else { 1 };
        let mut extents = Vec::new();
        for (n, (_, extent)) in loops.iter().enumerate() {
            extents.push(match extent {
                Extent::Known(extent) if n + 1 == loops.len() => self.at(extent / lanes),
                other => self.extent(*other),
            });
        }
        let mut total = self.at(1);
        for &extent in &extents {
            total = self.product(total, extent);
        }
        let block = self.w.block_number();
        let block = self.w.resize(block, self.index.element, false);
        let (first, step) = match self.mapping.share {
            Share::Block => (block, self.at(self.mapping.blocks)),
            Share::Thread { .. } => {
                let threads = self.at(self.mapping.threads);
                let thread = self.w.resize(self.thread, self.index.element, false);
                let before = self.w.imul(block, threads);
                (self.w.iadd(before, thread), self.at(self.mapping.blocks * self.mapping.threads))
            }
        };
        let (position, _) = self.w.begin_for(first, total, step, &[]);
        let mut rest = position;
        for (n, (&(axis, _), &extent)) in loops.iter().zip(&extents).enumerate().rev() {
            let mut at = rest;
            if n > 0 {
                at = self.w.remainder(rest, extent);
                rest = self.w.divide(rest, extent);
            }
            if n + 1 == loops.len() && lanes > 1 {
                let lanes = self.at(LANES);
                at = self.w.imul(at, lanes);
                self.lanes_along = Some(axis);
            }
            self.axes[usize::from(axis.0)] = Some(at);
        }
        self.block(inside)?;
        self.w.end_for(&[]);
        Ok(())
    }

    /// A number as a position.
    pub(crate) fn at(&mut self, n: usize) -> Value {
        self.w.int(self.index, n as i64)
    }

    fn product(&mut self, x: Value, y: Value) -> Value {
        let one = self.at(1);
        match (x == one, y == one) {
            (true, _) => y,
            (_, true) => x,
            _ => self.w.imul(x, y),
        }
    }

    fn size(&self, id: SizeId) -> Value {
        let found = self.sizes.iter().find(|(size, _)| *size == id).map(|(_, value)| *value);
        found.expect("a kernel lists its sizes")
    }

    /// The number of positions of a loop.
    pub(crate) fn extent(&mut self, extent: Extent<Reg>) -> Value {
        match extent {
            Extent::Known(n) => self.at(n),
            Extent::Sized { size, .. } => {
                let size = self.size(size);
                self.w.resize(size, self.index.element, false)
            }
            Extent::Read { from, bound } => {
                let read = self.scalar(from);
                let (zero, bound) = (self.w.int(Type::I64, 0), self.w.int(Type::I64, bound as i64));
                let read = self.w.int_bound(true, true, read, zero);
                let read = self.w.int_bound(false, true, read, bound);
                self.w.resize(read, self.index.element, false)
            }
        }
    }

    /// The value of an index in a type of integers.
    pub(crate) fn index(&mut self, index: &Index, ty: Type) -> Value {
        let mut sum = self.w.int(ty, index.offset);
        let zero = self.w.int(ty, 0);
        let one = self.w.int(ty, 1);
        let add =
            |w: &mut Writer, sum: Value, term: Value| if sum == zero { term } else { w.iadd(sum, term) };
        for (axis, coefficient) in &index.axes {
            let at = self.axis(*axis, ty);
            let factor = self.w.int(ty, *coefficient);
            let term = if factor == one { at } else { self.w.imul(at, factor) };
            sum = add(&mut self.w, sum, term);
        }
        for (reg, coefficient) in &index.regs {
            let value = self.scalar(*reg);
            let value = self.w.resize(value, ty.element, true);
            let factor = self.w.int(ty, *coefficient);
            let term = if factor == one { value } else { self.w.imul(value, factor) };
            sum = add(&mut self.w, sum, term);
        }
        for (size, factor) in &index.sizes {
            let size = self.size(*size);
            let size = self.w.resize(size, ty.element, true);
            let term = match factor {
                Factor::One => size,
                Factor::Axis(axis) => {
                    let at = self.axis(*axis, ty);
                    self.w.imul(at, size)
                }
                Factor::Reg(reg) => {
                    let value = self.scalar(*reg);
                    let value = self.w.resize(value, ty.element, true);
                    self.w.imul(value, size)
                }
            };
            sum = add(&mut self.w, sum, term);
        }
        sum
    }

    fn axis(&mut self, axis: Axis, ty: Type) -> Value {
        let at = self.axes[usize::from(axis.0)].expect("an axis is used inside its loop");
        self.w.resize(at, ty.element, true)
    }

    /// A value of a size as an I64.
    pub(crate) fn size_value(&self, id: SizeId) -> Value {
        self.size(id)
    }

    /// Whether an index differs between neighbours that go together.
    pub(crate) fn moves_in_lanes(&self, index: &Index) -> bool {
        self.lanes_along.is_some_and(|axis| index.moves_along(axis))
    }

    /// Writes the body of a loop or reduction. Loops right inside a position are spread over the threads of a block that
    /// shares it.
    pub(crate) fn run(
        &mut self,
        axis: Axis,
        extent: Extent<Reg>,
        results: &[(Reg, margay_loops::Combine, Reg)],
        body: &'k [Stmt],
    ) -> Result<(), CodegenError> {
        let is_spread = self.depth == 0 && self.mapping.share == Share::Block;
        let end = self.extent(extent);
        let (first, step) = match is_spread {
            true => (self.w.resize(self.thread, self.index.element, false), self.at(self.mapping.threads)),
            false => (self.at(0), self.at(1)),
        };
        let mut starts = Vec::new();
        for (to, combine, _) in results {
            starts.push(self.identity(*combine, self.dtype(*to))?);
        }
        let (position, partial) = self.w.begin_for(first, end, step, &starts);
        self.axes[usize::from(axis.0)] = Some(position);
        self.depth += 1;
        self.block(body)?;
        let mut joined = Vec::new();
        for ((to, combine, value), partial) in results.iter().zip(partial) {
            let value = self.scalar(*value);
            joined.push(self.combine(*combine, self.dtype(*to), value, partial)?);
        }
        self.depth -= 1;
        let sums = self.w.end_for(&joined);
        for ((to, combine, _), sum) in results.iter().zip(sums) {
            let all = if is_spread { self.join(*combine, self.dtype(*to), sum)? } else { sum };
            self.regs[to.0 as usize] = Some(Slot { value: all, literal: None });
        }
        Ok(())
    }

    /// Whether the thread is the first of its block.
    pub(crate) fn is_first(&mut self) -> Value {
        let zero = self.w.int(Type::I32, 0);
        self.w.compare_ints(Comparison::Equal, self.thread, zero)
    }
}
