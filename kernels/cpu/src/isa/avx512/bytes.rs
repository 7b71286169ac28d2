//! Tiles of products of bytes with the instruction of AVX-512 VNNI, on processors that have it.

use std::arch::x86_64::*;

use super::tiles::{Tile, multiply_signed, multiply_unsigned};
use crate::isa::{ByteOperands, ByteTiles, PANEL};

/// The tiles, if this processor can run them: integers are exact, so that results are those of the other tiles.
pub(super) fn tiles() -> Option<ByteTiles> {
    is_x86_feature_detected!("avx512vnni").then_some(ByteTiles { rows: 14, tile })
}

/// # Safety
/// As [`ByteTiles::tile`]; the processor has AVX-512 VNNI.
unsafe fn tile(o: ByteOperands) {
    // SAFETY: the caller's promise.
    unsafe {
        if o.rows == 1 {
            return if o.left_is_signed { row::<true>(o) } else { row::<false>(o) };
        }
        let tiles: &[Tile; 14] =
            if o.left_is_signed { &multiply_signed::TILES } else { &multiply_unsigned::TILES };
        tiles[o.rows - 1](
            o.quads,
            o.a.cast(),
            o.a_stride,
            o.b.cast(),
            o.c.cast(),
            4 * PANEL,
            o.start.cast(),
            o.ahead.cast(),
            o.pace,
        );
    }
}

/// A row, whose quads are summed in four parts so that additions need not wait for each other.
///
/// # Safety
/// As [`tile`], for one row.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn row<const LEFT_IS_SIGNED: bool>(o: ByteOperands) {
    const PARTS: usize = 4;
    // SAFETY: the quads of the row and the panel, and a row of the result.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); 2]; PARTS];
        sums[0] = [_mm512_loadu_si512(o.start.cast()), _mm512_loadu_si512(o.start.add(16).cast())];
        let mut quad = 0;
        while quad < o.quads {
            let parts = (o.quads - quad).min(PARTS);
            for (part, sum) in sums.iter_mut().enumerate().take(parts) {
                let at = quad + part;
                let a = _mm512_set1_epi32(o.a.add(4 * at).cast::<i32>().read_unaligned());
                let b = o.b.add(4 * PANEL * at);
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD + 64).cast());
                let b = [_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(64).cast())];
                for (sum, b) in sum.iter_mut().zip(b) {
                    *sum = match LEFT_IS_SIGNED {
                        true => _mm512_dpbusd_epi32(*sum, b, a),
                        false => _mm512_dpbusd_epi32(*sum, a, b),
                    };
                }
            }
            quad += parts;
        }
        for half in 0..2 {
            let [a, b, c, d] = sums.map(|sum| sum[half]);
            let sum = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
            _mm512_storeu_si512(o.c.add(16 * half).cast(), sum);
        }
    }
}

/// How far ahead a panel is fetched for a single row, in bytes.
const AHEAD: usize = 2048;
