//! PTX, interpreted: the text that a device is given, with the accesses checked as in kernels of machine code.
//!
//! The instructions are those that LLVM writes for kernels of margay, as NVIDIA's document "Parallel Thread Execution ISA"
//! states them. Any other one is refused when a module is loaded. What a thread does together with others, and
//! every access, goes through the calls of [`crate::thread`].
//!
//! LLVM reads shared memory before it knows whether it needs the value. Such a read is no fault; what nobody has
//! written is no number, so that its use shows in results. It also makes vectors of loads side by side and fills them up
//! with what lies behind: an aligned vector that begins in a buffer may end behind it.
//!
//! Deliberately absent: rounding modes other than the nearest, numbers flushed to zero, functions, and memory of a thread.

mod parse;
mod run;

use margay_kernels_gpu::Unit;

pub(crate) use parse::parse;
pub(crate) use run::run;

/// A kernel.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Ptx {
    instructions: Vec<Instruction>,
    /// Registers of a thread, of all types.
    registers: usize,
    /// Number of parameters.
    pub(crate) params: usize,
    /// Bytes of each array in shared memory.
    pub(crate) shared: Vec<usize>,
    /// Whether a thread may wait for others.
    pub(crate) waits: bool,
}

#[derive(Clone, PartialEq, Debug)]
struct Instruction {
    /// The predicate that has to have this value.
    guard: Option<(Register, bool)>,
    operation: Operation,
}

/// The number of a register.
type Register = usize;

/// What an instruction reads.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Operand {
    Register(Register),
    /// The bits of a number.
    Bits(u64),
    /// The address of an array in shared memory.
    Shared(u32),
}

/// How bits are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Int { bits: u32, signed: bool },
    F32,
    F64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Space {
    Global,
    Shared,
}

/// A place in memory: so many bytes behind what an operand says.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Address {
    space: Space,
    base: Operand,
    offset: i64,
}

/// What becomes integral, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rounding {
    Nearest,
    Down,
    Up,
    TowardsZero,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum One {
    Not,
    Negative,
    Absolute,
    Root,
    Reciprocal,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Two {
    Add,
    Subtract,
    /// Of integers the lower half.
    Multiply,
    /// The upper half.
    MultiplyHigh,
    /// The whole product of integers, in twice their bits.
    MultiplyWide,
    Divide,
    Remainder,
    Least,
    Greatest,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
    /// The size of the second with the sign of the first.
    CopySign,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Three {
    /// a b + c, of floats with one rounding, of integers the lower half.
    MultiplyAdd,
    /// a b + c with the whole product of integers and a sum of twice their bits.
    MultiplyAddWide,
    /// Bytes of b and a, counted from the lowest of a, chosen by four numbers of four bits.
    Permute,
    /// The upper word of b and a one after the other, moved up by c modulo 32.
    FunnelLeft,
    /// The lower word of b and a one after the other, moved down by c modulo 32.
    FunnelRight,
    /// c bits of a from bit b on; of a signed type with the last of them above.
    Extract,
}

/// How numbers compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Neither is NaN.
    Ordered,
    /// One is NaN.
    Unordered,
}

#[derive(Clone, PartialEq, Debug)]
enum Operation {
    Param {
        to: Register,
        number: usize,
    },
    Thread {
        to: Register,
    },
    Block {
        to: Register,
    },
    Move {
        to: Register,
        from: Operand,
    },
    /// Several registers of so many bits in one, the first lowest.
    Pack {
        to: Register,
        bits: u32,
        from: Vec<Operand>,
    },
    Unpack {
        to: Vec<Option<Register>>,
        bits: u32,
        from: Operand,
    },
    Load {
        to: Vec<Register>,
        bits: u32,
        signed: bool,
        address: Address,
    },
    Store {
        from: Vec<Operand>,
        bits: u32,
        address: Address,
    },
    /// The greater of a word of 64 bits in memory and another one.
    Raise {
        to: Option<Register>,
        address: Address,
        word: Operand,
    },
    One {
        function: One,
        kind: Kind,
        to: Register,
        a: Operand,
    },
    Two {
        function: Two,
        kind: Kind,
        to: Register,
        a: Operand,
        b: Operand,
    },
    Three {
        function: Three,
        kind: Kind,
        to: Register,
        a: Operand,
        b: Operand,
        c: Operand,
    },
    Convert {
        from: Kind,
        into: Kind,
        rounding: Rounding,
        to: Register,
        a: Operand,
    },
    /// Of floats `unordered` is what holds where one is NaN. `with` is joined to the result.
    Compare {
        how: How,
        unordered: bool,
        kind: Kind,
        to: Register,
        a: Operand,
        b: Operand,
        with: Option<(Two, Operand)>,
    },
    Select {
        to: Register,
        a: Operand,
        b: Operand,
        test: Operand,
    },
    Branch {
        to: usize,
    },
    Barrier,
    Shuffle {
        to: Register,
        value: Operand,
        distance: Operand,
    },
    Multiply {
        unit: Unit,
        to: [Register; 4],
        a: [Operand; 4],
        b: [Operand; 2],
        c: [Operand; 4],
    },
    Return,
}
