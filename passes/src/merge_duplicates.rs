//! Computes equal things once: nodes with the same operator, attributes and operands become one. Constants are equal
//! when their contents are. Constants of floats with axes stay apart where their names differ: they may be parameters that
//! are equal before training only, such as biases of zeros or layers that begin as copies of one. Equal contents are
//! stored once all the same.
//! Attention that gives its logarithms too stands for one that does not.
//!
//! Required stage: imported. Declines nothing.
//!
//! ```text
//! graph @before(%x: f32[N]) -> (y: f32[N]) {
//!   %0 = exp %x : f32[N]
//!   %1 = exp %x : f32[N]
//!   %2 = add %0, %1 : f32[N]
//!   return %2
//! }
//! graph @after(%x: f32[N]) -> (y: f32[N]) {
//!   %0 = exp %x : f32[N]
//!   %1 = add %0, %0 : f32[N]
//!   return %1
//! }
//! ```

use std::collections::HashMap;

use margay_ir::{Changed, Configuration, Cx, Fidelity, Graph, NodeId, Op, Pass, PassError, Patch, Value};

/// Merges equal nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MergeDuplicates;

impl Pass for MergeDuplicates {
    fn name(&self) -> &'static str {
        "merge-duplicates"
    }

    fn configuration(&self) -> Configuration {
        Configuration::none()
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Exact
    }

    #[expect(
        clippy::mutable_key_type,
        reason = "what is mutable is the memo of a content hash, no part of the key"
    )]
    fn run(&self, g: &mut Graph, _: &mut Cx) -> Result<Changed, PassError> {
        let inside = g.change_regions(&mut |inner| self.run(inner, &mut Cx::default()))?;
        let order = g.order();
        let mut seen: HashMap<(Op, Vec<Value>, String), NodeId> = HashMap::with_capacity(order.len());
        let mut merged = 0;
        for n in order {
            if matches!(g.op(n), Op::Input(_)) {
                continue;
            }
            let apart = if may_be_parameter(g.op(n)) { g.node(n).origin.name() } else { "" };
            let whole = g.op(n).facts().with_all_results.unwrap_or_else(|| g.op(n).clone());
            let key = (whole, g.inputs_of(n).to_vec(), apart.to_string());
            let Some(first) = seen.get(&key).copied() else {
                seen.insert(key, n);
                continue;
            };
            let results = |n: NodeId| g.node(n).types.len() as u16;
            let (from, to) = if results(n) > results(first) { (first, n) } else { (n, first) };
            seen.insert(key, to);
            let mut patch = Patch::new();
            for out in 0..results(from) {
                patch.redirect(Value { node: from, out }, Value { node: to, out });
            }
            let at = g.node(n).origin.name().to_string();
            g.apply(patch).map_err(|error| PassError::Patch {
                rule: self.name(),
                at,
                error: error.into(),
            })?;
            merged += 1;
        }
        g.remove_dead();
        Ok(inside.and(Changed::times(merged)))
    }
}

/// Whether this is a constant of floats with axes.
fn may_be_parameter(op: &Op) -> bool {
    let Op::Const(c) = op else { return false };
    let ty = c.payload.ty();
    ty.dtype.is_float() && ty.ndim() > 0
}
