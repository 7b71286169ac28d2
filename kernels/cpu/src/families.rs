//! The table of kernels: every family compiled for every class, under names that artifacts record.
//!
//! A kernel is one row of `families!`. From the rows follow the fields of `Names`, the names in each class, the entry
//! points and the list that [`lookup`] searches.

use crate::Class;
use crate::abi::KernelFn;

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

/// Every kernel of this program, by class.
pub fn kernels() -> impl Iterator<Item = &'static KernelEntry> {
    CLASSES.iter().copied().flatten()
}

/// The kernel with a name, if this program has it.
pub fn lookup(name: &str) -> Option<&'static KernelEntry> {
    kernels().find(|entry| entry.name == name)
}

/// Hands the rows to a macro, behind arguments of its own. A row is the field of [`Names`], the module with `run` and
/// `VERSION`, and the name up to the instructions, of which `tile` stands for the tile of the class.
macro_rules! families {
    ($rows_to:ident!($($argument:tt)*)) => {
        $rows_to! {
            $($argument)*
            /// Panels of a right operand.
            pack: pack, "pack_f32_kn32", ();
            /// Products with a packed right operand.
            matmul: matmul, "matmul_f32_", (tile);
            /// A few rows with a right operand as it lies.
            matmul_thin: thin, "matmul_f32_thin", ();
            /// One block of rows with a right operand that is packed on the way.
            matmul_strided: strided, "matmul_f32_strided_", (tile);
            /// Constants of bf16, widened.
            matmul_bf16: narrow::bf16, "matmul_bf16_widened_", (tile);
            /// Constants of int8, widened.
            matmul_int8: narrow::int8, "matmul_int8_widened_", (tile);
            /// Constants of 4 bits, widened.
            matmul_int4: narrow::int4, "matmul_int4_widened_", (tile);
            /// Constants of 3 bits, widened.
            matmul_int3: narrow::int3, "matmul_int3_widened_", (tile);
            /// Constants with random signs, which are drawn.
            matmul_drawn: drawn, "matmul_f32_drawn_", (tile);
            /// Products of bytes.
            matmul_bytes: bytes, "matmul_i8", ();
            /// Operands of products of bytes.
            pack_bytes: pack_bytes, "pack_i8_kn32", ();
            /// Attention.
            attention: attention, "attention_f32_flash", ();
            /// The derivative of attention.
            attention_gradient: attention_gradient, "attention_gradient_f32_flash", ();
            /// Linear attention.
            linear_attention: linear_attention, "linear_attention_f32", ();
            /// Convolutions of images with channels last.
            conv: conv, "conv_f32_nhwc", ();
            /// Convolutions of images with channels last, by strips.
            conv_strips: conv_strips, "conv_f32_strips_nhwc", ();
            /// Convolutions to few channels, with channels last.
            conv_dots: conv_dots, "conv_f32_dots_nhwc", ();
            /// Convolutions of bytes.
            conv_bytes: conv_bytes, "conv_i8_nhwc", ();
            /// The derivative of a convolution by its filters.
            conv_gradient: conv_gradient, "conv_kernel_gradient_f32_nhwc", ();
            /// Depthwise convolutions.
            depthwise: depthwise, "conv_f32_depthwise_nhwc", ();
            /// Filters that are no constants.
            filters: filters, "pack_f32_filters", ();
            /// Hadamard transforms of rows.
            hadamard: hadamard, "hadamard_f32", ();
            /// Boxes chosen by their scores.
            non_max_suppression: non_max_suppression, "non_max_suppression_f32", ();
            /// Maxima and averages over windows.
            pool: pool, "pool_f32", ();
            /// Places of the largest elements of rows.
            top_k: top_k, "top_k_rows", ();
        }
    };
}

