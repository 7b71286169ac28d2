//! `margay recover`: what it gives back and writes, what it refuses, and that it survives Ctrl-C and worse.

use std::process::Child;
use std::time::{Duration, Instant};

use margay_tensor::{DType, Tensor};

use crate::place::{Place, Ran, images, interrupt, json, keys, node, write_model};

/// A folder with the demo model sketched to few numbers, and data to learn from.
fn place() -> Place {
    let place = Place::new();
    place.write_npz("data.npz", &[("image", images(120, 7))]);
    place.done(
        "compile model.onnx -o s.margay --budget-bytes 60% --save-plan plan.toml --target-cpu portable",
    );
    let plan = String::from_utf8(place.bytes("plan.toml")).unwrap();
    let (head, _) = plan.split_once("[modules]").unwrap();
    let low = |name: &str, rank: usize| format!("{name} = {{ scheme = \"lowrank\", rank = {rank} }}\n");
    let choices = [low("conv2", 16), low("conv3", 18), low("fc1", 18)].concat();
    std::fs::write(place.path("plan.toml"), format!("{head}[modules]\n{choices}")).unwrap();
    place.done(
        "compile model.onnx -o s.margay --export s.onnx --plan plan.toml --calibrate samples.npz \
         --target-cpu portable",
    );
    place
}

const LEARN: &str = "--teacher model.onnx --data data.npz --batch 8 --threads 1";

#[test]
fn an_artifact_and_an_onnx_file_learn_back_what_they_lost() {
    let place = place();
    let words = format!("{LEARN} --steps 30 --learning-rate 0.002 --json");
    let told =
        place.done(&format!("recover s.margay {words} -o r.margay --export r.onnx --save-plan r.toml"));
    let report = json(&told.stdout);
    let names = [
        "after",
        "before",
        "blocks",
        "divergence",
        "error",
        "hidden",
        "history",
        "layers",
        "learning_rate",
        "model",
        "rate_test",
        "refined",
        "refitted",
        "restarts",
        "samples",
        "seconds",
        "seed",
        "steps",
        "stop",
        "teacher",
        "trained",
    ];
    let mut found = keys(&report);
    found.sort_unstable();
    assert_eq!(found, names);
    let error = |part: &str| report[part]["error"].as_f64().unwrap();
    assert!(error("after") < error("before"), "{report}");
    assert_eq!(report["steps"], 30);

    // The artifact keeps plan and report, but for the error; the ONNX file computes the same.
    let plan = String::from_utf8(place.bytes("r.toml")).unwrap();
    assert!(plan.contains("rank = "), "{plan}");
    let shown = place.done("explain r.margay --json");
    assert!(!shown.stderr.contains("warning"), "what was told of the error before: {}", shown.stderr);
    let explained = json(&shown.stdout);
    assert_eq!(explained["held_out"], report["error"]);
    place.done("run r.onnx --inputs in.npz --outputs onnx.npz");
    place.done("run r.margay --inputs in.npz --outputs artifact.npz");
    let logits = |name: &str| place.read_npz(name).remove(0).1.to_vec::<f32>().unwrap();
    let gaps = logits("onnx.npz").into_iter().zip(logits("artifact.npz")).map(|(a, b)| (a - b).abs());
    assert!(gaps.fold(0.0, f32::max) < 1e-4);

    // From ONNX the same factors are found and learn the same.
    let other = json(&place.done(&format!("recover s.onnx {words} --export r2.onnx -o r2.margay")).stdout);
    assert_eq!(other["trained"], report["trained"]);
    assert!(other["after"]["error"].as_f64().unwrap() < error("before"));
    let layers =
        json(&place.done(&format!("recover s.onnx {LEARN} --layers-only --export l.onnx --json")).stdout);
    assert_eq!((layers["steps"].as_u64(), layers["stop"].is_null()), (Some(0), true));
    assert_eq!(report["after"]["measures"][0][0], "about_mean_l2");
    let text = place.done(&format!("recover s.onnx {LEARN} --layers-only --export m.onnx")).stdout;
    assert!(text.contains("error about the mean, the same share for each output and batch"), "{text}");
    assert!(!text.contains("error of means"), "one output needs no table: {text}");
}

