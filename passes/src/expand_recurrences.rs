//! Writes recurrences as loops over time, which is how back ends run them.
//!
//! Required stage: sketched. Weights that are constants are constants of the body.
//!
//! ```text
//! graph @before(%x: f32[T, 2, 2], %h: f32[2, 2]) -> (y: f32[T, 2, 2], last: f32[2, 2]) {
//!   %0 = const [0.5, -0.25, 1.0, 0.75] : f32[2, 2]  // rnn.weight
//!   %1 = recurrence %x, %0, %h {cell = rnn, activations = [Tanh]} : f32[T, 2, 2], f32[2, 2]  // rnn
//!   return %1, %1.1
//! }
//! graph @after(%x: f32[T, 2, 2], %h: f32[2, 2]) -> (y: f32[T, 2, 2], last: f32[2, 2]) {
//!   %0 = dims {values = [T]} : i64[1]  // rnn
//!   %1 = reshape %0 {shape = []} : i64  // rnn
//!   %2 = loop %1, %h, %x {body = &5db1a8574da5, max = T, carried = 1} : f32[2, 2], f32[T, 2, 2]  // rnn
//!   return %2.1, %2
//! }
//! region &5db1a8574da5 = graph @step(%i: i64, %h: f32[2, 2], %x1: f32[T, 2, 2]) -> (h: f32[2, 2], y: f32[2, 2]) {
//!   %0 = const [0.5, -0.25, 1.0, 0.75] : f32[2, 2]  // rnn.weight
//!   %1 = matmul %h, %0 : f32[2, 2]  // rnn
//!   %2 = gather %x1, %i {axis = 0} : f32[2, 2]  // rnn
//!   %3 = add %2, %1 : f32[2, 2]  // rnn
//!   %4 = tanh %3 : f32[2, 2]  // rnn
//!   return %4, %4
//! }
//! ```

use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Builder, Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Verdict,
};

/// Writes recurrences as loops over time.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExpandRecurrences;

impl Pass for ExpandRecurrences {
    fn name(&self) -> &'static str {
        "expand-recurrences"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Rounding
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, self, &[Rule { name: "loop-over-time", apply: repeated }])
    }
}

fn repeated(g: &Graph, n: NodeId, _: &ExpandRecurrences) -> RuleResult {
    let Op::Recurrence(op) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let mut patch = Patch::new();
    let mut b = Builder::patching(g, &mut patch, g.node(n).origin.clone());
    let results = op.repeated(&mut b, &g.inputs_of(n))?;
    g.values_of(n).zip(results).for_each(|(old, new)| patch.redirect(old, new));
    Ok(Verdict::Rewrite(patch))
}
