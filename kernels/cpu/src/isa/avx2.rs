//! AVX2 and FMA: sixteen vectors of eight elements.

mod bytes;

use std::arch::x86_64::*;

use margay_tensor::random::Philox;

use super::{ByteTiles, Isa, PANEL, Stream, from, from_column, register_tile};

/// A proof that the processor has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has AVX2 and FMA.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Avx2 {
        Avx2(())
    }
}

const LANES: usize = 8;

/// `MASKS[8 - n..]` has the sign bit set in the first `n` lanes.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
unsafe fn mask_of_first(n: usize) -> __m256i {
    // SAFETY: n <= 8, so that eight words follow; the caller has AVX2.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(LANES - n).cast()) }
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

impl Isa for Avx2 {
    type V = __m256;
    type W = __m256i;
    const LANES: usize = LANES;
    const ROWS: usize = 6;
    const COLUMNS: usize = 2 * LANES;

    operations! {
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        fn larger(a: __m256, b: __m256) -> __m256 {
            _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a))
        }
        fn min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn select_lt(a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
            _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
        }
        fn round(x: __m256) -> __m256 {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        }
        fn scale2(x: __m256, n: __m256) -> __m256 {{
            // In two halves: 2ⁿ itself may be too large or too small for an f32.
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let power = |n| {
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))))
            };
            _mm256_mul_ps(_mm256_mul_ps(x, power(half)), power(_mm256_sub_epi32(n, half)))
        }}
        fn round_bf16(v: __m256) -> __m256 {{
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let quiet = _mm256_or_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(1 << 22)));
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
            let all = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), quiet, nan);
            _mm256_and_ps(all, _mm256_castsi256_ps(_mm256_set1_epi32(!0xffff)))
        }}
        fn sum(v: __m256) -> f32 {{
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }}
        fn largest(v: __m256) -> f32 {{
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }}
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: the caller's promise; `self` proves the instruction.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        // SAFETY: the caller's promise; `self` proves the instruction.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: __m256) {
        // SAFETY: the caller's promise; `self` proves the instruction.
        unsafe { _mm256_stream_ps(p, v) }
    }
    #[inline(always)]
    fn fence(self) {
        // SAFETY: every such processor has the instruction.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    unsafe fn merge(self, v: __m256, p: *const f32, from: usize, to: usize) -> __m256 {
        // SAFETY: masked lanes are not read; the caller promises the others.
        unsafe {
            let mask = _mm256_andnot_si256(mask_of_first(from), mask_of_first(to));
            _mm256_blendv_ps(v, _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask))
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, mut p: *mut f32, n: usize, v: __m256) {
        // Masked stores are slow on many processors; these are not.
        // SAFETY: four, two and one elements make n together.
        unsafe {
            let mut part = _mm256_castps256_ps128(v);
            if n & 4 != 0 {
                _mm_storeu_ps(p, part);
                part = _mm256_extractf128_ps::<1>(v);
                p = p.add(4);
            }
            if n & 2 != 0 {
                _mm_storel_pd(p.cast(), _mm_castps_pd(part));
                part = _mm_movehl_ps(part, part);
                p = p.add(2);
            }
            if n & 1 != 0 {
                _mm_store_ss(p, part);
            }
        }
    }
    #[inline(always)]
    unsafe fn transpose8(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller's promise; `self` proves the instructions.
        unsafe { transpose8(from, from_stride, to, to_stride) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: __m256) {
        // SAFETY: the caller's promise; `self` proves the instructions.
        unsafe {
            let halves = _mm256_srli_epi32::<16>(_mm256_castps_si256(v));
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(halves, halves));
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(self, p: *const u16) -> [__m256; 2] {
        // SAFETY: the caller's promise; `self` proves the instructions.
        unsafe {
            let pairs = _mm256_loadu_si256(p.cast());
            let upper = _mm256_and_si256(pairs, _mm256_set1_epi32(!0xffff));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(upper)]
        }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m256 {
        // SAFETY: the caller's promise; `self` proves the instructions.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m256 {
        // SAFETY: the caller's promise; `self` proves the instructions.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn load_words(self, p: *const u32) -> __m256i {
        // SAFETY: the caller's promise; `self` proves the instruction.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    fn shift_words<const BITS: u32>(self, w: __m256i) -> __m256i {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm256_srl_epi32(w, _mm_cvtsi32_si128(BITS as i32)) }
    }
    #[inline(always)]
    fn rotate_words<const BITS: i32>(self, w: __m256i) -> __m256i {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let down = _mm256_srl_epi32(w, _mm_cvtsi32_si128(BITS));
            _mm256_or_si256(down, _mm256_sll_epi32(w, _mm_cvtsi32_si128(32 - BITS)))
        }
    }
    #[inline(always)]
    fn low_nibbles(self, w: __m256i) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_cvtepi32_ps(_mm256_and_si256(w, _mm256_set1_epi32(15))) }
    }
    #[inline(always)]
    fn low_triples(self, lower: __m256i, upper: __m256i) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let lower = _mm256_and_si256(lower, _mm256_set1_epi32(3));
            let upper = _mm256_and_si256(upper, _mm256_set1_epi32(4));
            _mm256_cvtepi32_ps(_mm256_or_si256(lower, upper))
        }
    }
    #[inline(always)]
    unsafe fn store_words(self, p: *mut u32, w: __m256i) {
        // SAFETY: the caller's promise; `self` proves the instruction.
        unsafe { _mm256_storeu_si256(p.cast(), w) }
    }
    #[inline(always)]
    fn doubled_words(self, w: __m256i) -> __m256i {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm256_add_epi32(w, w) }
    }
    #[inline(always)]
    fn highest_bits(self, w: __m256i) -> u32 {
        // SAFETY: `self` proves the instruction.
        unsafe { _mm256_movemask_ps(_mm256_castsi256_ps(w)).cast_unsigned() }
    }
    #[inline(always)]
    fn with_signs(self, bits: u32, x: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let shifts = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
            let highest = _mm256_sllv_epi32(_mm256_set1_epi32(bits.cast_signed()), shifts);
            _mm256_xor_ps(x, _mm256_and_ps(_mm256_castsi256_ps(highest), _mm256_set1_ps(-0.0)))
        }
    }
    #[inline(always)]
    fn philox(self, stream: Stream, blocks: __m256i) -> [__m256i; 4] {
        // Every second lane has room for a product; the upper half of such a pair does not count elsewhere.
        // SAFETY: `self` proves the instructions.
        unsafe {
            let all = |x: u32| _mm256_set1_epi32(x.cast_signed());
            let [low, high] = stream.stream.map(all);
            let start = |blocks| [blocks, _mm256_setzero_si256(), low, high];
            let mut halves = [start(blocks), start(_mm256_srli_epi64::<32>(blocks))];
            let [m0, m1] = Philox::MULTIPLIERS.map(all);
            for key in stream.keys {
                let [k0, k1] = key.map(all);
                for c in &mut halves {
                    let (p, q) = (_mm256_mul_epu32(c[0], m0), _mm256_mul_epu32(c[2], m1));
                    let next =
                        |x, c, key| _mm256_xor_si256(_mm256_srli_epi64::<32>(x), _mm256_xor_si256(c, key));
                    *c = [next(q, c[1], k0), q, next(p, c[3], k1), p];
                }
            }
            let [even, odd] = halves;
            std::array::from_fn(|i| {
                _mm256_blend_epi32::<0b1010_1010>(even[i], _mm256_slli_epi64::<32>(odd[i]))
            })
        }
    }
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> __m256 {
        // SAFETY: the caller's promise; `self` proves the instructions.
        unsafe { _mm256_cvtepi32_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    fn byte_tiles(self) -> ByteTiles {
        bytes::TILES
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
        unsafe { tile([m, n], k, a, [a_stride, 1], b, c, c_stride, start, ahead, pace) }
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
        unsafe { tile([m, PANEL], k, a, [1, a_stride], b, c, c_stride, from(c, accumulate), b, 0) }
    }
}

/// See [`Isa::transpose8`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let row = |i: usize| _mm256_loadu_ps(from.add(i * from_stride));
        let pairs = |i: usize| {
            let (x, y) = (row(i), row(i + 1));
            (_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y))
        };
        let quads = |i: usize| {
            let ((a, b), (c, d)) = (pairs(i), pairs(i + 2));
            [
                _mm256_shuffle_ps::<0x44>(a, c),
                _mm256_shuffle_ps::<0xee>(a, c),
                _mm256_shuffle_ps::<0x44>(b, d),
                _mm256_shuffle_ps::<0xee>(b, d),
            ]
        };
        let (upper, lower) = (quads(0), quads(4));
        for j in 0..4 {
            _mm256_storeu_ps(to.add(j * to_stride), _mm256_permute2f128_ps::<0x20>(upper[j], lower[j]));
            _mm256_storeu_ps(to.add((j + 4) * to_stride), _mm256_permute2f128_ps::<0x31>(upper[j], lower[j]));
        }
    }
}

