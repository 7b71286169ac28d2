//! What kernels of PTX take of a multiprocessor: shared memory as their text says, registers as ptxas counts them, or, where
//! it is not at hand, at most.

use std::path::Path;
use std::process::Command;

use margay_kernels_gpu::{BlockUse, GpuCode, GpuTarget, MOST_REGISTERS};

use crate::ResourcesError;

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
/// Code that cannot be read, and a ptxas that cannot be run, refuses a kernel or says what cannot be read.
pub fn launch_uses(
    code: &[u8],
    target: GpuTarget,
    ptxas: Option<&Path>,
) -> Result<Vec<Vec<LaunchUse>>, ResourcesError> {
    let code = GpuCode::decode(code).map_err(ResourcesError::Code)?;
    let multiprocessor = target.class().multiprocessor();
    let mut modules = Vec::with_capacity(code.modules.len());
    for module in &code.modules {
        let counted = ptxas.map(|ptxas| registers(ptxas, module, target)).transpose()?;
        modules.push((shared_bytes(module)?, counted));
    }
    let of_launch = |launch: &margay_kernels_gpu::Launch| {
        let (shared_bytes, counted) = modules.get(launch.module).ok_or_else(|| {
            ResourcesError::Code(format!("a launch of module {}, which is not there", launch.module))
        })?;
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
///
/// # Errors
/// An array in another form than LLVM writes them, and more bytes than can be counted.
fn shared_bytes(ptx: &str) -> Result<usize, ResourcesError> {
    let mut end = 0usize;
    for line in ptx.lines().filter(|line| line.split_whitespace().any(|word| word == ".shared")) {
        let behind = |(align, size): (usize, usize)| end.checked_next_multiple_of(align)?.checked_add(size);
        end = shared_array(line.trim()).and_then(behind).ok_or_else(|| {
            ResourcesError::Code(format!("shared memory that cannot be counted: `{}`", line.trim()))
        })?;
    }
    Ok(end)
}

/// The alignment and the bytes of `.shared .align 16 .b8 name[512];`.
fn shared_array(line: &str) -> Option<(usize, usize)> {
    let (align, rest) = line.strip_prefix(".shared .align ")?.split_once(' ')?;
    let (_, rest) = rest.trim_start().strip_prefix(".b8 ")?.split_once('[')?;
    let size = rest.strip_suffix("];")?;
    let align = align.parse().ok().filter(|align: &usize| align.is_power_of_two())?;
    Some((align, size.parse().ok()?))
}

/// The registers of a thread of a kernel, as ptxas counts them.
fn registers(ptxas: &Path, ptx: &str, target: GpuTarget) -> Result<usize, ResourcesError> {
    let failed = |problem: String| ResourcesError::Ptxas { path: ptxas.to_owned(), problem };
    let no_file = |e: std::io::Error| failed(format!("no file can be written for it: {e}"));
    let (chip, _) = target
        .ptx()
        .ok_or_else(|| ResourcesError::Code(format!("code for `{}`, which has no PTX", target.name())))?;
    let folder = tempfile::tempdir().map_err(no_file)?;
    let file = folder.path().join("kernel.ptx");
    std::fs::write(&file, ptx).map_err(no_file)?;
    let output = Command::new(ptxas)
        .args(["-v", "-arch", chip, "-o"])
        .arg(folder.path().join("kernel.cubin"))
        .arg(&file)
        .output()
        .map_err(|e| failed(e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(failed(format!(
            "it refuses a kernel: {}",
            said.lines().next().unwrap_or("without a word")
        )));
    }
    counted_registers(&said).ok_or_else(|| {
        let said = said.lines().find(|line| line.contains("Used ")).or_else(|| said.lines().next());
        failed(format!("it tells no registers that can be read: `{}`", said.unwrap_or_default()))
    })
}

/// The number in `Used 32 registers`.
fn counted_registers(said: &str) -> Option<usize> {
    let (_, rest) = said.split_once("Used ")?;
    let (number, _) = rest.split_once(" registers")?;
    number.parse().ok().filter(|n| (1..=MOST_REGISTERS).contains(n))
}

#[cfg(test)]
mod tests {
    use margay_kernels_gpu::{Class, Launch};

    use super::*;

    const PTX: &str = ".shared .align 128 .b8 shared0[100];\n\t.shared .align 128 .b8 shared1[32];\nld.shared.f32 %f1, [%r1];";

    #[test]
    fn arrays_lie_one_behind_the_other() {
        assert_eq!(shared_bytes(PTX), Ok(160));
        assert_eq!(shared_bytes(""), Ok(0));
    }

    #[test]
    fn shared_memory_that_cannot_be_counted_is_an_error_with_its_line() {
        for line in [
            ".shared .align 0 .b8 shared0[32];".to_owned(),
            ".shared .align 24 .b8 shared0[32];".to_owned(),
            ".shared .align x .b8 shared0[32];".to_owned(),
            ".shared .align 16 .b32 shared0[32];".to_owned(),
            ".shared .align 16 .b8 shared0[-1];".to_owned(),
            ".shared .align 16 .b8 shared0[];".to_owned(),
            ".shared .align 16 .b8 shared0[32]".to_owned(),
            ".shared .b8 shared0[32];".to_owned(),
            ".extern .shared .align 16 .b8 shared0[];".to_owned(),
            format!(".shared .align 16 .b8 shared0[{}];", usize::MAX - 64),
            format!(".shared .align 16 .b8 shared0[{}0];", usize::MAX),
        ] {
            // Behind another array sums go beyond all numbers.
            let found = shared_bytes(&format!("{PTX}\n\t{line}\n"));
            let expected = format!("shared memory that cannot be counted: `{line}`");
            assert_eq!(found, Err(ResourcesError::Code(expected)));
        }
    }

    #[test]
    fn registers_are_read_where_ptxas_tells_them() {
        let said = "ptxas info    : 0 bytes gmem\nptxas info    : Used 40 registers, used 1 barriers, 160 bytes smem";
        assert_eq!(counted_registers(said), Some(40));
        for said in
            ["", "Used registers", "Used -1 registers", "Used 0 registers", "Used 256 registers", "Used 4"]
        {
            assert_eq!(counted_registers(said), None, "{said}");
        }
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
        assert!(
            matches!(missing, Err(ResourcesError::Ptxas { path, .. }) if path == Path::new("/none/ptxas"))
        );
        let cut = launch_uses(&code.encode()[..9], GpuTarget::new(Class::Sm80), None);
        assert!(matches!(cut, Err(ResourcesError::Code(_))), "{cut:?}");
    }
}
