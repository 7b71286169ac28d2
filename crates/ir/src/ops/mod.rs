//! The closed operator set.
//!
//! Each operator is a plain struct of attributes with one file and one line in the `ops!` list below. The list
//! generates the enum [`Op`], its conversions, and one `match` per question of [`OpDef`], so that the compiler
//! finds what a new operator forgot.

mod attributes;
mod control;
mod elementwise;
mod facts;
mod leaf;
mod lowering;
mod nn;
mod reduce;
mod shape;

pub use attributes::{Attribute, Attributes, Bits, Number};
pub use control::*;
pub use elementwise::*;
pub use facts::{Elementwise, Facts, Image, IntTensor, Neutral, Parameter, Symbolic, less_or_equal};
pub use leaf::*;
pub use lowering::{
    Cost, Io, Lowered, NotLowered, Strided, View, is_row_major, range_of_integers, strides_of,
};
pub use nn::*;
pub use reduce::*;
pub use shape::*;

use std::fmt::Debug;
use std::hash::Hash;

use margay_tensor::{Binding, Tensor};

use crate::padding::{Padded, Padding};
use crate::vjp::{GradResult, Vjp};
use crate::{TensorType, TypeError, Types};

/// The inputs of an automatic test: types and the range values are drawn from.
#[derive(Clone, Debug)]
pub struct Case {
    /// Operands.
    pub inputs: Vec<CaseInput>,
}

/// One operand of a [`Case`].
#[derive(Clone, Debug)]
pub enum CaseInput {
    /// Random values of a type with known extents, uniform in `low..high` (integers: below `high`).
    Random {
        /// Element type.
        dtype: margay_tensor::DType,
        /// Extents.
        shape: Vec<usize>,
        /// Smallest value.
        low: f64,
        /// Bound of the values.
        high: f64,
    },
    /// These values.
    Values(Tensor),
}

impl Case {
    /// Random f32 operands in -2..2.
    pub fn f32(shapes: &[&[usize]]) -> Case {
        Case::random(margay_tensor::DType::F32, -2.0, 2.0, shapes)
    }

    /// Random operands of one type and range.
    pub fn random(dtype: margay_tensor::DType, low: f64, high: f64, shapes: &[&[usize]]) -> Case {
        let input = |s: &&[usize]| CaseInput::Random { dtype, shape: s.to_vec(), low, high };
        Case { inputs: shapes.iter().map(input).collect() }
    }

    /// The same case with another operand at the end.
    #[must_use]
    pub fn with(mut self, input: CaseInput) -> Case {
        self.inputs.push(input);
        self
    }
}

/// The shapes of the operands of a case.
pub(crate) fn input_shapes(case: &Case) -> Vec<Vec<usize>> {
    let shape = |input: &CaseInput| match input {
        CaseInput::Random { shape, .. } => shape.clone(),
        CaseInput::Values(t) => t.shape().to_vec(),
    };
    case.inputs.iter().map(shape).collect()
}

