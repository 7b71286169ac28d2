//! The command line: what it prints, where, and with which exit code; that results are right and files whole.
//!
//! Everything runs in a folder of its own that holds the demo model as `model.onnx`. Nothing that depends on the machine
//! or on a clock is part of a snapshot.

use std::fs;

use margay_tensor::{DType, Tensor};
use serde_json::Value;

#[path = "cli/derivatives.rs"]
mod derivatives;
#[path = "cli/given.rs"]
mod given;
#[path = "cli/goals.rs"]
mod goals;
#[path = "cli/interrupt.rs"]
mod interrupt;
#[path = "cli/machine.rs"]
mod machine;
#[path = "cli/opt.rs"]
mod opt;
#[path = "cli/pareto.rs"]
mod pareto;
#[path = "cli/place.rs"]
mod place;
#[path = "cli/ranges.rs"]
mod ranges;
#[path = "cli/recover.rs"]
mod recover;
#[path = "cli/sections.rs"]
mod sections;
#[path = "cli/train.rs"]
mod train;
#[path = "cli/users.rs"]
mod users;
use place::{Place, images, json, keys, node, write_model};

#[test]
fn help() {
    let place = Place::new();
    insta::assert_snapshot!("help", place.done("--help").stdout);
    let commands = [
        "demo",
        "compile",
        "train",
        "recover",
        "run",
        "bench",
        "compare",
        "evaluate",
        "explain",
        "inspect",
        "check",
        "sensitivity",
        "pareto",
        "measure-machine",
        "selftest",
        "export",
        "differentiate",
        "opt",
    ];
    let all: Vec<String> = commands.iter().map(|c| place.done(&format!("{c} --help")).stdout).collect();
    insta::assert_snapshot!("help_of_commands", all.join("\n\n"));
}

#[test]
fn the_demo_model_is_checked_and_inspected() {
    let place = Place::new();
    let text = place.transcript(&[
        "check model.onnx",
        "check model.onnx --json",
        "inspect model.onnx",
        "inspect model.onnx --dim batch=1 --json",
    ]);
    // What kernels read is padded to the tiles of this machine.
    let of_model = |line: &&str| !line.trim_start().starts_with("\"stored_");
    let shown = |line: &str| match line.split_once(" as compiled code stores them") {
        Some((before, after)) => before.rsplit_once("; ").map_or("", |(file, _)| file).to_owned() + after,
        None => line.to_owned(),
    };
    let text: Vec<String> = text.lines().filter(of_model).map(shown).collect();
    insta::assert_snapshot!("demo_model", text.join("\n"));
}

#[test]
fn explain_tells_of_every_layer() {
    let place = Place::new();
    let text = place.transcript(&[
        "explain model.onnx --target-cpu portable",
        "explain model.onnx --budget-bytes 60% --target-cpu portable",
    ]);
    insta::assert_snapshot!("explain", text);
}

