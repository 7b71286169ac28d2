//! Hand-written CPU kernels.
