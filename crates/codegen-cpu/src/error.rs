//! What can go wrong.

use margay_loops::CompileError;

/// Why a program could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CodegenError {
    /// The options name a processor class that does not exist on this architecture.
    #[error("unknown processor class `{name}`, expected one of {expected}")]
    UnknownCpu {
        /// What was asked for.
        name: String,
        /// What there is.
        expected: String,
    },
    /// A limit of margay: the kernel uses a construct that this back end does not translate.
    #[error("kernel `{kernel}` uses {construct}, which the processor back end does not support")]
    Unsupported {
        /// The kernel, by its name in the program's text.
        kernel: String,
        /// The operation and its type.
        construct: String,
    },
    /// No hand-written kernel serves a call (a limit of margay).
    #[error("{0}")]
    Launch(String),
    /// Our bug: Cranelift refused the code we wrote.
    #[error("function `{function}`: {message}")]
    Cranelift {
        /// The function.
        function: String,
        /// What Cranelift said.
        message: String,
    },
    /// Our bug: the machine code refers to a symbol, so that it cannot be moved as it is.
    #[error("function `{function}` needs {count} relocations, expected none")]
    Relocations {
        /// The function.
        function: String,
        /// How many references it holds.
        count: usize,
    },
}

impl From<CodegenError> for CompileError {
    fn from(error: CodegenError) -> CompileError {
        match error {
            CodegenError::UnknownCpu { .. } | CodegenError::Unsupported { .. } | CodegenError::Launch(_) => {
                CompileError::Unsupported(error.to_string())
            }
            CodegenError::Cranelift { .. } | CodegenError::Relocations { .. } => {
                CompileError::Internal(error.to_string())
            }
        }
    }
}
