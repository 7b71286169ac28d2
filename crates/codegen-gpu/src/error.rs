//! What can go wrong.

use std::path::PathBuf;

/// A program cannot be turned into kernels.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodegenError {
    /// A kernel uses a construct without translation (a limit of margay).
    #[error("no translation of {construct} in `{kernel}`")]
    Unsupported {
        /// The kernel.
        kernel: String,
        /// The construct.
        construct: String,
    },
    /// This build of margay cannot make code for a device (the options' fault: build with the feature `gpu`).
    #[error("this build of margay compiles nothing for `{target}`: it is without the feature `gpu`")]
    NoCompiler {
        /// The class of devices.
        target: &'static str,
    },
    /// LLVM refused what was written (our fault).
    #[error("mlir: {0}")]
    Mlir(String),
}

/// What kernels take of a multiprocessor cannot be told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ResourcesError {
    /// The code is not what the back end writes (the file's fault).
    #[error("malformed code: {0}")]
    Code(String),
    /// The program that is to count registers does not run, refuses a kernel, or says nothing that can be read (the file's
    /// fault: it is no ptxas, or one of another version).
    #[error("`{}`: {problem}", path.display())]
    Ptxas {
        /// The program.
        path: PathBuf,
        /// What it says, or what is wrong with that.
        problem: String,
    },
}
