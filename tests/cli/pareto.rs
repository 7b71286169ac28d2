//! `margay pareto`: many budgets from one fit, with plans that compile to what was measured.

use crate::place::{Place, images, json};

fn place() -> Place {
    let place = Place::new();
    place.write_npz("data.npz", &[("image", images(48, 5))]);
    place
}

#[test]
fn points_are_what_their_plans_compile_to() {
    let place = place();
    let words = "--data data.npz --target-cpu portable --threads 1";
    let asked = "pareto model.onnx --by flops --points 3 --refit --plans plans --svg front.svg --json";
    let front = json(&place.done(&format!("{asked} {words}")).stdout);
    assert_eq!((&front["resource"], &front["refitted"]), (&"flops".into(), &true.into()));
    let points = front["points"].as_array().unwrap();
    assert!(points.len() >= 2, "{front}");
    let mut before = (front["dense"]["flops"].as_u64().unwrap(), 0.0);
    for (i, point) in points.iter().enumerate() {
        let here = (point["flops"].as_u64().unwrap(), point["predicted_error"].as_f64().unwrap());
        assert!(here.0 < before.0 && here.1 > before.1, "{front}");
        before = here;
        let plan = format!("compile model.onnx -o p.margay --plan plans/point{:02}.toml --json", i + 1);
        let report = json(&place.done(&format!("{plan} {words}")).stdout);
        assert_eq!(report["flops_after"], point["flops"]);
        assert_eq!(report["bytes_after"], point["bytes"]);
        assert_eq!(report["held_out"]["relative_l2"], point["held_out"]["relative_l2"]);
    }
    let drawn = String::from_utf8(place.bytes("front.svg")).unwrap();
    // One in the legend, too.
    assert_eq!(drawn.matches("<circle").count(), points.len() + 1);
    assert!(drawn.contains("operations, % of the dense model"), "{drawn}");
}

/// The limit of a share of the samples is stricter than that of all together, and holds for them.
#[test]
fn a_limit_may_be_for_a_share_of_the_samples() {
    let place = Place::new();
    place.write_npz("data.npz", &[("image", images(120, 5))]);
    let compile = |limit: &str| {
        let words = "compile model.onnx -o o.margay --data data.npz --target-cpu portable --json";
        json(&place.done(&format!("{words} --max-error {limit}")).stdout)
    };
    let (mean, most) = (compile("0.2"), compile("0.2@95%"));
    assert_eq!(most["goal"], "relative error of the outputs at most 0.2 for 95% of the samples");
    let of = |report: &serde_json::Value, key: &str| report[key].as_f64().unwrap();
    assert!(of(&most, "predicted_ms_after") >= of(&mean, "predicted_ms_after"));
    assert!(of(&most["held_out"], "relative_l2") <= of(&mean["held_out"], "relative_l2"));
    assert!(of(&most["held_out"], "relative_l2") > 0.0, "{most}");
    let words = "compile model.onnx -o o.margay --data data.npz --target-cpu portable";
    for (limit, message) in [
        ("0.2@99%", "expected at least 99 held out, each with outputs of its own, found 30"),
        ("0.2@100%", "expected a share of samples from 50% to below 100%"),
        ("0.2@5", "expected a share of samples"),
        ("-1", "expected a number above 0"),
    ] {
        let ran = place.run(&format!("{words} --max-error={limit}"));
        assert!(ran.code == 2 && ran.stderr.contains(message), "{limit}: {}", ran.stderr);
    }
}

#[test]
fn every_resource_is_saved_and_wrong_words_are_refused() {
    let place = place();
    let words = "--data data.npz --target-cpu portable";
    for (by, unit) in [("bytes", "bytes"), ("seconds", "predicted_ms")] {
        let front =
            json(&place.done(&format!("pareto model.onnx --by {by} --points 4 --json {words}")).stdout);
        let of = |object: &serde_json::Value| object[unit].as_f64().unwrap();
        let points = front["points"].as_array().unwrap();
        assert!(!points.is_empty() && points.iter().all(|p| of(p) < of(&front["dense"])), "{front}");
        let last = points.last().unwrap();
        assert_eq!(last["dominated"], false, "what takes least is beaten by nothing: {front}");
    }
    let text = place.done(&format!("pareto model.onnx --points 2 {words}")).stdout;
    assert!(text.contains("before the refit of `compile`"), "{text}");
    place.done("compile model.onnx -o s.margay");
    for (command, message) in [
        ("pareto s.margay", "`s.margay` is an artifact, expected an ONNX file"),
        ("pareto model.onnx --by joules", "expected one of bytes, flops, seconds"),
        ("pareto model.onnx --plans model.onnx", "cannot make the folder `model.onnx`"),
        ("pareto model.onnx --svg missing/f.svg", "missing"),
    ] {
        let ran = place.run(&format!("{command} {words}"));
        assert!(ran.code == 2 && ran.stderr.contains(message), "{command}: {}", ran.stderr);
    }
}
