//! Importing: models made by hand, run by the reference interpreter.

mod arithmetic;
mod blocks;
mod control;
mod damage;
mod errors;
mod functions;
mod guards;
mod layers;
mod noise;
mod recurrent;
mod refusals;
mod shapes;

use std::collections::BTreeMap;

use margay_ir::{Graph, Stage, eval};
use margay_onnx::{
    Attribute, Dropout, Model, OnnxDim, OnnxGraph, OnnxNode, OnnxValue, import, import_for_training,
};
use margay_tensor::{DType, Tensor};

/// An operand of a node under test.
enum Operand {
    /// An input of the graph.
    Input(Tensor),
    /// An initializer.
    Constant(Tensor),
    /// An optional input that is left out.
    Absent,
}

use Operand::{Absent, Constant, Input};

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_slice(shape, values).unwrap()
}

fn ints(values: &[i64]) -> Tensor {
    Tensor::from_slice(&[values.len()], values).unwrap()
}

/// 0, 1, 2, … as floats.
fn counting(shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| i as f32).collect();
    floats(shape, &values)
}

fn int(v: i64) -> Attribute {
    Attribute::Int(v)
}

fn list(v: &[i64]) -> Attribute {
    Attribute::Ints(v.to_vec())
}

fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) -> OnnxNode {
    OnnxNode {
        name: outputs[0].to_owned(),
        op_type: op.to_owned(),
        inputs: inputs.iter().map(|&i| i.to_owned()).collect(),
        outputs: outputs.iter().map(|&o| o.to_owned()).collect(),
        attributes: attributes.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
        ..OnnxNode::default()
    }
}

/// An input whose extents are numbers, names or `?`.
fn input(name: &str, dtype: DType, dims: &[&str]) -> OnnxValue {
    let dim = |d: &&str| match d.parse() {
        Ok(v) => OnnxDim::Value(v),
        Err(_) if *d == "?" => OnnxDim::Unknown,
        Err(_) => OnnxDim::Symbol((*d).to_owned()),
    };
    OnnxValue {
        name: name.to_owned(),
        dtype: Some(dtype),
        narrow: None,
        dims: Some(dims.iter().map(dim).collect()),
    }
}

fn output(name: &str) -> OnnxValue {
    OnnxValue { name: name.to_owned(), dtype: None, narrow: None, dims: None }
}

fn model(
    opset: i64,
    inputs: Vec<OnnxValue>,
    constants: &[(&str, Tensor)],
    nodes: Vec<OnnxNode>,
    outputs: &[&str],
) -> Model {
    let initializers = constants.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect();
    let outputs = outputs.iter().map(|n| output(n)).collect();
    Model::new(
        opset,
        OnnxGraph { name: "test".to_owned(), inputs, outputs, initializers, nodes, ..OnnxGraph::default() },
    )
}

/// A model of a single node, and the inputs it is given.
fn single(
    opset: i64,
    op: &str,
    attributes: &[(&str, Attribute)],
    operands: Vec<Operand>,
    outputs: usize,
) -> (Model, BTreeMap<String, Tensor>) {
    let (mut inputs, mut constants, mut given, mut names) = (vec![], vec![], BTreeMap::new(), vec![]);
    for (i, operand) in operands.into_iter().enumerate() {
        let name = format!("x{i}");
        names.push(if matches!(operand, Absent) { String::new() } else { name.clone() });
        match operand {
            Input(t) => {
                let dims: Vec<String> = t.shape().iter().map(ToString::to_string).collect();
                let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
                inputs.push(input(&name, t.dtype(), &dims));
                given.insert(name, t);
            }
            Constant(t) => constants.push((name, t)),
            Absent => {}
        }
    }
    let constants: Vec<(&str, Tensor)> = constants.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let results: Vec<String> = (0..outputs).map(|i| format!("y{i}")).collect();
    let results: Vec<&str> = results.iter().map(String::as_str).collect();
    let nodes = vec![node(op, &names, &results, attributes)];
    (model(opset, inputs, &constants, nodes, &results), given)
}

/// Imports and checks; removes what nobody reads.
fn imported(model: &Model) -> Graph {
    let mut g = import(model).unwrap();
    g.verify(Stage::Imported).unwrap();
    g.remove_dead();
    g
}

fn run_graph(g: &Graph, given: &BTreeMap<String, Tensor>) -> Vec<Tensor> {
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
    eval::run(g, &given).unwrap()
}

/// The outputs of a single node.
fn run_all(
    opset: i64,
    op: &str,
    attributes: &[(&str, Attribute)],
    operands: Vec<Operand>,
    outputs: usize,
) -> Vec<Tensor> {
    let (model, given) = single(opset, op, attributes, operands, outputs);
    run_graph(&imported(&model), &given)
}

/// The output of a single node.
fn run(opset: i64, op: &str, attributes: &[(&str, Attribute)], operands: Vec<Operand>) -> Tensor {
    run_all(opset, op, attributes, operands, 1).remove(0)
}

/// Why a single node is refused.
fn refused(opset: i64, op: &str, attributes: &[(&str, Attribute)], operands: Vec<Operand>) -> String {
    import(&single(opset, op, attributes, operands, 1).0).unwrap_err().to_string()
}

/// Checks shape and elements, to a hundred thousandth.
fn assert_floats(found: &Tensor, shape: &[usize], expected: &[f32]) {
    assert_eq!(found.shape(), shape);
    for (x, y) in found.to_vec::<f32>().unwrap().iter().zip(expected) {
        assert!((x - y).abs() < 1e-5, "{:?} is not {expected:?}", found.to_vec::<f32>());
    }
}
