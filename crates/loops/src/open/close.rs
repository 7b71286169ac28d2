//! Closed programs out of open ones.

use std::collections::HashMap;

use super::{Open, replace_numbers, replace_sizes};
use crate::{
    Extent, Factor, Index, Kernel, KernelCall, Literal, Place, Program, SizeId, SizedAt, Step, Stmt, Work,
};

impl Program {
    /// The closed program for the values of all [sizes](super::Open::sizes). Temporaries keep the places and bytes of the
    /// greatest extents.
    ///
    /// # Errors
    /// In words: a size without a value, one that is negative where a count is asked for, or outside of its bounds.
    pub fn at(&self, sizes: &[i64]) -> Result<Program, String> {
        let values = Values { program: self, sizes };
        values.check()?;
        let mut closed = Program { open: Open::default(), ..self.clone() };
        let beyond = "an axis that is open has no extent, or one beyond the greatest";
        closed.inputs = Open::ports_at(&self.inputs, &self.open.inputs, sizes).ok_or(beyond)?;
        closed.outputs = Open::ports_at(&self.outputs, &self.open.outputs, sizes).ok_or(beyond)?;
        for buffer in &mut closed.buffers {
            let port = match buffer.place {
                Place::Input(n) => closed.inputs.get(n),
                Place::Output(n) => closed.outputs.get(n),
                Place::Constant(_) | Place::Arena(_) => None,
            };
            buffer.bytes = port.map_or(buffer.bytes, |port| port.bytes());
        }
        // What differs in sizes only may be equal now.
        let mut kernels: Vec<Kernel> = Vec::new();
        let mut numbers: HashMap<Kernel, usize> = HashMap::new();
        let mut places = Vec::new();
        for kernel in &self.kernels {
            let kernel = values.kernel(kernel)?;
            places.push(*numbers.entry(kernel).or_insert_with_key(|kernel| {
                kernels.push(kernel.clone());
                kernels.len() - 1
            }));
        }
        closed.kernels = kernels;
        closed.body = values.steps(&self.body, &places)?;
        Ok(closed)
    }
}

struct Values<'p> {
    program: &'p Program,
    sizes: &'p [i64],
}

