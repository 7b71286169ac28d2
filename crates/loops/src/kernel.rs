//! Kernel IR: loop nests over scalar code.
//!
//! Registers are assigned once and visible to the statements that follow in the same block and below. Memory is
//! reached by an argument and an [`Index`], a linear function of loop axes and integer registers, in elements.
//!
//! 16-bit floats exist in memory only: a load widens them to f32, a store rounds f32 to them. Between the two,
//! [`Unary::RoundF16`] and [`Unary::RoundBf16`] round a register.

use std::sync::Arc;

use margay_tensor::DType;

use crate::{Extent, SizeId};

/// An enum of operations with the names that text forms use.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// Every one of them.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The name used in text forms.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }

            /// The one with a name.
            pub fn from_name(name: &str) -> Option<$name> {
                $name::ALL.iter().copied().find(|op| op.name() == name)
            }
        }
    };
}

/// A loop axis, numbered in the order of appearance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Axis(pub u16);

/// A scalar register; its type is in [`Kernel::regs`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Reg(pub u32);

/// What a size in an [`Index`] multiplies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Factor {
    /// Nothing: the size is added.
    One,
    /// The position of a loop.
    Axis(Axis),
    /// An I64 register.
    Reg(Reg),
}

/// A position in memory or along an axis: `offset + Σ coefficient · axis + Σ coefficient · register`, where the offset
/// and coefficients may be [sizes](crate::Size).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Index {
    /// The constant part.
    pub offset: i64,
    /// Loop axes with their coefficients, sorted, none zero.
    pub axes: Vec<(Axis, i64)>,
    /// I64 registers with their coefficients, sorted, none zero.
    pub regs: Vec<(Reg, i64)>,
    /// Sizes with what each multiplies; an axis or register that is here is not among those above. Builders of nests
    /// know every extent and make none.
    pub sizes: Vec<(SizeId, Factor)>,
}

impl Index {
    /// A constant position.
    pub fn constant(offset: i64) -> Index {
        Index { offset, ..Index::default() }
    }

    /// The position of a loop.
    pub fn axis(axis: Axis) -> Index {
        Index { axes: vec![(axis, 1)], ..Index::default() }
    }

    /// The value of an I64 register.
    pub fn reg(reg: Reg) -> Index {
        Index { regs: vec![(reg, 1)], ..Index::default() }
    }

    /// `self + factor * other`, of an `other` without sizes.
    #[must_use]
    pub fn plus(&self, other: &Index, factor: i64) -> Index {
        fn merge<K: Ord + Copy>(a: &[(K, i64)], b: &[(K, i64)], factor: i64) -> Vec<(K, i64)> {
            let mut sum: std::collections::BTreeMap<K, i64> = a.iter().copied().collect();
            for (k, c) in b {
                *sum.entry(*k).or_default() += c * factor;
            }
            sum.into_iter().filter(|(_, c)| *c != 0).collect()
        }
        Index {
            offset: self.offset + other.offset * factor,
            axes: merge(&self.axes, &other.axes, factor),
            regs: merge(&self.regs, &other.regs, factor),
            sizes: self.sizes.clone(),
        }
    }

    /// `factor * self`.
    #[must_use]
    pub fn times(&self, factor: i64) -> Index {
        Index::default().plus(self, factor)
    }

    /// The coefficient of an axis if it is a number, 0 if there is none.
    pub fn coefficient(&self, axis: Axis) -> i64 {
        self.axes.iter().find(|(a, _)| *a == axis).map_or(0, |(_, c)| *c)
    }

    /// Whether the position of a loop occurs, with any coefficient.
    pub fn moves_along(&self, axis: Axis) -> bool {
        self.coefficient(axis) != 0 || self.sizes.iter().any(|(_, f)| *f == Factor::Axis(axis))
    }

    /// The registers that occur.
    pub fn registers(&self) -> impl Iterator<Item = Reg> + '_ {
        let sized = self.sizes.iter().filter_map(|(_, f)| match f {
            Factor::Reg(r) => Some(*r),
            Factor::One | Factor::Axis(_) => None,
        });
        self.regs.iter().map(|(r, _)| *r).chain(sized)
    }
}

/// A scalar constant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Literal {
    /// The bits of an f32.
    F32(u32),
    /// The bits of an f64.
    F64(u64),
    /// Any integer type; the register's type says which.
    Int(DType, i64),
    /// A truth value.
    Bool(bool),
}

