//! What a thread of a device does besides arithmetic: which thread it is, memory, barriers, values of other threads.

use crate::Writer;
use crate::unit::Unit;
use crate::value::{Element, Type, Value};
use margay_loops::Arithmetic;

/// Threads that run in step and may exchange values.
pub const WARP: usize = 32;

impl Writer {
    /// The number of the thread in its block.
    pub fn thread(&mut self) -> Value {
        self.special("gpu.thread_id x")
    }

    /// The number of the block.
    pub fn block_number(&mut self) -> Value {
        self.special("gpu.block_id x")
    }

    fn special(&mut self, operation: &str) -> Value {
        let index = self.define(Type::scalar(Element::Index), operation);
        self.define(Type::I32, &format!("arith.index_cast {index} : index to i32"))
    }

    /// Waits until every thread of the block is here; what they wrote before can be read behind it.
    pub fn barrier(&mut self) {
        self.line("gpu.barrier");
    }

    /// The value that the thread with another number in the warp has: this one's with the bits of `distance` flipped. Every
    /// thread of the warp takes part.
    pub fn shuffle(&mut self, x: Value, distance: usize) -> Value {
        let (by, width) = (self.int(Type::I32, distance as i64), self.int(Type::I32, WARP as i64));
        match x.ty.element {
            Element::F32 | Element::I32 => {
                // A second result says whether there is such a thread; within a warp there is.
                self.define_first(x.ty, 2, &format!("gpu.shuffle xor {x}, {by}, {width} : {}", x.ty))
            }
            Element::I1 | Element::I8 | Element::I16 => {
                let wide = self.resize(x, Element::I32, false);
                let other = self.shuffle(wide, distance);
                self.resize(other, x.ty.element, false)
            }
            Element::F64 => {
                let bits = self.bits(x);
                let other = self.shuffle(bits, distance);
                self.float_of_bits(other)
            }
            Element::I64 | Element::Index | Element::Pointer | Element::Shared => {
                let low = self.resize(x, Element::I32, false);
                let high = self.shift_right(x, 32);
                let high = self.resize(high, Element::I32, false);
                let (low, high) = (self.shuffle(low, distance), self.shuffle(high, distance));
                let (low, high) =
                    (self.resize(low, Element::I64, false), self.resize(high, Element::I64, false));
                let high = self.shift_left(high, 32);
                self.or(low, high)
            }
        }
    }

    /// `a b + c` on matrix units, for a whole warp: each thread hands over four words of `a`, two of `b` and four of `c`, and
    /// receives four sums. Every thread of the warp takes part.
    pub fn multiply(&mut self, unit: Unit, a: [Value; 4], b: [Value; 2], c: [Value; 4]) -> [Value; 4] {
        let (name, terms, word) = (unit.name(), unit.terms(), unit.word_type());
        let mut words =
            |values: &[Value]| -> Vec<String> { values.iter().map(|&x| self.pair(unit, x)).collect() };
        let (a, b) = (words(&a).join(", "), words(&b).join(", "));
        let c = c.map(|x| x.to_string()).join(", ");
        let sums = "!llvm.struct<(f32, f32, f32, f32)>";
        let all = self.define(
            Type::F32,
            &format!(
                "nvvm.mma.sync A[{a}] B[{b}] C[{c}] {{layoutA = #nvvm.mma_layout<row>, \
                 layoutB = #nvvm.mma_layout<col>, multiplicandAPtxType = #nvvm.mma_type<{name}>, \
                 multiplicandBPtxType = #nvvm.mma_type<{name}>, shape = #nvvm.shape<m = 16, n = 8, k = {terms}>}} : \
                 ({word}, {word}, f32) -> {sums}"
            ),
        );
        [0, 1, 2, 3].map(|i| self.define(Type::F32, &format!("llvm.extractvalue {all}[{i}] : {sums}")))
    }

    /// A word of factors as the dialect has it.
    fn pair(&mut self, unit: Unit, word: Value) -> String {
        match unit.word_type() {
            "i32" => word.to_string(),
            ty => self.define(word.ty, &format!("llvm.bitcast {word} : i32 to {ty}")).to_string(),
        }
    }

    /// The address of element `index` of memory that holds elements of a type.
    pub fn element(&mut self, base: Value, index: Value, holds: Element) -> Value {
        let pointer = base.ty;
        self.define(
            pointer,
            &format!("llvm.getelementptr {base}[{index}] : ({pointer}, {}) -> {pointer}, {holds}", index.ty),
        )
    }

    /// Reads a value.
    pub fn load(&mut self, ty: Type, address: Value) -> Value {
        let align = alignment(ty);
        self.define(ty, &format!("llvm.load {address} {align}: {} -> {ty}", address.ty))
    }

    /// Writes a value.
    pub fn store(&mut self, value: Value, address: Value) {
        let align = alignment(value.ty);
        self.line(&format!("llvm.store {value}, {address} {align}: {}, {}", value.ty, address.ty));
    }

    /// Writes the greater of a word in global memory and `word`, as one access.
    pub fn raise(&mut self, address: Value, word: Value) {
        self.define(
            word.ty,
            &format!("llvm.atomicrmw umax {address}, {word} monotonic : !llvm.ptr, {}", word.ty),
        );
    }
}

/// Vectors are read and written as one.
fn alignment(ty: Type) -> String {
    match ty.lanes {
        1 => String::new(),
        lanes => format!("{{alignment = {} : i64}} ", lanes * ty.element.bits() as usize / 8),
    }
}
