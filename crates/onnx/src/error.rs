//! What can be wrong with a model, a file or a request to write one.
//!
//! [`OnnxError`] ends the reading of a file. What is wrong with the *contents* of a readable file is a list of
//! [`Problem`]s, all of which are found before reading fails.

use std::io;
use std::path::PathBuf;

use crate::{Lookalike, Problem};

/// A file cannot be read as an ONNX model, or a model cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The file cannot be opened or mapped (the user's or the machine's fault).
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The path names a directory, a pipe or a device (the user's fault).
    #[error("cannot read `{}`: expected a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Not enough memory for a copy (the machine's fault).
    #[error("cannot allocate memory: {0}")]
    Memory(io::Error),
    /// The file is something else than ONNX (the user's fault).
    #[error("not an ONNX model: found {0}")]
    NotOnnx(Lookalike),
    /// The file ends in the middle of a message (the file's fault).
    #[error("the file is cut short inside `{within}`: expected at least {expected} bytes, found {found}")]
    Truncated {
        /// The message that is incomplete.
        within: &'static str,
        /// Bytes the file must have at least.
        expected: u64,
        /// Bytes it has.
        found: u64,
    },
    /// The bytes are not protobuf, or not the messages of ONNX (the file's fault).
    #[error("malformed `{within}` at byte {at}: expected {expected}, found {found}")]
    Malformed {
        /// Offset in the file, in bytes.
        at: usize,
        /// The message it happens in.
        within: &'static str,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Messages or subgraphs are nested beyond any honest model (the file's or, in writing, the caller's fault).
    #[error("messages are nested too deeply at byte {at}: expected at most {limit} levels")]
    TooDeep {
        /// Offset in the file, in bytes.
        at: usize,
        /// The greatest number of levels.
        limit: usize,
    },
    /// Reading would take far more memory than the file has bytes (the file's fault), or writing would pass the
    /// two gigabytes a protobuf message may have (the caller's choice of [`External`](crate::External)).
    #[error("{what} is too large: expected at most {limit} bytes, found {found}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The greatest number of bytes.
        limit: u64,
        /// The number of bytes it would take at least.
        found: u64,
    },
    /// The parser refuses the bytes: text that is not UTF-8, packed numbers cut short (the file's fault).
    #[error("malformed `{within}`: {message}")]
    Parse {
        /// The message that was parsed.
        within: &'static str,
        /// What the parser says.
        message: String,
    },
    /// The file holds no graph (the file's fault).
    #[error("the model has no graph")]
    NoGraph,
    /// The model is readable but wrong, or uses what margay does not support.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
    /// A file cannot be written (the machine's or the user's fault).
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// An attribute that was read as [`Attribute::Other`](crate::Attribute::Other) has nothing to write (the
    /// caller's fault).
    #[error("cannot write attribute `{attribute}`: its value, a {kind}, was not kept")]
    NotWritable {
        /// The attribute.
        attribute: String,
        /// What ONNX calls its value.
        kind: &'static str,
    },
    /// The operator set to export to is not one of those (the options' fault).
    #[error("expected operator set {oldest} to {newest} to export to, found {found}")]
    ExportOpset {
        /// Oldest operator set written.
        oldest: i64,
        /// Newest operator set written.
        newest: i64,
        /// The one asked for.
        found: i64,
    },
    /// An input cannot be made a constant of the value asked for (the options' fault).
    #[error("cannot fix input `{input}`: {reason}")]
    FixedInput {
        /// Its name.
        input: String,
        /// Why.
        reason: String,
    },
    /// A graph that ONNX has no way to write (the graph's or the options' fault).
    #[error("cannot export {what}: {reason}")]
    NotExportable {
        /// The node or output.
        what: String,
        /// Why.
        reason: String,
    },
    /// The path to write to has no file name (the user's fault).
    #[error("cannot write `{}`: expected a path that ends in a file name of valid UTF-8", path.display())]
    FileName {
        /// The path.
        path: PathBuf,
    },
}

/// Whether a model is wrong, or right but beyond us. They have different exit codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The file is unreadable or breaks the rules of ONNX.
    Malformed,
    /// The file keeps the rules but uses something that margay does not support.
    Unsupported,
}

impl OnnxError {
    /// Whether the file is unreadable or breaks the rules of ONNX, as opposed to using what margay lacks.
    pub fn is_malformed(&self) -> bool {
        match self {
            OnnxError::Invalid(problems) => problems.iter().any(|p| p.kind() == Kind::Malformed),
            OnnxError::TooLarge { .. } | OnnxError::TooDeep { .. } => true,
            OnnxError::Memory(_)
            | OnnxError::Write { .. }
            | OnnxError::NotWritable { .. }
            | OnnxError::ExportOpset { .. }
            | OnnxError::FixedInput { .. }
            | OnnxError::NotExportable { .. }
            | OnnxError::FileName { .. } => false,
            OnnxError::Read { .. }
            | OnnxError::NotAFile { .. }
            | OnnxError::NotOnnx(_)
            | OnnxError::Truncated { .. }
            | OnnxError::Malformed { .. }
            | OnnxError::Parse { .. }
            | OnnxError::NoGraph => true,
        }
    }

    /// What a person may do about it, in one line.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            OnnxError::NotOnnx(lookalike) => Some(lookalike.help()),
            OnnxError::Truncated { .. } => Some("the download or copy did not finish; fetch the file again"),
            OnnxError::Malformed { .. } | OnnxError::Parse { .. } | OnnxError::NoGraph => {
                Some("the file is damaged or no ONNX model; compare its size and checksum with the source")
            }
            OnnxError::Invalid(problems) => problems.iter().find_map(Problem::help),
            OnnxError::TooLarge { .. } => Some("keep large tensors as external data"),
            _ => None,
        }
    }
}

/// The problem, or a heading and one line each.
fn list(problems: &[Problem]) -> String {
    match problems {
        [only] => only.to_string(),
        _ => {
            const SHOWN: usize = 20;
            let lines: String = problems.iter().take(SHOWN).map(|p| format!("\n  {p}")).collect();
            let more = match problems.len().saturating_sub(SHOWN) {
                0 => String::new(),
                more => format!("\n  and {more} more"),
            };
            format!("the model has several problems:{lines}{more}")
        }
    }
}