/// What the samples of `compile` chose is judged by those that it held out, again and again.
#[test]
fn the_samples_that_compile_held_out_are_held_out_again() {
    let place = place();
    place.write_npz("data.npz", &[("image", images(120, 7))]);
    let compile =
        "compile model.onnx -o o.margay --data data.npz --budget-bytes 60% --target-cpu portable --json";
    let report = json(&place.done(compile).stdout);
    let rows = report["held_out_rows"].as_array().unwrap().len();
    assert_ne!(rows, 15, "an eighth is another number");
    let held_out = |words: &str| {
        let ran = place.done(&format!("recover {words} {LEARN} --steps 2 --stages together --json"));
        json(&ran.stdout)["samples"]["held_out"].as_u64().unwrap() as usize
    };
    assert_eq!(held_out("o.margay -o r.margay"), rows);
    assert_eq!(held_out("r.margay -o again.margay"), rows);
    assert_eq!(held_out("o.margay -o r.margay --held-out 0.2"), 24);
    place.write_npz("data.npz", &[("image", images(120, 8))]);
    assert_eq!(held_out("o.margay -o r.margay"), 15);
}

#[test]
fn stages_are_done_as_asked_and_each_helps() {
    let place = place();
    let of = |words: &str| {
        let told = place.done(&format!("recover s.onnx {LEARN} {words} --export t.onnx --json"));
        json(&told.stdout)
    };
    let report = of("--stages layers,blocks --hidden conv2");
    let error = |part: &str| report[part]["error"].as_f64().unwrap();
    assert!(error("refitted") < error("before") && error("after") <= error("refitted"), "{report}");
    let blocks = report["blocks"].as_array().unwrap();
    assert!(blocks.len() >= 2, "{report}");
    for block in blocks {
        let of = |name: &str| block[name].as_f64().unwrap();
        assert!(of("after") <= of("before") && of("steps") > 0.0, "{block}");
    }
    assert!(blocks.iter().any(|b| b["after"].as_f64() < b["before"].as_f64()), "{report}");
    assert_eq!((report["steps"].as_u64(), report["stop"].is_null()), (Some(0), true));
    let report = of("--stages together --steps 4");
    assert!(report["refitted"].is_null() && report["refined"].is_null(), "{report}");
    assert_eq!(report["steps"], 4);
    let wrong = place.run(&format!("recover s.onnx {LEARN} --stages heads --export t.onnx"));
    assert!(wrong.code == 2 && wrong.stderr.contains("[possible values: layers, blocks, together]"));
}

/// A refit chooses anew which coordinates carry the identity of a factor: that is no parameter, and a checkpoint holds it.
#[test]
fn a_finished_run_goes_on_with_the_positions_that_its_refit_chose() {
    let place = place();
    let plan = String::from_utf8(place.bytes("plan.toml")).unwrap();
    let (head, _) = plan.split_once("[modules]").unwrap();
    let choice = "fc2 = { scheme = \"interpolative\", rank = 4 }\n";
    std::fs::write(place.path("gauge.toml"), format!("{head}[modules]\n{choice}")).unwrap();
    // Without samples the factors are those of the weight alone.
    place.done("compile model.onnx -o g.margay --export g.onnx --plan gauge.toml --recalibrate --target-cpu portable");
    let words = format!("recover g.onnx {LEARN} --steps 6 --evaluations 2 --checkpoint c.safetensors");
    place.done(&format!("{words} --export whole.onnx"));
    assert!(String::from_utf8_lossy(&place.bytes("c.safetensors")).contains("\"fixed.constant "));
    place.done(&format!("{words} --resume --export again.onnx"));
    assert!(place.bytes("again.onnx") == place.bytes("whole.onnx"));
}

