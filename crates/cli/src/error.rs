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
use std::path::{Path, PathBuf};

use margay::{
    ArtifactError, Dump, Error as DriverError, Kind, NpyError, OnnxError, PipelineError, Problem, RunError,
    TrainError,
};

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

    /// Of a training that ended since a loss was not finite; what it had reached is no failure of its own.
    pub(crate) fn of_training(fitted: &margay::Fitted) -> Option<Failure> {
        let message = fitted.divergence()?;
        Some(Failure::new(Kind::Check, format!("{message}; a smaller learning rate may help")))
    }

    /// A file cannot be written.
    pub(crate) fn write(path: &Path, source: impl fmt::Display) -> Failure {
        Failure::usage(format!("cannot write `{}`: {source}", path.display()))
    }

    /// The failure with what a person may do about it.
    pub(crate) fn with_help(self, help: String) -> Failure {
        Failure { help: Some(help), ..self }
    }

    /// A pass failed. What it takes to see that again is in the folder of the dump, or, for a bug of ours, in one that is
    /// made for it.
    pub(crate) fn of_pipeline(kind: Kind, error: &PipelineError, dumped: Option<PathBuf>) -> Failure {
        let mut failure = Failure::new(kind, error.to_string());
        let written = match dumped {
            Some(folder) => Ok(Some(folder)),
            None if kind == Kind::Internal => write_failed(error).map(Some),
            None => Ok(None),
        };
        failure.help = match written {
            Ok(None) => None,
            Ok(Some(folder)) => {
                let graph = folder.join(margay::BEFORE).display().to_string();
                let (graph, passes) = (shell_word(&graph), shell_word(&error.replay.items));
                Some(format!("see it again with `margay opt {graph} --passes {passes}`"))
            }
            Err(why) => Some(format!("the graphs cannot be written: {why}")),
        };
        failure
    }

    /// The failure as an object for `--json`: `error` with `kind`, `exit_code`, `message`, and `at`, `inputs`, `help`
    /// where there is something to say.
    pub(crate) fn json(&self) -> serde_json::Value {
        let kind = match self.kind {
            Kind::Check => "check",
            Kind::Usage => "usage",
            Kind::Malformed => "malformed",
            Kind::Device => "device",
            Kind::Internal => "internal",
        };
        let mut error = serde_json::json!({
            "kind": kind, "exit_code": self.exit_code(), "message": self.message,
        });
        for (name, line) in [("at", &self.at), ("inputs", &self.inputs), ("help", &self.help)] {
            if let Some(line) = line {
                error[name] = line.as_str().into();
            }
        }
        serde_json::json!({ "error": error })
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
            DriverError::Pipeline { error, dumped } => Failure::of_pipeline(kind, &error, dumped),
            DriverError::Onnx(error) => Failure { help, kind, ..error.into() },
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

/// Writes the graphs of a failed pipeline into a new folder.
fn write_failed(error: &PipelineError) -> Result<PathBuf, String> {
    let folder = tempfile::Builder::new().prefix("margay-").tempdir().map_err(|e| e.to_string())?.keep();
    let mut dump = Dump::to(&folder, &command_line()).map_err(|e| e.to_string())?;
    dump.failure(error);
    dump.finish().map_err(|e| e.to_string())?;
    Ok(folder)
}

/// The command as it was given.
pub(crate) fn command_line() -> String {
    std::env::args().skip(1).fold("margay".to_owned(), |line, word| line + " " + &shell_word(&word))
}

/// A word as a shell reads it.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,%+@".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// An array file that cannot be read.
pub(crate) fn arrays(path: &Path, source: NpyError) -> Failure {
    DriverError::Arrays { path: path.to_path_buf(), source }.into()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use margay::{Pipeline, read_graph};

    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell_where_they_must_be() {
        assert_eq!(shell_word("--dim=N=4,8"), "--dim=N=4,8");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("bind-dims{N = 4}"), "'bind-dims{N = 4}'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }

    #[test]
    fn a_bug_of_a_pass_leaves_what_shows_it_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("g.ir");
        let text = "graph @g(%x: f32[N, 4]) -> (y: f32[N, 4]) {\n  %0 = exp %x : f32[N, 4]\n  return %0\n}\n";
        std::fs::write(&path, text).unwrap();
        let mut g = read_graph(&path).unwrap().graph;
        let pipeline = Pipeline::read("simplify, remove-dead, @lowerable", &|name| Err(name.into())).unwrap();
        let error = Dump::none().run(&pipeline, &mut g).unwrap_err();
        let failure = Failure::from(error);
        assert_eq!(failure.exit_code(), 101);
        let help = failure.help.clone().unwrap();
        let line =
            help.strip_prefix("see it again with `margay opt ").and_then(|h| h.strip_suffix('`')).unwrap();
        let (before, passes) = line.split_once(" --passes ").unwrap();
        assert_eq!(passes, "'remove-dead, @lowerable'");
        #[derive(Parser)]
        struct Opt {
            #[command(flatten)]
            args: crate::opt::Args,
        }
        let words = ["opt", before.trim_matches('\''), "--passes", passes.trim_matches('\'')];
        let again = crate::opt::run(&Opt::parse_from(words).args).err().unwrap();
        assert_eq!((&again.message, again.exit_code()), (&failure.message, 1));
        let written = Path::new(before.trim_matches('\'')).parent().unwrap();
        assert!(written.join("violations.txt").exists());
        std::fs::remove_dir_all(written).unwrap();
    }
}
