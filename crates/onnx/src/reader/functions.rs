//! Functions that a model defines, put in place of the nodes that call them.
//!
//! Names inside of a function become those of the call with the name of the value behind, so that the functions of two
//! calls have nothing in common. Attributes that refer to those of the call take their values, or the default ones.
//!
//! A function may be written for another operator set than the model: its nodes are then read as of that one. A function that
//! calls itself, or whose operator set is not read, is left for the reader to refuse.

use std::collections::{BTreeMap, HashMap};

use super::domain;
use crate::model::{NEWEST_OPSET, OLDEST_OPSET};
use crate::wire::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto};

/// Calls inside of calls.
const MAX_DEPTH: usize = 32;

/// Nodes of all calls together: calls inside of calls may double with every level.
const MAX_NODES: usize = 1 << 17;

/// Domain, name and overload.
type Key = (String, String, String);

/// The functions of a model.
pub(super) struct Functions {
    known: BTreeMap<Key, FunctionProto>,
    /// The operator sets of the model by domain.
    versions: BTreeMap<String, i64>,
    /// Those of nodes of functions that differ, by the first result of the node.
    own_versions: BTreeMap<String, i64>,
    /// Nodes that may still be added.
    left: usize,
    /// Calls put in place so far.
    calls: usize,
}

impl Functions {
    pub(super) fn new(functions: Vec<FunctionProto>, imports: &[OperatorSetIdProto]) -> Functions {
        let key = |f: &FunctionProto| (domain(f.domain.clone()), f.name.clone(), f.overload.clone());
        let known = functions.into_iter().map(|f| (key(&f), f)).collect();
        let versions = imports.iter().map(|i| (domain(i.domain.clone()), i.version)).collect();
        Functions { known, versions, own_versions: BTreeMap::new(), left: MAX_NODES, calls: 0 }
    }

    /// Whether a node calls a function.
    pub(super) fn has(&self, domain: &str, name: &str) -> bool {
        self.known.keys().any(|(d, n, _)| d == domain && n == name)
    }

    /// The operator sets of nodes that are not those of the model, by the first result of the node.
    pub(super) fn own_versions(&mut self) -> BTreeMap<String, i64> {
        std::mem::take(&mut self.own_versions)
    }

    /// Replaces the calls in a graph and in the graphs of its nodes.
    pub(super) fn inline(&mut self, graph: &mut GraphProto) {
        if !self.known.is_empty() {
            let nodes = std::mem::take(&mut graph.node);
            graph.node = self.expanded(nodes, 0);
        }
    }

    fn expanded(&mut self, nodes: Vec<NodeProto>, depth: usize) -> Vec<NodeProto> {
        let mut out = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            let key = (domain(node.domain.clone()), node.op_type.clone(), node.overload.clone());
            match self.known.get(&key).filter(|f| self.is_inlined(f, depth)).cloned() {
                Some(function) => {
                    self.left -= function.node.len();
                    self.calls += 1;
                    let body = Call::new(&node, &function, self.calls).body();
                    self.note_versions(&body, &function.opset_import);
                    out.extend(self.expanded(body, depth + 1));
                }
                None => {
                    for attribute in &mut node.attribute {
                        for graph in attribute.g.iter_mut().map(|g| &mut **g).chain(&mut attribute.graphs) {
                            let nodes = std::mem::take(&mut graph.node);
                            graph.node = self.expanded(nodes, depth);
                        }
                    }
                    out.push(node);
                }
            }
        }
        out
    }

    fn is_inlined(&self, function: &FunctionProto, depth: usize) -> bool {
        let read = |i: &OperatorSetIdProto| {
            !domain(i.domain.clone()).is_empty() || (OLDEST_OPSET..=NEWEST_OPSET).contains(&i.version)
        };
        depth < MAX_DEPTH && function.node.len() <= self.left && function.opset_import.iter().all(read)
    }

    /// Notes the operator sets of the nodes of a body, where the model has others.
    fn note_versions(&mut self, nodes: &[NodeProto], imports: &[OperatorSetIdProto]) {
        for node in nodes {
            let own = domain(node.domain.clone());
            let import = imports.iter().find(|i| domain(i.domain.clone()) == own).map(|i| i.version);
            if let (Some(version), Some(first)) = (import, node.output.iter().find(|o| !o.is_empty()))
                && self.versions.get(&own) != Some(&version)
            {
                self.own_versions.insert(first.clone(), version);
            }
            for attribute in &node.attribute {
                for graph in attribute.g.iter().map(|g| &**g).chain(&attribute.graphs) {
                    self.note_versions(&graph.node, imports);
                }
            }
        }
    }
}

