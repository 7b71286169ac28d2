//! Tiles of products of bytes with AVX2: both operands are widened to i16, whose products in pairs are exact in i32.
//! The instruction that multiplies bytes is not used, since it saturates.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::isa::{ByteOperands, ByteTiles, PANEL};

/// The tiles; only for processors with AVX2.
pub(super) const TILES: ByteTiles = ByteTiles { rows: 6, tile };

/// # Safety
/// As [`ByteTiles::tile`]; the processor has AVX2.
unsafe fn tile(o: ByteOperands) {
    // SAFETY: the caller's promise.
    unsafe {
        match (o.rows, o.left_is_signed) {
            (1, true) => rows::<1, 8, true>(o),
            (1, false) => rows::<1, 8, false>(o),
            (2, true) => rows::<2, 4, true>(o),
            (2, false) => rows::<2, 4, false>(o),
            (3, true) => rows::<3, 4, true>(o),
            (3, false) => rows::<3, 4, false>(o),
            (4, true) => rows::<4, 2, true>(o),
            (4, false) => rows::<4, 2, false>(o),
            (5, true) => rows::<5, 2, true>(o),
            (5, false) => rows::<5, 2, false>(o),
            (_, true) => rows::<6, 2, true>(o),
            (_, false) => rows::<6, 2, false>(o),
        }
    }
}

/// Columns of a vector: each has two sums, of its even and of its odd pairs of terms.
const COLUMNS: usize = 4;

/// Quads that are summed before the left operand is widened further.
const RUN: usize = 128;

/// A tile of `M` rows, `V` vectors of columns at a time.
///
/// # Safety
/// As [`tile`], for `M` rows.
#[target_feature(enable = "avx2")]
unsafe fn rows<const M: usize, const V: usize, const LEFT_IS_SIGNED: bool>(o: ByteOperands) {
    let mut wide = [const { MaybeUninit::<[i16; 4 * RUN]>::uninit() }; M];
    let mut first = 0;
    loop {
        let quads = (o.quads - first).min(RUN);
        // SAFETY: the quads of the rows and the panel; eight columns are 32 bytes of a quad.
        unsafe {
            for (i, wide) in wide.iter_mut().enumerate() {
                let row = o.a.add(i * o.a_stride + 4 * first);
                widen::<LEFT_IS_SIGNED>(row, quads, wide.as_mut_ptr().cast());
            }
            for column in (0..PANEL).step_by(V * COLUMNS) {
                let mut sums = [[_mm256_setzero_si256(); V]; M];
                for quad in first..first + quads {
                    let at = o.b.add(4 * (PANEL * quad + column));
                    if column == 0 {
                        let ahead = o.ahead.wrapping_add(2 * o.pace * quad);
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(o.pace).cast());
                    }
                    for v in 0..V {
                        let bytes = _mm_loadu_si128(at.add(4 * COLUMNS * v).cast());
                        let right = match LEFT_IS_SIGNED {
                            true => _mm256_cvtepu8_epi16(bytes),
                            false => _mm256_cvtepi8_epi16(bytes),
                        };
                        for (wide, sums) in wide.iter().zip(&mut sums) {
                            let left = wide.as_ptr().cast::<i64>().add(quad - first).read_unaligned();
                            let products = _mm256_madd_epi16(_mm256_set1_epi64x(left), right);
                            sums[v] = _mm256_add_epi32(sums[v], products);
                        }
                    }
                }
                for (i, sums) in sums.iter().enumerate() {
                    for v in (0..V).step_by(2) {
                        let to = o.c.add(i * PANEL + column + v * COLUMNS);
                        let start = match first {
                            0 => o.start.add(column + v * COLUMNS),
                            _ => to.cast_const(),
                        };
                        // Columns 0, 1, 4, 5, 2, 3, 6, 7.
                        let pairs = _mm256_hadd_epi32(sums[v], sums[v + 1]);
                        let sum = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
                        let sum = _mm256_add_epi32(sum, _mm256_loadu_si256(start.cast()));
                        _mm256_storeu_si256(to.cast(), sum);
                    }
                }
            }
        }
        first += quads;
        if first == o.quads {
            return;
        }
    }
}

/// Writes bytes as i16.
///
/// # Safety
/// So many quads are readable and writable.
#[target_feature(enable = "avx2")]
unsafe fn widen<const SIGNED: bool>(from: *const u8, quads: usize, to: *mut i16) {
    let whole = quads / 4;
    // SAFETY: runs of four quads, and those that are left.
    unsafe {
        for run in 0..whole {
            let bytes = _mm_loadu_si128(from.add(16 * run).cast());
            let wide = if SIGNED { _mm256_cvtepi8_epi16(bytes) } else { _mm256_cvtepu8_epi16(bytes) };
            _mm256_storeu_si256(to.add(16 * run).cast(), wide);
        }
        for quad in 4 * whole..quads {
            let bytes = _mm_cvtsi32_si128(from.add(4 * quad).cast::<i32>().read_unaligned());
            let wide = if SIGNED { _mm_cvtepi8_epi16(bytes) } else { _mm_cvtepu8_epi16(bytes) };
            _mm_storel_epi64(to.add(4 * quad).cast(), wide);
        }
    }
}
