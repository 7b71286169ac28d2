//! Processor classes: what they answer about a call, and the table of their kernels.

use crate::Prepared;
use crate::abi::KernelFn;
use margay_loops::{KernelCall, NoKernel, Precision, ProductTypes};
use margay_tensor::{DType, StoredTensor};

use crate::constants::Format;
use crate::{
    UnknownTarget, attention, attention_gradient, constants, conv, conv_gradient, depthwise, hadamard,
    linear_attention, matmul,
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
        expect_f32(call).map_err(|why| self.no_kernel(call, why))?;
        match call {
            KernelCall::MatMul(c) => matmul::prepare(self.class, c),
            KernelCall::Conv(c) => conv::prepare(self.class, c),
            KernelCall::Hadamard(c) => hadamard::prepare(self.class, c),
            KernelCall::ConvKernelGradient(c) => conv_gradient::prepare(self.class, c),
            KernelCall::Attention(c) => attention::prepare(self.class, c),
            KernelCall::AttentionGradient(c) => attention_gradient::prepare(self.class, c),
            KernelCall::LinearAttention(c) => linear_attention::prepare(self.class, c),
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
        match (call, operand) {
            (KernelCall::MatMul(c), 1) if c.b_packed => constants::pack_constant(c, stored),
            (KernelCall::Conv(c), 1) if c.k_packed => conv::pack_constant(c, stored.elements()),
            _ => Err(format!("operand {operand} is not packed")),
        }
        .map_err(|why| self.no_kernel(call, why))
    }

    /// The inverse of [`pack`](CpuTarget::pack): the stored tensor of the given shape.
    pub fn unpack(&self, layout: &str, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, NoKernel> {
        if let Some(format) = Format::of_layout(layout) {
            return constants::unpack_constant(format, shape, bytes)
                .map_err(|why| self.no_kernel(format_args!("unpack {layout} {shape:?}"), why));
        }
        match layout {
            conv::TAPS_LAYOUT => conv::unpack_taps(shape, bytes),
            conv::POINTS_LAYOUT => conv::unpack_points(shape, bytes),
            depthwise::LAYOUT => depthwise::unpack_filters(shape, bytes),
            _ => Err(format!("unknown layout `{layout}`")),
        }
        .map(StoredTensor::from)
        .map_err(|why| self.no_kernel(format_args!("unpack {layout} {shape:?}"), why))
    }
}

/// Refuses operands that are not f32, but for those of products, which say so themselves. Transforms have no others.
fn expect_f32(call: &KernelCall) -> Result<(), String> {
    let plain = |types: &ProductTypes| match *types == ProductTypes::F32 {
        true => Ok(()),
        false => Err(format!("operands are f32, found{types}")),
    };
    let f32 = |dtype: DType| match dtype {
        DType::F32 => Ok(()),
        other => Err(format!("operands are f32, found {other}")),
    };
    match call {
        KernelCall::MatMul(_) | KernelCall::Hadamard(_) => Ok(()),
        KernelCall::Conv(c) => plain(&c.types),
        KernelCall::ConvKernelGradient(c) => plain(&c.forward.types),
        KernelCall::Attention(c) => f32(c.dtype),
        KernelCall::AttentionGradient(c) => f32(c.dtype),
        KernelCall::LinearAttention(c) => f32(c.dtype),
    }
}

/// A kernel and what an artifact records of it.
#[derive(Clone, Copy, Debug)]
pub struct KernelEntry {
    /// `<op>_<dtype>_<variant>__<instructions>`.
    pub name: &'static str,
    /// The version of its family, which changes when the contract or the parameters do.
    pub version: u32,
    /// Processors that can run it.
    pub class: Class,
    /// The entry point.
    pub function: KernelFn,
}

/// The kernel with a name, if this program has it.
pub fn lookup(name: &str) -> Option<&'static KernelEntry> {
    KERNELS.iter().find(|entry| entry.name == name)
}

