//! Removes what does nothing and joins what can be one: identities, chains of reshapes, transposes and casts; a square that is
//! written as a power is a product.
//!
//! Required stage: imported. Declines nothing.
//!
//! ```text
//! graph @before(%x: f32[N, 4, 6]) -> (y: f32[N, 24]) {
//!   %0 = transpose %x {perm = [0, 2, 1]} : f32[N, 6, 4]
//!   %1 = transpose %0 {perm = [0, 2, 1]} : f32[N, 4, 6]
//!   %2 = reshape %1 {shape = [4*N, 6]} : f32[4*N, 6]
//!   %3 = const 1.0 : f32
//!   %4 = mul %2, %3 : f32[4*N, 6]
//!   %5 = reshape %4 {shape = [N, 24]} : f32[N, 24]
//!   return %5
//! }
//! graph @after(%x: f32[N, 4, 6]) -> (y: f32[N, 24]) {
//!   %0 = reshape %x {shape = [N, 24]} : f32[N, 24]
//!   return %0
//! }
//! ```

use margay_ir::ops::{Mul, Transpose};
use margay_ir::pass::{Rule, RuleResult, rewrite};
use margay_ir::{
    Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Value, Verdict,
};

use margay_tensor::DType;

use crate::matching::{both_orders, scalar};

/// Removes identities and joins chains.
#[derive(Clone, Copy, Debug, Default)]
pub struct Simplify;

impl Pass for Simplify {
    fn name(&self) -> &'static str {
        "simplify"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Exact
    }

    fn run(&self, g: &mut Graph, cx: &mut Cx) -> Result<Changed, PassError> {
        let rules = [
            Rule { name: "drop-identity", apply: drop_identity },
            Rule { name: "drop-neutral-operand", apply: drop_neutral_operand },
            Rule { name: "join-reshapes", apply: join_reshapes },
            Rule { name: "join-transposes", apply: join_transposes },
            Rule { name: "square-by-product", apply: square_by_product },
        ];
        rewrite(self.name(), g, cx, self, &rules)
    }
}

fn forward(n: NodeId, to: Value) -> RuleResult {
    let mut patch = Patch::new();
    patch.redirect(n.into(), to);
    Ok(Verdict::Rewrite(patch))
}

/// An operator of one operand whose result is the operand.
fn drop_identity(g: &Graph, n: NodeId, _: &Simplify) -> RuleResult {
    let operands = g.inputs_of(n);
    let [x] = operands.as_slice() else { return Ok(Verdict::NoMatch) };
    let identity = g.op(n).facts().identity && g.ty(*x) == g.ty(n.into());
    if identity { forward(n, *x) } else { Ok(Verdict::NoMatch) }
}

/// x - 0, x · 1, x / 1, x¹, x + -0 of floats and x + 0 of integers.
fn drop_neutral_operand(g: &Graph, n: NodeId, _: &Simplify) -> RuleResult {
    let facts = g.op(n).facts();
    let Some(neutral) = facts.elementwise.and_then(|e| e.neutral) else { return Ok(Verdict::NoMatch) };
    let orders = both_orders(g, n.into());
    for [x, c] in orders.into_iter().take(if neutral.commutes { 2 } else { 1 }) {
        let is_neutral = match scalar(g, c) {
            Some(number) if g.ty(c).dtype.is_float() => number.to_bits() == neutral.number.to_bits(),
            number => number == Some(neutral.number),
        };
        if is_neutral && g.ty(x) == g.ty(n.into()) {
            return forward(n, x);
        }
    }
    Ok(Verdict::NoMatch)
}

fn join_reshapes(g: &Graph, n: NodeId, _: &Simplify) -> RuleResult {
    let Op::Reshape(op) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let x = g.inputs_of(n)[0];
    let Op::Reshape(_) = g.op(x.node) else { return Ok(Verdict::NoMatch) };
    let mut patch = Patch::new();
    let from = g.inputs_of(x.node)[0];
    let new = patch.add(g, op.clone(), &[from], g.node(n).origin.clone())?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

fn join_transposes(g: &Graph, n: NodeId, _: &Simplify) -> RuleResult {
    let Op::Transpose(outer) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let x = g.inputs_of(n)[0];
    let Op::Transpose(inner) = g.op(x.node) else { return Ok(Verdict::NoMatch) };
    let mut patch = Patch::new();
    let from = g.inputs_of(x.node)[0];
    let perm = outer.perm.iter().map(|&p| inner.perm[p]).collect();
    let new = patch.add(g, Transpose { perm }, &[from], g.node(n).origin.clone())?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}

/// x² as x · x, which is what it rounds to; in f64 a power may err in its last bit.
fn square_by_product(g: &Graph, n: NodeId, _: &Simplify) -> RuleResult {
    let Op::Pow(_) = g.op(n) else { return Ok(Verdict::NoMatch) };
    let [x, exponent] = both_orders(g, n.into())[0];
    let is_square = scalar(g, exponent) == Some(2.0) && g.ty(x) == g.ty(n.into());
    if !is_square || g.ty(x).dtype == DType::F64 {
        return Ok(Verdict::NoMatch);
    }
    let mut patch = Patch::new();
    let new = patch.add(g, Mul, &[x, x], g.node(n).origin.clone())?;
    patch.redirect(n.into(), new);
    Ok(Verdict::Rewrite(patch))
}
