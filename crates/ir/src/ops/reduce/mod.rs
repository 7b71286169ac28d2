//! Operators that join the elements along axes.

#[path = "reduce.rs"]
mod reduction;

pub use reduction::{Reduce, ReduceKind};
