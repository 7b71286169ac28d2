//! Files that are damaged, hostile or beyond us: always an error, the right one, and never a panic.

mod support;

use std::fs;
use std::path::Path;

use margay_onnx::{Attribute, External, Lookalike, Model, OnnxError, OnnxGraph, Problem};
use margay_tensor::Tensor;
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, Message, ModelProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, TypeProto, attribute_proto, tensor_proto, type_proto,
};
use support::{everything, linear, node};

/// The error of the linear model after a change to its graph.
fn graph_error(change: impl FnOnce(&mut GraphProto)) -> OnnxError {
    model_error(|model| change(model.graph.as_mut().unwrap()))
}

fn model_error(change: impl FnOnce(&mut ModelProto)) -> OnnxError {
    let mut model = ModelProto::parse_from_bytes(&linear().to_bytes().unwrap()).unwrap();
    change(&mut model);
    Model::from_bytes(&model.write_to_bytes().unwrap()).unwrap_err()
}

/// The error of the linear model with one more initializer.
fn tensor_error(tensor: TensorProto) -> String {
    graph_error(|graph| graph.initializer.push(TensorProto { name: "t".to_owned(), ..tensor })).to_string()
}

fn floats(dims: &[i64]) -> TensorProto {
    TensorProto { dims: dims.to_vec(), data_type: 1, ..TensorProto::default() }
}

#[test]
fn every_beginning_of_a_model_is_an_error() {
    for model in [linear(), everything()] {
        let bytes = model.to_bytes().unwrap();
        for length in 0..bytes.len() {
            let error = Model::from_bytes(&bytes[..length]).unwrap_err();
            assert!(error.is_malformed(), "{length} bytes: {error}");
        }
    }
}

#[test]
fn files_that_are_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let cases: [(&[u8], &str); 5] = [
        (b"", "not an ONNX model: found an empty file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90405214\n",
            "not an ONNX model: found a Git LFS pointer to a file of 90405214 bytes",
        ),
        (b"<!DOCTYPE html>", "not an ONNX model: found a web page"),
        (b"PK\x03\x04model.onnx", "not an ONNX model: found a zip archive"),
        (&[0; 100], "not an ONNX model: found a file that begins with zeros only"),
    ];
    for (bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        let error = Model::open(&path).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(error.is_malformed() && error.help().is_some());
    }
    assert!(matches!(Model::open(folder.path()), Err(OnnxError::NotAFile { .. })));
    assert!(matches!(Model::open(&folder.path().join("none")), Err(OnnxError::Read { .. })));
    assert_eq!(Lookalike::Gzip.help(), "unpack it with `gunzip` first");
}

#[test]
fn what_would_harm_the_parser() {
    // Groups: two bytes each, nested by the parser without limit.
    let error = Model::from_bytes(&[0x0b; 300_000]).unwrap_err();
    assert!(matches!(error, OnnxError::Malformed { .. }), "{error}");
    // Five million empty nodes in ten megabytes.
    let mut bytes = vec![0x3a, 0x80, 0xe9, 0xe2, 0x04];
    bytes.extend([0x0a, 0x00].repeat((0x69 << 7 | 0x62 << 14 | 0x04 << 21) / 2));
    let error = Model::from_bytes(&bytes).unwrap_err();
    assert!(matches!(error, OnnxError::TooLarge { .. }), "{error}");
    // Text that is not UTF-8.
    let mut bytes = linear().to_bytes().unwrap();
    let at = bytes.windows(6).position(|w| w == b"MatMul").unwrap();
    bytes[at] = 0xff;
    let error = Model::from_bytes(&bytes).unwrap_err();
    assert!(matches!(error, OnnxError::Parse { .. }), "{error}");
    assert!(error.is_malformed());
}

