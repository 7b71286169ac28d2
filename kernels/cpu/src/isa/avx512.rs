//! AVX-512 (F, BW, DQ, VL): thirty-two vectors of sixteen elements. [`Avx512Bf16`] differs in its tile alone.

mod bytes;
mod tiles;
mod transposed;

use std::arch::x86_64::*;

use margay_tensor::random::Philox;

use super::{ByteTiles, Isa, Stream, avx2};

use tiles::{multiply_bf16, multiply_f32};

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

/// The numbers of the lanes, of which only the bits of `mask` count.
#[inline(always)]
fn numbers(mask: i32) -> __m512 {
    let lanes: [f32; 16] = std::array::from_fn(|i| (i as i32 & mask) as f32);
    // SAFETY: sixteen floats; callers have AVX-512.
    unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
}

/// See [`Isa::philox`]. Every second lane has room for a product; the upper half of such a pair does not count elsewhere.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn philox(stream: Stream, blocks: __m512i) -> [__m512i; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let all = |x: u32| _mm512_set1_epi32(x.cast_signed());
        let [low, high] = stream.stream.map(all);
        let start = |blocks| [blocks, _mm512_setzero_si512(), low, high];
        let mut halves = [start(blocks), start(_mm512_srli_epi64::<32>(blocks))];
        let [m0, m1] = Philox::MULTIPLIERS.map(all);
        for key in stream.keys {
            let [k0, k1] = key.map(all);
            for c in &mut halves {
                let (p, q) = (_mm512_mul_epu32(c[0], m0), _mm512_mul_epu32(c[2], m1));
                // The three are added without carries.
                let next = |x, c, key| _mm512_ternarylogic_epi32::<0x96>(_mm512_srli_epi64::<32>(x), c, key);
                *c = [next(q, c[1], k0), q, next(p, c[3], k1), p];
            }
        }
        let [even, odd] = halves;
        std::array::from_fn(|i| {
            _mm512_mask_blend_epi32(0b1010_1010_1010_1010, even[i], _mm512_slli_epi64::<32>(odd[i]))
        })
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
            type W = __m512i;
            const LANES: usize = 16;
            const ROWS: usize = 14;
            const COLUMNS: usize = 16;

            operations! {
                fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
                fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
                fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
                fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
                fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
                fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
                fn larger(a: __m512, b: __m512) -> __m512 {
                    _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a), _mm512_max_ps(a, b), a)
                }
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
            unsafe fn load_bf16(self, p: *const u16) -> __m512 {
                // SAFETY: the caller's promise; `self` proves the instructions.
                unsafe {
                    let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
                }
            }
            #[inline(always)]
            unsafe fn load_words(self, p: *const u32) -> __m512i {
                // SAFETY: the caller's promise; `self` proves the instruction.
                unsafe { _mm512_loadu_si512(p.cast()) }
            }
            #[inline(always)]
            fn shift_words<const BITS: u32>(self, w: __m512i) -> __m512i {
                // SAFETY: `self` proves the instruction.
                unsafe { _mm512_srli_epi32::<BITS>(w) }
            }
            #[inline(always)]
            fn rotate_words<const BITS: i32>(self, w: __m512i) -> __m512i {
                // SAFETY: `self` proves the instruction.
                unsafe { _mm512_ror_epi32::<BITS>(w) }
            }
            #[inline(always)]
            fn low_nibbles(self, w: __m512i) -> __m512 {
                // The number is looked up; higher bits of an index do not count.
                // SAFETY: `self` proves the instructions.
                unsafe { _mm512_permutexvar_ps(w, numbers(15)) }
            }
            #[inline(always)]
            fn low_triples(self, lower: __m512i, upper: __m512i) -> __m512 {
                // SAFETY: `self` proves the instructions.
                unsafe {
                    // Bits of the first where the mask has ones, of the second elsewhere; what is above three bits does
                    // not count.
                    let index = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi32(3), lower, upper);
                    _mm512_permutexvar_ps(index, numbers(7))
                }
            }
            #[inline(always)]
            unsafe fn store_words(self, p: *mut u32, w: __m512i) {
                // SAFETY: the caller's promise; `self` proves the instruction.
                unsafe { _mm512_storeu_si512(p.cast(), w) }
            }
            #[inline(always)]
            fn doubled_words(self, w: __m512i) -> __m512i {
                // SAFETY: `self` proves the instruction.
                unsafe { _mm512_add_epi32(w, w) }
            }
            #[inline(always)]
            fn highest_bits(self, w: __m512i) -> u32 {
                // SAFETY: `self` proves the instruction.
                unsafe { _mm512_movepi32_mask(w).into() }
            }
            #[inline(always)]
            fn with_signs(self, bits: u32, x: __m512) -> __m512 {
                // SAFETY: `self` proves the instruction.
                unsafe { _mm512_mask_xor_ps(x, bits as u16, x, _mm512_set1_ps(-0.0)) }
            }
            #[inline(always)]
            fn philox(self, stream: Stream, blocks: __m512i) -> [__m512i; 4] {
                // SAFETY: `self` proves the instructions.
                unsafe { philox(stream, blocks) }
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
                [m, n]: [usize; 2],
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
                unsafe { $tiles::TILES[n / 16 - 1][m - 1](k, a, 4 * a_stride, b, c, 4 * c_stride, start, ahead, pace) }
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