/// The names of the kernels of a class.
pub(crate) struct Names {
    pub(crate) pack: &'static str,
    pub(crate) matmul: &'static str,
    /// A few rows with a right operand as it lies.
    pub(crate) matmul_thin: &'static str,
    /// One block of rows with a right operand that is packed on the way.
    pub(crate) matmul_strided: &'static str,
    /// Narrow constants, widened.
    pub(crate) matmul_widened: &'static str,
    /// Pairs of bf16, where the class has an instruction for them.
    pub(crate) matmul_pairs: Option<&'static str>,
    pub(crate) attention: &'static str,
    pub(crate) attention_gradient: &'static str,
    pub(crate) linear_attention: &'static str,
    pub(crate) conv: &'static str,
    pub(crate) conv_gradient: &'static str,
    pub(crate) depthwise: &'static str,
    pub(crate) hadamard: &'static str,
    /// Filters that are no constants.
    pub(crate) filters: &'static str,
}

macro_rules! names {
    ($tile:literal, $instructions:literal) => {
        names!($tile, $instructions, None)
    };
    ($tile:literal, $instructions:literal, $pairs:expr) => {
        Names {
            pack: concat!("pack_f32_kn32__", $instructions),
            matmul: concat!("matmul_f32_", $tile, "__", $instructions),
            matmul_thin: concat!("matmul_f32_thin__", $instructions),
            matmul_strided: concat!("matmul_f32_strided_", $tile, "__", $instructions),
            matmul_widened: concat!("matmul_widened_", $tile, "__", $instructions),
            matmul_pairs: $pairs,
            attention: concat!("attention_f32_flash__", $instructions),
            attention_gradient: concat!("attention_gradient_f32_flash__", $instructions),
            linear_attention: concat!("linear_attention_f32__", $instructions),
            conv: concat!("conv_f32_nhwc__", $instructions),
            conv_gradient: concat!("conv_kernel_gradient_f32_nhwc__", $instructions),
            depthwise: concat!("conv_f32_depthwise_nhwc__", $instructions),
            hadamard: concat!("hadamard_f32__", $instructions),
            filters: concat!("pack_f32_filters__", $instructions),
        }
    };
}

/// The product of pairs of bf16.
const PAIRS: &str = "matmul_bf16_14x32__avx512_bf16";

impl Class {
    /// Names of kernels, the same on every machine.
    pub(crate) const fn kernels(self) -> &'static Names {
        match self {
            Class::Portable => &names!("4x8", "portable"),
            Class::Avx2 => &names!("6x16", "avx2"),
            Class::Avx512 => &names!("14x32", "avx512"),
            Class::Avx512Bf16 => &names!("14x32", "avx512", Some(PAIRS)),
        }
    }
}

