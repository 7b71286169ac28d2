//! Target-neutral descriptions of the kernels that are written by hand.
//!
//! A call states the mathematics and the memory layout of its operands, never a tile or an instruction set: a
//! [`Backend`](crate::Backend) chooses those. Offsets and strides are in elements of the operand. Sums are in f32,
//! those of 8-bit integers in i32, whatever the types of operands: a back end refuses those it has no kernel for.
//!
//! Each family is a file: its struct, what it answers as a [`Call`], and its text. The list `calls!` below makes the
//! enum [`KernelCall`] of them. Whoever is not a back end asks the call and does not look which family it is.

mod attention;
mod attention_gradient;
mod conv;
mod conv_kernel_gradient;
mod epilogue;
mod feature_attention;
mod hadamard;
mod linear_attention;
mod matmul;
mod non_max_suppression;
mod pool;
mod top_k;
mod types;

pub use attention::Attention;
pub use attention_gradient::AttentionGradient;
pub use conv::Conv;
pub use conv_kernel_gradient::ConvKernelGradient;
pub use epilogue::{Activation, Epilogue, Scale};
pub use feature_attention::{FeatureAttention, FeatureMap};
pub use hadamard::Hadamard;
pub use linear_attention::LinearAttention;
pub use matmul::{BatchAxis, MatLayout, MatMul};
pub use non_max_suppression::NonMaxSuppression;
pub use pool::Pool;
pub use top_k::TopK;
pub use types::ProductTypes;
use types::dtype_text;

use std::fmt;
use std::hash::Hash;

use margay_tensor::DType;

use crate::text::Field;

/// An argument of a call, without the workspace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallArg {
    /// Type of the elements.
    pub dtype: DType,
    /// The elements that are touched: extent and stride of every axis, from the first element on. Of an operand that is
    /// packed they mean nothing.
    pub axes: Vec<(usize, usize)>,
    /// Whether it is a result.
    pub written: bool,
}

impl CallArg {
    /// An operand.
    pub(crate) fn read(dtype: DType, axes: &[(usize, usize)]) -> CallArg {
        CallArg { dtype, axes: axes.to_vec(), written: false }
    }

    /// A result.
    pub(crate) fn written(dtype: DType, axes: &[(usize, usize)]) -> CallArg {
        CallArg { dtype, axes: axes.to_vec(), written: true }
    }
}

/// What every family of calls answers. There are no default bodies. Its parameters are [`Field`]s.
pub trait Call: Clone + Eq + Hash + fmt::Debug + fmt::Display + Field {
    /// The name of the family, as benches and reports show it.
    const FAMILY: &'static str;

    /// Multiplications and additions of one call, each counted as one operation.
    fn flops(&self) -> u64;

    /// The arguments in order, without the workspace.
    fn args(&self) -> Vec<CallArg>;

    /// What the kernel does to its first result before the store; `None` if it can do nothing. A bias lies along the
    /// last axis of the result. Bias and residual are arguments between the operands and the results.
    fn epilogue(&mut self) -> Option<&mut Epilogue>;

    /// The operand that may be packed and whether it is, where there is one. Operators say whether it is a constant that
    /// could be; the back end decides.
    fn packed(&mut self) -> Option<(usize, &mut bool)>;

    /// What elements of an operand are rounded to before anything is computed from them, if that is narrower than they
    /// are in memory.
    fn rounds(&self, operand: usize) -> Option<DType>;

    /// The type of the first result, if the kernel sums integers and can make f32 of the sums: i32, or f32. An offset and a
    /// scale are for these.
    fn sums_of_integers(&mut self) -> Option<&mut DType>;

    /// The strides of (batch, head, row) of result number `result`, if the kernel writes it with any strides: then a
    /// transpose behind it costs nothing. `None` where the layout is fixed.
    fn transposable(&mut self, result: usize) -> Option<&mut [usize; 3]>;
}

/// The product of extents.
fn product(factors: &[usize]) -> u64 {
    factors.iter().map(|&f| f as u64).product()
}

macro_rules! calls {
    ($($name:ident),* $(,)?) => {
        /// A kernel that loops cannot bring to the speed of the hardware.
        #[derive(Clone, PartialEq, Eq, Hash, Debug)]
        pub enum KernelCall {
            $(
                #[doc = concat!("See [`", stringify!($name), "`].")]
                $name($name),
            )*
        }

        $(
            impl From<$name> for KernelCall {
                fn from(call: $name) -> KernelCall {
                    KernelCall::$name(call)
                }
            }
        )*

        impl KernelCall {
            /// See [`Call::FAMILY`].
            pub fn family(&self) -> &'static str {
                match self { $(KernelCall::$name(_) => $name::FAMILY),* }
            }

            /// See [`Call::flops`].
            pub fn flops(&self) -> u64 {
                match self { $(KernelCall::$name(call) => call.flops()),* }
            }

            /// See [`Call::args`].
            pub fn args(&self) -> Vec<CallArg> {
                match self { $(KernelCall::$name(call) => call.args()),* }
            }

            /// The family and all parameters, as text that reads back.
            pub fn text(&self) -> String {
                let fields = match self { $(KernelCall::$name(call) => call.write()),* };
                format!("{} {fields}", self.family())
            }

            /// The call of a family with parameters, as [`text`](KernelCall::text) writes them.
            pub fn read(family: &str, fields: &str) -> Result<KernelCall, String> {
                match family {
                    $($name::FAMILY => $name::read(fields).map(KernelCall::$name),)*
                    _ => Err(format!("there is no kernel call `{family}`")),
                }
            }

            /// See [`Call::epilogue`].
            pub fn epilogue(&mut self) -> Option<&mut Epilogue> {
                match self { $(KernelCall::$name(call) => call.epilogue()),* }
            }

            /// See [`Call::packed`].
            pub fn packed(&mut self) -> Option<(usize, &mut bool)> {
                match self { $(KernelCall::$name(call) => call.packed()),* }
            }

            /// See [`Call::rounds`].
            pub fn rounds(&self, operand: usize) -> Option<DType> {
                match self { $(KernelCall::$name(call) => call.rounds(operand)),* }
            }

            /// See [`Call::sums_of_integers`].
            pub fn sums_of_integers(&mut self) -> Option<&mut DType> {
                match self { $(KernelCall::$name(call) => call.sums_of_integers()),* }
            }

            /// See [`Call::transposable`].
            pub fn transposable(&mut self, result: usize) -> Option<&mut [usize; 3]> {
                match self { $(KernelCall::$name(call) => call.transposable(result)),* }
            }
        }

        impl fmt::Display for KernelCall {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { $(KernelCall::$name(call) => call.fmt(f)),* }
            }
        }
    };
}

// By the alphabet.
calls![
    Attention,
    AttentionGradient,
    Conv,
    ConvKernelGradient,
    FeatureAttention,
    Hadamard,
    LinearAttention,
    MatMul,
    NonMaxSuppression,
    Pool,
    TopK,
];
