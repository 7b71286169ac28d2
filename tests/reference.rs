//! The reference back end by itself: what it reports of faulty programs, artifacts that hold code for it beside that of
//! the processor, and real networks. What it makes of operators is compared where all back ends are.

use std::path::{Path, PathBuf};

use margay_artifact::{Artifact, ArtifactBuilder};
use margay_driver::{Dump, Runner, backend, build, open};
use margay_ir::{Graph, TensorType, eval, text};
use margay_loops::{Backend, Precision, Program, parse_program};
use margay_reference::run;
use margay_runtime::{Executable, Session, SessionOptions};
use margay_tensor::{Binding, Tensor};
use margay_testkit::{Tolerance, assert_close, normal};

/// What interpreting a program of two f32[4] ports, some memory and some text behind it says.
fn told(rest: &str) -> String {
    let program: Program = parse_program(&format!("input x: f32[4]\noutput y: f32[4]\n{rest}"), &|_| None)
        .unwrap_or_else(|e| panic!("{e}\n{rest}"));
    let x = Tensor::from_slice(&[4], &[1f32, 2.0, 3.0, 4.0]).unwrap();
    match run(&program, &[&x]) {
        Ok(outputs) => format!("{:?}", outputs[0].to_vec::<f32>().unwrap()),
        Err(e) => e.to_string(),
    }
}

#[test]
fn a_faulty_program_is_an_error_that_names_the_place() {
    let kernel = |body: &str| format!("k0: kernel(r f32, w f32)\n  for i0 in 0..4 parallel\n{body}");
    let simple = kernel("    %0 = load a0[i0]\n    store a1[i0] = %0\n");
    let doubled = kernel("    %0 = load a0[i0]\n    %1 = add %0, %0\n    store a1[i0] = %1\n");
    let right = format!("arena 0 bytes\n{doubled}steps\n  k0 (in0, out0)  // twice\n");
    assert_eq!(told(&right), "[2.0, 4.0, 6.0, 8.0]");

    let beyond = kernel("    %0 = load a0[i0 + 1]\n    store a1[i0] = %0\n");
    assert_eq!(
        told(&format!("arena 0 bytes\n{beyond}steps\n  k0 (in0, out0)  // fc\n")),
        "step 0 (k0, `fc`): element 4 of argument 0, f32, lies outside of its buffer of 16 bytes"
    );
    assert_eq!(
        told(&format!(
            "arena 16 bytes\ntemporary t0: 16 bytes at 0\n{simple}steps\n  k0 (t0, out0)  // early\n"
        )),
        "step 0 (k0, `early`): element 0 of argument 0 is read and was never written"
    );
    // Two temporaries in one place, both alive.
    assert_eq!(
        told(&format!(
            "arena 16 bytes\ntemporary t0: 16 bytes at 0\ntemporary t1: 16 bytes at 0\n{simple}steps\n  \
             k0 (in0, t0)  // a\n  k0 (in0, t1)  // b\n  k0 (t0, out0)  // c\n"
        )),
        "step 2 (k0, `c`): element 0 of argument 0 is read after buffer 3 was written over it"
    );
    let shared = kernel("    %0 = load a0[i0]\n    store a1[0] = %0\n");
    assert_eq!(
        told(&format!("arena 0 bytes\n{shared}steps\n  k0 (in0, out0)  // race\n")),
        "step 0 (k0, `race`): element 0 of argument 1 is reached by work item 1 and written by work item 0"
    );
    assert_eq!(
        told(&format!("arena 0 bytes\n{simple}steps\n  k0 (in0, in0)  // back\n")),
        "step 0 (k0, `back`): argument 1 is written and may only be read"
    );
    let half =
        "k0: kernel(r f32, w f32)\n  for i0 in 0..2 parallel\n    %0 = load a0[i0]\n    store a1[i0] = %0\n";
    assert_eq!(
        told(&format!("arena 0 bytes\n{half}steps\n  k0 (in0, out0)  // half\n")),
        "output `y` was not written whole"
    );
}

