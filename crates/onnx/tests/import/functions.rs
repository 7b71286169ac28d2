//! Functions that a model defines: their nodes take the place of calls.

use std::collections::BTreeMap;

use margay_onnx::{Model, import};
use onnx_protobuf::{
    AttributeProto, FunctionProto, Message, ModelProto, NodeProto, OperatorSetIdProto, attribute_proto,
};

use super::{floats, imported, input, model, node, run_graph};

fn inner(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: op.to_owned(),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: outputs.iter().map(|&o| o.to_owned()).collect(),
        ..NodeProto::default()
    }
}

fn float(name: &str, f: f32) -> AttributeProto {
    let r#type = attribute_proto::AttributeType::FLOAT.into();
    AttributeProto { name: name.to_owned(), f, type_: r#type, ..AttributeProto::default() }
}

fn function(name: &str, inputs: &[&str], outputs: &[&str], node: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: name.to_owned(),
        domain: "local".to_owned(),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: outputs.iter().map(|&o| o.to_owned()).collect(),
        node,
        ..FunctionProto::default()
    }
}

/// `y` of a call of `name` for `x`, in a model that defines functions.
fn calling(name: &str, attributes: Vec<AttributeProto>, functions: Vec<FunctionProto>) -> ModelProto {
    let call = node(name, &["x"], &["y"], &[]);
    let written = model(17, vec![input("x", margay_tensor::DType::F32, &["2"])], &[], vec![call], &["y"]);
    let mut proto = ModelProto::parse_from_bytes(&written.to_bytes().unwrap()).unwrap();
    let call = &mut proto.graph.as_mut().unwrap().node[0];
    call.domain = "local".to_owned();
    call.attribute = attributes;
    proto.opset_import.push(OperatorSetIdProto {
        domain: "local".to_owned(),
        version: 1,
        ..OperatorSetIdProto::default()
    });
    proto.functions = functions;
    proto
}

fn read(proto: &ModelProto) -> Model {
    Model::from_bytes(&proto.write_to_bytes().unwrap()).unwrap()
}

fn y_of(proto: &ModelProto, x: [f32; 2]) -> Vec<f32> {
    let given = BTreeMap::from([("x".to_owned(), floats(&[2], &x))]);
    run_graph(&imported(&read(proto)), &given)[0].to_vec::<f32>().unwrap()
}

/// LeakyRelu by the attribute `slope` of the call.
fn bent(default: Option<f32>) -> FunctionProto {
    let mut leaky = inner("LeakyRelu", &["a"], &["b"]);
    let mut alpha = float("alpha", 0.0);
    alpha.ref_attr_name = "slope".to_owned();
    leaky.attribute.push(alpha);
    let mut made = function("Bent", &["a"], &["b"], vec![leaky]);
    made.attribute_proto.extend(default.map(|f| float("slope", f)));
    made
}

#[test]
fn attributes_are_those_of_the_call_or_defaults() {
    let given = || vec![float("slope", 0.5)];
    assert_eq!(y_of(&calling("Bent", given(), vec![bent(None)]), [-2.0, 3.0]), [-1.0, 3.0]);
    assert_eq!(y_of(&calling("Bent", given(), vec![bent(Some(0.25))]), [-2.0, 3.0]), [-1.0, 3.0]);
    assert_eq!(y_of(&calling("Bent", vec![], vec![bent(Some(0.25))]), [-2.0, 3.0]), [-0.5, 3.0]);
    // The default value of ONNX.
    assert_eq!(y_of(&calling("Bent", vec![], vec![bent(None)]), [-2.0, 3.0]), [-0.02, 3.0]);
}

#[test]
fn functions_call_others_and_their_names_do_not_meet() {
    let square = function("Square", &["x"], &["y"], vec![inner("Mul", &["x", "x"], &["y"])]);
    let mut calls = [inner("Square", &["x"], &["t"]), inner("Square", &["t"], &["u"])];
    calls.iter_mut().for_each(|c| c.domain = "local".to_owned());
    let nodes = calls.into_iter().chain([inner("Add", &["u", "t"], &["y"])]).collect();
    let twice = function("Twice", &["x"], &["y"], nodes);
    assert_eq!(y_of(&calling("Twice", vec![], vec![square, twice]), [2.0, -3.0]), [20.0, 90.0]);
}

#[test]
fn an_operand_may_be_the_result() {
    let same = function("Same", &["a"], &["a"], vec![]);
    assert_eq!(y_of(&calling("Same", vec![], vec![same]), [2.0, -3.0]), [2.0, -3.0]);
}

#[test]
fn overloads_of_one_name_are_functions_of_their_own() {
    let overload = |overload: &str, op: &str| FunctionProto {
        overload: overload.to_owned(),
        ..function("Change", &["a"], &["b"], vec![inner(op, &["a"], &["b"])])
    };
    for (called, expected) in [("up", [2.0, 3.0]), ("down", [2.0, -3.0])] {
        let mut proto = calling("Change", vec![], vec![overload("up", "Abs"), overload("down", "Neg")]);
        proto.graph.as_mut().unwrap().node[0].overload = called.to_owned();
        assert_eq!(y_of(&proto, [-2.0, 3.0]), expected, "{called}");
    }
}

/// Where the axes of a sum were an attribute, and are an operand in the operator set of the model.
#[test]
fn functions_are_read_as_of_their_own_operator_set() {
    let mut sum = inner("ReduceSum", &["a"], &["s"]);
    let r#type = attribute_proto::AttributeType::INTS.into();
    let axes =
        AttributeProto { name: "axes".into(), ints: vec![0], type_: r#type, ..AttributeProto::default() };
    sum.attribute.push(axes);
    let mut older = function("Share", &["a"], &["b"], vec![sum, inner("Div", &["a", "s"], &["b"])]);
    older.opset_import.push(OperatorSetIdProto { version: 11, ..OperatorSetIdProto::default() });
    assert_eq!(y_of(&calling("Share", vec![], vec![older]), [1.0, 3.0]), [0.25, 0.75]);
}

#[test]
fn what_cannot_take_the_place_of_a_call_is_refused() {
    let mut again = inner("Loop", &["x"], &["y"]);
    again.domain = "local".to_owned();
    let endless = function("Loop", &["x"], &["y"], vec![again]);
    let mut older = function("Bent", &["x"], &["y"], vec![inner("Relu", &["x"], &["y"])]);
    older.opset_import.push(OperatorSetIdProto { version: 99, ..OperatorSetIdProto::default() });
    for (name, function) in [("Loop", endless), ("Bent", older)] {
        let proto = calling(name, vec![], vec![function]);
        let error = Model::from_bytes(&proto.write_to_bytes().unwrap()).map(|m| import(&m).map(|_| ()));
        let error = error.unwrap_err();
        assert!(error.to_string().contains("found a function of the model that is written for"), "{error}");
        assert!(!error.is_malformed());
    }
}
