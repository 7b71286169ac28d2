//! Loops with functions such as exp, in chunks that stay in the first level of the cache.
//!
//! Vectors here have four lanes; hand-written functions of rows use all that the processor has. A loop that computes
//! exp, erf, tanh or sigmoid along its lanes is cut into chunks, and its body at these functions into *levels*: level 0
//! runs over the chunk and leaves the arguments in a buffer, the functions turn the buffer into results, level 1 reads
//! them, and so on. What else a later level needs is loaded again or left in a buffer too.
//!
//! Absent: reductions (what they join would have to be carried through the levels), and loops in the body.

use std::collections::HashMap;

use cranelift_codegen::ir::types::{F32, F32X4, I64};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value};
use margay_kernels_cpu::abi::{ROW_TABLE_AT, RowFunction, SCRATCH_HEADER_BYTES};
use margay_loops::{Reg, Stmt, Unary};
use margay_tensor::DType;
use smallvec::{SmallVec, smallvec};

use crate::CodegenError;
use crate::kernel::{Emitter, Lanes, pointers};
use crate::nested::Values;
use crate::statement::Copies;
use crate::vector::{LANES, LoopView, UNROLL, Varying};

/// Elements of a chunk.
const CHUNK: i64 = 256;
/// Buffers of one loop; with more, the chunks would not stay in the first level of the cache.
const MAX_BUFFERS: usize = 16;
/// Loops of fewer elements are not worth a call.
pub(crate) const MIN_EXTENT: usize = 16;

/// A buffer of one chunk in the scratch memory, by number.
type Buffer = usize;

/// Bytes of scratch that a kernel with so many buffers needs.
pub(crate) fn scratch_bytes(buffers: usize) -> usize {
    4 * CHUNK as usize * buffers
}

/// A call between two levels.
struct Call {
    function: RowFunction,
    from: Buffer,
    to: Buffer,
}

/// A part of a body that runs over a chunk, and the calls after it.
#[derive(Default)]
struct Level<'k> {
    body: Vec<&'k Stmt>,
    /// Registers that come out of a buffer.
    reloaded: Vec<(Reg, Buffer)>,
    /// Registers that go into a buffer.
    kept: Vec<(Reg, Buffer)>,
    calls: Vec<Call>,
}

/// A body cut into levels.
pub(crate) struct Levels<'k> {
    levels: Vec<Level<'k>>,
    buffers: usize,
}

fn row_function(op: Unary) -> Option<RowFunction> {
    match op {
        Unary::Exp => Some(RowFunction::Exp),
        Unary::Erf => Some(RowFunction::Erf),
        Unary::Tanh => Some(RowFunction::Tanh),
        Unary::Sigmoid => Some(RowFunction::Sigmoid),
        Unary::Neg
        | Unary::Abs
        | Unary::Log
        | Unary::Sqrt
        | Unary::Sin
        | Unary::Cos
        | Unary::Floor
        | Unary::Ceil
        | Unary::Round
        | Unary::Not
        | Unary::IsNan
        | Unary::RoundF16
        | Unary::RoundBf16 => None,
    }
}

/// The registers that a statement without a body reads, and the one it sets.
fn registers(stmt: &Stmt) -> Option<(SmallVec<[Reg; 4]>, Option<Reg>)> {
    Some(match stmt {
        Stmt::Literal { to, .. } | Stmt::Size { to, .. } => (smallvec![], Some(*to)),
        Stmt::IndexValue { to, index } => (index.registers().collect(), Some(*to)),
        Stmt::Unary { to, x, .. } | Stmt::Cast { to, x } => (smallvec![*x], Some(*to)),
        Stmt::Binary { to, x, y, .. } => (smallvec![*x, *y], Some(*to)),
        Stmt::Select { to, test, x, y } => (smallvec![*test, *x, *y], Some(*to)),
        Stmt::Load { to, index, guard, .. } => {
            (index.registers().chain(guard.map(|g| g.0)).collect(), Some(*to))
        }
        Stmt::Store { index, value, .. } => (index.registers().chain([*value]).collect(), None),
        Stmt::Require { test, .. } => (smallvec![*test], None),
        Stmt::Loop { .. } | Stmt::Reduce { .. } => return None,
    })
}

