//! Kernels for GPUs: what writes them, the form in which artifacts hold them, and the classes of devices.
//!
//! Kernels are written as text of MLIR. Nothing here links LLVM: `margay-codegen-gpu` turns the text into PTX.
//!
//! - [`writer`]: one kernel; `operations`: arithmetic; `device`: threads, memory, barriers.
//! - [`calls`]: kernels of products, convolutions and attention.
//! - [`value`]: types and values of what is written.
//! - [`code`]: the code of a program in an artifact, and the convention by which its kernels are launched.
//! - [`occupancy`]: how many warps a multiprocessor holds at once.
//! - [`target`]: classes of devices; `unit`: their matrix units.

pub mod calls;
pub mod code;
mod device;
pub mod occupancy;
mod operations;
pub mod target;
mod unit;
pub mod value;
pub mod writer;

pub use code::{BUFFER_ALIGN, ENTRY, GpuCode, Launch, LaunchArg, fault_of, fault_word};
pub use device::WARP;
pub use occupancy::{BlockUse, MOST_REGISTERS, Multiprocessor};
pub use operations::is_signed;
pub use target::{Class, GpuTarget, Rates};
pub use unit::Unit;
pub use value::{Element, Type, Value};
pub use writer::{Param, Writer};
