//! The order of nodes, and which of them matter.
//!
//! An extent that a run decides is mentioned by types and attributes of nodes that do not read the node which decides it:
//! they depend on it all the same.

use std::collections::BTreeSet;

use margay_tensor::{Binding, Symbol};

use super::{Graph, NodeId, Value};
use crate::Op;

impl Graph {
    /// All nodes in topological order, ties by age: the same graph built the same way gives the same order. What mentions an
    /// extent that a run decides comes after the node that decides it.
    pub fn order(&self) -> Vec<NodeId> {
        let order = self.by_age();
        let open: BTreeSet<Symbol> = order.iter().filter_map(|n| self.decided_by(*n)).collect();
        if open.is_empty() { order } else { self.after_decisions(order, open) }
    }

    /// The order in which nodes wait for the symbols that they mention, `open` where nothing has decided them yet.
    fn after_decisions(&self, order: Vec<NodeId>, mut open: BTreeSet<Symbol>) -> Vec<NodeId> {
        let mut waiting: Vec<(NodeId, Vec<Symbol>)> =
            order.into_iter().map(|n| (n, self.mentioned(n, &open))).collect();
        let mut done: Vec<NodeId> = Vec::with_capacity(waiting.len());
        let mut seen: BTreeSet<NodeId> = BTreeSet::new();
        loop {
            let before = done.len();
            waiting.retain(|(n, symbols)| {
                let ready = self.inputs_of(*n).iter().all(|v| seen.contains(&v.node));
                if !ready || symbols.iter().any(|s| open.contains(s)) {
                    return true;
                }
                self.decided_by(*n).into_iter().for_each(|s| _ = open.remove(&s));
                seen.insert(*n);
                done.push(*n);
                false
            });
            if done.len() == before {
                // What is left waits for itself; whoever looks at it finds that it has no value.
                done.extend(waiting.into_iter().map(|(n, _)| n));
                return done;
            }
        }
    }

    /// The symbol that a node gives a value in a run.
    pub(crate) fn decided_by(&self, n: NodeId) -> Option<Symbol> {
        match self.op(n) {
            Op::Cut(cut) => cut.extent.as_symbol(),
            _ => None,
        }
    }

    /// Which of these symbols the types or attributes of a node mention, but for the one that it gives a value itself.
    fn mentioned(&self, n: NodeId, open: &BTreeSet<Symbol>) -> Vec<Symbol> {
        let (op, mut symbols) = (self.op(n), Vec::new());
        let types = self.node(n).types.iter().flat_map(|ty| &ty.shape);
        types.for_each(|dim| dim.collect_symbols(&mut symbols));
        let in_attributes = |s: &&Symbol| op.bind(&Binding::from([((*s).clone(), 1)])) != *op;
        symbols.extend(open.iter().filter(in_attributes).cloned());
        let own = self.decided_by(n);
        symbols.retain(|s| open.contains(s) && Some(s) != own.as_ref());
        symbols
    }

    /// The nodes that outputs depend on, and the inputs.
    pub fn live(&self) -> BTreeSet<NodeId> {
        self.live_by(&|n| self.inputs_of(n).to_vec())
    }

    /// The same where nodes read the values that `operands` says.
    pub fn live_by(&self, operands: &dyn Fn(NodeId) -> Vec<Value>) -> BTreeSet<NodeId> {
        let decides: Vec<(Symbol, NodeId)> =
            self.by_age().into_iter().filter_map(|n| Some((self.decided_by(n)?, n))).collect();
        let open: BTreeSet<Symbol> = decides.iter().map(|(symbol, _)| symbol.clone()).collect();
        let mut live: BTreeSet<NodeId> = self.inputs.iter().copied().collect();
        let mut stack: Vec<NodeId> = self.outputs.iter().map(|o| o.value.node).collect();
        while let Some(n) = stack.pop() {
            if !live.insert(n) {
                continue;
            }
            stack.extend(operands(n).iter().map(|v| v.node));
            if !open.is_empty() {
                for symbol in self.mentioned(n, &open) {
                    stack.extend(decides.iter().find(|(s, _)| *s == symbol).map(|(_, n)| *n));
                }
            }
        }
        live
    }

    /// Removes every node that no output depends on, except inputs. Returns how many.
    pub fn remove_dead(&mut self) -> usize {
        let (live, before) = (self.live(), self.len());
        if live.len() < before {
            self.keep(&live);
        }
        before - live.len()
    }
}
