//! Replaces products with a constant matrix as a plan says.
//!
//! Required stage: canonical. Declines a module whose rank would store as much as the matrix itself.
//!
//! ```text
//! graph @before(%x: f32[N, 1024]) -> (y: f32[N, 512]) {
//!   %0 = const #5be1c0 : f32[1024, 512]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 512]  // fc1/MatMul
//!   return %1
//! }
//! graph @after(%x: f32[N, 1024]) -> (y: f32[N, 512]) {
//!   %0 = const lowrank.left(#5be1c0, k = 128) : f32[1024, 128]  // fc1.weight left
//!   %1 = const lowrank.right(#5be1c0, k = 128) : f32[128, 512]  // fc1.weight right
//!   %2 = matmul %x, %0 : f32[N, 128]  // fc1/MatMul left
//!   %3 = matmul %2, %1 : f32[N, 512]  // fc1/MatMul right
//!   return %3
//! }
//! ```

use margay_ir::{Changed, Cx, Fidelity, Graph, Pass, PassError};

use crate::sketch::{ModuleKind, Selection};

/// Sketches linear modules.
pub struct SketchLinear {
    /// What to do with which module.
    pub selection: Selection,
}

impl Pass for SketchLinear {
    fn name(&self) -> &'static str {
        "sketch-linear"
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Approximate
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        self.selection.apply(self.name(), ModuleKind::Linear, g, cx)
    }
}
