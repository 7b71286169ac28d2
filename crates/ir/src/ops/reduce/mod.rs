//! Operators that join, rank or run through the elements along axes.

mod cumulate;
#[path = "reduce.rs"]
mod reduction;
mod top_k;

pub use cumulate::Cumulate;
pub use reduction::{Reduce, ReduceKind};
pub use top_k::TopK;
