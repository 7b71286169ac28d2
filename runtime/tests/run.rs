//! Programs from the loop level to results: compiled, written, opened, run.

use std::sync::Arc;
use std::time::Duration;

use margay_artifact::Artifact;
use margay_codegen_cpu::CpuBackend;
use margay_kernels_cpu::{Class, CpuCode, Import};
use margay_loops::{Backend, Binary, Index, Kernel, Nest, Place, Program};
use margay_runtime::{Executable, RunError, Session, SessionOptions};
use margay_tensor::{DType, Map, Tensor};

mod programs;
use programs::{
    COLUMNS, TERMS, args, assemble, backend, buffer, constant, kernel, linear, memory, native, numbers, port,
    sink,
};

/// Rows of the table of [`gathers`].
const ENTRIES: usize = 100;

/// What [`linear`] computes, in f64.
fn linear_reference(x: &[f32]) -> Vec<f64> {
    let (weight, bias) = (numbers(TERMS * COLUMNS, 1), numbers(COLUMNS, 2));
    let element = |row: &[f32], j: usize| {
        let sum: f64 = (0..TERMS).map(|k| f64::from(row[k]) * f64::from(weight[k * COLUMNS + j])).sum();
        sum + f64::from(bias[j])
    };
    x.chunks(TERMS).flat_map(|row| (0..COLUMNS).map(move |j| element(row, j)).collect::<Vec<_>>()).collect()
}

fn gather(count: usize) -> Kernel {
    let inputs = vec![memory(0, DType::F32, &[ENTRIES], &[1]), memory(1, DType::I64, &[count], &[1])];
    let mut n = Nest::new(args(&[DType::F32, DType::I64, DType::F32]), inputs, vec![sink(2, &[1])]);
    n.for_each(&[count], |n, i| {
        let id = n.load(1, i);
        let (zero, end) = (n.number(id, 0.0), n.number(id, ENTRIES as f64));
        let (low, high) = (n.binary(Binary::Le, zero, id), n.binary(Binary::Lt, id, end));
        let inside = n.binary(Binary::And, low, high);
        n.require(inside, "indices from 0 to 99");
        let value = n.load_guarded(0, &[Index::reg(id)], inside, 0.0);
        n.store(0, i, value);
    });
    n.finish()
}

/// `y = table[a]`, `z = table[b]` for `count` indices each; the table is a constant. Indices outside are faults.
fn gathers(count: usize) -> Program {
    let table = Tensor::from_slice(&[ENTRIES], &numbers(ENTRIES, 3)).unwrap();
    Program {
        inputs: vec![port("a", DType::I64, &[count]), port("b", DType::I64, &[count])],
        outputs: vec![port("y", DType::F32, &[count]), port("z", DType::F32, &[count])],
        carried: vec![],
        counted: vec![],
        constants: vec![constant(table, None)],
        buffers: vec![
            buffer(Place::Constant(0), ENTRIES * 4),
            buffer(Place::Input(0), count * 8),
            buffer(Place::Input(1), count * 8),
            buffer(Place::Output(0), count * 4),
            buffer(Place::Output(1), count * 4),
        ],
        kernels: vec![gather(count)],
        body: vec![kernel(0, &[0, 1, 3], "embed/words/Gather"), kernel(0, &[0, 2, 4], "embed/types/Gather")],
        arena_bytes: 0,
        ..Program::default()
    }
}

