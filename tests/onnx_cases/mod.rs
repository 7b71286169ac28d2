//! Small models of every imported operator of ONNX, with what onnxruntime computes of them: the file that
//! `tools/make_operators.py` writes.

use std::io::Cursor;

use margay_npy::Named;
use margay_tensor::Tensor;

/// An archive in an archive, so that it is compressed as a whole.
const FILE: &[u8] = include_bytes!("../fixtures/operators_in_onnxruntime.npz");

/// A model, its inputs and what onnxruntime makes of them, by name.
pub struct OnnxCase {
    /// The operator, and what tells this case from others of it: `Conv-strides=[2,3]`.
    pub name: String,
    /// The bytes of the model.
    pub model: Vec<u8>,
    /// What it is given.
    pub inputs: Vec<(String, Tensor)>,
    /// What is expected.
    pub outputs: Vec<(String, Tensor)>,
}

/// All cases, as the file has them.
///
/// # Panics
/// For a file that is none of `make_operators.py`.
pub fn onnx_cases() -> Vec<OnnxCase> {
    let outer = members(FILE);
    let [(_, archive)] = outer.as_slice() else { panic!("{} arrays, expected one", outer.len()) };
    let mut cases: Vec<OnnxCase> = Vec::new();
    for (member, tensor) in members(archive.bytes()) {
        let (name, part) = member.split_once('/').expect("members are parts of a case");
        if part == "model" {
            let (name, model) = (name.to_owned(), tensor.bytes().to_vec());
            cases.push(OnnxCase { name, model, inputs: Vec::new(), outputs: Vec::new() });
            continue;
        }
        let case =
            cases.last_mut().filter(|case| case.name == name).expect("a model comes before its arrays");
        match part.split_once('/').expect("an array is an input or an output") {
            ("in", input) => case.inputs.push((input.to_owned(), tensor)),
            (_, output) => case.outputs.push((output.to_owned(), tensor)),
        }
    }
    cases
}

fn members(archive: &[u8]) -> Named {
    margay_npy::read_npz(Cursor::new(archive)).unwrap_or_else(|e| panic!("{e}"))
}
