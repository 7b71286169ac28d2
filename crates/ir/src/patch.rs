//! The one way in which passes change a graph.

use crate::graph::AddError;
use crate::ops::Input;
use crate::{Graph, Name, NodeId, Op, Origin, TensorType, Types, Value};

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
    /// The new value is a node of the graph that depends on the one it replaces. Cycles through nodes of the patch are
    /// found by [`Graph::verify`].
    #[error("redirecting `{name}` would close a cycle")]
    Cycle {
        /// Origin of the replaced node.
        name: String,
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
        let types = op.infer(&types).map_err(|error| AddError { op: op.name(), error })?;
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
    /// Applies a patch. A replaced node hands its origin to the node that stands in for it, unless that one is in
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
            if new.node.generation != NEW && self.depends_on(new.node, old.node) {
                return Err(PatchError::Cycle { name: self.node(old.node).origin.name().into() });
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

    fn depends_on(&self, node: NodeId, on: NodeId) -> bool {
        let mut stack = vec![node];
        let mut seen = std::collections::HashSet::new();
        while let Some(n) = stack.pop() {
            if n == on {
                return node != on;
            }
            if seen.insert(n) {
                stack.extend(self.inputs_of(n).iter().map(|v| v.node));
            }
        }
        false
    }
}