/// Two layers with constants that the processor and the reference pack in different ways.
fn network() -> Graph {
    let source = "graph @net(%x: f32[B, 8]) -> (y: f32[B, 3]) {
       %0 = const #w1 : f32[8, 16]
       %1 = matmul %x, %0 : f32[B, 16]
       %2 = relu %1 : f32[B, 16]
       %3 = const #w2 : f32[16, 3]
       %4 = matmul %2, %3 : f32[B, 3]
       return %4
     }";
    let resolve = |key: &str, ty: &TensorType| {
        let tensor = normal(&ty.extents()?, 3, key.len() as u64 + u64::from(key == "#w2"));
        Some(tensor.into())
    };
    text::parse(source, &resolve).unwrap()
}

fn reference() -> std::sync::Arc<dyn Backend> {
    backend::named("reference", "native", Precision::F32).unwrap()
}

#[test]
fn code_for_two_back_ends_lies_in_one_artifact() {
    let g = network();
    let binding: Binding = [("B".into(), 5)].into_iter().collect();
    let backends = [backend::native(), reference()];
    let mut builder = ArtifactBuilder::new("net");
    for backend in &backends {
        build::add_entry(&mut builder, &g, &binding, &**backend, &mut Dump::none()).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.margay");
    builder.write(&path).unwrap();

    let artifact = Artifact::open(&path).unwrap();
    artifact.verify_weights().unwrap();
    let [entry] = artifact.description().entries.as_slice() else { panic!("one entry") };
    let of: Vec<&str> = entry.sections.iter().map(|s| s.parts.backend.as_str()).collect();
    assert_eq!(of, ["cpu", "reference"]);
    let layouts = artifact.description().constants.iter().filter_map(|c| c.layout.as_ref());
    let mut packers: Vec<&str> = layouts.map(|l| l.backend.as_str()).collect();
    packers.sort_unstable();
    assert_eq!(packers, ["cpu", "cpu", "reference", "reference"]);

    let x = normal(&[5, 8], 4, 0);
    let mut bound = g.clone();
    margay_passes::Pipeline::bind(&binding, &reference().preferences()).run(&mut bound, &mut |_| ()).unwrap();
    let expected = eval::run(&bound, &[("x", &x)]).unwrap();
    for name in ["cpu", "reference"] {
        let executable = Executable::from_artifact_on(&artifact, &[backend::device(name).unwrap()]).unwrap();
        assert!(executable.sections().all(|s| s.parts.backend == name));
        let mut session = Session::new(&executable, SessionOptions { threads: 1 }).unwrap();
        for _ in 0..2 {
            let found = session.run(&[("x", &x)]).unwrap();
            assert_close(name, &found[0].1, &expected[0], Tolerance::REDUCTION);
        }
        let notes = session.profile(&[("x", &x)]).unwrap();
        assert!(!notes.is_empty() && notes.iter().all(|(note, _)| note.regions > 0), "{name}: {notes:?}");
    }
    // Without a choice the processor comes first.
    let executable = backend::load(&artifact, None).unwrap();
    assert!(executable.sections().all(|s| s.parts.backend == "cpu"));
}

#[test]
fn code_that_is_no_program_is_refused() {
    let g = network();
    let binding: Binding = [("B".into(), 1)].into_iter().collect();
    let backend = reference();
    let mut builder = ArtifactBuilder::new("net");
    let mut bound = g.clone();
    margay_passes::Pipeline::bind(&binding, &reference().preferences()).run(&mut bound, &mut |_| ()).unwrap();
    let program = margay_lower::lower(&bound, &*reference()).unwrap();
    let offsets = vec![0; program.constants.len()];
    let code = reference().compile(&program, &offsets).unwrap();
    let good = String::from_utf8(code.bytes).unwrap();
    build::add_entry(&mut builder, &g, &binding, &*backend, &mut Dump::none()).unwrap();
    let mut parts = builder.into_parts().unwrap();
    let mut refused = |wrong: String| {
        assert_ne!(good, wrong);
        parts.code = wrong.into_bytes();
        parts.description.entries[0].sections[0].code = 0..parts.code.len();
        let (description, code, weights) = (parts.description.clone(), parts.code.clone(), &parts.weights);
        let weights = margay_tensor::Map::copy_of(weights).unwrap();
        let parts = margay_artifact::Parts { description, code, weights };
        Executable::from_parts_on(parts, &[backend::device("reference").unwrap()]).unwrap_err().to_string()
    };
    // Its temporaries lie outside of the arena.
    let error = refused(good.replacen("arena ", "arena 0 bytes\n// ", 1));
    assert!(error.contains("arena"), "{error}");
    // A constant that would take more memory than there are weights.
    let (start, rest) = good.split_once("constant c0: f32[").unwrap();
    let (_, rest) = rest.split_once(']').unwrap();
    let error = refused(format!("{start}constant c0: f32[1099511627776]{rest}"));
    assert!(error.contains("is not at hand"), "{error}");
}

/// A kernel that reads where its first input says, in place of another program that takes and gives the same.
#[test]
fn what_a_run_does_wrong_is_an_error_of_the_run() {
    let source = "graph @pick(%i: i64[4], %x: f32[6]) -> (y: f32[4]) {
       %0 = gather %x, %i {axis = 0} : f32[4]  // rows
       return %0
     }";
    let g = text::parse(source, &|_, _| None).unwrap();
    let backend = reference();
    let mut builder = ArtifactBuilder::new("pick");
    build::add_entry(&mut builder, &g, &Binding::new(), &*backend, &mut Dump::none()).unwrap();
    let mut parts = builder.into_parts().unwrap();
    let code = "constants at
input i: i64[4]
input x: f32[6]
output y: f32[4]
arena 0 bytes
k0: kernel(r i64, r f32, w f32)
  for i0 in 0..4 parallel
    %0 = load a0[i0]
    %1 = load a1[%0]
    store a2[i0] = %1
steps
  k0 (in0, in1, out0)  // rows
";
    parts.code = code.as_bytes().to_vec();
    parts.description.entries[0].sections[0].code = 0..parts.code.len();
    let executable = Executable::from_parts_on(parts, &[backend::device("reference").unwrap()]).unwrap();
    let mut session = Session::new(&executable, SessionOptions { threads: 1 }).unwrap();
    let x = normal(&[6], 1, 0);
    let mut at = |positions: [i64; 4]| {
        let i = Tensor::from_slice(&[4], &positions).unwrap();
        session.run(&[("i", &i), ("x", &x)]).map(|outputs| outputs[0].1.to_vec::<f32>().unwrap())
    };
    let numbers = x.to_vec::<f32>().unwrap();
    assert_eq!(at([5, 0, 1, 2]).unwrap(), [numbers[5], numbers[0], numbers[1], numbers[2]]);
    for (position, outside) in [([0, 1, 6, 2], 6), ([-1, 0, 0, 0], -1)] {
        let error = at(position).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the compiled program is wrong: step 0 (k0, `rows`): element {outside} of argument 1, f32, lies \
                 outside of its buffer of 24 bytes"
            )
        );
        assert_eq!(margay_driver::DriverError::from(error).kind(), margay_driver::Kind::Internal);
    }
    // The session goes on.
    assert_eq!(at([3, 3, 3, 3]).unwrap(), [numbers[3]; 4]);
}

/// A model through the processor and through the reference back end.
fn agrees(path: &Path, inputs: &[(String, Tensor)]) {
    let source = open(path).unwrap_or_else(|e| panic!("{e}"));
    let results = [backend::native(), reference()].map(|backend| {
        let mut runner = Runner::new(source.graph.clone(), &backend, 2);
        runner.run(inputs).unwrap_or_else(|e| panic!("{}: {e}", backend.name()))
    });
    for ((name, found), (_, expected)) in results[1].iter().zip(&results[0]) {
        assert_close(&format!("{}: {name}", path.display()), found, expected, Tolerance::REDUCTION);
    }
}

#[test]
fn networks_agree_with_compiled_ones() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/model.onnx");
    agrees(&demo, &[("image".into(), normal(&[2, 1, 28, 28], 4, 0))]);
    let Some(folder) = std::env::var_os("MARGAY_TEST_DATA").map(PathBuf::from) else {
        println!("skipped: no test data");
        return;
    };
    let file = std::fs::File::open(folder.join("minilm_l3_b2_s16.in.npz")).unwrap();
    let inputs = margay_npy::read_npz(std::io::BufReader::new(file)).unwrap();
    agrees(&folder.join("minilm_l3.onnx"), &inputs);
}
