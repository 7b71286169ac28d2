//! From a [`Graph`](margay_ir::Graph) at stage `Lowerable` to a [`Program`](margay_loops::Program).
//!
//! Nodes are visited in topological order. What a node computes is written down when somebody needs it in memory:
//! until then an elementwise node is an expression that its reader may compute in place of a load, and a loop nest
//! or kernel call is an anchor that takes the elementwise nodes behind it into its stores. Views (reshapes,
//! transposes, slices, broadcasts) change strides and run nothing. What is left is a list of steps over buffers,
//! and [`plan_memory`] gives each buffer its place.
//!
//! - `group`: nodes to groups; which neighbours fuse.
//! - `call`: operands of hand-written kernels.
//! - `emit`: groups to steps.
//! - `memory`: views of buffers.
//! - `places`, [`arena`]: places of buffers.
//! - `rows`: where rows lie that are looked up.
//!
//! Deliberately absent: tiles, threads, instruction sets.

#![forbid(unsafe_code)]

pub mod arena;
mod call;
mod control;
mod emit;
mod error;
mod group;
mod memory;
mod places;
mod rows;

pub use arena::{Lifetime, plan_memory};
pub use call::storage_with_signs;
pub use error::LowerError;
pub use group::{lower, lower_carrying};
pub use places::place;
