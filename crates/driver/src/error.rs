//! What can go wrong, and whose fault it is.

use std::path::PathBuf;

use margay_artifact::ArtifactError;
use margay_ir::PassError;
use margay_loops::{CompileError, NoKernel};
use margay_lower::LowerError;
use margay_npy::NpyError;
use margay_onnx::OnnxError;
use margay_passes::{PipelineError, PipelineFault};
use margay_plan::{AllocateError, Mismatch, PlanError};
use margay_randnla::RandnlaError;
use margay_runtime::RunError;

use crate::backend::ResourcesError;

/// Classes of errors, as the exit codes of the command line tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A requested check failed: an error limit, a comparison, a budget.
    Check,
    /// The options do not fit, or the model asks for what margay does not do.
    Usage,
    /// A file cannot be read or is not what it should be.
    Malformed,
    /// The machine lacks what was asked for.
    Device,
    /// A bug of margay.
    Internal,
}

/// Something between a model and its executable went wrong.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// A file cannot be read (the file's fault).
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written (the options' fault).
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The model cannot be imported or exported.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// An array file is malformed.
    #[error("`{}`: {source}", path.display())]
    Arrays {
        /// The file.
        path: PathBuf,
        /// Why.
        source: NpyError,
    },
    /// The samples do not fit the model.
    #[error("samples: {0}")]
    Samples(String),
    /// The options contradict each other or the model.
    #[error("{0}")]
    Options(String),
    /// A pass failed that is part of no pipeline.
    #[error("pass `{pass}`: {error}")]
    Pass {
        /// The pass.
        pass: &'static str,
        /// Why.
        error: PassError,
    },
    /// A pipeline failed.
    #[error("{error}")]
    Pipeline {
        /// What failed, with the graphs before and after.
        error: PipelineError,
        /// The folder in which these are, if a [`Dump`](crate::Dump) went to one.
        dumped: Option<PathBuf>,
    },
    /// A dimension cannot be bound.
    #[error(transparent)]
    Binding(#[from] margay_ir::eval::RunError),
    /// The graph cannot be lowered.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// The program cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A kernel is missing.
    #[error(transparent)]
    NoKernel(#[from] NoKernel),
    /// An artifact is malformed or cannot be written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// An executable cannot run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// What the kernels of an artifact take of a device cannot be told (the fault of the artifact, or of the ptxas that was named).
    #[error("what kernels take of a device cannot be told: {0}")]
    Resources(ResourcesError),
    /// A plan does not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A file is no plan, or names schemes or settings that do not exist (the file's fault).
    #[error("`{}`: {error}", path.display())]
    PlanFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: PlanError,
    },
    /// A budget cannot be met.
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    /// A time budget cannot be met.
    #[error(
        "a run cannot be brought down to {asked_ms:.3} ms (predicted): the least possible is {best_ms:.3} ms"
    )]
    Budget {
        /// What was asked for.
        asked_ms: f64,
        /// The fastest choice.
        best_ms: f64,
    },
    /// A module cannot be factorized.
    #[error("`{module}`: {error}")]
    Factorize {
        /// The module.
        module: String,
        /// Why.
        error: RandnlaError,
    },
    /// The outputs of the model have no numbers to compare, or they are not finite on the samples.
    #[error("{0}")]
    Measure(String),
    /// A sketched model is to learn and has constants in narrow types (the model's fault).
    #[error("the sketched model has constants stored in bf16 or int8, which do not learn")]
    Narrow,
    /// An artifact was written without its source, of which a graph, a plan and a report are parts (the options' fault).
    #[error("`{}` was stripped: it does not carry its {lacks}", path.display())]
    Stripped {
        /// The artifact.
        path: PathBuf,
        /// What was asked for.
        lacks: &'static str,
    },
    /// The report of an artifact cannot be read.
    #[error("`{}`: the report is malformed: {message}", path.display())]
    Report {
        /// The artifact.
        path: PathBuf,
        /// What the parser says.
        message: String,
    },
    /// The outputs of several runs cannot be put together (the caller's fault).
    #[error(
        "output `{output}` has shape {shape:?} for a batch of {batch}: outputs without a batch axis cannot be put together"
    )]
    NoBatch {
        /// The output.
        output: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The batch of the run.
        batch: usize,
    },
    /// Whoever asked for the work gave it up.
    #[error("interrupted")]
    Interrupted,
    /// The text of a graph in an artifact or file does not parse.
    #[error("`{}`: {error}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// Why.
        error: margay_ir::text::ParseError,
    },
}

