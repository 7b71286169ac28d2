//! Training and recovery on the device of the driver that has none, beside the processor, and checkpoints that go from one to the
//! other.

use std::fs;

use margay_artifact::ArtifactBuilder;
use margay_driver::{Dump, backend, build, open};
use margay_loops::Precision;
use margay_tensor::random::Philox;
use margay_tensor::{Binding, Tensor};

use crate::place::{Place, json, node, write_model_of};
use crate::{Machine, difference};

const ROWS: usize = 48;
const WIDTH: usize = 16;

fn normal(shape: &[usize], stream: u64) -> Tensor {
    let mut all = vec![0f32; shape.iter().product()];
    Philox::new(5, stream).fill_normal_f32(0, &mut all);
    Tensor::from_slice(shape, &all).unwrap()
}

/// Two dense layers with a function between, and samples with numbers as labels.
fn machine() -> Machine {
    let machine = Machine::new();
    let place = &machine.place;
    let weights = |shape: &[usize], stream: u64| {
        let scale = 1.0 / (shape[0] as f32).sqrt();
        let all: Vec<f32> =
            normal(shape, stream).to_vec::<f32>().unwrap().iter().map(|x| scale * x).collect();
        Tensor::from_slice(shape, &all).unwrap()
    };
    let nodes = vec![
        node("fc1", "MatMul", &["x", "w1"], "a"),
        node("act", "Tanh", &["a"], "b"),
        node("fc2", "MatMul", &["b", "w2"], "y"),
    ];
    let initializers = vec![("w1".into(), weights(&[WIDTH, 24], 0)), ("w2".into(), weights(&[24, WIDTH], 1))];
    write_model_of(&place.path("dense.onnx"), &[-1, WIDTH as i64], nodes, initializers);
    let (white, labels) = (normal(&[ROWS, WIDTH], 2), normal(&[ROWS, WIDTH], 3));
    // Inputs of unequal variances: factors that do not know them can be improved.
    let white = white.to_vec::<f32>().unwrap();
    let scaled = white.iter().enumerate().map(|(i, x)| x * 2f32.powf((i % WIDTH) as f32 / -4.0));
    let x = Tensor::from_slice(&[ROWS, WIDTH], &scaled.collect::<Vec<f32>>()).unwrap();
    place.write_npz("data.npz", &[("x", x.clone()), ("label", labels)]);
    place.write_npz("x.npz", &[("x", x)]);
    machine
}

const TRAIN: &str = "train dense.onnx --data data.npz --labels label --loss mse --batch 8 --held-out 0.2 \
                     --learning-rate 0.01 --schedule constant --warm-up 0 --evaluations 1 --threads 1 --json";

/// What a model that was written makes of the samples, on the processor.
fn outputs(machine: &Machine, model: &str) -> Tensor {
    machine.place.done(&format!("run {model} --inputs x.npz --outputs out.npz"));
    machine.place.read_npz("out.npz").remove(0).1
}

#[test]
fn training_goes_on_from_one_device_to_another() {
    let machine = machine();
    let stages = |name: &str, devices: [&str; 3]| {
        for (i, device) in devices.into_iter().enumerate() {
            let resume = if i == 0 { "" } else { "--resume" };
            let steps = 4 * (i + 1);
            let files = format!("--checkpoint {name}.safetensors --export {name}.onnx");
            let ran = machine.done(&format!("{TRAIN} --steps {steps} {files} {resume} --device {device}"));
            assert_eq!(json(&ran.stdout)["steps"], steps);
        }
        outputs(&machine, &format!("{name}.onnx"))
    };
    let expected = stages("cpu", ["cpu", "cpu", "cpu"]);
    let before = outputs(&machine, "dense.onnx");
    let learned = difference(&before, &expected);
    for (name, devices) in
        [("there", ["cpu", "cuda", "cpu"]), ("back", ["cuda", "cpu", "cuda"]), ("emulated", ["emulated"; 3])]
    {
        let off = difference(&stages(name, devices), &expected);
        println!("{name}: {off:.1e} of {learned:.1e}");
        assert!(off < 1e-4 && learned > 100.0 * off, "{name}: {off} of {learned}");
    }
}

