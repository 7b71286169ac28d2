//! Processor classes, and what they answer about a call.

use crate::Prepared;
use margay_loops::{KernelCall, NoKernel, Precision};
use margay_tensor::StoredTensor;

use crate::constants::Format;
use crate::{
    UnknownTarget, attention, attention_gradient, bytes, constants, conv, conv_bytes, conv_gradient,
    depthwise, hadamard, linear_attention, matmul, non_max_suppression, pool, top_k,
};

/// A set of vector instructions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Class {
    /// None in particular.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, besides AVX2 and FMA.
    Avx512,
    /// AVX-512 BF16 besides: only products in bf16 differ.
    Avx512Bf16,
}

impl Class {
    /// Every class, the most capable last.
    pub const ALL: [Class; 4] = [Class::Portable, Class::Avx2, Class::Avx512, Class::Avx512Bf16];

    /// The name users give to `--target-cpu`.
    pub fn name(self) -> &'static str {
        match self {
            Class::Portable => "portable",
            Class::Avx2 => "x86-64-v3",
            Class::Avx512 => "x86-64-v4",
            Class::Avx512Bf16 => "x86-64-v4-bf16",
        }
    }

    /// Whether this machine can run kernels of the class.
    pub fn supported_here(self) -> bool {
        match self {
            Class::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Class::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Class::Avx512 => {
                Class::Avx2.supported_here()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Class::Avx512Bf16 => Class::Avx512.supported_here() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            Class::Avx2 | Class::Avx512 | Class::Avx512Bf16 => false,
        }
    }

    /// Most rows of a tile.
    pub(crate) fn rows(self) -> usize {
        match self {
            Class::Portable => 4,
            Class::Avx2 => 6,
            Class::Avx512 | Class::Avx512Bf16 => 14,
        }
    }

    /// Elements of a vector.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Class::Portable => 4,
            Class::Avx2 => 8,
            Class::Avx512 | Class::Avx512Bf16 => 16,
        }
    }

    /// Columns that a tile computes together.
    pub(crate) fn columns(self) -> usize {
        match self {
            Class::Portable => 8,
            Class::Avx2 | Class::Avx512 | Class::Avx512Bf16 => 16,
        }
    }

    /// Most terms of a partial sum: a tile of A and a panel of B of this depth stay in the cache.
    pub(crate) fn k_block(self) -> usize {
        match self {
            Class::Portable => 256,
            Class::Avx2 => 256,
            Class::Avx512 | Class::Avx512Bf16 => 1024,
        }
    }

    /// Operations worth an item of work: some tens of microseconds.
    pub(crate) fn item_flops(self) -> usize {
        match self {
            Class::Portable => 400_000,
            Class::Avx2 => 2_000_000,
            Class::Avx512 | Class::Avx512Bf16 => 4_000_000,
        }
    }

    /// Bytes of a constant worth an item of work where memory is the limit.
    pub(crate) fn item_bytes(self) -> usize {
        1 << 20
    }
}

/// The hand-written kernels of one processor class: which of them serve a call, and how.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CpuTarget {
    class: Class,
}

impl CpuTarget {
    /// The target of a class.
    pub fn new(class: Class) -> CpuTarget {
        CpuTarget { class }
    }

    /// The most capable class of this machine for products in f32.
    pub fn native() -> CpuTarget {
        CpuTarget::native_for(Precision::F32)
    }

    /// The most capable class of this machine for products of a precision; among equals that of most processors.
    pub fn native_for(precision: Precision) -> CpuTarget {
        let narrow = precision == Precision::Bf16;
        let serves = |class: &Class| class.supported_here() && (narrow || *class != Class::Avx512Bf16);
        CpuTarget::new(Class::ALL.into_iter().rfind(serves).unwrap_or(Class::Portable))
    }

    /// The target with a name: `native` for products in f32, or that of a class.
    pub fn by_name(name: &str) -> Result<CpuTarget, UnknownTarget> {
        CpuTarget::by_name_for(name, Precision::F32)
    }

    /// The target with a name: `native` for products of a precision, or that of a class.
    pub fn by_name_for(name: &str, precision: Precision) -> Result<CpuTarget, UnknownTarget> {
        if name == "native" {
            return Ok(CpuTarget::native_for(precision));
        }
        let class = Class::ALL.into_iter().find(|class| class.name() == name);
        class.map(CpuTarget::new).ok_or_else(|| UnknownTarget(name.to_owned()))
    }

    /// The class.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Whether this machine can run the target's kernels.
    pub fn supported_here(&self) -> bool {
        self.class.supported_here()
    }

    fn no_kernel(&self, call: impl std::fmt::Display, why: String) -> NoKernel {
        NoKernel { target: self.name().to_owned(), call: call.to_string(), why }
    }