#[test]
fn subgraphs_may_nest_but_not_for_ever() {
    let nested = |depth: usize| {
        let mut graph = OnnxGraph::default();
        for _ in 1..depth {
            let mut outer = node("If", &[], &["v"]);
            outer.attributes.insert("then_branch".to_owned(), Attribute::Graph(Box::new(graph)));
            graph = OnnxGraph { nodes: vec![outer], ..OnnxGraph::default() };
        }
        Model::new(17, graph)
    };
    let deepest = nested(32);
    assert_eq!(Model::from_bytes(&deepest.to_bytes().unwrap()).unwrap(), deepest);
    assert!(matches!(nested(33).to_bytes(), Err(OnnxError::TooDeep { limit: 32, .. })));

    let mut proto = ModelProto::parse_from_bytes(&deepest.to_bytes().unwrap()).unwrap();
    for _ in 0..2 {
        let inner = proto.graph.take().unwrap();
        let mut outer =
            ModelProto::parse_from_bytes(&nested(2).to_bytes().unwrap()).unwrap().graph.take().unwrap();
        outer.node[0].attribute[0].g = Some(inner).into();
        proto.graph = Some(outer).into();
    }
    let error = Model::from_bytes(&proto.write_to_bytes().unwrap()).unwrap_err();
    assert!(matches!(error, OnnxError::TooDeep { limit: 96, .. }), "{error}");
}

#[test]
fn missing_and_foreign_versions() {
    let error = model_error(|m| m.graph.clear());
    assert_eq!(error.to_string(), "the model has no graph");
    let error = model_error(|m| m.opset_import.clear());
    assert_eq!(
        error.to_string(),
        "model: expected an operator set import for the default domain, found none"
    );
    assert!(error.is_malformed());
    assert!(model_error(|m| m.opset_import[0].domain = "ai.onnx.ml".to_owned()).is_malformed());
    let error = model_error(|m| m.opset_import[0].version = 29);
    assert_eq!(error.to_string(), "model: expected operator set 1 to 28, found 29");
    assert!(!error.is_malformed() && error.help().is_some());
    let error = model_error(|m| {
        let mut second = m.opset_import[0].clone();
        second.domain = "ai.onnx".to_owned();
        second.version = 18;
        m.opset_import.push(second);
    });
    assert_eq!(error.to_string(), "model: expected one version of operator domain ``, found 17 and 18");
    let error = model_error(|m| m.ir_version = 99);
    assert_eq!(error.to_string(), "model: expected IR version 3 to 14, found 99");
    assert!(!error.is_malformed());
    assert!(model_error(|m| m.ir_version = 0).is_malformed());
    let error = model_error(|m| {
        let body = m.graph.as_ref().unwrap().node[2].clone();
        m.functions = vec![FunctionProto {
            name: "Relu".to_owned(),
            domain: "ai.onnx".to_owned(),
            input: body.input.clone(),
            output: body.output.clone(),
            node: vec![body],
            ..FunctionProto::default()
        }];
    });
    let found =
        "found a function of the model that is written for other operator sets or calls itself, `Relu`";
    assert!(error.to_string().contains(found), "{error}");
    assert!(!error.is_malformed());
}

#[test]
fn wrong_names_are_all_reported() {
    let error = graph_error(|graph| {
        graph.initializer.remove(0);
        graph.node[1].input[1] = "bias".to_owned();
        graph.node[2].op_type.clear();
        graph.output[0].name = "z".to_owned();
    });
    assert!(error.is_malformed());
    assert_eq!(
        error.to_string(),
        "the model has several problems:
  node `Relu/y` (): expected an operator name, found none
  node `MatMul/product` (MatMul): expected input `w` to be a graph input, initializer or node output, found none
  node `Add/sum` (Add): expected input `bias` to be a graph input, initializer or node output, found none
  output `z`: expected a graph input, initializer or node output, found none"
    );
}

