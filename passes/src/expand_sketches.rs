//! Writes products with random matrices as the operators that back ends run: products with constants of random signs, lookups of
//! the entries of sparse matrices, Walsh–Hadamard transforms.
//!
//! Required stage: sketched. Random signs keep their names, so that they may be made where they are multiplied.
//!
//! ```text
//! graph @before(%x: f32[N, 4]) -> (y: f32[N, 5]) {
//!   %0 = sketch %x {law = rademacher, rows = 4, columns = 5, seed = 7, adjoint = true} : f32[N, 5]  // s
//!   return %0
//! }
//! graph @after(%x: f32[N, 4]) -> (y: f32[N, 5]) {
//!   %0 = const random(7, 0, sign, 0.5) : f32[4, 5]  // s
//!   %1 = matmul %x, %0 : f32[N, 5]  // s
//!   return %1
//! }
//! ```

use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Builder, Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Verdict,
};

/// Writes products with random matrices as other operators.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExpandSketches;

impl Pass for ExpandSketches {
    fn name(&self) -> &'static str {
        "expand-sketches"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, self, &[Rule { name: "operators-of-a-sketch", apply: spelled }])
    }
}

fn spelled(g: &Graph, n: NodeId, _: &ExpandSketches) -> RuleResult {
    let Op::Sketch(op) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let mut patch = Patch::new();
    let new =
        op.spelled(&mut Builder::patching(g, &mut patch, g.node(n).origin.clone()), g.inputs_of(n)[0])?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}