/// The reference interpreter cannot compute an operator on these inputs (the model's fault: an index out of
/// range, or a type the operator does not take).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EvalError {
    /// The inputs do not fit the operator.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// A tensor could not be made.
    #[error(transparent)]
    Tensor(#[from] margay_tensor::TensorError),
    /// A dimension has no value yet.
    #[error(transparent)]
    Unbound(#[from] margay_tensor::UnboundSymbol),
    /// A node of a graph inside an operator failed.
    #[error("in a region: {0}")]
    Region(String),
    /// An index points outside its axis.
    #[error("index {index} is outside an axis of {extent}")]
    Index {
        /// The index.
        index: i64,
        /// The extent of the axis.
        extent: usize,
    },
}

/// What every operator answers. There are no default bodies: every question gets an answer.
pub trait OpDef: Attributes + Clone + Eq + Hash + Debug {
    /// The mnemonic in text form, in snake case.
    const NAME: &'static str;

    /// The types of the outputs. This is the type rule and the verifier.
    fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError>;

    /// The outputs, by the obvious method: the reference all other code is compared with. Floats are computed in
    /// f64 and rounded to the type of the output. Never panics on inputs that `infer` accepts.
    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError>;

    /// The cotangents of the inputs, given those of the outputs: nodes added to the graph.
    fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult;

    /// How the operator runs at the loop level, with every extent known.
    fn lower(&self, io: &Io) -> Result<Lowered, NotLowered>;

    /// Operations and bytes of one run, with every extent known.
    fn cost(&self, io: &Io) -> Cost;

    /// What passes, the importer and the trainer may know of it.
    fn facts(&self) -> Facts;

    /// The operator on operands whose axes are in another order, axis `perm[i]` in place `i`: its result has that order
    /// too. Operands have as many axes as the result, unless it is elementwise; those that say where elements move to
    /// ([`Facts::steering`]) stay as they are. `None` if there is no such operator, or it has results of another number of
    /// axes.
    fn permuted(&self, perm: &[usize]) -> Option<Op>;

    /// The same with bounds in place of extents that a run decides, which operands, results or attributes mention.
    fn padded(&self, cx: &mut Padding<'_>) -> Padded;

    /// Instances and inputs for the automatic tests and benches.
    fn cases() -> Vec<(Self, Case)>;
}

macro_rules! ops {
    ($($name:ident),* $(,)?) => {
        /// An operator with its attributes.
        #[derive(Clone, PartialEq, Eq, Hash, Debug)]
        pub enum Op {
            $(
                #[doc = concat!("See [`", stringify!($name), "`].")]
                $name($name),
            )*
        }

        $(
            impl From<$name> for Op {
                fn from(op: $name) -> Op {
                    Op::$name(op)
                }
            }
        )*

        impl Op {
            /// The mnemonics of all operators, in the order of the list.
            pub const ALL: &'static [&'static str] = &[$($name::NAME),*];

            /// The mnemonic.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$name(_) => $name::NAME),* }
            }

            /// See [`OpDef::infer`].
            pub fn infer(&self, inputs: &[&TensorType]) -> Result<Types, TypeError> {
                match self { $(Op::$name(op) => op.infer(inputs)),* }
            }

            /// See [`OpDef::eval`].
            pub fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
                match self { $(Op::$name(op) => op.eval(inputs)),* }
            }

            /// See [`OpDef::vjp`].
            pub fn vjp(&self, cx: &mut Vjp<'_>) -> GradResult {
                match self { $(Op::$name(op) => op.vjp(cx)),* }
            }

            /// See [`OpDef::lower`].
            pub fn lower(&self, io: &Io) -> Result<Lowered, NotLowered> {
                match self { $(Op::$name(op) => op.lower(io)),* }
            }

            /// See [`OpDef::cost`].
            pub fn cost(&self, io: &Io) -> Cost {
                match self { $(Op::$name(op) => op.cost(io)),* }
            }

            /// See [`OpDef::facts`].
            pub fn facts(&self) -> Facts {
                match self { $(Op::$name(op) => op.facts()),* }
            }

            /// See [`OpDef::permuted`].
            pub fn permuted(&self, perm: &[usize]) -> Option<Op> {
                match self { $(Op::$name(op) => op.permuted(perm)),* }
            }

            /// See [`OpDef::padded`].
            pub fn padded(&self, cx: &mut Padding<'_>) -> Padded {
                match self { $(Op::$name(op) => op.padded(cx)),* }
            }

            /// The cases of every operator.
            pub fn cases() -> Vec<(Op, Case)> {
                let mut all: Vec<(Op, Case)> = Vec::new();
                $(all.extend($name::cases().into_iter().map(|(op, case)| (op.into(), case)));)*
                all
            }

            /// The attributes that differ from their defaults, as (name, text).
            pub fn attributes(&self) -> Vec<(&'static str, String)> {
                match self { $(Op::$name(op) => op.write()),* }
            }

            /// The graphs that the operator holds.
            pub fn regions(&self) -> Vec<&$crate::Region> {
                match self { $(Op::$name(op) => op.regions()),* }
            }

            /// The graphs that the operator holds, to be replaced.
            pub fn regions_mut(&mut self) -> Vec<&mut $crate::Region> {
                match self { $(Op::$name(op) => op.regions_mut()),* }
            }

            /// The same operator with symbols replaced by their values.
            #[must_use]
            pub fn bind(&self, binding: &Binding) -> Op {
                match self { $(Op::$name(op) => Op::$name(op.bind(binding))),* }
            }

            /// The operator with this mnemonic and these attributes. `None` for an unknown mnemonic.
            pub fn parse(name: &str, attributes: &[(&str, &str)]) -> Option<Result<Op, String>> {
                match name {
                    $($name::NAME => Some($name::read(attributes).map(Op::from)),)*
                    _ => None,
                }
            }
        }
    };
}

// Grouped as the folders are; inside a group by the alphabet.
ops![
    // leaf
    Const,
    Dims,
    Input,
    Range,
    // elementwise
    Abs,
    Add,
    And,
    Atan,
    Cast,
    Ceil,
    Cos,
    Div,
    Dropout,
    Equal,
    Erf,
    Exp,
    Floor,
    Gelu,
    HardSwish,
    Less,
    LessOrEqual,
    Log,
    Max,
    Min,
    Mul,
    MulOrZero,
    Neg,
    Not,
    Or,
    Position,
    Pow,
    Relu,
    Relu6,
    Round,
    Select,
    ShiftLeft,
    ShiftRight,
    Sigmoid,
    Silu,
    Sin,
    Softplus,
    Sqrt,
    Sub,
    Tanh,
    Xor,
    // control
    If,
    Loop,
    // shape
    Broadcast,
    Concat,
    Cut,
    Gather,
    NonZero,
    Pack,
    Pad,
    Reshape,
    Scatter,
    ScatterAdd,
    Slice,
    Transpose,
    // reduce
    Cumulate,
    Reduce,
    TopK,
    // nn
    Attention,
    AttentionGradient,
    Conv,
    ConvKernelGradient,
    Col2im,
    FeatureAttention,
    Hadamard,
    LayerNorm,
    LinearAttention,
    MatMul,
    MaxPoolGradient,
    Im2col,
    NonMaxSuppression,
    Pool,
    Recurrence,
    Sketch,
    Softmax,
];
