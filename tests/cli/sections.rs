//! Artifacts that hold the code of several back ends, as the program runs them.

use margay_artifact::{ArtifactBuilder, EntryParts, SectionParts};
use margay_driver::{Dump, backend, build, open};
use margay_loops::Precision;
use margay_tensor::Binding;

use crate::place::Place;

#[test]
fn each_back_end_runs_its_own_code_of_an_artifact() {
    let place = Place::new();
    let binding: Binding = [("batch".into(), 2)].into_iter().collect();
    let graph = open(&place.path("model.onnx")).unwrap().graph;
    let backends = ["cpu", "reference"].map(|name| backend::named(name, "native", Precision::F32).unwrap());
    let mut both = ArtifactBuilder::new("both");
    for backend in &backends {
        build::add_entry(&mut both, &graph, &binding, &**backend, &mut Dump::none()).unwrap();
    }
    both.write(&place.path("both.margay")).unwrap();
    let outputs = |words: &str| {
        place.done(&format!("run both.margay --inputs in.npz --outputs out.npz {words}"));
        place.read_npz("out.npz").remove(0).1.to_vec::<f32>().unwrap()
    };
    let [first, cpu, reference] = ["", "--device cpu", "--backend reference"].map(outputs);
    assert_eq!(first, cpu, "the processor comes first");
    // Sums in f64 against sums in f32: near, and not the same.
    assert_ne!(cpu, reference);
    let off = cpu.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(off < 1e-4, "{off}");
    let inspected = place.done("inspect both.margay").stdout;
    assert!(inspected.contains("cpu x86-64") || inspected.contains("cpu "), "{inspected}");
    assert!(inspected.contains("reference reference"), "{inspected}");
    let third = place.run("run both.margay --inputs in.npz --outputs out.npz --device gpu");
    assert_eq!(third.code, 2);
    assert_eq!(third.stderr, "error: unknown back end `gpu`; known are `cpu`, `cuda`, `reference`\n");
}

#[test]
fn code_that_no_back_end_of_this_margay_runs_is_refused() {
    let place = Place::new();
    let mut builder = ArtifactBuilder::new("other");
    let entry = EntryParts::default();
    let section = SectionParts {
        backend: "gpu".into(),
        target: "sm_90".into(),
        machine: "nvptx64".into(),
        arena_bytes: 0,
        steps: vec![],
        constants: vec![],
    };
    builder.add_code(entry, section, b"code");
    builder.write(&place.path("other.margay")).unwrap();
    for (words, name) in [("", "cpu"), ("--device cpu", "cpu"), ("--device reference", "reference")] {
        let ran = place.run(&format!("run other.margay --inputs in.npz --outputs out.npz {words}"));
        assert_eq!(ran.code, 2);
        let expected =
            format!("error: holds no code for the back end `{name}`; it is compiled for `sm_90` of `gpu`\n");
        assert!(ran.stderr.ends_with(&expected), "{}", ran.stderr);
    }
    assert!(!place.path("out.npz").exists());
}

#[test]
fn a_device_that_is_not_there_has_an_exit_code_of_its_own() {
    let place = Place::new();
    let mut builder = ArtifactBuilder::new("other");
    let section = |target: &str| SectionParts {
        backend: "cuda".into(),
        target: target.into(),
        machine: "any".into(),
        arena_bytes: 0,
        steps: vec![],
        constants: vec![],
    };
    builder.add_code(EntryParts::default(), section("sm_80"), b"code");
    builder.write(&place.path("gpu.margay")).unwrap();
    for words in ["", "--device cuda"] {
        let ran = place.run(&format!("run gpu.margay --inputs in.npz --outputs out.npz {words}"));
        assert_eq!(ran.code, 4, "{}", ran.stderr);
        let expected = match cfg!(feature = "cuda") {
            true => "error: no device: no CUDA driver is installed",
            false => "error: no device: this build of margay drives no GPUs",
        };
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    }
    let ran = place.run("run gpu.margay --inputs in.npz --outputs out.npz --device cpu");
    assert_eq!(ran.code, 2, "no device stands in for another");
    assert!(ran.stderr.contains("holds no code for the back end `cpu`"), "{}", ran.stderr);
}
