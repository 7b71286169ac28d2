//! Which values of two graphs of one model stand for the same thing.
//!
//! Names from the model tell: a rewrite hands them on. Where several nodes carry a name, the last one computes what the
//! named node of the model did.
//!
//! A layer with a bias is one node in some files and several in others: a `Gemm`, or a product, its factor and a sum, each
//! with a name of its own. So that a name means the same place in all of them, it stands for the value behind the constants
//! that are multiplied and added to what its node computes, where nothing else reads what lies between.

use std::collections::{HashMap, HashSet};
use std::mem::discriminant;

use margay_ir::{Graph, Name, NodeId, Op, Part, Value};

/// The values of a graph by the names that its nodes have in the model, those of one name in the order of the graph.
pub struct Named {
    values: HashMap<Name, Vec<Value>>,
    /// In the order of the nodes that carry them first.
    names: Vec<Name>,
}

impl Named {
    /// Looks at a graph. Inputs, constants and what is not a float have no names here.
    pub fn of(g: &Graph) -> Named {
        let (mut values, mut names): (HashMap<Name, Vec<Value>>, _) = (HashMap::new(), Vec::new());
        let order = g.order();
        // From the last node to the first, so that long rows of constants are walked once.
        let mut ends: HashMap<NodeId, NodeId> = HashMap::new();
        for &n in order.iter().rev() {
            let next = behind_a_constant(g, n.into());
            ends.insert(n, next.and_then(|next| ends.get(&next).copied()).unwrap_or(n));
        }
        for n in order {
            let node = g.node(n);
            let inner = matches!(node.origin.part, Some(Part::Left | Part::Term | Part::Gradient));
            if matches!(node.op, Op::Input(_) | Op::Const(_)) || inner || !node.types[0].dtype.is_float() {
                continue;
            }
            for name in &node.origin.names {
                let of_name = values.entry(name.clone()).or_default();
                if of_name.is_empty() {
                    names.push(name.clone());
                }
                of_name.push(Value::from(ends[&n]));
            }
        }
        Named { values, names }
    }

    /// The value with a name.
    pub fn get(&self, name: &str) -> Option<Value> {
        self.values.get(name)?.last().copied()
    }

    /// The value that stands for what node `n` of graph `g` computes, if it has the same type: as many constants follow it
    /// as follow `n`, and in the same way. Operators such as LSTM are several nodes of one name, of which the last that fits counts.
    pub fn twin(&self, own: &Graph, g: &Graph, n: NodeId) -> Option<Value> {
        let names = &g.node(n).origin.names;
        let following = behind_constants(g, n);
        let before = |end: Value| {
            following.iter().rev().try_fold(end, |v, step| {
                let same = discriminant(own.op(v.node)) == discriminant(g.op(*step));
                beside_a_constant(own, v.node).filter(|_| same)
            })
        };
        let named = names.iter().filter_map(|name| self.values.get(name));
        let mut found = named.flat_map(|values| values.iter().rev()).filter_map(|v| before(*v));
        found.find(|v| own.ty(*v) == g.ty(n.into()))
    }

    /// The values that both graphs name and that have one type in both, each by the first of its names, in the order of the
    /// names in `own`, the graph of this one; `g` is that of the other.
    pub fn shared(&self, own: &Graph, other: &Named, g: &Graph) -> Vec<(Name, Value, Value)> {
        let mut all: Vec<(Name, Value, Value)> = Vec::new();
        let (mut of_own, mut of_other) = (HashSet::new(), HashSet::new());
        for name in &self.names {
            let (Some(v), Some(w)) = (self.get(name), other.get(name)) else { continue };
            let is_new = own.ty(v) == g.ty(w) && !of_own.contains(&v) && !of_other.contains(&w);
            if is_new {
                of_own.insert(v);
                of_other.insert(w);
                all.push((name.clone(), v, w));
            }
        }
        all
    }
}

/// The operand of a sum or product whose other operand is a constant, if it has the type of the result.
fn beside_a_constant(g: &Graph, n: NodeId) -> Option<Value> {
    if !matches!(g.op(n), Op::Add(_) | Op::Mul(_)) {
        return None;
    }
    let operands = g.inputs_of(n);
    let (constants, others): (Vec<Value>, Vec<Value>) =
        operands.into_iter().partition(|v| g.constant(*v).is_some());
    match (constants.len(), others.as_slice()) {
        (1, [x]) if g.ty(*x) == g.ty(n.into()) => Some(*x),
        _ => None,
    }
}

/// The sum or product of a value with a constant, if nothing else reads the value.
fn behind_a_constant(g: &Graph, v: Value) -> Option<NodeId> {
    g.sole_user(v).filter(|reader| beside_a_constant(g, *reader) == Some(v))
}

/// All of these that follow a node, one after the other.
fn behind_constants(g: &Graph, n: NodeId) -> Vec<NodeId> {
    std::iter::successors(behind_a_constant(g, n.into()), |n| behind_a_constant(g, (*n).into())).collect()
}

#[cfg(test)]
mod tests {
    use margay_ir::text::parse;

    use super::*;

    /// The product of the inputs of a recurrence has its name and another type.
    #[test]
    fn nodes_of_one_operator_are_told_apart_by_their_types() {
        let text = "graph @g(%x: f32[4, 2, 1]) -> (y: f32[4, 2, 3]) {\n  \
                      %0 = const [0.5] : f32[1, 1, 1]\n  \
                      %1 = broadcast %x {shape = [4, 2, 3]} : f32[4, 2, 3]  // rnn\n  \
                      %2 = add %x, %0 : f32[4, 2, 1]  // rnn\n  \
                      %3 = add %1, %2 : f32[4, 2, 3]  // rnn\n  \
                      return %3\n}";
        let g = parse(text, &|_, _| None).unwrap_or_else(|e| panic!("{e}"));
        let of = |name: &str| g.order().into_iter().filter(|n| g.op(*n).name() == name).collect::<Vec<_>>();
        let (named, sums) = (Named::of(&g), of("add"));
        assert_eq!(named.get("rnn"), Some(sums[1].into()));
        assert_eq!(named.twin(&g, &g, sums[0]), Some(sums[0].into()));
        assert_eq!(named.twin(&g, &g, of("broadcast")[0]), Some(sums[1].into()));
    }
}
