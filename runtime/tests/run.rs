//! Programs from the loop level to results: compiled, written, opened, run.

use std::sync::Arc;

use margay_artifact::Artifact;
use margay_kernels_cpu::{Class, CpuTarget};
use margay_loops::Program;
use margay_runtime::{Executable, RunError, Session, SessionOptions};
use margay_tensor::{DType, Tensor};
use memmap2::MmapMut;

mod programs;
use programs::{COLUMNS, TERMS, assemble, gathers, linear, linear_reference, numbers};

/// The programs through a file.
fn executable(target: CpuTarget, programs: &[Program]) -> Executable {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.margay");
    assemble(&target, programs).write(&path).unwrap();
    let artifact = Artifact::open(&path).unwrap();
    artifact.verify_weights().unwrap();
    Executable::from_artifact(&artifact).unwrap()
}

fn session(executable: &Executable, threads: usize) -> Session {
    Session::new(executable, SessionOptions { threads }).unwrap()
}

fn x(rows: usize) -> Tensor {
    Tensor::from_slice(&[rows, TERMS], &numbers(rows * TERMS, 9)).unwrap()
}

fn targets() -> impl Iterator<Item = CpuTarget> {
    Class::ALL.into_iter().filter(|c| c.supported_here()).map(CpuTarget::new)
}

#[test]
fn results_are_right_on_every_class_and_any_number_of_threads() {
    for target in targets() {
        let e = executable(target, &[linear(4, &target), linear(1500, &target)]);
        for rows in [4, 1500] {
            let input = x(rows);
            let one = session(&e, 1).run(&[("x", &input)]).unwrap();
            assert_eq!(one[0].0, "y");
            assert_eq!(one[0].1.shape(), [rows, COLUMNS]);
            let found = one[0].1.to_vec::<f32>().unwrap();
            for (y, r) in found.iter().zip(linear_reference(&input.to_vec::<f32>().unwrap())) {
                assert!((f64::from(*y) - r).abs() < 1e-5, "{target:?}, {rows} rows: {y} for {r}");
            }
            for threads in [2, 5] {
                let mut s = session(&e, threads);
                for _ in 0..3 {
                    assert!(s.run(&[("x", &input)]).unwrap() == one, "{threads} threads change bits");
                }
            }
        }
    }
}

#[test]
fn entries_share_constants_and_a_session_serves_them_all() {
    let target = CpuTarget::native();
    let e = executable(target, &[linear(4, &target), linear(9, &target)]);
    assert_eq!(e.entries().len(), 2);
    assert_eq!(e.description().constants.len(), 2);
    let mut s = session(&e, 2);
    for rows in [4, 9, 4] {
        assert_eq!(s.run(&[("x", &x(rows))]).unwrap()[0].1.shape(), [rows, COLUMNS]);
    }
    assert!(s.peak_bytes() >= 2 * 9 * COLUMNS * 4);
    let error = s.run(&[("x", &x(5))]).unwrap_err().to_string();
    assert_eq!(error, "not compiled for x: f32[5, 40]; available: x: f32[4, 40] | x: f32[9, 40]");
}

#[test]
fn code_runs_where_it_was_compiled_without_a_file() {
    let target = CpuTarget::native();
    let parts = assemble(&target, &[linear(4, &target)]).into_parts().unwrap();
    let in_memory = Executable::from_parts(parts).unwrap();
    let from_file = executable(target, &[linear(4, &target)]);
    let input = x(4);
    let expected = session(&from_file, 1).run(&[("x", &input)]).unwrap();
    assert_eq!(session(&in_memory, 1).run(&[("x", &input)]).unwrap(), expected);
}

#[test]
fn a_session_moves_between_threads() {
    let target = CpuTarget::native();
    let mut s = session(&executable(target, &[linear(4, &target)]), 2);
    let here = s.run(&[("x", &x(4))]).unwrap();
    let there = std::thread::spawn(move || s.run(&[("x", &x(4))]).unwrap()).join().unwrap();
    assert_eq!(here, there);
}

#[test]
fn misaligned_inputs_are_copied() {
    let target = CpuTarget::native();
    let mut s = session(&executable(target, &[linear(4, &target)]), 1);
    let aligned = x(4);
    let mut map = MmapMut::map_anon(1 + aligned.bytes().len()).unwrap();
    map[1..].copy_from_slice(aligned.bytes());
    let range = 1..map.len();
    let map = Arc::new(map.make_read_only().unwrap());
    let misaligned = Tensor::from_map(DType::F32, &[4, TERMS], map, range).unwrap();
    let expected = s.run(&[("x", &aligned)]).unwrap();
    assert_eq!(s.run(&[("x", &misaligned)]).unwrap(), expected);
}

#[test]
fn a_fault_names_the_first_step_that_failed_and_does_not_stay() {
    const COUNT: usize = 50_000;
    let e = executable(CpuTarget::native(), &[gathers(COUNT)]);
    let good: Vec<i64> = (0..COUNT as i64).map(|i| i % 100).collect();
    let bad = |at: usize, id: i64| {
        let mut ids = good.clone();
        ids[at] = id;
        Tensor::from_slice(&[COUNT], &ids).unwrap()
    };
    let good = Tensor::from_slice(&[COUNT], &good).unwrap();
    for threads in [1, 2, 4] {
        let mut s = session(&e, threads);
        let mut message = |a: &Tensor, b: &Tensor| s.run(&[("a", a), ("b", b)]).unwrap_err().to_string();
        assert_eq!(message(&bad(COUNT - 1, 100), &good), "index out of range at `embed/words/Gather`");
        assert_eq!(message(&good, &bad(0, -1)), "index out of range at `embed/types/Gather`");
        assert_eq!(message(&bad(7, i64::MIN), &bad(3, 100)), "index out of range at `embed/words/Gather`");
        let outputs = s.run(&[("a", &good), ("b", &good)]).unwrap();
        let (y, table) = (outputs[0].1.to_vec::<f32>().unwrap(), numbers(100, 3));
        assert!(y.iter().enumerate().all(|(i, y)| *y == table[i % 100]));
    }
}

#[test]
fn what_cannot_run_here_is_refused() {
    let target = CpuTarget::native();
    let message = |change: &dyn Fn(&mut margay_artifact::Parts)| {
        let mut parts = assemble(&target, &[linear(4, &target)]).into_parts().unwrap();
        change(&mut parts);
        Executable::from_parts(parts).unwrap_err()
    };
    let machine = message(&|p| p.description.machine = "vax-vms".into());
    assert!(matches!(&machine, RunError::Machine { found, .. } if found == "vax-vms"), "{machine}");
    for name in ["x86-64-v9", "native"] {
        let above = message(&|p| p.description.target = name.into());
        assert!(matches!(&above, RunError::Target { target, .. } if target == name), "{above}");
    }
    let kernels = message(&|p| p.description.entries[0].parts.imports[0].version += 1);
    assert!(matches!(&kernels, RunError::Kernels { problems } if problems.len() == 1), "{kernels}");
    let kernels = message(&|p| p.description.entries[0].parts.imports[0].name = "gemm__abacus".into());
    assert_eq!(
        kernels.to_string(),
        "kernels do not match this version of margay: `gemm__abacus` does not exist; compile the model again"
    );
}