/// The programs through a file.
fn executable(backend: &dyn Backend, programs: &[Program]) -> Executable {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.margay");
    assemble(backend, programs).write(&path).unwrap();
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

fn backends() -> impl Iterator<Item = CpuBackend> {
    Class::ALL.into_iter().filter(|c| c.supported_here()).map(backend)
}

#[test]
fn results_are_right_on_every_class_and_any_number_of_threads() {
    for target in backends() {
        let e = executable(&target, &[linear(4, &target), linear(1500, &target)]);
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
fn a_profile_tells_what_every_step_did() {
    let target = native();
    let e = executable(&target, &[linear(1500, &target)]);
    for threads in [1, 2] {
        let mut s = session(&e, threads);
        let input = x(1500);
        let steps = s.profile(&[("x", &input)]).unwrap();
        assert_eq!(steps.len(), e.sections().next().unwrap().parts.steps.len());
        let product = steps.iter().find(|(note, _)| note.work.starts_with("matmul")).unwrap();
        assert_eq!(product.0.flops, 2 * (1500 * TERMS * COLUMNS) as u64);
        assert!(product.0.bytes >= (4 * 1500 * (TERMS + COLUMNS)) as u64);
        assert!(steps.iter().all(|(note, time)| note.regions > 0 && *time > Duration::ZERO));
        let expected = session(&e, 1).run(&[("x", &input)]).unwrap();
        assert_eq!(s.run(&[("x", &input)]).unwrap(), expected);
    }
}

#[test]
fn entries_share_constants_and_a_session_serves_them_all() {
    let target = native();
    let e = executable(&target, &[linear(4, &target), linear(9, &target)]);
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
    let target = native();
    let parts = assemble(&target, &[linear(4, &target)]).into_parts().unwrap();
    let in_memory = Executable::from_parts(parts).unwrap();
    let from_file = executable(&target, &[linear(4, &target)]);
    let input = x(4);
    let expected = session(&from_file, 1).run(&[("x", &input)]).unwrap();
    assert_eq!(session(&in_memory, 1).run(&[("x", &input)]).unwrap(), expected);
}

#[test]
fn huge_pages_change_no_bit() {
    let target = native();
    let e = executable(&target, &[linear(1500, &target)]);
    let huge = e.in_huge_pages().unwrap();
    assert_eq!(huge.weights_bytes(), e.weights_bytes());
    let input = x(1500);
    let expected = session(&e, 2).run(&[("x", &input)]).unwrap();
    drop(e);
    assert_eq!(session(&huge, 2).run(&[("x", &input)]).unwrap(), expected);
}

#[test]
fn an_executable_without_entries_takes_nothing() {
    let parts = assemble(&native(), &[]).into_parts().unwrap();
    let mut s = session(&Executable::from_parts(parts).unwrap(), 1);
    assert!(matches!(s.run(&[]), Err(RunError::NoEntry { available, .. }) if available.is_empty()));
}

#[test]
fn a_session_moves_between_threads() {
    let target = native();
    let mut s = session(&executable(&target, &[linear(4, &target)]), 2);
    let here = s.run(&[("x", &x(4))]).unwrap();
    let there = std::thread::spawn(move || s.run(&[("x", &x(4))]).unwrap()).join().unwrap();
    assert_eq!(here, there);
}

#[test]
fn misaligned_inputs_are_copied() {
    let target = native();
    let mut s = session(&executable(&target, &[linear(4, &target)]), 1);
    let aligned = x(4);
    let mut bytes = vec![0];
    bytes.extend(aligned.bytes());
    let (range, map) = (1..bytes.len(), Arc::new(Map::copy_of(&bytes).unwrap()));
    let misaligned = Tensor::from_map(DType::F32, &[4, TERMS], map, range).unwrap();
    let expected = s.run(&[("x", &aligned)]).unwrap();
    assert_eq!(s.run(&[("x", &misaligned)]).unwrap(), expected);
}

#[test]
fn a_fault_names_the_first_step_that_failed_and_does_not_stay() {
    const COUNT: usize = 50_000;
    let e = executable(&native(), &[gathers(COUNT)]);
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
        assert_eq!(
            message(&bad(COUNT - 1, 100), &good),
            "`embed/words/Gather` requires indices from 0 to 99"
        );
        assert_eq!(message(&good, &bad(0, -1)), "`embed/types/Gather` requires indices from 0 to 99");
        assert_eq!(
            message(&bad(7, i64::MIN), &bad(3, 100)),
            "`embed/words/Gather` requires indices from 0 to 99"
        );
        let outputs = s.run(&[("a", &good), ("b", &good)]).unwrap();
        let (y, table) = (outputs[0].1.to_vec::<f32>().unwrap(), numbers(100, 3));
        assert!(y.iter().enumerate().all(|(i, y)| *y == table[i % 100]));
    }
}

#[test]
fn what_cannot_run_here_is_refused() {
    let target = native();
    let message = |change: &dyn Fn(&mut margay_artifact::Parts)| {
        let mut parts = assemble(&target, &[linear(4, &target)]).into_parts().unwrap();
        change(&mut parts);
        Executable::from_parts(parts).unwrap_err()
    };
    let machine = message(&|p| p.description.entries[0].sections[0].parts.machine = "vax-vms".into());
    assert!(matches!(&machine, RunError::Machine { found, .. } if found == "vax-vms"), "{machine}");
    for name in ["x86-64-v9", "native"] {
        let above = message(&|p| p.description.entries[0].sections[0].parts.target = name.into());
        assert!(matches!(&above, RunError::Target { target, .. } if target == name), "{above}");
    }
    let mut parts = assemble(&target, &[linear(4, &target)]).into_parts().unwrap();
    parts.description.entries[0].sections[0].parts.arena_bytes = 1 << 60;
    let huge = Executable::from_parts(parts).unwrap();
    let memory = Session::new(&huge, SessionOptions { threads: 1 }).err().unwrap();
    assert!(matches!(&memory, RunError::Memory { bytes, .. } if *bytes == 1 << 60), "{memory}");
    let import = |change: &dyn Fn(&mut Import)| {
        message(&|p| {
            let range = p.description.entries[0].sections[0].code.clone();
            let mut code = CpuCode::decode(&p.code[range]).unwrap();
            change(&mut code.imports[0]);
            p.code = code.encode();
            p.description.entries[0].sections[0].code = 0..p.code.len();
        })
    };
    let kernels = import(&|i| i.version += 1);
    assert!(matches!(&kernels, RunError::Kernels { problems } if problems.len() == 1), "{kernels}");
    let kernels = import(&|i| i.name = "gemm__abacus".into());
    assert_eq!(
        kernels.to_string(),
        "kernels do not match this version of margay: `gemm__abacus` does not exist; compile the model again"
    );
    let cut = message(&|p| p.description.entries[0].sections[0].code.end -= 1);
    assert!(matches!(&cut, RunError::Code { .. }), "{cut}");
}