#[test]
fn training_is_done_by_the_device_that_is_asked_for() {
    let machine = machine().with("trace=calls");
    machine.done(&format!("{TRAIN} --steps 2 --export t.onnx --device cuda"));
    let calls = fs::read_to_string(machine.place.path("calls")).unwrap();
    assert!(calls.lines().filter(|call| *call == "cuGraphLaunch").count() >= 2, "{calls}");
    fs::remove_file(machine.place.path("calls")).unwrap();
    machine.done(&format!("{TRAIN} --steps 2 --export t.onnx"));
    assert!(!machine.place.path("calls").exists(), "the processor is the default");
    // Without the device nothing is trained elsewhere.
    machine.refused(&format!("{TRAIN} --steps 2 --export no.onnx --device cuda:1"), 4, "asked for number 1");
    let machine = machine.with("devices=0");
    machine.refused(&format!("{TRAIN} --steps 2 --export no.onnx --device cuda"), 4, "no device");
    let machine = machine.with("fault=3");
    machine.refused(&format!("{TRAIN} --steps 2 --export no.onnx --device cuda"), 4, "the device failed");
    assert!(!machine.place.path("no.onnx").exists());
}

const RECOVER: &str = "recover s.onnx --teacher dense.onnx --data x.npz --batch 8 --held-out 0.25 --threads 1 \
                       --learning-rate 0.002 --evaluations 2 --seed 3 --json";

/// The model with both layers as products of two factors, which were fitted to no data.
fn sketched(place: &Place) {
    place.done("compile dense.onnx -o s.margay --budget-bytes 70% --save-plan plan.toml");
    let plan = String::from_utf8(place.bytes("plan.toml")).unwrap();
    let (head, _) = plan.split_once("[modules]").unwrap();
    let choices = ["fc1", "fc2"].map(|name| format!("{name} = {{ scheme = \"lowrank\", rank = 4 }}\n"));
    fs::write(place.path("plan.toml"), format!("{head}[modules]\n{}", choices.concat())).unwrap();
    place.done("compile dense.onnx -o s.margay --export s.onnx --plan plan.toml");
}

#[test]
fn a_sketched_model_is_recovered_on_a_device() {
    let machine = machine();
    sketched(&machine.place);
    let recovered = |words: &str| {
        let told = machine.done(&format!("{RECOVER} {words}")).stdout;
        json(&told)
    };
    let error = |report: &serde_json::Value, of: &str| report[of]["error"].as_f64().unwrap();
    let cpu = recovered("--steps 6 --export cpu.onnx --device cpu");
    let gpu = recovered("--steps 6 --export gpu.onnx --device cuda");
    for of in ["before", "refitted", "refined", "after"] {
        let (cpu, gpu) = (error(&cpu, of), error(&gpu, of));
        assert!((cpu - gpu).abs() < 1e-3 * cpu, "{of}: {gpu} on the device, {cpu} on the processor");
    }
    assert!(error(&gpu, "after") < error(&gpu, "before"), "{gpu}");
    let off = difference(&outputs(&machine, "cpu.onnx"), &outputs(&machine, "gpu.onnx"));
    assert!(off < 5e-3, "{off}");
    // Learning together begins on the processor, goes on here, and ends there.
    let stage = |name: &str, steps: usize, more: &str| {
        let files = format!("--checkpoint {name}.safetensors --export {name}.onnx");
        recovered(&format!("--stages together --steps {steps} {files} {more}"))
    };
    stage("whole", 4, "");
    let expected = stage("whole", 8, "--resume");
    stage("moved", 4, "");
    let found = stage("moved", 8, "--resume --device cuda");
    let (expected, found) = (error(&expected, "after"), error(&found, "after"));
    assert!((expected - found).abs() < 1e-3 * expected, "{found}, expected {expected}");
    machine.with("devices=0").refused(
        &format!("{RECOVER} --steps 2 --export no.onnx --device cuda"),
        4,
        "no device",
    );
}

