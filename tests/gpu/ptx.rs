//! PTX of every kernel that the cases of operators, their derivatives, whole networks and training steps need, linted, and assembled
//! where ptxas is at hand: the variable `MARGAY_PTXAS` names it.

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
    attention, code_in, code_of, derivatives, graph_of, models, parts_of, products, stored, training,
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
            if let Ok(code) = code_of(&g, &backend) {
                found.extend(code.modules);
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

/// What ptxas says of PTX for a target, if there is one.
fn assembled(ptx: &str, target: GpuTarget) -> Option<String> {
    let ptxas = std::env::var_os("MARGAY_PTXAS")?;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("kernels.ptx");
    std::fs::write(&file, ptx).expect("a file");
    let output = Command::new(ptxas)
        .args(["-v", "-arch", target.name(), "-o"])
        .arg(folder.path().join("kernels.cubin"))
        .arg(&file)
        .output()
        .expect("ptxas runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ptxas refuses {}: {said}", target.name());
    Some(said)
}

#[test]
fn kernels_assemble_without_spills_for_every_device() {
    let mlir = Mlir::new();
    for target in Class::ALL.map(GpuTarget::new) {
        let begin = Instant::now();
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
        let Some(said) = assembled(&joined(&modules), target) else {
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
        let seconds = begin.elapsed().as_secs();
        println!(
            "{}: {} kernels, {on_units} with matrix units, in {seconds} s",
            target.name(),
            kernels.len()
        );
    }
}
