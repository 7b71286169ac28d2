//! Errors as people see them, and exit codes.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | a requested check failed: an error limit, a budget, a comparison |
//! | 2 | bad usage, or a model that asks for what margay does not do |
//! | 3 | a file cannot be read or is malformed |
//! | 4 | the machine lacks what was asked for |
//! | 101 | a bug of margay |

use std::fmt;
use std::path::Path;

use margay::ArtifactError;
use margay::NpyError;
use margay::RunError;
use margay::train::TrainError;
use margay::{Error as DriverError, Kind};
use margay::{OnnxError, Problem};

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    /// The node of the model.
    at: Option<String>,
    /// The types of its inputs.
    inputs: Option<String>,
    help: Option<String>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), at: None, inputs: None, help: None }
    }

    /// The options do not fit.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Usage, message)
    }

    /// A file cannot be read.
    pub(crate) fn read(path: &Path, source: impl fmt::Display) -> Failure {
        Failure::new(Kind::Malformed, format!("cannot read `{}`: {source}", path.display()))
    }

    /// A file cannot be written.
    pub(crate) fn write(path: &Path, source: impl fmt::Display) -> Failure {
        Failure::usage(format!("cannot write `{}`: {source}", path.display()))
    }

    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Failure {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Check => 1,
            Kind::Usage => 2,
            Kind::Malformed => 3,
            Kind::Device => 4,
            Kind::Internal => 101,
        }
    }
}

impl fmt::Display for Failure {
    /// Lines that start with `error:`, `at:`, `inputs:` and `help:`, the latter three where there is something to say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.kind == Kind::Internal { "this is a bug of margay: " } else { "" };
        write!(f, "error: {what}{}", self.message)?;
        for (name, line) in [("at", &self.at), ("inputs", &self.inputs), ("help", &self.help)] {
            if let Some(line) = line {
                write!(f, "\n{name}: {line}")?;
            }
        }
        Ok(())
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Failure {
        let (kind, help) = (error.kind(), error.help());
        match error {
            DriverError::Onnx(error) => Failure { help, kind, ..error.into() },
            DriverError::Io { path, source } => Failure::read(&path, source),
            error => Failure { help, ..Failure::new(kind, error.to_string()) },
        }
    }
}

impl From<OnnxError> for Failure {
    fn from(error: OnnxError) -> Failure {
        let kind = if error.is_malformed() { Kind::Malformed } else { Kind::Usage };
        let help = error.help().map(ToString::to_string);
        let mut failure = Failure { help, ..Failure::new(kind, error.to_string()) };
        // A problem with one node has lines of its own.
        if let OnnxError::Invalid(problems) = &error
            && let [Problem::Node { node, inputs, message, .. }] = problems.as_slice()
        {
            failure.message = message.clone();
            failure.at = Some(format!("node {node}"));
            failure.inputs = Some(inputs.clone()).filter(|inputs| !inputs.is_empty());
        }
        failure
    }
}

impl From<ArtifactError> for Failure {
    fn from(error: ArtifactError) -> Failure {
        DriverError::from(error).into()
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Failure {
        DriverError::from(error).into()
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Failure {
        match error {
            TrainError::Driver(error) => (*error).into(),
            error => Failure::new(error.kind(), error.to_string()),
        }
    }
}

/// An array file that cannot be read.
pub(crate) fn arrays(path: &Path, source: NpyError) -> Failure {
    DriverError::Arrays { path: path.to_path_buf(), source }.into()
}