#[test]
fn where_there_may_be_a_device_the_one_that_is_taken_is_told() {
    let machine = machine();
    let run = "run dense.onnx --inputs x.npz --outputs out.npz --device cuda-or-cpu";
    let train = format!("{TRAIN} --steps 2 --export t.onnx --device cuda-or-cpu");
    let there = "note: `cuda-or-cpu` is `cuda`: a device that is not there of sm_80";
    for words in [run, train.as_str()] {
        let ran = machine.done(words);
        assert!(ran.stderr.contains(there), "{}", ran.stderr);
    }
    // An artifact has code for one of them.
    machine.done("compile dense.onnx -o gpu.margay --device cuda:sm_80 --dim N=48");
    machine.done("compile dense.onnx -o cpu.margay --dim N=48");
    let of = |model: &str| run.replace("dense.onnx", model);
    let said = machine.done(&of("cpu.margay")).stderr;
    assert!(said.contains("`cuda-or-cpu` is `cpu`: the model has no code for `cuda`"), "{said}");
    machine.done(&of("gpu.margay"));
    let bench = "bench dense.onnx gpu.margay --inputs x.npz --rounds 1 --device cuda-or-cpu --json";
    let report = json(&machine.done(bench).stdout);
    assert!(report["models"][1]["device_ms"].as_f64().is_some(), "{report}");
    // Where there is none, the processor is taken, but for what only the device can run.
    let machine = machine.with("devices=0");
    let without =
        "note: `cuda-or-cpu` is `cpu`: no device: the CUDA driver says: no CUDA-capable device is detected";
    for words in [run, train.as_str()] {
        let ran = machine.done(words);
        assert!(ran.stderr.contains(without), "{}", ran.stderr);
    }
    machine.refused(&of("gpu.margay"), 4, "no device");
    machine.refused(bench, 4, "no device");
}

#[test]
fn only_a_device_that_is_missing_or_too_old_gives_way_to_the_processor() {
    let mut machine = machine();
    let graph = open(&machine.place.path("dense.onnx")).unwrap().graph;
    let binding: Binding = [("N".into(), ROWS as i64)].into_iter().collect();
    let backends = ["cpu", "cuda:sm_80", "cuda:sm_90"]
        .map(|name| backend::named(name, "native", Precision::F32).unwrap());
    let mut all = ArtifactBuilder::new("all");
    for backend in &backends {
        build::add_entry(&mut all, &graph, &binding, &**backend, &mut Dump::none()).unwrap();
    }
    all.write(&machine.place.path("all.margay")).unwrap();
    let run = |model: &str| format!("run {model} --inputs x.npz --outputs out.npz --device cuda-or-cpu");
    for (device, model, said) in [
        // One of two sections for devices is enough, as for `cuda`.
        ("", "all.margay", "is `cuda`: a device that is not there of sm_80"),
        ("capability=90", "all.margay", "is `cuda`: a device that is not there of sm_90"),
        ("capability=75", "all.margay", "is `cpu`: compiled for `sm_80`, and the device is"),
        ("capability=75", "dense.onnx", "is `cuda`: a device that is not there of sm_75"),
        (
            "capability=70",
            "dense.onnx",
            "is `cpu`: no device: the device is a device that is not there of sm_70",
        ),
        ("devices=0", "all.margay", "is `cpu`: no device"),
    ] {
        machine = machine.with(device);
        let ran = machine.done(&run(model));
        assert!(ran.stderr.contains(&format!("note: `cuda-or-cpu` {said}")), "{device}: {}", ran.stderr);
        let run = run(model).replace("cuda-or-cpu", "cuda");
        assert_eq!(machine.run(&run).code == 0, said.starts_with("is `cuda`"), "{device}: {model}");
    }
    for (device, code) in [("memory=5000", 4), ("fault=0", 4), ("illegal=0", 101)] {
        machine = machine.with(device);
        fs::remove_file(machine.place.path("out.npz")).ok();
        for model in ["all.margay", "dense.onnx"] {
            machine.refused(&run(model), code, "note: `cuda-or-cpu` is `cuda`");
        }
        assert!(!machine.place.path("out.npz").exists(), "{device}");
    }
}
