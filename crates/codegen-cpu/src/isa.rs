//! Processor classes.

use cranelift_codegen::isa::{OwnedTargetIsa, TargetIsa, lookup_by_name};
use cranelift_codegen::settings::{self, Configurable, Flags};

use crate::CodegenError;

/// The instructions that generated code may use.
///
/// A class stands for a fixed list of instruction sets: the machine that compiles is never asked, so that one class
/// gives the same bytes everywhere. Cranelift's vectors have 128 bits in every class.
#[derive(Clone)]
pub struct CpuIsa {
    name: String,
    isa: OwnedTargetIsa,
    fused: bool,
    rounding: bool,
    wide_rows: bool,
}

const AVX2_FLAGS: &[&str] = &[
    "has_sse3",
    "has_ssse3",
    "has_sse41",
    "has_sse42",
    "has_popcnt",
    "has_lzcnt",
    "has_bmi1",
    "has_bmi2",
    "has_avx",
    "has_avx2",
    "has_fma",
];

/// Classes and their flags. `x86-64-v4` and above have no flags of their own: Cranelift has no 512-bit vectors, and what it knows
/// of AVX-512 in 128 bits is of no use to loops over f32.
#[cfg(target_arch = "x86_64")]
const CLASSES: &[(&str, &[&str])] = &[
    ("portable", &[]),
    ("x86-64-v3", AVX2_FLAGS),
    ("x86-64-v4", AVX2_FLAGS),
    ("x86-64-v4-bf16", AVX2_FLAGS),
];
#[cfg(not(target_arch = "x86_64"))]
const CLASSES: &[(&str, &[&str])] = &[("portable", &[])];

#[cfg(all(target_arch = "x86_64", not(windows)))]
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
#[cfg(all(target_arch = "x86_64", windows))]
const TRIPLE: &str = "x86_64-pc-windows-msvc";
#[cfg(all(target_arch = "aarch64", target_vendor = "apple"))]
const TRIPLE: &str = "aarch64-apple-darwin";
#[cfg(all(target_arch = "aarch64", not(target_vendor = "apple")))]
const TRIPLE: &str = "aarch64-unknown-linux-gnu";
#[cfg(target_arch = "riscv64")]
const TRIPLE: &str = "riscv64gc-unknown-linux-gnu";
#[cfg(target_arch = "s390x")]
const TRIPLE: &str = "s390x-unknown-linux-gnu";

impl CpuIsa {
    /// The class called `name`: `x86-64-v4`, `x86-64-v3`, or `portable` for what every processor of the
    /// architecture has.
    pub fn for_class(name: &str) -> Result<CpuIsa, CodegenError> {
        let (_, flags) = CLASSES.iter().find(|(class, _)| *class == name).ok_or_else(|| {
            let expected: Vec<&str> = CLASSES.iter().map(|c| c.0).collect();
            CodegenError::UnknownCpu { name: name.to_string(), expected: expected.join(", ") }
        })?;
        let isa = build(flags).map_err(|message| CodegenError::Cranelift {
            function: format!("processor class {name}"),
            message,
        })?;
        let x86 = cfg!(target_arch = "x86_64");
        Ok(CpuIsa {
            name: name.to_string(),
            isa,
            fused: !x86 || flags.contains(&"has_fma"),
            rounding: !x86 || flags.contains(&"has_sse41"),
            wide_rows: x86 && flags.contains(&"has_avx2"),
        })
    }

    /// The name of the class.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is a fused multiply-add instruction.
    pub(crate) fn fused(&self) -> bool {
        self.fused
    }

    /// Whether there are instructions that round to an integer.
    pub(crate) fn rounding(&self) -> bool {
        self.rounding
    }

    /// Whether hand-written functions of rows have wider vectors than generated code.
    pub(crate) fn wide_rows(&self) -> bool {
        self.wide_rows
    }

    pub(crate) fn target(&self) -> &dyn TargetIsa {
        self.isa.as_ref()
    }
}

fn build(flags: &[&str]) -> Result<OwnedTargetIsa, String> {
    let mut shared = settings::builder();
    let checked = if cfg!(any(test, debug_assertions)) { "true" } else { "false" };
    for (flag, value) in [("opt_level", "speed"), ("enable_verifier", checked), ("unwind_info", "false")] {
        shared.set(flag, value).map_err(|e| e.to_string())?;
    }
    let mut builder = lookup_by_name(TRIPLE).map_err(|e| e.to_string())?;
    for flag in flags {
        builder.enable(flag).map_err(|e| e.to_string())?;
    }
    builder.finish(Flags::new(shared)).map_err(|e| e.to_string())
}
