//! Graphs inside operators.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use margay_tensor::{Binding, ContentHash, Tensor};

use crate::ops::{Attribute, Cost, EvalError};
use crate::{Changed, Graph, Op, PassError, TensorType, TypeError, Types, eval};

/// A graph that an operator holds, such as the body of a loop. Its inputs, in order, are operands of the node: whatever
/// it reads from outside is among them. It is identified by its text.
#[derive(Clone)]
pub struct Region {
    graph: Arc<Graph>,
    hash: ContentHash,
}

impl Region {
    /// A graph as a region.
    pub fn new(graph: Graph) -> Region {
        let hash = ContentHash::of(graph.to_string().as_bytes());
        Region { graph: Arc::new(graph), hash }
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// What identifies it.
    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// The types of the outputs for operands of these types, each with its number among those of the node.
    ///
    /// # Errors
    /// For operands that are not what the inputs say.
    pub fn infer(&self, operands: &[(usize, &TensorType)]) -> Result<Types, TypeError> {
        let inputs = self.graph.inputs();
        if inputs.len() != operands.len() {
            let (expected, found) = (inputs.len(), operands.len());
            return Err(TypeError::attribute(format!(
                "region `{}` has {expected} inputs, found {found} operands for them",
                self.graph.name()
            )));
        }
        for (i, (n, (slot, operand))) in inputs.iter().zip(operands).enumerate() {
            let input = self.graph.ty((*n).into());
            if input != *operand {
                return Err(TypeError::attribute(format!(
                    "input {i} of region `{}`: expected {input}, found {operand} as operand {slot}",
                    self.graph.name()
                )));
            }
        }
        Ok(self.graph.outputs().iter().map(|o| self.graph.ty(o.value).clone()).collect())
    }

    /// The outputs for operands in the order of the inputs.
    ///
    /// # Errors
    /// Where an operator of the region fails.
    pub fn eval(&self, operands: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let name = |n: &crate::NodeId| match self.graph.op(*n) {
            Op::Input(input) => input.name.to_string(),
            _ => String::new(),
        };
        let names: Vec<String> = self.graph.inputs().iter().map(name).collect();
        let given: Vec<(&str, &Tensor)> =
            names.iter().map(String::as_str).zip(operands.iter().copied()).collect();
        eval::run(&self.graph, &given).map_err(|e| EvalError::Region(e.to_string()))
    }

    /// What its nodes cost together, as far as their extents are known, and one operation for running each.
    pub fn cost(&self) -> Cost {
        self.graph.cost()
    }

    /// The region of a text without named constants.
    pub(crate) fn parse(text: &str) -> Region {
        Region::new(crate::text::parse(text, &|_, _| None).expect("the text of a case is a graph"))
    }

    /// A region that is known by name only, until the text it stands in has been read.
    fn named(name: &str) -> Region {
        Region::new(Graph::new(name))
    }
}

impl Graph {
    /// Changes the graphs inside the operators by `change`, which says how often it did; what they take and give stays.
    /// Equal graphs stay equal.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn change_regions(
        &mut self,
        change: &mut dyn FnMut(&mut Graph) -> Result<Changed, PassError>,
    ) -> Result<Changed, PassError> {
        let mut changes = 0;
        let mut seen: HashMap<ContentHash, Region> = HashMap::new();
        for n in self.order() {
            if self.op(n).regions().is_empty() {
                continue;
            }
            let mut op = self.op(n).clone();
            let mut changed = false;
            for region in op.regions_mut() {
                let new = match seen.entry(region.hash) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(unknown) => {
                        let mut inner = region.graph().clone();
                        let new = match change(&mut inner)? {
                            Changed::No => region.clone(),
                            Changed::Yes(times) => {
                                changes += times;
                                Region::new(inner)
                            }
                        };
                        unknown.insert(new)
                    }
                };
                changed |= *new != *region;
                region.clone_from(new);
            }
            if changed {
                self.replace_op(n, op);
            }
        }
        Ok(Changed::times(changes))
    }
}

impl PartialEq for Region {
    fn eq(&self, other: &Region) -> bool {
        self.hash == other.hash
    }
}

impl Eq for Region {}

impl Hash for Region {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.write())
    }
}

impl Attribute for Region {
    /// What identifies it; its graph stands behind the graph that names it.
    fn write(&self) -> String {
        format!("&{}", self.hash)
    }

    fn read(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix('&').ok_or_else(|| format!("`{text}` is not a region"))?;
        Ok(Region::named(name))
    }

    /// A graph that does not type with the values stays as it is: the operator that holds it then refuses its operands.
    fn bind(&self, binding: &Binding) -> Self {
        let op_of = |n| self.graph.op(n).bind(binding);
        self.graph.map(op_of).map_or_else(|_| self.clone(), |(g, _)| Region::new(g))
    }

    fn regions(&self) -> Vec<&Region> {
        vec![self]
    }

    fn regions_mut(&mut self) -> Vec<&mut Region> {
        vec![self]
    }
}
