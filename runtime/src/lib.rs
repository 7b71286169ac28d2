//! Runs compiled programs.
//!
//! An [`Executable`] is machine code and constants, loaded from an artifact or handed over by a compiler in the same
//! process. A [`Session`] runs it: it owns the threads and all memory a run needs. After its first run with given
//! inputs a session allocates nothing but the tensors it returns.
//!
//! **Executables are code.** Nothing stops the machine code of an artifact from doing what any program of the user
//! may do: load only what you trust.
//!
//! The same inputs give the same bits on any number of threads, because an item of work does the same wherever it
//! runs and no two items write the same place.
//!
//! - `executable`: from an artifact to code on a device.
//! - `session`: memory, inputs and outputs of a run.
//! - [`device`]: what a session asks of a device; `cpu`: the processor, with its threads.
//! - [`gpu`]: GPUs behind a driver.
//! - `states`: what one run leaves for the next.
//! - `entry`: which entry fits given inputs, and what is wrong with inputs that fit none.
//!
//! Deliberately absent: graphs and compilation: an ahead-of-time program carries no compiler.

mod cpu;
pub mod device;
mod entry;
mod error;
mod executable;
pub mod gpu;
mod session;
mod states;

pub use cpu::{CpuDevice, Job, Pool};
pub use device::Device;
pub use error::{FailedSteps, RunError};
pub use executable::Executable;
pub use gpu::GpuDevice;
pub use session::{Outputs, Session, SessionOptions};
