//! AVX-512 (F, BW, DQ, VL): thirty-two vectors of sixteen elements.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Isa, avx2};

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

impl Isa for Avx512 {
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
    fn prefetch(self, p: *const f32) {
        // SAFETY: prefetches do not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
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
        accumulate: bool,
        ahead: *const f32,
    ) {
        const TILES: [Tile; 14] = [
            tile_1, tile_2, tile_3, tile_4, tile_5, tile_6, tile_7, tile_8, tile_9, tile_10, tile_11,
            tile_12, tile_13, tile_14,
        ];
        // SAFETY: the caller's promise; `self` proves the instructions.
        unsafe { TILES[m - 1](k, a, 4 * a_stride, b, c, 4 * c_stride, accumulate as usize, ahead) }
    }
    #[inline(always)]
    unsafe fn tile_turned(
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
        const TILES: [TurnedTile; 14] = [
            turned_1, turned_2, turned_3, turned_4, turned_5, turned_6, turned_7, turned_8, turned_9,
            turned_10, turned_11, turned_12, turned_13, turned_14,
        ];
        // SAFETY: the caller's promise; `self` proves the instructions.
        unsafe { TILES[m - 1](k, a, 4 * a_stride, b, c, 4 * c_stride, accumulate as usize) }
    }
}

/// As [`Isa::tile`] with the number of rows fixed and strides in bytes.
type Tile = unsafe fn(usize, *const f32, usize, *const f32, *mut f32, usize, usize, *const f32);

/// One step of the sum: two vectors of `b` at `$b0` and `$b1`, one element of `a` per row at `$x`.
macro_rules! step {
    ($b0:literal $b1:literal $x:literal;
     $(($t:literal $c0:literal $c1:literal $at:literal))*) => {
        concat!(
            "vmovups zmm0, [{b} + ", $b0, "]\n",
            "vmovups zmm1, [{b} + ", $b1, "]\n",
            "prefetcht1 [{b} + {f} + ", $b0, "]\n",
            "prefetcht1 [{b} + {f} + ", $b1, "]\n",
            $(
                "vbroadcastss zmm", $t, ", dword ptr [", $at, " + ", $x, "]\n",
                "vfmadd231ps zmm", $c0, ", zmm", $t, ", zmm0\n",
                "vfmadd231ps zmm", $c1, ", zmm", $t, ", zmm1\n",
            )*
        )
    };
}