#[test]
fn files_that_are_no_models_are_refused() {
    let place = Place::new();
    let write = |name: &str, bytes: &[u8]| fs::write(place.path(name), bytes).unwrap();
    let model = place.bytes("model.onnx");
    write("lfs.onnx", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n");
    write("page.onnx", b"<!DOCTYPE html><html><body>Not Found</body></html>");
    write("zip.onnx", b"PK\x03\x04\x14\x00\x00\x00\x08\x00");
    write("empty.onnx", b"");
    write("short.onnx", &model[..model.len() / 2]);
    write("notes.onnx", b"just some words that are no model");
    let text = place.transcript(&[
        "check missing.onnx",
        "check lfs.onnx",
        "check page.onnx",
        "check zip.onnx",
        "check empty.onnx",
        "check short.onnx",
        "check notes.onnx",
        "compile lfs.onnx -o out.margay",
        "run short.onnx --inputs in.npz --outputs out.npz",
        "inspect page.onnx",
    ]);
    insta::assert_snapshot!("not_a_model", text);
}

#[test]
fn models_that_are_wrong_or_unsupported_are_refused() {
    let place = Place::new();
    let three = |v: [f32; 3]| vec![("w".to_string(), Tensor::from_slice(&[3], &v).unwrap())];
    write_model(
        &place.path("cycle.onnx"),
        vec![
            node("first", "Add", &["x", "b"], "a"),
            node("second", "Relu", &["a"], "b"),
            node("last", "Relu", &["b"], "y"),
        ],
        vec![],
    );
    write_model(&place.path("missing.onnx"), vec![node("sum", "Add", &["x", "w"], "y")], vec![]);
    write_model(
        &place.path("shapes.onnx"),
        vec![node("product", "MatMul", &["x", "w"], "y")],
        vec![("w".into(), Tensor::from_slice(&[2, 3], &[1f32; 6]).unwrap())],
    );
    let unsupported = vec![
        node("decode", "ImageDecoder", &["x"], "a"),
        node("pick", "TfIdfVectorizer", &["a"], "b"),
        node("again", "ImageDecoder", &["b"], "y"),
    ];
    write_model(&place.path("unsupported.onnx"), unsupported, vec![]);
    let sum = || vec![node("sum", "Add", &["x", "w"], "y")];
    write_model(&place.path("nan.onnx"), sum(), three([1.0, f32::NAN, 2.0]));
    write_model(&place.path("infinite.onnx"), sum(), three([0.0, f32::NEG_INFINITY, 0.0]));
    let text = place.transcript(&[
        "compile cycle.onnx -o out.margay",
        "compile missing.onnx -o out.margay",
        "compile shapes.onnx -o out.margay",
        "compile unsupported.onnx -o out.margay",
        "check shapes.onnx",
        "check unsupported.onnx",
        "check nan.onnx",
        "check infinite.onnx",
    ]);
    insta::assert_snapshot!("wrong_models", text);
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let place = Place::new();
    place.done("compile model.onnx -o dense.margay --dim batch=2 --target-cpu portable");
    place.write_npz("name.npz", &[("picture", images(1, 1))]);
    place.write_npz("shape.npz", &[("image", Tensor::zeros(DType::F32, &[2, 1, 28, 27]).unwrap())]);
    place.write_npz("axes.npz", &[("image", Tensor::zeros(DType::F32, &[28, 28]).unwrap())]);
    place.write_npz("dtype.npz", &[("image", Tensor::zeros(DType::F64, &[2, 1, 28, 28]).unwrap())]);
    place.write_npz("extra.npz", &[("image", images(2, 1)), ("mask", images(2, 1))]);
    fs::write(place.path("bad.npz"), b"no archive").unwrap();
    fs::write(place.path("bad.npy"), b"no array").unwrap();
    let mut commands = Vec::new();
    for model in ["model.onnx", "dense.margay"] {
        for inputs in ["name", "shape", "axes", "dtype", "extra"] {
            commands.push(format!("run {model} --inputs {inputs}.npz --outputs out.npz"));
        }
    }
    for inputs in ["missing.npz", "bad.npz", "image=bad.npy", "image.txt", "in.npz --inputs in.npz"] {
        commands.push(format!("run model.onnx --inputs {inputs} --outputs out.npz"));
    }
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    insta::assert_snapshot!("wrong_inputs", place.transcript(&commands));
    // What is no input is left out.
    assert!(place.path("out.npz").exists());
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let place = Place::new();
    place.done("compile model.onnx -o stripped.margay --strip --target-cpu portable");
    place.done("compile model.onnx -o dense.margay --save-plan p.toml --target-cpu portable");
    let plan = String::from_utf8(place.bytes("p.toml")).unwrap();
    let hash = json(&place.done("inspect model.onnx --json").stdout)["hash"].as_str().unwrap().to_string();
    fs::write(place.path("other.toml"), plan.replace(&hash, "0123456789abcdef")).unwrap();
    fs::write(place.path("broken.toml"), plan.replace("version = 1", "version = ")).unwrap();
    let text = place.transcript(&[
        "compile model.onnx -o out.margay --dim length=3",
        "compile model.onnx -o out.margay --dim batch=-1",
        "compile model.onnx -o out.margay --max-error 0.1",
        "compile model.onnx -o out.margay --budget-bytes 1000",
        "compile model.onnx -o out.margay --budget-bytes 10% --budget-ms 1",
        "compile model.onnx -o out.margay --target-cpu abacus",
        "compile model.onnx -o out.margay --plan other.toml",
        "compile model.onnx -o out.margay --plan broken.toml",
        "compile model.onnx -o out.margay --calibrate missing.npz --max-error 0.1",
        "compile model.onnx -o nowhere/out.margay",
        "compile model.onnx -o out.margay --report .",
        "export stripped.margay -o out.onnx",
        "explain stripped.margay",
        "explain dense.margay --budget-bytes 50%",
        "inspect dense.margay --dim batch=1",
        "opt model.onnx --passes simplify",
        "opt graph.ir --passes polish",
        "frobnicate",
    ]);
    insta::assert_snapshot!("wrong_options", text);
    assert!(!place.path("out.margay").exists() && !place.path("out.onnx").exists());
}

#[test]
fn damaged_artifacts_are_refused() {
    let place = Place::new();
    place.done("compile model.onnx -o dense.margay --target-cpu portable");
    let good = place.bytes("dense.margay");
    let changed = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        fs::write(place.path(name), bytes).unwrap();
    };
    changed("short.margay", &|b| b.truncate(b.len() - 1000));
    changed("head.margay", &|b| b.truncate(40));
    changed("garbage.margay", &|b| b[64..].fill(0xa5));
    changed("weights.margay", &|b| {
        let at = b.len() - 4096;
        b[at..].iter_mut().for_each(|v| *v ^= 1);
    });
    for name in ["short", "head", "garbage", "weights"] {
        for command in ["run {} --inputs in.npz --outputs out.npz", "inspect {}"] {
            let ran = place.run(&command.replace("{}", &format!("{name}.margay")));
            assert_eq!(ran.code, 3, "{name}: {}", ran.stderr);
            assert!(ran.stderr.starts_with("error: `") && ran.stdout.is_empty(), "{}", ran.stderr);
        }
    }
    assert!(!place.path("out.npz").exists());
}