impl Values<'_> {
    fn check(&self) -> Result<(), String> {
        let known = &self.program.open.sizes;
        if known.len() != self.sizes.len() {
            return Err(format!("{} sizes, expected {}", self.sizes.len(), known.len()));
        }
        match known.iter().zip(self.sizes).find(|(size, v)| !(size.least..=size.most).contains(v)) {
            None => Ok(()),
            Some((size, v)) => {
                Err(format!("{} is {v}, expected {} to {}", size.value, size.least, size.most))
            }
        }
    }

    fn of(&self, size: SizeId) -> Result<i64, String> {
        self.sizes.get(size.0 as usize).copied().ok_or_else(|| format!("there is no size {size}"))
    }

    fn count(&self, size: SizeId) -> Result<usize, String> {
        let value = self.of(size)?;
        usize::try_from(value).map_err(|_| format!("{size} is {value}, expected a count"))
    }

    fn text(&self, text: &str) -> String {
        replace_sizes(text, &|size| self.of(size).ok().map(|v| v.to_string()))
    }

    fn extent<R: Copy>(&self, extent: &Extent<R>) -> Result<Extent<R>, String> {
        match extent {
            Extent::Sized { size, .. } => self.count(*size).map(Extent::Known),
            other => Ok(*other),
        }
    }

    fn index(&self, index: &Index) -> Result<Index, String> {
        let closed = Index { sizes: Vec::new(), ..index.clone() };
        index.sizes.iter().try_fold(closed, |sum, (size, factor)| {
            let part = match *factor {
                Factor::One => Index::constant(1),
                Factor::Axis(axis) => Index::axis(axis),
                Factor::Reg(reg) => Index::reg(reg),
            };
            Ok(sum.plus(&part, self.of(*size)?))
        })
    }

    fn kernel(&self, kernel: &Kernel) -> Result<Kernel, String> {
        Ok(Kernel { body: self.block(kernel, &kernel.body)?, ..kernel.clone() })
    }

    fn block(&self, kernel: &Kernel, body: &[Stmt]) -> Result<Vec<Stmt>, String> {
        body.iter().map(|stmt| self.stmt(kernel, stmt)).collect()
    }

    fn stmt(&self, kernel: &Kernel, stmt: &Stmt) -> Result<Stmt, String> {
        Ok(match stmt {
            Stmt::Size { to, size, inverse } => {
                let dtype = *kernel.regs.get(to.0 as usize).ok_or("a size has no register")?;
                let value = self.of(*size)?;
                let value = match dtype {
                    d if *inverse => Literal::of(d, 1.0 / value as f64),
                    d if d.is_int() => Literal::Int(d, value),
                    d => Literal::of(d, value as f64),
                };
                Stmt::Literal { to: *to, value }
            }
            Stmt::IndexValue { to, index } => Stmt::IndexValue { to: *to, index: self.index(index)? },
            Stmt::Load { to, arg, index, guard } => {
                Stmt::Load { to: *to, arg: *arg, index: self.index(index)?, guard: *guard }
            }
            Stmt::Store { arg, index, value } => {
                Stmt::Store { arg: *arg, index: self.index(index)?, value: *value }
            }
            Stmt::Require { test, what } => Stmt::Require { test: *test, what: self.text(what).into() },
            Stmt::Loop { axis, extent, parallel, body } => Stmt::Loop {
                axis: *axis,
                extent: self.extent(extent)?,
                parallel: *parallel,
                body: self.block(kernel, body)?,
            },
            Stmt::Reduce { axis, extent, results, body } => Stmt::Reduce {
                axis: *axis,
                extent: self.extent(extent)?,
                results: results.clone(),
                body: self.block(kernel, body)?,
            },
            Stmt::Literal { .. }
            | Stmt::Unary { .. }
            | Stmt::Binary { .. }
            | Stmt::Select { .. }
            | Stmt::Cast { .. } => stmt.clone(),
        })
    }

    fn steps(&self, steps: &[Step], kernels: &[usize]) -> Result<Vec<Step>, String> {
        let step = |step: &Step| {
            let mut work = step.work.clone();
            match &mut work {
                Work::Kernel { kernel, args } => {
                    *kernel = *kernels.get(*kernel).ok_or("a step names a kernel that there is not")?;
                    self.offsets(args, step)?;
                }
                Work::Call { call, args, .. } => {
                    *call = self.call(call, step)?;
                    self.offsets(args, step)?;
                }
                Work::Copy { from, to, bytes } => {
                    let mut args = [*from, *to];
                    self.offsets(&mut args, step)?;
                    [*from, *to] = args;
                    for (_, size) in step.sizes.iter().filter(|(at, _)| *at == SizedAt::Bytes) {
                        *bytes = self.count(*size)?;
                    }
                }
                Work::If { then, otherwise, .. } => {
                    *then = self.steps(then, kernels)?;
                    *otherwise = self.steps(otherwise, kernels)?;
                }
                Work::Loop(l) => {
                    l.trips = self.extent(&l.trips)?;
                    l.body = self.steps(&l.body, kernels)?;
                }
            }
            Ok(Step { label: step.label.clone(), work, sizes: Vec::new() })
        };
        steps.iter().map(step).collect()
    }

    fn offsets(&self, args: &mut [crate::Operand], step: &Step) -> Result<(), String> {
        for (at, size) in &step.sizes {
            if let SizedAt::Offset(n) = at {
                args.get_mut(*n).ok_or("an operand that there is not has a size")?.offset_bytes =
                    self.count(*size)?;
            }
        }
        Ok(())
    }

    fn call(&self, call: &KernelCall, step: &Step) -> Result<KernelCall, String> {
        let text = step.call_text(call);
        let (family, fields) = text.split_once(' ').ok_or("a call has no parameters")?;
        KernelCall::read(family, &self.text(fields))
    }
}

impl Step {
    /// The text of its call, with the names of sizes where its numbers are sizes.
    pub fn call_text(&self, call: &KernelCall) -> String {
        if self.sizes.iter().all(|(at, _)| !matches!(at, SizedAt::Call(_))) {
            return call.text();
        }
        replace_numbers(&call.text(), &mut |n, _| {
            self.sizes.iter().find(|(at, _)| *at == SizedAt::Call(n)).map(|(_, size)| size.to_string())
        })
    }

    /// The size that an operand begins at, if it is one.
    pub fn offset_size(&self, operand: usize) -> Option<SizeId> {
        self.sizes.iter().find(|(at, _)| *at == SizedAt::Offset(operand)).map(|(_, size)| *size)
    }
}
