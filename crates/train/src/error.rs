//! What can go wrong in training, and whose fault it is.

use margay_ir::{AddError, PassError};
use margay_tensor::TensorError;

/// A training step cannot be built, or not be run on what it was given.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// What was asked for contradicts itself or the model (the options' fault).
    #[error("{0}")]
    Options(String),
    /// Values that belong together do not fit (the model's fault, or that of the data).
    #[error("{what}: expected {expected}, found {found}")]
    Mismatch {
        /// Which values.
        what: String,
        /// What the first one asks for.
        expected: String,
        /// What the other one is.
        found: String,
    },
    /// The loss does not depend on parameters (the options' fault).
    #[error("the loss does not depend on {}", quoted(.0))]
    Unreached(Vec<String>),
    /// The graph has no derivative, or no such constant (the model's fault).
    #[error(transparent)]
    Pass(#[from] PassError),
    /// A formula built a node that does not type (our fault).
    #[error("{what}: {error}")]
    Add {
        /// What was being built.
        what: String,
        /// Why.
        error: Box<AddError>,
    },
    /// A tensor cannot be made (the data's fault).
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