#[test]
fn names_are_defined_once() {
    type Change = dyn Fn(&mut GraphProto);
    let cases: [(&Change, &str); 5] = [
        (
            &|g| g.node[1].output[0] = "product".to_owned(),
            "the model has several problems:
  value `product`: expected one definition, found an output of node `MatMul/product` (MatMul) and an output of node `Add/sum` (Add)
  node `Relu/y` (Relu): expected input `sum` to be a graph input, initializer or node output, found none",
        ),
        (
            &|g| g.initializer[1].name = "w".to_owned(),
            "the model has several problems:
  value `w`: expected one definition, found an initializer and an initializer
  node `Add/sum` (Add): expected input `b` to be a graph input, initializer or node output, found none",
        ),
        (
            &|g| g.node[0].output.push("b".to_owned()),
            "value `b`: expected one definition, found an initializer and an output of node `MatMul/product` (MatMul)",
        ),
        (
            &|g| g.input.push(g.input[0].clone()),
            "value `x`: expected one definition, found a graph input and a graph input",
        ),
        (&|g| g.initializer.push(floats(&[0])), "initializer number 2: expected a name, found none"),
    ];
    for (change, expected) in cases {
        assert_eq!(graph_error(change).to_string(), expected);
    }
}

#[test]
fn cycles_are_named() {
    let error = graph_error(|graph| {
        graph.node[0].input[0] = "y".to_owned();
    });
    assert_eq!(
        error.to_string(),
        "expected no cycle, found `MatMul/product` (MatMul) -> `Add/sum` (Add) -> `Relu/y` (Relu) -> \
         `MatMul/product` (MatMul)"
    );
    // A node whose subgraph reads the node's own result.
    let mut model = everything();
    for node in &mut model.graph.nodes {
        if let Some(Attribute::Graph(branch)) = node.attributes.get_mut("then_branch") {
            branch.nodes[0].inputs[0] = "chosen".to_owned();
        }
    }
    assert_eq!(
        Model::from_bytes(&model.to_bytes().unwrap()).unwrap_err().to_string(),
        "expected no cycle, found `If/chosen` (If) -> `If/chosen` (If)"
    );
}

