//! Writing and reading: equal models, equal bytes, external data.

mod support;

use std::fs;

use margay_onnx::{Attribute, External, Model, NonFinite, OnnxError, OnnxNode, OnnxValue, read_tensor};
use margay_tensor::{DType, Tensor};
use onnx_protobuf::{Message, ModelProto, TensorProto, tensor_proto};
use support::{everything, linear, node};

#[test]
fn a_written_model_reads_back_equal() {
    for model in [linear(), everything()] {
        let bytes = model.to_bytes().unwrap();
        assert_eq!(bytes, model.to_bytes().unwrap());
        assert_eq!(Model::from_bytes(&bytes).unwrap(), model);
        // Another parser agrees, and writes something this crate reads as the same model.
        let proto = ModelProto::parse_from_bytes(&bytes).unwrap();
        assert_eq!(proto.producer_name, "margay");
        assert_eq!(proto.graph.initializer[0].raw_data.len(), 48);
        assert_eq!(Model::from_bytes(&proto.write_to_bytes().unwrap()).unwrap(), model);
    }
}

#[test]
fn tensors_lie_in_the_map() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    linear().write(&path, External::Auto).unwrap();
    let model = Model::open(&path).unwrap();
    assert_eq!(model, linear());
    // The model may replace the file it was read from.
    let mut named = model.clone();
    named.graph.name = "renamed".to_owned();
    named.write(&path, External::Never).unwrap();
    assert_eq!(Model::open(&path).unwrap(), named);
    assert_eq!(model, linear());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn external_data_reads_back_equal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let mut model = everything();
    for (name, rows) in [("large", 512), ("larger", 2001)] {
        let data: Vec<f32> = (0..rows * 3).map(|i| i as f32).collect();
        model.graph.initializers.push((name.to_owned(), Tensor::from_slice(&[rows, 3], &data).unwrap()));
    }
    model.write(&path, External::Always).unwrap();
    assert_eq!(fs::metadata(folder.path().join("model.onnx.data")).unwrap().len(), 8192 + 2001 * 12);
    assert!(fs::metadata(&path).unwrap().len() < 4096);
    assert_eq!(Model::open(&path).unwrap(), model);
    let first = [path.clone(), folder.path().join("model.onnx.data")].map(|p| fs::read(p).unwrap());
    Model::open(&path).unwrap().write(&path, External::Always).unwrap();
    assert_eq!(first, [path.clone(), folder.path().join("model.onnx.data")].map(|p| fs::read(p).unwrap()));
}

#[test]
fn a_failed_write_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("model.onnx");
    fs::create_dir(&taken).unwrap();
    let error = linear().write(&taken, External::Auto).unwrap_err();
    assert!(matches!(error, OnnxError::Write { .. }), "{error}");
    assert!(!error.is_malformed());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    let mut model = linear();
    model.graph.nodes[0].attributes.insert("type".to_owned(), Attribute::Other("type"));
    assert_eq!(
        model.to_bytes().unwrap_err().to_string(),
        "cannot write attribute `type`: its value, a type, was not kept"
    );
}

#[test]
fn unsorted_nodes_are_sorted_and_sorted_ones_stay() {
    let mut model = linear();
    model.graph.nodes.reverse();
    assert_eq!(Model::from_bytes(&model.to_bytes().unwrap()).unwrap(), linear());
    // A node whose subgraph reads a value comes after the node that makes it.
    let mut model = everything();
    model.graph.nodes.rotate_right(2);
    let read = Model::from_bytes(&model.to_bytes().unwrap()).unwrap();
    let order: Vec<&str> = read.graph.nodes.iter().map(|n| n.op_type.as_str()).collect();
    assert_eq!(order, ["MatMul", "Add", "If", "Custom", "Relu"]);
}

#[test]
fn long_chains_need_no_stack() {
    let mut model = linear();
    let last = 200_000;
    let name = |i: usize| if i == last { "y".to_owned() } else { format!("v{i}") };
    let link = |i: usize| OnnxNode {
        op_type: "Relu".to_owned(),
        inputs: vec![if i == 0 { "x".to_owned() } else { name(i - 1) }],
        outputs: vec![name(i)],
        ..OnnxNode::default()
    };
    model.graph.nodes = (0..=last).rev().map(link).collect();
    let read = Model::from_bytes(&model.to_bytes().unwrap()).unwrap();
    assert_eq!(read.graph.nodes[0].inputs, ["x"]);
    assert_eq!(read.graph.nodes[last].outputs, ["y"]);
}