#[test]
fn what_was_there_stays_when_a_command_fails() {
    let place = Place::new();
    place.write_npz("wrong.npz", &[("image", Tensor::zeros(DType::F32, &[2, 1, 28, 27]).unwrap())]);
    for name in ["out.margay", "out.npz", "out.onnx", "plan.toml", "report.json"] {
        fs::write(place.path(name), name).unwrap();
    }
    let before = place.files();
    for (command, code) in [
        ("compile model.onnx -o out.margay --save-plan plan.toml --report report.json --budget-bytes 10", 1),
        ("compile model.onnx -o out.margay --export out.onnx --dim length=4", 2),
        ("run model.onnx --inputs wrong.npz --outputs out.npz", 2),
        ("export model.onnx -o out.onnx --budget-bytes 10", 1),
    ] {
        let ran = place.run(command);
        assert_eq!(ran.code, code, "{command}: {}", ran.stderr);
    }
    for name in ["out.margay", "out.npz", "out.onnx", "plan.toml", "report.json"] {
        assert_eq!(place.bytes(name), name.as_bytes());
    }
    assert_eq!(place.files(), before);
}

#[cfg(unix)]
#[test]
fn files_that_are_read_or_written_are_not_written_over() {
    let place = Place::new();
    let (model, inputs) = (place.bytes("model.onnx"), place.bytes("in.npz"));
    for (arguments, message) in [
        ("compile model.onnx -o ./model.onnx", "`-o` and the model name the same file"),
        ("compile model.onnx -o a.margay --report model.onnx", "`--report` and the model name the same file"),
        ("compile model.onnx -o a.margay --export a.margay", "`--export` and `-o` name the same file"),
        ("export model.onnx -o model.onnx", "`-o` and the model name the same file"),
        ("run model.onnx --inputs in.npz --outputs in.npz", "`--outputs` and `--data` name the same file"),
    ] {
        let ran = place.run(arguments);
        assert_eq!(ran.code, 2, "{arguments}: {}", ran.stderr);
        assert!(ran.stderr.contains(message), "{arguments}: {}", ran.stderr);
    }
    assert!(place.bytes("model.onnx") == model && place.bytes("in.npz") == inputs);
    assert_eq!(place.files(), ["in.npz", "model.onnx", "samples.npz"]);
}

