//! The one way in which passes change a graph.

use crate::graph::{AddError, typed};
use crate::ops::Input;
use crate::{Graph, Name, NodeId, Op, Origin, Payload, TensorType, Types, Value};

/// Nodes to insert and values to redirect, in order. Built against a graph; refused before anything changes.
#[derive(Debug, Default)]
pub struct Patch {
    nodes: Vec<(Op, Types, Origin, Vec<Value>)>,
    redirects: Vec<(Value, Value)>,
    outputs: Vec<(Name, Value)>,
}

/// What the values of a patch are now that it is applied.
#[derive(Clone, Debug)]
pub struct Applied {
    nodes: Vec<NodeId>,
}

impl Applied {
    /// The value in the graph that a value of the patch became; a value of the graph is itself.
    pub fn value(&self, v: Value) -> Value {
        match v.node.generation {
            NEW => Value { node: self.nodes[v.node.index as usize], out: v.out },
            _ => v,
        }
    }
}

/// A patch was refused (the pass's fault).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PatchError {
    /// The new value has another type than the one it replaces.
    #[error("cannot redirect `{name}` of type {old} to a value of type {new}")]
    Type {
        /// Origin of the replaced node.
        name: String,
        /// Its type.
        old: TensorType,
        /// The new type.
        new: TensorType,
    },
}

/// Values of nodes that a patch inserts carry this generation until the patch is applied.
const NEW: u32 = u32::MAX;

impl Patch {
    /// An empty patch.
    pub fn new() -> Patch {
        Patch::default()
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.redirects.is_empty() && self.outputs.is_empty()
    }

    /// The type of a value of the graph or of this patch.
    pub fn ty<'a>(&'a self, g: &'a Graph, v: Value) -> &'a TensorType {
        match v.node.generation {
            NEW => &self.nodes[v.node.index as usize].1[usize::from(v.out)],
            _ => g.ty(v),
        }
    }

    /// The numbers and the origin of a constant of the graph or of this patch; `None` for any other value.
    pub fn constant<'a>(&'a self, g: &'a Graph, v: Value) -> Option<(&'a Payload, &'a Origin)> {
        let (op, origin) = match v.node.generation {
            NEW => {
                let (op, _, origin, _) = &self.nodes[v.node.index as usize];
                (op, origin)
            }
            _ => (g.op(v.node), &g.node(v.node).origin),
        };
        match op {
            Op::Const(constant) => Some((&constant.payload, origin)),
            _ => None,
        }
    }

    /// The operator that computes a value of the graph or of this patch, and its operands.
    pub fn source<'a>(&'a self, g: &'a Graph, v: Value) -> (&'a Op, Vec<Value>) {
        match v.node.generation {
            NEW => {
                let (op, _, _, inputs) = &self.nodes[v.node.index as usize];
                (op, inputs.clone())
            }
            _ => (g.op(v.node), g.inputs_of(v.node).to_vec()),
        }
    }

    /// Inserts a node and returns its first output; valid inside this patch only.
    pub fn add(
        &mut self,
        g: &Graph,
        op: impl Into<Op>,
        inputs: &[Value],
        origin: Origin,
    ) -> Result<Value, AddError> {
        let op = op.into();
        let types: Vec<&TensorType> = inputs.iter().map(|v| self.ty(g, *v)).collect();
        let types = typed(&op, &types)?;
        self.nodes.push((op, types, origin, inputs.to_vec()));
        Ok(NodeId { index: self.nodes.len() as u32 - 1, generation: NEW }.into())
    }

    /// Adds an input behind those there are.
    pub fn add_input(&mut self, name: &str, ty: TensorType) -> Value {
        let op = Input { name: name.into(), ty: ty.clone() };
        self.nodes.push((op.into(), Types::from_elem(ty, 1), Origin::named(name), Vec::new()));
        NodeId { index: self.nodes.len() as u32 - 1, generation: NEW }.into()
    }

    /// Adds an output behind those there are.
    pub fn add_output(&mut self, name: &str, value: Value) {
        self.outputs.push((name.into(), value));
    }

    /// Makes every user of `old` read `new`. Nodes of this patch keep reading `old` where they say so.
    pub fn redirect(&mut self, old: Value, new: Value) {
        self.redirects.push((old, new));
    }
}

