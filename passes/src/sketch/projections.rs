//! The products around attention whose place another form has taken: those that its queries, keys and values come from, and
//! those that read its result. That form has no factors of its own; what learns in its stead are these.
//!
//! Attention and linear attention are such forms where a rewrite put them, which parts of origins tell.

use std::collections::HashSet;

use margay_ir::{Graph, NodeId, Op, Part, Value};
use margay_tensor::DType;

/// Weights of products around attention that was replaced, and the biases between them and it.
pub(super) fn projections(g: &Graph) -> Vec<NodeId> {
    let replaced = |n: &NodeId| {
        let is_attention = matches!(g.op(*n), Op::LinearAttention(_) | Op::Attention(_));
        is_attention && g.node(*n).origin.part.is_some()
    };
    let mut walk = Walk { g, seen: HashSet::new(), found: Vec::new() };
    for n in g.order().into_iter().filter(replaced) {
        // A mask has no projection.
        g.inputs_of(n).into_iter().take(3).for_each(|v| walk.before(v));
        walk.behind(n.into());
    }
    walk.found
}

struct Walk<'g> {
    g: &'g Graph,
    seen: HashSet<NodeId>,
    found: Vec<NodeId>,
}

impl Walk<'_> {
    /// Constants of several numbers that are no random matrices.
    fn parameter(&self, v: Value) -> bool {
        let several =
            self.g.constant(v).is_some_and(|c| c.tensor().len() > 1 && c.tensor().dtype() == DType::F32);
        several && self.g.node(v.node).origin.part != Some(Part::Random)
    }

    /// The weight of a product or a convolution.
    fn weight(&self, n: NodeId) -> Option<Value> {
        match self.g.op(n) {
            Op::MatMul(_) | Op::Conv(_) => {
                self.g.inputs_of(n).into_iter().find(|v| self.parameter(*v) && self.g.ty(*v).ndim() > 1)
            }
            _ => None,
        }
    }

    /// What a value was made from, back to products with weights.
    fn before(&mut self, v: Value) {
        let mut open = vec![v];
        while let Some(v) = open.pop() {
            let n = v.node;
            if !self.seen.insert(n) {
                continue;
            }
            if let Some(weight) = self.weight(n) {
                self.found.push(weight.node);
            } else if self.is_inside(n) || is_between(self.g.op(n)) {
                let inputs = self.g.inputs_of(n);
                if let Op::Add(_) = self.g.op(n) {
                    let added = inputs.iter().filter(|v| self.parameter(**v)).map(|v| v.node);
                    let added: Vec<NodeId> = added.collect();
                    self.found.extend(added);
                }
                open.extend(inputs);
            }
        }
    }

    /// Whether a node belongs to what took the place of attention.
    fn is_inside(&self, n: NodeId) -> bool {
        self.g.node(n).origin.part.is_some()
    }

    /// The products that read a value, with the biases behind them.
    fn behind(&mut self, v: Value) {
        let mut open = vec![v];
        let mut seen = HashSet::new();
        while let Some(v) = open.pop() {
            for (user, _) in self.g.users_of(v) {
                if !seen.insert(user) {
                    continue;
                }
                if let Some(weight) = self.weight(user) {
                    self.found.push(weight.node);
                    let next = self.g.sole_user(user.into());
                    let add = next.filter(|n| matches!(self.g.op(*n), Op::Add(_)));
                    let biases =
                        add.into_iter().flat_map(|n| self.g.inputs_of(n)).filter(|v| self.parameter(*v));
                    let biases: Vec<NodeId> = biases.map(|v| v.node).collect();
                    self.found.extend(biases);
                } else if self.is_inside(user) || moves(self.g.op(user)) {
                    open.extend(self.g.values_of(user));
                }
            }
        }
    }
}

/// Whether an operator may stand between a product and attention: it works element by element, or only moves elements.
fn is_between(op: &Op) -> bool {
    op.facts().elementwise.is_some() || moves(op)
}

/// Whether an operator only moves elements of its operands.
fn moves(op: &Op) -> bool {
    matches!(op.facts().symbolic, Some(margay_ir::ops::Symbolic::Moves(_)))
}
