//! `margay train`: what it learns, writes and refuses, and that it goes on where it was stopped.

use std::time::{Duration, Instant};

use margay_onnx::OnnxNode;
use margay_tensor::{DType, Tensor};

use crate::place::{Place, Ran, images, interrupt, json, keys, node, write_model_of};

/// A folder with images of which half are darkened, and which half that is.
fn place() -> Place {
    let place = Place::new();
    let rows = 80;
    let mut pixels = images(rows, 5).to_vec::<f32>().unwrap();
    let labels: Vec<u8> = (0..rows).map(|r| (r * 5 / 3 % 2) as u8).collect();
    for (row, label) in pixels.chunks_exact_mut(784).zip(&labels) {
        row.iter_mut().for_each(|p| *p *= if *label == 0 { 1.0 } else { 0.3 });
    }
    let pixels = Tensor::from_slice(&[rows, 1, 28, 28], &pixels).unwrap();
    let labels = Tensor::from_slice(&[rows], &labels).unwrap();
    place.write_npz("data.npz", &[("image", pixels), ("label", labels.clone())]);
    place.write_npz("labels.npz", &[("any", labels)]);
    place
}

const FC: &str = "train model.onnx --data data.npz --labels label --train fc1.weight,fc1.bias,fc2.weight,fc2.bias \
                  --batch 16 --held-out 0.2 --learning-rate 0.003 --threads 1";

#[test]
fn a_model_is_trained_exported_and_compiled() {
    let place = place();
    let told = place.done(&format!("{FC} --epochs 4 --export t.onnx -o t.margay --dim batch=4 --json"));
    let report = json(&told.stdout);
    let told = [
        "best",
        "dense_stored",
        "divergence",
        "dropout",
        "first",
        "history",
        "learning_rate",
        "loss",
        "memory",
        "model",
        "optimizer",
        "output",
        "parameters",
        "rank_changes",
        "rate_test",
        "samples",
        "seconds",
        "seed",
        "steps",
        "stop",
        "stored",
    ];
    assert_eq!(keys(&report), told);
    let number = |point: &str, pointer: &str| report[point].pointer(pointer).unwrap().as_f64().unwrap();
    assert_eq!(report["parameters"], 3136 * 64 + 64 + 64 * 10 + 10);
    assert_eq!((&report["samples"]["trained"], &report["samples"]["held_out"]), (&64.into(), &16.into()));
    assert_eq!((&report["steps"], &report["stop"]), (&16.into(), &"finished".into()));
    assert_eq!(report["best"]["measures"][0][0], "accuracy");
    assert!(number("best", "/error") < 0.5 * number("first", "/error"), "{}", report["history"]);
    assert!(number("best", "/measures/0/1") > 0.9, "{}", report["history"]);

    // Both files hold the same trained model.
    place.done("run t.onnx --inputs in.npz --outputs a.npz");
    place.done("run t.margay --inputs in.npz --outputs b.npz");
    let (a, b) = (place.read_npz("a.npz"), place.read_npz("b.npz"));
    let (a, b) = (a[0].1.to_vec::<f32>().unwrap(), b[0].1.to_vec::<f32>().unwrap());
    assert!(a.iter().zip(&b).all(|(x, y)| (x - y).abs() < 1e-3 * (1.0 + x.abs())), "{a:?} {b:?}");
    place.done("run model.onnx --inputs in.npz --outputs c.npz");
    assert_ne!(place.read_npz("c.npz")[0].1.to_vec::<f32>().unwrap(), a);
}

