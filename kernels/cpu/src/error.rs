//! Errors of this crate, besides [`NoKernel`](margay_loops::NoKernel).

/// No processor class has this name (the options' fault).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "unknown target cpu `{0}`; known are `native`, `portable`, `x86-64-v3`, `x86-64-v4`, `x86-64-v4-bf16`"
)]
pub struct UnknownTarget(pub String);
