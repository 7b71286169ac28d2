//! Operators of ONNX that are imported as formulas, and written as themselves again.

use std::collections::BTreeMap;

use margay_ir::{Graph, eval};
use margay_onnx::{Attribute, Model, OnnxDim, OnnxGraph, OnnxNode, OnnxValue, import};
use margay_tensor::{DType, Tensor};
use margay_testkit::{Tolerance, assert_close, normal};

use super::{round_trip, written};

fn node(op_type: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) -> OnnxNode {
    let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
    OnnxNode {
        name: format!("{op_type} {}", outputs[0]),
        op_type: op_type.to_owned(),
        domain: String::new(),
        inputs: names(inputs),
        outputs: names(outputs),
        attributes: attributes.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
    }
}

fn value(name: &str, extents: Option<&[usize]>) -> OnnxValue {
    let dims = extents.map(|list| list.iter().map(|&d| OnnxDim::Value(d as i64)).collect());
    OnnxValue { name: name.to_owned(), dtype: extents.map(|_| DType::F32), narrow: None, dims }
}

fn model(
    inputs: &[(&str, &[usize])],
    constants: &[(&str, Tensor)],
    nodes: Vec<OnnxNode>,
    outputs: &[&str],
) -> Model {
    let graph = OnnxGraph {
        name: "test".to_owned(),
        nodes,
        initializers: constants.iter().map(|(name, t)| ((*name).to_owned(), t.clone())).collect(),
        inputs: inputs.iter().map(|(name, shape)| value(name, Some(shape))).collect(),
        outputs: outputs.iter().map(|name| value(name, None)).collect(),
        ..OnnxGraph::default()
    };
    Model::new(17, graph)
}

/// Imports, exports and imports again; the operators that were written, in order.
fn again(m: &Model) -> Vec<String> {
    let g = import(m).unwrap();
    let given: Vec<(String, Tensor)> = g
        .inputs()
        .iter()
        .enumerate()
        .map(|(i, n)| {
            let shape = g.ty((*n).into()).extents().unwrap();
            (g.node(*n).origin.name().to_owned(), normal(&shape, 5, i as u64))
        })
        .collect();
    let run = |g: &Graph| {
        let given: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
        eval::run(g, &given).unwrap()
    };
    for (found, expected) in run(&round_trip(&g, 17)).iter().zip(run(&g)) {
        assert_close("again", found, &expected, Tolerance::ELEMENTWISE);
    }
    written(&g, 17).graph.nodes.into_iter().map(|n| n.op_type).collect()
}

fn count(list: &[String], op_type: &str) -> usize {
    list.iter().filter(|name| *name == op_type).count()
}

#[test]
fn recurrent_layers_are_themselves_again() {
    for (op_type, gates, states) in [("LSTM", 4, 2), ("GRU", 3, 1), ("RNN", 1, 1)] {
        for direction in ["forward", "reverse"] {
            let constants = [
                ("w", normal(&[1, gates * 2, 3], 1, 0)),
                ("r", normal(&[1, gates * 2, 2], 1, 1)),
                ("b", normal(&[1, 4 * gates], 1, 2)),
            ];
            let mut inputs: Vec<(&str, &[usize])> = vec![("x", &[5, 2, 3]), ("h", &[1, 2, 2])];
            let mut names = vec!["x", "w", "r", "b", "", "h"];
            let mut outputs = vec!["y", "last"];
            if states == 2 {
                inputs.push(("c", &[1, 2, 2]));
                names.push("c");
                outputs.push("cell");
            }
            let attributes =
                [("direction", Attribute::String(direction.into())), ("hidden_size", Attribute::Int(2))];
            let layer = node(op_type, &names, &outputs, &attributes);
            let ops = again(&model(&inputs, &constants, vec![layer], &outputs));
            let seen = ["MatMul", "Loop", "Squeeze", op_type].map(|name| count(&ops, name));
            assert_eq!(seen, [0, 0, 0, 1], "{op_type} {direction}: {ops:?}");
        }
    }
}

