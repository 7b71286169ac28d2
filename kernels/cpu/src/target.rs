//! Processor classes: what they answer about a call, and the table of their kernels.

use margay_loops::abi::KernelFn;
use margay_loops::{KernelCall, NoKernel, Prepared, Target};
use margay_tensor::Tensor;

use crate::{UnknownTarget, attention, conv, linear_attention, matmul, pack};

/// A set of vector instructions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Class {
    /// None in particular.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, besides AVX2 and FMA.
    Avx512,
}

impl Class {
    /// Every class, the most capable last.
    pub const ALL: [Class; 3] = [Class::Portable, Class::Avx2, Class::Avx512];

    /// The name users give to `--target-cpu`.
    pub fn name(self) -> &'static str {
        match self {
            Class::Portable => "portable",
            Class::Avx2 => "x86-64-v3",
            Class::Avx512 => "x86-64-v4",
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
            #[cfg(not(target_arch = "x86_64"))]
            Class::Avx2 | Class::Avx512 => false,
        }
    }

    /// Most rows of a tile.
    pub(crate) fn rows(self) -> usize {
        match self {
            Class::Portable => 4,
            Class::Avx2 => 6,
            Class::Avx512 => 14,
        }
    }

    /// Most terms of a partial sum: a tile of A and a panel of B of this depth stay in the cache.
    pub(crate) fn k_block(self) -> usize {
        match self {
            Class::Portable => 256,
            Class::Avx2 => 256,
            Class::Avx512 => 384,
        }
    }

    /// Operations worth an item of work: some tens of microseconds.
    pub(crate) fn item_flops(self) -> usize {
        match self {
            Class::Portable => 400_000,
            Class::Avx2 => 2_000_000,
            Class::Avx512 => 4_000_000,
        }
    }

    /// Bytes of a constant worth an item of work where memory is the limit.
    pub(crate) fn item_bytes(self) -> usize {
        1 << 20
    }
}

/// The kernels of one processor class, as a [`Target`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CpuTarget {
    class: Class,
}

impl CpuTarget {
    /// The target of a class.
    pub fn new(class: Class) -> CpuTarget {
        CpuTarget { class }
    }

    /// The most capable class of this machine.
    pub fn native() -> CpuTarget {
        let class = Class::ALL.into_iter().rfind(|class| class.supported_here());
        CpuTarget::new(class.unwrap_or(Class::Portable))
    }