impl Graph {
    /// Applies a patch. Whether it closes a cycle is not asked here, where it would cost a walk of the graph for every patch:
    /// [`rewrite`](crate::pass::rewrite) finds one after the round, [`Graph::verify`] after the pass. A replaced node hands its origin to the node that stands in for it, unless that one is in
    /// a role or has a name already. Nodes nobody reads any more stay until
    /// [`remove_dead`](Graph::remove_dead).
    pub fn apply(&mut self, patch: Patch) -> Result<Applied, PatchError> {
        for (old, new) in &patch.redirects {
            let (was, is) = (self.ty(*old), patch.ty(self, *new));
            if was != is {
                return Err(PatchError::Type {
                    name: self.node(old.node).origin.name().into(),
                    old: was.clone(),
                    new: is.clone(),
                });
            }
        }
        let mut applied = Applied { nodes: Vec::with_capacity(patch.nodes.len()) };
        // Redirect first through an untouched copy of the readers: the patch's own nodes are added afterwards
        // with edges to the old values, so they are not caught by the redirection.
        let redirects: Vec<(Value, Value)> = patch.redirects;
        let mut pending = Vec::new();
        for (op, types, origin, inputs) in patch.nodes {
            let node = self.insert_typed(op, types, origin);
            applied.nodes.push(node);
            pending.push((node, inputs));
        }
        for (old, new) in redirects {
            let new = applied.value(new);
            self.redirect(old, new);
            let origin = self.node(old.node).origin.clone();
            let stand_in = self.node(new.node);
            if stand_in.origin.names.is_empty() && stand_in.origin.part.is_none() {
                self.absorb_origin(new.node, &Origin { part: None, ..origin });
            }
        }
        for (node, inputs) in pending {
            let inputs: Vec<Value> = inputs.into_iter().map(|v| applied.value(v)).collect();
            self.connect_inputs(node, &inputs);
        }
        for (name, value) in patch.outputs {
            self.add_output(&name, applied.value(value));
        }
        Ok(applied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Abs, Cast, Exp, Neg};
    use crate::verify::Stage;
    use crate::{TensorType, text};
    use margay_tensor::DType;

    /// `x`, its negative, and the exponential of that.
    fn chain() -> (Graph, [Value; 3]) {
        let mut g = Graph::new("chain");
        let x = g.add_input("x", TensorType::known(DType::F32, &[3]));
        let a = g.add(Neg, &[x], Origin::named("first")).unwrap();
        let b = g.add(Exp, &[a], Origin::named("second")).unwrap();
        g.add_output("y", b);
        (g, [x, a, b])
    }

    fn refused(g: &mut Graph, patch: Patch) -> String {
        let before = g.to_string();
        let error = g.apply(patch).unwrap_err().to_string();
        assert_eq!(g.to_string(), before, "a refused patch changes nothing");
        error
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        let (mut g, [x, a, _]) = chain();
        let mut patch = Patch::new();
        let cast = patch.add(&g, Cast { to: DType::I64 }, &[x], Origin::default()).unwrap();
        patch.redirect(a, cast);
        let expected = "cannot redirect `first` of type f32[3] to a value of type i64[3]";
        assert_eq!(refused(&mut g, patch), expected);

        let y = g.add_input("y", TensorType::known(DType::F32, &[4]));
        let mut patch = Patch::new();
        patch.redirect(a, y);
        let expected = "cannot redirect `first` of type f32[3] to a value of type f32[4]";
        assert_eq!(refused(&mut g, patch), expected);
        // The first of two redirections is not done either.
        let mut patch = Patch::new();
        let abs = patch.add(&g, Abs, &[x], Origin::default()).unwrap();
        patch.redirect(a, abs);
        patch.redirect(a, y);
        assert_eq!(refused(&mut g, patch), expected);
    }

    #[test]
    fn a_cycle_through_nodes_of_the_graph_is_never_a_valid_graph() {
        for old in 0..2 {
            let (mut g, values) = chain();
            let mut patch = Patch::new();
            patch.redirect(values[old], values[2]);
            g.apply(patch).unwrap();
            let found = g.verify(Stage::Imported).unwrap_err();
            assert_eq!(found[0].to_string(), format!("graph `chain`: {} nodes lie on cycles", 2 - old));
        }
        // The other direction, and a value in place of itself, are none.
        let (mut g, [_, a, b]) = chain();
        let mut patch = Patch::new();
        patch.redirect(b, a);
        patch.redirect(a, a);
        g.apply(patch).unwrap();
        assert_eq!(g.outputs()[0].value, a);
        assert_eq!(g.verify(Stage::Imported), Ok(()));
    }

    #[test]
    fn outputs_follow_a_redirection() {
        let (mut g, [x, a, b]) = chain();
        g.add_output("same", b);
        g.add_output("first", a);
        assert_eq!((g.outputs_of(b), g.outputs_of(a), g.outputs_of(x)), (&[0, 1][..], &[2][..], &[][..]));
        let mut patch = Patch::new();
        patch.redirect(b, a);
        g.apply(patch).unwrap();
        assert_eq!((g.outputs_of(b), g.outputs_of(a)), (&[][..], &[0, 1, 2][..]));
        assert!(g.outputs().iter().all(|o| o.value == a) && !g.is_output(b) && g.is_output(a));
        assert!(g.is_read(x.node) && !g.is_read(b.node));
        assert_eq!((g.sole_user(x), g.sole_user(a)), (Some(a.node), None));
    }

    #[test]
    fn a_node_has_no_more_operands_than_can_be_counted() {
        let (mut g, [x, ..]) = chain();
        let concat = |count: usize| (Op::from(crate::ops::Concat { axis: 0 }), vec![x; count]);
        let (op, most) = concat(65535);
        assert_eq!(Patch::new().add(&g, op.clone(), &most, Origin::default()).map(|_| ()), Ok(()));
        let (_, more) = concat(65536);
        let expected = "`concat`: 65536 operands, expected at most 65535";
        let refused = Patch::new().add(&g, op.clone(), &more, Origin::default()).unwrap_err();
        assert_eq!(refused.to_string(), expected);
        assert_eq!(g.add(op, &more, Origin::default()).unwrap_err().to_string(), expected);
    }

    #[test]
    fn copies_share_nodes_until_one_changes() {
        let (g, [_, a, b]) = chain();
        let mut copy = g.clone();
        assert!(copy.is_copy_of(&g));
        copy.add_output("first", a);
        assert!(!copy.is_copy_of(&g));
        let mut copy = g.clone();
        copy.redirect(b, a);
        assert!(!copy.is_copy_of(&g) && g.outputs()[0].value == b && copy.outputs()[0].value == a);
        assert_eq!(g.clone().remove_dead(), 0);
    }

    #[test]
    fn a_cycle_through_nodes_of_the_patch_is_never_a_valid_graph() {
        let (mut g, [x, _, b]) = chain();
        let mut patch = Patch::new();
        let abs = patch.add(&g, Abs, &[b], Origin::default()).unwrap();
        patch.redirect(x, abs);
        if g.apply(patch).is_ok() {
            let found = g.verify(Stage::Imported).unwrap_err();
            assert_eq!(found[0].to_string(), "graph `chain`: 3 nodes lie on cycles");
        }
    }

    #[test]
    fn nodes_of_a_patch_read_the_value_they_replace() {
        let (mut g, [_, a, _]) = chain();
        let mut patch = Patch::new();
        let abs = patch.add(&g, Abs, &[a], Origin::default()).unwrap();
        let both = patch.add(&g, crate::ops::Add, &[abs, a], Origin::default()).unwrap();
        assert!(!patch.is_empty());
        patch.redirect(a, both);
        g.apply(patch).unwrap();
        let expected = "graph @chain(%x: f32[3]) -> (y: f32[3]) {
          %0 = neg %x : f32[3]  // first
          %1 = abs %0 : f32[3]
          %2 = add %1, %0 : f32[3]  // first
          %3 = exp %2 : f32[3]  // second
          return %3
        }";
        assert_eq!(g.to_string(), text::parse(expected, &|_, _| None).unwrap().to_string());
    }

    #[test]
    fn a_replaced_node_hands_its_name_on_to_one_without() {
        let names = |name: &str, part: Option<crate::Part>| {
            let (mut g, [x, a, _]) = chain();
            let mut patch = Patch::new();
            let origin = Origin { part, ..Origin::named(name) };
            let abs = patch.add(&g, Abs, &[x], origin).unwrap();
            patch.redirect(a, abs);
            g.apply(patch).unwrap();
            let n = g.order().into_iter().find(|n| g.op(*n).name() == "abs").unwrap();
            g.node(n).origin.name().to_string()
        };
        assert_eq!(names("", None), "first");
        assert_eq!(names("own", None), "own");
        assert_eq!(names("", Some(crate::Part::Left)), "");
    }
}