/// Cuts the body of a loop that runs in lanes; `None` where that is impossible or of no use.
pub(crate) fn cut<'k>(
    e: &Emitter<'k, '_>,
    view: LoopView<'k>,
    body: &[&'k Stmt],
    varying: &Varying,
) -> Option<Levels<'k>> {
    if !view.results.is_empty() || view.is_shorter_than(MIN_EXTENT) {
        return None;
    }
    // The level from which on a register of the body is known; operands from outside are known at once.
    let mut known: HashMap<Reg, usize> = HashMap::new();
    // The level of the last access to an argument that the body writes: accesses keep their order.
    let mut touched: HashMap<usize, usize> = HashMap::new();
    let stored = |arg: usize| body.iter().any(|s| matches!(s, Stmt::Store { arg: a, .. } if *a == arg));
    let mut levels: Vec<Level<'k>> = Vec::new();
    let mut defined: HashMap<Reg, (&'k Stmt, usize)> = HashMap::new();
    let mut uses: Vec<(Reg, usize)> = Vec::new();
    let mut calls: Vec<(usize, RowFunction, Reg, Reg)> = Vec::new();
    for &stmt in body {
        let (read, set) = registers(stmt)?;
        let mut level = read.iter().filter_map(|r| known.get(r)).copied().max().unwrap_or(0);
        if let Stmt::Load { arg, .. } | Stmt::Store { arg, .. } = stmt
            && stored(*arg)
        {
            level = level.max(touched.get(arg).copied().unwrap_or(0));
            touched.insert(*arg, level);
        }
        if levels.len() <= level + 1 {
            levels.resize_with(level + 2, Level::default);
        }
        if let Stmt::Unary { to, op, x } = stmt
            && let Some(function) = row_function(*op)
            && varying.contains(x)
        {
            calls.push((level, function, *x, *to));
            known.insert(*to, level + 1);
            continue;
        }
        levels[level].body.push(stmt);
        uses.extend(read.iter().map(|r| (*r, level)));
        if let Some(to) = set {
            known.insert(to, level);
            defined.insert(to, (stmt, level));
        }
    }
    if calls.is_empty() {
        return None;
    }
    let mut buffers: HashMap<Reg, Buffer> = HashMap::new();
    let mut buffer_of = |r: Reg| {
        let next = buffers.len();
        *buffers.entry(r).or_insert(next)
    };
    for &(level, function, x, to) in &calls {
        // The argument is left in a buffer by the level that makes it, or is there as a result of another call.
        if let Some((_, made)) = defined.get(&x) {
            keep(&mut levels[*made], x, buffer_of(x));
        }
        levels[level].calls.push(Call { function, from: buffer_of(x), to: buffer_of(to) });
    }
    let results: Vec<Reg> = calls.iter().map(|c| c.3).collect();
    for (r, level) in uses {
        if results.contains(&r) {
            reload(&mut levels[level], r, buffer_of(r));
            continue;
        }
        let Some(&(stmt, made)) = defined.get(&r) else { continue };
        if made == level {
            continue;
        }
        match stmt {
            // What does not vary, or is read from memory that stays as it is, is made again.
            Stmt::Literal { .. } | Stmt::Size { .. } => again(&mut levels[level], stmt),
            Stmt::Load { arg, guard: None, index, .. }
                if !stored(*arg) && index.registers().next().is_none() =>
            {
                again(&mut levels[level], stmt);
            }
            _ if varying.contains(&r) && e.dtype(r) == DType::F32 => {
                keep(&mut levels[made], r, buffer_of(r));
                reload(&mut levels[level], r, buffer_of(r));
            }
            _ => return None,
        }
    }
    let buffers = buffers.len();
    (buffers <= MAX_BUFFERS).then_some(Levels { levels, buffers })
}

fn keep(level: &mut Level<'_>, r: Reg, buffer: Buffer) {
    if !level.kept.contains(&(r, buffer)) {
        level.kept.push((r, buffer));
    }
}

fn reload(level: &mut Level<'_>, r: Reg, buffer: Buffer) {
    if !level.reloaded.contains(&(r, buffer)) {
        level.reloaded.push((r, buffer));
    }
}

/// Puts a statement before those of a level, once.
fn again<'k>(level: &mut Level<'k>, stmt: &'k Stmt) {
    if !level.body.iter().any(|s| std::ptr::eq(*s, stmt)) {
        level.body.insert(0, stmt);
    }
}

