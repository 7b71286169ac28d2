//! Plain Rust, for any processor: the reference the other members are compared with.

use margay_loops::precision::{bf16, from_bf16};
use margay_tensor::random::Philox;

use super::{ByteOperands, ByteTiles, Isa, PANEL, Stream, from, from_column, register_tile};

/// Vectors as arrays.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 4;
type V = [f32; LANES];

#[inline(always)]
fn map2(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Isa for Portable {
    type V = V;
    type W = [u32; LANES];
    const LANES: usize = LANES;
    const ROWS: usize = 4;
    const COLUMNS: usize = 2 * LANES;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; LANES]
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn larger(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a > b || a.is_nan() { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn select_lt(self, a: V, b: V, x: V, y: V) -> V {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn round(self, x: V) -> V {
        const SHIFT: f32 = 12_582_912.0; // 1.5 · 2²³: the sum has no bits after the point
        x.map(|x| (x + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn scale2(self, x: V, n: V) -> V {
        let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
        map2(x, n, |x, n| {
            let n = n as i32;
            x * power(n >> 1) * power(n - (n >> 1))
        })
    }
    #[inline(always)]
    fn sum(self, v: V) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
    #[inline(always)]
    fn largest(self, v: V) -> f32 {
        v[1..].iter().fold(v[0], |a, &b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: the caller's promise; an array of `f32` read without alignment.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: V) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { self.store(p, v) }
    }
    #[inline(always)]
    fn fence(self) {}
    #[inline(always)]
    unsafe fn merge(self, mut v: V, p: *const f32, from: usize, to: usize) -> V {
        for (i, lane) in v.iter_mut().enumerate() {
            if from <= i && i < to {
                // SAFETY: the caller's promise about `from..to`.
                *lane = unsafe { *p.wrapping_add(i) };
            }
        }
        v
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize, v: V) {
        for (i, lane) in v.iter().enumerate().take(n) {
            // SAFETY: i < n.
            unsafe { *p.add(i) = *lane }
        }
    }
    #[inline(always)]
    unsafe fn transpose8(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..8 {
            for j in 0..8 {
                // SAFETY: the caller's promise.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) }
            }
        }
    }
    #[inline(always)]
    fn round_bf16(self, v: V) -> V {
        v.map(|x| from_bf16(bf16(x)))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: V) {
        // SAFETY: the caller's promise; an array of halves written without alignment.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(v.map(|x| (x.to_bits() >> 16) as u16)) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(self, p: *const u16) -> [V; 2] {
        // SAFETY: the caller's promise; an array of pairs read without alignment.
        let pairs = unsafe { p.cast::<[[u16; 2]; LANES]>().read_unaligned() };
        [0, 1].map(|half| pairs.map(|pair| from_bf16(pair[half])))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> V {
        // SAFETY: the caller's promise; bytes have no alignment.
        unsafe { p.cast::<[i8; LANES]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> V {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(from_bf16)
    }
    #[inline(always)]
    unsafe fn load_words(self, p: *const u32) -> [u32; LANES] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[u32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    fn shift_words<const BITS: u32>(self, w: [u32; LANES]) -> [u32; LANES] {
        w.map(|w| w >> BITS)
    }
    #[inline(always)]
    fn rotate_words<const BITS: i32>(self, w: [u32; LANES]) -> [u32; LANES] {
        w.map(|w| w.rotate_right(BITS.cast_unsigned()))
    }
    #[inline(always)]
    fn low_nibbles(self, w: [u32; LANES]) -> V {
        w.map(|w| (w & 15) as f32)
    }
    #[inline(always)]
    fn low_triples(self, lower: [u32; LANES], upper: [u32; LANES]) -> V {
        std::array::from_fn(|i| (lower[i] & 3 | upper[i] & 4) as f32)
    }
    #[inline(always)]
    unsafe fn store_words(self, p: *mut u32, w: [u32; LANES]) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[u32; LANES]>().write_unaligned(w) }
    }
    #[inline(always)]
    fn doubled_words(self, w: [u32; LANES]) -> [u32; LANES] {
        w.map(|w| w << 1)
    }
    #[inline(always)]
    fn highest_bits(self, w: [u32; LANES]) -> u32 {
        w.iter().enumerate().fold(0, |bits, (i, w)| bits | (w >> 31) << i)
    }
    #[inline(always)]
    fn with_signs(self, bits: u32, x: V) -> V {
        std::array::from_fn(|i| f32::from_bits(x[i].to_bits() ^ (bits >> i) << 31))
    }
    #[inline(always)]
    fn philox(self, stream: Stream, blocks: [u32; LANES]) -> [[u32; LANES]; 4] {
        let [low, high] = stream.stream;
        let mut c = [blocks, [0; LANES], [low; LANES], [high; LANES]];
        for key in stream.keys {
            let product = |x: [u32; LANES], by: u32| x.map(|x| u64::from(x) * u64::from(by));
            let (p, q) = (product(c[0], Philox::MULTIPLIERS[0]), product(c[2], Philox::MULTIPLIERS[1]));
            let next = |x: [u64; LANES], c: [u32; LANES], key: u32| -> [u32; LANES] {
                std::array::from_fn(|i| (x[i] >> 32) as u32 ^ c[i] ^ key)
            };
            c = [next(q, c[1], key[0]), q.map(|q| q as u32), next(p, c[3], key[1]), p.map(|p| p as u32)];
        }
        c
    }
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> V {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[i32; LANES]>().read_unaligned() }.map(|x| x as f32)
    }
    #[inline(always)]
    fn byte_tiles(self) -> ByteTiles {
        ByteTiles { rows: 4, tile: byte_tile }
    }
    #[inline(always)]
    fn prefetch(self, _: *const f32) {}
    #[inline(always)]
    fn prefetch_near(self, _: *const f32) {}
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
        _: *const f32,
        _: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { tile([m, n], k, a, [a_stride, 1], b, c, c_stride, start) }
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
        // SAFETY: the caller's promise.
        unsafe { tile([m, PANEL], k, a, [1, a_stride], b, c, c_stride, from(c, accumulate)) }
    }
}

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
) {
    for column in (0..n).step_by(2 * LANES) {
        // SAFETY: the caller's promise; the columns lie in the panel.
        unsafe {
            let (b, c, start) = (b.add(column), c.add(column), from_column(start, column));
            match m {
                1 => {
                    register_tile::<_, 1>(Portable, k, a, a_strides, b, c, c_stride, start, c.cast_const(), 0)
                }
                2 => {
                    register_tile::<_, 2>(Portable, k, a, a_strides, b, c, c_stride, start, c.cast_const(), 0)
                }
                3 => {
                    register_tile::<_, 3>(Portable, k, a, a_strides, b, c, c_stride, start, c.cast_const(), 0)
                }
                _ => {
                    register_tile::<_, 4>(Portable, k, a, a_strides, b, c, c_stride, start, c.cast_const(), 0)
                }
            }
        }
    }
}

/// # Safety
/// As [`ByteTiles::tile`].
unsafe fn byte_tile(o: ByteOperands) {
    for i in 0..o.rows {
        // SAFETY: the quads of the row and the panel, and a row of the result.
        unsafe {
            let mut sums = o.start.cast::<[i32; PANEL]>().read_unaligned();
            for quad in 0..o.quads {
                let bytes = o.a.add(i * o.a_stride + 4 * quad).cast::<[u8; 4]>().read();
                let panel = &*o.b.add(4 * PANEL * quad).cast::<[[u8; 4]; PANEL]>();
                for (sum, right) in sums.iter_mut().zip(panel) {
                    for (x, y) in bytes.into_iter().zip(*right) {
                        let product = match o.left_is_signed {
                            true => i32::from(x.cast_signed()) * i32::from(y),
                            false => i32::from(x) * i32::from(y.cast_signed()),
                        };
                        *sum = sum.wrapping_add(product);
                    }
                }
            }
            o.c.add(i * PANEL).cast::<[i32; PANEL]>().write_unaligned(sums);
        }
    }
}
