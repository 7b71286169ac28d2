//! The whole way from a model to results on a device: the program compiles PTX, finds a driver, loads and runs. The driver is
//! `margay-fake-cuda`, which the program loads as it would load that of NVIDIA, and which interprets the PTX.
//!
//! Needs the features `gpu` and `cuda`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use margay_ir::text;
use margay_onnx::{Attribute, ExportOptions, External, OnnxNode, export};
use margay_tensor::Tensor;

#[path = "cuda/learning.rs"]
mod learning;
#[path = "cli/place.rs"]
#[allow(dead_code, reason = "shared with the tests of the command line")]
mod place;
use place::{Place, Ran, json, node, write_model};

/// A folder in which the library of the driver is found, and what the device is like.
struct Machine {
    place: Place,
    device: &'static str,
}

impl Machine {
    fn new() -> Machine {
        let place = Place::new();
        // Dependencies of a test lie beside it, and a library for other languages has no hash in its name.
        let folder = std::env::current_exe().unwrap().parent().map(Path::to_path_buf).unwrap();
        let library = folder.join("libmargay_fake_cuda.so");
        assert!(library.exists(), "{}", library.display());
        fs::create_dir(place.path("driver")).unwrap();
        std::os::unix::fs::symlink(library, place.path("driver/libcuda.so")).unwrap();
        Machine { place, device: "" }
    }

    /// The machine with another device.
    fn with(self, device: &'static str) -> Machine {
        Machine { device, ..self }
    }

    /// Runs `margay` where the driver is installed.
    fn run(&self, arguments: &str) -> Ran {
        let folders = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let own = [self.place.path("driver")].into_iter().chain(std::env::split_paths(&folders));
        let output = Command::new(env!("CARGO_BIN_EXE_margay"))
            .args(arguments.split_whitespace())
            .current_dir(self.place.path("."))
            .env("LD_LIBRARY_PATH", std::env::join_paths(own.collect::<Vec<PathBuf>>()).unwrap())
            .env("MARGAY_FAKE_CUDA", self.device)
            .stdin(Stdio::null())
            .output();
        Ran::of(output.unwrap())
    }

    /// Runs it and expects success.
    fn done(&self, arguments: &str) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "margay {arguments}\n{}{}", ran.stdout, ran.stderr);
        ran
    }

    /// Runs it and expects an error.
    fn refused(&self, arguments: &str, code: i32, expected: &str) {
        let ran = self.run(arguments);
        assert_eq!(ran.code, code, "margay {arguments}\n{}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(expected), "margay {arguments}\n{}", ran.stderr);
    }
}

impl Machine {
    /// How often a round of `bench` calls each function of the driver, once all rounds are alike.
    fn calls_of_a_round(&self, arguments: &str) -> BTreeMap<String, usize> {
        assert_eq!(self.device, "trace=calls");
        let calls = |rounds: usize| {
            self.done(&format!("bench {arguments} --rounds {rounds}"));
            let mut calls = BTreeMap::<String, usize>::new();
            let text = fs::read_to_string(self.place.path("calls")).unwrap();
            text.lines().for_each(|line| *calls.entry(line.to_owned()).or_default() += 1);
            calls
        };
        let (few, many) = (calls(2), calls(5));
        let more = |(name, n): (String, usize)| {
            let more = n - few.get(&name).copied().unwrap_or(0);
            assert_eq!(more % 3, 0, "{name}: rounds are alike");
            (name, more / 3)
        };
        many.into_iter().map(more).filter(|(_, n)| *n > 0).collect()
    }
}

/// Counts by their names.
fn counts(all: &[(&str, usize)]) -> BTreeMap<String, usize> {
    all.iter().map(|(name, n)| (name.to_string(), *n)).collect()
}

/// What every run does beside its operations: two readings of the clock.
const CLOCK: [(&str, usize); 2] = [("cuEventElapsedTime", 1), ("cuEventRecord", 2)];

#[test]
fn a_run_is_one_graph_and_one_wait() {
    let machine = Machine::new().with("trace=calls");
    machine.done("compile model.onnx -o gpu.margay --device cuda:sm_80 --dim batch=2");
    let run = [("cuGraphLaunch", 1), ("cuStreamSynchronize", 1)];
    let found = machine.calls_of_a_round("gpu.margay --inputs in.npz");
    assert_eq!(found, counts(&[&CLOCK[..], &run].concat()));
    let calls = fs::read_to_string(machine.place.path("calls")).unwrap();
    let captures = calls.lines().filter(|line| *line == "cuStreamBeginCapture").count();
    assert_eq!(captures, 1, "the first run captures, and no other");
}

