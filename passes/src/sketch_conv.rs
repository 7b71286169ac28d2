//! Replaces convolutions with a constant kernel as a plan says: a convolution with fewer filters, then a 1x1
//! convolution.
//!
//! Required stage: canonical. Declines a module whose rank would store as much as the kernel itself; grouped convolutions
//! are not modules.
//!
//! ```text
//! graph @before(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 32, 8, 8]) {
//!   %0 = const #77aa01 : f32[32, 16, 3, 3]  // conv.weight
//!   %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 32, 8, 8]  // conv
//!   return %1
//! }
//! graph @after(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 32, 8, 8]) {
//!   %0 = const lowrank.left(#77aa01, k = 8) : f32[8, 16, 3, 3]  // conv.weight left
//!   %1 = const lowrank.right(#77aa01, k = 8) : f32[32, 8, 1, 1]  // conv.weight right
//!   %2 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 8, 8, 8]  // conv left
//!   %3 = conv %2, %1 : f32[N, 32, 8, 8]  // conv right
//!   return %3
//! }
//! ```

use margay_ir::{Changed, Cx, Fidelity, Graph, Pass, PassError};

use crate::sketch::{ModuleKind, Selection};

/// Sketches convolutions.
pub struct SketchConv {
    /// What to do with which module.
    pub selection: Selection,
}

impl Pass for SketchConv {
    fn name(&self) -> &'static str {
        "sketch-conv"
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Approximate
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        self.selection.apply(self.name(), ModuleKind::Conv, g, cx)
    }
}