impl Literal {
    /// An f32.
    pub fn f32(v: f32) -> Literal {
        Literal::F32(v.to_bits())
    }

    /// The number `v` in the given type, rounded or cut off as a cast does.
    pub fn of(dtype: DType, v: f64) -> Literal {
        match dtype {
            DType::F64 => Literal::F64(v.to_bits()),
            DType::Bool => Literal::Bool(v != 0.0),
            d if d.is_float() => Literal::F32((v as f32).to_bits()),
            // As a cast does: towards zero, and no further than the type reaches.
            DType::I8 => Literal::Int(dtype, (v as i8).into()),
            DType::U8 => Literal::Int(dtype, (v as u8).into()),
            DType::I16 => Literal::Int(dtype, (v as i16).into()),
            DType::U16 => Literal::Int(dtype, (v as u16).into()),
            DType::I32 => Literal::Int(dtype, (v as i32).into()),
            DType::U32 => Literal::Int(dtype, (v as u32).into()),
            DType::U64 => Literal::Int(dtype, v as u64 as i64),
            _ => Literal::Int(dtype, v as i64),
        }
    }

    /// Its type.
    pub fn dtype(self) -> DType {
        match self {
            Literal::F32(_) => DType::F32,
            Literal::F64(_) => DType::F64,
            Literal::Int(d, _) => d,
            Literal::Bool(_) => DType::Bool,
        }
    }
}

named! {
    /// Scalar functions of one operand. Floating point ones keep the operand's type.
    Unary {
        /// -x.
        Neg = "neg",
        /// |x|.
        Abs = "abs",
        /// eˣ.
        Exp = "exp",
        /// Natural logarithm.
        Log = "log",
        /// √x.
        Sqrt = "sqrt",
        /// The error function.
        Erf = "erf",
        /// tanh.
        Tanh = "tanh",
        /// 1 / (1 + e⁻ˣ).
        Sigmoid = "sigmoid",
        /// sin.
        Sin = "sin",
        /// cos.
        Cos = "cos",
        /// Largest integer not above x.
        Floor = "floor",
        /// Smallest integer not below x.
        Ceil = "ceil",
        /// Nearest integer, ties to even.
        Round = "round",
        /// Logical not, of a truth value.
        Not = "not",
        /// Whether x is not a number; gives a truth value.
        IsNan = "isnan",
        /// The f16 nearest to x, ties to even, as an f32; beyond the largest f16 infinite.
        RoundF16 = "round_f16",
        /// The bf16 nearest to x, ties to even, as an f32; beyond the largest bf16 infinite.
        RoundBf16 = "round_bf16",
    }
}

named! {
    /// Scalar functions of two operands of one type.
    Binary {
        /// x + y; integers wrap.
        Add = "add",
        /// x - y; integers wrap.
        Sub = "sub",
        /// x y; integers wrap.
        Mul = "mul",
        /// x / y; integers round towards zero, and x / 0 is 0.
        Div = "div",
        /// The smaller; NaN if either is.
        Min = "min",
        /// The larger; NaN if either is.
        Max = "max",
        /// xʸ.
        Pow = "pow",
        /// Equal; gives a truth value, as do the two below.
        Eq = "eq",
        /// Less.
        Lt = "lt",
        /// Less or equal.
        Le = "le",
        /// Both, of truth values; bit by bit, of integers, as the two below.
        And = "and",
        /// Either.
        Or = "or",
        /// One of the two, but not both.
        Xor = "xor",
        /// x 2ʸ, of integers without a sign, cut off as products are.
        ShiftLeft = "shl",
        /// x / 2ʸ, of integers without a sign, rounded down.
        ShiftRight = "shr",
    }
}

impl Unary {
    /// The type of the result for an operand of a type.
    pub fn result(self, x: DType) -> DType {
        if self == Unary::IsNan { DType::Bool } else { x }
    }
}

impl Binary {
    /// The type of the result for operands of a type.
    pub fn result(self, x: DType) -> DType {
        if self.is_test() { DType::Bool } else { x }
    }

    /// Whether the result is a truth value whatever the operands are.
    pub fn is_test(self) -> bool {
        matches!(self, Binary::Eq | Binary::Lt | Binary::Le)
    }
}

named! {
    /// How a reduction joins values. The order of joining is the back end's, the same on every run.
    Combine {
        /// Sum.
        Sum = "sum",
        /// Product.
        Product = "product",
        /// Largest; NaN if any is.
        Max = "max",
        /// Smallest; NaN if any is.
        Min = "min",
    }
}

