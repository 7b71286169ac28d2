//! Where inputs come from, and how failures are told to programs.

use std::fs;

use margay_onnx::{Attribute, External, Model, OnnxDim, OnnxGraph, OnnxValue};
use margay_tensor::random::Philox;
use margay_tensor::{DType, Tensor};

use crate::place::{Place, images, json, node, value};

/// A `TensorProto` of f32: extents below 128, element type, name, raw data.
pub(crate) fn tensor_proto(name: &str, tensor: &Tensor) -> Vec<u8> {
    let mut bytes: Vec<u8> = tensor.shape().iter().flat_map(|&extent| [0x08, extent as u8]).collect();
    bytes.extend([0x10, 1, 0x42, name.len() as u8]);
    bytes.extend(name.as_bytes());
    bytes.push(0x4a);
    let mut length = tensor.bytes().len();
    while length >= 0x80 {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend(tensor.bytes());
    bytes
}

#[test]
fn random_inputs_follow_shapes_and_dimensions() {
    let place = Place::new();
    let shape = |words: &str| {
        place.done(&format!("run model.onnx {words} --outputs out.npz"));
        place.read_npz("out.npz")[0].1.shape().to_vec()
    };
    assert_eq!(shape("--dim batch=3"), [3, 10]);
    assert_eq!(shape("--shapes image:2x1x28x28"), [2, 10]);
    place.done("compile model.onnx -o two.margay --dim batch=1,2");
    for (words, batch) in [("", 1), ("--dim batch=2", 2)] {
        place.done(&format!("run two.margay --outputs out.npz {words}"));
        assert_eq!(place.read_npz("out.npz")[0].1.shape(), [batch, 10]);
    }
    let open = place.run("run model.onnx --outputs out.npz");
    let expected = "error: input `image` leaves `batch` open: give inputs, or say `--dim batch=1` or \
                    `--shapes image:1x1x28x28`\n";
    assert_eq!((open.stderr.as_str(), open.code), (expected, 2));
    let unknown = place.run("run model.onnx --dim batch=1 --shapes picture:1 --outputs out.npz");
    assert_eq!(unknown.stderr, "error: the model has no input `picture`\n");
}

#[test]
fn test_data_say_what_is_right() {
    let place = Place::new();
    let image = images(2, 1);
    place.done("run model.onnx --inputs in.npz --outputs out.npz");
    let right = place.read_npz("out.npz").remove(0).1;
    fs::create_dir(place.path("data")).unwrap();
    // The name of the input is missing: it is the first one.
    fs::write(place.path("data/input_0.pb"), tensor_proto("", &image)).unwrap();
    fs::write(place.path("data/output_0.pb"), tensor_proto("logits", &right)).unwrap();
    let passed = place.done("run model.onnx --inputs data");
    assert_eq!(passed.stderr, "note: 1 outputs are what the test data say\n");
    let wrong = Tensor::zeros(DType::F32, right.shape()).unwrap();
    fs::write(place.path("data/output_0.pb"), tensor_proto("logits", &wrong)).unwrap();
    let failed = place.run("run model.onnx --inputs data");
    assert_eq!(failed.code, 1);
    assert!(failed.stderr.starts_with("error: 20 of 20 elements are past"), "{}", failed.stderr);
    fs::remove_file(place.path("data/output_0.pb")).unwrap();
    assert_eq!(place.run("run model.onnx --inputs data").code, 2, "nothing is done with the outputs");
}

#[test]
fn an_array_takes_the_place_of_a_value_that_the_model_has() {
    let place = Place::new();
    let ones = |by: f32| Tensor::from_slice(&[2, 3], &[by; 6]).unwrap();
    // y = x + w, where w is an input with a value of its own.
    let value = |name: &str| OnnxValue {
        name: name.into(),
        dtype: Some(DType::F32),
        narrow: None,
        dims: Some(vec![OnnxDim::Value(2), OnnxDim::Value(3)]),
    };
    let graph = OnnxGraph {
        name: "default".into(),
        inputs: vec![value("x")],
        defaults: vec![value("w")],
        outputs: vec![value("y")],
        initializers: vec![("w".into(), ones(10.0))],
        nodes: vec![node("sum", "Add", &["x", "w"], "y")],
        ..OnnxGraph::default()
    };
    margay_onnx::Model::new(17, graph).write(&place.path("sum.onnx"), External::Never).unwrap();
    place.write_npz("own.npz", &[("x", ones(1.0))]);
    place.write_npz("other.npz", &[("x", ones(1.0)), ("w", ones(5.0)), ("v", ones(7.0))]);
    for (data, right) in [("own", 11.0), ("other", 6.0)] {
        place.done(&format!("run sum.onnx --data {data}.npz --outputs y.npz"));
        assert_eq!(place.read_npz("y.npz")[0].1.to_vec::<f32>().unwrap(), [right; 6], "{data}");
    }
    place.done("compile sum.onnx -o fixed.margay --fix w=4");
    place.done("run fixed.margay --inputs own.npz --outputs y.npz");
    assert_eq!(place.read_npz("y.npz")[0].1.to_vec::<f32>().unwrap(), [5.0; 6]);
}

#[test]
fn a_number_that_is_fixed_says_which_branch_is_taken() {
    let place = Place::new();
    let value = |name: &str, dtype, dims: &[i64]| OnnxValue {
        name: name.into(),
        dtype: Some(dtype),
        narrow: None,
        dims: Some(dims.iter().map(|d| OnnxDim::Value(*d)).collect()),
    };
    let unknown = |name: &str| OnnxValue { dims: None, dtype: None, ..value(name, DType::F32, &[]) };
    let branch = |op: &str, out: &str| {
        let nodes = vec![node(op, op, &["x"], out)];
        let graph = OnnxGraph { name: op.into(), outputs: vec![unknown(out)], nodes, ..OnnxGraph::default() };
        Attribute::Graph(Box::new(graph))
    };
    let mut choice = node("choice", "If", &["fast"], "y");
    choice.attributes.insert("then_branch".into(), branch("Neg", "a"));
    choice.attributes.insert("else_branch".into(), branch("Shape", "b"));
    let graph = OnnxGraph {
        name: "rates".into(),
        inputs: vec![value("x", DType::F32, &[2]), value("rate", DType::I64, &[])],
        outputs: vec![unknown("y")],
        initializers: vec![("known".into(), Tensor::scalar(16000i64))],
        nodes: vec![node("test", "Equal", &["rate", "known"], "fast"), choice],
        ..OnnxGraph::default()
    };
    margay_onnx::Model::new(17, graph).write(&place.path("rates.onnx"), External::Never).unwrap();
    let refused = place.run("export rates.onnx -o out.onnx");
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("say which by `--fix rate=NUMBER`"), "{}", refused.stderr);
    place.write_npz("x.npz", &[("x", Tensor::from_slice(&[2], &[1.5f32, -2.0]).unwrap())]);
    for rate in [16000, 8000] {
        let checked = place.done(&format!("check rates.onnx --fix rate={rate}")).stdout;
        assert!(checked.contains("The model can be compiled."), "{checked}");
        place.done(&format!("export rates.onnx -o out.onnx --fix rate={rate}"));
        place.done("run out.onnx --inputs x.npz --outputs y.npz");
        let found = &place.read_npz("y.npz")[0].1;
        match rate {
            16000 => assert_eq!(found.to_vec::<f32>().unwrap(), [-1.5, 2.0]),
            _ => assert_eq!(found.to_vec::<i64>().unwrap(), [2]),
        }
    }
}

