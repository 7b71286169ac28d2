//! The code of a program as the processor back end writes it and its device reads it: machine code, and what must be
//! known to run it.
//!
//! One protobuf message. Field numbers are never used again for something else.

use margay_loops::Packed;
use prost::Message;

use crate::{Launch, Term};

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
    /// The [table of words](crate::table) of a closed program; of an open one, nothing: imports and words follow from sizes.
    pub params: Vec<u64>,
    /// What the steps of an open program launch; of a closed one, nothing.
    pub launches: Vec<Launch>,
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
    #[prost(message, repeated, tag = "7")]
    launches: Vec<LaunchMessage>,
}

/// A launch of a kernel where `call` is empty, else of a call.
#[derive(Clone, PartialEq, Message)]
struct LaunchMessage {
    #[prost(uint64, tag = "1")]
    step: u64,
    #[prost(uint64, tag = "2")]
    slot: u64,
    #[prost(message, optional, tag = "3")]
    items: Option<TermMessage>,
    #[prost(message, repeated, tag = "4")]
    operations: Vec<TermMessage>,
    #[prost(uint64, tag = "5")]
    block: u64,
    #[prost(message, repeated, tag = "6")]
    params: Vec<TermMessage>,
    #[prost(string, tag = "7")]
    call: String,
    #[prost(uint64, tag = "8")]
    regions: u64,
    #[prost(uint64, tag = "9")]
    workspace_bytes: u64,
    #[prost(message, repeated, tag = "10")]
    packed: Vec<PackedMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct TermMessage {
    #[prost(uint64, tag = "1")]
    factor: u64,
    #[prost(uint32, repeated, tag = "2")]
    sizes: Vec<u32>,
    #[prost(uint64, tag = "3")]
    divisor: u64,
}

#[derive(Clone, PartialEq, Message)]
struct PackedMessage {
    #[prost(uint64, tag = "1")]
    operand: u64,
    #[prost(string, tag = "2")]
    layout: String,
    #[prost(uint64, tag = "3")]
    bytes: u64,
}

fn term_message(t: &Term) -> TermMessage {
    TermMessage { factor: t.factor, sizes: t.sizes.clone(), divisor: t.divisor }
}

fn term(m: TermMessage) -> Term {
    Term { factor: m.factor, divisor: m.divisor, sizes: m.sizes }
}

fn launch_message(launch: &Launch) -> LaunchMessage {
    match launch {
        Launch::Kernel { step, slot, items, operations, block, params } => LaunchMessage {
            step: *step,
            slot: *slot as u64,
            items: Some(term_message(items)),
            operations: operations.iter().map(term_message).collect(),
            block: *block as u64,
            params: params.iter().map(term_message).collect(),
            ..LaunchMessage::default()
        },
        Launch::Call { call, regions, workspace_bytes, packed } => LaunchMessage {
            call: call.clone(),
            regions: *regions as u64,
            workspace_bytes: *workspace_bytes as u64,
            packed: packed.iter().map(packed_message).collect(),
            ..LaunchMessage::default()
        },
    }
}

fn packed_message(p: &Packed) -> PackedMessage {
    PackedMessage { operand: p.operand as u64, layout: p.layout.clone(), bytes: p.bytes as u64 }
}

/// A launch whose kernel is one of `kernels` generated ones.
fn launch(m: LaunchMessage, kernels: usize) -> Result<Launch, String> {
    let count = |what: &str, n: u64, limit: usize| match usize::try_from(n) {
        Ok(n) if n <= limit => Ok(n),
        _ => Err(format!("{what} is {n}, expected at most {limit}")),
    };
    const MAX_REGIONS: usize = 64;
    if m.call.is_empty() {
        return Ok(Launch::Kernel {
            step: m.step,
            slot: count("a kernel", m.slot, kernels)?,
            items: m.items.map(term).ok_or("a launch without items")?,
            operations: m.operations.into_iter().map(term).collect(),
            block: count("a block", m.block, isize::MAX as usize)?,
            params: m.params.into_iter().map(term).collect(),
        });
    }
    let packed = m.packed.into_iter().map(|p| {
        let (operand, bytes) =
            (count("an operand", p.operand, 64)?, count("bytes", p.bytes, isize::MAX as usize)?);
        Ok(Packed { operand, layout: p.layout, bytes })
    });
    Ok(Launch::Call {
        call: m.call,
        regions: count("a number of regions", m.regions, MAX_REGIONS)?,
        workspace_bytes: count("a workspace", m.workspace_bytes, isize::MAX as usize)?,
        packed: packed.collect::<Result<_, String>>()?,
    })
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
            launches: self.launches.iter().map(launch_message).collect(),
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
        let kernels = message.kernels.len();
        let launches = message.launches.into_iter().map(|m| launch(m, kernels));
        Ok(CpuCode {
            launches: launches.collect::<Result<_, _>>()?,
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
