//! Kernels of calls: which there are, and what writes them.
//!
//! A kernel is made for one call, with its extents and strides as numbers in the code. Its parameters are the
//! operands of the call in order. Sums are in f32, in the order of their terms: the same on every device and in every run.

mod attention;
mod conv;
mod epilogue;
mod matmul;
mod tile;

use margay_loops::{CallArg, Conv, KernelCall};
use margay_tensor::DType;

use crate::value::{Type, Value};
use crate::writer::Param;

/// A kernel as MLIR, and how it is launched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// The module.
    pub text: String,
    /// Blocks.
    pub blocks: usize,
    /// Threads of a block.
    pub threads: usize,
}

/// Whether a call has a kernel.
///
/// # Errors
/// Why it has none.
pub fn supports(call: &KernelCall) -> Result<(), String> {
    match call {
        KernelCall::MatMul(c) => matmul::supports(c),
        KernelCall::Conv(c) => conv::supports(c),
        // Where the kernel comes from plays no part.
        KernelCall::ConvKernelGradient(c) => conv::supports(&Conv { k_packed: false, ..c.forward.clone() }),
        KernelCall::Attention(c) => attention::supports(c),
        KernelCall::AttentionGradient(_) | KernelCall::Hadamard(_) | KernelCall::LinearAttention(_) => {
            Err("there is no kernel for GPUs".to_owned())
        }
    }
}

/// The kernel of a call; `None` for a call that has nothing to write.
///
/// # Errors
/// Why it has none.
pub fn write(call: &KernelCall) -> Result<Option<Written>, String> {
    supports(call)?;
    let nothing = |arg: &CallArg| arg.axes.iter().any(|(extent, _)| *extent == 0);
    if call.args().iter().filter(|arg| arg.written).all(nothing) {
        return Ok(None);
    }
    Ok(match call {
        KernelCall::MatMul(c) => Some(matmul::write_kernel(c)),
        KernelCall::Conv(c) => Some(conv::write_kernel(c)),
        KernelCall::ConvKernelGradient(c) => Some(conv::write_gradient(c)),
        KernelCall::Attention(c) => Some(attention::write_kernel(c)),
        KernelCall::AttentionGradient(_) | KernelCall::Hadamard(_) | KernelCall::LinearAttention(_) => None,
    })
}

/// Whether numbers of a type can be read as f32.
fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// The parameters of the kernel of a call, taken in order.
struct Arguments {
    params: Vec<Param>,
    /// Those that were not taken, the last one first.
    values: Vec<Value>,
    index: Type,
}

impl Arguments {
    fn new(call: &KernelCall) -> Arguments {
        let args = call.args();
        let param = |arg: &CallArg| Param::Pointer { align: arg.dtype.bytes(), constant: false };
        let span = |arg: &CallArg| -> usize { arg.axes.iter().map(|(extent, stride)| extent * stride).sum() };
        let large = args.iter().any(|arg| span(arg) >= 1 << 31);
        Arguments {
            params: args.iter().map(param).collect(),
            values: Vec::new(),
            index: if large { Type::I64 } else { Type::I32 },
        }
    }

    fn params(&self) -> &[Param] {
        &self.params
    }

    fn values(&mut self, values: &[Value]) {
        self.values = values.iter().rev().copied().collect();
    }

    fn take(&mut self) -> Value {
        self.values.pop().expect("a kernel has a parameter for each argument of its call")
    }

    /// The type of positions in the memory of the arguments.
    fn index(&self) -> Type {
        self.index
    }
}
