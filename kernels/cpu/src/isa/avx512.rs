//! AVX-512 (F, BW, DQ, VL): thirty-two vectors of sixteen elements. [`Avx512Bf16`] differs in its tile alone.

mod bytes;
mod transposed;

use std::arch::asm;
use std::arch::x86_64::*;

use super::{ByteTiles, Isa, avx2};

/// A proof that the processor has AVX-512 F, BW, DQ and VL, AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor has AVX-512 F, BW, DQ and VL, AVX2 and FMA.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Avx512 {
        Avx512(())
    }
}

/// A proof that the processor has AVX-512 BF16 besides what [`Avx512`] proves.
///
/// Its tile multiplies pairs of bf16 and sums them in f32: what [`Isa::tile`] calls an element of an operand is a
/// pair of neighbouring terms. Subnormal numbers count as zero there.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(());

impl Avx512Bf16 {
    /// # Safety
    /// The processor has AVX-512 BF16 and what [`Avx512::new`] asks for.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Avx512Bf16 {
        Avx512Bf16(())
    }
}

/// Vector operations without memory.
macro_rules! operations {
    ($($(#[$doc:meta])* fn $name:ident($($x:ident: $ty:ty),*) -> $out:ty { $body:expr })*) => {$(
        #[inline(always)]
        fn $name(self, $($x: $ty),*) -> $out {
            // SAFETY: `self` proves that the processor has the instructions.
            unsafe { $body }
        }
    )*};
}

/// The vectors of a type, with the tiles of a module.
macro_rules! vectors {
    ($name:ident, $tiles:ident) => {
        impl Isa for $name {
            type V = __m512;
            const LANES: usize = 16;
            const ROWS: usize = 14;

            operations! {
                fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
                fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
                fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
                fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
                fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
                fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
                fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
                fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
                fn select_lt(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
                    _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x)
                }
                fn round(x: __m512) -> __m512 {
                    _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
                }
                fn scale2(x: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(x, n) }
                fn round_bf16(v: __m512) -> __m512 {{
                    let bits = _mm512_castps_si512(v);
                    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(1 << 22));
                    let all = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), rounded, quiet);
                    _mm512_castsi512_ps(_mm512_and_si512(all, _mm512_set1_epi32(!0xffff)))
                }}
                fn sum(v: __m512) -> f32 { _mm512_reduce_add_ps(v) }
                fn largest(v: __m512) -> f32 { _mm512_reduce_max_ps(v) }
            }

            #[inline(always)]
            unsafe fn load(self, p: *const f32) -> __m512 {
                // SAFETY: the caller's promise; `self` proves the instruction.
                unsafe { _mm512_loadu_ps(p) }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut f32, v: __m512) {
                // SAFETY: the caller's promise; `self` proves the instruction.
                unsafe { _mm512_storeu_ps(p, v) }
            }
            #[inline(always)]
            unsafe fn stream(self, p: *mut f32, v: __m512) {
                // SAFETY: the caller's promise; `self` proves the instruction.
                unsafe { _mm512_stream_ps(p, v) }
            }
            #[inline(always)]
            fn fence(self) {
                // SAFETY: every such processor has the instruction.
                unsafe { _mm_sfence() }
            }
            #[inline(always)]
            unsafe fn merge(self, v: __m512, p: *const f32, from: usize, to: usize) -> __m512 {
                let mask = ((1u32 << to) - (1u32 << from)) as u16;
                // SAFETY: masked lanes are not read; the caller promises the others.
                unsafe { _mm512_mask_loadu_ps(v, mask, p) }
            }
            #[inline(always)]
            unsafe fn store_first(self, p: *mut f32, n: usize, v: __m512) {
                // SAFETY: masked lanes are not written; the caller promises the others.
                unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as u16, v) }
            }
            #[inline(always)]
            unsafe fn transpose8(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
                // SAFETY: the caller's promise; `self` proves AVX2 too.
                unsafe { avx2::transpose8(from, from_stride, to, to_stride) }
            }
            #[inline(always)]
            unsafe fn store_bf16(self, p: *mut u16, v: __m512) {
                // SAFETY: the caller's promise; `self` proves the instructions.
                unsafe {
                    let halves = _mm512_srli_epi32::<16>(_mm512_castps_si512(v));
                    _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(halves));
                }
            }
            #[inline(always)]
            unsafe fn load_bf16_pairs(self, p: *const u16) -> [__m512; 2] {
                // SAFETY: the caller's promise; `self` proves the instructions.
                unsafe {
                    let pairs = _mm512_loadu_si512(p.cast());
                    let upper = _mm512_and_si512(pairs, _mm512_set1_epi32(!0xffff));
                    [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(upper)]
                }
            }
            #[inline(always)]
            unsafe fn load_i8(self, p: *const i8) -> __m512 {
                // SAFETY: the caller's promise; `self` proves the instructions.
                unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
            }
            #[inline(always)]
            unsafe fn load_i32(self, p: *const i32) -> __m512 {
                // SAFETY: the caller's promise; `self` proves the instructions.
                unsafe { _mm512_cvtepi32_ps(_mm512_loadu_si512(p.cast())) }
            }
            #[inline(always)]
            fn byte_tiles(self) -> ByteTiles {
                // SAFETY: `self` proves AVX2 too.
                bytes::tiles().unwrap_or_else(|| unsafe { avx2::Avx2::new() }.byte_tiles())
            }
            #[inline(always)]
            fn prefetch(self, p: *const f32) {
                // SAFETY: prefetches do not fault.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
            }
            #[inline(always)]
            fn prefetch_near(self, p: *const f32) {
                // SAFETY: prefetches do not fault.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
            }
            #[inline(always)]
            unsafe fn tile(
                self,
                m: usize,
                k: usize,
                a: *const f32,
                a_stride: usize,
                b: *const f32,
                c: *mut f32,
                c_stride: usize,
                start: *const f32,
                ahead: *const f32,
                pace: usize,
            ) {
                // SAFETY: the caller's promise; `self` proves the instructions.
                unsafe { $tiles::TILES[m - 1](k, a, 4 * a_stride, b, c, 4 * c_stride, start, ahead, pace) }
            }
            #[inline(always)]
            unsafe fn tile_transposed(
                self,
                m: usize,
                k: usize,
                a: *const f32,
                a_stride: usize,
                b: *const f32,
                c: *mut f32,
                c_stride: usize,
                accumulate: bool,
            ) {
                // SAFETY: the caller's promise; `self` proves the instructions.
                unsafe { transposed::TILES[m - 1](k, a, 4 * a_stride, b, c, 4 * c_stride, accumulate as usize) }
            }
        }
    };
}

