//! The loop level of margay: what a compiled graph does, step by step, without tensor operators.
//!
//! A [`Program`] is a tree of steps over planned buffers. A step runs a [`Kernel`] (a loop nest of scalar code
//! that a back end turns into machine code) or a [`KernelCall`] (matrix products, convolutions, attention: a
//! hand-written kernel that a [`Backend`] provides), copies, or chooses and repeats other steps. Nothing here is
//! specific to a machine: no vector width, no tile, no calling convention.
//!
//! - [`kernel`]: loop nests, loads, stores, scalar math.
//! - [`nest`]: the builder operators write their loop nests with; producers fuse into loads, consumers into
//!   stores.
//! - [`arithmetic`]: exp, log, erf and their kin, and 16-bit floats, over the operations that every back end has.
//! - [`call`]: target-neutral descriptions of hand-written kernels.
//! - [`precision`]: words for how constants of products are stored.
//! - [`program`]: steps, buffers and places.
//! - [`open`]: programs for a range of extents, made of programs for one extent each.
//! - [`text`]: programs printed and parsed; [`verify`]: what holds in every program.
//! - [`backend`]: what a back end answers, packs, compiles and predicts.

pub mod arithmetic;
pub mod backend;
pub mod call;
pub mod kernel;
pub mod nest;
pub mod open;
mod operations;
pub mod precision;
pub mod program;
pub mod text;
pub mod verify;

pub use arithmetic::{Arithmetic, Comparison};
pub use backend::{Backend, Code, CompileError, Needs, NoKernel, Packed, Preferences};
pub use call::{
    Activation, Attention, AttentionGradient, BatchAxis, Call, CallArg, Conv, ConvKernelGradient, Epilogue,
    FeatureAttention, FeatureMap, Hadamard, KernelCall, LinearAttention, MatLayout, MatMul,
    NonMaxSuppression, Pool, ProductTypes, Scale, TopK,
};
pub use kernel::{Arg, Axis, Binary, Combine, Factor, Index, Kernel, Literal, Reg, Stmt, Unary};
pub use nest::{Nest, Producer, Scalar, ScalarFn};
pub use open::{Open, Outline, Size, SizeId, generalize};
pub use operations::Operations;
pub use precision::Precision;
pub use program::{
    Buffer, BufferId, Carried, Constant, Counted, Extent, Loop, Operand, Place, Port, Program, SizedAt, Step,
    Work, for_each_operand, walk,
};
pub use text::{ConstantText, ParseError, parse_open, parse_program};
pub use verify::Violation;
