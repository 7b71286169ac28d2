//! Graphs made of a graph: the part that computes some values, and the whole with other operators.

use std::collections::HashMap;

use crate::graph::AddError;
use crate::{Graph, NodeId, Op, Output, Patch, Value};

/// An operator put in place of another does not fit there (the caller's fault).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("at `{at}`: {error}")]
pub struct MapError {
    /// Origin of the node.
    pub at: String,
    /// What its type rule says.
    pub error: AddError,
}

impl Graph {
    /// The part of the graph that computes the values `wanted`, its only outputs, under their names. Each of the values
    /// `given` is an input of that name and type instead, after all inputs of the graph, which stay. Nodes keep their
    /// ids, so what is known of a node holds in the part, as long as it [contains](Graph::contains) the node.
    ///
    /// A value that is both given and wanted is passed on.
    #[must_use]
    pub fn cut(&self, given: &[(String, Value)], wanted: &[(String, Value)]) -> Graph {
        let mut part = self.clone();
        part.set_outputs(
            wanted
                .iter()
                .map(|(n, value)| Output { name: n.as_str().into(), value: *value, counts: None })
                .collect(),
        );
        let mut patch = Patch::new();
        for (name, v) in given {
            let input = patch.add_input(name, self.ty(*v).clone());
            patch.redirect(*v, input);
        }
        part.apply(patch).expect("an input has the type of the value it stands for, and depends on nothing");
        part.remove_dead();
        part
    }

    /// The same graph with the operators that `op_of` answers, inputs included: types are inferred anew. Order, origins and
    /// the names of inputs and outputs stay. All ids are new, those of this graph are none of the result's. Also what
    /// every value of this graph became.
    ///
    /// # Errors
    /// An operator that does not take the operands of the node.
    pub fn map(&self, op_of: impl Fn(NodeId) -> Op) -> Result<(Graph, HashMap<Value, Value>), MapError> {
        let mut out = self.emptied();
        let mut values: HashMap<Value, Value> = HashMap::new();
        for &n in self.inputs() {
            if let Op::Input(input) = op_of(n) {
                values.insert(n.into(), out.add_input(&input.name, input.ty));
            }
        }
        for n in self.order() {
            let node = self.node(n);
            if matches!(node.op, Op::Input(_)) {
                continue;
            }
            let operands: Vec<Value> = self.inputs_of(n).iter().map(|v| values[v]).collect();
            let first = out
                .add(op_of(n), &operands, node.origin.clone())
                .map_err(|error| MapError { at: node.origin.name().to_owned(), error })?;
            values.extend(self.values_of(n).zip(out.values_of(first.node)));
        }
        let output = |o: &Output| Output { value: values[&o.value], ..o.clone() };
        out.set_outputs(self.outputs().iter().map(output).collect());
        Ok((out, values))
    }
}

#[cfg(test)]
mod tests {
    use crate::Op;
    use crate::ops::{Const, Reshape};
    use crate::text::parse;
    use margay_tensor::{Dim, Tensor};

    const TEXT: &str = "graph @m(%x: f32[N, 4], %y: f32[N, 4]) -> (z: f32[N, 4]) {
  %0 = exp %x : f32[N, 4]
  %1 = const 2.0 : f32
  %2 = mul %0, %1 : f32[N, 4]  // twice
  %3 = add %2, %y : f32[N, 4]
  return %3
}
";

    #[test]
    fn a_part_has_inputs_where_it_was_cut() {
        let g = parse(TEXT, &|_, _| None).unwrap();
        let [exp, mul] =
            ["exp", "mul"].map(|name| g.order().into_iter().find(|n| g.op(*n).name() == name).unwrap());
        let part = g.cut(&[("e".into(), exp.into())], &[("m".into(), mul.into()), ("e".into(), exp.into())]);
        part.verify(crate::Stage::Imported).unwrap();
        let expected =
            "graph @m(%x: f32[N, 4], %y: f32[N, 4], %e: f32[N, 4]) -> (m: f32[N, 4], e: f32[N, 4]) {
  %0 = const 2.0 : f32
  %1 = mul %e, %0 : f32[N, 4]  // twice
  return %1, %e
}
";
        assert_eq!(part.to_string(), expected);
        assert!(part.contains(mul) && !part.contains(exp));
        assert_eq!(g.to_string(), TEXT);
    }

    #[test]
    fn ids_of_the_old_graph_mean_nothing_in_the_new_one() {
        let g = parse(TEXT, &|_, _| None).unwrap();
        let same = |n| g.op(n).clone();
        let (copy, values) = g.map(same).unwrap();
        assert_eq!(copy.to_string(), TEXT);
        assert!(g.order().iter().all(|n| !copy.contains(*n)));
        assert!(g.order().iter().all(|n| copy.contains(values[&(*n).into()].node)));
        let three = |n| match g.op(n) {
            Op::Const(_) => Op::from(Const { payload: crate::Payload::new(Tensor::scalar(3f32)) }),
            op => op.clone(),
        };
        assert!(g.map(three).unwrap().0.to_string().contains("const 3.0"));
        let odd = |n| match g.op(n) {
            Op::Exp(_) => Op::from(Reshape { shape: vec![Dim::from(3usize)] }),
            op => op.clone(),
        };
        assert_eq!(g.map(odd).unwrap_err().error.op, "reshape");
    }
}
