//! A kernel for the processor: what LLVM is given for a device, with the few operations that only a device has replaced by
//! calls.
//!
//! The text is that of a kernel in the dialects `llvm` and `nvvm`, as `Mlir` lowers it for a device too. The
//! function gets one more parameter, the first: a pointer that every call hands on, by which an emulator knows the thread.
//! Before each access to memory its address goes through a call, which may give another one. Arrays in shared memory lie
//! where a call says.
//!
//! | call | stands for |
//! |---|---|
//! | `gpu_thread(thread) -> i32` | the number of the thread in its block |
//! | `gpu_block(thread) -> i32` | the number of the block |
//! | `gpu_barrier(thread)` | a barrier of the block |
//! | `gpu_shuffle(thread, i32 value, i32 distance) -> i32` | an exchange within the warp |
//! | `gpu_multiply(thread, i32 unit, 6 x i32, 4 x f32)` | a product of a warp on [matrix units](Unit) |
//! | `gpu_sum(thread, i32 number) -> f32` | one of the four sums that the thread received of it last |
//! | `gpu_access(thread, address, i64 what) -> address` | an access to global memory: see [`Access`] |
//! | `gpu_access_shared(thread, address, i64 what) -> address` | an access to shared memory |
//! | `gpu_shared(thread, i32 array) -> address` | where an array lies |
//!
//! Deliberately absent: what kernels do not use yet, such as asynchronous copies. They are refused, never passed over.

use std::ffi::c_void;
use std::fmt::Write;

use margay_kernels_gpu::{ENTRY, Unit};

use crate::CodegenError;

/// A kernel that runs on the processor: takes the addresses of its parameters, of which the first is the pointer that it hands
/// on to calls.
pub type HostFn = unsafe extern "C-unwind" fn(*const *const c_void);

/// What an access is, as calls are told in one word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Access {
    /// Bytes.
    pub bytes: u32,
    /// What the address is a multiple of.
    pub align: u32,
    /// Whether it writes.
    pub writes: bool,
    /// Whether it reads and writes as one.
    pub atomic: bool,
    /// The number of the operation in the kernel.
    pub place: u32,
}

impl Access {
    /// The word.
    pub fn word(self) -> u64 {
        u64::from(self.bytes & 0xff)
            | u64::from(self.align & 0xff) << 8
            | u64::from(self.writes) << 16
            | u64::from(self.atomic) << 17
            | u64::from(self.place) << 32
    }

    /// What a word says.
    pub fn of(word: u64) -> Access {
        Access {
            bytes: word as u32 & 0xff,
            align: (word >> 8) as u32 & 0xff,
            writes: word >> 16 & 1 == 1,
            atomic: word >> 17 & 1 == 1,
            place: (word >> 32) as u32,
        }
    }
}

/// A kernel for the processor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostKernel {
    /// The module, in the dialect `llvm`.
    pub text: String,
    /// Bytes of each array in shared memory.
    pub shared: Vec<usize>,
    /// Number of parameters, without the first.
    pub params: usize,
    /// Whether a thread may wait for others.
    pub waits: bool,
}

/// The declarations of what is called.
const DECLARATIONS: &str = "  llvm.func @gpu_thread(!llvm.ptr) -> i32
  llvm.func @gpu_block(!llvm.ptr) -> i32
  llvm.func @gpu_barrier(!llvm.ptr)
  llvm.func @gpu_shuffle(!llvm.ptr, i32, i32) -> i32
  llvm.func @gpu_multiply(!llvm.ptr, i32, i32, i32, i32, i32, i32, i32, f32, f32, f32, f32)
  llvm.func @gpu_sum(!llvm.ptr, i32) -> f32
  llvm.func @gpu_access(!llvm.ptr, !llvm.ptr, i64) -> !llvm.ptr
  llvm.func @gpu_access_shared(!llvm.ptr, !llvm.ptr<3>, i64) -> !llvm.ptr<3>
  llvm.func @gpu_shared(!llvm.ptr, i32) -> !llvm.ptr<3>
";

