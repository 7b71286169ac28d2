//! Which site of a model is sketched, how, and at what price. A site is a weight, or several that change together.
//!
//! Everything here is a plain value: tables of numbers go in, a [`Plan`] comes out. A scheme offers
//! [`Candidate`]s for a site; [`least_error`] and [`least_cost`] pick at most one per site, so that the error of the whole
//! model is small under a budget, or the price is small under a limit on the error; the result is written down as a
//! [`Plan`], a text that people may read and edit.
//!
//! - [`plan`]: the plan and its text form.
//! - [`candidate`]: what can be done to a site, and what each way loses and costs.
//! - [`allocate`]: the choice over all sites at once; `group`: sites that exclude each other.
//! - `within`: the same with several limits; [`quantity`]: budgets as people write them.
//!
//! Deliberately absent: graphs (the passes find sites and apply plans), spectra and sensitivities (the
//! passes turn them into candidates), clocks (predictions repeat, measurements do not), and files.

#![forbid(unsafe_code)]

pub mod allocate;
pub mod candidate;
mod error;
mod group;
pub mod plan;
pub mod quantity;
mod within;

pub use allocate::{Allocation, Budgets, Goal, least_cost, least_error, uniform};
pub use candidate::{Candidate, Curve, Price, Resource};
pub use error::{AllocateError, ChoiceProblem, Mismatch, PlanError};
pub use plan::{Choice, Header, Plan, Settings};
pub use quantity::{Budget, ErrorLimit, Operations, percent};
pub use within::least_error_within;
