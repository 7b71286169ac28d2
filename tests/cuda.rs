//! The whole way from a model to results on a device.
fn main() {}
