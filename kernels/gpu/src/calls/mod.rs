//! Kernels of calls: which there are, and what writes them.
//!
//! A kernel is made for one call and one class of devices, with extents and strides as numbers in the code. Its parameters
//! are the operands of the call in order, and the workspace if there is one. Sums are in f32, those of integers in i32, in an order that the call and
//! the class decide: the same in every run.
//!
//! - `matmul`, `conv`: products by where their elements lie; `product`: kernels of products of any source.
//! - `schedule`: which form a product takes, and its cost; `tile`, `few_rows`, `matrix_units`: the forms.
//! - `linear_attention`: several products and what is between them.
//! - `stored`: constants that products read as they are stored, random signs among them.
//! - `hadamard`: transforms of rows.
//! - `attention`, `attention_gradient`, and `scores`, which both compute.
//! - `epilogue`: what is done before results are stored.

mod attention;
mod attention_gradient;
mod conv;
mod epilogue;
mod few_rows;
mod hadamard;
mod linear_attention;
mod matmul;
mod matrix_units;
mod product;
mod schedule;
mod scores;
mod stored;
mod tile;

use margay_loops::{CallArg, Conv, KernelCall, Packed};
use margay_tensor::{DType, StoredTensor};

use self::product::Product;
use self::schedule::Schedule;
use crate::target::GpuTarget;
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
        KernelCall::AttentionGradient(c) => attention_gradient::supports(c),
        KernelCall::LinearAttention(c) => linear_attention::supports(c),
        KernelCall::Hadamard(c) => hadamard::supports(c),
        KernelCall::FeatureAttention(_)
        | KernelCall::NonMaxSuppression(_)
        | KernelCall::Pool(_)
        | KernelCall::TopK(_) => Err("there is no kernel for GPUs".to_owned()),
    }
}

/// A call as a product, if it is one.
fn product(call: &KernelCall) -> Option<&dyn Product> {
    match call {
        KernelCall::MatMul(c) => Some(c),
        KernelCall::Conv(c) => Some(c),
        KernelCall::ConvKernelGradient(c) => Some(c),
        KernelCall::Attention(_)
        | KernelCall::AttentionGradient(_)
        | KernelCall::FeatureAttention(_)
        | KernelCall::Hadamard(_)
        | KernelCall::LinearAttention(_)
        | KernelCall::NonMaxSuppression(_)
        | KernelCall::Pool(_)
        | KernelCall::TopK(_) => None,
    }
}

/// Whether a call has nothing to write.
fn writes_nothing(call: &KernelCall) -> bool {
    let nothing = |arg: &CallArg| arg.axes.iter().any(|(extent, _)| *extent == 0);
    call.args().iter().filter(|arg| arg.written).all(nothing)
}

/// Bytes of the workspace that the kernels of a call need.
pub fn workspace_bytes(call: &KernelCall, target: GpuTarget) -> usize {
    match (call, product(call)) {
        _ if writes_nothing(call) => 0,
        (KernelCall::LinearAttention(c), _) => linear_attention::workspace_bytes(c, target),
        (_, Some(product)) => product::parts_bytes(product, target),
        _ => 0,
    }
}

/// How a product is computed, in words; `None` for calls that are none.
pub fn form(call: &KernelCall, target: GpuTarget) -> Option<String> {
    product(call).map(|product| Schedule::of(&product.shape(), call, target).to_string())
}

/// The kernels of a call, one launched after the other; none for a call that has nothing to write.
///
/// # Errors
/// Why it has none.
pub fn write(call: &KernelCall, target: GpuTarget) -> Result<Vec<Written>, String> {
    supports(call)?;
    if writes_nothing(call) {
        return Ok(Vec::new());
    }
    Ok(match call {
        KernelCall::Attention(c) => vec![attention::write_kernel(c)],
        KernelCall::AttentionGradient(c) => attention_gradient::write_kernels(c),
        KernelCall::Hadamard(c) => hadamard::write_kernels(c),
        KernelCall::LinearAttention(c) => linear_attention::write_kernels(c, target),
        _ => product(call).map_or_else(Vec::new, |product| product::write(product, target)),
    })
}

/// The predicted seconds of a call on a device of the class of a target.
pub fn seconds(call: &KernelCall, target: GpuTarget) -> f64 {
    match (call, product(call)) {
        (KernelCall::Hadamard(c), _) => hadamard::seconds(c, target),
        (KernelCall::LinearAttention(c), _) => linear_attention::seconds(c, target),
        (_, Some(product)) => schedule::seconds(&product.shape(), call, target),
        (_, None) => {
            let rates = target.rates();
            let moved = schedule::bytes(call) as f64 / rates.bytes;
            rates.launch + moved.max(call.flops() as f64 / rates.operations)
        }
    }
}

/// Whether a constant operand of a call is read as it is stored, and not as numbers in rows.
pub fn packs(call: &KernelCall, operand: usize) -> bool {
    matches!((call, operand), (KernelCall::MatMul(c), 1) if stored::is_read(&c.types.right))
}

/// The constants of a call that are read as they are stored.
pub fn packed(call: &KernelCall) -> Vec<Packed> {
    match call {
        KernelCall::MatMul(c) if c.b_packed => vec![stored::packed(&c.types.right, [c.k, c.n])],
        _ => Vec::new(),
    }
}

/// The bytes of a constant operand that [`packed`] names.
///
/// # Errors
/// Why a constant is not that operand.
pub fn pack(call: &KernelCall, operand: usize, constant: &StoredTensor) -> Result<Vec<u8>, String> {
    match call {
        KernelCall::MatMul(c) if c.b_packed && operand == 1 => {
            stored::pack(&c.types.right, [c.k, c.n], constant)
        }
        _ => Err(format!("operand {operand} is not packed")),
    }
}

/// The inverse of [`pack`], for a tensor of a shape.
///
/// # Errors
/// What does not fit.
pub fn unpack(layout: &str, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, String> {
    stored::unpack(layout, shape, bytes)
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
    has_workspace: bool,
    workspace: Option<Value>,
    index: Type,
}

impl Arguments {
    /// Those of a call, and its workspace if there is one.
    fn new(call: &KernelCall, workspace: bool) -> Arguments {
        let args = call.args();
        let param = |arg: &CallArg| Param::Pointer { align: arg.dtype.bytes(), constant: false };
        let behind = workspace.then_some(Param::Pointer { align: 4, constant: false });
        let span = |arg: &CallArg| -> usize { arg.axes.iter().map(|(extent, stride)| extent * stride).sum() };
        let large = args.iter().any(|arg| span(arg) >= 1 << 31);
        Arguments {
            params: args.iter().map(param).chain(behind).collect(),
            values: Vec::new(),
            has_workspace: workspace,
            workspace: None,
            index: if large { Type::I64 } else { Type::I32 },
        }
    }

    fn params(&self) -> &[Param] {
        &self.params
    }

    fn values(&mut self, values: &[Value]) {
        let (args, behind) = values.split_at(values.len() - usize::from(self.has_workspace));
        self.values = args.iter().rev().copied().collect();
        self.workspace = behind.first().copied();
    }

    fn take(&mut self) -> Value {
        self.values.pop().expect("a kernel has a parameter for each argument of its call")
    }

    /// The workspace, behind the arguments of the call.
    fn workspace(&self) -> Value {
        self.workspace.expect("the call asks for a workspace")
    }

    /// The type of positions in the memory of the arguments.
    fn index(&self) -> Type {
        self.index
    }
}