#[test]
fn a_place_that_cannot_be_written_is_an_error_before_any_work() {
    let place = Place::new();
    fs::write(place.path("file"), b"").unwrap();
    let commands = [
        "run model.onnx --data in.npz --outputs {}.npz",
        "compile model.onnx -o {}.margay",
        "compile model.onnx -o a.margay --save-plan {}.toml",
        "compile model.onnx -o a.margay --report {}.json",
        "export model.onnx -o {}.onnx",
        "differentiate model.onnx -o {}.onnx",
        "train model.onnx --data in.npz --labels l --export {}.onnx",
        "train model.onnx --data in.npz --labels l --export t.onnx --checkpoint {}.safetensors",
        "recover model.onnx --teacher model.onnx --data in.npz -o {}.margay",
        "recover model.onnx --teacher model.onnx --data in.npz -o r.margay --history {}.jsonl",
        "pareto model.onnx --data samples.npz --svg {}.svg",
        "explain model.onnx --data samples.npz --budget-bytes 50% --curves {}.csv",
    ];
    let before = place.files();
    // A file in the place of a folder stops everybody, the superuser too.
    for folder in ["file", "nowhere"] {
        for command in commands {
            let ran = place.run(&command.replace("{}", &format!("{folder}/out")));
            assert_eq!(ran.code, 2, "{command}: {}", ran.stderr);
            let expected = format!("error: cannot write `{folder}/out");
            assert!(ran.stderr.starts_with(&expected), "{command}: {}", ran.stderr);
        }
    }
    assert_eq!(place.files(), before);
}

#[test]
fn a_run_gives_what_the_reference_gives() {
    let place = Place::new();
    place.done("run model.onnx --inputs in.npz --outputs out.npz");
    let found = place.read_npz("out.npz");
    let g = margay_driver::open(&place.path("model.onnx")).unwrap().graph;
    let expected = margay_ir::eval::run(&g, &[("image", &images(2, 1))]).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, "logits");
    close(&found[0].1, &expected[0]);
}

fn close(found: &Tensor, expected: &Tensor) {
    assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()));
    let (found, expected) = (found.to_vec::<f32>().unwrap(), expected.to_vec::<f32>().unwrap());
    for (a, b) in found.iter().zip(&expected) {
        assert!((a - b).abs() <= 1e-4 + 1e-4 * b.abs(), "{a} {b}");
    }
}

#[test]
fn long_inputs_are_fed_batch_by_batch() {
    let place = Place::new();
    place.write_npz("five.npz", &[("image", images(5, 1))]);
    place.done("run model.onnx --inputs five.npz --outputs whole.npz");
    for dims in ["batch=1", "batch=2", "batch=1,4"] {
        place.done(&format!("compile model.onnx -o dense.margay --dim {dims}"));
        place.done("run dense.margay --inputs five.npz --outputs parts.npz");
        close(&place.read_npz("parts.npz")[0].1, &place.read_npz("whole.npz")[0].1);
        let told = place.done("run dense.margay --inputs five.npz --outputs parts.npz").stderr;
        assert!(told.starts_with("note: `dense.margay` takes these inputs in "), "{told}");
    }
}

#[test]
fn inputs_come_from_npy_and_pb_files() {
    let place = Place::new();
    let image = images(2, 1);
    fs::write(place.path("image.npy"), margay_npy::write_npy(&image).unwrap()).unwrap();
    fs::write(place.path("image.pb"), given::tensor_proto("image", &image)).unwrap();
    place.done("run model.onnx --inputs in.npz --outputs expected.npz");
    for inputs in ["image=image.npy", "image=image.pb", "image.pb"] {
        place.done(&format!("run model.onnx --inputs {inputs} --outputs out.npz"));
        assert_eq!(place.bytes("out.npz"), place.bytes("expected.npz"));
    }
}