    /// The name users give to `--target-cpu`.
    pub fn name(&self) -> &'static str {
        self.class.name()
    }

    /// Kernel variants, parameters and memory of a call.
    pub fn prepare(&self, call: &KernelCall) -> Result<Prepared, NoKernel> {
        match call {
            KernelCall::MatMul(c) if bytes::serves(c) => bytes::prepare(self.class, c),
            KernelCall::MatMul(c) => matmul::prepare(self.class, c),
            KernelCall::Conv(c) if conv_bytes::serves(c) => conv_bytes::prepare(self.class, c),
            KernelCall::Conv(c) => conv::prepare(self.class, c),
            KernelCall::Hadamard(c) => hadamard::prepare(self.class, c),
            KernelCall::ConvKernelGradient(c) => conv_gradient::prepare(self.class, c),
            KernelCall::Attention(c) => attention::prepare(self.class, c),
            KernelCall::AttentionGradient(c) => attention_gradient::prepare(self.class, c),
            KernelCall::LinearAttention(c) => linear_attention::prepare(self.class, c),
            KernelCall::FeatureAttention(c) => linear_attention::prepare_made(self.class, c),
            KernelCall::NonMaxSuppression(c) => non_max_suppression::prepare(self.class, c),
            KernelCall::Pool(c) => pool::prepare(self.class, c),
            KernelCall::TopK(c) => top_k::prepare(self.class, c),
        }
        .map_err(|why| self.no_kernel(call, why))
    }

    /// The bytes of a constant operand in the layout that [`prepare`](CpuTarget::prepare) named for it.
    pub fn pack(
        &self,
        call: &KernelCall,
        operand: usize,
        stored: &StoredTensor,
    ) -> Result<Vec<u8>, NoKernel> {
        match call {
            KernelCall::MatMul(c) if operand == 1 && c.b_packed && bytes::serves(c) => {
                bytes::pack_constant(c, stored)
            }
            KernelCall::MatMul(c) if operand == 1 && c.b_packed => constants::pack_constant(c, stored),
            KernelCall::Conv(c) if operand == 1 && c.k_packed && conv_bytes::serves(c) => {
                conv_bytes::pack_constant(c, stored)
            }
            KernelCall::Conv(c) if operand == 1 && c.k_packed => conv::pack_constant(c, stored),
            KernelCall::MatMul(_)
            | KernelCall::Conv(_)
            | KernelCall::FeatureAttention(_)
            | KernelCall::Hadamard(_)
            | KernelCall::ConvKernelGradient(_)
            | KernelCall::Attention(_)
            | KernelCall::AttentionGradient(_)
            | KernelCall::LinearAttention(_)
            | KernelCall::NonMaxSuppression(_)
            | KernelCall::Pool(_)
            | KernelCall::TopK(_) => Err(format!("operand {operand} is not packed")),
        }
        .map_err(|why| self.no_kernel(call, why))
    }

    /// The inverse of [`pack`](CpuTarget::pack): the stored tensor of the given shape.
    pub fn unpack(&self, layout: &str, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, NoKernel> {
        if let Some(format) = Format::of_layout(layout) {
            return constants::unpack_constant(format, shape, bytes)
                .map_err(|why| self.no_kernel(format_args!("unpack {layout} {shape:?}"), why));
        }
        if let Some(signed) = bytes::of_layout(layout) {
            return bytes::unpack_constant(signed, shape, bytes)
                .map_err(|why| self.no_kernel(format_args!("unpack {layout} {shape:?}"), why));
        }
        if let Some(signed) = conv_bytes::of_layout(layout) {
            return conv_bytes::unpack_constant(signed, shape, bytes)
                .map_err(|why| self.no_kernel(format_args!("unpack {layout} {shape:?}"), why));
        }
        if let Some(signs) = conv::signs_of_layout(layout) {
            return conv::unpack_signs(signs, shape, bytes)
                .map_err(|why| self.no_kernel(format_args!("unpack {layout} {shape:?}"), why));
        }
        if let Some(groups) = conv::groups_of_layout(layout) {
            return conv::unpack(groups, shape, bytes)
                .map(StoredTensor::from)
                .map_err(|why| self.no_kernel(format_args!("unpack {layout} {shape:?}"), why));
        }
        match layout {
            conv::POINTS_LAYOUT => conv::unpack(1, shape, bytes),
            depthwise::LAYOUT => depthwise::unpack_filters(shape, bytes),
            _ => Err(format!("unknown layout `{layout}`")),
        }
        .map(StoredTensor::from)
        .map_err(|why| self.no_kernel(format_args!("unpack {layout} {shape:?}"), why))
    }
}
