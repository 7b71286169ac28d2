//! `margay pareto`: many budgets from one fit, with plans that compile to what was measured.

use margay_tensor::{DType, Tensor};

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
    let reached = &most["held_out"]["quantile"];
    assert!(of(reached, "level") == 0.95 && of(reached, "relative_l2") <= 0.2, "{most}");
    assert!(
        of(reached, "relative_l2") > of(&most["held_out"], "relative_l2")
            && mean["held_out"]["quantile"].is_null()
    );
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

/// The metric of the user decides: here the agreement of the greatest logit with that of the dense model, measured by
/// the program itself.
#[cfg(unix)]
#[test]
fn a_command_of_the_user_may_be_the_limit() {
    let place = Place::new();
    let labels = Tensor::zeros(DType::I64, &[60]).unwrap();
    place.write_npz("data.npz", &[("image", images(60, 5)), ("label", labels)]);
    let script = "PATH=$PATH:/usr/bin:/bin\nmargay evaluate model.onnx \"$1\" --data data.npz --labels label --metric accuracy --json \\\n\
                  | grep -o '\"agreement\": [0-9.]*' | tail -n 1 | cut -d' ' -f2\n";
    std::fs::write(place.path("agree.sh"), script).unwrap();
    let compile = |drop: &str| {
        let words = "margay compile model.onnx -o o.margay --data data.npz --target-cpu portable --json";
        place.shell(&format!("{words} --max-drop {drop} --metric '/bin/sh agree.sh {{}}'"))
    };
    let ran = compile("0.1");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report = json(&ran.stdout);
    let of = |key: &str| report["metric"][key].as_f64().unwrap();
    assert_eq!((of("dense"), report["metric"]["name"].as_str()), (1.0, Some("/bin/sh agree.sh {}")));
    assert!((0.9..=1.0).contains(&of("sketched")), "{report}");
    assert!(report["flops_after"].as_u64() < report["flops_before"].as_u64(), "{report}");
    assert_eq!(report["goal"], "the metric at most 0.1 below that of the dense model");

    // Whatever becomes of it, the command is given no model twice: where every sketch falls, the dense one is the answer.
    let log = "PATH=$PATH:/usr/bin:/bin\ncksum < \"$1\" >> sums\n";
    let is_first = "[ \"$(head -n 1 sums)\" = \"$(tail -n 1 sums)\" ] && echo 1 || echo 0\n";
    for (last, drop, sketched) in [(is_first, "0", false), ("echo 1\n", "0.5", true)] {
        std::fs::write(place.path("agree.sh"), format!("{log}{last}")).unwrap();
        let ran = compile(drop);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let report = json(&ran.stdout);
        assert_eq!(report["metric"]["sketched"], 1.0, "{report}");
        assert_eq!(report["flops_after"].as_u64() < report["flops_before"].as_u64(), sketched, "{report}");
        let sums = std::fs::read_to_string(place.path("sums")).unwrap();
        std::fs::remove_file(place.path("sums")).unwrap();
        let models: std::collections::BTreeSet<&str> = sums.lines().collect();
        assert!(models.len() > 1 && models.len() == sums.lines().count(), "{sums}");
    }

    std::fs::write(place.path("agree.sh"), "echo no model >&2; exit 3\n").unwrap();
    let ran = compile("0.1");
    assert!(ran.code == 2 && ran.stderr.contains("exit status: 3: no model"), "{}", ran.stderr);
    std::fs::write(place.path("agree.sh"), "echo inf\n").unwrap();
    let ran = compile("0.1");
    assert!(ran.code == 2 && ran.stderr.contains("is inf for the dense model"), "{}", ran.stderr);
    std::fs::write(place.path("agree.sh"), "echo fine\n").unwrap();
    let ran = compile("0.1");
    assert!(ran.stderr.contains("expected a number in the last line that it prints, found `fine`"));
}

#[test]
fn numbers_below_zero_are_wrong_values_and_not_unknown_options() {
    let place = Place::new();
    let compile = "compile model.onnx -o o.margay --data samples.npz";
    for (command, option, expected) in [
        (compile, "--max-drop -1 --metric true", "for '--max-drop <D>': expected a number of at least 0"),
        (compile, "--max-error -0.1", "for '--max-error <E[@P%]>': expected a number above 0"),
        (compile, "--budget-ms -4", "invalid value '-4' for '--budget-ms"),
        (compile, "--threads -1", "invalid value '-1' for '--threads"),
        (compile, "--seed -1", "invalid value '-1' for '--seed"),
        (compile, "--max-drop 0.1 --metric=", "for '--metric <COMMAND>': expected a command"),
        ("pareto model.onnx --data samples.npz", "--points -3", "invalid value '-3' for '--points <N>'"),
        ("train model.onnx --data samples.npz", "--learning-rate -0.1", "invalid value '-0.1' for"),
        ("bench model.onnx", "--rounds -2", "invalid value '-2' for '--rounds"),
    ] {
        let ran = place.run(&format!("{command} {option}"));
        assert!(ran.code == 2 && ran.stderr.contains(expected), "{option}: {}", ran.stderr);
    }
}