impl DriverError {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            DriverError::Read { .. }
            | DriverError::PlanFile { error: PlanError::Syntax { .. } | PlanError::Version { .. }, .. }
            | DriverError::Arrays { .. }
            | DriverError::Report { .. }
            | DriverError::Resources(_)
            | DriverError::Text { .. } => Kind::Malformed,
            DriverError::Onnx(e) if e.is_malformed() => Kind::Malformed,
            DriverError::Onnx(_)
            | DriverError::Write { .. }
            | DriverError::Samples(_)
            | DriverError::Options(_)
            | DriverError::Narrow
            | DriverError::Stripped { .. }
            | DriverError::NoBatch { .. }
            | DriverError::Binding(_)
            | DriverError::NoKernel(_)
            | DriverError::Plan(_)
            | DriverError::PlanFile { .. } => Kind::Usage,
            DriverError::Lower(LowerError::Broken(_)) => Kind::Internal,
            DriverError::Lower(_) => Kind::Usage,
            DriverError::Pass { error, .. } => error.into(),
            DriverError::Pipeline { error, .. } => (&error.fault).into(),
            DriverError::Compile(e) => e.into(),
            DriverError::Artifact(e) => e.into(),
            DriverError::Run(e) => e.into(),
            DriverError::Allocate(e) => e.into(),
            DriverError::Factorize { error, .. } => error.into(),
            DriverError::Budget { .. } | DriverError::Measure(_) | DriverError::Interrupted => Kind::Check,
        }
    }

    /// What a person may do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            DriverError::Onnx(e) => e.help().map(|h| h.to_string()),
            DriverError::Run(RunError::Target { .. }) => {
                Some("compile the model again with `--target-cpu native` on this machine".into())
            }
            DriverError::Run(RunError::Class { runs, .. }) => {
                Some(format!("compile the model again with `--device cuda:{runs}`"))
            }
            DriverError::Run(RunError::Inputs { .. } | RunError::NoEntry { .. }) => {
                Some("compile the model for these shapes with `--dim`".into())
            }
            DriverError::Plan(PlanError::Mismatch(problems))
                if problems.iter().all(|p| matches!(p, Mismatch::Calibration { .. })) =>
            {
                Some(
                    "give the samples that it was made with, or say `--recalibrate` to fit it to others"
                        .into(),
                )
            }
            DriverError::Narrow => Some("compile it in f32, recover it, and lower its precision then".into()),
            DriverError::Stripped { .. } => Some("compile the model again without `--strip`".into()),
            DriverError::NoBatch { .. } => {
                Some("give inputs of the shapes the model was compiled for".into())
            }
            DriverError::Allocate(AllocateError::Infeasible { .. }) | DriverError::Budget { .. } => {
                Some("raise the budget, or store weights narrow with `--precision int8`: a sketch has a least size".into())
            }
            _ => None,
        }
    }
}

impl From<&PipelineFault> for Kind {
    fn from(fault: &PipelineFault) -> Kind {
        match fault {
            PipelineFault::Pass { error, .. } => error.into(),
            PipelineFault::Broken { .. } => Kind::Internal,
        }
    }
}

impl From<&PassError> for Kind {
    fn from(error: &PassError) -> Kind {
        match error {
            PassError::Refused(_) => Kind::Usage,
            PassError::Add { .. }
            | PassError::Patch { .. }
            | PassError::NoFixpoint { .. }
            | PassError::Cycle { .. } => Kind::Internal,
        }
    }
}

impl From<&CompileError> for Kind {
    fn from(error: &CompileError) -> Kind {
        match error {
            CompileError::NoKernel(_) | CompileError::Unsupported(_) => Kind::Usage,
            CompileError::Internal(_) => Kind::Internal,
        }
    }
}