/// Makes a kernel for the processor of one that was lowered for a device.
///
/// # Errors
/// [`CodegenError::Mlir`] for an operation that is not replaced.
pub fn for_host(lowered: &str) -> Result<HostKernel, CodegenError> {
    let mut h = Host { text: String::new(), shared: Vec::new(), params: 0, fresh: 0, places: 0 };
    let mut inside = false;
    for line in lowered.lines() {
        let line = line.trim();
        if line.starts_with("llvm.mlir.global") {
            h.array(line)?;
        } else if line.starts_with("llvm.func") {
            h.head(line)?;
            inside = true;
        } else if inside {
            h.line(line)?;
            inside = line != "}";
        }
    }
    let text = format!("module {{\n{DECLARATIONS}{}}}\n", h.text);
    let waits =
        ["@gpu_barrier(%", "@gpu_shuffle(%", "@gpu_multiply(%"].iter().any(|call| h.text.contains(call));
    Ok(HostKernel { text, shared: h.shared, params: h.params, waits })
}

/// The text so far.
struct Host {
    text: String,
    shared: Vec<usize>,
    params: usize,
    fresh: usize,
    places: u32,
}

fn malformed(line: &str) -> CodegenError {
    CodegenError::Mlir(format!("no form for the processor of `{line}`"))
}

/// The text between two others.
fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inner, _)| inner)
}

impl Host {
    fn put(&mut self, line: &str) {
        let _ = writeln!(self.text, "    {line}");
    }

    fn name(&mut self) -> String {
        self.fresh += 1;
        format!("%h{}", self.fresh)
    }

    /// `llvm.mlir.global internal @shared0() {…} : !llvm.array<32 x i8>`.
    fn array(&mut self, line: &str) -> Result<(), CodegenError> {
        let bytes = between(line, "!llvm.array<", " x i8>").and_then(|n| n.parse().ok());
        let number: Option<usize> = between(line, "@shared", "(").and_then(|n| n.parse().ok());
        match (bytes, number) {
            (Some(bytes), Some(number)) if number == self.shared.len() => self.shared.push(bytes),
            _ => return Err(malformed(line)),
        }
        Ok(())
    }

