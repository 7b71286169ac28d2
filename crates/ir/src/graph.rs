//! Nodes, values and the graph that holds them.

mod order;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::fmt;
use std::sync::Arc;

use margay_tensor::{Binding, Symbol, is_decided};
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::{EdgeRef, NodeIndexable};
use smallvec::SmallVec;

use crate::{Guard, GuardError, Op, TensorType, TypeError, Types, ops};

/// A name from the model.
pub type Name = Arc<str>;

/// Names a node. Carries a generation: the name of a removed node never comes to mean another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct NodeId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Names one output of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Value {
    /// The node.
    pub node: NodeId,
    /// Which of its outputs.
    pub out: u16,
}

impl From<NodeId> for Value {
    /// The first output.
    fn from(node: NodeId) -> Value {
        Value { node, out: 0 }
    }
}

/// The role of a node inside what replaced a module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Part {
    /// The first of two factors, on the input's side.
    Left,
    /// The second of two factors, on the output's side.
    Right,
    /// A bias, corrected for what a sketch leaves out.
    Bias,
    /// Random numbers that a sketch keeps as they are.
    Random,
    /// One of the terms that add up to what the node computed.
    Term,
    /// Computes derivatives by the inputs of the node.
    Gradient,
}

impl Part {
    /// All parts.
    pub const ALL: [Part; 6] =
        [Part::Left, Part::Right, Part::Bias, Part::Random, Part::Term, Part::Gradient];

    /// The word used in text forms and exported names.
    pub fn name(self) -> &'static str {
        match self {
            Part::Left => "left",
            Part::Right => "right",
            Part::Bias => "bias",
            Part::Random => "random",
            Part::Term => "term",
            Part::Gradient => "gradient",
        }
    }
}

/// What a node stands for in the model it came from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    /// Names of the model's nodes (of initializers, for constants).
    pub names: SmallVec<[Name; 1]>,
    /// The role after a rewrite.
    pub part: Option<Part>,
}

impl Origin {
    /// A single name; none if it is empty.
    pub fn named(name: &str) -> Origin {
        Origin { names: if name.is_empty() { SmallVec::new() } else { [name.into()].into() }, part: None }
    }

    /// The same names in a role.
    #[must_use]
    pub fn part(&self, part: Part) -> Origin {
        Origin { names: self.names.clone(), part: Some(part) }
    }

    /// The names of both, each once.
    #[must_use]
    pub fn and(&self, other: &Origin) -> Origin {
        let mut names = self.names.clone();
        for name in &other.names {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        Origin { names, part: self.part }
    }

    /// The first name, or the empty string.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", |n| n)
    }

    /// The first name with the part, as in `fc1.weight left`; `None` without a name.
    pub fn label(&self) -> Option<String> {
        let name = self.names.first()?;
        Some(self.part.map_or_else(|| name.to_string(), |part| format!("{name} {}", part.name())))
    }
}

/// An operator applied to values.
#[derive(Clone, Debug)]
pub struct Node {
    /// The operator.
    pub op: Op,
    /// One type per output.
    pub types: Types,
    /// What it stands for.
    pub origin: Origin,
    generation: u32,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    from_out: u16,
    to_in: u16,
}

/// A named output of a graph.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    /// The name in the model.
    pub name: Name,
    /// What it holds.
    pub value: Value,
    /// What it counts, if it says what an extent of another output is: i64 without axes.
    pub counts: Option<Counts>,
}

/// What an output counts: the positions of another output along an axis. That output holds as many elements as its type
/// has; those at the positions that count come first, row by row, and no others are given to who asks for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counts {
    /// The name of the other output.
    pub output: Name,
    /// Its axis.
    pub axis: usize,
}

/// A typed data-flow graph.
///
/// A node without correct types cannot exist: [`add`](Graph::add) infers them. Passes edit by
/// [`apply`](Graph::apply) alone; `add` is for builders: importer, parser, tests.
#[derive(Clone, Debug)]
pub struct Graph {
    name: Name,
    /// Shared by copies until one of them changes.
    dag: Arc<StableDiGraph<Node, Edge>>,
    inputs: Vec<NodeId>,
    outputs: Vec<Output>,
    /// The positions in `outputs` of every value there, ascending.
    output_places: HashMap<Value, SmallVec<[usize; 1]>>,
    guards: Vec<Guard>,
    next_generation: u32,
}

/// A node was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{op}`: {error}")]
pub struct AddError {
    /// The operator's mnemonic.
    pub op: &'static str,
    /// What its type rule says.
    pub error: TypeError,
}

