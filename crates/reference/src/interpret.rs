//! A program from its inputs to its outputs.

use margay_loops::{Extent, Loop, Operand, Program, Step, Work, walk};
use margay_tensor::{DType, Tensor};

use crate::memory::Memory;
use crate::{InterpretError, Problem, calls, kernel};

/// Runs a program once. Inputs and outputs are in the order of the program, states among them; constants are in the
/// layouts of [`Reference`](crate::Reference).
pub fn run(program: &Program, inputs: &[&Tensor]) -> Result<Vec<Tensor>, InterpretError> {
    check_inputs(program, inputs)?;
    let inputs = inputs.iter().map(|t| t.bytes().to_vec()).collect();
    let constants = program.constants.iter().map(crate::stored_bytes).collect();
    let mut run = Run { program, memory: Memory::new(program, inputs, constants), failed: None };
    run.block(&program.body, 0)?;
    if let Some(step) = run.failed {
        return Err(InterpretError::Fault { label: step.label.clone() });
    }
    let outputs = program.outputs.iter().enumerate();
    let tensors = outputs.map(|(i, port)| {
        let bytes = run.memory.output(program, i);
        let bytes = bytes.ok_or_else(|| InterpretError::Output { name: port.name.clone() })?;
        Ok(Tensor::from_bytes(port.dtype, &port.shape, bytes).expect("an output has the size of its port"))
    });
    tensors.collect()
}

/// A run in progress.
struct Run<'p> {
    program: &'p Program,
    memory: Memory,
    /// The first step whose checks failed.
    failed: Option<&'p Step>,
}

impl<'p> Run<'p> {
    /// Runs a list of steps, the first of which has a number.
    fn block(&mut self, steps: &'p [Step], mut number: usize) -> Result<(), InterpretError> {
        for step in steps {
            self.step(step, number)?;
            number += walk(std::slice::from_ref(step)).count();
        }
        Ok(())
    }

    fn step(&mut self, step: &'p Step, number: usize) -> Result<(), InterpretError> {
        let named = |problem: Problem| {
            let work = match &step.work {
                Work::Kernel { kernel, .. } => format!("k{kernel}"),
                Work::Call { call, .. } => call.to_string(),
                Work::Copy { bytes, .. } => format!("copy of {bytes} bytes"),
                Work::If { .. } => "if".to_owned(),
                Work::Loop(_) => "loop".to_owned(),
            };
            InterpretError::Step { step: number, work, label: step.label.clone(), problem }
        };
        self.memory.begin();
        match &step.work {
            Work::Kernel { kernel, args } => {
                let kernel = &self.program.kernels[*kernel];
                if !kernel::run(kernel, args, &mut self.memory).map_err(named)? {
                    self.failed = self.failed.or(Some(step));
                }
                Ok(())
            }
            Work::Call { call, args, .. } => calls::run(call, args, &mut self.memory).map_err(named),
            Work::Copy { from, to, bytes } => self.memory.copy(*from, *to, *bytes).map_err(named),
            Work::If { test, then, otherwise } => match self.truth(*test, 0).map_err(named)? {
                true => self.block(then, number + 1),
                false => self.block(otherwise, number + 1 + walk(then).count()),
            },
            Work::Loop(l) => {
                for i in 0..self.trips(l).map_err(named)? {
                    if !self.another(l, i).map_err(named)? {
                        break;
                    }
                    self.block(&l.body, number + 1)?;
                }
                Ok(())
            }
        }
    }

    fn truth(&self, operand: Operand, arg: usize) -> Result<bool, Problem> {
        Ok(self.memory.read(operand, arg, 0, DType::Bool)?.is_true())
    }

    fn trips(&self, l: &Loop) -> Result<usize, Problem> {
        match l.trips {
            Extent::Known(n) => Ok(n),
            Extent::Read { from, bound } => {
                let trips = self.memory.read(from, 0, 0, DType::I64)?.int();
                Ok(usize::try_from(trips.max(0)).unwrap_or(usize::MAX).min(bound))
            }
        }
    }

    /// Whether repetition `i` is to run; if so its number is written.
    fn another(&mut self, l: &Loop, i: usize) -> Result<bool, Problem> {
        self.memory.begin();
        let read = usize::from(matches!(l.trips, Extent::Read { .. }));
        if let Some(condition) = l.condition
            && !self.truth(condition, read)?
        {
            return Ok(false);
        }
        if let Some(counter) = l.counter {
            let arg = read + usize::from(l.condition.is_some());
            self.memory.write(counter, arg, 0, DType::I64, crate::number::Number::Int(i as i128))?;
        }
        Ok(true)
    }
}

fn check_inputs(program: &Program, inputs: &[&Tensor]) -> Result<(), InterpretError> {
    if inputs.len() != program.inputs.len() {
        let (expected, found) = (program.inputs.len(), inputs.len());
        return Err(InterpretError::Inputs(format!("expected {expected} inputs, found {found}")));
    }
    for (port, tensor) in program.inputs.iter().zip(inputs) {
        if (port.dtype, port.shape.as_slice()) != (tensor.dtype(), tensor.shape()) {
            return Err(InterpretError::Inputs(format!(
                "input `{}`: expected {}{:?}, found {}{:?}",
                port.name,
                port.dtype,
                port.shape,
                tensor.dtype(),
                tensor.shape()
            )));
        }
    }
    Ok(())
}
