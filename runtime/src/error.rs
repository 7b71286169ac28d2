//! What can go wrong.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;

use margay_artifact::ArtifactError;

/// An executable cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The artifact cannot be read.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The code is for another architecture or operating system (the options' fault: compile for this one).
    #[error("compiled for `{found}`, this machine is `{expected}`")]
    Machine {
        /// This machine.
        expected: String,
        /// What the artifact was compiled for.
        found: String,
    },
    /// The processor lacks instructions of the class compiled for (the options' fault: choose a lower `--target-cpu`).
    #[error(
        "compiled for target cpu `{target}`, which this processor does not support; it supports `{supported}`"
    )]
    Target {
        /// The class compiled for.
        target: String,
        /// The most capable class of this machine.
        supported: String,
    },
    /// No code is for a back end that is at hand (the options' fault).
    #[error("holds no code for the back end `{backend}`; it is compiled for {found}")]
    NoCode {
        /// The back end of the device.
        backend: String,
        /// What there is code for.
        found: String,
    },
    /// The device that is asked for is not at hand (the machine's or the options' fault).
    #[error("no device: {problem}")]
    NoDevice {
        /// What is missing.
        problem: String,
    },
    /// The device is of a class that does not run the code (the options' fault: compile for this one).
    #[error("compiled for `{target}`, and the device is {device}, which runs `{runs}`")]
    Class {
        /// The class compiled for.
        target: String,
        /// The device.
        device: String,
        /// The newest class that it runs the code of.
        runs: String,
    },
    /// The device failed while it was used, or its driver (the machine's fault).
    #[error("the device failed: {problem}{}", place(steps.as_ref()))]
    Device {
        /// What the driver says.
        problem: String,
        /// The steps that may be at fault; `None` where that is not known.
        steps: Option<FailedSteps>,
    },
    /// A kernel did what no code may, such as reaching outside of all memory, and the device told of it when it was waited for (our
    /// fault).
    #[error("a kernel failed on the device: {problem}{}", place(steps.as_ref()))]
    Kernel {
        /// What the driver says.
        problem: String,
        /// The steps that may be at fault; `None` where that is not known.
        steps: Option<FailedSteps>,
    },
    /// The code is not what the back end writes (the file's fault).
    #[error("malformed code: {problem}")]
    Code {
        /// What is wrong.
        problem: String,
    },
    /// Kernels that the code calls are not in this margay (the options' fault: compile again with this version).
    #[error("kernels do not match this version of margay: {}; compile the model again", problems.join("; "))]
    Kernels {
        /// One line per kernel: expected and found.
        problems: Vec<String>,
    },
    /// The machine has no memory for a session.
    #[error("cannot allocate {bytes} bytes for {what}{}: {source}", of_all(*all))]
    Memory {
        /// What it is for.
        what: &'static str,
        /// How much.
        bytes: usize,
        /// What constants, intermediate results, states, inputs and outputs take together by the plan; `None` where that is not
        /// known.
        all: Option<usize>,
        /// What the system said.
        source: io::Error,
    },
    /// Names, types or shapes of the inputs are wrong (the caller's fault).
    #[error("inputs do not fit: {}", problems.join("; "))]
    Inputs {
        /// Everything that is wrong, with what was expected and found.
        problems: Vec<String>,
    },
    /// The model was not compiled for inputs of these shapes (the caller's or the options' fault).
    #[error("not compiled for {found}; available: {}", available.join(" | "))]
    NoEntry {
        /// The inputs given.
        found: String,
        /// The inputs of each entry.
        available: Vec<String>,
    },
    /// A state does not exist, or has another type (the caller's fault).
    #[error("{problem}")]
    State {
        /// What was expected and found.
        problem: String,
    },
    /// The code does what no code may, such as reaching outside of a buffer (our fault).
    #[error("the compiled program is wrong: {problem}")]
    Program {
        /// The step, the argument, the element, and what is wrong with the access.
        problem: String,
    },
    /// The data are not what a step requires (the model's or the caller's fault).
    #[error("`{step}` requires {requirement}")]
    Fault {
        /// The nodes of the first step that failed.
        step: String,
        /// What it requires, such as `indices from -5 to 4`.
        requirement: String,
    },
}

/// Steps that were submitted together, one of which made a device fail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FailedSteps {
    /// Their numbers.
    pub numbers: RangeInclusive<usize>,
    /// The first and the last in words.
    words: [String; 2],
}

impl FailedSteps {
    /// Whether it is known which one it is.
    pub fn is_one(&self) -> bool {
        self.numbers.start() == self.numbers.end()
    }
}

impl fmt::Display for FailedSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, last] = &self.words;
        match self.is_one() {
            true => write!(f, "in step {first}"),
            false => write!(f, "in one of the steps {first} to {last}"),
        }
    }
}

fn place(steps: Option<&FailedSteps>) -> String {
    steps.map_or(String::new(), |steps| format!(", {steps}"))
}

fn of_all(all: Option<usize>) -> String {
    all.map_or(String::new(), |all| format!(", of {all} that the plan takes in all"))
}

impl RunError {
    /// The error with all bytes that the plan takes, if it is one of memory.
    #[must_use]
    pub(crate) fn of_all(self, bytes: usize) -> RunError {
        match self {
            RunError::Memory { what, bytes: asked, source, .. } => {
                RunError::Memory { what, bytes: asked, all: Some(bytes), source }
            }
            other => other,
        }
    }

    /// The steps that may be at fault where a device failed, or a kernel on it.
    pub fn failed_steps(&self) -> Option<&FailedSteps> {
        match self {
            RunError::Device { steps, .. } | RunError::Kernel { steps, .. } => steps.as_ref(),
            _ => None,
        }
    }

    /// The error of a device or of code with the steps that may be at fault, each in words.
    #[must_use]
    pub(crate) fn within(self, numbers: RangeInclusive<usize>, words: &dyn Fn(usize) -> String) -> RunError {
        let words = [words(*numbers.start()), words(*numbers.end())];
        let steps = FailedSteps { numbers, words };
        match self {
            RunError::Device { problem, .. } => RunError::Device { problem, steps: Some(steps) },
            RunError::Kernel { problem, .. } => RunError::Kernel { problem, steps: Some(steps) },
            RunError::Program { problem } => RunError::Program { problem: format!("{problem}, {steps}") },
            other => other,
        }
    }
}
