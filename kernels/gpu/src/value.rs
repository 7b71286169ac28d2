//! Types and values of the code that is written.

use std::fmt;

use margay_tensor::DType;

/// What a register holds, or each lane of it. Integers have no sign; operations do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Element {
    /// A truth value.
    I1,
    /// 8 bits.
    I8,
    /// 16 bits.
    I16,
    /// 32 bits.
    I32,
    /// 64 bits.
    I64,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// A number of a thread or a block, before it is an integer.
    Index,
    /// A pointer to global memory.
    Pointer,
    /// A pointer to the memory that the threads of a block share.
    Shared,
}

impl Element {
    /// What holds an element in a register: 16-bit floats are the f32 that they stand for.
    pub fn of(dtype: DType) -> Element {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => Element::F32,
            DType::F64 => Element::F64,
            DType::Bool => Element::I1,
            DType::I8 | DType::U8 => Element::I8,
            DType::I16 | DType::U16 => Element::I16,
            DType::I32 | DType::U32 => Element::I32,
            DType::I64 | DType::U64 => Element::I64,
        }
    }

    /// What holds an element in memory.
    pub fn in_memory(dtype: DType) -> Element {
        match dtype {
            DType::Bool => Element::I8,
            DType::F16 | DType::BF16 => Element::I16,
            other => Element::of(other),
        }
    }

    /// Its width; pointers have that of the machine.
    pub fn bits(self) -> u32 {
        match self {
            Element::I1 => 1,
            Element::I8 => 8,
            Element::I16 => 16,
            Element::I32 | Element::F32 => 32,
            Element::I64 | Element::F64 | Element::Index | Element::Pointer | Element::Shared => 64,
        }
    }

    /// The integer of the same width.
    pub fn as_int(self) -> Element {
        match self {
            Element::F32 => Element::I32,
            Element::F64 => Element::I64,
            other => other,
        }
    }

    /// Whether it is a float.
    pub fn is_float(self) -> bool {
        matches!(self, Element::F32 | Element::F64)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Element::I1 => "i1",
            Element::I8 => "i8",
            Element::I16 => "i16",
            Element::I32 => "i32",
            Element::I64 => "i64",
            Element::F32 => "f32",
            Element::F64 => "f64",
            Element::Index => "index",
            Element::Pointer => "!llvm.ptr",
            Element::Shared => "!llvm.ptr<3>",
        })
    }
}

/// The type of a register: a scalar or a vector.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Type {
    /// The type of its lanes.
    pub element: Element,
    /// Their number; 1 for a scalar.
    pub lanes: usize,
}

impl Type {
    /// Single precision.
    pub const F32: Type = Type::scalar(Element::F32);
    /// 32 bits.
    pub const I32: Type = Type::scalar(Element::I32);
    /// 64 bits.
    pub const I64: Type = Type::scalar(Element::I64);
    /// A truth value.
    pub const I1: Type = Type::scalar(Element::I1);
    /// A pointer to global memory.
    pub const POINTER: Type = Type::scalar(Element::Pointer);

    /// One of these.
    pub const fn scalar(element: Element) -> Type {
        Type { element, lanes: 1 }
    }

    /// As many lanes of another type.
    #[must_use]
    pub const fn with(self, element: Element) -> Type {
        Type { element, lanes: self.lanes }
    }

    /// The name that intrinsics of LLVM have for it, such as `v4f32`.
    pub(crate) fn suffix(self) -> String {
        let lanes = if self.lanes == 1 { String::new() } else { format!("v{}", self.lanes) };
        format!("{lanes}{}", self.element)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lanes {
            1 => write!(f, "{}", self.element),
            lanes => write!(f, "vector<{lanes}x{}>", self.element),
        }
    }
}

/// How a value is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Name {
    /// What an operation or a parameter defines.
    Defined(u32),
    /// A constant at the head of the function.
    Constant(u32),
    /// An array in shared memory.
    Shared(u32),
    /// One of the results of a loop or a choice.
    Result(u32, u32),
}

/// A value of the code that is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Value {
    pub(crate) name: Name,
    /// Its type.
    pub ty: Type,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Name::Defined(n) => write!(f, "%{n}"),
            Name::Constant(n) => write!(f, "%c{n}"),
            Name::Shared(n) => write!(f, "%s{n}"),
            Name::Result(n, i) => write!(f, "%r{n}#{i}"),
        }
    }
}
