//! What can go wrong.

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