#[test]
fn the_same_command_gives_the_same_bytes() {
    let place = Place::new();
    let files =
        |i: usize| [format!("{i}.margay"), format!("{i}.toml"), format!("{i}.onnx"), format!("{i}.json")];
    for (i, threads) in [1, 2, 1, 2].into_iter().enumerate() {
        let [artifact, plan, onnx, report] = files(i);
        place.done(&format!(
            "compile model.onnx -o {artifact} --calibrate samples.npz --budget-bytes 50% --threads {threads} \
             --save-plan {plan} --export {onnx} --report {report}"
        ));
    }
    for i in 1..4 {
        for (a, b) in files(0).iter().zip(files(i)) {
            assert!(place.bytes(a) == place.bytes(&b), "{a} and {b} differ");
        }
    }
    place.done("compile model.onnx -o replayed.margay --calibrate samples.npz --plan 0.toml");
    place.done("run 0.margay --inputs in.npz --outputs a.npz");
    place.done("run replayed.margay --inputs in.npz --outputs b.npz");
    assert_eq!(place.bytes("a.npz"), place.bytes("b.npz"));
}

#[test]
fn an_export_runs_like_the_artifact() {
    let place = Place::new();
    place.done(
        "compile model.onnx -o s.margay --calibrate samples.npz --budget-bytes 50% --export direct.onnx",
    );
    place.done("export s.margay -o later.onnx");
    assert!(place.bytes("direct.onnx") == place.bytes("later.onnx"));
    place.done("run s.margay --inputs in.npz --outputs a.npz");
    place.done("run later.onnx --inputs in.npz --outputs b.npz");
    close(&place.read_npz("b.npz")[0].1, &place.read_npz("a.npz")[0].1);
    place.done("compare s.margay later.onnx --inputs in.npz");
    // Products of two small matrices instead of one large one.
    let parameters = |file: &str| {
        json(&place.done(&format!("inspect {file} --json")).stdout)["parameters"].as_u64().unwrap()
    };
    assert!(parameters("later.onnx") * 2 < parameters("model.onnx") + 1000);
}

#[test]
fn compare_finds_differences_and_layers() {
    let place = Place::new();
    place.done("compile model.onnx -o dense.margay");
    place.done("compile model.onnx -o s.margay --calibrate samples.npz --budget-bytes 50%");
    let same = json(&place.done("compare model.onnx dense.margay --inputs in.npz --json").stdout);
    assert_eq!(same["within"], true);
    let ran = place.run("compare model.onnx s.margay --inputs in.npz --json --rtol 1e-3 --atol 1e-4");
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("elements are past the tolerance"));
    let report = json(&ran.stdout);
    assert_eq!(
        keys(&report),
        [
            "atol",
            "error",
            "layer_samples",
            "layers",
            "max_error",
            "other",
            "outputs",
            "reference",
            "rtol",
            "within"
        ]
    );
    let output = &report["outputs"][0];
    assert_eq!(
        keys(output),
        ["centred_l2", "cosine", "elements", "max_abs", "name", "past_tolerance", "relative_l2", "type"]
    );
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(keys(&layers[0]), ["cumulative", "isolated", "name"]);
    assert!(layers.iter().any(|l| l["isolated"].as_f64() > Some(0.0)));
    assert!(layers.iter().all(|l| l["cumulative"].as_f64().is_some()));
    place.done("compare model.onnx s.margay --inputs in.npz --rtol 0 --atol 1000");
}