#[test]
fn tensors_must_fit() {
    let raw = |dims: &[i64], bytes: usize| TensorProto { raw_data: vec![2; bytes], ..floats(dims) };
    let cases = [
        (raw(&[2, 3], 20), "tensor `t`: expected 24 bytes for f32[2, 3], found 20"),
        (raw(&[], 8), "tensor `t`: expected 4 bytes for f32[], found 8"),
        (floats(&[5]), "tensor `t`: expected 20 bytes for f32[5], found 0"),
        (raw(&[2, -3], 0), "tensor `t`: expected axis 1 to have an extent of at least 0, found -3"),
        (raw(&[i64::MAX, 2], 0), "tensor `t`: size of f32[9223372036854775807, 2] overflows"),
        (
            raw(&[1 << 40, 1 << 40, 0], 0),
            "tensor `t`: size of f32[1099511627776, 1099511627776, 0] overflows",
        ),
        (floats(&[1; 65]), "tensor `t`: expected at most 64 axes, found 65"),
        (
            TensorProto { float_data: vec![1.0; 3], ..floats(&[2]) },
            "tensor `t`: expected 2 elements for f32[2], found 3",
        ),
        (
            TensorProto { double_data: vec![1.0; 2], ..floats(&[2]) },
            "tensor `t`: expected its data in `raw_data` or `float_data`, found it in `double_data`",
        ),
        (
            TensorProto { float_data: vec![1.0; 2], ..raw(&[2], 8) },
            "tensor `t`: expected its data in one field, found it in `raw_data` and `float_data`",
        ),
        (
            TensorProto { int32_data: vec![-7], data_type: 2, ..floats(&[1]) },
            "tensor `t`: expected element 0 to fit u8, found -7",
        ),
        (TensorProto { data_type: 9, ..raw(&[3], 3) }, "tensor `t`: expected element 0 to fit bool, found 2"),
        (
            TensorProto { data_type: 0, ..raw(&[1], 4) },
            "tensor `t`: expected an element type of ONNX, found number 0",
        ),
        (
            TensorProto { data_type: 99, ..raw(&[1], 4) },
            "tensor `t`: expected an element type of ONNX, found number 99",
        ),
        (
            TensorProto { data_location: protobuf::EnumOrUnknown::from_i32(7), ..raw(&[1], 4) },
            "tensor `t`: expected its data in the model or an external file, found it in location number 7",
        ),
    ];
    for (tensor, expected) in cases {
        assert_eq!(tensor_error(tensor), expected);
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let typed = |data_type| TensorProto { data_type, ..floats(&[1]) };
    let cases: Vec<(TensorProto, &str)> = vec![
        (typed(8), "tensor `t`: element type `STRING` is not supported"),
        (typed(14), "tensor `t`: element type `COMPLEX64` is not supported"),
        (typed(15), "tensor `t`: element type `COMPLEX128` is not supported"),
        (typed(27), "tensor `t`: element type `FLOAT6E2M3` is not supported"),
        (
            TensorProto { segment: Some(tensor_proto::Segment::default()).into(), ..floats(&[0]) },
            "tensor `t`: segments are not supported",
        ),
    ];
    for (tensor, expected) in cases {
        let error = graph_error(|g| g.initializer.push(TensorProto { name: "t".to_owned(), ..tensor }));
        assert_eq!(error.to_string(), expected);
        assert!(!error.is_malformed());
    }
    let sequence = type_proto::Value::SequenceType(type_proto::Sequence::default());
    let error = graph_error(|g| {
        g.input[0].type_ = Some(TypeProto { value: Some(sequence), ..TypeProto::default() }).into();
        let values = TensorProto { name: "s".to_owned(), ..TensorProto::default() };
        g.sparse_initializer =
            vec![SparseTensorProto { values: Some(values).into(), ..SparseTensorProto::default() }];
    });
    assert_eq!(
        error.to_string(),
        "the model has several problems:
  value `x`: expected a tensor, found a sequence
  tensor `s`: sparse tensors are not supported"
    );
    assert!(!error.is_malformed());
}

#[test]
fn attributes_must_agree_with_their_type() {
    use attribute_proto::AttributeType;
    let attribute = |ty: AttributeType| AttributeProto {
        name: "a".to_owned(),
        type_: ty.into(),
        ..AttributeProto::default()
    };
    let cases = [
        (vec![attribute(AttributeType::TENSOR)], "to be a tensor, found none"),
        (vec![attribute(AttributeType::GRAPH)], "to be a graph, found none"),
        (vec![attribute(AttributeType::UNDEFINED)], "to be of a declared type, found none"),
        (
            vec![attribute(AttributeType::INT), attribute(AttributeType::FLOAT)],
            "to be given once, found it twice",
        ),
        (
            vec![AttributeProto { ref_attr_name: "alpha".to_owned(), ..attribute(AttributeType::INT) }],
            "to be a value, found a reference to attribute `alpha` of a function",
        ),
        (
            vec![AttributeProto { s: vec![0xff], ..attribute(AttributeType::STRING) }],
            "to be text in UTF-8, found invalid utf-8 sequence of 1 bytes from index 0",
        ),
        (
            vec![AttributeProto {
                type_: protobuf::EnumOrUnknown::from_i32(77),
                ..attribute(AttributeType::INT)
            }],
            "to be of a type of ONNX, found number 77",
        ),
    ];
    for (attributes, expected) in cases {
        let error = graph_error(|g| g.node[2].attribute = attributes).to_string();
        assert_eq!(error, format!("node `Relu/y` (Relu): expected attribute `a` {expected}"));
    }
}

#[test]
fn inputs_need_a_type() {
    let error = graph_error(|g| g.input[0].type_.clear());
    assert_eq!(error.to_string(), "value `x`: expected a graph input with a type, found none");
    let error = graph_error(|g| {
        let ty = g.input[0].type_.as_mut().unwrap().mut_tensor_type();
        ty.shape.as_mut().unwrap().dim[1].set_dim_value(-2);
        ty.elem_type = 0;
    });
    assert_eq!(
        error.to_string(),
        "the model has several problems:
  value `x`: expected an element type of ONNX, found number 0
  value `x`: expected extents of at least 0, or -1 for an unknown one, found -2"
    );
}

#[test]
fn external_data_stays_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(folder.path().join("secret"), [0; 64]).unwrap();
    fs::write(inside.join("data"), [0; 64]).unwrap();
    fs::create_dir(inside.join("folder")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("../secret", inside.join("link")).unwrap();
    let path = inside.join("model.onnx");
    let error = |entries: &[(&str, &str)]| external_error(&path, entries);

    for location in ["../secret", "folder/../../secret", "/etc/passwd", "link"] {
        if location == "link" && !cfg!(unix) {
            continue;
        }
        let found = error(&[("location", location)]);
        let expected =
            format!("tensor `t`: expected external data inside the model's folder, found `{location}`");
        assert_eq!(found.to_string(), expected);
        assert!(found.is_malformed() && found.help().is_some());
    }
    let cases: [(&[(&str, &str)], &str); 8] = [
        (&[], "tensor `t`: expected external data with a location, found none"),
        (&[("location", "")], "tensor `t`: expected external data with a location, found none"),
        (
            &[("location", "data"), ("location", "data")],
            "tensor `t`: expected external data with each key once, found `location` again",
        ),
        (
            &[("location", "data"), ("offset", "-4")],
            "tensor `t`: expected external data with a number as offset, found `-4`",
        ),
        (&[("location", "data"), ("length", "12")], "tensor `t`: expected 16 bytes for f32[4], found 12"),
        (
            &[("location", "data"), ("offset", "52")],
            "tensor `t`: expected 16 bytes at offset 52 of external data `data`, found 12",
        ),
        (
            &[("location", "data"), ("offset", "18446744073709551615")],
            "tensor `t`: expected 16 bytes at offset 18446744073709551615 of external data `data`, found 0",
        ),
        (
            &[("location", "none")],
            "tensor `t`: cannot read external data `none`: No such file or directory (os error 2)",
        ),
    ];
    for (entries, expected) in cases {
        assert_eq!(error(entries).to_string(), expected);
    }
    for location in ["folder", ".", "da\0ta"] {
        let found = error(&[("location", location)]);
        assert!(
            matches!(&found, OnnxError::Invalid(p) if matches!(p[..], [Problem::ExternalRead { .. }])),
            "{found}"
        );
    }
    // And what is allowed works.
    write_external(&path, &[("location", "./data"), ("offset", "48"), ("checksum", "?")]);
    let model = Model::open(&path).unwrap();
    assert_eq!(model.graph.initializers[2].1, Tensor::from_slice(&[4], &[0f32; 4]).unwrap());
    assert!(matches!(Model::from_bytes(&fs::read(&path).unwrap()), Err(OnnxError::Invalid(_))));
}

fn external_error(path: &Path, entries: &[(&str, &str)]) -> OnnxError {
    write_external(path, entries);
    Model::open(path).unwrap_err()
}

/// The linear model with one more initializer, four numbers in another file.
fn write_external(path: &Path, entries: &[(&str, &str)]) {
    linear().write(path, External::Never).unwrap();
    let mut model = ModelProto::parse_from_bytes(&fs::read(path).unwrap()).unwrap();
    let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
        ..StringStringEntryProto::default()
    };
    model.graph.as_mut().unwrap().initializer.push(TensorProto {
        name: "t".to_owned(),
        external_data: entries.iter().map(entry).collect(),
        data_location: tensor_proto::DataLocation::EXTERNAL.into(),
        ..floats(&[4])
    });
    fs::write(path, model.write_to_bytes().unwrap()).unwrap();
}

#[test]
fn problems_are_not_kept_without_limit() {
    let error = graph_error(|g| {
        for i in 0..5000 {
            g.initializer.push(TensorProto { name: format!("t{i}"), ..floats(&[-1]) });
        }
    });
    let OnnxError::Invalid(problems) = error else { panic!("{error}") };
    assert_eq!(problems.len(), 101);
    assert_eq!(problems[100].to_string(), "4900 more problems");
}