/// A statement.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Stmt {
    /// A constant.
    Literal {
        /// Result.
        to: Reg,
        /// Value.
        value: Literal,
    },
    /// The value of an index, as I64.
    IndexValue {
        /// Result.
        to: Reg,
        /// Value.
        index: Index,
    },
    /// A function of one register.
    Unary {
        /// Result.
        to: Reg,
        /// Function.
        op: Unary,
        /// Operand.
        x: Reg,
    },
    /// A function of two registers.
    Binary {
        /// Result.
        to: Reg,
        /// Function.
        op: Binary,
        /// Left operand.
        x: Reg,
        /// Right operand.
        y: Reg,
    },
    /// `if test { x } else { y }`, both evaluated.
    Select {
        /// Result.
        to: Reg,
        /// A truth value.
        test: Reg,
        /// Taken when true.
        x: Reg,
        /// Taken when false.
        y: Reg,
    },
    /// Conversion to the type of the result: floats to integers truncate and saturate, NaN gives 0; numbers to
    /// truth values by `!= 0`.
    Cast {
        /// Result.
        to: Reg,
        /// Operand.
        x: Reg,
    },
    /// Reads an element, as the type it is [computed](DType::computed) in. With a guard that is false nothing is read and the result is `otherwise`.
    Load {
        /// Result.
        to: Reg,
        /// Position among the arguments.
        arg: usize,
        /// Element.
        index: Index,
        /// Truth value and the literal used when it is false.
        guard: Option<(Reg, Literal)>,
    },
    /// Writes an element.
    Store {
        /// Position among the arguments.
        arg: usize,
        /// Element.
        index: Index,
        /// Value, of the type that the argument's is [computed](DType::computed) in.
        value: Reg,
    },
    /// Reports a fault of the step when the test is false, and goes on.
    Require {
        /// A truth value.
        test: Reg,
        /// What is required, as a noun phrase with numbers for who gave the data: `indices from -5 to 4`.
        what: Arc<str>,
    },
    /// Sets a register to a size, converted to its type.
    Size {
        /// Result.
        to: Reg,
        /// The size.
        size: SizeId,
        /// Whether it is one over the size instead, as an f64 that is rounded to the type.
        inverse: bool,
    },
    /// Runs the body for every position of the axis.
    Loop {
        /// The axis.
        axis: Axis,
        /// Number of positions.
        extent: Extent<Reg>,
        /// Positions are independent and may run on several threads. Only the outermost loops of a kernel
        /// whose body is that single nest may say so.
        parallel: bool,
        /// Statements.
        body: Vec<Stmt>,
    },
    /// Runs the body for every position and joins one value per position into each result. Of no positions the sum is
    /// 0, the product 1, the largest the least number of the type, the smallest the greatest.
    Reduce {
        /// The axis.
        axis: Axis,
        /// Number of positions.
        extent: Extent<Reg>,
        /// Result, how values are joined, and the register of the body that holds the value.
        results: Vec<(Reg, Combine, Reg)>,
        /// Statements.
        body: Vec<Stmt>,
    },
}

/// An argument of a kernel: memory that is read or written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Arg {
    /// Type of the elements in memory.
    pub dtype: DType,
    /// Whether the kernel writes it. Written arguments never overlap others, but for one that is read
    /// [where it is written](Kernel::reads_where_it_writes).
    pub written: bool,
}

/// A loop nest.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Kernel {
    /// Memory.
    pub args: Vec<Arg>,
    /// Type of each register.
    pub regs: Vec<DType>,
    /// Number of axes.
    pub axes: u16,
    /// Statements. A kernel with parallel loops consists of that one nest, and of statements without effect before it
    /// that compute the extent of the outermost one.
    pub body: Vec<Stmt>,
}

impl Stmt {
    /// The registers that the statement defines in the block it stands in.
    pub fn defines(&self) -> Vec<Reg> {
        match self {
            Stmt::Literal { to, .. }
            | Stmt::Size { to, .. }
            | Stmt::IndexValue { to, .. }
            | Stmt::Unary { to, .. }
            | Stmt::Binary { to, .. }
            | Stmt::Select { to, .. }
            | Stmt::Cast { to, .. }
            | Stmt::Load { to, .. } => vec![*to],
            Stmt::Reduce { results, .. } => results.iter().map(|r| r.0).collect(),
            Stmt::Store { .. } | Stmt::Require { .. } | Stmt::Loop { .. } => Vec::new(),
        }
    }
}

