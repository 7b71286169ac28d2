//! PTX of every kernel that the cases of operators, their derivatives, whole networks and training steps need, linted, and assembled
//! where ptxas is at hand: the variable `MARGAY_PTXAS` names it. With `--nocapture` the registers of the kernels are told.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::Command;
use std::time::Instant;

use margay_codegen_gpu::{GpuBackend, Mlir, lint};
use margay_ir::Op;
use margay_kernels_gpu::{Class, GpuTarget};
use margay_testkit::case_inputs;

use crate::models::Network;
use crate::{
    attention, code_in, code_of, derivatives, graph_of, is_unsupported, models, parts_of, products, stored,
    training,
};

/// The MLIR of all kernels for a class of devices, each once: exact, and where factors may be rounded to tf32.
fn kernels(class: Class) -> BTreeSet<String> {
    let exact = GpuTarget::emulated(class);
    let mut found = BTreeSet::new();
    for target in [exact, exact.with_tf32()] {
        let backend = GpuBackend::new(target);
        let graphs = Op::cases().into_iter().map(|(op, case)| {
            let constants = usize::from(matches!(&op, Op::Conv(_) | Op::MatMul(_)));
            graph_of(&op, &case_inputs(&case), constants)
        });
        let derived = derivatives::graphs().into_iter().map(|(g, _)| g);
        let forms = products::graphs().into_iter().chain(attention::graphs()).chain(stored::graphs());
        for g in graphs.chain(derived).chain(forms) {
            match code_of(&g, &backend) {
                Ok(code) => found.extend(code.modules),
                Err(e) => assert!(is_unsupported(&e), "{e}\n{g}"),
            }
        }
        for Network { name, graph, binding } in models::networks() {
            let parts = parts_of(&graph, &binding, &backend).unwrap_or_else(|e| panic!("{name}: {e}"));
            found.extend(code_in(&parts).modules);
        }
        found.extend(training::kernels(&backend));
    }
    found
}

/// Modules as one, with kernels of names of their own.
fn joined(modules: &[String]) -> String {
    let mut all = String::new();
    for (i, module) in modules.iter().enumerate() {
        for line in module.lines() {
            let is_head = [".version", ".target", ".address_size"].iter().any(|word| line.starts_with(word));
            if i > 0 && is_head {
                continue;
            }
            let line =
                line.replace("kernel", &format!("kernel{i}")).replace("shared", &format!("shared{i}_"));
            // The word is also that of the memory.
            let line = line.replace(&format!(".shared{i}_"), ".shared");
            let _ = writeln!(all, "{}", line.replace("$L__", &format!("$L{i}__")));
        }
    }
    all
}

/// What kernels of a class are assembled for: the class, and the devices of it that have instructions of their own.
fn architectures(class: Class) -> &'static [&'static str] {
    match class {
        Class::Sm75 => &["sm_75"],
        Class::Sm80 => &["sm_80"],
        Class::Sm90 => &["sm_90", "sm_90a"],
    }
}

/// What ptxas says of PTX for an architecture, if there is one.
fn assembled(ptx: &str, architecture: &str) -> Option<String> {
    let ptxas = std::env::var_os("MARGAY_PTXAS")?;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("kernels.ptx");
    std::fs::write(&file, ptx).expect("a file");
    let output = Command::new(ptxas)
        .args(["-v", "-arch", architecture, "-o"])
        .arg(folder.path().join("kernels.cubin"))
        .arg(&file)
        .output()
        .expect("ptxas runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ptxas refuses {architecture}: {said}");
    Some(said)
}

/// The registers of a thread of each kernel, rising, in what ptxas says.
fn registers(said: &str) -> Vec<usize> {
    let of_line = |line: &str| line.split_once("Used ")?.1.split_once(" registers")?.0.parse().ok();
    let mut all: Vec<usize> = said.lines().filter_map(of_line).collect();
    all.sort_unstable();
    all
}

#[test]
fn kernels_assemble_without_spills_for_every_device() {
    let mlir = Mlir::new();
    for target in Class::ALL.map(GpuTarget::new) {
        let kernels = kernels(target.class());
        assert!(kernels.len() > 150, "{}", kernels.len());
        let mut modules = Vec::new();
        for kernel in &kernels {
            let ptx = mlir.ptx(kernel, target).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
            assert!(ptx.contains(".minnctapersm 1"), "{ptx}");
            let problems = lint(&ptx);
            assert!(problems.is_empty(), "{}: {problems:?}\n{kernel}", target.name());
            modules.push(ptx);
        }
        let on_units = modules.iter().filter(|ptx| ptx.contains("mma.sync.aligned")).count();
        assert_eq!(on_units > 0, target.class() >= Class::Sm80, "{}", target.name());
        println!("{}: {} kernels, {on_units} with matrix units", target.name(), kernels.len());
        let joined = joined(&modules);
        for architecture in architectures(target.class()) {
            let begin = Instant::now();
            let Some(said) = assembled(&joined, architecture) else {
                println!("skipped: no ptxas");
                continue;
            };
            let frames = said.lines().filter(|line| line.contains("stack frame")).count();
            assert_eq!(frames, kernels.len(), "{said}");
            let clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
            let mut of_kernel = "";
            for line in said.lines() {
                of_kernel = line.split_once("Function properties for kernel").map_or(of_kernel, |(_, n)| n);
                let kernel = || of_kernel.trim().parse().ok().and_then(|n: usize| kernels.iter().nth(n));
                assert!(!line.contains("stack frame") || line.trim() == clean, "{line}: {:?}", kernel());
            }
            let registers = registers(&said);
            assert_eq!(registers.len(), kernels.len(), "{said}");
            let [half, most] = [registers[registers.len() / 2], registers[registers.len() - 1]];
            let beyond = registers.iter().filter(|n| **n > 128).count();
            println!(
                "{architecture}: no spills; registers: half of the kernels up to {half}, all up to {most}, {beyond} more than \
                 128; assembled in {} s",
                begin.elapsed().as_secs()
            );
        }
    }
}