/// One call of a function.
struct Call<'a> {
    function: &'a FunctionProto,
    /// What stands in front of names inside.
    prefix: String,
    /// What operands and results are called outside.
    names: HashMap<&'a str, String>,
    attributes: HashMap<&'a str, &'a AttributeProto>,
    results: &'a [String],
}

impl<'a> Call<'a> {
    fn new(node: &'a NodeProto, function: &'a FunctionProto, number: usize) -> Call<'a> {
        let own = node.output.iter().find(|o| !o.is_empty()).unwrap_or(&node.name);
        let prefix = format!("{}#{number}", if node.name.is_empty() { own } else { &node.name });
        let mut names = HashMap::new();
        for (at, name) in function.output.iter().enumerate() {
            if let Some(outside) = node.output.get(at).filter(|o| !o.is_empty()) {
                names.insert(name.as_str(), outside.clone());
            }
        }
        // An operand that is a result too keeps its own name; the body copies it.
        for (at, name) in function.input.iter().enumerate() {
            names.insert(name.as_str(), node.input.get(at).cloned().unwrap_or_default());
        }
        let defaults = function.attribute_proto.iter();
        let attributes = defaults.chain(&node.attribute).map(|a| (a.name.as_str(), a)).collect();
        Call { function, prefix, names, attributes, results: &node.output }
    }

    fn body(&self) -> Vec<NodeProto> {
        let mut nodes: Vec<NodeProto> = self.function.node.iter().map(|n| self.node(n)).collect();
        for (at, name) in self.function.output.iter().enumerate() {
            if self.function.input.contains(name)
                && let Some(to) = self.results.get(at).filter(|to| !to.is_empty())
            {
                let (input, output) = (vec![self.name(name)], vec![to.clone()]);
                nodes.push(NodeProto {
                    input,
                    output,
                    op_type: "Identity".to_owned(),
                    ..NodeProto::default()
                });
            }
        }
        nodes
    }

    fn name(&self, name: &str) -> String {
        match self.names.get(name) {
            Some(outside) => outside.clone(),
            None if name.is_empty() => String::new(),
            None => format!("{}/{name}", self.prefix),
        }
    }

    fn node(&self, node: &NodeProto) -> NodeProto {
        let name =
            if node.name.is_empty() { String::new() } else { format!("{}/{}", self.prefix, node.name) };
        NodeProto {
            input: node.input.iter().map(|n| self.name(n)).collect(),
            output: node.output.iter().map(|n| self.name(n)).collect(),
            name,
            attribute: node.attribute.iter().filter_map(|a| self.attribute(a)).collect(),
            ..node.clone()
        }
    }

    /// An attribute of a node inside; none where it refers to one that the call does not give and that has no default.
    fn attribute(&self, attribute: &AttributeProto) -> Option<AttributeProto> {
        if !attribute.ref_attr_name.is_empty() {
            let given = self.attributes.get(attribute.ref_attr_name.as_str())?;
            return Some(AttributeProto { name: attribute.name.clone(), ..(*given).clone() });
        }
        let mut attribute = attribute.clone();
        for graph in attribute.g.iter_mut().map(|g| &mut **g).chain(&mut attribute.graphs) {
            graph.node = graph.node.iter().map(|n| self.node(n)).collect();
            graph.initializer.iter_mut().for_each(|t| t.name = self.name(&t.name));
            graph.input.iter_mut().chain(&mut graph.output).for_each(|v| v.name = self.name(&v.name));
        }
        Some(attribute)
    }
}
