//! PTX of every kernel that the cases of operators need, linted, and assembled where ptxas is at hand: the variable
//! `MARGAY_PTXAS` names it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::Command;

use margay_artifact::ArtifactBuilder;
use margay_codegen_gpu::{GpuBackend, Mlir, lint};
use margay_driver::{Dump, build};
use margay_ir::Op;
use margay_kernels_gpu::{GpuCode, GpuTarget};
use margay_tensor::Binding;
use margay_testkit::case_inputs;

use crate::graph_of;

/// The MLIR of all kernels, each once.
fn kernels() -> BTreeSet<String> {
    let backend = GpuBackend::new(GpuTarget::Emulated);
    let mut found = BTreeSet::new();
    for (op, case) in Op::cases() {
        let constants = usize::from(matches!(&op, Op::Conv(_) | Op::MatMul(_)));
        let g = graph_of(&op, &case_inputs(&case), constants);
        let mut builder = ArtifactBuilder::new("kernels");
        if build::add_entry(&mut builder, &g, &Binding::new(), &backend, &mut Dump::none()).is_err() {
            continue;
        }
        let parts = builder.into_parts().expect("parts");
        for entry in &parts.description.entries {
            let code = GpuCode::decode(&parts.code[entry.sections[0].code.clone()]).expect("code");
            found.extend(code.modules);
        }
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
                line.replace("kernel", &format!("kernel{i}")).replace("shared0", &format!("shared0_{i}"));
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
    let kernels = kernels();
    assert!(kernels.len() > 150, "{}", kernels.len());
    let mlir = Mlir::new();
    for target in [GpuTarget::Sm75, GpuTarget::Sm80, GpuTarget::Sm90] {
        let mut modules = Vec::new();
        for kernel in &kernels {
            let ptx = mlir.ptx(kernel, target).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
            let problems = lint(&ptx);
            assert!(problems.is_empty(), "{}: {problems:?}\n{kernel}", target.name());
            modules.push(ptx);
        }
        let Some(said) = assembled(&joined(&modules), target) else {
            println!("skipped: no ptxas");
            continue;
        };
        let frames: Vec<&str> = said.lines().filter(|line| line.contains("stack frame")).collect();
        assert_eq!(frames.len(), kernels.len(), "{said}");
        let spilled = frames
            .iter()
            .filter(|line| line.trim() != "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads");
        assert_eq!(spilled.count(), 0, "{said}");
        println!("{}: {} kernels", target.name(), kernels.len());
    }
}
