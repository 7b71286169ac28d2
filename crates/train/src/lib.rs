//! Training of models: one step as a graph of ordinary operators, and the loop that runs it compiled.
//!
//! As graphs:
//! - [`loss`]: losses, added to a graph.
//! - [`expectation`]: what programs given as tables are expected to give for uncertain inputs.
//! - [`dropout`]: random masks where a model drops elements.
//! - [`init`]: random parameters to begin from.
//! - [`masking`]: inputs and labels for masked language models.
//! - [`optimizer`]: what follows from gradients, and clipping.
//! - [`schedule`]: the learning rate of a step.
//! - [`step`]: forward, backward and update as one graph, [`TrainingStep`].
//!
//! Compiled:
//! - [`trainer`]: a step as machine code, with the session that holds its states.
//! - [`evaluator`]: a model whose parameters are given with every run.
//! - [`batches`]: the order of the samples.
//! - [`rate`]: a learning rate found by a short test.
//! - [`fit`](mod@fit): the loop: clock, held-out evaluation, early stopping.
//! - [`ranks`]: ranks of factors, chosen while they are trained.
//! - [`redraw`]: directions of random features, drawn anew meanwhile.
//! - [`supervised`]: samples with labels and an objective, from a model to a trained model.
//! - [`checkpoint`]: files from which training goes on.
//!
//! On top of both: [`recover`], the distillation of a dense model into its sketch.
//!
//! A step is pure: what it carries to the next one, its *states*, goes in by inputs and comes out by outputs. The
//! reference interpreter can run it, it prints and reads back, and it compiles like any graph.

#![forbid(unsafe_code)]

pub mod batches;
pub mod checkpoint;
pub mod dropout;
mod error;
pub mod evaluator;
pub mod expectation;
pub mod fit;
pub mod head;
pub mod init;
pub mod loss;
pub mod masking;
mod non_finite;
pub mod optimizer;
pub mod ranks;
pub mod rate;
pub mod recover;
pub mod redraw;
pub mod schedule;
pub mod step;
pub mod supervised;
pub mod trainer;

pub use batches::Batches;
pub use error::TrainError;
pub use evaluator::Evaluator;
pub use fit::{
    Evaluation, FitOptions, Fitted, Length, Observer, Point, Ranked, Restart, Stop, Task, Tensors, fit,
};
pub use non_finite::NonFinite;
pub use optimizer::Optimizer;
pub use ranks::{RankChange, RankLimit, RankSelection};
pub use rate::RateTest;
pub use redraw::Redraw;
pub use schedule::Schedule;
pub use step::{State, TrainingStep, Update};
pub use supervised::{Objective, Selection, Supervised, Trained};
pub use trainer::{StepMemory, Trainer};
