//! Device code as artifacts hold it: the program, the kernels of its steps, and how each is launched.
//!
//! It is one JSON text. Kernels are PTX for a device and MLIR for the emulator.

use serde::{Deserialize, Serialize};

/// The name of the kernel in every module.
pub const ENTRY: &str = "kernel";

/// What buffers begin at a multiple of, in bytes.
pub const BUFFER_ALIGN: usize = 256;

/// What is made of a program.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct GpuCode {
    /// Where each constant of the program lies in the constants of the artifact, in bytes.
    pub constants: Vec<usize>,
    /// The text of the program, whose tree of steps the host follows.
    pub program: String,
    /// The modules, each with a kernel named [`ENTRY`].
    pub modules: Vec<String>,
    /// What is launched for each step, one after the other, by the number of the step.
    pub steps: Vec<Vec<Launch>>,
}

/// One launch of a kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Launch {
    /// The number of its module.
    pub module: usize,
    /// Blocks.
    pub blocks: usize,
    /// Threads of a block.
    pub threads: usize,
    /// What the kernel is handed, in order; 64 bits each.
    pub args: Vec<LaunchArg>,
}

/// An argument of a launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LaunchArg {
    /// The address of an operand of the step, by its position.
    Operand(usize),
    /// The address of the word that receives faults.
    Fault,
    /// A number.
    Word(u64),
    /// The value of a size of the program, by its number.
    Size(u32),
}

impl GpuCode {
    /// The code as bytes.
    ///
    /// # Panics
    /// Never: every field has a JSON form.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("every field has a JSON form")
    }

    /// Reads what [`encode`](GpuCode::encode) wrote.
    ///
    /// # Errors
    /// What is malformed.
    pub fn decode(bytes: &[u8]) -> Result<GpuCode, String> {
        serde_json::from_slice(bytes).map_err(|e| e.to_string())
    }
}

/// What a kernel [raises](crate::Writer::raise) the word of faults to when a requirement fails. The greatest word stays:
/// that of the first step, and of its requirements the last, as on every device.
pub const fn fault_word(step: u32, requirement: u32) -> u64 {
    ((u32::MAX - step) as u64) << 32 | requirement as u64
}

/// The step and the requirement of a [`fault_word`]; `None` for 0, which is no fault.
pub const fn fault_of(word: u64) -> Option<(u32, u32)> {
    match word {
        0 => None,
        word => Some((u32::MAX - (word >> 32) as u32, word as u32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_that_failed_has_the_greatest_word() {
        assert!(fault_word(0, 0) > fault_word(1, 9));
        assert!(fault_word(3, 2) > fault_word(3, 1));
        assert_eq!(fault_of(fault_word(7, 3)), Some((7, 3)));
        assert_eq!(fault_of(0), None);
    }

    #[test]
    fn code_reads_back() {
        let launch = Launch {
            module: 0,
            blocks: 3,
            threads: 128,
            args: vec![
                LaunchArg::Operand(1),
                LaunchArg::Fault,
                LaunchArg::Word(u64::MAX),
                LaunchArg::Size(2),
            ],
        };
        let code = GpuCode {
            constants: vec![0, 256],
            program: "text".into(),
            modules: vec!["module".into()],
            steps: vec![vec![], vec![launch]],
        };
        assert_eq!(GpuCode::decode(&code.encode()), Ok(code));
        assert!(GpuCode::decode(b"{").is_err());
    }
}
