//! One loop nest as one function.
//!
//! The items of a kernel are the positions of its parallel loops, flattened; with two or more of them the innermost
//! one runs whole inside each item. A run of items counts its axes up instead of dividing anew for every item.
//!
//! A loop that runs in lanes becomes three: 16 elements per iteration, 4 per iteration, and the rest one by
//! one. Statements that do not depend on the axis of a loop are written before it.

use std::collections::HashSet;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32X4, I64};
use cranelift_codegen::ir::{
    AliasRegion, AliasRegionData, BlockArg, InstBuilder, MemFlagsData, Signature, Type, Value,
};
use margay_loops::{Axis, Combine, Index, Kernel, Reg, Stmt};
use margay_tensor::DType;
use smallvec::SmallVec;

use crate::scalar::{Ops, register_type};
use crate::vector::{self, LANES, LoopView, UNROLL, Varying};
use crate::{CodegenError, CpuIsa};

/// What a register holds: one scalar, or one vector per copy of an unrolled loop.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) values: SmallVec<[Value; UNROLL as usize]>,
    pub(crate) wide: bool,
    /// How many loops surround the definition.
    pub(crate) depth: u32,
    pub(crate) literal: Option<margay_loops::Literal>,
}

/// The loop that runs in lanes at the moment.
#[derive(Clone)]
pub(crate) struct Lanes {
    pub(crate) axis: Axis,
    pub(crate) copies: usize,
    pub(crate) varying: Varying,
}

/// Writes one kernel.
pub(crate) struct Emitter<'k, 'b> {
    pub(crate) ops: Ops<'b>,
    pub(crate) kernel: &'k Kernel,
    pub(crate) name: &'k str,
    pub(crate) args: Vec<(Value, MemFlagsData)>,
    pub(crate) axes: Vec<Option<(Value, u32)>>,
    pub(crate) regs: Vec<Option<Slot>>,
    pub(crate) lanes: Option<Lanes>,
    pub(crate) depth: u32,
    pub(crate) params: Value,
    pub(crate) scratch: Value,
}

/// What a loop carries from one iteration to the next.
type Values = SmallVec<[Value; 8]>;

/// Writes the body of a function with the signature of a compiled kernel.
pub(crate) fn build(
    kernel: &Kernel,
    name: &str,
    isa: &CpuIsa,
    mut ops: Ops<'_>,
) -> Result<(), CodegenError> {
    refuse_half_floats(kernel, name)?;
    let entry = ops.b.create_block();
    ops.b.append_block_params_for_function_params(entry);
    ops.b.switch_to_block(entry);
    let [params, args, scratch, begin, end] = *ops.b.block_params(entry) else {
        unreachable!("the signature of a kernel has five parameters");
    };
    let args = load_args(&mut ops, kernel, args);
    let mut e = Emitter {
        ops,
        kernel,
        name,
        args,
        axes: vec![None; usize::from(kernel.axes)],
        regs: vec![None; kernel.regs.len()],
        lanes: None,
        depth: 0,
        params,
        scratch,
    };
    e.items(begin, end)?;
    e.ops.b.ins().return_(&[]);
    e.ops.b.seal_all_blocks();
    e.ops.b.finalize(isa.target().frontend_config());
    Ok(())
}

/// The signature of a compiled kernel.
pub(crate) fn signature(isa: &CpuIsa) -> Signature {
    pointers(isa, 5)
}

/// A function of `n` words.
pub(crate) fn pointers(isa: &CpuIsa, n: usize) -> Signature {
    let mut signature = Signature::new(isa.target().default_call_conv());
    signature.params = vec![cranelift_codegen::ir::AbiParam::new(I64); n];
    signature
}

fn refuse_half_floats(kernel: &Kernel, name: &str) -> Result<(), CodegenError> {
    let mut types = kernel.regs.iter().copied().chain(kernel.args.iter().map(|a| a.dtype));
    match types.find(|d| matches!(d, DType::F16 | DType::BF16)) {
        Some(dtype) => Err(CodegenError::Unsupported {
            kernel: name.to_string(),
            construct: format!("values of type {dtype}"),
        }),
        None => Ok(()),
    }
}

/// The pointers of the arguments, each with the flags of its memory: regions of written arguments are their own.
fn load_args(ops: &mut Ops<'_>, kernel: &Kernel, args: Value) -> Vec<(Value, MemFlagsData)> {
    let constant = MemFlagsData::trusted().with_readonly();
    let pointers: Vec<Value> =
        (0..kernel.args.len()).map(|i| ops.b.ins().load(I64, constant, args, 8 * i as i32)).collect();
    let mut region = |i: usize| -> AliasRegion {
        ops.b.func.dfg.alias_regions.insert(AliasRegionData {
            user_id: i as u32,
            description: format!("argument {i}").into(),
        })
    };
    let flags = kernel.args.iter().enumerate().map(|(i, arg)| {
        let flags = MemFlagsData::new().with_notrap();
        if arg.written { flags.with_alias_region(Some(region(i))) } else { flags.with_readonly() }
    });
    let flags: Vec<MemFlagsData> = flags.collect();
    pointers.into_iter().zip(flags).collect()
}

