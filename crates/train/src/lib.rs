//! Training of models: what is done in one step, as a graph of ordinary operators.
//!
//! - [`loss`]: losses, added to a graph.
//! - [`masking`]: inputs and labels for masked language models.
//! - [`optimizer`]: what follows from gradients, and clipping.
//! - [`schedule`]: the learning rate of a step.
//! - [`step`]: forward, backward and update as one graph, [`TrainingStep`].
//!
//! A step is pure: what it carries to the next one, its *states*, goes in by inputs and comes out by outputs. The
//! reference interpreter can run it, it prints and reads back, and it compiles like any graph.

#![forbid(unsafe_code)]

mod error;
pub mod loss;
pub mod masking;
mod nodes;
pub mod optimizer;
pub mod schedule;
pub mod step;

pub use error::TrainError;
pub use optimizer::Optimizer;
pub use schedule::Schedule;
pub use step::{State, TrainingStep, Update};
