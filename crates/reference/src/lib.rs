//! The reference back end: programs are interpreted, by the obvious way and with every access checked.
//!
//! It exists to be compared with. Other back ends agree with it up to rounding; a program that does what no program
//! may do (reads what nobody wrote, reaches outside of a buffer, lets two work items depend on each other) is an error
//! here that names the step, the argument and the element, and would be wrong numbers elsewhere.
//!
//! Floats are computed in f64 and rounded to the type of each register; sums of reductions and of kernel calls are kept
//! in f64 until they are whole. Integers are those of compiled code, bit by bit.
//!
//! - [`run`]: a whole program.
//! - `kernel`: loop nests; `number`: scalar operations; `calls`: kernel calls by their formulas.
//! - `memory`: regions, and who wrote each byte.
//! - `backend`: what it answers the compiler; `device`: what sessions run on.
//!
//! Deliberately absent: speed.

#![deny(unsafe_code)]

mod backend;
mod calls;
mod device;
mod error;
mod interpret;
mod kernel;
mod memory;
mod number;

pub(crate) use backend::{BUFFER_ALIGN, stored_bytes};
pub use backend::{NAME, ReferenceBackend};
pub use device::ReferenceDevice;
pub use error::{InterpretError, Problem};
pub use interpret::run;
