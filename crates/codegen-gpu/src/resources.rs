//! What kernels of PTX take of a multiprocessor: shared memory as their text says, registers as ptxas counts them, or, where
//! it is not at hand, at most.

use std::path::Path;
use std::process::Command;

use margay_kernels_gpu::{BlockUse, GpuCode, GpuTarget};

/// What a launch takes of a multiprocessor, and what that leaves room for. Nothing of it was measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaunchUse {
    /// Blocks of the launch.
    pub blocks: usize,
    /// What a block takes. Registers are the most that a thread can have, unless they were counted.
    pub block: BlockUse,
    /// Whether ptxas counted the registers.
    pub is_counted: bool,
    /// Warps that are there at once where there are blocks enough: so many at least where registers were not counted.
    pub resident_warps: usize,
    /// The most that a multiprocessor holds.
    pub most_warps: usize,
}

/// What the launches of each step of a program take, by the number of the step. With the path of ptxas it counts registers.
///
/// # Errors
/// Code that cannot be read, and a ptxas that cannot be run or refuses a kernel.
pub fn launch_uses(
    code: &[u8],
    target: GpuTarget,
    ptxas: Option<&Path>,
) -> Result<Vec<Vec<LaunchUse>>, String> {
    let code = GpuCode::decode(code)?;
    let multiprocessor = target.class().multiprocessor();
    let mut modules = Vec::with_capacity(code.modules.len());
    for module in &code.modules {
        let counted = ptxas.map(|ptxas| registers(ptxas, module, target)).transpose()?;
        modules.push((shared_bytes(module), counted));
    }
    let of_launch = |launch: &margay_kernels_gpu::Launch| {
        let (shared_bytes, counted) =
            modules.get(launch.module).ok_or_else(|| format!("a launch of module {}", launch.module))?;
        let registers = counted.unwrap_or_else(|| multiprocessor.most_registers(launch.threads));
        let block = BlockUse { threads: launch.threads, registers, shared_bytes: *shared_bytes };
        Ok(LaunchUse {
            blocks: launch.blocks,
            block,
            is_counted: counted.is_some(),
            resident_warps: multiprocessor.resident_warps(block),
            most_warps: multiprocessor.warps,
        })
    };
    code.steps.iter().map(|launches| launches.iter().map(of_launch).collect()).collect()
}

/// Bytes of shared memory of a kernel: its arrays one behind the other, each aligned as it asks for.
fn shared_bytes(ptx: &str) -> usize {
    let mut end = 0usize;
    for line in ptx.lines().filter_map(|line| line.trim().strip_prefix(".shared .align ")) {
        let align = line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(1);
        let size = line.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        let size: usize = size.and_then(|(n, _)| n.parse().ok()).unwrap_or(0);
        end = end.next_multiple_of(align) + size;
    }
    end
}

/// The registers of a thread of a kernel, as ptxas counts them.
fn registers(ptxas: &Path, ptx: &str, target: GpuTarget) -> Result<usize, String> {
    let (chip, _) = target.ptx().ok_or_else(|| format!("`{}` has no PTX", target.name()))?;
    let failed = |what: &str| format!("`{}`: {what}", ptxas.display());
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let file = folder.path().join("kernel.ptx");
    std::fs::write(&file, ptx).map_err(|e| e.to_string())?;
    let output = Command::new(ptxas)
        .args(["-v", "-arch", chip, "-o"])
        .arg(folder.path().join("kernel.cubin"))
        .arg(&file)
        .output()
        .map_err(|e| failed(&e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let counted = said.split("Used ").nth(1).and_then(|rest| rest.split_once(" registers"));
    match counted.and_then(|(n, _)| n.parse().ok()) {
        Some(n) if output.status.success() => Ok(n),
        _ => Err(failed(said.lines().next().unwrap_or("said nothing"))),
    }
}

#[cfg(test)]
mod tests {
    use margay_kernels_gpu::{Class, Launch};

    use super::*;

    const PTX: &str = ".shared .align 128 .b8 shared0[100];\n\t.shared .align 128 .b8 shared1[32];\nld.shared.f32 %f1, [%r1];";

    #[test]
    fn arrays_lie_one_behind_the_other() {
        assert_eq!(shared_bytes(PTX), 160);
        assert_eq!(shared_bytes(""), 0);
    }

    #[test]
    fn registers_that_nobody_counted_are_the_most_that_there_can_be() {
        let launch = Launch { module: 0, blocks: 7, threads: 256, args: Vec::new() };
        let code = GpuCode {
            modules: vec![PTX.to_owned()],
            steps: vec![vec![], vec![launch]],
            ..GpuCode::default()
        };
        let uses = launch_uses(&code.encode(), GpuTarget::new(Class::Sm80), None).unwrap();
        assert_eq!(uses[0], []);
        let block = BlockUse { threads: 256, registers: 255, shared_bytes: 160 };
        let expected = LaunchUse { blocks: 7, block, is_counted: false, resident_warps: 8, most_warps: 64 };
        assert_eq!(uses[1], [expected]);
        let missing =
            launch_uses(&code.encode(), GpuTarget::new(Class::Sm80), Some(Path::new("/none/ptxas")));
        assert!(missing.unwrap_err().contains("/none/ptxas"));
    }
}
