//! What can go wrong.

use margay_tensor::DType;

/// A program cannot be run.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum InterpretError {
    /// The inputs are not those of the program (the caller's fault).
    #[error("{0}")]
    Inputs(String),
    /// The data are not what a step requires (the model's or the caller's fault).
    #[error("`{label}` requires {requirement}")]
    Fault {
        /// The nodes of the first step that failed.
        label: String,
        /// What it requires.
        requirement: String,
    },
    /// An output was not written whole (our fault).
    #[error("output `{name}` was not written whole")]
    Output {
        /// The output.
        name: String,
    },
    /// The program does what no program may do (our fault).
    #[error("step {step} ({work}, `{label}`): {problem}")]
    Step {
        /// The step, in the order of the program's text.
        step: usize,
        /// The kernel or the call.
        work: String,
        /// The nodes it stands for.
        label: String,
        /// What it does.
        problem: Problem,
    },
}

/// What a step does that no step may do.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum Problem {
    /// An access outside of its buffer.
    #[error("element {index} of argument {arg}, {dtype}, lies outside of its buffer of {bytes} bytes")]
    Outside {
        /// Position among the arguments.
        arg: usize,
        /// The element, counted from where the argument begins.
        index: i64,
        /// Type of the elements.
        dtype: DType,
        /// Size of the buffer.
        bytes: usize,
    },
    /// A read of what nobody has written.
    #[error("element {index} of argument {arg} is read and was never written")]
    Unwritten {
        /// Position among the arguments.
        arg: usize,
        /// The element.
        index: i64,
    },
    /// A read of what was written as part of another buffer in the same memory.
    #[error("element {index} of argument {arg} is read after buffer {owner} was written over it")]
    Overwritten {
        /// Position among the arguments.
        arg: usize,
        /// The element.
        index: i64,
        /// The buffer whose contents lie there.
        owner: usize,
    },
    /// Work items that depend on each other.
    #[error(
        "element {index} of argument {arg} is reached by work item {item} and written by work item {writer}"
    )]
    Shared {
        /// Position among the arguments.
        arg: usize,
        /// The element.
        index: i64,
        /// The item that reaches it.
        item: u32,
        /// The item that wrote it.
        writer: u32,
    },
    /// A write to a constant, or to an input that is no state.
    #[error("argument {arg} is written and may only be read")]
    ReadOnly {
        /// Position among the arguments.
        arg: usize,
    },
    /// A register is read before it is set.
    #[error("register %{0} is read before it is set")]
    Unset(u32),
    /// A size of an open program, which only a closed one has a value for.
    #[error("an extent or index is a size without a value")]
    Open,
    /// Scalar code without meaning.
    #[error("{0} has no meaning")]
    Undefined(String),
}
