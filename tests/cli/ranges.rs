//! Artifacts for a range of extents, as the program compiles, shows and runs them.

use std::fs;

use margay_onnx::{Attribute, External, Model, OnnxDim, OnnxGraph, OnnxNode, OnnxValue};
use margay_tensor::{DType, Tensor, random::Philox};

use crate::place::{Place, images, json, node};

#[test]
fn an_artifact_for_a_range_takes_every_extent_in_it() {
    let place = Place::new();
    place.write_npz("four.npz", &[("image", images(4, 1))]);
    place.done("compile model.onnx -o range.margay --dim batch=4..6");
    place.done("compile model.onnx -o four.margay --dim batch=4");
    for (model, outputs) in [("range", "a.npz"), ("four", "b.npz")] {
        place.done(&format!("run {model}.margay --inputs four.npz --outputs {outputs}"));
    }
    assert_eq!(place.read_npz("a.npz"), place.read_npz("b.npz"));

    let shown = place.done("inspect range.margay").stdout;
    assert!(shown.contains("batch = 4..6") && shown.contains("image: f32[batch, 1, 28, 28]"), "{shown}");
    let entries = json(&place.done("inspect range.margay --json").stdout)["entries"].take();
    let ranges: Vec<String> = entries.as_array().unwrap().iter().map(|e| e["ranges"].to_string()).collect();
    assert!(ranges.contains(&r#"[{"batch":[4,6]}]"#.to_owned()), "{ranges:?}");

    // Seven are fed as six and one, and compared with the model itself.
    place.write_npz("seven.npz", &[("image", images(7, 3))]);
    let ran = place.done("run range.margay --inputs seven.npz --outputs seven_out.npz");
    assert_eq!(place.read_npz("seven_out.npz")[0].1.shape()[0], 7, "{}", ran.stderr);
    place.done("compare model.onnx range.margay --inputs seven.npz");
    place.done("bench model.onnx range.margay --inputs four.npz --rounds 5 --steps --threads 1");

    // Random inputs have the extent that is said, or the greatest.
    for (words, batch) in [("--dim batch=5", 5), ("", 6)] {
        place.done(&format!("run range.margay {words} --outputs out.npz"));
        assert_eq!(place.read_npz("out.npz")[0].1.shape(), [batch, 10]);
    }
    assert_eq!(place.run("run range.margay --dim batch=7 --outputs out.npz").code, 2);
    fs::remove_file(place.path("out.npz")).unwrap();

    place.write_npz(
        "wide.npz",
        &[("image", margay_tensor::Tensor::zeros(margay_tensor::DType::F32, &[4, 1, 28, 30]).unwrap())],
    );
    let wide = place.run("run range.margay --inputs wide.npz --outputs out.npz");
    assert_eq!(wide.code, 2);
    assert!(
        wide.stderr.contains("expected f32[batch, 1, 28, 28]: axis 3 is 30, expected 28"),
        "{}",
        wide.stderr
    );
    for (words, expected) in [
        ("batch=3..2", "the range 3..2 is empty: it ends before it begins"),
        ("batch=-1..2", "`-1` is not an extent, expected a whole number of at least 0"),
        ("batch=1..x", "`x` is not an extent, expected a whole number of at least 0"),
    ] {
        let refused = place.run(&format!("compile model.onnx -o x.margay --dim {words}"));
        assert_eq!(refused.code, 2);
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    }
}

/// A step of attention over the keys of earlier steps and its own.
fn write_step(path: &std::path::Path) {
    let with = |node: OnnxNode, name: &str, value: Attribute| OnnxNode {
        attributes: [(name.to_owned(), value)].into(),
        ..node
    };
    let value = |name: &str, dims: &[&str]| OnnxValue {
        name: name.to_owned(),
        dtype: Some(DType::F32),
        narrow: None,
        dims: Some(
            dims.iter().map(|d| d.parse().map_or(OnnxDim::Symbol((*d).to_owned()), OnnxDim::Value)).collect(),
        ),
    };
    let nodes = vec![
        node("key", "MatMul", &["x", "w"], "key"),
        with(node("keys", "Concat", &["past", "key"], "keys"), "axis", Attribute::Int(1)),
        with(node("turned", "Transpose", &["keys"], "turned"), "perm", Attribute::Ints(vec![0, 2, 1])),
        node("scores", "MatMul", &["x", "turned"], "scores"),
        with(node("weights", "Softmax", &["scores"], "weights"), "axis", Attribute::Int(2)),
        node("y", "MatMul", &["weights", "keys"], "y"),
    ];
    let graph = OnnxGraph {
        name: "step".to_owned(),
        nodes,
        initializers: vec![("w".to_owned(), numbers(&[4, 4], 0))],
        inputs: vec![value("x", &["B", "S", "4"]), value("past", &["B", "past", "4"])],
        outputs: vec![value("y", &["B", "S", "4"]), value("keys", &["B", "all", "4"])],
        ..OnnxGraph::default()
    };
    Model::new(17, graph).write(path, External::Auto).unwrap();
}

fn numbers(shape: &[usize], stream: u64) -> Tensor {
    let mut values = vec![0f32; shape.iter().product()];
    Philox::new(5, stream).fill_uniform_f32(0, &mut values);
    Tensor::from_slice(shape, &values).unwrap()
}

#[test]
fn keys_of_earlier_steps_may_be_none() {
    let place = Place::new();
    write_step(&place.path("step.onnx"));
    let one = "--dim B=1 --dim S=1";
    place.done(&format!("compile step.onnx -o range.margay --dim past=0..5 {one} --export again.onnx"));
    place.done(&format!("compile step.onnx -o none.margay --dim past=0 {one}"));
    place.done(&format!("compile step.onnx -o two.margay --dim past=0,3 {one}"));
    for (past, models) in [
        (0, &["range.margay", "none.margay", "two.margay", "again.onnx"][..]),
        (3, &["range.margay", "two.margay", "again.onnx"]),
        (5, &["range.margay", "again.onnx"]),
    ] {
        let (x, keys) = (numbers(&[1, 1, 4], 1), numbers(&[1, past, 4], 2));
        place.write_npz("in.npz", &[("x", x), ("past", keys.clone())]);
        place.done("run step.onnx --inputs in.npz --outputs expected.npz");
        let expected = place.read_npz("expected.npz");
        let all = &expected.iter().find(|(name, _)| name == "keys").unwrap().1;
        assert_eq!(all.shape(), [1, past + 1, 4]);
        assert_eq!(all.bytes()[..keys.bytes().len()], *keys.bytes());
        for model in models {
            place.done(&format!("compare step.onnx {model} --inputs in.npz --rtol 1e-5 --atol 1e-6"));
        }
    }
    place.done(&format!("bench step.onnx none.margay range.margay --dim past=0 {one} --rounds 2"));
    let refused = place.run(&format!("run none.margay --dim past=1 {one} --outputs out.npz"));
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    let checked = place.done("check again.onnx").stdout;
    assert!(checked.contains("past") && !checked.contains("past?"), "{checked}");
    for past in [0, 7] {
        let checked = place.done(&format!("check step.onnx --dim past={past}")).stdout;
        assert!(checked.contains("The model can be compiled."), "{checked}");
        assert!(checked.contains("Give every open dimension a value or a range, `--dim B=1`"), "{checked}");
        let checked = place.done(&format!("check step.onnx --dim past={past} {one}")).stdout;
        assert!(!checked.contains("Give every open dimension"), "{checked}");
    }
    let refused = place.run("check step.onnx --dim future=1");
    assert_eq!(refused.code, 2);
    assert!(
        refused.stderr.contains("the model has no open dimension `future`; open are `"),
        "{}",
        refused.stderr
    );
}