#[test]
fn ranks_are_chosen_during_training_and_exported() {
    let place = place();
    let base = "train model.onnx --data data.npz --labels label --batch 16 --held-out 0.2 --learning-rate 0.003 \
                --threads 1 --steps 20 --evaluations 2 --scheme lowrank --layers conv3,fc1";
    let told = place.done(&format!("{base} --rank auto --keep 0.1 --export auto.onnx --json"));
    let report = json(&told.stdout);
    let changes = report["rank_changes"].as_array().unwrap();
    assert_eq!(changes.len(), 5);
    let last = &changes[4];
    assert_eq!(last["step"], 10);
    let dense = 576 * 64 + 3136 * 64;
    assert!(last["numbers"].as_u64().unwrap() <= dense / 10, "{last}");
    let ranks: Vec<u64> = (0..2).map(|i| last["ranks"][i][1].as_u64().unwrap()).collect();
    assert_eq!(last["numbers"].as_u64(), Some(ranks[0] * (576 + 64) + ranks[1] * (3136 + 64)));
    // What is exported has these factors and no others.
    let others = report["dense_stored"].as_u64().unwrap() - dense;
    assert_eq!(report["stored"].as_u64(), Some(others + last["numbers"].as_u64().unwrap()));
    place.done("run auto.onnx --inputs in.npz --outputs auto.npz");

    // For people, and with a limit of the loss instead.
    let told = place.done(&format!("{base} --rank auto --loss-change 0.5 --export loss.onnx"));
    assert!(told.stdout.contains("ranks at step 2: conv3 "), "{}", told.stdout);
    let fixed = place.done(&format!("{base} --rank 4 --export four.onnx --json"));
    assert_eq!(json(&fixed.stdout)["stored"].as_u64(), Some(others + 4 * (576 + 64 + 3136 + 64)));
    assert_eq!(json(&fixed.stdout)["rank_changes"].as_array().map(Vec::len), Some(0));

    for (options, why) in [
        ("--rank 4 --keep 0.1", "`--keep` and `--loss-change` need `--rank auto`"),
        ("--rank auto --keep 1.5", "the share of numbers: expected above 0 and below 1, found 1.5"),
        ("--rank auto --window 3", "`--window` is for `--scheme local`"),
        ("--rank 4 --cores 3", "`--cores` is for `--scheme tt`"),
        ("--rank 4 --sines 2", "`--sines` is for `--scheme favor`"),
        ("--rank 4 --form 4x2*2x4", "`--form` is for `--scheme structured`"),
    ] {
        let refused = place.run(&format!("{base} {options} --export x.onnx"));
        assert_eq!(refused.code, 2);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
    let auto =
        base.replace("--scheme lowrank --layers conv3,fc1", "--scheme panther --rank auto --export x.onnx");
    assert!(place.run(&auto).stderr.contains("`--rank auto` is for `--scheme lowrank`"));
    // Schemes without options here take their settings as a plan says them.
    let tucker =
        |rest: &str| place.run(&base.replace("lowrank --layers conv3,fc1", &format!("tucker {rest}")));
    let told = tucker("--layers conv3 --settings ranks=[8,8] --export tucker.onnx --json");
    assert_eq!(told.code, 0, "{}", told.stderr);
    let numbers = others + 3136 * 64 + 64 * 8 + 9 * 8 * 8 + 8 * 64;
    assert_eq!(json(&told.stdout)["stored"].as_u64(), Some(numbers));
    place.done("run tucker.onnx --inputs in.npz --outputs tucker.npz");
    for (rest, why) in [
        ("", "`--scheme tucker` needs `--settings`, such as 'ranks = [8, 16]'"),
        ("--settings ranks=[8", "`--settings`: "),
        ("--settings ranks=[8,8] --rank 4", "`--rank` is for `--scheme panther`"),
    ] {
        let refused = tucker(&format!("{rest} --export x.onnx"));
        assert_eq!(refused.code, 2);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
    let both = place.run(&format!("{base} --rank 4 --settings rank=4 --export x.onnx"));
    assert!(both.stderr.contains("`--scheme lowrank` has options of its own, and no `--settings`"));
    let structured = |form: &str, file: &str| {
        let scheme = format!("structured --layers fc1 --form {form} --export {file} --json");
        place.run(&base.replace("lowrank --layers conv3,fc1", &scheme))
    };
    let told = structured("(56x4(x)56x2)*8x64", "structured.onnx");
    assert_eq!(told.code, 0, "{}", told.stderr);
    let report = json(&told.stdout);
    let numbers = report["dense_stored"].as_u64().unwrap() - 3136 * 64 + 56 * 4 + 56 * 2 + 8 * 64;
    assert_eq!(report["stored"].as_u64(), Some(numbers));
    place.done("run structured.onnx --inputs in.npz --outputs structured.npz");
    let refused = structured("56x", "x.onnx");
    assert_eq!(refused.code, 2);
    assert!(refused.stdout.contains("`--form`: expected a number, found the end"), "{}", refused.stdout);
    for scheme in ["nystrom --landmarks 4", "local --window 4", "favor --features 8"] {
        let none = base.replace("lowrank --layers conv3,fc1", &format!("{scheme} --export x.onnx"));
        let refused = place.run(&none);
        assert!(refused.stderr.contains("the model has no attention that was found"), "{}", refused.stderr);
    }
}

#[test]
fn a_run_that_goes_on_gives_the_same_bytes() {
    let place = place();
    let whole = format!("{FC} --steps 12 --evaluations 4 --checkpoint one.safetensors --export one.onnx");
    place.done(&whole);
    // The time is over before the first step.
    let other = whole.replace("one.", "two.");
    let stopped = place.done(&format!("{other} --max-seconds 0.000001 --json"));
    assert_eq!(json(&stopped.stdout)["stop"], "time");
    assert!(json(&stopped.stdout)["steps"].as_u64().unwrap() < 12);
    let told = place.done(&format!("{other} --resume --json"));
    assert_eq!(json(&told.stdout)["steps"], 12);
    assert!(place.bytes("one.onnx") == place.bytes("two.onnx"), "the models differ");
    // The same file, with another learning rate.
    let refused = place.run(&format!("{other} --resume --clip 1"));
    assert_eq!(refused.code, 3);
    assert!(refused.stderr.contains("another run: the clip was none, is 1"), "{}", refused.stderr);
}

/// As PyTorch writes a model that it holds in training: the nodes say that they are in training, and yield masks.
fn dropping(place: &Place, name: &str, ratio: f32) {
    let scalar = |v: f32| Tensor::from_slice(&[], &[v]).unwrap();
    let weight: Vec<f32> = (0..9).map(|i| (i * 5 % 7) as f32 / 7.0 - 0.4).collect();
    let drop = |name: &str, x: &str, y: &str| OnnxNode {
        outputs: vec![y.into(), format!("{name}_mask")],
        ..node(name, "Dropout", &[x, "ratio", "training"], y)
    };
    let nodes = vec![
        drop("drop1", "x", "dropped"),
        node("fc", "MatMul", &["dropped", "w"], "product"),
        node("act", "Tanh", &["product"], "hidden"),
        drop("drop2", "hidden", "y"),
    ];
    let initializers = vec![
        ("ratio".to_string(), scalar(ratio)),
        ("training".to_string(), Tensor::from_bools(&[], &[true]).unwrap()),
        ("w".to_string(), Tensor::from_slice(&[3, 3], &weight).unwrap()),
    ];
    write_model_of(&place.path(name), &[-1, 3], nodes, initializers);
}

#[test]
fn dropout_of_a_model_drops_in_training_alone() {
    let place = Place::new();
    let x: Vec<f32> = (0..120).map(|i| (i * 37 % 41) as f32 / 20.0 - 1.0).collect();
    let x = Tensor::from_slice(&[40, 3], &x).unwrap();
    let labels: Vec<u8> = (0..40).map(|i| i * 7 % 3).collect();
    place.write_npz("d.npz", &[("x", x.clone()), ("label", Tensor::from_slice(&[40], &labels).unwrap())]);
    place.write_npz("x.npz", &[("x", x)]);
    dropping(&place, "drop.onnx", 0.4);
    let base = "train drop.onnx --data d.npz --labels label --batch 8 --steps 12 --evaluations 2 --learning-rate 0.01 \
                --json";
    let report = |name: &str, options: &str| {
        json(&place.done(&format!("{base} --export {name}.onnx {options}")).stdout)
    };
    let model = report("model", "-o model.margay --dim N=40");
    let (none, half) = (report("none", "--dropout none"), report("half", "--dropout 0.5 --threads 1"));
    assert_eq!([&model["dropout"], &none["dropout"], &half["dropout"]], [2, 0, 2]);
    assert_eq!(model["first"]["error"], none["first"]["error"], "evaluations drop nothing");
    let losses = [&model, &none, &half].map(|r| r["history"][1]["loss"].as_f64().unwrap());
    assert!(losses[0] != losses[1] && losses[0] != losses[2], "{losses:?}");
    assert_eq!(report("again", "--threads 3")["history"][1]["loss"], model["history"][1]["loss"]);
    assert!(place.bytes("again.onnx") == place.bytes("model.onnx"));
    // What is written drops nothing when it runs, as an artifact or as ONNX, and drops again when it is trained.
    place.done("run model.onnx --inputs x.npz --outputs a.npz");
    place.done("run model.margay --inputs x.npz --outputs b.npz");
    assert_eq!(place.read_npz("a.npz"), place.read_npz("b.npz"));
    let again = format!("{base} --export more.onnx").replace("drop.onnx", "model.onnx");
    assert_eq!(json(&place.done(&again).stdout)["dropout"], 2);
    assert!(place.done(&again.replace(" --json", "")).stdout.contains("elements dropped at 2 nodes"));

    // A model in training is nothing but to be trained.
    let refused = place.run("run drop.onnx --inputs x.npz --outputs c.npz");
    assert!(
        refused.stderr.contains("training with a ratio that is not 0 is not supported"),
        "{}",
        refused.stderr
    );
    for (options, why) in [
        ("--dropout 1", "expected model, none, or a share of at least 0 and below 1"),
        ("--dropout half", "expected model, none, or a share of at least 0 and below 1"),
    ] {
        let refused = place.run(&format!("{base} --export x.onnx {options}"));
        assert_eq!(refused.code, 2);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
    let without = format!("{base} --export x.onnx --dropout 0.1").replace("drop.onnx", "none.onnx");
    let refused = place.run(&without);
    assert_eq!(refused.code, 2);
    assert!(
        refused.stderr.contains("a dropout of 0.1: the model has no `Dropout` node"),
        "{}",
        refused.stderr
    );
}

#[test]
fn an_interrupt_keeps_the_best_so_far() {
    let place = place();
    let arguments = format!(
        "{FC} --steps 1000000 --evaluations 100000 --checkpoint c.safetensors --export t.onnx --json"
    );
    let child = place.start(&arguments);
    // The checkpoint of the first parameters is there once training has begun.
    let begin = Instant::now();
    while !place.path("c.safetensors").exists() && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    interrupt(&child);
    let ran = Ran::ended(child);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report = json(&ran.stdout);
    assert_eq!(report["stop"], "interrupted");
    place.done("run t.onnx --inputs in.npz --outputs out.npz");
}

#[test]
fn what_does_not_fit_is_refused() {
    let place = place();
    place.write_npz("bytes.npz", &[("image", Tensor::zeros(DType::U8, &[80, 1, 28, 28]).unwrap())]);
    place.write_npz("two.npz", &[("a", images(2, 1)), ("b", images(2, 1))]);
    let base = "train model.onnx --data data.npz --export t.onnx";
    let text = place.transcript(&[
        "train model.onnx --data data.npz --labels label",
        base,
        &format!("{base} --labels wrong"),
        &format!("{base} --labels missing.npy"),
        &format!("{base} --labels two.npz"),
        &format!("{base} --labels label --train conv9.weight"),
        &format!("{base} --labels label --output-name hidden"),
        &format!("{base} --labels label --loss mse"),
        &format!("{base} --labels label --held-out 0"),
        &format!("{base} --labels label --batch 1000"),
        &format!("{base} --labels label --steps 5 --epochs 2"),
        &format!("{base} --labels label --warm-up 2"),
        &format!("{base} --labels label --resume"),
        &format!("{base} --loss masked-lm"),
        &format!("{base} --loss masked-lm --mask-token 3"),
        "train model.onnx --data bytes.npz --labels labels.npz --export t.onnx",
        "train model.onnx --data data.npz --labels label --export nowhere/t.onnx",
    ]);
    assert!(!place.path("t.onnx").exists());
    insta::with_settings!({ snapshot_path => "../snapshots", prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("cli__wrong_training", text);
    });
    let over = place.run("train model.onnx --data data.npz --labels label --export data.npz");
    assert_eq!(over.code, 2);
    assert!(over.stderr.contains("`--export` and `--data` name the same file"), "{}", over.stderr);
}

/// torch's layer MultiheadAttention, of its probabilities, as a Performer with relative positions: trained, exported, compiled.
#[test]
fn a_layer_of_torch_is_trained_as_a_performer() {
    let place = Place::new();
    let file = "../../tests/fixtures/torch_attention/weights_script.onnx";
    std::fs::copy(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file), place.path("mha.onnx"))
        .unwrap();
    let mut x = vec![0f32; 80 * 6 * 16];
    margay_tensor::random::Philox::new(3, 1).fill_normal_f32(0, &mut x);
    let labels: Vec<u8> = x.chunks_exact(96).map(|row| u8::from(row[0] > 0.0)).collect();
    let x = Tensor::from_slice(&[80, 6, 16], &x).unwrap();
    let labels = Tensor::from_slice(&[80], &labels).unwrap();
    place.write_npz("data.npz", &[("x", x.clone()), ("label", labels)]);
    place.write_npz("in.npz", &[("x", x)]);
    let base = "train mha.onnx --data data.npz --labels label --scheme favor --features 8 --batch 16 --held-out 0.2 \
                --steps 40 --learning-rate 0.01 --threads 1 --export t.onnx -o t.margay --dim batch=80 --json";
    let plain = json(&place.done(base).stdout);
    let relative = format!("{base} --kernel relu --sines 2 --realizations 8 --gated").replace("t.", "r.");
    let relative = json(&place.done(&relative).stdout);
    // Frequencies, phases and gains of two waves, and a gate, for each of 8 numbers of the head that torch's products have.
    let more = relative["parameters"].as_u64().unwrap() - plain["parameters"].as_u64().unwrap();
    assert_eq!(more, 8 * (3 * 2 + 1));
    for (report, name) in [(&plain, "t"), (&relative, "r")] {
        let error = |point: &str| report[point]["error"].as_f64().unwrap();
        assert!(error("best") < 0.9 * error("first"), "{}", report["history"]);
        place.done(&format!("run {name}.onnx --inputs in.npz --outputs a.npz"));
        place.done(&format!("run {name}.margay --inputs in.npz --outputs b.npz"));
        let (a, b) = (place.read_npz("a.npz"), place.read_npz("b.npz"));
        let (a, b) = (a[0].1.to_vec::<f32>().unwrap(), b[0].1.to_vec::<f32>().unwrap());
        assert!(a.iter().zip(&b).all(|(x, y)| (x - y).abs() < 1e-3 * (1.0 + x.abs())), "{a:?} {b:?}");
    }
}