#[test]
fn recurrent_layers_of_integers_are_themselves_again() {
    let elements = |shape: &[usize], low: i32, width: usize| -> Vec<i32> {
        (0..shape.iter().product::<usize>()).map(|i| low + (i * 37 % width) as i32).collect()
    };
    let signed = |shape: &[usize]| {
        let list: Vec<i8> = elements(shape, -90, 181).into_iter().map(|x| x as i8).collect();
        Tensor::from_slice(shape, &list).unwrap()
    };
    // Less their zero points they are no i8.
    let unsigned = |shape: &[usize]| {
        let list: Vec<u8> = elements(shape, 0, 251).into_iter().map(|x| x as u8).collect();
        Tensor::from_slice(shape, &list).unwrap()
    };
    let columns: Vec<f32> = (0..8).map(|i| 0.002 * (1 + i) as f32).collect();
    let columns = Tensor::from_slice(&[1, 8], &columns).unwrap();
    let number = |x: f32| Tensor::from_slice(&[1], &[x]).unwrap();
    let some = Tensor::from_slice(&[1], &[7i8]).unwrap();
    let none = Tensor::from_slice(&[1, 8], &[0i8; 8]).unwrap();
    let far = Tensor::from_slice(&[1], &[31u8]).unwrap();
    let (w, r) = (&[1, 3, 8][..], &[1, 2, 8][..]);
    for (matrices, scales, zero) in [
        ([signed(w), signed(r)], [number(0.01), number(0.02)], &some),
        ([signed(w), signed(r)], [columns.clone(), columns], &none),
        ([unsigned(w), unsigned(r)], [number(0.01), number(0.02)], &far),
    ] {
        let [(w, r), (w_scale, r_scale)] = [matrices, scales].map(|[w, r]| (w, r));
        let bias = normal(&[1, 16], 1, 2);
        let constants =
            [("w", w), ("r", r), ("b", bias), ("ws", w_scale), ("rs", r_scale), ("z", zero.clone())];
        let names = ["x", "w", "r", "b", "", "h", "", "", "ws", "z", "rs", "z"];
        let attributes =
            [("direction", Attribute::String("reverse".into())), ("hidden_size", Attribute::Int(2))];
        let mut layer = node("DynamicQuantizeLSTM", &names, &["y", "last"], &attributes);
        layer.domain = "com.microsoft".to_owned();
        let m = model(&[("x", &[5, 2, 3]), ("h", &[1, 2, 2])], &constants, vec![layer], &["y", "last"]);
        let ops = again(&m);
        let seen = ["DynamicQuantizeLinear", "MatMulInteger", "Loop", "Squeeze", "DynamicQuantizeLSTM"]
            .map(|name| count(&ops, name));
        assert_eq!(seen, [0, 0, 0, 0, 1], "{zero:?}: {ops:?}");
        assert_eq!(m.domains, BTreeMap::from([("com.microsoft".to_owned(), 1)]));
    }
}

#[test]
fn quantization_by_range_is_one_operator_again() {
    let bytes = |shape: &[usize], from: i16, to: i16| {
        let count: usize = shape.iter().product();
        let width = i32::from(to) - i32::from(from);
        (0..count).map(|i| (i32::from(from) + (i as i32 * 37) % width) as i16).collect::<Vec<_>>()
    };
    let signed = |shape: &[usize]| {
        let list: Vec<i8> = bytes(shape, -90, 91).into_iter().map(|x| x as i8).collect();
        Tensor::from_slice(shape, &list).unwrap()
    };
    let unsigned = |shape: &[usize]| {
        let list: Vec<u8> = bytes(shape, 0, 251).into_iter().map(|x| x as u8).collect();
        Tensor::from_slice(shape, &list).unwrap()
    };
    let zero = |z: u8| Tensor::from_slice(&[], &[z]).unwrap();
    let nodes = |op_type: &str, zero: bool| {
        let operands = ["q", "w", "z", "wz"];
        vec![
            node("DynamicQuantizeLinear", &["x"], &["q", "s", "z"], &[]),
            node(op_type, if zero { &operands } else { &operands[..3] }, &["i"], &[]),
            node("Cast", &["i"], &["f"], &[("to", Attribute::Int(1))]),
            node("Mul", &["f", "s"], &["y"], &[]),
        ]
    };
    let matrix: (&str, &[usize]) = ("x", &[4, 6]);
    let image: (&str, &[usize]) = ("x", &[1, 3, 5, 4]);
    let mut expected: BTreeMap<&str, usize> =
        ["DynamicQuantizeLinear", "Cast", "Mul"].map(|name| (name, 1)).into();
    for (op_type, input, shape) in
        [("MatMulInteger", matrix, &[6, 5][..]), ("ConvInteger", image, &[2, 3, 3, 2])]
    {
        for unsigned_weights in [false, true] {
            let w = if unsigned_weights { unsigned(shape) } else { signed(shape) };
            let constants = [("w", w), ("wz", zero(119))];
            let m = model(&[input], &constants, nodes(op_type, unsigned_weights), &["y"]);
            let ops = again(&m);
            expected.insert(op_type, 1);
            // Kernels of convolutions are u8.
            let constants = written(&import(&m).unwrap(), 17).graph.initializers;
            let types: Vec<DType> =
                constants.iter().filter(|(_, t)| t.shape() == shape).map(|(_, t)| t.dtype()).collect();
            assert_eq!(types, [if op_type == "ConvInteger" { DType::U8 } else { DType::I8 }], "{op_type}");
            let mut found = BTreeMap::new();
            ops.iter().for_each(|name| *found.entry(name.as_str()).or_insert(0) += 1);
            assert_eq!(found, expected, "{op_type} {unsigned_weights}");
        }
        expected.remove(op_type);
    }
}

