//! A program from its inputs to its outputs.

use margay_loops::{Program, Step, Work};
use margay_tensor::Tensor;

use crate::memory::Memory;
use crate::{InterpretError, calls, kernel};

/// Runs a program once. Inputs and outputs are in the order of the program, states among them; constants are in the
/// layouts of [`Reference`](crate::Reference).
pub fn run(program: &Program, inputs: &[&Tensor]) -> Result<Vec<Tensor>, InterpretError> {
    check_inputs(program, inputs)?;
    let inputs = inputs.iter().map(|t| t.bytes().to_vec()).collect();
    let constants = program.constants.iter().map(crate::stored_bytes).collect();
    let mut memory = Memory::new(program, inputs, constants);
    let mut failed: Option<&Step> = None;
    for (number, step) in program.steps.iter().enumerate() {
        memory.step += 1;
        let done = match &step.work {
            Work::Loops(k) => kernel::run(&program.kernels[*k], &step.args, &mut memory),
            Work::Call(call) => calls::run(call, &step.args, &mut memory).map(|()| true),
        };
        match done {
            Ok(true) => {}
            Ok(false) => failed = failed.or(Some(step)),
            Err(problem) => {
                let work = match &step.work {
                    Work::Loops(k) => format!("k{k}"),
                    Work::Call(call) => call.to_string(),
                };
                return Err(InterpretError::Step { step: number, work, label: step.label.clone(), problem });
            }
        }
    }
    if let Some(step) = failed {
        return Err(InterpretError::Fault { label: step.label.clone() });
    }
    let outputs = program.outputs.iter().enumerate();
    let tensors = outputs.map(|(i, port)| {
        let bytes = memory.output(program, i);
        let bytes = bytes.ok_or_else(|| InterpretError::Output { name: port.name.clone() })?;
        Ok(Tensor::from_bytes(port.dtype, &port.shape, bytes).expect("an output has the size of its port"))
    });
    tensors.collect()
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
