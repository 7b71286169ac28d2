//! What can go wrong on the way to the loop level.

use margay_loops::{NoKernel, Violation};

/// A graph cannot be lowered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LowerError {
    /// An operator has no lowering for its operands (a limit of margay).
    #[error("`{op}` at `{name}` cannot be compiled: {why}")]
    Unsupported {
        /// The operator.
        op: &'static str,
        /// The node's name in the model.
        name: String,
        /// Why.
        why: String,
    },
    /// The target has no kernel for a call (a limit of margay).
    #[error("at `{name}`: {error}")]
    NoKernel {
        /// The node's name in the model.
        name: String,
        /// Why.
        error: NoKernel,
    },
    /// A tensor has more bytes than any machine holds (the model's or the caller's fault).
    #[error("`{op}` at `{name}` has type {ty}, of more than {limit} bytes")]
    TooLarge {
        /// The operator.
        op: &'static str,
        /// The node's name in the model.
        name: String,
        /// Its type.
        ty: String,
        /// The most a tensor may have.
        limit: u64,
    },
    /// The program has more steps than machine code is made of (a limit of margay).
    #[error("the program has more than {limit} steps, the most that are compiled; at `{name}`")]
    TooLong {
        /// The name in the model of the node whose step is too many.
        name: String,
        /// The most steps of a program.
        limit: usize,
    },
    /// The program that was made does not hold together (our fault).
    #[error("the program is broken: {}", list(.0))]
    Broken(Vec<Violation>),
    /// An output cannot become an input of the next run (the caller's fault).
    #[error("output `{name}` is {output}; the input it is carried to is {input}")]
    Carried {
        /// The output.
        name: String,
        /// The type of the input.
        input: String,
        /// The type of the output.
        output: String,
    },
    /// An extent is not known (the caller's fault: bind every dimension first).
    #[error("`{op}` at `{name}` has type {ty}; every dimension must be bound")]
    Unbound {
        /// The operator.
        op: &'static str,
        /// The node's name in the model.
        name: String,
        /// Its type.
        ty: String,
    },
}

fn list(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
