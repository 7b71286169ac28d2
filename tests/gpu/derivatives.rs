//! Derivatives of every operator, by its own cases, on the emulator against the reference.

use margay_emulator::Emulator;
use margay_ir::ops::Const;
use margay_ir::{Graph, Op, Origin, PassError, Payload, TensorType, Value, eval};
use margay_passes::gradients;
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, Tensor};
use margay_testkit::{Tolerance, assert_close, case_inputs, max_error, normal};

use crate::{emulated, is_unsupported};

/// Orders of threads that each derivative runs in.
const ORDERS: usize = 3;

/// The derivatives of a weighted sum of the outputs of one node by its operands, of floats of 32 bits; `None` where there is no rule.
fn derived(op: &Op, inputs: &[Tensor]) -> Option<Graph> {
    if inputs.iter().any(|t| t.dtype().is_float() && t.dtype() != DType::F32) {
        return None;
    }
    let mut g = Graph::new(op.name());
    let operands: Vec<Value> =
        inputs.iter().enumerate().map(|(i, t)| g.add_input(&format!("x{i}"), TensorType::of(t))).collect();
    let v = g.add(op.clone(), &operands, Origin::named("node")).unwrap_or_else(|e| panic!("{op:?}: {e}"));
    let outs = (0..g.node(v.node).types.len() as u16).map(|out| Value { node: v.node, out });
    let outs: Vec<Value> = outs.filter(|y| g.ty(*y).dtype == DType::F32).collect();
    let mut seeds = Vec::new();
    for y in outs {
        // An extent that a run decides is known to no case.
        let weights = normal(&g.ty(y).extents()?, 7, u64::from(y.out));
        let payload = Payload::new(weights);
        seeds.push((y, g.add(Const { payload }, &[], Origin::default()).expect("a constant")));
    }
    let by: Vec<Value> =
        operands.into_iter().zip(inputs).filter(|(_, t)| t.dtype() == DType::F32).map(|(v, _)| v).collect();
    let found = match gradients(&mut g, &seeds, &by) {
        Ok(found) => found,
        // There is no rule.
        Err(PassError::Refused(_)) => return None,
        Err(e) => panic!("{op:?}: {e}"),
    };
    let found: Vec<Value> = found.into_iter().flatten().collect();
    found.iter().enumerate().for_each(|(i, v)| g.add_output(&format!("d{i}"), *v));
    g.remove_dead();
    (!found.is_empty()).then_some(g)
}

/// The derivatives of all cases, with what they are taken at.
pub(crate) fn graphs() -> Vec<(Graph, Vec<Tensor>)> {
    let cases = Op::cases().into_iter().map(|(op, case)| (op, case_inputs(&case)));
    cases.filter_map(|(op, inputs)| Some((derived(&op, &inputs)?, inputs))).collect()
}

#[test]
fn derivatives_of_operators_agree_with_the_reference() {
    let emulator = Emulator::new(1);
    let (mut compared, mut worst, mut without) = (0, (String::new(), 0f64), Vec::new());
    for (g, inputs) in graphs() {
        let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
        let is_read = |name: &str| g.inputs().iter().any(|n| g.node(*n).origin.name() == name);
        let all = names.iter().map(String::as_str).zip(&inputs);
        let by_name: Vec<(&str, &Tensor)> = all.filter(|(name, _)| is_read(name)).collect();
        let expected = eval::run(&g, &by_name).unwrap_or_else(|e| panic!("{g}: {e}"));
        let executable = match emulated(&g, &Binding::new(), &emulator) {
            Ok(executable) => executable,
            Err(error) => {
                assert!(is_unsupported(&error), "{error}\n{g}");
                without.push(format!("{}: {error}", g.name()));
                continue;
            }
        };
        let mut session = Session::new(&executable, SessionOptions { threads: 1 }).expect("memory");
        let mut run = || session.run(&by_name).unwrap_or_else(|e| panic!("{g}: {e}"));
        let found = run();
        for _ in 1..ORDERS {
            assert_eq!(found, run(), "{g}: the same bits in every order");
        }
        for ((_, found), expected) in found.iter().zip(&expected) {
            assert_close(g.name(), found, expected, Tolerance::REDUCTION);
            let error = max_error(found, expected);
            if error > worst.1 {
                worst = (g.name().to_owned(), error);
            }
        }
        compared += 1;
    }
    without.dedup();
    println!("{compared} derivatives, the greatest difference is {:.1e} of {}", worst.1, worst.0);
    without.iter().for_each(|line| println!("without a kernel: {line}"));
    assert!(compared > 100, "{compared}");
}
