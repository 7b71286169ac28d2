//! `margay differentiate`, `margay sensitivity`, and plans that ask for sketches to be trained.

use std::fs;

use margay_tensor::Tensor;

use crate::place::{Place, json, keys};

#[test]
fn derivatives_are_further_outputs_of_a_model() {
    let place = Place::new();
    let ran = place.done("differentiate model.onnx -o d.onnx --by image,fc2.weight");
    assert!(ran.stderr.contains("values are kept for the backward pass"), "{}", ran.stderr);
    let cotangent = Tensor::from_slice(&[2, 10], &[0.5f32; 20]).unwrap();
    place.write_npz("d.npz", &[("image", crate::images(2, 1)), ("cotangent", cotangent)]);
    place.done("run d.onnx --inputs d.npz --outputs y.npz");
    let outputs = place.read_npz("y.npz");
    let shapes: Vec<(&str, &[usize])> = outputs.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
    assert_eq!(
        shapes,
        [("logits", &[2, 10][..]), ("gradient.image", &[2, 1, 28, 28]), ("gradient.fc2.weight", &[64, 10])]
    );
    let nonzero = outputs[1].1.to_vec::<f32>().unwrap().iter().filter(|v| **v != 0.0).count();
    assert!(nonzero > 100, "{nonzero}");

    // All weights, without being asked for by name.
    place.done("differentiate model.onnx -o all.onnx");
    let report = json(&place.done("inspect all.onnx --json").stdout);
    let outputs = report["outputs"].as_array().unwrap();
    assert_eq!(outputs.len(), 11, "{outputs:?}");

    let refused = place.run("differentiate model.onnx -o no.onnx --by fc3.weight");
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("the model has no input or constant `fc3.weight`"), "{}", refused.stderr);
    assert!(!place.path("no.onnx").exists());
    assert_eq!(place.run("differentiate model.onnx -o model.onnx").code, 2);
}

#[test]
fn sensitivity_tells_of_every_layer() {
    let place = Place::new();
    let report = json(&place.done("sensitivity model.onnx --data samples.npz --probes 2 --json").stdout);
    assert_eq!(keys(&report), ["model", "modules", "probes", "relative_error", "samples", "warnings"]);
    assert_eq!((report["samples"].as_u64(), report["probes"].as_u64()), (Some(16), Some(2)));
    let modules = report["modules"].as_array().unwrap();
    let names: Vec<_> = modules.iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["conv1", "conv2", "conv3", "fc1", "fc2"]);
    for m in modules {
        let error = m["output_error"].as_f64().unwrap();
        assert!(error > 1e-4 && error < 0.1, "{m}");
    }
    let text = place.done("sensitivity model.onnx --data samples.npz --probes 1").stdout;
    assert!(text.starts_with("layer  kind"), "{text}");
    assert!(text.contains("16 samples with 1 random cotangents"), "{text}");
    assert_eq!(place.run("sensitivity model.onnx --data missing.npz").code, 3);
}

#[test]
fn a_plan_may_ask_for_random_signs() {
    let place = Place::new();
    place.done("compile model.onnx -o s.margay --budget-bytes 60% --save-plan plan.toml");
    let plan = String::from_utf8(place.bytes("plan.toml")).unwrap();
    let (head, _) = plan.split_once("[modules]").unwrap();
    let with = |name: &str, choices: &str| {
        fs::write(place.path(name), format!("{head}[modules]\n{choices}\n")).unwrap();
    };
    with(
        "signs.toml",
        "conv3 = { scheme = \"panther\", rank = 6, terms = 2, seed = 3 }\nfc1 = { scheme = \"panther\", rank = 15 }",
    );
    let command = "compile model.onnx --plan signs.toml --calibrate samples.npz --json";
    let report = json(&place.done(&format!("{command} -o p.margay --export p.onnx")).stdout);
    let fc1 = &report["modules"][3];
    // Panels of 32 columns; of the right factors, the half that is drawn takes no bytes.
    assert_eq!((&fc1["scheme"], fc1["rank"].as_u64()), (&"panther".into(), Some(15)));
    assert_eq!(fc1["bytes_after"].as_u64(), Some((3136 * 32 + 15 * 64) * 4));
    let error = report["held_out"]["relative_l2"].as_f64().unwrap();
    assert!(error > 0.01 && error < 1.0, "{error}");
    // The artifact carries its signs by name alone, and gives its graph back.
    place.done("export p.margay -o again.onnx");
    assert!(place.bytes("p.onnx") == place.bytes("again.onnx"));
    place.done("run p.margay --inputs in.npz --outputs a.npz");
    place.done("run p.onnx --inputs in.npz --outputs b.npz");
    crate::close(&place.read_npz("b.npz")[0].1, &place.read_npz("a.npz")[0].1);

    // As a start for training, the copy without bias is worse than nothing.
    with("copy.toml", "fc1 = { scheme = \"panther\", rank = 15, copy = \"unbiased\" }");
    let report = place.done("compile model.onnx --plan copy.toml --calibrate samples.npz --json -o c.margay");
    assert!(json(&report.stdout)["held_out"]["relative_l2"].as_f64() > Some(error));

    for (choice, why) in [
        ("{ scheme = \"panther\", rank = 16, terms = 2 }", "rank 16 is not offered, expected 1 to 15"),
        ("{ scheme = \"lowrank\", rank = 4, terms = 2 }", "unknown field `terms`, expected `rank`"),
    ] {
        with("wrong.toml", &format!("fc1 = {choice}"));
        let refused = place.run("compile model.onnx --plan wrong.toml -o w.margay");
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
}