vectors!(Avx512, multiply_f32);
vectors!(Avx512Bf16, multiply_bf16);

/// As [`Isa::tile`] with the number of rows fixed and strides in bytes.
type Tile = unsafe fn(usize, *const f32, usize, *const f32, *mut f32, usize, *const f32, *const f32, usize);

/// An instruction that adds products to a sum, with the element of `a` before the vector of `b`, or behind it.
macro_rules! factors {
    ([$multiply:literal left] $c:literal $a:literal $b:literal) => {
        concat!($multiply, " zmm", $c, ", zmm", $a, ", zmm", $b, "\n")
    };
    ([$multiply:literal right] $c:literal $a:literal $b:literal) => {
        concat!($multiply, " zmm", $c, ", zmm", $b, ", zmm", $a, "\n")
    };
}

/// One step of the sum: two vectors of `b` at `$b0` and `$b1`, one element of `a` per row at `$x`.
macro_rules! step {
    ($multiply:tt $b0:literal $b1:literal $x:literal;
     $(($t:literal $c0:literal $c1:literal $at:literal))*) => {
        concat!(
            "vmovups zmm0, [{b} + ", $b0, "]\n",
            "vmovups zmm1, [{b} + ", $b1, "]\n",
            "prefetcht1 [{f}]\n",
            "add {f}, {fs}\n",
            "prefetcht1 [{f}]\n",
            "add {f}, {fs}\n",
            $(
                "vbroadcastss zmm", $t, ", dword ptr [", $at, " + ", $x, "]\n",
                factors!($multiply $c0 $t "0"),
                factors!($multiply $c1 $t "1"),
            )*
        )
    };
}

