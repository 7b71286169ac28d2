//! Kernels for GPUs from loop-level programs, through MLIR.
//!
//! [`GpuBackend`] is the back end. [`write()`] turns a loop nest into MLIR: a function of the dialects `gpu`, `scf`, `arith` and `llvm`. The feature `gpu` adds
//! `mlir`, which has LLVM turn that into PTX for a device, or into machine code of the processor for the emulator:
//! the one place of margay that links LLVM. Without it everything else is there, and its tests run.
//!
//! - `mapping`: which thread does what; `nest`: a kernel; `statement`: its statements; `access`: memory and reductions.
//! - [`host`]: a lowered kernel with what only a device has replaced by calls, for the emulator.
//! - `ptx`: what generated PTX must not contain; `resources`: what it takes of a multiprocessor.
//!
//! Kernels depend on programs and the class of devices alone. Nothing is summed in an order that a run decides: the same
//! inputs give the same bits.

mod access;
mod backend;
mod error;
pub mod host;
mod mapping;
#[cfg(feature = "gpu")]
mod mlir;
mod nest;
mod ptx;
mod resources;
mod statement;

pub use backend::{EMULATED, GpuBackend, NAME};
pub use error::{CodegenError, ResourcesError};
pub use mapping::{Mapping, Share, map};
#[cfg(feature = "gpu")]
pub use mlir::{HostCode, Mlir};
pub use nest::{Form, Written, write};
pub use ptx::lint;
pub use resources::{LaunchUse, launch_uses};
