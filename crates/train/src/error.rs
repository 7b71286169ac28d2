//! What can go wrong in training.

use margay_driver::{DriverError, Kind};
use margay_randnla::RandnlaError;

/// Something went wrong on the way from a model and data to a trained model.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A model cannot be compiled or run.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The factors of a layer cannot be fitted.
    #[error("`{module}`: {error}")]
    Refit {
        /// The layer.
        module: String,
        /// Why.
        error: RandnlaError,
    },
    /// Student, teacher and data do not fit each other (the options' fault).
    #[error("{0}")]
    Recover(String),
}

impl TrainError {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            TrainError::Driver(e) => e.kind(),
            TrainError::Refit { .. } | TrainError::Recover(_) => Kind::Usage,
        }
    }
}
