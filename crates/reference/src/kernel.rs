//! Kernel IR, statement by statement.
//!
//! Parallel loops run in order. A reduction joins values in the order of its axis; see
//! [`join`](crate::number::join).

use margay_loops::{Extent, Index, Kernel, Operand, Reg, Stmt};
use margay_tensor::DType;

use crate::Problem;
use crate::memory::Memory;
use crate::number::{self, Number};

/// A kernel that runs.
pub(crate) struct Frame<'a, 'm> {
    kernel: &'a Kernel,
    args: &'a [Operand],
    memory: &'a mut Memory<'m>,
    regs: Vec<Option<Number>>,
    axes: Vec<i64>,
    /// The last of the requirements that failed, by its number.
    failed: Option<usize>,
}

/// Runs a kernel. Returns the last of its requirements that failed, by its number.
pub(crate) fn run(
    kernel: &Kernel,
    args: &[Operand],
    memory: &mut Memory<'_>,
) -> Result<Option<usize>, Problem> {
    let (regs, axes) = (vec![None; kernel.regs.len()], vec![0; usize::from(kernel.axes)]);
    let mut frame = Frame { kernel, args, memory, regs, axes, failed: None };
    frame.block(&kernel.body)?;
    Ok(frame.failed)
}

impl Frame<'_, '_> {
    fn dtype(&self, r: Reg) -> DType {
        self.kernel.regs[r.0 as usize]
    }

    fn get(&self, r: Reg) -> Result<Number, Problem> {
        self.regs[r.0 as usize].ok_or(Problem::Unset(r.0))
    }

    fn set(&mut self, r: Reg, value: Number) {
        self.regs[r.0 as usize] = Some(value);
    }

    fn index(&self, index: &Index) -> Result<i64, Problem> {
        if !index.sizes.is_empty() {
            return Err(Problem::Open);
        }
        let axes = index.axes.iter().map(|(a, c)| self.axes[usize::from(a.0)].wrapping_mul(*c));
        let start = axes.fold(index.offset, i64::wrapping_add);
        index.regs.iter().try_fold(start, |sum, (r, c)| {
            let value = self.get(*r)?.int() as i64;
            Ok(sum.wrapping_add(value.wrapping_mul(*c)))
        })
    }

    fn extent(&self, extent: Extent<Reg>) -> Result<usize, Problem> {
        match extent {
            Extent::Known(n) => Ok(n),
            Extent::Sized { .. } => Err(Problem::Open),
            Extent::Read { from, bound } => {
                let n = self.get(from)?.int().max(0);
                Ok(usize::try_from(n).unwrap_or(usize::MAX).min(bound))
            }
        }
    }

    fn block(&mut self, body: &[Stmt]) -> Result<(), Problem> {
        body.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    fn stmt(&mut self, stmt: &Stmt) -> Result<(), Problem> {
        match stmt {
            Stmt::Literal { to, value } => self.set(*to, Number::of(*value)),
            Stmt::Size { .. } => return Err(Problem::Open),
            Stmt::IndexValue { to, index } => {
                let value = self.index(index)?;
                self.set(*to, Number::Int(value.into()));
            }
            Stmt::Unary { to, op, x } => {
                let value = number::unary(*op, self.dtype(*x), self.get(*x)?)?;
                self.set(*to, value);
            }
            Stmt::Binary { to, op, x, y } => {
                let value = number::binary(*op, self.dtype(*x), self.get(*x)?, self.get(*y)?)?;
                self.set(*to, value);
            }
            Stmt::Select { to, test, x, y } => {
                let (x, y) = (self.get(*x)?, self.get(*y)?);
                let value = if self.get(*test)?.is_true() { x } else { y };
                self.set(*to, value);
            }
            Stmt::Cast { to, x } => {
                let value = self.get(*x)?.cast(self.dtype(*to));
                self.set(*to, value);
            }
            Stmt::Load { to, arg, index, guard } => {
                let value = match guard {
                    Some((test, otherwise)) if !self.get(*test)?.is_true() => Number::of(*otherwise),
                    _ => {
                        let (at, dtype) = (self.index(index)?, self.kernel.args[*arg].dtype);
                        self.memory.read(self.args[*arg], *arg, at, dtype)?
                    }
                };
                self.set(*to, value);
            }
            Stmt::Store { arg, index, value } => {
                if !self.kernel.args[*arg].written {
                    return Err(Problem::ReadOnly { arg: *arg });
                }
                let (at, dtype) = (self.index(index)?, self.kernel.args[*arg].dtype);
                self.memory.write(self.args[*arg], *arg, at, dtype, self.get(*value)?)?;
            }
            Stmt::Require { test, what } => {
                if !self.get(*test)?.is_true() {
                    self.failed =
                        self.failed.max(self.kernel.requirements().iter().position(|w| *w == &**what));
                }
            }
            Stmt::Loop { axis, extent, parallel, body } => {
                let (outer, extent) = (self.memory.item, self.extent(*extent)?);
                for i in 0..extent {
                    if *parallel {
                        self.memory.item = outer * extent as u32 + i as u32;
                    }
                    self.axes[usize::from(axis.0)] = i as i64;
                    self.block(body)?;
                }
                self.memory.item = outer;
            }
            Stmt::Reduce { axis, extent, results, body } => {
                let starts =
                    results.iter().map(|(to, combine, _)| number::identity(*combine, self.dtype(*to)));
                let mut partial: Vec<Number> = starts.collect::<Result<_, _>>()?;
                for i in 0..self.extent(*extent)? {
                    self.axes[usize::from(axis.0)] = i as i64;
                    self.block(body)?;
                    for ((to, combine, value), partial) in results.iter().zip(&mut partial) {
                        *partial = number::join(*combine, self.dtype(*to), *partial, self.get(*value)?)?;
                    }
                }
                for ((to, _, _), partial) in results.iter().zip(partial) {
                    let value = partial.cast(self.dtype(*to));
                    self.set(*to, value);
                }
            }
        }
        Ok(())
    }
}
