//! Models for the tests of this crate.

use std::collections::BTreeMap;

use half::{bf16, f16};
use margay_onnx::{Attribute, Model, OnnxDim, OnnxGraph, OnnxNode, OnnxValue};
use margay_tensor::{DType, Tensor};

/// A node without attributes.
pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> OnnxNode {
    OnnxNode {
        name: format!("{op}/{}", outputs[0]),
        op_type: op.to_owned(),
        inputs: inputs.iter().map(|&i| i.to_owned()).collect(),
        outputs: outputs.iter().map(|&o| o.to_owned()).collect(),
        ..OnnxNode::default()
    }
}

/// A value of type `f32` with these extents.
pub(crate) fn value(name: &str, dims: &[OnnxDim]) -> OnnxValue {
    OnnxValue { name: name.to_owned(), dtype: Some(DType::F32), narrow: None, dims: Some(dims.to_vec()) }
}

/// `y = relu(x w + b)` with a symbolic batch.
pub(crate) fn linear() -> Model {
    let batch = OnnxDim::Symbol("batch".to_owned());
    let weights: Vec<f32> = (0..12).map(|i| i as f32 / 4.0 - 1.0).collect();
    let graph = OnnxGraph {
        name: "linear".to_owned(),
        inputs: vec![value("x", &[batch.clone(), OnnxDim::Value(4)])],
        outputs: vec![value("y", &[batch, OnnxDim::Value(3)])],
        initializers: vec![
            ("w".to_owned(), Tensor::from_slice(&[4, 3], &weights).unwrap()),
            ("b".to_owned(), Tensor::from_slice(&[3], &[0.5f32, 0.0, -0.5]).unwrap()),
        ],
        nodes: vec![
            node("MatMul", &["x", "w"], &["product"]),
            node("Add", &["product", "b"], &["sum"]),
            node("Relu", &["sum"], &["y"]),
        ],
        ..OnnxGraph::default()
    };
    Model::new(17, graph)
}

/// A model with every kind of attribute, element type and extent, and a subgraph that reads its surroundings.
pub(crate) fn everything() -> Model {
    let mut model = linear();
    let halves = [f16::from_f32(1.5), f16::NEG_INFINITY];
    let constants = [
        Tensor::from_slice(&[2], &halves).unwrap(),
        Tensor::from_slice(&[2], &[bf16::ONE, bf16::NAN]).unwrap(),
        Tensor::from_slice(&[1], &[f64::MIN_POSITIVE]).unwrap(),
        Tensor::from_slice(&[3], &[i8::MIN, 0, 1]).unwrap(),
        Tensor::from_slice(&[1, 1], &[u8::MAX]).unwrap(),
        Tensor::from_slice(&[2], &[i16::MIN, 7]).unwrap(),
        Tensor::from_slice(&[2], &[u16::MAX, 7]).unwrap(),
        Tensor::from_slice(&[2], &[i32::MIN, 7]).unwrap(),
        Tensor::from_slice(&[2], &[u32::MAX, 7]).unwrap(),
        Tensor::from_slice(&[2], &[i64::MIN, 7]).unwrap(),
        Tensor::from_slice(&[2], &[u64::MAX, 7]).unwrap(),
        Tensor::from_bools(&[3], &[true, false, true]).unwrap(),
        Tensor::scalar(2.5f32),
        Tensor::zeros(DType::F32, &[0, 4]).unwrap(),
    ];
    for (index, tensor) in constants.iter().enumerate() {
        model.graph.initializers.push((format!("c{index}"), tensor.clone()));
    }
    let branch = |op: &str| OnnxGraph {
        name: op.to_owned(),
        outputs: vec![OnnxValue { name: "inner".to_owned(), dtype: None, narrow: None, dims: None }],
        initializers: vec![("two".to_owned(), Tensor::scalar(2f32))],
        nodes: vec![node(op, &["sum", "two"], &["inner"])],
        ..OnnxGraph::default()
    };
    let mut choose = node("If", &["c11"], &["chosen"]);
    choose.attributes = BTreeMap::from([
        ("then_branch".to_owned(), Attribute::Graph(Box::new(branch("Mul")))),
        ("else_branch".to_owned(), Attribute::Graph(Box::new(branch("Div")))),
    ]);
    let mut custom = node("Custom", &["chosen", "", "c0"], &["custom", "", "rest"]);
    custom.domain = "com.example".to_owned();
    custom.attributes = BTreeMap::from([
        ("float".to_owned(), Attribute::Float(0.0)),
        ("int".to_owned(), Attribute::Int(-1)),
        ("string".to_owned(), Attribute::String("käse".to_owned())),
        ("tensor".to_owned(), Attribute::Tensor(constants[3].clone())),
        ("floats".to_owned(), Attribute::Floats(vec![1.0, f32::INFINITY])),
        ("ints".to_owned(), Attribute::Ints(vec![i64::MIN, 0, i64::MAX])),
        ("strings".to_owned(), Attribute::Strings(vec![String::new(), "b".to_owned()])),
        ("tensors".to_owned(), Attribute::Tensors(constants[..2].to_vec())),
        ("graphs".to_owned(), Attribute::Graphs(vec![branch("Sub")])),
        ("none".to_owned(), Attribute::Ints(Vec::new())),
    ]);
    model.graph.nodes.extend([choose, custom]);
    model.graph.outputs.push(OnnxValue {
        name: "custom".to_owned(),
        dtype: Some(DType::I64),
        narrow: None,
        dims: Some(vec![OnnxDim::Unknown, OnnxDim::Value(0)]),
    });
    model.graph.outputs.push(OnnxValue {
        name: "rest".to_owned(),
        dtype: Some(DType::Bool),
        narrow: None,
        dims: None,
    });
    model.domains.insert("com.example".to_owned(), 3);
    model.metadata.insert("note".to_owned(), "made by hand".to_owned());
    model
}
