//! Goals that change nothing, and files of which some cannot be written.

use margay_tensor::{DType, Tensor};

use crate::place::{Place, images, node, write_model_of};

/// What a goal did not do, and what a limit does not say, is told.
#[test]
fn goals_that_change_nothing_are_told() {
    let place = Place::new();
    place.write_npz("data.npz", &[("image", images(48, 5))]);
    write_model_of(&place.path("relu.onnx"), &[-1, 8], vec![node("last", "Relu", &["x"], "y")], vec![]);
    place.write_npz("x.npz", &[("x", Tensor::zeros(DType::F32, &[48, 8]).unwrap())]);
    for (words, said) in [
        ("model.onnx --data data.npz --budget-flops 100%", "the goal is met without any sketch"),
        ("relu.onnx --data x.npz --max-error 0.1", "the model has no layer that could be sketched"),
        ("relu.onnx --data x.npz --budget-bytes 50%", "the model has no layer that could be sketched"),
    ] {
        let ran = place.run(&format!("compile {words} -o o.margay --target-cpu portable"));
        assert!(ran.stderr.contains(said), "{words}: {}", ran.stderr);
    }
}

/// A file that cannot be written is no reason to lose the others.
#[test]
#[cfg(target_os = "linux")]
fn what_can_be_written_is_written() {
    let place = Place::new();
    let ran = place.shell(
        "trap '' XFSZ; ulimit -f 64; margay compile model.onnx -o o.margay --data samples.npz --budget-bytes 50% \\
         --target-cpu portable --export e.onnx --report r.json --save-plan p.toml",
    );
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("cannot write `o.margay`"), "{}", ran.stderr);
    let files = place.files();
    assert!(["p.toml", "r.json"].iter().all(|name| files.contains(&(*name).to_owned())), "{files:?}");
}