impl<'k> Emitter<'k, '_> {
    /// Runs the positions `from..to` of a loop chunk by chunk.
    pub(crate) fn run_in_chunks(
        &mut self,
        view: LoopView<'k>,
        levels: &Levels<'k>,
        varying: &Varying,
        from: Value,
        to: Value,
    ) -> Result<(), CodegenError> {
        self.buffers = self.buffers.max(levels.buffers);
        let table = self.ops.b.ins().load(I64, MemFlagsData::trusted(), self.scratch, ROW_TABLE_AT as i32);
        // The last chunk may be shorter: the loop counts up to the next whole one.
        let span = self.ops.b.ins().isub(to, from);
        let up = self.ops.b.ins().iadd_imm_s(span, CHUNK - 1);
        let whole = self.ops.b.ins().band_imm_s(up, -CHUNK);
        let last = self.ops.b.ins().iadd(from, whole);
        let trips = view.extent.map(|n| (n as i64 + CHUNK - 1) / CHUNK);
        self.count(from, last, CHUNK, trips, Values::new(), &mut |e, begin, _| {
            let left = e.ops.b.ins().isub(to, begin);
            let most = e.ops.iconst(I64, CHUNK);
            let len = e.ops.b.ins().smin(left, most);
            let end = e.ops.b.ins().iadd(begin, len);
            for level in &levels.levels {
                e.run_level(view, level, varying, begin, end)?;
                for call in &level.calls {
                    e.call_row_function(table, call, len);
                }
            }
            Ok(Values::new())
        })?;
        Ok(())
    }

    fn run_level(
        &mut self,
        view: LoopView<'k>,
        level: &Level<'k>,
        varying: &Varying,
        begin: Value,
        end: Value,
    ) -> Result<(), CodegenError> {
        if level.body.is_empty() && level.kept.is_empty() {
            return Ok(());
        }
        // Addresses in a buffer count from the start of the loop, as positions do.
        let skipped = self.ops.b.ins().ishl_imm_u(begin, 2);
        let base = self.ops.b.ins().isub(self.scratch, skipped);
        let mut at = begin;
        for (step, copies) in [(LANES * UNROLL, Some(UNROLL as usize)), (LANES, Some(1)), (1, None)] {
            self.lanes = copies.map(|copies| Lanes {
                axis: view.axis,
                across: None,
                copies,
                varying: varying.clone(),
            });
            self.left_over = copies.is_none();
            (at, _) = self.count(at, end, step, None, Values::new(), &mut |e, position, _| {
                e.axes[usize::from(view.axis.0)] = Some((position, e.depth));
                let offset = e.ops.b.ins().ishl_imm_u(position, 2);
                let base = e.ops.b.ins().iadd(base, offset);
                for (r, buffer) in &level.reloaded {
                    e.reload(*r, *buffer, base, copies);
                }
                for stmt in &level.body {
                    e.stmt(stmt)?;
                }
                for (r, buffer) in &level.kept {
                    e.keep(*r, *buffer, base, copies);
                }
                Ok(Values::new())
            })?;
        }
        self.left_over = false;
        Ok(())
    }

    fn reload(&mut self, r: Reg, buffer: Buffer, base: Value, copies: Option<usize>) {
        let (at, flags) = (offset(buffer), MemFlagsData::new().with_notrap());
        let values: Copies = match copies {
            Some(n) => (0..n as i32).map(|c| self.ops.load_lanes(F32X4, flags, base, at + 16 * c)).collect(),
            None => smallvec![self.ops.b.ins().load(F32, flags, base, at)],
        };
        self.define(r, values, copies.is_some());
    }

    fn keep(&mut self, r: Reg, buffer: Buffer, base: Value, copies: Option<usize>) {
        let (at, flags) = (offset(buffer), MemFlagsData::new().with_notrap());
        let values = self.values(r, copies.is_some());
        for c in 0..copies.unwrap_or(1) {
            self.ops.b.ins().store(flags, values[c % values.len()], base, at + 16 * c as i32);
        }
    }

    fn call_row_function(&mut self, table: Value, call: &Call, len: Value) {
        let trusted = MemFlagsData::trusted();
        let function = self.ops.b.ins().load(I64, trusted, table, 8 * call.function as i32);
        let from = self.ops.b.ins().iadd_imm_s(self.scratch, i64::from(offset(call.from)));
        let to = self.ops.b.ins().iadd_imm_s(self.scratch, i64::from(offset(call.to)));
        let signature = match self.row_signature {
            Some(known) => known,
            None => self.ops.b.import_signature(pointers(self.isa, 3)),
        };
        self.row_signature = Some(signature);
        self.ops.b.ins().call_indirect(signature, function, &[from, to, len]);
    }
}

/// Where a buffer begins in the scratch memory, in bytes.
fn offset(buffer: Buffer) -> i32 {
    (SCRATCH_HEADER_BYTES + scratch_bytes(buffer)) as i32
}