impl From<&ArtifactError> for Kind {
    fn from(error: &ArtifactError) -> Kind {
        match error {
            ArtifactError::Write { .. } | ArtifactError::Unpack { .. } => Kind::Usage,
            ArtifactError::Memory { .. } => Kind::Device,
            ArtifactError::Read { .. }
            | ArtifactError::NotAnArtifact { .. }
            | ArtifactError::Version { .. }
            | ArtifactError::Truncated { .. }
            | ArtifactError::Altered { .. }
            | ArtifactError::Malformed { .. } => Kind::Malformed,
        }
    }
}

impl From<&RunError> for Kind {
    fn from(error: &RunError) -> Kind {
        match error {
            RunError::Artifact(e) => e.into(),
            RunError::Machine { .. }
            | RunError::Target { .. }
            | RunError::Memory { .. }
            | RunError::NoDevice { .. }
            | RunError::Class { .. }
            | RunError::Device { .. } => Kind::Device,
            RunError::Code { .. } => Kind::Malformed,
            RunError::Program { .. } | RunError::Kernel { .. } => Kind::Internal,
            RunError::NoCode { .. }
            | RunError::Kernels { .. }
            | RunError::Inputs { .. }
            | RunError::NoEntry { .. }
            | RunError::State { .. }
            | RunError::Fault { .. } => Kind::Usage,
        }
    }
}

impl From<&AllocateError> for Kind {
    fn from(error: &AllocateError) -> Kind {
        match error {
            AllocateError::Infeasible { .. } | AllocateError::Together { .. } => Kind::Check,
            AllocateError::Number { .. } | AllocateError::Duplicate { .. } => Kind::Internal,
        }
    }
}

/// Shapes come from the graph; ranks and parameters may come from a plan.
impl From<&RandnlaError> for Kind {
    fn from(error: &RandnlaError) -> Kind {
        match error {
            // Of a batch that a mask marks as padding no row is left.
            RandnlaError::NonFinite { .. }
            | RandnlaError::Rank { .. }
            | RandnlaError::Parameter { .. }
            | RandnlaError::EmptySample { .. }
            | RandnlaError::Algebra(_) => Kind::Usage,
            RandnlaError::Shape { .. }
            | RandnlaError::Length { .. }
            | RandnlaError::Empty { .. }
            | RandnlaError::Structure { .. }
            | RandnlaError::Window { .. }
            | RandnlaError::Dependent { .. }
            | RandnlaError::Indefinite { .. }
            | RandnlaError::NoConvergence { .. } => Kind::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_bugs_are_told_from_what_others_asked_for() {
        let pass = |error| DriverError::Pass { pass: "simplify", error };
        let fixpoint = PassError::NoFixpoint { pass: "simplify", rounds: 64, rules: "a, b".into() };
        let number =
            AllocateError::Number { site: "fc".into(), choice: "".into(), what: "error", found: f64::NAN };
        let shape = RandnlaError::Empty { what: "weight", rows: 0, columns: 3 };
        let memory = RunError::Memory {
            what: "arena",
            bytes: 1 << 60,
            all: None,
            source: std::io::Error::from(std::io::ErrorKind::OutOfMemory),
        };
        let cases: [(DriverError, Kind); 9] = [
            (pass(fixpoint), Kind::Internal),
            (pass(PassError::Refused("no input `x`".into())), Kind::Usage),
            (CompileError::Internal("1 relocation".into()).into(), Kind::Internal),
            (CompileError::Unsupported("a cast".into()).into(), Kind::Usage),
            (number.into(), Kind::Internal),
            (DriverError::Factorize { module: "fc".into(), error: shape }, Kind::Internal),
            (memory.into(), Kind::Device),
            (RunError::Inputs { problems: vec![] }.into(), Kind::Usage),
            (DriverError::Budget { asked_ms: 1.0, best_ms: 2.0 }, Kind::Check),
        ];
        for (error, kind) in cases {
            assert_eq!(error.kind(), kind, "{error}");
        }
    }
}