impl<'k> Emitter<'k, '_> {
    /// The error for a construct without translation.
    pub(crate) fn unsupported<T>(&self, construct: String) -> Result<T, CodegenError> {
        Err(CodegenError::Unsupported { kernel: self.name.to_string(), construct })
    }

    pub(crate) fn dtype(&self, r: Reg) -> DType {
        self.kernel.regs[r.0 as usize]
    }

    fn items(&mut self, begin: Value, end: Value) -> Result<(), CodegenError> {
        let kernel = self.kernel;
        let mut parallel: Vec<LoopView<'k>> = Vec::new();
        let mut body = kernel.body.as_slice();
        while let [stmt @ Stmt::Loop { parallel: true, body: inner, .. }] = body {
            parallel.extend(LoopView::of(stmt));
            body = inner;
        }
        if parallel.iter().any(|l| l.extent == Some(0)) {
            return Ok(());
        }
        match parallel.split_last() {
            None => self.block(body),
            Some((only, [])) => self.run(LoopView { extent: None, ..*only }, begin, end),
            Some((last, outer)) => self.run_items(outer, *last, begin, end),
        }
    }

    /// Runs `last` whole for the positions `begin..end` of the flattened `outer` loops.
    fn run_items(
        &mut self,
        outer: &[LoopView<'k>],
        last: LoopView<'k>,
        begin: Value,
        end: Value,
    ) -> Result<(), CodegenError> {
        let mut rest = begin;
        let mut start: Values = SmallVec::new();
        for view in outer[1..].iter().rev() {
            let extent = self.ops.iconst(I64, view.extent.unwrap_or(1) as i64);
            start.push(self.ops.b.ins().urem(rest, extent));
            rest = self.ops.b.ins().udiv(rest, extent);
        }
        start.push(rest);
        self.count(begin, end, 1, None, start, &mut |e, _, position| {
            for (view, value) in outer.iter().rev().zip(position) {
                e.axes[usize::from(view.axis.0)] = Some((*value, e.depth));
            }
            e.run_whole(last)?;
            Ok(e.next_position(outer, position))
        })?;
        Ok(())
    }

    /// Counts the innermost axis up, carrying into the others. Positions are innermost first.
    fn next_position(&mut self, outer: &[LoopView<'k>], position: &[Value]) -> Values {
        let (zero, mut carry) = (self.ops.iconst(I64, 0), self.ops.iconst(I64, 1));
        let mut next: Values = SmallVec::new();
        for (view, &value) in outer[1..].iter().rev().zip(position) {
            let extent = self.ops.iconst(I64, view.extent.unwrap_or(1) as i64);
            let sum = self.ops.b.ins().iadd(value, carry);
            let full = self.ops.b.ins().icmp(IntCC::Equal, sum, extent);
            next.push(self.ops.b.ins().select(full, zero, sum));
            carry = self.ops.b.ins().uextend(I64, full);
        }
        let outermost = position[outer.len() - 1];
        next.push(self.ops.b.ins().iadd(outermost, carry));
        next
    }

    /// Runs all positions of a loop whose extent is known.
    pub(crate) fn run_whole(&mut self, view: LoopView<'k>) -> Result<(), CodegenError> {
        let extent = view.extent.unwrap_or(0) as i64;
        if extent == 0 {
            return Ok(());
        }
        let (from, to) = (self.ops.iconst(I64, 0), self.ops.iconst(I64, extent));
        self.run(view, from, to)
    }

    fn run(&mut self, view: LoopView<'k>, from: Value, to: Value) -> Result<(), CodegenError> {
        let varying = if self.lanes.is_none() { vector::lanes(self.kernel, view) } else { None };
        let body = self.hoist(view)?;
        match varying {
            Some(varying) => self.run_in_lanes(view, &body, varying, from, to),
            None => {
                let start = self.identities(view)?;
                let trips = view.extent.map(|n| n as i64);
                let (_, sums) = self.steps(view, &body, from, to, 1, trips, start)?;
                self.define_results(view, &sums);
                Ok(())
            }
        }
    }

    /// Writes the statements that do not depend on the position of the loop, and returns the others.
    fn hoist(&mut self, view: LoopView<'k>) -> Result<Vec<&'k Stmt>, CodegenError> {
        let mut stored = HashSet::new();
        stored_args(view.body, &mut stored);
        let mut dependent: HashSet<Reg> = HashSet::new();
        let mut rest = Vec::new();
        for stmt in view.body {
            let moves = |index: &Index| {
                index.coefficient(view.axis) != 0 || index.regs.iter().any(|(r, _)| dependent.contains(r))
            };
            let (to, stays) = match stmt {
                Stmt::Literal { to, .. } => (Some(*to), false),
                Stmt::IndexValue { to, index } => (Some(*to), moves(index)),
                Stmt::Unary { to, x, .. } | Stmt::Cast { to, x } => (Some(*to), dependent.contains(x)),
                Stmt::Binary { to, x, y, .. } => {
                    (Some(*to), dependent.contains(x) || dependent.contains(y))
                }
                Stmt::Select { to, test, x, y } => {
                    (Some(*to), [test, x, y].into_iter().any(|r| dependent.contains(r)))
                }
                Stmt::Load { to, arg, index, guard } => {
                    let guarded = guard.is_some_and(|(test, _)| dependent.contains(&test));
                    (Some(*to), guarded || moves(index) || stored.contains(arg))
                }
                Stmt::Require { test } => (None, dependent.contains(test)),
                Stmt::Store { .. } | Stmt::Loop { .. } => (None, true),
                Stmt::Reduce { results, .. } => {
                    dependent.extend(results.iter().map(|r| r.0));
                    (None, true)
                }
            };
            if stays {
                dependent.extend(to);
                rest.push(stmt);
            } else {
                self.stmt(stmt)?;
            }
        }
        Ok(rest)
    }

    fn run_in_lanes(
        &mut self,
        view: LoopView<'k>,
        body: &[&'k Stmt],
        varying: Varying,
        from: Value,
        to: Value,
    ) -> Result<(), CodegenError> {
        let (block, total) = (LANES * UNROLL, view.extent.map(|n| n as i64));
        let lanes = |copies| Some(Lanes { axis: view.axis, copies, varying: varying.clone() });
        let (mut at, blocks) = (from, total.map(|n| n / block));
        let mut sums;
        if blocks == Some(0) {
            self.lanes = lanes(1);
            sums = self.identities(view)?;
        } else {
            self.lanes = lanes(UNROLL as usize);
            sums = self.identities(view)?;
            (at, sums) = self.steps(view, body, at, to, block, blocks, sums)?;
            sums = self.join_copies(view, &sums);
            self.lanes = lanes(1);
        }
        let vectors = total.map(|n| n % block / LANES);
        (at, sums) = self.steps(view, body, at, to, LANES, vectors, sums)?;
        sums = self.join_lanes(view, &sums);
        self.lanes = None;
        let (_, sums) = self.steps(view, body, at, to, 1, total.map(|n| n % LANES), sums)?;
        self.define_results(view, &sums);
        Ok(())
    }

    /// Runs the body for positions from `from` on, `step` at a time, while a whole step lies below `to`. Carries one
    /// partial result per result and copy.
    #[allow(clippy::too_many_arguments, reason = "a loop has this many parts")]
    fn steps(
        &mut self,
        view: LoopView<'k>,
        body: &[&'k Stmt],
        from: Value,
        to: Value,
        step: i64,
        trips: Option<i64>,
        start: Values,
    ) -> Result<(Value, Values), CodegenError> {
        self.count(from, to, step, trips, start, &mut |e, position, sums| {
            e.axes[usize::from(view.axis.0)] = Some((position, e.depth));
            for stmt in body {
                e.stmt(stmt)?;
            }
            e.join_results(view, sums)
        })
    }

    /// Joins the values of one iteration into the partial results.
    fn join_results(&mut self, view: LoopView<'k>, sums: &[Value]) -> Result<Values, CodegenError> {
        let mut joined = Values::new();
        for (_, combine, value) in view.results {
            let (wide, copies) = self.width_of_result(view, *value);
            let values = self.values(*value, wide);
            for c in 0..copies {
                let (value, dtype) = (values[c % values.len()], self.dtype(*value));
                let sum = sums[joined.len()];
                joined.push(self.combine(*combine, dtype, value, sum)?);
            }
        }
        Ok(joined)
    }

    /// The values to start from: one per result and copy.
    fn identities(&mut self, view: LoopView<'k>) -> Result<Values, CodegenError> {
        let mut out = Values::new();
        for (_, combine, value) in view.results {
            let ((wide, copies), dtype) = (self.width_of_result(view, *value), self.dtype(*value));
            let ty = if wide { F32X4 } else { register_type(dtype) };
            for _ in 0..copies {
                out.push(self.identity(*combine, dtype, ty)?);
            }
        }
        Ok(out)
    }

    /// Whether a result is held in vectors, and in how many: those of the loop that runs in lanes are, and those
    /// of a loop inside it that vary.
    fn width_of_result(&self, view: LoopView<'k>, value: Reg) -> (bool, usize) {
        match &self.lanes {
            Some(l) if l.axis == view.axis || l.varying.contains(&value) => (true, l.copies),
            Some(_) | None => (false, 1),
        }
    }

    fn join_copies(&mut self, view: LoopView<'k>, sums: &[Value]) -> Values {
        let parts = sums.chunks(UNROLL as usize).zip(view.results);
        parts.map(|(part, (_, combine, _))| self.join_pairwise(*combine, part)).collect()
    }

    fn join_lanes(&mut self, view: LoopView<'k>, sums: &[Value]) -> Values {
        let parts = sums.iter().zip(view.results);
        parts
            .map(|(&sum, (_, combine, _))| {
                let lane: Vec<Value> =
                    [0u8, 1, 2, 3].iter().map(|&i| self.ops.b.ins().extractlane(sum, i)).collect();
                self.join_pairwise(*combine, &lane)
            })
            .collect()
    }

    fn join_pairwise(&mut self, combine: Combine, parts: &[Value]) -> Value {
        match parts {
            [one] => *one,
            _ => {
                let (left, right) = parts.split_at(parts.len() / 2);
                let (left, right) = (self.join_pairwise(combine, left), self.join_pairwise(combine, right));
                self.combine_float(combine, left, right)
            }
        }
    }

    fn define_results(&mut self, view: LoopView<'k>, sums: &[Value]) {
        let mut at = 0;
        for (to, _, value) in view.results {
            let (wide, copies) = self.width_of_result(view, *value);
            self.define(*to, SmallVec::from_slice(&sums[at..at + copies]), wide);
            at += copies;
        }
    }

    /// A counted loop: runs `body(position, carried)` for `from`, `from + step`, … while a whole step lies
    /// below `to`, and returns the position and the carried values after it. With `trips` known, no test is
    /// made before the first iteration, and a single iteration makes no loop.
    fn count(
        &mut self,
        from: Value,
        to: Value,
        step: i64,
        trips: Option<i64>,
        carried: Values,
        body: &mut dyn FnMut(&mut Self, Value, &[Value]) -> Result<Values, CodegenError>,
    ) -> Result<(Value, Values), CodegenError> {
        match trips {
            Some(0) => return Ok((from, carried)),
            Some(1) => {
                let carried = body(self, from, &carried)?;
                return Ok((self.ops.b.ins().iadd_imm_s(from, step), carried));
            }
            Some(_) | None => {}
        }
        let last = self.ops.b.ins().iadd_imm_s(to, -step);
        let (head, exit) = (self.ops.b.create_block(), self.ops.b.create_block());
        let position = self.ops.b.append_block_param(head, I64);
        let end_position = self.ops.b.append_block_param(exit, I64);
        let types: Vec<Type> = carried.iter().map(|v| self.ops.type_of(*v)).collect();
        let inside: Values = types.iter().map(|t| self.ops.b.append_block_param(head, *t)).collect();
        let outside: Values = types.iter().map(|t| self.ops.b.append_block_param(exit, *t)).collect();
        let arguments = |position: Value, carried: &[Value]| -> Vec<BlockArg> {
            std::iter::once(position).chain(carried.iter().copied()).map(BlockArg::Value).collect()
        };

        let start = arguments(from, &carried);
        if trips.is_some() {
            self.ops.b.ins().jump(head, &start);
        } else {
            let any = self.ops.b.ins().icmp(IntCC::SignedLessThanOrEqual, from, last);
            self.ops.b.ins().brif(any, head, &start, exit, &start);
        }
        self.ops.b.switch_to_block(head);
        self.depth += 1;
        let carried = body(self, position, &inside)?;
        self.depth -= 1;
        let next = self.ops.b.ins().iadd_imm_s(position, step);
        let again = arguments(next, &carried);
        let more = self.ops.b.ins().icmp(IntCC::SignedLessThanOrEqual, next, last);
        self.ops.b.ins().brif(more, head, &again, exit, &again);
        self.ops.b.switch_to_block(exit);
        Ok((end_position, outside))
    }
}

fn stored_args(body: &[Stmt], out: &mut HashSet<usize>) {
    for stmt in body {
        if let Stmt::Store { arg, .. } = stmt {
            out.insert(*arg);
        } else if let Some(view) = LoopView::of(stmt) {
            stored_args(view.body, out);
        }
    }
}