    /// The target with a name: `native`, `portable`, `x86-64-v3` or `x86-64-v4`.
    pub fn by_name(name: &str) -> Result<CpuTarget, UnknownTarget> {
        if name == "native" {
            return Ok(CpuTarget::native());
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
}

impl Target for CpuTarget {
    fn name(&self) -> &str {
        self.class.name()
    }

    fn prepare(&self, call: &KernelCall) -> Result<Prepared, NoKernel> {
        match call {
            KernelCall::MatMul(c) => matmul::prepare(self.class, c),
            KernelCall::Conv(c) => conv::prepare(self.class, c),
            KernelCall::Attention(c) => attention::prepare(self.class, c),
            KernelCall::LinearAttention(c) => linear_attention::prepare(self.class, c),
        }
        .map_err(|why| self.no_kernel(call, why))
    }

    fn pack(&self, call: &KernelCall, operand: usize, tensor: &Tensor) -> Result<Vec<u8>, NoKernel> {
        match (call, operand) {
            (KernelCall::MatMul(c), 1) if c.b_packed => matmul::pack_constant(c, tensor),
            (KernelCall::Conv(c), 1) => conv::pack_constant(c, tensor),
            _ => Err(format!("operand {operand} is not packed")),
        }
        .map_err(|why| self.no_kernel(call, why))
    }

    fn unpack(&self, layout: &str, shape: &[usize], bytes: &[u8]) -> Result<Tensor, NoKernel> {
        match layout {
            pack::LAYOUT => matmul::unpack_constant(shape, bytes),
            conv::ROWS_LAYOUT => conv::unpack_rows(shape, bytes),
            conv::PLAIN_LAYOUT => conv::unpack_plain(shape, bytes),
            _ => Err(format!("unknown layout `{layout}`")),
        }
        .map_err(|why| self.no_kernel(format_args!("unpack {layout} {shape:?}"), why))
    }
}

/// A kernel and what an artifact records of it.
#[derive(Clone, Copy, Debug)]
pub struct KernelEntry {
    /// `<op>_<dtype>_<variant>__<instructions>`.
    pub name: &'static str,
    /// Changes when the contract or the parameters do.
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
    pub(crate) attention: &'static str,
    pub(crate) linear_attention: &'static str,
    pub(crate) conv: &'static str,
    pub(crate) depthwise: &'static str,
}

macro_rules! names {
    ($tile:literal, $instructions:literal) => {
        Names {
            pack: concat!("pack_f32_kn32__", $instructions),
            matmul: concat!("matmul_f32_", $tile, "__", $instructions),
            attention: concat!("attention_f32_flash__", $instructions),
            linear_attention: concat!("linear_attention_f32__", $instructions),
            conv: concat!("conv_f32_im2col__", $instructions),
            depthwise: concat!("conv_f32_depthwise__", $instructions),
        }
    };
}

impl Class {
    /// Names of kernels, the same on every machine.
    pub(crate) const fn kernels(self) -> &'static Names {
        match self {
            Class::Portable => &names!("4x8", "portable"),
            Class::Avx2 => &names!("6x16", "avx2"),
            Class::Avx512 => &names!("14x32", "avx512"),
        }
    }
}

/// The entry points of a class: the families, compiled with its instructions.
macro_rules! entries {
    ($module:ident, $class:ident, $isa:expr, $(#[$features:meta])?) => {
        mod $module {
            use margay_loops::abi::SCRATCH_HEADER_BYTES;

            use super::{Class, KernelEntry, Names};
            use crate::{attention, conv, depthwise, isa, linear_attention, matmul, pack};

            const NAMES: &Names = Class::$class.kernels();

            entries!(@one PACK, NAMES.pack, pack, $class, $isa, $(#[$features])?);
            entries!(@one MATMUL, NAMES.matmul, matmul, $class, $isa, $(#[$features])?);
            entries!(@version 2 ATTENTION, NAMES.attention, attention, $class, $isa, $(#[$features])?);
            entries!(@one LINEAR_ATTENTION, NAMES.linear_attention, linear_attention, $class, $isa,
                $(#[$features])?);
            entries!(@one CONV, NAMES.conv, conv, $class, $isa, $(#[$features])?);
            entries!(@one DEPTHWISE, NAMES.depthwise, depthwise, $class, $isa, $(#[$features])?);
        }
    };
    (@one $entry:ident, $($rest:tt)*) => { entries!(@version 1 $entry, $($rest)*); };
    (@version $version:literal $entry:ident, $name:expr, $family:ident, $class:ident, $isa:expr,
        $(#[$features:meta])?) => {
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
            KernelEntry { name: $name, version: $version, class: Class::$class, function: kernel }
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

/// Every kernel of this program, by class.
pub const KERNELS: &[KernelEntry] = &[
    portable::PACK,
    portable::MATMUL,
    portable::ATTENTION,
    portable::LINEAR_ATTENTION,
    portable::CONV,
    portable::DEPTHWISE,
    #[cfg(target_arch = "x86_64")]
    avx2::PACK,
    #[cfg(target_arch = "x86_64")]
    avx2::MATMUL,
    #[cfg(target_arch = "x86_64")]
    avx2::ATTENTION,
    #[cfg(target_arch = "x86_64")]
    avx2::LINEAR_ATTENTION,
    #[cfg(target_arch = "x86_64")]
    avx2::CONV,
    #[cfg(target_arch = "x86_64")]
    avx2::DEPTHWISE,
    #[cfg(target_arch = "x86_64")]
    avx512::PACK,
    #[cfg(target_arch = "x86_64")]
    avx512::MATMUL,
    #[cfg(target_arch = "x86_64")]
    avx512::ATTENTION,
    #[cfg(target_arch = "x86_64")]
    avx512::LINEAR_ATTENTION,
    #[cfg(target_arch = "x86_64")]
    avx512::CONV,
    #[cfg(target_arch = "x86_64")]
    avx512::DEPTHWISE,
];
