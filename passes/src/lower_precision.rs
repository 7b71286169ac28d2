//! Rounds the operands of products with constant matrices, so that the constants are stored and multiplied narrow.
//!
//! Required stage: canonical. The last change before extents are bound: sketches are chosen, and their factors
//! computed, from the constants as they were. Constants stay f32 in the graph; the kernels' layout is what gets
//! narrow. A product of which the right operand is no constant matrix in f32, as those of attention, is passed over;
//! so are convolutions and attention.
//!
//! ```text
//! graph @before(%x: f32[N, 64]) -> (y: f32[N, N]) {
//!   %0 = const #w : f32[64, 32]  // fc.weight
//!   %1 = matmul %x, %0 : f32[N, 32]  // fc
//!   %2 = transpose %1 {perm = [1, 0]} : f32[32, N]  // turn
//!   %3 = matmul %1, %2 : f32[N, N]  // scores
//!   return %3
//! }
//! graph @after(%x: f32[N, 64]) -> (y: f32[N, N]) {
//!   %0 = const #w : f32[64, 32]  // fc.weight
//!   %1 = matmul %x, %0 {precision = bf16} : f32[N, 32]  // fc
//!   %2 = transpose %1 {perm = [1, 0]} : f32[32, N]  // turn
//!   %3 = matmul %1, %2 : f32[N, N]  // scores
//!   return %3
//! }
//! ```

use margay_ir::ops::MatMul;
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{Changed, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Verdict};
use margay_loops::Precision;
use margay_tensor::DType;

/// Sets the precision of products with constant matrices.
#[derive(Clone, Copy, Debug, Default)]
pub struct LowerPrecision {
    /// The precision; `F32` changes nothing.
    pub precision: Precision,
}

impl Pass for LowerPrecision {
    fn name(&self) -> &'static str {
        "lower-precision"
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Approximate
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, self, &[Rule { name: "constant-right-operand", apply: narrow }])
    }
}

fn narrow(g: &Graph, n: NodeId, config: &LowerPrecision) -> RuleResult {
    let (Op::MatMul(MatMul { precision: Precision::F32 }), false) =
        (g.op(n), config.precision == Precision::F32)
    else {
        return Ok(Verdict::NoMatch);
    };
    let operands = g.inputs_of(n);
    let matrix = g.constant(operands[1]).is_some_and(|payload| {
        let tensor = payload.tensor();
        let ones = &tensor.shape()[..tensor.shape().len() - 2];
        tensor.dtype() == DType::F32 && ones.iter().all(|&d| d == 1)
    });
    if !matrix {
        return Ok(Verdict::NoMatch);
    }
    let mut patch = Patch::new();
    let product = MatMul { precision: config.precision };
    let new = patch.add(g, product, &operands, g.node(n).origin.clone())?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}