#[test]
fn numbers_are_quantized_and_back_by_one_operator_each() {
    let scalar = |t: Tensor| t.reshaped(&[]).unwrap();
    let scale = |s: f32| scalar(Tensor::from_slice(&[1], &[s]).unwrap());
    for zero in [
        scalar(Tensor::from_slice(&[1], &[7u8]).unwrap()),
        scalar(Tensor::from_slice(&[1], &[-5i8]).unwrap()),
        scalar(Tensor::from_slice(&[1], &[0i8]).unwrap()),
    ] {
        let constants = [("s", scale(0.03125)), ("z", zero)];
        let nodes = vec![
            node("QuantizeLinear", &["x", "s", "z"], &["q"], &[]),
            node("DequantizeLinear", &["q", "s", "z"], &["y"], &[]),
        ];
        let ops = again(&model(&[("x", &[3, 4])], &constants, nodes, &["y"]));
        let written: Vec<&str> = ops.iter().map(String::as_str).collect();
        assert_eq!(written.first(), Some(&"QuantizeLinear"), "{ops:?}");
        assert_eq!((written.last(), written.len()), (Some(&"DequantizeLinear"), 2), "{ops:?}");
    }
}

#[test]
fn loops_that_a_condition_ends_are_loops_again() {
    let single = |name: &str, dtype| OnnxValue { dtype: Some(dtype), ..value(name, Some(&[])) };
    let keep = [("keepdims", Attribute::Int(0))];
    let body = OnnxGraph {
        name: "doubled".to_owned(),
        nodes: vec![
            node("Mul", &["v", "two"], &["next"], &[]),
            node("Abs", &["next"], &["size"], &[]),
            node("ReduceSum", &["size"], &["sum"], &keep),
            node("Less", &["sum", "limit"], &["goes_on"], &[]),
            node("Neg", &["v"], &["row"], &[]),
        ],
        inputs: vec![single("i", DType::I64), single("before", DType::Bool), value("v", Some(&[3]))],
        outputs: vec![single("goes_on", DType::Bool), value("next", Some(&[3])), value("row", Some(&[3]))],
        ..OnnxGraph::default()
    };
    for limit in [0.0f32, 20.0, 1e6] {
        let constants = [
            ("trips", Tensor::scalar(7i64)),
            ("two", Tensor::scalar(2f32)),
            ("limit", Tensor::scalar(limit)),
        ];
        let attributes = [("body", Attribute::Graph(Box::new(body.clone())))];
        let nodes = vec![
            node("Loop", &["trips", "", "x"], &["last", "rows"], &attributes),
            node("ReduceMax", &["rows"], &["most"], &keep),
        ];
        let m = model(&[("x", &[3])], &constants, nodes, &["last", "rows", "most"]);
        let ops = again(&m);
        assert!(count(&ops, "Loop") == 1 && count(&ops, "Pad") == 0, "{ops:?}");
    }
}
