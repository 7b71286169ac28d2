//! Goals that change nothing, limits that are used up, samples that no goal is measured on, what exported files say, and files of
//! which some cannot be written.

use margay_onnx::Model;
use margay_tensor::{DType, Tensor};

use crate::place::{Place, images, json, node, write_model_of};

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

/// Of the refitted choices along a front, none that is much faster leaves room below the limit.
#[test]
fn a_limit_is_used_up_by_what_is_refitted() {
    let place = Place::new();
    place.write_npz("data.npz", &[("image", images(160, 5))]);
    let words = "--data data.npz --target-cpu portable --dim batch=16";
    let front = json(
        &place.done(&format!("pareto model.onnx --by seconds --points 12 --refit --json {words}")).stdout,
    );
    for limit in [0.05, 0.1, 0.15] {
        let compile = format!("compile model.onnx -o o.margay --max-error {limit} --json {words}");
        let report = json(&place.done(&compile).stdout);
        let found = report["predicted_ms_after"].as_f64().unwrap();
        assert!(report["held_out"]["relative_l2"].as_f64().unwrap() <= limit, "{report}");
        for point in front["points"].as_array().unwrap() {
            let error = point["held_out"]["relative_l2"].as_f64().unwrap();
            let faster = point["predicted_ms"].as_f64().unwrap() < 0.93 * found;
            assert!(error > 0.95 * limit || !faster, "{limit}: {found} ms, and {point}");
        }
    }
}

/// Samples that would decide all that is measured are refused, or told, with the row.
#[test]
fn numbers_that_stand_far_out_are_told() {
    let place = Place::new();
    let with = |value: f32| {
        let mut numbers = images(48, 5).to_vec::<f32>().unwrap();
        numbers[7 * 784 + 30] = value;
        place.write_npz("data.npz", &[("image", Tensor::from_slice(&[48, 1, 28, 28], &numbers).unwrap())]);
        place.run("compile model.onnx -o o.margay --data data.npz --budget-flops 50% --target-cpu portable")
    };
    let place_of = "in row 7, at [7, 0, 1, 2]";
    for (value, said) in [(1e30, "is 1e30"), (f32::INFINITY, "is inf"), (f32::NAN, "is NaN")] {
        let ran = with(value);
        let said = format!("`image` {said} {place_of}");
        assert!(ran.code == 2 && ran.stderr.contains(&said), "{value}: {}", ran.stderr);
    }
    let ran = with(1e6);
    let said =
        format!("`image` is 1e6 {place_of}, 1e6 times as large as the largest numbers of most samples");
    assert!(ran.code == 0 && ran.stderr.contains(&said), "{}", ran.stderr);
}

/// What is known of the error goes with the exported file.
#[test]
fn exported_files_say_what_their_error_is() {
    let place = Place::new();
    place.write_npz("data.npz", &[("image", images(160, 5))]);
    let exported = |goal: &str| {
        let words = "compile model.onnx --export e.onnx --data data.npz --target-cpu portable --json";
        let report = json(&place.done(&format!("{words} {goal}")).stdout);
        (report, Model::open(&place.path("e.onnx")).unwrap().metadata)
    };
    let (report, notes) = exported("--budget-flops 50%");
    let held_out = &report["held_out"];
    assert_eq!(notes["margay.held_out_relative_l2"].parse::<f64>().unwrap(), held_out["relative_l2"]);
    assert_eq!((&*notes["margay.held_out_samples"], &*notes["margay.precision"]), ("40", "f32"));
    let bounds = held_out["bounds"].as_array().unwrap();
    let told: Vec<&str> = notes["margay.bounds_relative_l2"].split(", ").collect();
    assert!(bounds.len() == 2 && told.len() == 2, "{report}");
    for ((bound, told), level) in bounds.iter().zip(told).zip(["90%", "95%"]) {
        let (told_level, number) = told.split_once(": ").unwrap();
        assert_eq!(
            (told_level, number.parse::<f64>().unwrap()),
            (level, bound["relative_l2"].as_f64().unwrap())
        );
    }
    // The samples held out decided: they bound nothing.
    let (_, notes) = exported("--max-error 0.2@90%");
    assert!(!notes.contains_key("margay.bounds_relative_l2"), "{notes:?}");
    let reached = notes["margay.quantile_relative_l2"].strip_prefix("90%: ").unwrap();
    assert!(reached.parse::<f64>().unwrap() <= 0.2);
}
