//! Finds `x sigmoid(x)`, in either order.
//!
//! Required stage: imported. Not about hard approximations, nor about a sigmoid that others read as well.
//!
//! ```text
//! graph @before(%x: f32[N, 8]) -> (y: f32[N, 8]) {
//!   %0 = sigmoid %x : f32[N, 8]  // act/Sigmoid
//!   %1 = mul %x, %0 : f32[N, 8]  // act/Mul
//!   return %1
//! }
//! graph @after(%x: f32[N, 8]) -> (y: f32[N, 8]) {
//!   %0 = silu %x : f32[N, 8]  // act/Mul
//!   return %0
//! }
//! ```

use margay_ir::ops::Silu;
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Verdict};

use crate::matching::both_orders;

/// Finds SiLU.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecognizeSilu;

impl Pass for RecognizeSilu {
    fn name(&self) -> &'static str {
        "recognize-silu"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, self, &[Rule { name: "silu-from-sigmoid", apply: silu }])
    }
}

fn silu(g: &Graph, n: NodeId, _: &RecognizeSilu) -> RuleResult {
    if !matches!(g.op(n), Op::Mul(_)) {
        return Ok(Verdict::NoMatch);
    }
    for [x, share] in both_orders(g, n.into()) {
        let of_x = matches!(g.op(share.node), Op::Sigmoid(_)) && g.inputs_of(share.node)[0] == x;
        if of_x && g.sole_user(share) == Some(n) {
            let mut patch = Patch::new();
            let new = patch.add(g, Silu, &[x], g.node(n).origin.clone())?;
            patch.redirect(n.into(), new);
            return Ok(Verdict::Rewrite(patch));
        }
    }
    Ok(Verdict::NoMatch)
}