#[test]
fn failures_are_json_where_json_is_asked_for() {
    let place = Place::new();
    fs::write(place.path("bad.onnx"), b"no model").unwrap();
    fs::write(place.path("bad.toml"), b"no plan").unwrap();
    for (command, kind, code) in [
        ("inspect bad.onnx --json", "malformed", 3),
        ("inspect missing.onnx --json", "malformed", 3),
        ("compile model.onnx -o a.margay --plan bad.toml --json", "malformed", 3),
        ("bench model.onnx --inputs in.npz --json --rounds 0", "usage", 2),
        ("compile model.onnx -o a.margay --calibrate samples.npz --budget-ms 1e-9 --json", "check", 1),
    ] {
        let ran = place.run(command);
        let error = &json(&ran.stdout)["error"];
        assert_eq!((error["kind"].as_str(), ran.code), (Some(kind), code), "{command}: {}", ran.stdout);
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{command}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_behind_stdout_is_told() {
    let place = Place::new();
    place.done("compile model.onnx -o a.margay");
    let label = Tensor::zeros(DType::I64, &[16]).unwrap();
    place.write_npz("labelled.npz", &[("image", images(16, 2)), ("label", label)]);
    for command in [
        "--help",
        "inspect model.onnx",
        "inspect a.margay --json",
        "check model.onnx",
        "explain model.onnx",
        "compile model.onnx -o b.margay",
        "bench model.onnx --data in.npz --rounds 1",
        "compare model.onnx a.margay --data in.npz",
        "evaluate model.onnx --data labelled.npz --labels label",
        "sensitivity model.onnx --data samples.npz --probes 1",
        "pareto model.onnx --data samples.npz --points 2",
        "train model.onnx --data labelled.npz --labels label --batch 8 --steps 1 --export t.onnx",
    ] {
        let ran = place.shell(&format!("margay {command} >/dev/full"));
        assert_eq!(ran.code, 2, "{command}");
        assert!(ran.stderr.contains("error: cannot write to stdout"), "{command}: {}", ran.stderr);
    }
}

fn normal(shape: &[usize], stream: u64) -> Tensor {
    let mut data = vec![0f32; shape.iter().product()];
    Philox::new(5, stream).fill_normal_f32(0, &mut data);
    Tensor::from_slice(shape, &data).unwrap()
}

/// A classifier with a scale without axes and a table beside its samples, of which -1 in `batch` leaves the number open.
fn write_shared(place: &Place, name: &str, batch: i64, table: &[i64]) {
    let graph = OnnxGraph {
        name: "shared".into(),
        nodes: vec![
            node("scaled", "Mul", &["x", "scale"], "a"),
            node("row", "ReduceMean", &["table"], "m"),
            node("moved", "Add", &["a", "m"], "b"),
            node("fc1", "MatMul", &["b", "w1"], "c"),
            node("relu", "Relu", &["c"], "d"),
            node("fc2", "MatMul", &["d", "w2"], "y"),
        ],
        initializers: vec![("w1".into(), normal(&[16, 24], 1)), ("w2".into(), normal(&[24, 4], 2))],
        inputs: vec![value("x", &[batch, 16]), value("scale", &[]), value("table", table)],
        outputs: vec![value("y", &[batch, 4])],
        ..OnnxGraph::default()
    };
    Model::new(17, graph).write(&place.path(name), External::Never).unwrap();
}

/// Inputs that all samples share are given once, whatever works on samples.
#[test]
fn what_samples_share_is_given_once() {
    let place = Place::new();
    write_shared(&place, "open.onnx", -1, &[5, 16]);
    write_shared(&place, "one.onnx", 1, &[5, 16]);
    write_shared(&place, "alike.onnx", -1, &[-2, 16]);
    let rows = 64;
    let labels: Vec<i64> = (0..rows).map(|i| (i * 7 % 4) as i64).collect();
    let labels = Tensor::from_slice(&[rows], &labels).unwrap();
    let scale = || Tensor::scalar(0.5f32);
    let (x, table) = (normal(&[rows, 16], 3), normal(&[5, 16], 4));
    place.write_npz("d.npz", &[("label", labels), ("x", x), ("scale", scale()), ("table", table)]);
    for model in ["open", "one"] {
        place.done(&format!(
            "compile {model}.onnx -o s.margay --data d.npz --budget-bytes 60% --export s.onnx"
        ));
        for sketch in ["s.margay", "s.onnx"] {
            place.done(&format!("compare {model}.onnx {sketch} --data d.npz --max-error 0.99"));
            place.done(&format!("evaluate {model}.onnx {sketch} --data d.npz --labels label"));
            let words = "--layers-only --export r.onnx";
            place.done(&format!("recover {sketch} --teacher {model}.onnx --data d.npz {words}"));
        }
        place.done(&format!("sensitivity {model}.onnx --data d.npz"));
        place.done(&format!("pareto {model}.onnx --data d.npz --points 2"));
        let words = "--labels label --export t.onnx --steps 3 --learning-rate 0.01";
        place.done(&format!("train {model}.onnx --data d.npz {words}"));
    }
    // Two measures of the same model, in runs of one sample and of many.
    let words = "--data d.npz --labels label --metric loss --json";
    let measured = json(&place.done(&format!("evaluate open.onnx one.onnx {words}")).stdout);
    let of = |at: usize| measured["models"][at]["value"].as_f64().unwrap();
    assert!((of(0) - of(1)).abs() < 1e-5, "{measured}");

    // What the model leaves open may be rows: that somebody has to say.
    let refused = place.run("sensitivity alike.onnx --data d.npz");
    assert!(refused.code == 2 && refused.stderr.contains("is named by `--shared`"), "{}", refused.stderr);
    place.done("sensitivity alike.onnx --data d.npz --shared table");
    place.done("compile alike.onnx -o a.margay --data d.npz --shared table --budget-bytes 60%");
    place.done("evaluate alike.onnx --data d.npz --shared table --labels label");
    let refused = place.run("sensitivity open.onnx --data d.npz --shared tables");
    assert!(refused.code == 2 && refused.stderr.contains("no input `tables`"), "{}", refused.stderr);
    // A row for each sample is not what the model takes.
    place.write_npz(
        "rows.npz",
        &[("x", normal(&[8, 16], 3)), ("scale", scale()), ("table", normal(&[8, 16], 4))],
    );
    let refused = place.run("sensitivity open.onnx --data rows.npz");
    assert!(refused.stderr.contains("axis 0 is 8, expected 5; it is given once"), "{}", refused.stderr);
}
