//! Kernels run from the emitted block, against plain Rust.