impl Kernel {
    /// Shows every statement, those of loops after the loop.
    pub fn visit<'k>(&'k self, see: &mut dyn FnMut(&'k Stmt)) {
        fn go<'k>(body: &'k [Stmt], see: &mut dyn FnMut(&'k Stmt)) {
            for stmt in body {
                see(stmt);
                if let Stmt::Loop { body, .. } | Stmt::Reduce { body, .. } = stmt {
                    go(body, see);
                }
            }
        }
        go(&self.body, see);
    }

    /// The sizes that occur, each once, in order.
    pub fn sizes(&self) -> Vec<SizeId> {
        let mut found = std::collections::BTreeSet::new();
        self.visit(&mut |stmt| match stmt {
            Stmt::Size { size, .. } => drop(found.insert(*size)),
            Stmt::IndexValue { index, .. } | Stmt::Load { index, .. } | Stmt::Store { index, .. } => {
                found.extend(index.sizes.iter().map(|(size, _)| *size));
            }
            Stmt::Loop { extent: Extent::Sized { size, .. }, .. }
            | Stmt::Reduce { extent: Extent::Sized { size, .. }, .. } => drop(found.insert(*size)),
            _ => {}
        });
        found.into_iter().collect()
    }

    /// Whether an argument is read where a register says: such reads touch as much as is written, not the whole.
    pub fn gathers_from(&self, arg: usize) -> bool {
        fn any(body: &[Stmt], arg: usize) -> bool {
            body.iter().any(|stmt| match stmt {
                Stmt::Load { arg: a, index, .. } => *a == arg && index.registers().next().is_some(),
                Stmt::Loop { body, .. } | Stmt::Reduce { body, .. } => any(body, arg),
                _ => false,
            })
        }
        any(&self.body, arg)
    }

    /// Whether every read of one argument is at the position at which another is written, by the axes of the same
    /// loops: then both may be one region of memory.
    pub fn reads_where_it_writes(&self, read: usize, written: usize) -> bool {
        fn visit<'k>(body: &'k [Stmt], arg: usize, indices: &mut Vec<&'k Index>) {
            for stmt in body {
                match stmt {
                    Stmt::Load { arg: a, index, .. } | Stmt::Store { arg: a, index, .. } if *a == arg => {
                        indices.push(index);
                    }
                    Stmt::Loop { body, .. } | Stmt::Reduce { body, .. } => visit(body, arg, indices),
                    _ => {}
                }
            }
        }
        let (mut loads, mut stores) = (Vec::new(), Vec::new());
        visit(&self.body, read, &mut loads);
        visit(&self.body, written, &mut stores);
        let [store] = stores.as_slice() else { return false };
        store.registers().next().is_none() && loads.iter().all(|load| load == store)
    }

    /// What the kernel requires of its data, each once, in the order of its statements. A fault of a run names one by
    /// its position.
    pub fn requirements(&self) -> Vec<&str> {
        fn visit<'k>(body: &'k [Stmt], found: &mut Vec<&'k str>) {
            for stmt in body {
                match stmt {
                    Stmt::Require { what, .. } if !found.contains(&&**what) => found.push(what),
                    Stmt::Loop { body, .. } | Stmt::Reduce { body, .. } => visit(body, found),
                    _ => {}
                }
            }
        }
        let mut found = Vec::new();
        visit(&self.body, &mut found);
        found
    }

    /// The statements before the parallel loops, the parallel loops from the outermost in, each with its axis and
    /// extent, and the statements inside them.
    pub fn parallel_nest(&self) -> (&[Stmt], Vec<&Stmt>, &[Stmt]) {
        let Some((last, before)) = self.body.split_last() else { return (&[], Vec::new(), &[]) };
        let (mut loops, mut inside) = (Vec::new(), std::slice::from_ref(last));
        while let [stmt @ Stmt::Loop { parallel: true, body, .. }] = inside {
            loops.push(stmt);
            inside = body;
        }
        if loops.is_empty() { (&[], loops, &self.body) } else { (before, loops, inside) }
    }

    /// The most positions of the parallel loops, outermost first; empty for a serial kernel.
    pub fn parallel_extents(&self) -> Vec<usize> {
        let bound = |stmt: &&Stmt| match stmt {
            Stmt::Loop { extent, .. } => extent.bound(),
            _ => 1,
        };
        self.parallel_nest().1.iter().map(bound).collect()
    }
}
