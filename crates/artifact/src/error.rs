//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// An artifact cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The file cannot be read (the machine's or the options' fault).
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be written; one that was there before is as it was (the machine's or the options' fault).
    #[error("cannot write `{path}`: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is not enough memory for the constants (the machine's fault).
    #[error("cannot allocate {bytes} bytes for constants: {source}")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else (the options' fault).
    #[error("`{path}` is not a margay artifact")]
    NotAnArtifact {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a margay with another file format (the options' fault: compile the model again).
    #[error("`{path}` has format version {found}, expected {expected}; compile the model again")]
    Version {
        /// The file.
        path: PathBuf,
        /// The version this margay reads.
        expected: u32,
        /// The version of the file.
        found: u32,
    },
    /// The end of the file is missing (the machine's fault: an interrupted copy or download).
    #[error("`{path}` is cut short: expected {expected} bytes, found {found}")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that were written.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Bytes are not those that were written (the machine's fault, or somebody edited the file).
    #[error("`{path}` has been altered: its {part} does not match its hash")]
    Altered {
        /// The file.
        path: PathBuf,
        /// The part of the file.
        part: String,
    },
    /// The hashes are right but the contents make no sense (our bug, or a file made to confuse).
    #[error("`{path}` is malformed: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with numbers.
        problem: String,
    },
    /// The target cannot restore a packed constant (the options' fault: another version or target wrote it).
    #[error("cannot unpack constant `{name}` of `{path}`: {source}")]
    Unpack {
        /// The file.
        path: PathBuf,
        /// The constant.
        name: String,
        /// What the target said.
        source: margay_loops::NoKernel,
    },
}