#[test]
fn an_artifact_runs_on_the_device_of_its_back_end() {
    let place = Place::new();
    place.done("compile model.onnx -o interpreted.margay --backend reference");
    let report = json(&place.done("inspect interpreted.margay --json").stdout);
    let section = &report["entries"][0]["sections"][0];
    assert_eq!((&section["backend"], &section["machine"]), (&"reference".into(), &"any".into()));
    let same = json(&place.done("compare model.onnx interpreted.margay --inputs in.npz --json").stdout);
    assert_eq!(same["within"], true);
    let unknown = place.run("compile model.onnx -o none.margay --device gpu");
    assert_eq!(unknown.code, 2);
    assert!(unknown.stderr.contains("unknown back end `gpu`; known are `cpu`, `cuda`, `reference`"));
    for (words, expected) in [
        ("--device cuda:sm_60", "unknown target `sm_60`"),
        ("--device cuda --target-cpu sm_80", "named behind it, as in `--device cuda:CLASS`"),
        ("--device cpu:x86-64-v3", "as in `--target-cpu x86-64-v3`"),
        #[cfg(not(feature = "gpu"))]
        ("--device cuda:sm_80", "it is without the feature `gpu`"),
    ] {
        let refused = place.run(&format!("compile model.onnx -o none.margay {words}"));
        assert_eq!(refused.code, 2, "{words}");
        assert!(refused.stderr.contains(expected), "{words}: {}", refused.stderr);
    }
    for (words, expected) in [
        ("--device cpu:1", "there is one device `cpu`, asked for number 1"),
        ("--device cuda:x", "`cuda:x` is no device, expected a number"),
    ] {
        let refused = place.run(&format!("run interpreted.margay --inputs in.npz --outputs o.npz {words}"));
        assert_eq!(refused.code, 2, "{words}");
        assert!(refused.stderr.contains(expected), "{words}: {}", refused.stderr);
    }
}

#[test]
fn bench_tells_speed_with_bytes_and_error() {
    let place = Place::new();
    place.done("compile model.onnx -o s.margay --budget-bytes 50%");
    let ran = place.done("bench model.onnx s.margay --inputs in.npz --rounds 5 --threads 1 --json");
    let report = json(&ran.stdout);
    assert_eq!(keys(&report), ["machine", "models", "rounds", "threads", "warm_up_rounds"]);
    let models = report["models"].as_array().unwrap();
    assert_eq!(models.len(), 2);
    let names = [
        "all_inputs_ms",
        "constant_bytes",
        "device_ms",
        "error",
        "median_ms",
        "min_ms",
        "other_differences",
        "p90_ms",
        "p99_ms",
        "path",
        "peak_bytes",
        "predicted_ms",
        "prediction_is_measured",
        "runs",
        "runs_per_second",
        "speed_up",
    ];
    for m in models {
        assert_eq!(keys(m), names);
        let time = |m: &Value| m["median_ms"].as_f64().unwrap() * m["runs"].as_f64().unwrap();
        let speed_up = time(&models[0]) / time(m);
        assert!((m["speed_up"].as_f64().unwrap() - speed_up).abs() < 1e-9 * speed_up, "{m}");
        let per_second = m["runs_per_second"].as_f64().unwrap() * m["median_ms"].as_f64().unwrap();
        assert!((per_second - 1e3).abs() < 1e-6, "{m}");
        let of_error = ["bounds", "centred_l2", "cosine", "mask", "outputs", "relative_l2", "samples"];
        assert_eq!(keys(&m["error"]), of_error);
        let rising = ["min_ms", "median_ms", "p90_ms", "p99_ms"].map(|name| m[name].as_f64().unwrap());
        assert!(rising[0] > 0.0 && rising.is_sorted(), "{rising:?}");
        // Two runs of all inputs take about twice the time of one.
        let (all, predicted) = (m["all_inputs_ms"].as_f64().unwrap(), m["predicted_ms"].as_f64().unwrap());
        assert!(all > 1.2 * rising[0] && predicted > 0.0);
        assert!(m["device_ms"].is_null() && m["prediction_is_measured"] == true, "{m}");
        assert!(m["peak_bytes"].as_u64() > m["constant_bytes"].as_u64());
    }
    assert_eq!(models[0]["path"], "model.onnx");
    assert_eq!(models[0]["error"]["relative_l2"], 0.0);
    assert!(models[1]["error"]["relative_l2"].as_f64() > Some(0.0));
    assert!(models[1]["constant_bytes"].as_u64() < models[0]["constant_bytes"].as_u64());
    assert_eq!((&models[0]["runs"], &models[1]["runs"]), (&2.into(), &2.into()));

    let ran = place.done("bench model.onnx --inputs in.npz --rounds 5 --threads 1 --steps --json");
    let report = json(&ran.stdout);
    let steps = report["models"][0]["steps"].as_array().unwrap();
    assert_eq!(keys(&steps[0]), ["bytes", "flops", "label", "least_ms", "median_ms", "occupancy", "work"]);
    assert!(steps.iter().any(|s| s["flops"].as_u64() > Some(0)));
    let ran = place.done("bench model.onnx --inputs in.npz --rounds 5 --threads 1 --steps --huge-pages");
    assert!(ran.stdout.contains("\nsteps of model.onnx, ") && ran.stdout.contains("GFLOP/s"));

    let ran = place.done("bench model.onnx --inputs in.npz --rounds 1 --threads 1 --json --precision bf16");
    let narrow = &json(&ran.stdout)["models"][1];
    assert_eq!(narrow["path"], "model.onnx in bf16");
    assert!(narrow["error"]["relative_l2"].as_f64() > Some(1e-6));
    assert_eq!(place.run("run s.margay --inputs in.npz --outputs y.npz --precision int8").code, 2);
}

