//! Writes one kernel as text of MLIR: a `gpu.func` in a `gpu.module`, of the dialects `arith`, `scf`, `gpu` and `llvm`.
//!
//! The text is what LLVM's own parser reads. Operations are methods that return the value they define; constants
//! are gathered at the head of the function, each once. Loops and choices are opened and closed by methods, which check that
//! they nest. `operations` and `device` have the operations themselves.

use std::collections::HashMap;
use std::fmt::Write;

use crate::value::{Element, Name, Type, Value};

/// A parameter of a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Param {
    /// A pointer to global memory.
    Pointer {
        /// What it is a multiple of, in bytes.
        align: usize,
        /// Whether the kernel only reads what nobody writes while it runs, and reaches it by this pointer alone.
        constant: bool,
    },
    /// A word of 64 bits.
    Word,
}

/// What was opened and is not closed.
#[derive(Debug)]
struct Open {
    /// The number of its results.
    number: u32,
    results: Vec<Type>,
    /// Whether it is a choice, which always yields, if only nothing.
    is_choice: bool,
}

/// A kernel that is being written.
#[derive(Debug)]
pub struct Writer {
    params: Vec<Param>,
    block: usize,
    body: String,
    next: u32,
    constants: Vec<String>,
    known: HashMap<String, u32>,
    open: Vec<Open>,
    /// Arrays in shared memory: bytes of each.
    shared: Vec<usize>,
}

impl Writer {
    /// A kernel of blocks of so many threads, and its parameters.
    pub fn new(params: &[Param], block: usize) -> (Writer, Vec<Value>) {
        let ty = |param: &Param| match param {
            Param::Pointer { .. } => Type::POINTER,
            Param::Word => Type::I64,
        };
        let value = |(n, param)| Value { name: Name::Defined(n), ty: ty(param) };
        let values: Vec<Value> = (0u32..).zip(params).map(value).collect();
        let writer = Writer {
            params: params.to_vec(),
            block,
            body: String::new(),
            next: values.len() as u32,
            constants: Vec::new(),
            known: HashMap::new(),
            open: Vec::new(),
            shared: Vec::new(),
        };
        (writer, values)
    }

    /// Threads of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// Writes an operation without a result.
    pub(crate) fn line(&mut self, text: &str) {
        let indent = 3 + self.open.len();
        for _ in 0..indent {
            self.body.push_str("  ");
        }
        self.body.push_str(text);
        self.body.push('\n');
    }

    /// Writes an operation with a result.
    pub(crate) fn define(&mut self, ty: Type, operation: &str) -> Value {
        let value = Value { name: Name::Defined(self.number()), ty };
        self.line(&format!("{value} = {operation}"));
        value
    }

    /// Writes an operation with several results, of which only the first is read.
    pub(crate) fn define_first(&mut self, ty: Type, results: usize, operation: &str) -> Value {
        let number = self.number();
        self.line(&format!("%r{number}:{results} = {operation}"));
        Value { name: Name::Result(number, 0), ty }
    }

    /// A constant by its text.
    pub(crate) fn constant(&mut self, ty: Type, literal: &str) -> Value {
        let literal = match ty.lanes {
            1 => literal.to_owned(),
            _ => format!("dense<{literal}>"),
        };
        let text = if ty == Type::I1 { literal } else { format!("{literal} : {ty}") };
        let next = self.constants.len() as u32;
        let number = *self.known.entry(text.clone()).or_insert(next);
        if number == next {
            self.constants.push(text);
        }
        Value { name: Name::Constant(number), ty }
    }

    /// An array in the memory that the threads of a block share, of so many bytes; it begins at a multiple of 128.
    pub fn shared(&mut self, bytes: usize) -> Value {
        self.shared.push(bytes);
        Value { name: Name::Shared(self.shared.len() as u32 - 1), ty: Type::scalar(Element::Shared) }
    }

    /// Opens a loop over `first, first + step, …` below `end`, and returns its position and the carried values. It ends at
    /// [`end_for`](Writer::end_for).
    pub fn begin_for(
        &mut self,
        first: Value,
        end: Value,
        step: Value,
        carried: &[Value],
    ) -> (Value, Vec<Value>) {
        let position = Value { name: Name::Defined(self.number()), ty: first.ty };
        let inside: Vec<Value> =
            carried.iter().map(|v| Value { name: Name::Defined(self.number()), ty: v.ty }).collect();
        let number = self.number();
        let mut text = String::new();
        if !carried.is_empty() {
            let _ = write!(text, "%r{number}:{} = ", carried.len());
        }
        let _ = write!(text, "scf.for {position} = {first} to {end} step {step}");
        if !carried.is_empty() {
            let pairs: Vec<String> = inside.iter().zip(carried).map(|(a, b)| format!("{a} = {b}")).collect();
            let types: Vec<String> = carried.iter().map(|v| v.ty.to_string()).collect();
            let _ = write!(text, " iter_args({}) -> ({})", pairs.join(", "), types.join(", "));
        }
        let _ = write!(text, " : {} {{", first.ty);
        self.line(&text);
        let results = carried.iter().map(|v| v.ty).collect();
        self.open.push(Open { number, results, is_choice: false });
        (position, inside)
    }

