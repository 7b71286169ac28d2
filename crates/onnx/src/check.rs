//! Names and order: single assignment, values that exist, no cycles, topological order.
//!
//! Subgraphs may read values of the graphs around them, so a node reads, besides its inputs, whatever its
//! subgraphs read from outside. Subgraphs are nested at most 32 deep (`wire` sees to that), so walking them by
//! recursion is safe; everything that grows with the number of nodes is a loop.
//!
//! Deliberately absent: operators, types and shapes.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};
use std::fmt;

use crate::problem::Problems;
use crate::{Attribute, OnnxGraph, OnnxNode, Problem};

/// Reports what is wrong with names in a graph and its subgraphs, and sorts their nodes.
pub(crate) fn check(graph: &mut OnnxGraph, problems: &mut Problems) {
    names(graph, &mut Vec::new(), problems);
    sort(graph, problems);
}

/// Where a name is defined.
#[derive(Clone, Copy)]
enum Definition<'a> {
    Input,
    Initializer,
    Node(usize, &'a OnnxNode),
}

impl fmt::Display for Definition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Definition::Input => f.write_str("a graph input"),
            Definition::Initializer => f.write_str("an initializer"),
            Definition::Node(index, node) => write!(f, "an output of node {}", node.label(*index)),
        }
    }
}

/// Checks that every name is defined once and every name read is defined, here or in a scope around.
fn names<'a>(graph: &'a OnnxGraph, scopes: &mut Vec<HashSet<&'a str>>, problems: &mut Problems) {
    let mut defined: HashMap<&str, Definition<'_>> = HashMap::new();
    let mut define =
        |name: &'a str, second: Definition<'a>, problems: &mut Problems| match defined.entry(name) {
            Entry::Vacant(entry) => _ = entry.insert(second),
            Entry::Occupied(first) => {
                let [first, second] = [first.get(), &second].map(Definition::to_string);
                problems.push(Problem::Duplicate { name: name.to_owned(), first, second });
            }
        };
    for (index, input) in graph.inputs.iter().enumerate() {
        if input.name.is_empty() {
            problems.push(Problem::Unnamed { what: "input", index });
        }
        define(&input.name, Definition::Input, problems);
    }
    for (index, (name, _)) in graph.initializers.iter().enumerate() {
        if name.is_empty() {
            problems.push(Problem::Unnamed { what: "initializer", index });
        }
        define(name, Definition::Initializer, problems);
    }
    for (index, node) in graph.nodes.iter().enumerate() {
        for output in node.outputs.iter().filter(|o| !o.is_empty()) {
            define(output, Definition::Node(index, node), problems);
        }
    }

    scopes.push(defined.into_keys().collect());
    let known = |name: &str, scopes: &[HashSet<&str>]| scopes.iter().rev().any(|s| s.contains(name));
    for (index, node) in graph.nodes.iter().enumerate() {
        for input in node.inputs.iter().filter(|i| !i.is_empty()) {
            if !known(input, scopes) {
                problems.push(Problem::MissingInput { node: node.label(index), input: input.clone() });
            }
        }
        for subgraph in subgraphs(node) {
            names(subgraph, scopes, problems);
        }
    }
    let mut outputs = HashSet::new();
    for (index, output) in graph.outputs.iter().enumerate() {
        if !outputs.insert(&output.name) {
            let [first, second] = ["a graph output"; 2].map(str::to_owned);
            problems.push(Problem::Duplicate { name: output.name.clone(), first, second });
        }
        if output.name.is_empty() {
            problems.push(Problem::Unnamed { what: "output", index });
        } else if !known(&output.name, scopes) {
            problems.push(Problem::MissingOutput { output: output.name.clone() });
        }
    }
    scopes.pop();
}