/// The tile with one row per tuple: register of the broadcast element, registers of the sums, place in `a`.
///
/// Written in assembly because compilers hoist the broadcasts of a strided `a` and spill.
macro_rules! tile {
    ($name:ident $(($t:literal $c0:literal $c1:literal $at:literal))*) => {
        #[expect(clippy::too_many_arguments, reason = "as `Isa::tile`")]
        unsafe fn $name(
            k: usize,
            a: *const f32,
            a_stride: usize,
            b: *const f32,
            c: *mut f32,
            c_stride: usize,
            accumulate: usize,
            ahead: *const f32,
        ) {
            // SAFETY: reads and writes what the caller promises; prefetches do not fault.
            unsafe {
                asm!(
                    "test {t}, {t}",
                    "jz 20f",
                    "mov {t}, {c}",
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
                    "sub {k}, 4",
                    "jb 23f",
                    ".p2align 5",
                    "22:",
                    step!(0 64 0; $(($t $c0 $c1 $at))*),
                    step!(128 192 4; $(($t $c0 $c1 $at))*),
                    step!(256 320 8; $(($t $c0 $c1 $at))*),
                    step!(384 448 12; $(($t $c0 $c1 $at))*),
                    "add {a0}, 16",
                    "add {a1}, 16",
                    "add {a2}, 16",
                    "add {a3}, 16",
                    "add {a4}, 16",
                    "add {b}, 512",
                    "sub {k}, 4",
                    "jae 22b",
                    "23:",
                    "add {k}, 4",
                    "jz 25f",
                    "24:",
                    step!(0 64 0; $(($t $c0 $c1 $at))*),
                    "add {a0}, 4",
                    "add {a1}, 4",
                    "add {a2}, 4",
                    "add {a3}, 4",
                    "add {a4}, 4",
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
                    a2 = inout(reg) a.wrapping_byte_add(6 * a_stride) => _,
                    a3 = inout(reg) a.wrapping_byte_add(9 * a_stride) => _,
                    a4 = inout(reg) a.wrapping_byte_add(12 * a_stride) => _,
                    rs = in(reg) a_stride,
                    b = inout(reg) b => _,
                    f = in(reg) (ahead as usize).wrapping_sub(b as usize),
                    c = inout(reg) c => _,
                    cs = in(reg) c_stride,
                    t = inout(reg) accumulate => _,
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
    ([$($row:tt)*]) => {};
    ([$($row:tt)*] $name:ident $next:tt $($rest:tt)*) => {
        tile!($name $($row)* $next);
        tiles!([$($row)* $next] $($rest)*);
    };
}

tiles!([]
    tile_1 (2 4 5 "{a0}")
    tile_2 (3 6 7 "{a0} + {rs}")
    tile_3 (2 8 9 "{a0} + 2*{rs}")
    tile_4 (3 10 11 "{a1}")
    tile_5 (2 12 13 "{a1} + {rs}")
    tile_6 (3 14 15 "{a1} + 2*{rs}")
    tile_7 (2 16 17 "{a2}")
    tile_8 (3 18 19 "{a2} + {rs}")
    tile_9 (2 20 21 "{a2} + 2*{rs}")
    tile_10 (3 22 23 "{a3}")
    tile_11 (2 24 25 "{a3} + {rs}")
    tile_12 (3 26 27 "{a3} + 2*{rs}")
    tile_13 (2 28 29 "{a4}")
    tile_14 (3 30 31 "{a4} + {rs}")
);

/// As [`Isa::tile_turned`] with the number of rows fixed and strides in bytes.
type TurnedTile = unsafe fn(usize, *const f32, usize, *const f32, *mut f32, usize, usize);

/// One step of the sum of a turned tile: two vectors of `b`, one element of `a` per row at `$x`.
macro_rules! turned_step {
    ($b0:literal $b1:literal; $(($t:literal $c0:literal $c1:literal $x:literal))*) => {
        concat!(
            "vmovups zmm0, [{b} + ", $b0, "]\n",
            "vmovups zmm1, [{b} + ", $b1, "]\n",
            $(
                "vbroadcastss zmm", $t, ", dword ptr [{a} + ", $x, "]\n",
                "vfmadd231ps zmm", $c0, ", zmm", $t, ", zmm0\n",
                "vfmadd231ps zmm", $c1, ", zmm", $t, ", zmm1\n",
            )*
            "add {a}, {step}\n",
        )
    };
}

/// The turned tile with one row per tuple: register of the broadcast element, registers of the sums, place in `a`.
macro_rules! turned_tile {
    ($name:ident $(($t:literal $c0:literal $c1:literal $x:literal))*) => {
        unsafe fn $name(
            k: usize,
            a: *const f32,
            a_stride: usize,
            b: *const f32,
            c: *mut f32,
            c_stride: usize,
            accumulate: usize,
        ) {
            // SAFETY: reads and writes what the caller promises.
            unsafe {
                asm!(
                    "test {t}, {t}",
                    "jz 20f",
                    "mov {t}, {c}",
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
                    "sub {k}, 2",
                    "jb 23f",
                    ".p2align 5",
                    "22:",
                    turned_step!(0 64; $(($t $c0 $c1 $x))*),
                    turned_step!(128 192; $(($t $c0 $c1 $x))*),
                    "add {b}, 256",
                    "sub {k}, 2",
                    "jae 22b",
                    "23:",
                    "add {k}, 2",
                    "jz 25f",
                    turned_step!(0 64; $(($t $c0 $c1 $x))*),
                    "25:",
                    $(
                        concat!("vmovups [{c}], zmm", $c0),
                        concat!("vmovups [{c} + 64], zmm", $c1),
                        "add {c}, {cs}",
                    )*
                    k = inout(reg) k => _,
                    a = inout(reg) a => _,
                    step = in(reg) a_stride,
                    b = inout(reg) b => _,
                    c = inout(reg) c => _,
                    cs = in(reg) c_stride,
                    t = inout(reg) accumulate => _,
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

/// `turned_1` from the first row, `turned_2` from the first two, and so on.
macro_rules! turned_tiles {
    ([$($row:tt)*]) => {};
    ([$($row:tt)*] $name:ident $next:tt $($rest:tt)*) => {
        turned_tile!($name $($row)* $next);
        turned_tiles!([$($row)* $next] $($rest)*);
    };
}

turned_tiles!([]
    turned_1 (2 4 5 0)
    turned_2 (3 6 7 4)
    turned_3 (2 8 9 8)
    turned_4 (3 10 11 12)
    turned_5 (2 12 13 16)
    turned_6 (3 14 15 20)
    turned_7 (2 16 17 24)
    turned_8 (3 18 19 28)
    turned_9 (2 20 21 32)
    turned_10 (3 22 23 36)
    turned_11 (2 24 25 40)
    turned_12 (3 26 27 44)
    turned_13 (2 28 29 48)
    turned_14 (3 30 31 52)
);
