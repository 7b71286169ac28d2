//! Runs GPU kernels on the processor, with every access checked.
//!
//! A kernel is compiled for the processor from the MLIR that becomes PTX for a device, with the few operations that only a
//! device has replaced by calls into this crate ([`margay_codegen_gpu::host`]). Every thread of a block is a fiber, so that
//! barriers and exchanges within a warp are real, and threads run in an order that a seed decides. What is found ends the run
//! with an error: accesses outside of the buffers of a step, reads of what nobody has written, addresses that are
//! not aligned, races, barriers that not every thread reaches.
//!
//! [`Emulator`] is a [`Driver`](margay_runtime::gpu::Driver), so that everything of the GPU device runs above it but the driver
//! of a real one. Without the feature `gpu` it has memory and runs nothing.
//!
//! - `driver`: the device; `memory`: its memory.
//! - `launch`: blocks, warps and threads; `thread`: what kernels call; `multiply`: matrix units.
//! - `shadow`: who wrote and read what.
//!
//! Not shown by it: what LLVM and ptxas make of a kernel for a device, speed, and what a device does otherwise than its
//! documents say.

mod driver;
mod launch;
mod memory;
mod multiply;
mod shadow;
mod thread;

pub use driver::Emulator;
pub use shadow::Problem;
pub use thread::symbols;