/// As often as there are elements that are not zero, a row is multiplied with a matrix; then as often as a number says.
const DECIDED: &str = "graph @decided(%m: i64[3, 2], %x: f32[1, 4], %w: f32[4, 4]) -> (y: f32[1, 4]) {
  %0 = non_zero %m : i64[6], i64  // find
  %1 = loop %0.1, %x, %w {body = &step, max = 5, carried = 1} : f32[1, 4]  // walk
  %2 = neg %1 : f32[1, 4]  // neg
  %3 = tanh %2 : f32[1, 4]  // tanh
  return %3
}
region &step = graph @step(%i: i64, %x: f32[1, 4], %w: f32[4, 4]) -> (x: f32[1, 4]) {
  %0 = matmul %x, %w : f32[1, 4]
  %1 = tanh %0 : f32[1, 4]
  return %1
}
";

#[test]
fn what_lies_between_decisions_of_the_host_is_captured() {
    let machine = Machine::new().with("trace=calls");
    let g = text::parse(DECIDED, &|_, _| None).unwrap_or_else(|e| panic!("{e}"));
    let model = export(&g, &ExportOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    model.write(&machine.place.path("decided.onnx"), External::Never).unwrap();
    machine.done("compile decided.onnx -o gpu.margay --device cuda:sm_80");
    for (elements, trips) in [([1, 1, 0, 1, 0, 0], 3), ([0; 6], 0), ([2; 6], 5)] {
        let m = Tensor::from_slice(&[3, 2], &elements.map(|x: i64| x)).unwrap();
        let numbers = |shape: &[usize]| {
            let all: Vec<f32> = (0..shape.iter().product()).map(|i| 0.7 - 0.1 * i as f32).collect();
            Tensor::from_slice(shape, &all).unwrap()
        };
        machine.place.write_npz("in.npz", &[("m", m), ("x", numbers(&[1, 4])), ("w", numbers(&[4, 4]))]);
        machine.done("run decided.onnx --inputs in.npz --outputs cpu.npz");
        machine.done(&format!("{RUN} --device cuda"));
        let [found, expected] = ["out.npz", "cpu.npz"].map(|name| machine.place.read_npz(name).remove(0).1);
        let off = difference(&found, &expected);
        assert!(off < 1e-5, "{trips} repetitions: {off:e}");
        let found = machine.calls_of_a_round("gpu.margay --inputs in.npz");
        // One before the loop, one for each repetition, one behind it; a wait for the number of repetitions, and one at the
        // end.
        assert_eq!(found["cuGraphLaunch"], 2 + trips, "{found:?}");
        assert_eq!(found["cuStreamSynchronize"], 2, "{found:?}");
        assert!(!found.contains_key("cuLaunchKernel"), "{found:?}");
    }
}

#[test]
fn bench_times_a_device_by_its_clock_beside_the_processor() {
    let machine = Machine::new();
    machine.done("compile model.onnx -o gpu.margay --device cuda:sm_80 --dim batch=2");
    let bench = "bench model.onnx gpu.margay --inputs in.npz --rounds 2 --device";
    for device in ["cuda", "emulated"] {
        let report = json(&machine.done(&format!("{bench} {device} --steps --json")).stdout);
        let [dense, there] = [0, 1].map(|i| &report["models"][i]);
        let number = |model: &serde_json::Value, name: &str| model[name].as_f64();
        assert_eq!((number(dense, "device_ms"), &dense["prediction_is_measured"]), (None, &true.into()));
        let (on_device, waited) = (number(there, "device_ms").unwrap(), number(there, "median_ms").unwrap());
        assert!(on_device > 0.0 && on_device < 2.0 * waited, "{device}: {on_device} of {waited} ms");
        assert_eq!(there["prediction_is_measured"], false);
        assert!(there["error"]["relative_l2"].as_f64().unwrap() < 1e-5, "{there}");
        let steps = there["steps"].as_array().unwrap();
        for step in steps {
            assert!(step["median_ms"].as_f64().unwrap() > 0.0, "{step}");
            assert!(step["least_ms"].as_f64().unwrap() > 0.0, "{step}");
            let occupancy = step["occupancy"].as_f64().unwrap();
            assert!(occupancy > 0.0 && occupancy <= 1.0, "{step}");
        }
    }
    let text = machine.done(&format!("{bench} cuda --steps")).stdout;
    assert!(text.contains("on device") && text.contains("by data sheet"), "{text}");
    assert!(text.matches(", not measured").count() > 2, "{text}");
    machine.refused("bench model.onnx --inputs in.npz --device cuda", 2, "has code for `cuda`");
    machine.refused("bench gpu.margay --inputs in.npz --device cuda:1", 4, "asked for number 1");
    machine.with("fault=3").refused("bench gpu.margay --inputs in.npz --device cuda", 4, "the device failed");
}

#[test]
fn compiling_for_a_device_needs_none() {
    let machine = Machine::new().with("trace=calls");
    let compile =
        "compile model.onnx --device cuda:sm_80 --dim batch=2 --calibrate samples.npz --max-error 0.1";
    // Nowhere is a driver.
    machine.place.done(&format!("{compile} -o without.margay"));
    let ran = machine.place.run("run without.margay --inputs in.npz --outputs out.npz");
    assert!(ran.code == 4 && ran.stderr.contains("no CUDA driver is installed"), "{}", ran.stderr);
    // Where there is one, it is not called, and nothing changes.
    machine.done(&format!("{compile} -o with.margay"));
    assert!(!machine.place.path("calls").exists(), "the driver is not called");
    assert_eq!(machine.place.bytes("without.margay"), machine.place.bytes("with.margay"));
    machine.done("run with.margay --inputs in.npz --outputs out.npz");
    assert!(machine.place.path("calls").exists(), "this calls it");
}

const RUN: &str = "run gpu.margay --inputs in.npz --outputs out.npz";

#[test]
fn a_model_is_compiled_for_a_device_and_runs_there() {
    let machine = Machine::new();
    machine.done("compile model.onnx -o gpu.margay --device cuda:sm_80 --dim batch=2");
    let report = json(&machine.done("inspect gpu.margay --json").stdout);
    let section = &report["entries"][0]["sections"][0];
    assert_eq!((&section["backend"], &section["target"]), (&"cuda".into(), &"sm_80".into()));
    let kernels = section["kernels"].as_array().unwrap();
    assert!(kernels.len() >= section["steps"].as_u64().unwrap() as usize, "{section}");
    for kernel in kernels {
        let number = |name: &str| kernel[name].as_u64().unwrap();
        assert!(number("resident_warps") > 0 && number("resident_warps") <= number("most_warps"), "{kernel}");
        assert!(number("registers") <= 255 && kernel["least_ms"].as_f64().unwrap() > 0.0, "{kernel}");
        assert_eq!(kernel["registers_are_counted"], false);
    }
    if let Some(ptxas) = std::env::var_os("MARGAY_PTXAS").map(PathBuf::from) {
        let report =
            json(&machine.done(&format!("inspect gpu.margay --json --ptxas {}", ptxas.display())).stdout);
        let counted = report["entries"][0]["sections"][0]["kernels"].as_array().unwrap();
        for (counted, most) in counted.iter().zip(kernels) {
            let number = |kernel: &serde_json::Value, name: &str| kernel[name].as_u64().unwrap();
            assert!(number(counted, "registers") <= number(most, "registers"), "{counted} {most}");
            assert!(number(counted, "resident_warps") >= number(most, "resident_warps"), "{counted} {most}");
            assert_eq!(counted["registers_are_counted"], true);
        }
    }
    // Programs that are no ptxas.
    for (program, said) in [
        ("/none/ptxas", "`/none/ptxas`: No such file or directory"),
        ("false", "`false`: it refuses a kernel: without a word"),
        ("true", "`true`: it tells no registers that can be read: ``"),
    ] {
        let expected = format!("error: what kernels take of a device cannot be told: {said}");
        machine.refused(&format!("inspect gpu.margay --ptxas {program}"), 3, &expected);
    }
    let text = machine.done("inspect gpu.margay").stdout;
    assert!(text.contains("kernels for sm_80, not measured") && text.contains("<= 255"), "{text}");
    let host = json(&machine.done("compile model.onnx -o cpu.margay --json").stdout);
    assert!(host.is_object() && !machine.done("inspect cpu.margay").stdout.contains("not measured"));
    machine.done("run model.onnx --inputs in.npz --outputs cpu.npz");
    let expected = machine.place.read_npz("cpu.npz").remove(0).1;
    for device in ["", "--device cuda", "--device emulated"] {
        let ran = machine.done(&format!("{RUN} {device}"));
        assert!(!ran.stderr.contains("fake CUDA driver"), "{}", ran.stderr);
        let off = difference(&machine.place.read_npz("out.npz").remove(0).1, &expected);
        assert!(off < 1e-5, "`{device}`: {off:e}");
        fs::remove_file(machine.place.path("out.npz")).unwrap();
    }
    // Code is only run on the device that was asked for.
    machine.refused(&format!("{RUN} --device cpu"), 2, "holds no code for the back end `cpu`");
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    let floats = |t: &Tensor| t.to_vec::<f32>().unwrap();
    floats(a).iter().zip(floats(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn what_a_machine_lacks_is_said_with_an_exit_code_of_its_own() {
    let mut machine = Machine::new();
    machine.done("compile model.onnx -o gpu.margay --device cuda:sm_80 --dim batch=2");
    machine.refused(&format!("{RUN} --device cuda:1"), 4, "the CUDA driver has 1, asked for number 1");
    for (device, expected) in [
        ("devices=0", "no device: the CUDA driver says: no CUDA-capable device is detected"),
        ("capability=75", "compiled for `sm_80`, and the device is a device that is not there of sm_75"),
        ("capability=75", "help: compile the model again with `--device cuda:sm_75`"),
        (
            "memory=5000",
            " that the plan takes in all: out of memory (CUDA_ERROR_OUT_OF_MEMORY), 5000 of 5000 bytes are free",
        ),
        (
            "fault=0",
            "the device failed: unspecified launch failure (CUDA_ERROR_LAUNCH_FAILED), in one of the steps 0 (`",
        ),
        ("fault=2", "help: `--step-by-step` waits for each step"),
    ] {
        machine = machine.with(device);
        machine.refused(&format!("{RUN} --device cuda"), 4, expected);
        machine.refused(RUN, 4, expected);
        assert!(!machine.place.path("out.npz").exists(), "{device}: nothing is written");
    }
    // Without any driver.
    let ran = machine.place.run(&format!("{RUN} --device cuda"));
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("no CUDA driver is installed"), "{}", ran.stderr);
}

#[test]
fn what_fails_on_a_device_is_told_with_its_step() {
    let mut machine = Machine::new();
    machine.done("compile model.onnx -o gpu.margay --device cuda:sm_80 --dim batch=2");
    let bench = "bench gpu.margay --inputs in.npz --rounds 1 --steps";
    let report = json(&machine.done(&format!("{bench} --json")).stdout);
    let steps = report["models"][0]["steps"].as_array().unwrap();
    let named = |step: usize| format!("{step} (`{}`)", steps[step]["label"].as_str().unwrap());
    let run = format!("{RUN} --device cuda");
    machine.done(&format!("{run} --step-by-step"));
    fs::remove_file(machine.place.path("out.npz")).unwrap();
    let last = steps.len() - 1;
    assert!(last > 1, "{report}");
    let all = format!("in one of the steps {} to {}", named(0), named(last));
    let hint = "\nhelp: `--step-by-step` waits for each step, and tells which one it is\n";
    let failed = "error: the device failed: unspecified launch failure (CUDA_ERROR_LAUNCH_FAILED)";
    let illegal = "error: this is a bug of margay: a kernel failed on the device: an illegal memory access was encountered \
                   (CUDA_ERROR_ILLEGAL_ADDRESS)";
    // The first steps have one kernel each. A fault is told by the wait for all that was submitted, or by a call before it.
    for (device, step, code, said) in [
        ("fault=0", 0, 4, failed),
        ("fault=1", 1, 4, failed),
        ("illegal=0", 0, 101, illegal),
        ("illegal=1", 1, 101, illegal),
        ("illegal=1,eager=1", 1, 101, illegal),
    ] {
        machine = machine.with(device);
        machine.refused(&run, code, &format!("{said}, {all}{hint}"));
        machine.refused(
            &format!("{run} --step-by-step"),
            code,
            &format!("{said}, in step {}\n", named(step)),
        );
        assert!(!machine.place.path("out.npz").exists(), "{device}: nothing is written");
        // Other commands do not have the option.
        let other = machine.run(bench);
        assert!(other.code == code && other.stderr.contains(&format!("{said}, {all}")), "{}", other.stderr);
        assert!(!other.stderr.contains("help: "), "{}", other.stderr);
    }
}

#[test]
fn a_fault_is_told_with_the_steps_between_two_decisions() {
    let machine = Machine::new();
    let g = text::parse(DECIDED, &|_, _| None).unwrap_or_else(|e| panic!("{e}"));
    let model = export(&g, &ExportOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    model.write(&machine.place.path("decided.onnx"), External::Never).unwrap();
    machine.done("compile decided.onnx -o gpu.margay --device cuda:sm_80");
    let m = Tensor::from_slice(&[3, 2], &[1i64, 1, 0, 1, 0, 0]).unwrap();
    let ones = |shape: &[usize]| Tensor::from_slice(shape, &vec![1f32; shape.iter().product()]).unwrap();
    machine.place.write_npz("in.npz", &[("m", m), ("x", ones(&[1, 4])), ("w", ones(&[4, 4]))]);
    let machine = machine.with("trace=calls");
    machine.done(&format!("{RUN} --step-by-step"));
    let calls = fs::read_to_string(machine.place.path("calls")).unwrap();
    let launches = calls.lines().filter(|line| *line == "cuLaunchKernel").count();
    // The first launch is before the number of repetitions is read, the last one behind that.
    let is_first = |ran: &Ran| ran.stderr.contains(" 0 (`");
    let is_last = |ran: &Ran| ran.stderr.contains("(`neg + tanh");
    let machine = machine.with("illegal=0");
    let ran = machine.run(RUN);
    assert!(ran.code == 101 && is_first(&ran) && !is_last(&ran), "{}", ran.stderr);
    let machine = machine.with(format!("illegal={}", launches - 1).leak());
    let ran = machine.run(RUN);
    assert!(ran.code == 101 && !is_first(&ran) && is_last(&ran), "{}", ran.stderr);
    assert!(ran.stderr.contains("in one of the steps "), "{}", ran.stderr);
    let ran = machine.run(&format!("{RUN} --step-by-step"));
    assert!(ran.code == 101 && ran.stderr.contains("in step ") && is_last(&ran), "{}", ran.stderr);
}

#[test]
fn data_that_a_step_does_not_take_are_an_error_of_the_data() {
    let machine = Machine::new();
    let rows = Tensor::from_slice(&[4, 3], &[0f32, 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11.]).unwrap();
    let with = |node: OnnxNode, name: &str, value: i64| OnnxNode {
        attributes: [(name.into(), Attribute::Int(value))].into(),
        ..node
    };
    let nodes = vec![
        with(node("whole", "Cast", &["x"], "i"), "to", 7),
        node("rows", "Gather", &["w", "i"], "r"),
        with(node("sum", "ReduceSum", &["r", "axis"], "y"), "keepdims", 0),
    ];
    let axis = Tensor::from_slice(&[1], &[2i64]).unwrap();
    write_model(&machine.place.path("rows.onnx"), nodes, vec![("w".into(), rows), ("axis".into(), axis)]);
    machine.done("compile rows.onnx -o gpu.margay --device cuda:sm_75");
    let given = |last: f32| Tensor::from_slice(&[2, 3], &[0f32, 1., 2., 3., 3., last]).unwrap();
    machine.place.write_npz("in.npz", &[("x", given(1.))]);
    machine.done(RUN);
    let sums = machine.place.read_npz("out.npz").remove(0).1.to_vec::<f32>().unwrap();
    assert_eq!(sums, [3., 12., 21., 30., 30., 12.]);
    machine.place.write_npz("in.npz", &[("x", given(4.))]);
    machine.refused(RUN, 2, "requires indices from -4 to 3");
}

#[test]
fn kernels_of_a_folder_are_compared_with_the_processor() {
    let machine = Machine::new();
    machine.done("selftest --class sm_80 --write kernels");
    let test = "selftest --device cuda --class sm_80 --kernels kernels --family loops,attention --small";
    let report = json(&machine.done(&format!("{test} --json")).stdout);
    let cases = report["cases"].as_array().unwrap();
    let families: Vec<&str> = cases.iter().map(|case| case["family"].as_str().unwrap()).collect();
    assert_eq!(families, ["loops", "loops", "attention", "attention", "attention", "attention"]);
    for case in cases {
        assert!(case["problem"].is_null() && case["ms"].as_f64().unwrap() > 0.0, "{case}");
    }
    machine.refused(
        "selftest --device cuda --family nothing",
        2,
        "unknown family `nothing`; known are `loops`",
    );
    // A device that fails is one that gives no right result.
    let machine = machine.with("fault=1");
    let ran = machine.run(test);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stdout.contains("not run !") && ran.stdout.contains("the device failed"), "{}", ran.stdout);
    machine.with("devices=0").refused(test, 4, "no CUDA-capable device is detected");
}

#[test]
fn the_emulator_agrees_with_the_processor_in_every_case() {
    let place = Place::new();
    let ran = place.done("selftest --device emulated --json");
    let report = json(&ran.stdout);
    let cases = report["cases"].as_array().unwrap();
    assert!(cases.len() >= 15, "{}", cases.len());
    for case in cases {
        assert!(case["problem"].is_null() && case["ms"].is_null(), "{case}");
        assert!(case["error"].as_f64().unwrap() <= case["limit"].as_f64().unwrap(), "{case}");
    }
    let table = place.done("selftest --device emulated --family sketches").stdout;
    assert!(table.starts_with("family    kernel") && !table.contains(" ms"), "{table}");
}
