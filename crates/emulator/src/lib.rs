//! Runs GPU kernels on the processor, with every access checked.
//!
//! There are two forms of a kernel. MLIR, which becomes PTX for a device, is compiled for the processor, with the few operations
//! that only a device has replaced by calls into this crate ([`margay_codegen_gpu::host`]). PTX is interpreted, slowly: that
//! is what a device is given, optimized by LLVM. Every thread of a block is a fiber, so that
//! barriers and exchanges within a warp are real, and threads run in an order that a seed decides. What is found ends the run
//! with an error: accesses outside of the buffers of a step, reads of what nobody has written, addresses that are
//! not aligned, races, barriers that not every thread reaches.
//!
//! [`Emulator`] is a [`Driver`](margay_runtime::gpu::Driver), so that everything of the GPU device runs above it but the driver
//! of a real one. Without the feature `gpu` it runs PTX only.
//!
//! - `driver`: the device; `memory`: its memory.
//! - `launch`: blocks, warps and threads; `thread`: what kernels call; `multiply`: matrix units.
//! - `shadow`: who wrote and read what.
//! - `stream`: streams, graphs and events.
//! - `ptx`: an interpreter.
//!
//! Not shown by it: what ptxas makes of a kernel, speed, and what a device does otherwise than its
//! documents say.

mod driver;
mod launch;
mod memory;
mod multiply;
mod ptx;
mod shadow;
mod stream;
mod thread;

pub use driver::Emulator;
pub use shadow::Problem;
pub use thread::symbols;