    /// Closes a loop with what it carries on; returns what is carried behind it.
    pub fn end_for(&mut self, carried: &[Value]) -> Vec<Value> {
        self.close(carried)
    }

    /// Opens a choice, whose two sides give values of these types. The first side ends at
    /// [`otherwise`](Writer::otherwise) or, where there is nothing to give, at [`end_if`](Writer::end_if).
    pub fn begin_if(&mut self, test: Value, results: &[Type]) {
        let number = self.number();
        let types: Vec<String> = results.iter().map(ToString::to_string).collect();
        let text = match types.is_empty() {
            true => format!("scf.if {test} {{"),
            false => format!("%r{number}:{} = scf.if {test} -> ({}) {{", results.len(), types.join(", ")),
        };
        self.line(&text);
        self.open.push(Open { number, results: results.to_vec(), is_choice: true });
    }

    /// Goes on to the other side of a choice.
    pub fn otherwise(&mut self, results: &[Value]) {
        self.give(results);
        let open = self.open.pop().expect("a choice is open");
        assert!(open.is_choice, "`otherwise` belongs to a choice");
        self.line("} else {");
        self.open.push(open);
    }

    /// Closes a choice; returns what it gives.
    pub fn end_if(&mut self, results: &[Value]) -> Vec<Value> {
        self.close(results)
    }

    fn give(&mut self, values: &[Value]) {
        let open = self.open.last().expect("something is open");
        let types: Vec<Type> = values.iter().map(|v| v.ty).collect();
        assert_eq!(open.results, types, "what is given is what was announced");
        if !values.is_empty() {
            let names: Vec<String> = values.iter().map(ToString::to_string).collect();
            let types: Vec<String> = types.iter().map(ToString::to_string).collect();
            self.line(&format!("scf.yield {} : {}", names.join(", "), types.join(", ")));
        }
    }

    fn close(&mut self, values: &[Value]) -> Vec<Value> {
        self.give(values);
        let open = self.open.pop().expect("something is open");
        self.line("}");
        let result = |(i, &ty)| Value { name: Name::Result(open.number, i), ty };
        (0u32..).zip(&open.results).map(result).collect()
    }

    /// The module: everything that was written, as the kernel [`ENTRY`](crate::ENTRY).
    ///
    /// # Panics
    /// If something is open.
    pub fn finish(self) -> String {
        assert!(self.open.is_empty(), "every loop and choice is closed");
        let mut text = String::from("module attributes {gpu.container_module} {\n  gpu.module @kernels {\n");
        for (i, bytes) in self.shared.iter().enumerate() {
            let _ = writeln!(
                text,
                "    llvm.mlir.global internal @shared{i}() {{addr_space = 3 : i32, alignment = 128 : i64}} : \
                 !llvm.array<{bytes} x i8>"
            );
        }
        let param = |(i, param): (usize, &Param)| match param {
            Param::Pointer { align, constant: false } => {
                format!("%{i}: !llvm.ptr {{llvm.align = {align} : i64}}")
            }
            Param::Pointer { align, constant: true } => {
                format!("%{i}: !llvm.ptr {{llvm.align = {align} : i64, llvm.noalias, llvm.readonly}}")
            }
            Param::Word => format!("%{i}: i64"),
        };
        let params: Vec<String> = self.params.iter().enumerate().map(param).collect();
        let _ = writeln!(
            text,
            "    gpu.func @{}({}) kernel attributes {{known_block_size = array<i32: {}, 1, 1>}} {{",
            crate::ENTRY,
            params.join(", "),
            self.block
        );
        for (i, literal) in self.constants.iter().enumerate() {
            let _ = writeln!(text, "      %c{i} = arith.constant {literal}");
        }
        for i in 0..self.shared.len() {
            let _ = writeln!(text, "      %s{i} = llvm.mlir.addressof @shared{i} : !llvm.ptr<3>");
        }
        text.push_str(&self.body);
        text.push_str("      gpu.return\n    }\n  }\n}\n");
        text
    }
}
