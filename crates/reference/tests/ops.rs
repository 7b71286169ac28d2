//! Every operator by its own cases, lowered for the reference back end and interpreted.

use margay_ir::ops::Const;
use margay_ir::{Graph, Op, Origin, Payload, TensorType, Value, eval};
use margay_loops::Precision;
use margay_lower::lower;
use margay_passes::Pipeline;
use margay_reference::{Reference, run};
use margay_tensor::{Binding, Tensor};
use margay_testkit::{Tolerance, assert_close, case_inputs};

/// A graph of one node, the last so many of its operands constants.
fn graph_of(op: &Op, inputs: &[Tensor], constants: usize) -> Graph {
    let mut g = Graph::new(op.name());
    let given = inputs.len() - constants;
    let operands: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| match i < given {
            true => g.add_input(&format!("x{i}"), TensorType::of(t)),
            false => g.add(Const { payload: Payload::new(t.clone()) }, &[], Origin::default()).unwrap(),
        })
        .collect();
    let v = g.add(op.clone(), &operands, Origin::named("node")).unwrap_or_else(|e| panic!("{e}"));
    for out in 0..g.node(v.node).types.len() as u16 {
        g.add_output(&format!("y{out}"), Value { node: v.node, out });
    }
    g
}

/// Lowers and interprets a graph without symbols.
fn interpreted(g: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let mut bound = g.clone();
    Pipeline::bind(&Binding::new()).run(&mut bound, &mut |_| ()).unwrap_or_else(|e| panic!("{e}\n{g}"));
    let program = lower(&bound, &Reference).unwrap_or_else(|e| panic!("{e}\n{bound}"));
    let by_number: Vec<&Tensor> = inputs.iter().collect();
    run(&program, &by_number).unwrap_or_else(|e| panic!("{e}\n{program}"))
}

#[test]
fn every_operator_agrees_with_its_evaluation() {
    for (op, case) in Op::cases() {
        let constants = match &op {
            Op::Conv(_) => &[1, 0][..],
            Op::MatMul(product) if product.precision != Precision::F32 => &[1],
            Op::MatMul(_) => &[0, 1],
            _ => &[0],
        };
        for &constants in constants {
            let inputs = case_inputs(&case);
            let g = graph_of(&op, &inputs, constants);
            let given = &inputs[..inputs.len() - constants];
            let names: Vec<String> = (0..given.len()).map(|i| format!("x{i}")).collect();
            let by_name: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(given).collect();
            let expected = eval::run(&g, &by_name).unwrap();
            for (found, expected) in interpreted(&g, given).iter().zip(&expected) {
                assert_close(&format!("{op:?}"), found, expected, Tolerance::REDUCTION);
            }
        }
    }
}
