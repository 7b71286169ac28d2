//! The invariants of the four stages.

use std::fmt;

use crate::{Graph, NodeId, Op, TensorType};

/// How far a graph has come. Each stage keeps the promises of those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stage {
    /// Acyclic; operands dense; the types of every node are those its operator infers.
    Imported,
    /// No node without a reader but inputs; no operator whose operands are all constants and cheap to fold.
    Canonical,
    /// As canonical; the types of the outputs are those of the model.
    Sketched,
    /// Every extent is known, and no `dims` is left.
    Lowerable,
}

impl Stage {
    /// The word used in dumps.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Imported => "imported",
            Stage::Canonical => "canonical",
            Stage::Sketched => "sketched",
            Stage::Lowerable => "lowerable",
        }
    }
}

/// A broken invariant (our fault).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The node, printed as the graph's text does.
    pub node: String,
    /// What is broken.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.what)
    }
}

impl Graph {
    /// Checks the invariants of a stage; all violations are reported.
    pub fn verify(&self, stage: Stage) -> Result<(), Vec<Violation>> {
        let mut found = Vec::new();
        let order = self.order();
        if order.len() != self.len() {
            let what = format!("{} nodes lie on cycles", self.len() - order.len());
            found.push(Violation { node: format!("graph `{}`", self.name()), what });
        }
        for &n in &order {
            self.verify_types(n, &mut found);
            if stage >= Stage::Canonical {
                self.verify_read(n, &mut found);
            }
            if stage >= Stage::Lowerable {
                self.verify_known(n, &mut found);
            }
        }
        if found.is_empty() { Ok(()) } else { Err(found) }
    }

    fn violation(&self, n: NodeId, what: String) -> Violation {
        let node = self.node(n);
        Violation { node: format!("{} `{}`", node.op.name(), node.origin.name()), what }
    }

    fn verify_types(&self, n: NodeId, found: &mut Vec<Violation>) {
        let operands = self.inputs_of(n);
        let types: Vec<&TensorType> = operands.iter().map(|v| self.ty(*v)).collect();
        match self.op(n).infer(&types) {
            Err(e) => found.push(self.violation(n, e.to_string())),
            Ok(types) if types != self.node(n).types => {
                found.push(self.violation(n, "types differ from what the operator infers".into()));
            }
            Ok(_) => {}
        }
    }

    fn verify_read(&self, n: NodeId, found: &mut Vec<Violation>) {
        let outs = self.node(n).types.len() as u16;
        let read = (0..outs).map(|out| crate::Value { node: n, out });
        let dead = !matches!(self.op(n), Op::Input(_))
            && read.into_iter().all(|v| self.users_of(v).is_empty() && !self.is_output(v));
        if dead {
            found.push(self.violation(n, "nobody reads it".into()));
        }
    }

    fn verify_known(&self, n: NodeId, found: &mut Vec<Violation>) {
        if let Some(ty) = self.node(n).types.iter().find(|t| t.extents().is_none()) {
            found.push(self.violation(n, format!("extents of {ty} are not known")));
        }
        if matches!(self.op(n), Op::Dims(_)) {
            found.push(self.violation(n, "extents as data were not folded".into()));
        }
    }
}
