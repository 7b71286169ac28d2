//! A program from its inputs to its outputs.

use std::time::{Duration, Instant};

use margay_loops::{Extent, Loop, Operand, Program, Step, Work, walk};
use margay_tensor::{DType, Tensor};

use crate::memory::Memory;
use crate::{InterpretError, Problem, calls, kernel};

/// How a run ended.
pub(crate) enum Outcome {
    /// All steps ran.
    Done {
        /// The bytes of every output.
        outputs: Vec<Vec<u8>>,
        /// The time of every step that has no steps inside, in the order of their numbers.
        times: Vec<Duration>,
    },
    /// The data are not what a step requires: the first that failed.
    Failed {
        /// The number of the step.
        step: usize,
        /// The number among its requirements.
        requirement: usize,
    },
}

/// Runs a program once. Inputs and outputs are in the order of the program, states among them; constants are in the
/// layouts of [`ReferenceBackend`](crate::ReferenceBackend).
///
/// # Errors
/// Inputs that are not those of the program, a check that failed, and what [no program may do](crate::Problem).
pub fn run(program: &Program, inputs: &[&Tensor]) -> Result<Vec<Tensor>, InterpretError> {
    check_inputs(program, inputs)?;
    let inputs = inputs.iter().map(|t| t.bytes().to_vec()).collect();
    let constants: Vec<Vec<u8>> = program.constants.iter().map(crate::stored_bytes).collect();
    match interpret(program, inputs, constants.iter().map(Vec::as_slice).collect())? {
        Outcome::Done { outputs, .. } => {
            let ports = program.outputs.iter().zip(outputs);
            let tensor = |(port, bytes): (&margay_loops::Port, Vec<u8>)| {
                Tensor::from_bytes(port.dtype, &port.shape, &bytes)
                    .expect("an output has the size of its port")
            };
            Ok(ports.map(tensor).collect())
        }
        Outcome::Failed { step, requirement } => {
            let failed = program.steps().nth(step).map(|(_, s)| s);
            let kernel = failed.and_then(|s| match s.work {
                Work::Kernel { kernel, .. } => Some(&program.kernels[kernel]),
                _ => None,
            });
            let what = kernel.and_then(|k| k.requirements().get(requirement).map(ToString::to_string));
            let label = failed.map(|s| s.label.clone()).unwrap_or_default();
            Err(InterpretError::Fault { label, requirement: what.unwrap_or_default() })
        }
    }
}

/// Runs a program on bytes.
pub(crate) fn interpret(
    program: &Program,
    inputs: Vec<Vec<u8>>,
    constants: Vec<&[u8]>,
) -> Result<Outcome, InterpretError> {
    let times = vec![Duration::ZERO; program.steps().count()];
    let mut run = Run { program, memory: Memory::new(program, inputs, constants), failed: None, times };
    run.block(&program.body, 0)?;
    if let Some((step, requirement)) = run.failed {
        return Ok(Outcome::Failed { step, requirement });
    }
    let output = |(i, port): (usize, &margay_loops::Port)| {
        let bytes = run.memory.output(program, i);
        bytes.map(<[u8]>::to_vec).ok_or_else(|| InterpretError::Output { name: port.name.clone() })
    };
    let outputs = program.outputs.iter().enumerate().map(output).collect::<Result<_, _>>()?;
    let own = program.steps().zip(&run.times).filter(|((_, step), _)| step.blocks().is_empty());
    Ok(Outcome::Done { outputs, times: own.map(|(_, time)| *time).collect() })
}

/// A run in progress.
struct Run<'p> {
    program: &'p Program,
    memory: Memory<'p>,
    /// The step that failed first, and the number of its requirement.
    failed: Option<(usize, usize)>,
    /// The time of every step with the steps inside it.
    times: Vec<Duration>,
}

impl<'p> Run<'p> {
    /// Runs a list of steps, the first of which has a number.
    fn block(&mut self, steps: &'p [Step], mut number: usize) -> Result<(), InterpretError> {
        for step in steps {
            let begin = Instant::now();
            self.step(step, number)?;
            self.times[number] += begin.elapsed();
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
                let failed = kernel::run(kernel, args, &mut self.memory).map_err(named)?;
                self.failed = self.failed.or(failed.map(|requirement| (number, requirement)));
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
            Extent::Sized { .. } => Err(Problem::Open),
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
