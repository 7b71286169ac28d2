//! Loops and reductions.
//!
//! A loop that runs in lanes becomes three: 16 elements per iteration, 4 per iteration, and the rest one by
//! one. Statements that do not depend on the axis of a loop are written before it.

use std::collections::HashSet;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32X4, I64};
use cranelift_codegen::ir::{BlockArg, InstBuilder, Type, Value};
use margay_loops::{Combine, Index, Reg, Stmt};
use smallvec::SmallVec;

use crate::CodegenError;
use crate::chunks;
use crate::kernel::{Emitter, Lanes};
use crate::scalar::register_type;
use crate::vector::{self, LANES, LoopView, UNROLL, Varying};

/// What a loop carries from one iteration to the next.
pub(crate) type Values = SmallVec<[Value; 8]>;

/// Writes the body of a loop for a position and what is carried into it; returns what is carried on.
type Body<'f, E> = dyn FnMut(&mut E, Value, &[Value]) -> Result<Values, CodegenError> + 'f;

impl<'k> Emitter<'k, '_> {
    /// Runs all positions of a loop.
    pub(crate) fn run_whole(&mut self, view: LoopView<'k>) -> Result<(), CodegenError> {
        if view.extent == Some(0) {
            let nothing = self.identities(view)?;
            self.define_results(view, &nothing);
            return Ok(());
        }
        let (from, to) = (self.ops.iconst(I64, 0), self.positions(view));
        self.run(view, from, to)
    }

    /// The number of positions of a loop, known or read.
    pub(crate) fn positions(&mut self, view: LoopView<'k>) -> Value {
        if let Some((size, _)) = view.sized {
            return self.size(size);
        }
        match (view.extent, view.read) {
            (None, Some((from, bound))) => {
                let read = self.scalar(from);
                let (zero, bound) = (self.ops.iconst(I64, 0), self.ops.iconst(I64, bound as i64));
                let least = self.ops.b.ins().smax(read, zero);
                self.ops.b.ins().smin(least, bound)
            }
            (extent, _) => self.ops.iconst(I64, extent.unwrap_or(0) as i64),
        }
    }

    /// Runs the positions `from..to` of a loop.
    pub(crate) fn run(&mut self, view: LoopView<'k>, from: Value, to: Value) -> Result<(), CodegenError> {
        let free = self.lanes.is_none() && !self.left_over;
        let varying = if free { vector::lanes(self.kernel, view) } else { None };
        let body = self.hoist(view)?;
        let levels = match &varying {
            Some(varying) if self.isa.wide_rows() => chunks::cut(self, view, &body, varying),
            Some(_) | None => None,
        };
        if let (Some(varying), Some(levels)) = (&varying, levels) {
            return self.run_in_chunks(view, &levels, varying, from, to);
        }
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
                index.moves_along(view.axis) || index.registers().any(|r| dependent.contains(&r))
            };
            let (to, stays) = match stmt {
                Stmt::Literal { to, .. } | Stmt::Size { to, .. } => (Some(*to), false),
                Stmt::IndexValue { to, index } => (Some(*to), moves(index)),
                Stmt::Unary { to, x, .. } | Stmt::Cast { to, x } => (Some(*to), dependent.contains(x)),
                Stmt::Binary { to, x, y, .. } => (Some(*to), dependent.contains(x) || dependent.contains(y)),
                Stmt::Select { to, test, x, y } => {
                    (Some(*to), [test, x, y].into_iter().any(|r| dependent.contains(r)))
                }
                Stmt::Load { to, arg, index, guard } => {
                    let guarded = guard.is_some_and(|(test, _)| dependent.contains(&test));
                    (Some(*to), guarded || moves(index) || stored.contains(arg))
                }
                Stmt::Require { test, .. } => (None, dependent.contains(test)),
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
        let lanes = |copies| Some(Lanes { axis: view.axis, across: None, copies, varying: varying.clone() });
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
        self.left_over = true;
        let (_, sums) = self.steps(view, body, at, to, 1, total.map(|n| n % LANES), sums)?;
        self.left_over = false;
        self.define_results(view, &sums);
        Ok(())
    }

    /// Runs the body for positions from `from` on, `step` at a time, while a whole step lies below `to`. Carries one
    /// partial result per result and copy.
    #[allow(clippy::too_many_arguments, reason = "a loop has this many parts")]
    pub(crate) fn steps(
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
    pub(crate) fn count(
        &mut self,
        from: Value,
        to: Value,
        step: i64,
        trips: Option<i64>,
        carried: Values,
        body: &mut Body<'_, Self>,
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
