//! Every operator by its own cases: types, reference, text, cost.

use margay_ir::{Graph, Op, Origin, TensorType, Value, eval, text};
use margay_tensor::Tensor;
use margay_testkit::case_inputs;

/// A graph of one node over inputs `x0`, `x1`, ….
fn graph_of(op: &Op, inputs: &[Tensor]) -> Graph {
    let mut g = Graph::new(op.name());
    let values: Vec<Value> =
        inputs.iter().enumerate().map(|(i, t)| g.add_input(&format!("x{i}"), TensorType::of(t))).collect();
    let v = g.add(op.clone(), &values, Origin::named("node")).unwrap_or_else(|e| panic!("{e}"));
    for out in 0..g.node(v.node).types.len() as u16 {
        g.add_output(&format!("y{out}"), Value { node: v.node, out });
    }
    g
}

fn named(inputs: &[Tensor]) -> Vec<(String, &Tensor)> {
    inputs.iter().enumerate().map(|(i, t)| (format!("x{i}"), t)).collect()
}

#[test]
fn inferred_types_are_the_types_produced() {
    for (op, case) in Op::cases() {
        let inputs = case_inputs(&case);
        let g = graph_of(&op, &inputs);
        let names = named(&inputs);
        let by_name: Vec<(&str, &Tensor)> = names.iter().map(|(n, t)| (n.as_str(), *t)).collect();
        let outputs = eval::run(&g, &by_name).unwrap_or_else(|e| panic!("{op:?}: {e}"));
        for (o, t) in g.outputs().iter().zip(&outputs) {
            assert_eq!(*g.ty(o.value), TensorType::of(t), "{op:?}");
        }
    }
}

#[test]
fn text_reads_back() {
    for (op, case) in Op::cases() {
        let g = graph_of(&op, &case_inputs(&case));
        let printed = g.to_string();
        let again = text::parse(&printed, &|_, _| None).unwrap_or_else(|e| panic!("{e}\n{printed}"));
        assert_eq!(again.to_string(), printed);
    }
}

#[test]
fn every_operator_has_cases() {
    let cases = Op::cases();
    let without: Vec<&str> =
        Op::ALL.iter().copied().filter(|name| !cases.iter().any(|(op, _)| op.name() == *name)).collect();
    // Inputs stand in the header of a graph; `dims` is folded before anything runs.
    assert_eq!(without, ["dims", "input"]);
}
