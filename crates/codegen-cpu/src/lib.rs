//! Machine code from loop-level programs, with Cranelift.
//!
//! [`CpuBackend`] is the processor back end: it turns a [`Program`](margay_loops::Program) into one block of position-independent machine code without
//! relocations: a function per generated kernel and a driver that runs the steps. Everything outside (hand-written
//! kernels, the parallel loop of the runtime, memory) is reached through pointers that the caller hands over, so
//! that the block can be written to a file, mapped executable and run without a linker.
//!
//! - `backend`: the back end as a value; [`cost`]: what it predicts times by.
//! - `isa`: processor classes; never what the compiling machine happens to be.
//! - `emit`: the whole program; `driver`: the function that runs the steps.
//! - `kernel`: one loop nest; `nested`: its loops; `vector`: which of them run four lanes at a time; `statement`: its
//!   statements; `access`: loads and stores.
//! - `tiles`: two loops at a time, where memory runs along both.
//! - `chunks`: loops that call hand-written functions of rows where those have wider vectors.
//! - `scalar`: operations on a scalar or on four lanes alike; `math`: exp, log, erf and their kin.
//!
//! The calling convention is that of [`margay_kernels_cpu::abi`]. Lanes and scalars go through the same operations, and
//! reductions join values in an order that depends on extents only: a kernel gives the same bits however its items
//! are split into runs.
//!
//! Deliberately absent: matrix products and other kernels that need the full width of the machine (hand-written
//! ones are called), 16-bit floats, and functions such as exp in f64 (`calls` calls them).

mod access;
mod backend;
mod calls;
mod chunks;
pub mod cost;
mod driver;
mod emit;
mod error;
mod half;
mod isa;
mod kernel;
mod math;
mod nested;
mod scalar;
mod statement;
mod tiles;
mod vector;

#[cfg(test)]
mod tests;

pub use backend::{CpuBackend, NAME};
pub use cost::CostModel;
pub use emit::{items, print_clif};
pub use error::CodegenError;
pub use isa::CpuIsa;
