//! Which module of a model is sketched, how, and at what price.
//!
//! Everything here is a plain value: tables of numbers go in, a [`Plan`] comes out. A scheme offers
//! [`Candidate`]s for a module; [`allocate()`] picks one per module, so that the error of the whole model is
//! small under a budget, or the price is small under a limit on the error; the result is written down as a
//! [`Plan`], a text that people may read and edit.
//!
//! - [`plan`]: the plan and its text form.
//! - [`candidate`]: what can be done to a module, and what each way loses and costs.
//! - [`mod@allocate`]: the choice over all modules at once.
//! - [`quantity`]: budgets as people write them.
//!
//! Deliberately absent: graphs (the passes find modules and apply plans), spectra and sensitivities (the
//! passes turn them into candidates), clocks (predictions repeat, measurements do not), and files.

#![forbid(unsafe_code)]

pub mod allocate;
pub mod candidate;
mod error;
pub mod plan;
pub mod quantity;

pub use allocate::{Allocation, Goal, allocate, uniform};
pub use candidate::{Candidate, Curve, Resource};
pub use error::{AllocateError, ChoiceProblem, Mismatch, PlanError};
pub use plan::{Choice, CopyMode, Header, Plan};
pub use quantity::Budget;
