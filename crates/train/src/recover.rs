//! Recovery of what sketching lost: the sketched model learns from the dense one.

pub mod factors;
pub mod layers;
pub mod mask;
mod stages;
pub mod twins;
