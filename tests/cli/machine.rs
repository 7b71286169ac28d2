//! `margay measure-machine`, and predictions by what it wrote.

use crate::place::{Place, images, json};

#[test]
fn rates_are_measured_and_used() {
    let place = Place::new();
    let words = "measure-machine -o rates.toml --target-cpu portable --seconds 0.01 --json";
    let machine = json(&place.done(words).stdout);
    let name = machine["name"].as_str().unwrap();
    assert!(name.starts_with("measured/portable/"), "{machine}");
    for rate in machine["rates"].as_array().unwrap() {
        let of = |key: &str| rate[key].as_f64().unwrap();
        assert!(of("ms") > 0.0 && of("measured") > 0.0, "{rate}");
    }
    let packed = machine["rates"].as_array().unwrap().iter().find(|r| r["key"] == "gflops.matmul-packed");
    let of = |key: &str| packed.unwrap()[key].as_f64().unwrap();
    // Times of so short runs vary while other tests run.
    assert!((of("predicted_ms") / of("ms") - 1.0).abs() < 0.3, "{machine}");

    place.write_npz("data.npz", &[("image", images(32, 5))]);
    let compile =
        "compile model.onnx -o o.margay --data data.npz --budget-flops 50% --target-cpu portable --json";
    let dense = json(&place.done(compile).stdout);
    let report = json(&place.done(&format!("{compile} --cost-model rates.toml --save-plan p.toml")).stdout);
    assert_eq!(report["cost_model"], name);
    assert_ne!(report["predicted_ms_before"], dense["predicted_ms_before"]);
    assert!(String::from_utf8(place.bytes("p.toml")).unwrap().contains(name));

    // `bench` predicts by the same rates when it is given them, and says so when it is not.
    let bench = "bench o.margay --data data.npz --rounds 1 --threads 1 --json";
    let (by_class, by_rates) = (place.done(bench), place.done(&format!("{bench} --cost-model rates.toml")));
    let predicted = |text: &str| json(text)["models"][0]["predicted_ms"].as_f64().unwrap();
    assert_ne!(predicted(&by_class.stdout), predicted(&by_rates.stdout));
    assert!(by_class.stderr.contains(&format!("with times by `{name}`")), "{}", by_class.stderr);
    assert!(!by_rates.stderr.contains("times by"), "{}", by_rates.stderr);

    let text = String::from_utf8(place.bytes("rates.toml")).unwrap();
    std::fs::write(place.path("slow.toml"), text.replace("conv = ", "conv = -")).unwrap();
    std::fs::write(place.path("other.toml"), text.replace("conv = ", "convolution = ")).unwrap();
    for (file, message) in [
        ("slow.toml", "`gflops.conv` is out of range"),
        ("other.toml", "unknown field `convolution`"),
        ("missing.toml", "cannot read `missing.toml`"),
    ] {
        let ran = place.run(&format!("{compile} --cost-model {file}"));
        assert!(ran.code >= 2 && ran.stderr.contains(message), "{file}: {}", ran.stderr);
    }
    let ran = place.run("measure-machine -o rates.toml --target-cpu pdp-11");
    assert!(ran.code == 2 && ran.stderr.contains("pdp-11"), "{}", ran.stderr);
}
