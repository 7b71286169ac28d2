//! Rounds the left operand of a product to bf16 where the right one is a constant stored so.
//!
//! Required stage: canonical. Processors that multiply bf16 take both operands in it; the rounding is two casts, there
//! and back, which a kernel does on the way. An operand that several products read is rounded once.
//!
//! ```text
//! graph @before(%x: f32[N, 64]) -> (y: f32[N, 32]) {
//!   %0 = const #w : f32[64, 32] stored bf16  // fc.weight
//!   %1 = matmul %x, %0 : f32[N, 32]  // fc
//!   return %1
//! }
//! graph @after(%x: f32[N, 64]) -> (y: f32[N, 32]) {
//!   %0 = const #w : f32[64, 32] stored bf16  // fc.weight
//!   %1 = cast %x {to = bf16} : bf16[N, 64]  // fc
//!   %2 = cast %1 {to = f32} : f32[N, 64]  // fc
//!   %3 = matmul %2, %0 : f32[N, 32]  // fc
//!   return %3
//! }
//! ```

use margay_ir::ops::{Cast, MatMul};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Value, Verdict,
};
use margay_tensor::{DType, Storage};

use crate::matching::is_weight_of_state;

/// Rounds left operands of products.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundOperands;

impl Pass for RoundOperands {
    fn name(&self) -> &'static str {
        "round-operands"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Approximate
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        rewrite(self.name(), g, cx, &(), &[Rule { name: "left-operand", apply: left_operand }])
    }
}

fn left_operand(g: &Graph, n: NodeId, (): &()) -> RuleResult {
    let Op::MatMul(_) = g.op(n) else { return Ok(Verdict::NoMatch) };
    if is_weight_of_state(g, n) {
        return Ok(Verdict::NoMatch);
    }
    let operands = g.inputs_of(n);
    let narrow = |v| g.constant(v).is_some_and(|p| p.storage() == Storage::plain(DType::BF16));
    let x = operands[0];
    if !narrow(operands[1]) || g.ty(x).dtype != DType::F32 || is_rounded(g, x) {
        return Ok(Verdict::NoMatch);
    }
    let origin = g.node(n).origin.clone();
    let mut patch = Patch::new();
    let rounded = match rounding_of(g, x) {
        Some(rounded) => rounded,
        None => {
            let down = patch.add(g, Cast { to: DType::BF16 }, &[x], origin.clone())?;
            patch.add(g, Cast { to: DType::F32 }, &[down], origin.clone())?
        }
    };
    let product = patch.add(g, MatMul, &[rounded, operands[1]], origin)?;
    patch.redirect(n.into(), product);
    Ok(Verdict::Rewrite(patch))
}

/// The value that a cast to another type is of.
fn cast_of(g: &Graph, v: Value, to: DType) -> Option<Value> {
    matches!(g.op(v.node), Op::Cast(cast) if cast.to == to).then(|| g.inputs_of(v.node)[0])
}

/// Whether a value has been cast to bf16 and back.
fn is_rounded(g: &Graph, v: Value) -> bool {
    cast_of(g, v, DType::F32).is_some_and(|narrow| cast_of(g, narrow, DType::BF16).is_some())
}

/// The value cast to bf16 and back, if somebody did that already.
fn rounding_of(g: &Graph, x: Value) -> Option<Value> {
    let cast = |v: Value, to: DType| {
        let users = g.users_of(v);
        users.iter().map(|(user, _)| Value::from(*user)).find(|&user| cast_of(g, user, to) == Some(v))
    };
    cast(x, DType::BF16).and_then(|narrow| cast(narrow, DType::F32))
}
