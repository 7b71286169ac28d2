//! Removes the places where training would drop elements: in inference they are identities.
//!
//! Required stage: imported. Declines nothing. A model that is to be trained keeps them, and patterns across them are not
//! recognized.
//!
//! ```text
//! graph @before(%x: f32[N, 8]) -> (y: f32[N, 8]) {
//!   %0 = relu %x : f32[N, 8]  // act
//!   %1 = dropout %0 {ratio = 0.1, stream = 0} : f32[N, 8]  // drop
//!   %2 = neg %1 : f32[N, 8]
//!   return %2
//! }
//! graph @after(%x: f32[N, 8]) -> (y: f32[N, 8]) {
//!   %0 = relu %x : f32[N, 8]  // act
//!   %1 = neg %0 : f32[N, 8]
//!   return %1
//! }
//! ```

use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Verdict};

/// Removes dropout.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveDropout;

impl Pass for RemoveDropout {
    fn name(&self) -> &'static str {
        "remove-dropout"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Exact
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, self, &[Rule { name: "dropout", apply: dropout }])
    }
}

fn dropout(g: &Graph, n: NodeId, _: &RemoveDropout) -> RuleResult {
    if !matches!(g.op(n), Op::Dropout(_)) {
        return Ok(Verdict::NoMatch);
    }
    let mut patch = Patch::new();
    patch.redirect(n.into(), g.inputs_of(n)[0]);
    Ok(Verdict::Rewrite(patch))
}
