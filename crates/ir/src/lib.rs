//! The tensor graph: what a model computes, before anyone decides how.
//!
//! - [`Graph`]: nodes and values; edited by passes through [`Patch`] alone. [`Graph::cut`] and [`Graph::map`] make
//!   graphs of it.
//! - [`Builder`]: formulas as nodes.
//! - [`ops`]: the closed operator set; one file per operator, one list.
//! - [`types`]: tensor types with symbolic extents, and the rules that several operators share.
//! - [`text`]: the printed form and its parser.
//! - [`vjp`]: what the derivative rules of operators see and answer.
//! - [`padding`]: what operators answer of extents that a run decides.
//! - [`verify`]: the invariants of the four stages.
//! - [`pass`]: the pass interface and the rewrite driver.
//! - [`eval`]: the reference interpreter, slow and obvious.
//!
//! Deliberately absent: IO, ONNX, machine code, and any knowledge of what a sketch is.

#![forbid(unsafe_code)]

mod builder;
pub mod eval;
mod graph;
mod guard;
pub mod ops;
pub mod padding;
mod part;
pub mod pass;
mod patch;
mod payload;
mod region;
pub mod text;
pub mod types;
pub mod verify;
pub mod vjp;

pub use builder::Builder;
pub use graph::{AddError, Counts, Graph, Name, Node, NodeId, Origin, Output, Part, Value};
pub use guard::{Guard, GuardError};
pub use ops::{Op, OpDef};
pub use part::MapError;
pub use pass::{Changed, Configuration, Cx, Fidelity, Pass, PassError, Remark, Verdict};
pub use patch::{Applied, Patch, PatchError};
pub use payload::{Draw, DrawKind, Key, Payload};
pub use region::Region;
pub use types::{TensorType, TypeError, Types};
pub use verify::{Stage, Violation};