#[test]
fn what_cannot_be_recovered_is_refused() {
    let place = place();
    write_model(&place.path("small.onnx"), vec![node("last", "Relu", &["x"], "y")], vec![]);
    place.write_npz("other.npz", &[("picture", images(20, 1))]);
    place.write_npz("few.npz", &[("image", images(9, 1))]);
    place.write_npz("wrong.npz", &[("image", Tensor::zeros(DType::F64, &[20, 1, 28, 28]).unwrap())]);
    place.done(
        "compile model.onnx -o narrow.margay --plan plan.toml --calibrate samples.npz \
         --target-cpu portable --precision int8",
    );
    let text = place.transcript(&[
        "recover s.onnx --teacher small.onnx --data data.npz --export r.onnx",
        "recover model.onnx --teacher model.onnx --data data.npz --export r.onnx",
        "recover s.onnx --teacher model.onnx --data other.npz --export r.onnx",
        "recover s.onnx --teacher model.onnx --data wrong.npz --export r.onnx",
        "recover s.onnx --teacher model.onnx --data few.npz --export r.onnx --batch 8",
        "recover s.onnx --teacher model.onnx --data data.npz --export r.onnx --hidden nothing",
        "recover s.onnx --teacher model.onnx --data data.npz --export r.onnx --mask image",
        "recover s.onnx --teacher model.onnx --data data.npz --export missing/r.onnx",
        "recover s.margay --teacher model.onnx --data data.npz -o r.margay --dim batch=2",
        "recover narrow.margay --teacher model.onnx --data data.npz -o r.margay",
        "recover s.onnx --teacher data.npz --data data.npz --export r.onnx",
    ]);
    insta::with_settings!({ snapshot_path => "../snapshots" }, {
        insta::assert_snapshot!("wrong_recoveries", text);
    });
    let same = place.run("recover s.onnx --teacher model.onnx --data data.npz --export model.onnx");
    assert!(same.code == 2 && same.stderr.contains("`--export` and `--teacher` name the same file"));
    assert!(!place.files().iter().any(|name| name.starts_with("r.")));
}

#[test]
fn a_folder_that_goes_away_is_an_error() {
    let place = place();
    std::fs::create_dir(place.path("gone")).unwrap();
    let child = start(&place, &format!("{LEARN} --steps 100000 --export gone/r.onnx"));
    std::thread::sleep(Duration::from_millis(300));
    std::fs::remove_dir(place.path("gone")).unwrap();
    let Ran { code, stderr, .. } = interrupted(child);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("cannot write `gone/r.onnx`"), "{stderr}");
    // What was learned is not lost.
    let (_, place) = stderr.split_once("help: it was written to `").expect(&stderr);
    let kept = std::path::Path::new(place.split('`').next().unwrap());
    assert!(std::fs::metadata(kept).unwrap().len() > 100_000);
    std::fs::remove_dir_all(kept.parent().unwrap()).unwrap();
}

fn start(place: &Place, words: &str) -> Child {
    place.start(&format!("recover s.onnx {words}"))
}

/// Presses Ctrl-C after some time, and waits for the end.
fn interrupted(mut child: Child) -> Ran {
    std::thread::sleep(Duration::from_secs(2));
    if child.try_wait().unwrap().is_none() {
        interrupt(&child);
    }
    Ran::ended(child)
}

#[test]
fn an_interrupt_keeps_the_best_so_far() {
    let place = place();
    let words = format!("{LEARN} --steps 1000000 --evaluations 100000 --export r.onnx --json");
    let Ran { code, stdout, stderr } = interrupted(start(&place, &words));
    assert_eq!(code, 0, "{stderr}");
    let report = json(&stdout);
    assert_eq!(report["stop"], "interrupted", "{stdout}");
    assert!(report["after"]["error"].as_f64() <= report["before"]["error"].as_f64(), "{stdout}");
    place.done("run r.onnx --inputs in.npz --outputs out.npz");
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_bytes() {
    let place = place();
    let words = format!("{LEARN} --steps 150 --evaluations 5 --checkpoint-seconds 0");
    place.done(&format!("recover s.onnx {words} --checkpoint whole.safetensors --export whole.onnx"));
    let mut child = start(&place, &format!("{words} --checkpoint c.safetensors --export r.onnx"));
    let begin = Instant::now();
    let step = || {
        let bytes = std::fs::read(place.path("c.safetensors")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let at = text.find("\\\"step\\\":")? + "\\\"step\\\":".len();
        text[at..].split(',').next()?.parse::<u64>().ok()
    };
    while step().is_none_or(|s| s < 3) && child.try_wait().unwrap().is_none() {
        assert!(begin.elapsed() < Duration::from_secs(120), "no checkpoint after two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(step().is_some_and(|s| s >= 3), "a checkpoint is whole whenever the program dies");
    place.done(&format!("recover s.onnx {words} --checkpoint c.safetensors --resume --export r.onnx"));
    assert!(place.bytes("r.onnx") == place.bytes("whole.onnx"), "the same bytes as without the kill");
    let told = place
        .run(&format!("recover s.onnx {words} --seed 1 --checkpoint c.safetensors --resume --export r.onnx"));
    assert_eq!(told.code, 3, "{}", told.stderr);
    assert!(told.stderr.contains("another run: the seed was 0, is 1"), "{}", told.stderr);
}
