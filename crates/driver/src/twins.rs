//! Which values of two graphs of one model stand for the same thing.
//!
//! Names from the model tell: a rewrite hands them on. Where several nodes carry a name, the last one computes what the
//! named node of the model did.

use std::collections::HashMap;

use margay_ir::{Graph, Name, NodeId, Op, Part, Value};

/// The values of a graph by the names that its nodes have in the model.
pub struct Named(HashMap<Name, Value>);

impl Named {
    /// Looks at a graph. Inputs, constants and what is not a float have no names here.
    pub fn of(g: &Graph) -> Named {
        let mut all = HashMap::new();
        for n in g.order() {
            let node = g.node(n);
            let inner = matches!(node.origin.part, Some(Part::Left | Part::Term | Part::Gradient));
            if matches!(node.op, Op::Input(_) | Op::Const(_)) || inner || !node.types[0].dtype.is_float() {
                continue;
            }
            for name in &node.origin.names {
                all.insert(name.clone(), Value::from(n));
            }
        }
        Named(all)
    }

    /// The value with a name.
    pub fn get(&self, name: &str) -> Option<Value> {
        self.0.get(name).copied()
    }

    /// The value that stands for what node `n` of graph `g` computes, if it has the same type.
    pub fn twin(&self, own: &Graph, g: &Graph, n: NodeId) -> Option<Value> {
        let names = &g.node(n).origin.names;
        let mut found = names.iter().filter_map(|name| self.get(name));
        found.find(|v| own.ty(*v) == g.ty(n.into()))
    }
}