    /// The function: `llvm.func @kernel(%arg0: !llvm.ptr {…}, …) attributes {…} {`.
    fn head(&mut self, line: &str) -> Result<(), CodegenError> {
        let params = between(line, "(", ") attributes").ok_or_else(|| malformed(line))?;
        // Attributes of parameters are promises about addresses, which the emulator checks itself.
        let mut plain = Vec::new();
        for param in params.split("%arg").skip(1) {
            let (number, rest) = param.split_once(": ").ok_or_else(|| malformed(line))?;
            let ty = rest.split([' ', ',']).next().unwrap_or_default();
            plain.push(format!("%arg{number}: {ty}"));
        }
        self.params = plain.len();
        let _ = writeln!(self.text, "  llvm.func @{ENTRY}(%thread: !llvm.ptr, {}) {{", plain.join(", "));
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<(), CodegenError> {
        let (result, operation) = match line.split_once(" = ") {
            Some((result, operation)) if line.starts_with('%') => (result, operation),
            _ => ("", line),
        };
        let word = operation.split_whitespace().next().unwrap_or_default();
        match word {
            "nvvm.read.ptx.sreg.tid.x" => {
                self.put(&format!("{result} = llvm.call @gpu_thread(%thread) : (!llvm.ptr) -> i32"));
            }
            "nvvm.read.ptx.sreg.ctaid.x" => {
                self.put(&format!("{result} = llvm.call @gpu_block(%thread) : (!llvm.ptr) -> i32"));
            }
            "nvvm.barrier0" | "nvvm.barrier" => {
                self.put("llvm.call @gpu_barrier(%thread) : (!llvm.ptr) -> ()")
            }
            "nvvm.shfl.sync" => self.shuffle(result, operation)?,
            "nvvm.mma.sync" => self.multiply(result, operation)?,
            "llvm.mlir.addressof" => {
                let number = between(operation, "@shared", " ").ok_or_else(|| malformed(line))?;
                let array = self.name();
                self.put(&format!("{array} = llvm.mlir.constant({number} : i32) : i32"));
                self.put(&format!(
                    "{result} = llvm.call @gpu_shared(%thread, {array}) : (!llvm.ptr, i32) -> !llvm.ptr<3>"
                ));
            }
            "llvm.load" | "llvm.store" | "llvm.atomicrmw" => self.access(result, operation, word)?,
            _ if operation.contains("nvvm.") => return Err(malformed(line)),
            _ => self.put(line),
        }
        Ok(())
    }

    /// `nvvm.shfl.sync bfly %mask, %value, %distance, %clamp : f32 -> f32`.
    fn shuffle(&mut self, result: &str, operation: &str) -> Result<(), CodegenError> {
        let operands = between(operation, "bfly", " :").ok_or_else(|| malformed(operation))?;
        let operands: Vec<&str> = operands.split(',').map(str::trim).collect();
        let ty = operation.rsplit("-> ").next().unwrap_or_default();
        let ([_, value, distance, _], true) = (operands.as_slice(), ["f32", "i32"].contains(&ty)) else {
            return Err(malformed(operation));
        };
        let (bits, other) = (self.name(), self.name());
        self.put(&format!("{bits} = llvm.bitcast {value} : {ty} to i32"));
        self.put(&format!(
            "{other} = llvm.call @gpu_shuffle(%thread, {bits}, {distance}) : (!llvm.ptr, i32, i32) -> i32"
        ));
        self.put(&format!("{result} = llvm.bitcast {other} : i32 to {ty}"));
        Ok(())
    }

    /// `nvvm.mma.sync A[%a, …] B[%b, …] C[%c, …] {…, multiplicandAPtxType = #nvvm.mma_type<bf16>, …} : (…) -> …`.
    fn multiply(&mut self, result: &str, operation: &str) -> Result<(), CodegenError> {
        let list = |name: &str| -> Vec<&str> {
            let inner = between(operation, name, "]").unwrap_or_default();
            inner.split(',').map(str::trim).filter(|x| !x.is_empty()).collect()
        };
        let (a, b, c) = (list(" A["), list(" B["), list(" C["));
        let says = |unit: &Unit| {
            let types = format!("(vector<2x{0}>, vector<2x{0}>, f32)", unit.name());
            let named =
                ["A", "B"].map(|x| format!("multiplicand{x}PtxType = #nvvm.mma_type<{}>", unit.name()));
            let of_type = operation.contains(&types) || named.iter().all(|n| operation.contains(n.as_str()));
            let shape = format!("shape = #nvvm.shape<m = 16, n = 8, k = {}>", unit.terms());
            of_type && operation.contains(&shape)
        };
        let laid_out = ["layoutA = #nvvm.mma_layout<row>", "layoutB = #nvvm.mma_layout<col>"];
        let unit =
            Unit::ALL.into_iter().find(says).filter(|_| laid_out.iter().all(|l| operation.contains(l)));
        let (Some(unit), [4, 2, 4]) = (unit, [a.len(), b.len(), c.len()]) else {
            return Err(malformed(operation));
        };
        let mut words = Vec::new();
        for x in a.into_iter().chain(b) {
            let word = self.name();
            let ty = unit.word_type();
            self.put(&format!("{word} = llvm.bitcast {x} : {ty} to i32"));
            words.push(word);
        }
        let number = self.int(unit as usize);
        self.put(&format!(
            "llvm.call @gpu_multiply(%thread, {number}, {}, {}) : \
             (!llvm.ptr, i32, i32, i32, i32, i32, i32, i32, f32, f32, f32, f32) -> ()",
            words.join(", "),
            c.join(", ")
        ));
        let ty = "!llvm.struct<(f32, f32, f32, f32)>";
        let mut all = self.name();
        self.put(&format!("{all} = llvm.mlir.undef : {ty}"));
        for i in 0..4 {
            let (number, sum) = (self.int(i), self.name());
            self.put(&format!("{sum} = llvm.call @gpu_sum(%thread, {number}) : (!llvm.ptr, i32) -> f32"));
            let next = if i == 3 { result.to_owned() } else { self.name() };
            self.put(&format!("{next} = llvm.insertvalue {sum}, {all}[{i}] : {ty}"));
            all = next;
        }
        Ok(())
    }

    /// A constant.
    fn int(&mut self, n: usize) -> String {
        let name = self.name();
        self.put(&format!("{name} = llvm.mlir.constant({n} : i32) : i32"));
        name
    }

    /// `llvm.load %p {…} : !llvm.ptr -> f32`, `llvm.store %x, %p {…} : f32, !llvm.ptr`, or
    /// `llvm.atomicrmw umax %p, %x monotonic : !llvm.ptr, i64`.
    fn access(&mut self, result: &str, operation: &str, word: &str) -> Result<(), CodegenError> {
        let problem = || malformed(operation);
        let (head, types) = operation.rsplit_once(" : ").ok_or_else(problem)?;
        let operands: Vec<&str> = head.split([' ', ',']).filter(|part| part.starts_with('%')).collect();
        let (address, value, pointer) = match (word, operands.as_slice()) {
            ("llvm.load", [address]) => {
                let (pointer, value) = types.split_once(" -> ").ok_or_else(problem)?;
                (*address, value, pointer)
            }
            ("llvm.store", [_, address]) => {
                let (value, pointer) = types.split_once(", ").ok_or_else(problem)?;
                (*address, value, pointer)
            }
            ("llvm.atomicrmw", [address, _]) => {
                let (pointer, value) = types.split_once(", ").ok_or_else(problem)?;
                (*address, value, pointer)
            }
            _ => return Err(problem()),
        };
        let (lanes, element) = match between(value, "vector<", ">").and_then(|inner| inner.split_once('x')) {
            Some((lanes, element)) => (lanes.parse().map_err(|_| problem())?, element),
            None => (1, value),
        };
        let bytes = match element {
            "i1" | "i8" => 1,
            "i16" | "f16" | "bf16" => 2,
            "i32" | "f32" => 4,
            "i64" | "f64" => 8,
            _ => return Err(problem()),
        };
        let align = between(head, "alignment = ", " :").and_then(|n| n.parse().ok()).unwrap_or(bytes);
        let atomic = word == "llvm.atomicrmw";
        let access =
            Access { bytes: lanes * bytes, align, writes: word != "llvm.load", atomic, place: self.places };
        self.places += 1;
        let function = match pointer {
            "!llvm.ptr" => "gpu_access",
            "!llvm.ptr<3>" => "gpu_access_shared",
            _ => return Err(problem()),
        };
        let (what, checked) = (self.name(), self.name());
        self.put(&format!("{what} = llvm.mlir.constant({} : i64) : i64", access.word()));
        self.put(&format!(
            "{checked} = llvm.call @{function}(%thread, {address}, {what}) : (!llvm.ptr, {pointer}, i64) -> {pointer}"
        ));
        let replaced: String = match word {
            "llvm.load" => operation.replacen(address, &checked, 1),
            "llvm.store" => operation.replacen(&format!(", {address}"), &format!(", {checked}"), 1),
            _ => operation.replacen(address, &checked, 1),
        };
        let head = if result.is_empty() { String::new() } else { format!("{result} = ") };
        self.put(&format!("{head}{replaced}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_a_device_has_is_called() {
        let lowered = "module {\n  gpu.module @kernels {\n    \
            llvm.mlir.global internal @shared0() {addr_space = 3 : i32} : !llvm.array<32 x i8>\n    \
            llvm.func @kernel(%arg0: !llvm.ptr {llvm.align = 16 : i64}, %arg1: i64) attributes {gpu.kernel} {\n      \
            %0 = llvm.mlir.addressof @shared0 : !llvm.ptr<3>\n      \
            %1 = nvvm.read.ptx.sreg.tid.x range <i32, 0, 128> : i32\n      \
            %2 = llvm.load %arg0 {alignment = 16 : i64} : !llvm.ptr -> vector<4xf32>\n      \
            nvvm.barrier0\n      llvm.return\n    }\n  }\n}\n";
        let host = for_host(lowered).unwrap();
        assert_eq!((host.shared.as_slice(), host.params), (&[32][..], 2));
        let kernel = host.text.strip_prefix("module {\n").and_then(|t| t.strip_prefix(DECLARATIONS)).unwrap();
        let word = Access { bytes: 16, align: 16, writes: false, atomic: false, place: 0 }.word();
        insta::assert_snapshot!(kernel.replace(&word.to_string(), "WORD"), @r"
          llvm.func @kernel(%thread: !llvm.ptr, %arg0: !llvm.ptr, %arg1: i64) {
            %h1 = llvm.mlir.constant(0 : i32) : i32
            %0 = llvm.call @gpu_shared(%thread, %h1) : (!llvm.ptr, i32) -> !llvm.ptr<3>
            %1 = llvm.call @gpu_thread(%thread) : (!llvm.ptr) -> i32
            %h2 = llvm.mlir.constant(WORD : i64) : i64
            %h3 = llvm.call @gpu_access(%thread, %arg0, %h2) : (!llvm.ptr, !llvm.ptr, i64) -> !llvm.ptr
            %2 = llvm.load %h3 {alignment = 16 : i64} : !llvm.ptr -> vector<4xf32>
            llvm.call @gpu_barrier(%thread) : (!llvm.ptr) -> ()
            llvm.return
            }
        }
        ");
        let unknown = lowered.replace("nvvm.barrier0", "nvvm.cp.async.wait.all");
        assert!(for_host(&unknown).is_err());
    }

    #[test]
    fn a_product_of_a_warp_is_handed_over_as_words() {
        let lowered = |types: &str, attributes: &str, k: usize| {
            format!(
                "llvm.func @kernel(%arg0: !llvm.ptr) attributes {{gpu.kernel}} {{\n  \
                 %9 = nvvm.mma.sync A[%0, %1, %2, %3]  B[%4, %5]  C[%6, %7, %8, %6]  {{layoutA = #nvvm.mma_layout<row>, \
                 layoutB = #nvvm.mma_layout<col>, {attributes}shape = #nvvm.shape<m = 16, n = 8, k = {k}>}} : \
                 ({types}, {types}, f32) -> !llvm.struct<(f32, f32, f32, f32)>\n  llvm.return\n}}\n"
            )
        };
        let named = |name: &str| {
            format!(
                "multiplicandAPtxType = #nvvm.mma_type<{name}>, multiplicandBPtxType = #nvvm.mma_type<{name}>, "
            )
        };
        for (unit, text) in [
            (Unit::Tf32, lowered("i32", &named("tf32"), 8)),
            (Unit::Bf16, lowered("i32", &named("bf16"), 16)),
            (Unit::F16, lowered("vector<2xf16>", "", 16)),
        ] {
            let host = for_host(&text).unwrap();
            assert!(
                host.waits && host.text.contains(&format!("llvm.mlir.constant({} : i32)", unit as usize))
            );
            assert!(
                host.text
                    .contains("@gpu_multiply(%thread, %h7, %h1, %h2, %h3, %h4, %h5, %h6, %6, %7, %8, %6)")
            );
            assert_eq!(host.text.matches("= llvm.call @gpu_sum").count(), 4);
            assert!(host.text.contains("%9 = llvm.insertvalue"));
        }
        for other in [
            lowered("i32", &named("tf32"), 16),
            lowered("i32", &named("s8"), 16),
            lowered("i32", &named("tf32"), 8).replace("layout<col>", "layout<row>"),
            lowered("i32", &named("tf32"), 8).replace("B[%4, %5]", "B[%4]"),
        ] {
            assert!(for_host(&other).is_err(), "{other}");
        }
    }

    #[test]
    fn what_an_access_is_fits_a_word() {
        let access = Access { bytes: 16, align: 8, writes: true, atomic: false, place: 70_000 };
        assert_eq!(Access::of(access.word()), access);
    }
}
