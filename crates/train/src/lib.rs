//! Training and recovery by distillation, on compiled graphs.

#![forbid(unsafe_code)]

mod error;
pub mod recover;

pub use error::TrainError;