/// Operands of a node at most, and its results.
const MAX_PORTS: usize = u16::MAX as usize;

/// The types of the results of an operator.
pub(crate) fn typed(op: &Op, operands: &[&TensorType]) -> Result<Types, AddError> {
    let few = |what: &str, found: usize| match found <= MAX_PORTS {
        true => Ok(()),
        false => Err(TypeError::attribute(format!("{found} {what}, expected at most {MAX_PORTS}"))),
    };
    let typed = || {
        few("operands", operands.len())?;
        // Type rules multiply extents.
        operands.iter().try_for_each(|ty| ty.check_extents())?;
        let types = op.infer(operands)?;
        few("results", types.len())?;
        types.iter().try_for_each(TensorType::check_extents)?;
        Ok(types)
    };
    typed().map_err(|error| AddError { op: op.name(), error })
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Graph {
        Graph {
            name: name.into(),
            dag: Arc::default(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            output_places: HashMap::new(),
            guards: Vec::new(),
            next_generation: 0,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A graph of the same name and guards without nodes. Generations go on, so that ids of this graph are none of that
    /// one.
    pub(crate) fn emptied(&self) -> Graph {
        let guards = self.guards.clone();
        Graph { guards, next_generation: self.next_generation, ..Graph::new(&self.name) }
    }

    /// Adds an input.
    pub fn add_input(&mut self, name: &str, ty: TensorType) -> Value {
        let op = ops::Input { name: name.into(), ty: ty.clone() };
        let node = self.insert(op.into(), SmallVec::from_elem(ty, 1), Origin::named(name));
        self.inputs.push(node);
        node.into()
    }

    /// Adds a node; its types are inferred.
    pub fn add(&mut self, op: impl Into<Op>, inputs: &[Value], origin: Origin) -> Result<Value, AddError> {
        let op = op.into();
        let types: Vec<&TensorType> = inputs.iter().map(|v| self.ty(*v)).collect();
        let types = typed(&op, &types)?;
        let node = self.insert(op, types, origin);
        self.connect(node, inputs);
        Ok(node.into())
    }

    fn dag_mut(&mut self) -> &mut StableDiGraph<Node, Edge> {
        Arc::make_mut(&mut self.dag)
    }

    /// Whether this is a copy of a graph, and neither has changed since it was made.
    pub fn is_copy_of(&self, other: &Graph) -> bool {
        Arc::ptr_eq(&self.dag, &other.dag)
            && (&self.name, &self.inputs, &self.outputs, &self.guards)
                == (&other.name, &other.inputs, &other.outputs, &other.guards)
    }

    fn insert(&mut self, op: Op, types: Types, origin: Origin) -> NodeId {
        let generation = self.next_generation;
        self.next_generation += 1;
        let index = self.dag_mut().add_node(Node { op, types, origin, generation });
        NodeId { index: index.index() as u32, generation }
    }

    fn connect(&mut self, node: NodeId, inputs: &[Value]) {
        let to = self.at(node);
        for (slot, v) in inputs.iter().enumerate() {
            let from = self.at(v.node);
            self.dag_mut().add_edge(from, to, Edge { from_out: v.out, to_in: slot as u16 });
        }
    }

    /// Adds an output.
    pub fn add_output(&mut self, name: &str, value: Value) {
        self.output_places.entry(value).or_default().push(self.outputs.len());
        self.outputs.push(Output { name: name.into(), value, counts: None });
    }

    /// Replaces the list of outputs, for running a part of a graph.
    pub fn set_outputs(&mut self, outputs: Vec<Output>) {
        self.outputs = outputs;
        self.output_places.clear();
        for (place, output) in self.outputs.iter().enumerate() {
            self.output_places.entry(output.value).or_default().push(place);
        }
    }

    fn at(&self, n: NodeId) -> NodeIndex {
        let index = NodeIndex::new(n.index as usize);
        let live = self.dag.node_weight(index).is_some_and(|node| node.generation == n.generation);
        assert!(live, "node {n:?} was removed from graph `{}`", self.name);
        index
    }

    fn id(&self, index: NodeIndex) -> NodeId {
        NodeId { index: index.index() as u32, generation: self.dag[index].generation }
    }

    /// Whether the node is still there.
    pub fn contains(&self, n: NodeId) -> bool {
        self.dag
            .node_weight(NodeIndex::new(n.index as usize))
            .is_some_and(|node| node.generation == n.generation)
    }

    /// A node that is still there.
    pub fn node(&self, n: NodeId) -> &Node {
        &self.dag[self.at(n)]
    }

    /// The operator of a node.
    pub fn op(&self, n: NodeId) -> &Op {
        &self.node(n).op
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &TensorType {
        &self.node(v.node).types[usize::from(v.out)]
    }

    /// The outputs of a node.
    pub fn values_of(&self, n: NodeId) -> impl Iterator<Item = Value> + use<> {
        (0..self.node(n).types.len() as u16).map(move |out| Value { node: n, out })
    }

    /// What people call a node: its origin, or its operator if it has none.
    pub fn label(&self, n: NodeId) -> String {
        self.node(n).origin.label().unwrap_or_else(|| self.op(n).name().to_owned())
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.dag.node_count()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The inputs, in order.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    /// The outputs, in order.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// What is assumed of extents.
    pub fn guards(&self) -> &[Guard] {
        &self.guards
    }

    /// Checks values of symbols against the guards. The value of a symbol that was replaced becomes that of the symbol
    /// which replaced it, if that has none.
    pub fn resolve_guards(&self, binding: &mut Binding) -> Result<(), GuardError> {
        for guard in &self.guards {
            if let (Some(&given), Some(symbol)) = (binding.get(&guard.symbol), guard.value.as_symbol()) {
                binding.entry(symbol).or_insert(given);
            }
            guard.check(binding)?;
        }
        Ok(())
    }

    /// Replaces the list of guards.
    pub fn set_guards(&mut self, guards: Vec<Guard>) {
        self.guards = guards;
    }

    /// Adds something that is assumed of extents.
    pub fn add_guard(&mut self, guard: Guard) {
        self.guards.push(guard);
    }

    /// The operands of a node, by slot.
    pub fn inputs_of(&self, n: NodeId) -> SmallVec<[Value; 4]> {
        let mut edges: SmallVec<[(u16, Value); 4]> = self
            .dag
            .edges_directed(self.at(n), Direction::Incoming)
            .map(|e| (e.weight().to_in, Value { node: self.id(e.source()), out: e.weight().from_out }))
            .collect();
        edges.sort_unstable_by_key(|(slot, _)| *slot);
        edges.into_iter().map(|(_, v)| v).collect()
    }

    /// The nodes that read a value, with the slot, ordered.
    pub fn users_of(&self, v: Value) -> Vec<(NodeId, u16)> {
        let mut users: Vec<(NodeId, u16)> = self
            .dag
            .edges_directed(self.at(v.node), Direction::Outgoing)
            .filter(|e| e.weight().from_out == v.out)
            .map(|e| (self.id(e.target()), e.weight().to_in))
            .collect();
        users.sort_unstable();
        users
    }

    /// Whether a value is an output of the graph.
    pub fn is_output(&self, v: Value) -> bool {
        self.output_places.contains_key(&v)
    }

    /// The positions of a value among the outputs, ascending.
    pub fn outputs_of(&self, v: Value) -> &[usize] {
        self.output_places.get(&v).map_or(&[], SmallVec::as_slice)
    }

    /// The single user of a value, if it has one and is not an output of the graph.
    pub fn sole_user(&self, v: Value) -> Option<NodeId> {
        let mut edges = self
            .dag
            .edges_directed(self.at(v.node), Direction::Outgoing)
            .filter(|e| e.weight().from_out == v.out);
        match (edges.next(), edges.next()) {
            (Some(edge), None) if !self.is_output(v) => Some(self.id(edge.target())),
            _ => None,
        }
    }

    /// Whether some node reads a result of a node, or one of them is an output of the graph.
    pub fn is_read(&self, n: NodeId) -> bool {
        self.dag.edges_directed(self.at(n), Direction::Outgoing).next().is_some()
            || self.values_of(n).any(|v| self.is_output(v))
    }

    /// The contents of a constant value.
    pub fn constant(&self, v: Value) -> Option<&crate::Payload> {
        match self.op(v.node) {
            Op::Const(c) => Some(&c.payload),
            _ => None,
        }
    }

    /// The contents of all constants, those of graphs inside operators included.
    pub fn payloads(&self) -> Vec<&crate::Payload> {
        let mut all = Vec::new();
        for n in self.order() {
            all.extend(self.constant(n.into()));
            all.extend(self.op(n).regions().into_iter().flat_map(|region| region.graph().payloads()));
        }
        all
    }

    /// The open symbols in the types of inputs and nodes, in order of appearance: all but those that a run decides.
    pub fn symbols(&self) -> Vec<Symbol> {
        let mut out = Vec::new();
        let inputs = self.inputs.iter().copied();
        for n in inputs.chain(self.order()) {
            for dim in self.node(n).types.iter().flat_map(|t| &t.shape) {
                dim.collect_symbols(&mut out);
            }
        }
        out.retain(|symbol| !is_decided(symbol));
        out
    }

    /// All nodes in topological order, ties by age.
    fn by_age(&self) -> Vec<NodeId> {
        let mut missing = vec![0usize; self.dag.node_bound()];
        let mut ready = BinaryHeap::new();
        for index in self.dag.node_indices() {
            let count = self.dag.edges_directed(index, Direction::Incoming).count();
            missing[index.index()] = count;
            if count == 0 {
                ready.push(Reverse((self.dag[index].generation, index)));
            }
        }
        let mut order = Vec::with_capacity(self.dag.node_count());
        while let Some(Reverse((_, index))) = ready.pop() {
            order.push(self.id(index));
            for edge in self.dag.edges_directed(index, Direction::Outgoing) {
                let left = &mut missing[edge.target().index()];
                *left -= 1;
                if *left == 0 {
                    ready.push(Reverse((self.dag[edge.target()].generation, edge.target())));
                }
            }
        }
        order
    }

    /// Removes all nodes but these.
    fn keep(&mut self, live: &BTreeSet<NodeId>) {
        let mut kept = vec![false; self.dag.node_bound()];
        live.iter().for_each(|n| kept[self.at(*n).index()] = true);
        let is_cheap = self.removal_is_cheap(&kept);
        let dag = self.dag_mut();
        if is_cheap {
            dag.retain_nodes(|_, n| kept[n.index()]);
        } else {
            let whole = std::mem::take(dag);
            *dag = whole.filter_map_owned(|n, node| kept[n.index()].then_some(node), |_, edge| Some(edge));
        }
    }

    /// Whether taking out nodes one by one costs less than building the graph anew. Each edge of such a node is looked for
    /// in the list of the node at its other end, which may be long.
    fn removal_is_cheap(&self, kept: &[bool]) -> bool {
        let mut left = self.dag.node_count() + self.dag.edge_count();
        for index in self.dag.node_indices().filter(|n| !kept[n.index()]) {
            for direction in [Direction::Incoming, Direction::Outgoing] {
                for end in self.dag.neighbors_directed(index, direction) {
                    let looked_through = self.dag.neighbors_directed(end, direction.opposite());
                    match left.checked_sub(looked_through.take(left + 1).count()) {
                        Some(rest) => left = rest,
                        None => return false,
                    }
                }
            }
        }
        true
    }

    /// Moves every use of `from` to `to`, outputs included. The caller has checked types and cycles.
    pub(crate) fn redirect(&mut self, from: Value, to: Value) {
        let target = self.at(to.node);
        let edges: Vec<_> = self
            .dag
            .edges_directed(self.at(from.node), Direction::Outgoing)
            .filter(|e| e.weight().from_out == from.out)
            .map(|e| (e.id(), e.target(), e.weight().to_in))
            .collect();
        for (id, user, to_in) in edges {
            self.dag_mut().remove_edge(id);
            self.dag_mut().add_edge(target, user, Edge { from_out: to.out, to_in });
        }
        if let Some(places) = self.output_places.remove(&from) {
            places.iter().for_each(|place| self.outputs[*place].value = to);
            let all = self.output_places.entry(to).or_default();
            all.extend(places);
            all.sort_unstable();
        }
    }

    /// Inserts a node whose types were inferred before, without operands yet.
    pub(crate) fn insert_typed(&mut self, op: Op, types: Types, origin: Origin) -> NodeId {
        let input = matches!(op, Op::Input(_));
        let node = self.insert(op, types, origin);
        if input {
            self.inputs.push(node);
        }
        node
    }

    /// Gives a node of [`insert_typed`](Graph::insert_typed) its operands.
    pub(crate) fn connect_inputs(&mut self, node: NodeId, inputs: &[Value]) {
        self.connect(node, inputs);
    }

    /// Puts an operator of the same types in the place of another.
    pub(crate) fn replace_op(&mut self, n: NodeId, op: Op) {
        let index = self.at(n);
        self.dag_mut()[index].op = op;
    }

    /// Adds the origin of a replaced node to the one that stands in for it.
    pub(crate) fn absorb_origin(&mut self, n: NodeId, origin: &Origin) {
        let index = self.at(n);
        let node = &mut self.dag_mut()[index];
        if node.origin.part == origin.part {
            node.origin = node.origin.and(origin);
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.out {
            0 => write!(f, "%{}", self.node.index),
            out => write!(f, "%{}.{out}", self.node.index),
        }
    }
}