/// Puts the nodes of a graph and its subgraphs into topological order: always the first node of the file that
/// can run, so a sorted graph stays as it is.
fn sort(graph: &mut OnnxGraph, problems: &mut Problems) {
    match order(&graph.nodes) {
        Ok(order) => {
            let mut nodes: Vec<_> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
            graph.nodes = order.iter().filter_map(|&n| nodes.get_mut(n)?.take()).collect();
        }
        Err(nodes) => problems.push(Problem::Cycle { nodes }),
    }
    for node in &mut graph.nodes {
        for attribute in node.attributes.values_mut() {
            match attribute {
                Attribute::Graph(subgraph) => sort(subgraph, problems),
                Attribute::Graphs(all) => all.iter_mut().for_each(|g| sort(g, problems)),
                _ => {}
            }
        }
    }
}

/// Kahn's algorithm. Fails with the labels of the nodes of a cycle.
fn order(nodes: &[OnnxNode]) -> Result<Vec<usize>, Vec<String>> {
    let mut producers: HashMap<&str, usize> = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        for output in node.outputs.iter().filter(|o| !o.is_empty()) {
            producers.entry(output).or_insert(index);
        }
    }
    let needs: Vec<BTreeSet<usize>> =
        nodes.iter().map(|n| reads(n).filter_map(|name| producers.get(name).copied()).collect()).collect();
    let mut users = vec![Vec::new(); nodes.len()];
    for (index, needs) in needs.iter().enumerate() {
        needs.iter().for_each(|&n| users[n].push(index));
    }

    let mut waits: Vec<usize> = needs.iter().map(BTreeSet::len).collect();
    let mut ready: BinaryHeap<Reverse<usize>> =
        waits.iter().enumerate().filter(|(_, w)| **w == 0).map(|(n, _)| Reverse(n)).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(node)) = ready.pop() {
        order.push(node);
        for &user in &users[node] {
            waits[user] -= 1;
            if waits[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    match waits.iter().position(|&w| w > 0) {
        None => Ok(order),
        Some(stuck) => Err(cycle(stuck, &needs, &waits).into_iter().map(|n| nodes[n].label(n)).collect()),
    }
}

/// A cycle among the nodes that still wait, its first node first, found by walking from one to what it waits
/// for. A walk of waiting nodes never ends, so it meets itself.
fn cycle(start: usize, needs: &[BTreeSet<usize>], waits: &[usize]) -> Vec<usize> {
    let mut met = HashSet::new();
    let mut path = Vec::new();
    let mut at = start;
    while met.insert(at) {
        path.push(at);
        at = needs[at].iter().copied().find(|&n| waits[n] > 0).unwrap_or(at);
    }
    let from = path.iter().position(|&n| n == at).unwrap_or(0);
    path.drain(..from);
    path.reverse();
    let first = path.iter().enumerate().min_by_key(|(_, n)| **n).map_or(0, |(i, _)| i);
    path.rotate_left(first);
    path
}

/// The names a node reads: its inputs, and what its subgraphs read from outside.
pub(crate) fn reads(node: &OnnxNode) -> impl Iterator<Item = &str> {
    let inputs = node.inputs.iter().map(String::as_str).filter(|i| !i.is_empty());
    inputs.chain(subgraphs(node).flat_map(free))
}

/// The names a graph reads but does not define.
pub(crate) fn free(graph: &OnnxGraph) -> BTreeSet<&str> {
    let outputs = graph.outputs.iter().map(|o| o.name.as_str()).filter(|o| !o.is_empty());
    let mut names: BTreeSet<&str> = graph.nodes.iter().flat_map(reads).chain(outputs).collect();
    let inputs = graph.inputs.iter().map(|i| i.name.as_str());
    let initializers = graph.initializers.iter().map(|(name, _)| name.as_str());
    let produced = graph.nodes.iter().flat_map(|n| n.outputs.iter().map(String::as_str));
    for name in inputs.chain(initializers).chain(produced) {
        names.remove(name);
    }
    names
}

fn subgraphs(node: &OnnxNode) -> impl Iterator<Item = &OnnxGraph> {
    node.attributes.values().flat_map(|attribute| match attribute {
        Attribute::Graph(graph) => std::slice::from_ref(&**graph),
        Attribute::Graphs(all) => all,
        _ => &[],
    })
}
