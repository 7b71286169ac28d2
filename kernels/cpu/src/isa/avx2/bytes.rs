//! Tiles of products of bytes with AVX2: both operands are widened to i16, whose products in pairs are exact in i32.
//! The instruction that multiplies bytes is not used, since it saturates.

use std::arch::x86_64::*;

use crate::isa::{ByteOperands, ByteTiles, PANEL};

/// The tiles; only for processors with AVX2.
pub(super) const TILES: ByteTiles = ByteTiles { rows: 6, tile };

/// # Safety
/// As [`ByteTiles::tile`]; the processor has AVX2.
unsafe fn tile(o: ByteOperands) {
    // SAFETY: the caller's promise.
    unsafe {
        match (o.rows, o.left_is_signed) {
            (1, true) => rows::<1, true>(o),
            (1, false) => rows::<1, false>(o),
            (2, true) => rows::<2, true>(o),
            (2, false) => rows::<2, false>(o),
            (3, true) => rows::<3, true>(o),
            (3, false) => rows::<3, false>(o),
            (4, true) => rows::<4, true>(o),
            (4, false) => rows::<4, false>(o),
            (5, true) => rows::<5, true>(o),
            (5, false) => rows::<5, false>(o),
            (_, true) => rows::<6, true>(o),
            (_, false) => rows::<6, false>(o),
        }
    }
}

/// Columns that are summed at a time.
const COLUMNS: usize = 8;

/// # Safety
/// As [`tile`], for `M` rows.
#[target_feature(enable = "avx2")]
unsafe fn rows<const M: usize, const LEFT_IS_SIGNED: bool>(o: ByteOperands) {
    // SAFETY: the quads of the rows and the panel; eight columns are 32 bytes of a quad.
    unsafe {
        for column in (0..PANEL).step_by(COLUMNS) {
            // Two sums for every column: of its even and of its odd pairs of terms.
            let mut sums = [[_mm256_setzero_si256(); 2]; M];
            for quad in 0..o.quads {
                let at = o.b.add(4 * (PANEL * quad + column));
                let halves = [_mm_loadu_si128(at.cast()), _mm_loadu_si128(at.add(16).cast())];
                let right = match LEFT_IS_SIGNED {
                    true => halves.map(|x| _mm256_cvtepu8_epi16(x)),
                    false => halves.map(|x| _mm256_cvtepi8_epi16(x)),
                };
                for (i, sum) in sums.iter_mut().enumerate() {
                    let bytes = o.a.add(i * o.a_stride + 4 * quad).cast::<i32>().read_unaligned();
                    let left = match LEFT_IS_SIGNED {
                        true => _mm256_cvtepi8_epi16(_mm_set1_epi32(bytes)),
                        false => _mm256_cvtepu8_epi16(_mm_set1_epi32(bytes)),
                    };
                    sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(left, right[0]));
                    sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(left, right[1]));
                }
            }
            let start = _mm256_loadu_si256(o.start.add(column).cast());
            for (i, sum) in sums.iter().enumerate() {
                // Columns 0, 1, 4, 5, 2, 3, 6, 7.
                let pairs = _mm256_hadd_epi32(sum[0], sum[1]);
                let sum = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
                _mm256_storeu_si256(o.c.add(i * PANEL + column).cast(), _mm256_add_epi32(sum, start));
            }
        }
    }
}
