//! Every imported operator of ONNX with every attribute left out, given with its default and given with another value,
//! against what onnxruntime computes. `tools/make_operators.py` writes the file of models, inputs and outputs.
//!
//! An operator whose reference and whose compiled code are wrong alike is seen only from outside.

use std::collections::BTreeSet;

use margay_driver::{Runner, backend, open};
use margay_ir::eval;
use margay_tensor::Tensor;
use margay_testkit::{Tolerance, assert_close};
use margay_tests::onnx_cases;

/// Rounding of f32 in sums of tens of terms.
const TOLERANCE: Tolerance = Tolerance { relative: 1e-5, absolute: 1e-5 };

#[test]
fn attributes_mean_what_they_mean_in_onnxruntime() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    for case in onnx_cases() {
        let name = &case.name;
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
        onnx_cases().iter().map(|case| case.name.split('-').next().unwrap_or_default().to_owned()).collect();
    // onnxruntime does not know those of margay, which `panther/sketches.rs` compares with their formulas.
    let missing: Vec<&str> = margay_onnx::supported_operators()
        .filter(|(domain, ..)| *domain != "margay")
        .map(|(_, name, _)| name)
        .filter(|name| !seen.contains(*name))
        .collect();
    assert_eq!(missing, [""; 0]);
}
