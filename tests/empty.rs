//! Axes of extent 0 are legal: every operator on every empty operand that its type rule takes, interpreted and compiled.

use std::collections::{BTreeMap, BTreeSet};

use margay_driver::{Kind, backend, build::jit};
use margay_ir::{Graph, Op, Origin, TensorType, Value, eval};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, Tensor};
use margay_testkit::{Tolerance, assert_close, case_inputs};

/// The numbers of lists that are `from`, replaced by 0: `shape = [2, 48]` for 48 becomes `shape = [2, 0]`.
fn emptied(attributes: &str, from: usize) -> String {
    let mut out = String::new();
    let mut depth = 0;
    for word in attributes.split_inclusive([' ', ',', '[', ']']) {
        let (number, after) = word.split_at(word.find([' ', ',', '[', ']']).unwrap_or(word.len()));
        out += if depth > 0 && number == from.to_string() { "0" } else { number };
        out += after;
        depth += after.matches('[').count() as i32 - after.matches(']').count() as i32;
    }
    out
}

/// The operator with an extent of its attributes replaced by 0.
fn with_empty(op: &Op, from: usize) -> Option<Op> {
    if !op.regions().is_empty() {
        return None;
    }
    let written = op.attributes();
    let attributes: Vec<(String, String)> =
        written.iter().map(|(name, value)| ((*name).to_string(), emptied(value, from))).collect();
    let pairs: Vec<(&str, &str)> = attributes.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    Op::parse(op.name(), &pairs)?.ok().filter(|new| new != op)
}

/// A tensor whose axes of some extents are empty, or itself.
fn resized(t: &Tensor, shape: &[usize]) -> Tensor {
    if t.shape() == shape { t.clone() } else { Tensor::zeros(t.dtype(), shape).unwrap() }
}

/// Operands of an operator: all axes of one extent are empty, or one axis alone.
fn empty_shapes(shapes: &[Vec<usize>]) -> BTreeSet<(usize, Vec<Vec<usize>>)> {
    let mut all = BTreeSet::new();
    for (i, shape) in shapes.iter().enumerate() {
        for (axis, &extent) in shape.iter().enumerate() {
            let every = |s: &Vec<usize>| s.iter().map(|&d| if d == extent { 0 } else { d }).collect();
            all.insert((extent, shapes.iter().map(every).collect()));
            let mut one = shapes.to_vec();
            one[i][axis] = 0;
            all.insert((extent, one));
        }
    }
    all
}

#[test]
fn every_operator_takes_empty_axes_where_its_type_rule_does() {
    let mut compared: BTreeMap<&str, usize> = BTreeMap::new();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut failures: Vec<String> = Vec::new();
    for (op, case) in Op::cases() {
        let tensors = case_inputs(&case);
        let shapes: Vec<Vec<usize>> = tensors.iter().map(|t| t.shape().to_vec()).collect();
        for (extent, shapes) in empty_shapes(&shapes) {
            for op in [Some(op.clone()), with_empty(&op, extent)].into_iter().flatten() {
                let inputs: Vec<Tensor> = tensors.iter().zip(&shapes).map(|(t, s)| resized(t, s)).collect();
                if !seen.insert(format!("{op:?} {:?}", inputs.iter().map(TensorType::of).collect::<Vec<_>>()))
                {
                    continue;
                }
                match std::panic::catch_unwind(|| agrees(&op, &inputs)) {
                    Ok(None) => {}
                    Ok(Some(())) => *compared.entry(op.name()).or_default() += 1,
                    Err(e) => {
                        let what = e.downcast_ref::<String>().cloned().unwrap_or_default();
                        failures.push(format!("{op:?} on {shapes:?}: {what}"));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    let without: Vec<&str> = Op::ALL.iter().copied().filter(|name| !compared.contains_key(name)).collect();
    // These have no operands with axes of their own; those of regions are tested with branches and loops.
    assert_eq!(without, ["const", "dims", "input", "range", "if", "loop"]);
}

/// Compares an operator on operands with empty axes, if its type rule takes them.
fn agrees(op: &Op, inputs: &[Tensor]) -> Option<()> {
    let mut g = Graph::new(op.name());
    let operands: Vec<Value> =
        inputs.iter().enumerate().map(|(i, t)| g.add_input(&format!("x{i}"), TensorType::of(t))).collect();
    let v = g.add(op.clone(), &operands, Origin::named("node")).ok()?;
    for value in g.values_of(v.node) {
        g.add_output(&format!("y{}", value.out), value);
    }
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let by_name: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(inputs).collect();
    let expected = eval::run(&g, &by_name);
    for backend in backend::supported() {
        let what = format!("on {}", backend.target());
        let executable = match jit(&g, &Binding::new(), &*backend) {
            Err(e) if e.kind() == Kind::Usage && expected.is_err() => continue,
            Err(e) => panic!("{what}: {e}"),
            Ok(executable) => executable,
        };
        let mut session = Session::new(&executable, SessionOptions { threads: 2 }).unwrap();
        let found = session.run(&by_name);
        match (&expected, found) {
            (Ok(expected), Ok(found)) => {
                for (expected, (name, found)) in expected.iter().zip(&found) {
                    assert_close(&format!("{name} {what}"), found, expected, Tolerance::REDUCTION);
                }
            }
            (Err(_), Err(_)) => {}
            (Ok(_), Err(e)) => panic!("{what}: {e}"),
            (Err(e), Ok(_)) => panic!("{what} it runs; the interpreter says {e}"),
        }
    }
    Some(())
}