macro_rules! names_struct {
    ($($(#[$doc:meta])* $name:ident: $($family:ident)::+, $prefix:literal, $tile:tt;)*) => {
        /// The names of the kernels of a class.
        pub(crate) struct Names {
            $($(#[$doc])* pub(crate) $name: &'static str,)*
            /// Products of pairs of bf16, where the class has an instruction for them.
            pub(crate) matmul_pairs: Option<&'static str>,
        }
    };
}
families!(names_struct!());

macro_rules! names {
    ($tile:literal, $instructions:literal, $pairs:expr;
     $($(#[$doc:meta])* $name:ident: $($family:ident)::+, $prefix:literal, $tiled:tt;)*) => {
        Names { $($name: names!(@name $prefix, $tiled, $tile, $instructions),)* matmul_pairs: $pairs }
    };
    (@name $prefix:literal, (tile), $tile:literal, $instructions:literal) => {
        concat!($prefix, $tile, "__", $instructions)
    };
    (@name $prefix:literal, (), $tile:literal, $instructions:literal) => {
        concat!($prefix, "__", $instructions)
    };
}

/// The product of pairs of bf16.
const PAIRS: &str = "matmul_bf16_14x32__avx512_bf16";

impl Class {
    /// Names of kernels, the same on every machine.
    pub(crate) const fn kernels(self) -> &'static Names {
        match self {
            Class::Portable => &families!(names!("4x8", "portable", None;)),
            Class::Avx2 => &families!(names!("6x16", "avx2", None;)),
            Class::Avx512 => &families!(names!("14x32", "avx512", None;)),
            Class::Avx512Bf16 => &families!(names!("14x32", "avx512", Some(PAIRS);)),
        }
    }
}

/// A module of the entry points of a class: the families, compiled with its instructions. Each is a module of its own, so that
/// the compiler translates them side by side.
macro_rules! class {
    ($(#[$attribute:meta])* $module:ident: $class:ident, $isa:expr, $features:tt;
     $($(#[$doc:meta])* $name:ident: $($family:ident)::+, $prefix:literal, $tile:tt;)*) => {
        $(#[$attribute])*
        mod $module {
            use crate::{Class, KernelEntry};

            $(entry!($name: $($family)::+, $isa, $features);)*

            pub(super) const KERNELS: &[KernelEntry] = &[$(KernelEntry {
                name: Class::$class.kernels().$name,
                version: crate::$($family)::+::VERSION,
                class: Class::$class,
                function: $name::kernel,
            }),*];
        }
    };
}

/// A module of the entry point of a family.
macro_rules! entry {
    ($name:ident: $($family:ident)::+, $isa:expr, [$(#[$features:meta])?]) => {
        mod $name {
            $(#[$features])?
            pub(super) unsafe extern "C" fn kernel(
                params: *const u64,
                args: *const *mut u8,
                scratch: *mut u8,
                begin: u64,
                end: u64,
            ) {
                // SAFETY: the caller's promise: the contract of `KernelFn` and a processor of the class.
                unsafe {
                    let scratch = scratch.wrapping_add(crate::abi::SCRATCH_HEADER_BYTES).cast();
                    crate::$($family)::+::run($isa, params, args, scratch, begin, end)
                }
            }
        }
    };
}

families!(class!(portable: Portable, crate::isa::portable::Portable, [];));
families!(class!(
    #[cfg(target_arch = "x86_64")]
    avx2: Avx2, crate::isa::avx2::Avx2::new(), [#[target_feature(enable = "avx2,fma")]];
));
families!(class!(
    #[cfg(target_arch = "x86_64")]
    avx512: Avx512,
    crate::isa::avx512::Avx512::new(),
    [#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]];
));

/// The product of pairs of bf16.
#[cfg(target_arch = "x86_64")]
mod avx512_bf16 {
    use crate::{Class, KernelEntry};

    entry!(
        matmul: matmul,
        crate::isa::avx512::Avx512Bf16::new(),
        [#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]]
    );

    pub(super) const KERNELS: &[KernelEntry] = &[KernelEntry {
        name: super::PAIRS,
        version: crate::matmul::VERSION,
        class: Class::Avx512Bf16,
        function: matmul::kernel,
    }];
}

/// The kernels of each class that this architecture has.
const CLASSES: &[&[KernelEntry]] = &[
    portable::KERNELS,
    #[cfg(target_arch = "x86_64")]
    avx2::KERNELS,
    #[cfg(target_arch = "x86_64")]
    avx512::KERNELS,
    #[cfg(target_arch = "x86_64")]
    avx512_bf16::KERNELS,
];