#[target_feature(enable = "avx2,fma")]
#[expect(clippy::too_many_arguments, reason = "as `Isa::tile`")]
unsafe fn tile(
    [m, n]: [usize; 2],
    k: usize,
    a: *const f32,
    a_strides: [usize; 2],
    b: *const f32,
    c: *mut f32,
    c_stride: usize,
    start: *const f32,
    ahead: *const f32,
    pace: usize,
) {
    for column in (0..n).step_by(2 * LANES) {
        // SAFETY: the caller's promise; the columns lie in the panel; this function has the features.
        unsafe {
            let (isa, b, c) = (Avx2::new(), b.add(column), c.add(column));
            let start = from_column(start, column);
            match m {
                1 => register_tile::<_, 1>(
                    isa,
                    k,
                    a,
                    a_strides,
                    b,
                    c,
                    c_stride,
                    start,
                    ahead,
                    if column == 0 { pace } else { 0 },
                ),
                2 => register_tile::<_, 2>(
                    isa,
                    k,
                    a,
                    a_strides,
                    b,
                    c,
                    c_stride,
                    start,
                    ahead,
                    if column == 0 { pace } else { 0 },
                ),
                3 => register_tile::<_, 3>(
                    isa,
                    k,
                    a,
                    a_strides,
                    b,
                    c,
                    c_stride,
                    start,
                    ahead,
                    if column == 0 { pace } else { 0 },
                ),
                4 => register_tile::<_, 4>(
                    isa,
                    k,
                    a,
                    a_strides,
                    b,
                    c,
                    c_stride,
                    start,
                    ahead,
                    if column == 0 { pace } else { 0 },
                ),
                5 => register_tile::<_, 5>(
                    isa,
                    k,
                    a,
                    a_strides,
                    b,
                    c,
                    c_stride,
                    start,
                    ahead,
                    if column == 0 { pace } else { 0 },
                ),
                _ => register_tile::<_, 6>(
                    isa,
                    k,
                    a,
                    a_strides,
                    b,
                    c,
                    c_stride,
                    start,
                    ahead,
                    if column == 0 { pace } else { 0 },
                ),
            }
        }
    }
}