#[test]
fn typed_fields_equal_raw_data() {
    let typed = |data_type: tensor_proto::DataType, proto: TensorProto| {
        let mut model = ModelProto::parse_from_bytes(&linear().to_bytes().unwrap()).unwrap();
        let graph = model.graph.as_mut().unwrap();
        let tensor =
            TensorProto { name: "t".to_owned(), dims: vec![2], data_type: data_type as i32, ..proto };
        graph.initializer.push(tensor);
        let read = Model::from_bytes(&model.write_to_bytes().unwrap()).unwrap();
        read.graph.initializers[2].1.clone()
    };
    use tensor_proto::DataType;
    let int32 = |a, b| TensorProto { int32_data: vec![a, b], ..TensorProto::default() };
    let uint64 = |a, b| TensorProto { uint64_data: vec![a, b], ..TensorProto::default() };
    let cases = [
        (
            typed(DataType::FLOAT, TensorProto { float_data: vec![1.5, -0.0], ..TensorProto::default() }),
            Tensor::from_slice(&[2], &[1.5f32, -0.0]),
        ),
        (
            typed(DataType::DOUBLE, TensorProto { double_data: vec![1.5, 1e300], ..TensorProto::default() }),
            Tensor::from_slice(&[2], &[1.5, 1e300]),
        ),
        (
            typed(DataType::INT64, TensorProto { int64_data: vec![i64::MIN, -1], ..TensorProto::default() }),
            Tensor::from_slice(&[2], &[i64::MIN, -1]),
        ),
        (typed(DataType::UINT64, uint64(u64::MAX, 0)), Tensor::from_slice(&[2], &[u64::MAX, 0])),
        (typed(DataType::UINT32, uint64(u32::MAX.into(), 0)), Tensor::from_slice(&[2], &[u32::MAX, 0])),
        (typed(DataType::INT32, int32(i32::MIN, -1)), Tensor::from_slice(&[2], &[i32::MIN, -1])),
        (typed(DataType::INT16, int32(-32768, -1)), Tensor::from_slice(&[2], &[i16::MIN, -1])),
        (typed(DataType::UINT16, int32(65535, 0)), Tensor::from_slice(&[2], &[u16::MAX, 0])),
        (typed(DataType::INT8, int32(-128, -1)), Tensor::from_slice(&[2], &[i8::MIN, -1])),
        (typed(DataType::UINT8, int32(255, 0)), Tensor::from_slice(&[2], &[u8::MAX, 0])),
        (typed(DataType::BOOL, int32(1, 0)), Tensor::from_bools(&[2], &[true, false])),
        (
            typed(DataType::FLOAT16, int32(0x3c00, 0xfc00)),
            Tensor::from_slice(&[2], &[half::f16::ONE, half::f16::NEG_INFINITY]),
        ),
        (
            typed(DataType::BFLOAT16, int32(0x3f80, 0)),
            Tensor::from_slice(&[2], &[half::bf16::ONE, half::bf16::ZERO]),
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected.unwrap());
    }
}

#[test]
fn inputs_with_an_initializer_have_a_default_value() {
    let mut proto = ModelProto::parse_from_bytes(&linear().to_bytes().unwrap()).unwrap();
    let graph = proto.graph.as_mut().unwrap();
    let mut weight = graph.input[0].clone();
    weight.name = "w".to_owned();
    graph.input.push(weight);
    let mut expected = linear();
    expected.graph.defaults.push(OnnxValue { name: "w".to_owned(), ..expected.graph.inputs[0].clone() });
    assert_eq!(Model::from_bytes(&proto.write_to_bytes().unwrap()).unwrap(), expected);
    assert_eq!(Model::from_bytes(&expected.to_bytes().unwrap()).unwrap(), expected);
}

#[test]
fn a_model_of_foreign_operators_needs_no_default_operator_set() {
    let mut model = linear();
    model.graph.nodes.iter_mut().for_each(|n| n.domain = "ai.onnx.ml".to_owned());
    model.domains.insert("ai.onnx.ml".to_owned(), 3);
    let mut proto = ModelProto::parse_from_bytes(&model.to_bytes().unwrap()).unwrap();
    proto.opset_import.retain(|o| !o.domain.is_empty());
    let read = Model::from_bytes(&proto.write_to_bytes().unwrap()).unwrap();
    assert_eq!((read.domains, read.graph), (model.domains, model.graph));
}

#[test]
fn numbers_that_are_not_finite_are_found() {
    assert_eq!(linear().non_finite(), []);
    let mut model = linear();
    let data = [1.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY];
    model.graph.initializers.push(("odd".to_owned(), Tensor::from_slice(&[4], &data).unwrap()));
    let mut constant = node("Constant", &[], &["k"]);
    constant.attributes.insert("value".to_owned(), Attribute::Tensor(Tensor::scalar(f64::NAN)));
    model.graph.nodes.push(constant);
    let odd =
        |tensor: &str, nan, infinite, first| NonFinite { tensor: tensor.to_owned(), nan, infinite, first };
    assert_eq!(
        model.non_finite(),
        [odd("odd", 1, 2, 1), odd("`Constant/k` (Constant) attribute `value`", 1, 0, 0)]
    );
}

#[test]
fn single_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("input_0.pb");
    let proto = TensorProto {
        name: "x".to_owned(),
        dims: vec![2, 1],
        data_type: 1,
        raw_data: [1f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect(),
        ..TensorProto::default()
    };
    let bytes = proto.write_to_bytes().unwrap();
    fs::write(&path, &bytes).unwrap();
    assert_eq!(
        read_tensor(&path).unwrap(),
        ("x".to_owned(), Tensor::from_slice(&[2, 1], &[1f32, 2.0]).unwrap())
    );
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(read_tensor(&path).is_err(), "{length}");
    }
    let zeros = Tensor::zeros(DType::F32, &[0]).unwrap();
    let proto = TensorProto { dims: vec![0], data_type: 1, ..TensorProto::default() };
    fs::write(&path, proto.write_to_bytes().unwrap()).unwrap();
    assert_eq!(read_tensor(&path).unwrap().1, zeros);
}
