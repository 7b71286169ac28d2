//! The code of a program as the processor back end writes it and its device reads it: machine code, and what must be
//! known to run it.
//!
//! One protobuf message. Field numbers are never used again for something else.

use prost::Message;

/// Machine code with its table and parameters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CpuCode {
    /// Bytes of scratch each thread needs, without the header.
    pub scratch_bytes: usize,
    /// Where each generated kernel begins in the machine code, in the order of the driver's table.
    pub kernels: Vec<usize>,
    /// Where the driver begins in the machine code, a [`DriverFn`](crate::abi::DriverFn).
    pub driver: usize,
    /// Hand-written kernels, in the order of the driver's table, where they follow the generated ones.
    pub imports: Vec<Import>,
    /// The parameter words of all steps.
    pub params: Vec<u64>,
    /// Position-independent machine code without relocations, to be mapped executable at a multiple of 64.
    pub machine_code: Vec<u8>,
}

/// A hand-written kernel that code calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Import {
    /// Its name in the table of kernels.
    pub name: String,
    /// The version of its contract that the code was compiled for.
    pub version: u32,
}

/// Architecture and operating system of machine code that is made here and runs here.
pub fn this_machine() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

#[derive(Clone, PartialEq, Message)]
struct CodeMessage {
    #[prost(uint64, tag = "1")]
    scratch_bytes: u64,
    #[prost(uint64, repeated, tag = "2")]
    kernels: Vec<u64>,
    #[prost(uint64, tag = "3")]
    driver: u64,
    #[prost(message, repeated, tag = "4")]
    imports: Vec<ImportMessage>,
    #[prost(uint64, repeated, tag = "5")]
    params: Vec<u64>,
    #[prost(bytes = "vec", tag = "6")]
    machine_code: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ImportMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    version: u32,
}

impl CpuCode {
    /// The code as bytes; the same code gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let import = |i: &Import| ImportMessage { name: i.name.clone(), version: i.version };
        CodeMessage {
            scratch_bytes: self.scratch_bytes as u64,
            kernels: self.kernels.iter().map(|&at| at as u64).collect(),
            driver: self.driver as u64,
            imports: self.imports.iter().map(import).collect(),
            params: self.params.clone(),
            machine_code: self.machine_code.clone(),
        }
        .encode_to_vec()
    }

    /// Reads what [`encode`](CpuCode::encode) wrote. Every function of the result begins in the machine code.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<CpuCode, String> {
        let message = CodeMessage::decode(bytes).map_err(|e| e.to_string())?;
        let limit = message.machine_code.len();
        let function = |at: u64| match usize::try_from(at) {
            Ok(at) if at < limit => Ok(at),
            _ => Err(format!("a function begins at {at}, expected less than {limit}")),
        };
        let scratch = usize::try_from(message.scratch_bytes).ok().filter(|&n| n <= isize::MAX as usize / 2);
        let import = |i: ImportMessage| Import { name: i.name, version: i.version };
        Ok(CpuCode {
            scratch_bytes: scratch.ok_or_else(|| {
                format!("scratch of {} is more than memory can hold", message.scratch_bytes)
            })?,
            kernels: message.kernels.into_iter().map(function).collect::<Result<_, _>>()?,
            driver: function(message.driver)?,
            imports: message.imports.into_iter().map(import).collect(),
            params: message.params,
            machine_code: message.machine_code,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> CpuCode {
        CpuCode {
            scratch_bytes: 100,
            kernels: vec![0, 16],
            driver: 32,
            imports: vec![Import { name: "matmul".into(), version: 3 }],
            params: vec![0, u64::MAX],
            machine_code: vec![0xc3; 64],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(CpuCode::decode(&code().encode()), Ok(code()));
    }

    #[test]
    fn numbers_are_checked() {
        type Change = fn(&mut CpuCode);
        let cases: [(Change, &str); 3] = [
            (|c| c.driver = 64, "a function begins at 64, expected less than 64"),
            (|c| c.kernels[1] = 65, "a function begins at 65, expected less than 64"),
            (
                |c| c.scratch_bytes = usize::MAX,
                "scratch of 18446744073709551615 is more than memory can hold",
            ),
        ];
        for (change, expected) in cases {
            let mut c = code();
            change(&mut c);
            assert_eq!(CpuCode::decode(&c.encode()).unwrap_err(), expected);
        }
        assert!(CpuCode::decode(b"\xff\xff").is_err());
        assert!(CpuCode::decode(b"").is_err(), "a driver is there");
    }
}
