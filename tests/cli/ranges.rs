//! Artifacts for a range of extents, as the program compiles, shows and runs them.

use std::fs;

use crate::place::{Place, images, json};

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
    let ran = place.done("run range.margay --inputs seven.npz --in-batches --outputs seven_out.npz");
    assert_eq!(place.read_npz("seven_out.npz")[0].1.shape()[0], 7, "{}", ran.stderr);
    place.done("compare model.onnx range.margay --inputs seven.npz --in-batches");
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
        wide.stderr.contains("expected f32[batch, 1, 28, 28], found f32[4, 1, 28, 30]"),
        "{}",
        wide.stderr
    );
    for (words, expected) in [
        ("batch=3..2", "the range 3..2 is empty: it ends before it begins"),
        ("batch=0..2", "`0` is not an extent, expected a whole number of at least 1"),
        ("batch=1..x", "`x` is not an extent, expected a whole number of at least 1"),
    ] {
        let refused = place.run(&format!("compile model.onnx -o x.margay --dim {words}"));
        assert_eq!(refused.code, 2);
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    }
}