/// The entry points of a class: the families, compiled with its instructions.
macro_rules! entries {
    ($module:ident, $class:ident, $isa:expr, $(#[$features:meta])?) => {
        mod $module {
            use crate::abi::SCRATCH_HEADER_BYTES;

            use super::{Class, KernelEntry, Names};
            use crate::{attention, attention_gradient, conv, conv_gradient, depthwise, filters, hadamard, isa, linear_attention, matmul, narrow, pack, strided, thin};

            const NAMES: &Names = Class::$class.kernels();

            entries!(@one PACK, NAMES.pack, pack, $class, $isa, $(#[$features])?);
            entries!(@one MATMUL, NAMES.matmul, matmul, $class, $isa, $(#[$features])?);
            entries!(@one THIN, NAMES.matmul_thin, thin, $class, $isa, $(#[$features])?);
            entries!(@one STRIDED, NAMES.matmul_strided, strided, $class, $isa, $(#[$features])?);
            entries!(@one WIDENED, NAMES.matmul_widened, narrow, $class, $isa, $(#[$features])?);
            entries!(@one ATTENTION, NAMES.attention, attention, $class, $isa, $(#[$features])?);
            entries!(@one ATTENTION_GRADIENT, NAMES.attention_gradient, attention_gradient, $class, $isa,
                $(#[$features])?);
            entries!(@one LINEAR_ATTENTION, NAMES.linear_attention, linear_attention, $class, $isa,
                $(#[$features])?);
            entries!(@one CONV, NAMES.conv, conv, $class, $isa, $(#[$features])?);
            entries!(@one CONV_GRADIENT, NAMES.conv_gradient, conv_gradient, $class, $isa, $(#[$features])?);
            entries!(@one DEPTHWISE, NAMES.depthwise, depthwise, $class, $isa, $(#[$features])?);
            entries!(@one FILTERS, NAMES.filters, filters, $class, $isa, $(#[$features])?);
            entries!(@one HADAMARD, NAMES.hadamard, hadamard, $class, $isa, $(#[$features])?);
        }
    };
    (@one $entry:ident, $name:expr, $family:ident, $class:ident, $isa:expr, $(#[$features:meta])?) => {
        pub(super) const $entry: KernelEntry = {
            $(#[$features])?
            unsafe extern "C" fn kernel(
                params: *const u64,
                args: *const *mut u8,
                scratch: *mut u8,
                begin: u64,
                end: u64,
            ) {
                // SAFETY: the caller's promise: the contract of `KernelFn` and a processor of the class.
                unsafe {
                    let scratch = scratch.wrapping_add(SCRATCH_HEADER_BYTES).cast();
                    $family::run($isa, params, args, scratch, begin, end)
                }
            }
            KernelEntry { name: $name, version: $family::VERSION, class: Class::$class, function: kernel }
        };
    };
}

entries!(portable, Portable, isa::portable::Portable,);
#[cfg(target_arch = "x86_64")]
entries!(avx2, Avx2, isa::avx2::Avx2::new(), #[target_feature(enable = "avx2,fma")]);
#[cfg(target_arch = "x86_64")]
entries!(
    avx512,
    Avx512,
    isa::avx512::Avx512::new(),
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
);

#[cfg(target_arch = "x86_64")]
mod avx512_bf16 {
    use crate::abi::SCRATCH_HEADER_BYTES;

    use super::{Class, KernelEntry, PAIRS};
    use crate::{isa, matmul};

    entries!(
        @one MATMUL, PAIRS, matmul, Avx512Bf16, isa::avx512::Avx512Bf16::new(),
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    );
}

/// Every kernel of this program, by class.
pub const KERNELS: &[KernelEntry] = &[
    portable::PACK,
    portable::MATMUL,
    portable::THIN,
    portable::STRIDED,
    portable::WIDENED,
    portable::ATTENTION,
    portable::ATTENTION_GRADIENT,
    portable::LINEAR_ATTENTION,
    portable::CONV,
    portable::CONV_GRADIENT,
    portable::DEPTHWISE,
    portable::FILTERS,
    portable::HADAMARD,
    #[cfg(target_arch = "x86_64")]
    avx2::PACK,
    #[cfg(target_arch = "x86_64")]
    avx2::MATMUL,
    #[cfg(target_arch = "x86_64")]
    avx2::THIN,
    #[cfg(target_arch = "x86_64")]
    avx2::STRIDED,
    #[cfg(target_arch = "x86_64")]
    avx2::WIDENED,
    #[cfg(target_arch = "x86_64")]
    avx2::ATTENTION,
    #[cfg(target_arch = "x86_64")]
    avx2::ATTENTION_GRADIENT,
    #[cfg(target_arch = "x86_64")]
    avx2::LINEAR_ATTENTION,
    #[cfg(target_arch = "x86_64")]
    avx2::CONV,
    #[cfg(target_arch = "x86_64")]
    avx2::CONV_GRADIENT,
    #[cfg(target_arch = "x86_64")]
    avx2::DEPTHWISE,
    #[cfg(target_arch = "x86_64")]
    avx2::FILTERS,
    #[cfg(target_arch = "x86_64")]
    avx2::HADAMARD,
    #[cfg(target_arch = "x86_64")]
    avx512::PACK,
    #[cfg(target_arch = "x86_64")]
    avx512::MATMUL,
    #[cfg(target_arch = "x86_64")]
    avx512::THIN,
    #[cfg(target_arch = "x86_64")]
    avx512::STRIDED,
    #[cfg(target_arch = "x86_64")]
    avx512::WIDENED,
    #[cfg(target_arch = "x86_64")]
    avx512::ATTENTION,
    #[cfg(target_arch = "x86_64")]
    avx512::ATTENTION_GRADIENT,
    #[cfg(target_arch = "x86_64")]
    avx512::LINEAR_ATTENTION,
    #[cfg(target_arch = "x86_64")]
    avx512::CONV,
    #[cfg(target_arch = "x86_64")]
    avx512::CONV_GRADIENT,
    #[cfg(target_arch = "x86_64")]
    avx512::DEPTHWISE,
    #[cfg(target_arch = "x86_64")]
    avx512::FILTERS,
    #[cfg(target_arch = "x86_64")]
    avx512::HADAMARD,
    #[cfg(target_arch = "x86_64")]
    avx512_bf16::MATMUL,
];
