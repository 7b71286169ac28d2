//! Makes the features of queries and keys by nodes, for back ends that have no attention which makes them itself.
//!
//! Required stage: imported. Declines nothing.
//!
//! ```text
//! graph @before(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) -> (y: f32[B, 2, S, 4]) {
//!   %0 = const #w : f32[4, 6]  // att random
//!   %1 = feature_attention %q, %k, %v, %0, %0 {map = relu, least = 0.001} : f32[B, 2, S, 4]  // att right
//!   return %1
//! }
//! graph @after(%q: f32[B, 2, S, 4], %k: f32[B, 2, S, 4], %v: f32[B, 2, S, 4]) -> (y: f32[B, 2, S, 4]) {
//!   %0 = const #w : f32[4, 6]  // att random
//!   %1 = matmul %q, %0 : f32[B, 2, S, 6]  // att right
//!   %2 = relu %1 : f32[B, 2, S, 6]  // att right
//!   %3 = const 0.001 : f32
//!   %4 = add %2, %3 : f32[B, 2, S, 6]  // att right
//!   %5 = matmul %k, %0 : f32[B, 2, S, 6]  // att right
//!   %6 = relu %5 : f32[B, 2, S, 6]  // att right
//!   %7 = const 0.001 : f32
//!   %8 = add %6, %7 : f32[B, 2, S, 6]  // att right
//!   %9 = linear_attention %4, %8, %v : f32[B, 2, S, 4]  // att right
//!   return %9
//! }
//! ```

use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Builder, Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Verdict,
};

/// Makes features by nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExpandFeatureAttention;

impl Pass for ExpandFeatureAttention {
    fn name(&self) -> &'static str {
        "expand-feature-attention"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, self, &[Rule { name: "features-by-nodes", apply: expanded }])
    }
}

fn expanded(g: &Graph, n: NodeId, _: &ExpandFeatureAttention) -> RuleResult {
    let Op::FeatureAttention(op) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let mut patch = Patch::new();
    let mut b = Builder::patching(g, &mut patch, g.node(n).origin.clone());
    let result = op.decomposed(&mut b, &g.inputs_of(n))?;
    patch.redirect(n.into(), result);
    Ok(Verdict::Rewrite(patch))
}
