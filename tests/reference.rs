//! Every operator by its own cases, its derivatives, and a network, lowered for the reference back end and interpreted,
//! against the evaluation of the graph. Programs are run directly, without artifact and session.

use std::path::Path;

use margay_ir::ops::Const;
use margay_ir::{Graph, Op, Origin, Payload, TensorType, Value, eval};
use margay_lower::lower;
use margay_onnx::model::Model;
use margay_passes::{Pipeline, gradients};
use margay_reference::{Reference, run};
use margay_tensor::{Binding, DType, Tensor};
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

/// Evaluates and interprets a graph on the inputs that it reads.
fn agrees(what: &str, g: &Graph, inputs: &[(String, Tensor)]) {
    let read: Vec<(&str, &Tensor)> = g
        .inputs()
        .iter()
        .map(|n| {
            let name = g.node(*n).origin.name();
            let given = inputs.iter().find(|(given, _)| given == name).expect("the inputs are given");
            (given.0.as_str(), &given.1)
        })
        .collect();
    let expected = eval::run(g, &read).unwrap_or_else(|e| panic!("{what}: {e}"));
    let tensors: Vec<Tensor> = read.iter().map(|(_, t)| (*t).clone()).collect();
    for (found, expected) in interpreted(g, &tensors).iter().zip(&expected) {
        assert_close(what, found, expected, Tolerance::REDUCTION);
    }
}

#[test]
fn derivatives_agree_with_their_evaluation() {
    let mut compared = 0;
    for (op, case) in Op::cases() {
        let inputs = case_inputs(&case);
        let mut g = graph_of(&op, &inputs, 0);
        let float = |g: &Graph, v: Value| g.ty(v).dtype == DType::F32;
        let outputs: Vec<Value> = g.outputs().iter().map(|o| o.value).filter(|v| float(&g, *v)).collect();
        let by: Vec<Value> = g.inputs().iter().map(|n| Value::from(*n)).filter(|v| float(&g, *v)).collect();
        if outputs.is_empty() || by.is_empty() {
            continue;
        }
        let seeds: Vec<(Value, Value)> = outputs
            .iter()
            .enumerate()
            .map(|(i, y)| {
                let c = margay_testkit::normal(&g.ty(*y).extents().unwrap(), 7, i as u64);
                (*y, g.add(Const { payload: Payload::new(c) }, &[], Origin::default()).unwrap())
            })
            .collect();
        let Ok(found) = gradients(&mut g, &seeds, &by) else { continue };
        g.set_outputs(Vec::new());
        for (i, value) in found.into_iter().flatten().enumerate() {
            g.add_output(&format!("dx{i}"), value);
        }
        g.remove_dead();
        if g.outputs().is_empty() {
            continue;
        }
        let named = |(i, t): (usize, &Tensor)| (format!("x{i}"), t.clone());
        let inputs: Vec<(String, Tensor)> = inputs.iter().enumerate().map(named).collect();
        agrees(&format!("derivatives of {op:?}"), &g, &inputs);
        compared += 1;
    }
    assert!(compared > 80, "derivatives of {compared} cases compared");
}

#[test]
fn a_network_agrees_with_its_evaluation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/model.onnx");
    let mut g = margay_onnx::import(&Model::open(&path).unwrap()).unwrap();
    Pipeline::canonicalize().run(&mut g, &mut |_| ()).unwrap();
    let binding: Binding = g.symbols().into_iter().map(|s| (s, 2)).collect();
    Pipeline::bind(&binding).run(&mut g, &mut |_| ()).unwrap();
    let shape = g.ty(g.inputs()[0].into()).extents().unwrap();
    let name = g.node(g.inputs()[0]).origin.name().to_owned();
    agrees("demo", &g, &[(name, margay_testkit::normal(&shape, 4, 0))]);
}
