//! Every imported operator of ONNX with every attribute left out, given with its default and given with another value,
//! against what onnxruntime computes. `tools/make_operators.py` writes the file of models, inputs and outputs.
//!
//! An operator whose reference and whose compiled code are wrong alike is seen only from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::path::Path;

use margay_driver::{Runner, backend, open};
use margay_ir::eval;
use margay_tensor::Tensor;
use margay_testkit::{Tolerance, assert_close};

/// A model, its inputs and what onnxruntime makes of them, by name.
#[derive(Default)]
struct Case {
    model: Vec<u8>,
    inputs: Vec<(String, Tensor)>,
    outputs: Vec<(String, Tensor)>,
}

fn cases() -> BTreeMap<String, Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/operators_in_onnxruntime.npz");
    let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut cases: BTreeMap<String, Case> = BTreeMap::new();
    for (member, tensor) in margay_npy::read_npz(BufReader::new(file)).unwrap_or_else(|e| panic!("{e}")) {
        let (name, part) = member.split_once('/').expect("members are parts of a case");
        let case = cases.entry(name.to_owned()).or_default();
        match part.split_once('/') {
            None => case.model = tensor.bytes().to_vec(),
            Some(("in", input)) => case.inputs.push((input.to_owned(), tensor)),
            Some((_, output)) => case.outputs.push((output.to_owned(), tensor)),
        }
    }
    cases
}

/// Rounding of f32 in sums of tens of terms.
const TOLERANCE: Tolerance = Tolerance { relative: 1e-5, absolute: 1e-5 };

#[test]
fn attributes_mean_what_they_mean_in_onnxruntime() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    for (name, case) in cases() {
        std::fs::write(&path, &case.model).unwrap();
        let source = open(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let by_name: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let reference = eval::run(&source.graph, &by_name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let outputs: Vec<String> = source.graph.outputs().iter().map(|o| o.name.to_string()).collect();
        let mut runner = Runner::new(source.graph, &backend::native(), 2);
        let compiled = runner.run(&case.inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(outputs.len(), case.outputs.len(), "{name}");
        for (output, expected) in &case.outputs {
            let at =
                outputs.iter().position(|o| o == output).unwrap_or_else(|| panic!("{name}: no `{output}`"));
            assert_close(&format!("{name} interpreted"), &reference[at], expected, TOLERANCE);
            assert_close(&format!("{name} compiled"), &compiled[at].1, expected, TOLERANCE);
        }
    }
}

#[test]
fn every_imported_operator_has_cases() {
    let seen: BTreeSet<String> =
        cases().into_keys().map(|name| name.split('-').next().unwrap_or_default().to_owned()).collect();
    let missing: Vec<&str> = margay_onnx::supported_operators()
        .map(|(_, name, _)| name)
        .filter(|name| !seen.contains(*name))
        .collect();
    assert_eq!(missing, [""; 0]);
}
