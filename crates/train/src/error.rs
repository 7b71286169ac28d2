//! What can go wrong in training, and whose fault it is.

use margay_driver::{DriverError, Kind};
use margay_ir::{AddError, PassError};
use margay_runtime::RunError;
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
    #[error(transparent)]
    Add(Box<AddError>),
    /// A model cannot be compiled or run.
    #[error(transparent)]
    Driver(Box<DriverError>),
    /// A file of states cannot be written, or training not go on from it.
    #[error("{0}")]
    Checkpoint(String),
    /// A tensor cannot be made (the data's fault).
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl TrainError {
    /// Whether whoever asked for the work gave it up.
    pub fn is_interruption(&self) -> bool {
        matches!(self, TrainError::Driver(e) if matches!(**e, DriverError::Interrupted))
    }
}

/// What work gave; nothing where it was given up.
///
/// # Errors
/// Any other than that.
pub(crate) fn unless_interrupted<T>(result: Result<T, TrainError>) -> Result<Option<T>, TrainError> {
    match result {
        Err(error) if error.is_interruption() => Ok(None),
        other => other.map(Some),
    }
}

impl From<DriverError> for TrainError {
    fn from(e: DriverError) -> TrainError {
        TrainError::Driver(e.into())
    }
}

impl From<RunError> for TrainError {
    fn from(e: RunError) -> TrainError {
        DriverError::from(e).into()
    }
}

impl From<margay_ir::eval::RunError> for TrainError {
    fn from(e: margay_ir::eval::RunError) -> TrainError {
        DriverError::from(e).into()
    }
}

impl From<AddError> for TrainError {
    fn from(error: AddError) -> TrainError {
        TrainError::Add(Box::new(error))
    }
}

impl TrainError {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            TrainError::Driver(e) => e.kind(),
            TrainError::Pass(e) => e.into(),
            TrainError::Checkpoint(_) | TrainError::Tensor(_) => Kind::Malformed,
            TrainError::Add(_) => Kind::Internal,
            TrainError::Options(_) | TrainError::Mismatch { .. } | TrainError::Unreached(_) => Kind::Usage,
        }
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
