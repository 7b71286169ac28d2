//! The GPU back end without a GPU: kernels run on the emulator and are compared with the reference, and PTX of the same
//! kernels is assembled by ptxas. Needs the feature `gpu`; `scripts/setup-gpu.sh` brings what that links.

#![allow(clippy::result_large_err, reason = "errors are rare, and what they say is worth its bytes")]

mod attention;
mod derivatives;
mod models;
mod ops;
mod planted;
mod products;
mod ptx;
mod stored;
mod training;

use std::sync::Arc;

use margay_artifact::{ArtifactBuilder, Parts};
use margay_codegen_gpu::GpuBackend;
use margay_driver::{DriverError, Dump, build};
use margay_emulator::Emulator;
use margay_ir::ops::Const;
use margay_ir::{Graph, Op, Origin, Payload, TensorType, Value};
use margay_kernels_gpu::{Class, GpuCode, GpuTarget};
use margay_loops::CompileError;
use margay_lower::LowerError;
use margay_runtime::{Device, Executable, GpuDevice};
use margay_tensor::{Binding, Tensor};

/// The back end of the emulator.
const EMULATED: GpuBackend = GpuBackend::new(GpuTarget::emulated(Class::Sm80));

/// A graph compiled for an emulated device.
fn emulated(g: &Graph, binding: &Binding, emulator: &Emulator) -> Result<Executable, DriverError> {
    emulated_on(&EMULATED, g, binding, emulator)
}

/// A graph compiled for an emulated device of some target.
fn emulated_on(
    backend: &GpuBackend,
    g: &Graph,
    binding: &Binding,
    emulator: &Emulator,
) -> Result<Executable, DriverError> {
    loaded(parts_of(g, binding, backend)?, emulator)
}

/// A graph compiled for a back end.
fn parts_of(g: &Graph, binding: &Binding, backend: &GpuBackend) -> Result<Parts, DriverError> {
    let mut builder = ArtifactBuilder::new(g.name());
    build::add_entry(&mut builder, g, binding, backend, &mut Dump::none())?;
    Ok(builder.into_parts()?)
}

/// What was compiled, on an emulated device.
fn loaded(parts: Parts, emulator: &Emulator) -> Result<Executable, DriverError> {
    let device: Arc<dyn Device> = Arc::new(GpuDevice::new(Arc::new(emulator.clone())));
    Ok(Executable::from_parts_on(parts, &[device])?)
}

/// Whether an error says that the back end has no kernel for what a graph does. No other one is a reason to leave a case out.
fn is_unsupported(error: &DriverError) -> bool {
    matches!(
        error,
        DriverError::Lower(LowerError::Unsupported { .. } | LowerError::NoKernel { .. })
            | DriverError::NoKernel(_)
            | DriverError::Compile(CompileError::NoKernel(_) | CompileError::Unsupported(_))
    )
}

/// Changes the kernels of what was compiled.
fn change_kernels(parts: &mut Parts, change: impl FnOnce(&mut [String])) {
    let mut code = code_in(parts);
    change(&mut code.modules);
    let bytes = code.encode();
    parts.description.entries[0].sections[0].code = 0..bytes.len();
    parts.code = bytes;
}

/// The code of what was compiled.
fn code_in(parts: &Parts) -> GpuCode {
    let section = &parts.description.entries[0].sections[0];
    GpuCode::decode(&parts.code[section.code.clone()]).expect("code")
}

/// The code of the kernels of a graph.
fn code_of(g: &Graph, backend: &GpuBackend) -> Result<GpuCode, DriverError> {
    Ok(code_in(&parts_of(g, &Binding::new(), backend)?))
}

/// A graph of one node over inputs `x0`, `x1`, …, the last so many operands as constants.
fn graph_of(op: &Op, inputs: &[Tensor], constants: usize) -> Graph {
    let (given, fixed) = inputs.split_at(inputs.len() - constants);
    let mut g = Graph::new(op.name());
    let mut operands: Vec<Value> =
        given.iter().enumerate().map(|(i, t)| g.add_input(&format!("x{i}"), TensorType::of(t))).collect();
    for t in fixed {
        let payload = Payload::new(t.clone());
        operands.push(g.add(Const { payload }, &[], Origin::default()).expect("a constant"));
    }
    let v = g.add(op.clone(), &operands, Origin::named("node")).unwrap_or_else(|e| panic!("{e}"));
    for out in 0..g.node(v.node).types.len() as u16 {
        g.add_output(&format!("y{out}"), Value { node: v.node, out });
    }
    g
}

/// Inputs with the names that [`graph_of`] gives.
fn named(inputs: &[Tensor]) -> Vec<(String, &Tensor)> {
    inputs.iter().enumerate().map(|(i, t)| (format!("x{i}"), t)).collect()
}
