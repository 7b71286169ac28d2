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
    /// Every extent is known, those that are data among them.
    Lowerable,
}

impl Stage {
    /// All, in order.
    pub const ALL: [Stage; 4] = [Stage::Imported, Stage::Canonical, Stage::Sketched, Stage::Lowerable];

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
        self.verify_guards(&mut found);
        for &n in &order {
            self.verify_types(n, &mut found);
            for region in self.op(n).regions() {
                let inner = region.graph().verify(stage).err().unwrap_or_default();
                found.extend(inner.into_iter().map(|v| self.violation(n, format!("in a region: {v}"))));
            }
            if stage >= Stage::Canonical {
                self.verify_read(n, &mut found);
            }
            if stage >= Stage::Lowerable {
                self.verify_known(n, &mut found);
            }
        }
        if found.is_empty() { Ok(()) } else { Err(found) }
    }

    /// No type mentions a symbol that a guard replaced.
    fn verify_guards(&self, found: &mut Vec<Violation>) {
        if self.guards().is_empty() {
            return;
        }
        let symbols = self.symbols();
        for guard in self.guards().iter().filter(|g| symbols.contains(&g.symbol)) {
            let what = format!("a type mentions `{}`, which the guard replaces", guard.symbol);
            found.push(Violation { node: guard.to_string(), what });
        }
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
        // What decides an extent is read by whoever mentions it.
        let dead = !matches!(self.op(n), Op::Input(_)) && self.decided_by(n).is_none() && !self.is_read(n);
        if dead {
            found.push(self.violation(n, "nobody reads it".into()));
        }
    }

    fn verify_known(&self, n: NodeId, found: &mut Vec<Violation>) {
        if let Some(ty) = self.node(n).types.iter().find(|t| t.extents().is_none()) {
            found.push(self.violation(n, format!("extents of {ty} are not known")));
        }
        if let Op::Dims(dims) = self.op(n)
            && let Some(open) = dims.values.iter().find(|value| value.as_const().is_none())
        {
            found.push(self.violation(n, format!("the extent `{open}` as data is not known")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Add, Dims, Exp, Neg};
    use crate::{Origin, TensorType, Value};
    use margay_tensor::{DType, Dim};

    fn f32s(shape: &[usize]) -> TensorType {
        TensorType::known(DType::F32, shape)
    }

    fn found(g: &Graph, stage: Stage) -> Vec<String> {
        g.verify(stage).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    /// The sum of two inputs, named `sum`.
    fn sum(left: TensorType, right: TensorType) -> (Graph, Value) {
        let mut g = Graph::new("sum");
        let (x, z) = (g.add_input("x", left), g.add_input("z", right));
        let y = g.add(Add, &[x, z], Origin::named("sum")).unwrap();
        g.add_output("y", y);
        (g, z)
    }

    #[test]
    fn types_are_inferred_anew_at_every_stage() {
        for stage in [Stage::Imported, Stage::Canonical, Stage::Sketched, Stage::Lowerable] {
            let (mut g, z) = sum(f32s(&[2, 3]), f32s(&[3]));
            assert_eq!(g.verify(stage), Ok(()));
            // An operand under which the sum gets other extents, one of another type, and one that does not fit.
            for (ty, what) in [
                (f32s(&[4, 2, 3]), "types differ from what the operator infers"),
                (TensorType::known(DType::I64, &[3]), "input 1 is i64, expected f32"),
                (
                    f32s(&[4]),
                    "axis 1 of a broadcast: extents `3` and `4` differ or are not known to be equal",
                ),
            ] {
                let mut broken = g.clone();
                let other = broken.add_input("w", ty);
                broken.redirect(z, other);
                assert_eq!(found(&broken, stage), [format!("add `sum`: {what}")]);
            }
            let mut broken = g.clone();
            let n =
                broken.insert_typed(Neg.into(), [f32s(&[3])].into_iter().collect(), Origin::named("bare"));
            broken.add_output("b", n.into());
            assert_eq!(found(&broken, stage), ["neg `bare`: expected 1 inputs, found 0"]);
            let x: Value = g.inputs()[0].into();
            let n = g.insert_typed(Neg.into(), [f32s(&[9])].into_iter().collect(), Origin::named("odd"));
            g.connect_inputs(n, &[x]);
            g.add_output("b", n.into());
            assert_eq!(found(&g, stage), ["neg `odd`: types differ from what the operator infers"]);
        }
    }

    #[test]
    fn types_mention_no_symbol_that_a_guard_replaced() {
        let open = TensorType::new(DType::F32, vec![Dim::parse("N").unwrap()]);
        let (mut g, _) = sum(open, f32s(&[1]));
        let guard = |symbol: &str| crate::Guard {
            symbol: symbol.into(),
            value: Dim::symbol("B"),
            node: "sum".into(),
        };
        g.add_guard(guard("M"));
        assert_eq!(g.verify(Stage::Imported), Ok(()));
        g.add_guard(guard("N"));
        let expected = "guard N = B  // sum: a type mentions `N`, which the guard replaces";
        assert_eq!(found(&g, Stage::Imported), [expected]);
    }

    #[test]
    fn nodes_on_a_cycle_are_counted() {
        let (mut g, z) = sum(f32s(&[3]), f32s(&[3]));
        let y = g.outputs()[0].value;
        g.redirect(z, y);
        assert_eq!(found(&g, Stage::Imported), ["graph `sum`: 1 nodes lie on cycles"]);
    }

    #[test]
    fn nobody_reads_a_dead_node_from_the_canonical_stage_on() {
        let (mut g, z) = sum(f32s(&[3]), f32s(&[3]));
        g.add_input("unread", f32s(&[3]));
        assert_eq!(g.verify(Stage::Lowerable), Ok(()), "inputs may be left unread");
        let first = g.add(Exp, &[z], Origin::named("first")).unwrap();
        g.add(Neg, &[first], Origin::named("last")).unwrap();
        assert_eq!(g.verify(Stage::Imported), Ok(()));
        for stage in [Stage::Canonical, Stage::Sketched, Stage::Lowerable] {
            assert_eq!(found(&g, stage), ["neg `last`: nobody reads it"]);
        }
    }

    #[test]
    fn extents_are_known_at_the_last_stage() {
        let open = TensorType::new(DType::F32, vec![Dim::parse("N").unwrap()]);
        let (mut g, _) = sum(open, f32s(&[1]));
        for (name, value) in [("known", Dim::from(3usize)), ("shape", Dim::parse("N + 1").unwrap())] {
            let dims = g.add(Dims { values: vec![value] }, &[], Origin::named(name)).unwrap();
            g.add_output(name, dims);
        }
        assert_eq!(g.verify(Stage::Sketched), Ok(()));
        let mut all = found(&g, Stage::Lowerable);
        all.sort();
        assert_eq!(
            all,
            [
                "add `sum`: extents of f32[N] are not known",
                "dims `shape`: the extent `N + 1` as data is not known",
                "input `x`: extents of f32[N] are not known",
            ]
        );
    }
}