/// The tile with one row per tuple: register of the broadcast element, registers of the sums, place in `a`.
///
/// Written in assembly because compilers hoist the broadcasts of a strided `a` and spill.
macro_rules! tile {
    ($multiply:tt $name:ident $rows:literal
     $(($t:literal $c0:literal $c1:literal $at:literal))*) => {
        #[expect(clippy::too_many_arguments, reason = "as `Isa::tile`")]
        unsafe fn $name(
            k: usize,
            a: *const f32,
            a_stride: usize,
            b: *const f32,
            c: *mut f32,
            c_stride: usize,
            start: *const f32,
            ahead: *const f32,
            pace: usize,
        ) {
            // SAFETY: reads and writes what the caller promises; prefetches do not fault.
            unsafe {
                asm!(
                    "test {t}, {t}",
                    "jz 20f",
                    "cmp {t}, {c}",
                    "je 26f",
                    $(
                        concat!("vmovups zmm", $c0, ", [{t}]"),
                        concat!("vmovups zmm", $c1, ", [{t} + 64]"),
                    )*
                    "jmp 21f",
                    "26:",
                    $(
                        concat!("vmovups zmm", $c0, ", [{t}]"),
                        concat!("vmovups zmm", $c1, ", [{t} + 64]"),
                        "add {t}, {cs}",
                    )*
                    "jmp 21f",
                    "20:",
                    $(
                        concat!("vpxord zmm", $c0, ", zmm", $c0, ", zmm", $c0),
                        concat!("vpxord zmm", $c1, ", zmm", $c1, ", zmm", $c1),
                    )*
                    "21:",
                    "mov {t}, {c}",
                    "sub {k}, 4",
                    "jb 23f",
                    ".p2align 5",
                    "22:",
                    step!($multiply 0 64 0; $(($t $c0 $c1 $at))*),
                    step!($multiply 128 192 4; $(($t $c0 $c1 $at))*),
                    step!($multiply 256 320 8; $(($t $c0 $c1 $at))*),
                    step!($multiply 384 448 12; $(($t $c0 $c1 $at))*),
                    "add {a0}, 16",
                    "add {a1}, 16",
                    "add {a2}, 16",
                    "add {a3}, 16",
                    "add {b}, 512",
                    "prefetchw [{t}]",
                    "prefetchw [{t} + 64]",
                    "add {t}, {cs}",
                    "cmp {t}, {e}",
                    "cmova {t}, {e}",
                    "sub {k}, 4",
                    "jae 22b",
                    "23:",
                    "add {k}, 4",
                    "jz 25f",
                    "24:",
                    step!($multiply 0 64 0; $(($t $c0 $c1 $at))*),
                    "add {a0}, 4",
                    "add {a1}, 4",
                    "add {a2}, 4",
                    "add {a3}, 4",
                    "add {b}, 128",
                    "dec {k}",
                    "jnz 24b",
                    "25:",
                    $(
                        concat!("vmovups [{c}], zmm", $c0),
                        concat!("vmovups [{c} + 64], zmm", $c1),
                        "add {c}, {cs}",
                    )*
                    "/* {rs}: not read by a single row */",
                    k = inout(reg) k => _,
                    a0 = inout(reg) a => _,
                    a1 = inout(reg) a.wrapping_byte_add(3 * a_stride) => _,
                    a2 = inout(reg) a.wrapping_byte_add(5 * a_stride) => _,
                    a3 = inout(reg) a.wrapping_byte_add(10 * a_stride) => _,
                    e = inout(reg) c.wrapping_byte_add(($rows - 1) * c_stride) => _,
                    rs = in(reg) a_stride,
                    b = inout(reg) b => _,
                    f = inout(reg) ahead => _,
                    fs = in(reg) pace,
                    c = inout(reg) c => _,
                    cs = in(reg) c_stride,
                    t = inout(reg) start => _,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                    out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                    out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                    out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                    out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
                    out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
                    options(nostack),
                );
            }
        }
    };
}

/// `tile_1` from the first row, `tile_2` from the first two, and so on.
macro_rules! tiles {
    ($multiply:tt [$($row:tt)*]) => {};
    ($multiply:tt [$($row:tt)*] $name:ident $rows:literal $next:tt $($rest:tt)*) => {
        tile!($multiply $name $rows $($row)* $next);
        tiles!($multiply [$($row)* $next] $($rest)*);
    };
}

/// The tiles of up to fourteen rows, by the instruction that multiplies and adds, and where it takes the element of `a`.
macro_rules! tiles_with {
    ($multiply:tt) => {
        pub(super) const TILES: [Tile; 14] = {
            tiles!($multiply []
                tile_1 1 (2 4 5 "{a0}")
                tile_2 2 (3 6 7 "{a0} + {rs}")
                tile_3 3 (2 8 9 "{a0} + 2*{rs}")
                tile_4 4 (3 10 11 "{a1}")
                tile_5 5 (2 12 13 "{a1} + {rs}")
                tile_6 6 (3 14 15 "{a2}")
                tile_7 7 (2 16 17 "{a2} + {rs}")
                tile_8 8 (3 18 19 "{a2} + 2*{rs}")
                tile_9 9 (2 20 21 "{a0} + 8*{rs}")
                tile_10 10 (3 22 23 "{a2} + 4*{rs}")
                tile_11 11 (2 24 25 "{a3}")
                tile_12 12 (3 26 27 "{a3} + {rs}")
                tile_13 13 (2 28 29 "{a3} + 2*{rs}")
                tile_14 14 (3 30 31 "{a2} + 8*{rs}")
            );
            [
                tile_1, tile_2, tile_3, tile_4, tile_5, tile_6, tile_7, tile_8, tile_9, tile_10, tile_11,
                tile_12, tile_13, tile_14,
            ]
        };
    };
}

mod multiply_f32 {
    use super::{Tile, asm};

    tiles_with!(["vfmadd231ps" left]);
}

mod multiply_bf16 {
    use super::{Tile, asm};

    tiles_with!(["vdpbf16ps" left]);
}

mod multiply_unsigned {
    use super::{Tile, asm};

    tiles_with!(["vpdpbusd" left]);
}

mod multiply_signed {
    use super::{Tile, asm};

    tiles_with!(["vpdpbusd" right]);
}