#[test]
fn artifacts_are_inspected() {
    let place = Place::new();
    place.done("compile model.onnx -o s.margay --budget-bytes 50% --dim batch=1,8");
    let report = json(&place.done("inspect s.margay --json").stdout);
    assert_eq!(report["file_bytes"].as_u64(), Some(place.bytes("s.margay").len() as u64));
    let entries = report["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1]["dims"]["batch"], 8);
    let bytes = |name: &str| report[name].as_u64().unwrap();
    assert!(bytes("layer_bytes_after") * 2 <= bytes("layer_bytes_before"));
    assert!(report["plan"].as_str().unwrap().contains("rank = "));
    place.done("compile model.onnx -o stripped.margay --budget-bytes 50% --strip");
    let stripped = json(&place.done("inspect stripped.margay --json").stdout);
    assert_eq!((&stripped["plan"], &stripped["held_out"]), (&Value::Null, &Value::Null));
    assert!(place.bytes("stripped.margay").len() < place.bytes("s.margay").len());
}

#[test]
fn opt_reads_what_it_writes() {
    let place = Place::new();
    let text = "graph @g(%x: f32[N, 64]) -> (y: f32[N, 10]) {
  %0 = const #5be1c0aa12ef : f32[64, 10]  // fc.weight
  %1 = matmul %x, %0 : f32[N, 10]  // fc
  %2 = relu %1 : f32[N, 10]
  %3 = relu %1 : f32[N, 10]
  %4 = add %2, %3 : f32[N, 10]
  return %4
}
";
    fs::write(place.path("g.ir"), text).unwrap();
    insta::assert_snapshot!("opt", place.transcript(&["opt g.ir --passes merge-duplicates,remove-dead"]));
    place.done("opt g.ir --passes merge-duplicates -o h.ir");
    let printed = place.done("opt h.ir --passes remove-dead").stdout;
    assert_eq!(printed.matches("relu").count(), 1);
}

#[test]
fn the_demo_runs() {
    let place = Place::new();
    let report = json(&place.done("demo --json").stdout);
    assert_eq!(keys(&report), ["cosine", "dense", "held_out", "layers", "limit", "relative_l2", "sketched"]);
    assert!(report["held_out"]["relative_l2"].as_f64() <= report["limit"].as_f64());
    let layers = report["layers"].as_array().unwrap();
    for kind in ["conv", "linear"] {
        let sketched = |l: &&Value| l["kind"] == kind && l["scheme"] != "dense";
        assert!(layers.iter().any(|l| sketched(&l)), "no {kind} layer is sketched");
    }
    let [dense, sketched] = ["dense", "sketched"].map(|side| report[side]["accuracy"].as_f64().unwrap());
    assert!(dense > 0.9 && sketched > dense - 0.02);
    assert!(report["sketched"]["constant_bytes"].as_u64() < report["dense"]["constant_bytes"].as_u64());
    assert_eq!(place.files(), ["in.npz", "model.onnx", "samples.npz"]);
}
