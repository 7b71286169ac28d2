//! The vector interface the kernels are written in.
//!
//! A value of a type that implements [`Isa`] is a proof that the processor has the instructions: it is made by
//! the entry points of the kernel table only, which are compiled with the features and called only where
//! [`CpuTarget::supported_here`](crate::CpuTarget::supported_here) holds. Everything generic over `Isa` is
//! `inline(always)`, so that it is compiled inside such an entry point.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod portable;

use margay_tensor::random::Philox;

/// Columns of a packed panel, for every class.
pub(crate) const PANEL: usize = 32;

/// Most rows of a tile of any class.
pub(crate) const MAX_ROWS: usize = 14;

/// A tile of a product of bytes: `c[rows][32] = start + a[rows][4 quads] · b[4 quads][32]` in i32, wrapping around. One
/// of the operands is signed, the other is not.
#[derive(Clone, Copy)]
pub(crate) struct ByteOperands {
    /// Rows, from 1 to those of [`ByteTiles`].
    pub(crate) rows: usize,
    /// Runs of four terms.
    pub(crate) quads: usize,
    /// The left operand, its terms contiguous, and the bytes between its rows.
    pub(crate) a: *const u8,
    pub(crate) a_stride: usize,
    /// A panel, `[quads][32][4]`.
    pub(crate) b: *const u8,
    /// Whether the left operand is the signed one.
    pub(crate) left_is_signed: bool,
    /// The result, `[rows][32]`.
    pub(crate) c: *mut i32,
    /// What the sums of every row start from, `[32]`.
    pub(crate) start: *const i32,
    /// Bytes that are fetched towards the processor meanwhile, `pace` after each half of a quad; they may be anywhere.
    pub(crate) ahead: *const u8,
    pub(crate) pace: usize,
}

/// The tiles of products of bytes that this processor is best at.
#[derive(Clone, Copy)]
pub(crate) struct ByteTiles {
    /// Most rows, at most [`MAX_ROWS`].
    pub(crate) rows: usize,
    /// Computes a tile.
    ///
    /// # Safety
    /// The operands are readable and writable; `c` overlaps nothing else.
    pub(crate) tile: unsafe fn(ByteOperands),
}

/// A stream of random words (see `margay_tensor::random`): the key of every round, and the upper words of the counter.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) keys: [[u32; 2]; Philox::ROUNDS],
    pub(crate) stream: [u32; 2],
}

impl Stream {
    /// The stream with a number of a seed.
    #[inline(always)]
    pub(crate) fn new(seed: u64, stream: u64) -> Stream {
        let halves = |x: u64| [x as u32, (x >> 32) as u32];
        let mut keys = [halves(seed); Philox::ROUNDS];
        for round in 1..Philox::ROUNDS {
            keys[round] = std::array::from_fn(|i| keys[round - 1][i].wrapping_add(Philox::WEYL[i]));
        }
        Stream { keys, stream: halves(stream) }
    }
}

/// Operations on vectors of `f32`.
pub(crate) trait Isa: Copy {
    /// A vector.
    type V: Copy;
    /// As many words of 32 bits.
    type W: Copy;
    /// Elements of a vector; divides [`PANEL`].
    const LANES: usize;
    /// Most rows of a tile, at most [`MAX_ROWS`].
    const ROWS: usize;
    /// Columns that a tile computes together; divides [`PANEL`].
    const COLUMNS: usize;

    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a > b ? a : b`: a NaN in `b` stays.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger one; NaN if one is.
    fn larger(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`: a NaN in `b` stays.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the instruction set does that.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a < b ? x : y`.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// To the nearest integer, ties to even; |x| < 2²².
    fn round(self, x: Self::V) -> Self::V;
    /// x · 2ⁿ for integral -252 <= n <= 254.
    fn scale2(self, x: Self::V, n: Self::V) -> Self::V;
    /// The sum of the lanes.
    fn sum(self, v: Self::V) -> f32;
    /// The largest lane; any lane if one is NaN.
    fn largest(self, v: Self::V) -> f32;

    /// # Safety
    /// `LANES` elements are readable at `p`.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `LANES` elements are writable at `p`.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Stores past the caches, where the processor can; seen by others after [`fence`](Isa::fence).
    ///
    /// # Safety
    /// `LANES` elements are writable at `p`, which is aligned to as many.
    unsafe fn stream(self, p: *mut f32, v: Self::V);
    /// Ends a run of [`stream`](Isa::stream)s.
    fn fence(self);
    /// `v` with its lanes `from..to` (at most `LANES`) replaced by `p[from..to]`.
    ///
    /// # Safety
    /// Those elements are readable; `p` itself may lie outside of any object.
    unsafe fn merge(self, v: Self::V, p: *const f32, from: usize, to: usize) -> Self::V;
    /// Stores the first `n < LANES` lanes.
    ///
    /// # Safety
    /// `n` elements are writable at `p`.
    unsafe fn store_first(self, p: *mut f32, n: usize, v: Self::V);
    /// `to[j][i] = from[i][j]` for 8 by 8 elements.
    ///
    /// # Safety
    /// Eight rows of eight elements at the given strides are readable and writable, and do not overlap.
    unsafe fn transpose8(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);
    /// The lanes rounded to bf16: to nearest, ties to even; NaN stays NaN.
    fn round_bf16(self, v: Self::V) -> Self::V;
    /// Stores the upper halves of the lanes: those of [`round_bf16`](Isa::round_bf16) as bf16.
    ///
    /// # Safety
    /// `LANES` halves are writable at `p`.
    unsafe fn store_bf16(self, p: *mut u16, v: Self::V);
    /// `LANES` pairs of bf16: the first of each, and the second.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_bf16_pairs(self, p: *const u16) -> [Self::V; 2];
    /// `LANES` signed bytes.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_i8(self, p: *const i8) -> Self::V;
    /// `LANES` numbers of bf16.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_bf16(self, p: *const u16) -> Self::V;
    /// `LANES` words.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_words(self, p: *const u32) -> Self::W;
    /// Words shifted towards their lowest bits.
    fn shift_words<const BITS: u32>(self, w: Self::W) -> Self::W;
    /// Words whose lowest bits have become the highest.
    fn rotate_words<const BITS: i32>(self, w: Self::W) -> Self::W;
    /// The lowest four bits of words as floats.
    fn low_nibbles(self, w: Self::W) -> Self::V;
    /// The lowest two bits of words and the third one of others as floats from 0 to 7.
    fn low_triples(self, lower: Self::W, upper: Self::W) -> Self::V;
    /// `LANES` words.
    ///
    /// # Safety
    /// They are writable.
    unsafe fn store_words(self, p: *mut u32, w: Self::W);
    /// Words shifted by a bit towards their highest.
    fn doubled_words(self, w: Self::W) -> Self::W;
    /// The highest bits of words, that of lane i at bit i.
    fn highest_bits(self, w: Self::W) -> u32;
    /// `x` with the other sign in lane i where bit i is set; bits from `LANES` on do not count.
    fn with_signs(self, bits: u32, x: Self::V) -> Self::V;
    /// The blocks of a stream of random words whose numbers are in the lanes: the first words of all of them, and so on.
    fn philox(self, stream: Stream, blocks: Self::W) -> [Self::W; 4];
    /// `LANES` integers as floats, rounded to nearest.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load_i32(self, p: *const i32) -> Self::V;
    /// Tiles of products of bytes.
    fn byte_tiles(self) -> ByteTiles;
    /// Asks for the cache line at `p`, which may be anywhere, to come to the second level.
    fn prefetch(self, p: *const f32);
    /// Asks for the cache line at `p`, which may be anywhere, to come to the first level.
    fn prefetch_near(self, p: *const f32);
    /// With `[m, n] = size`, `c[m][n] = start + a[m][k] · b[k][n]` for the first `n` columns of a panel. `start` is null for zeros, `c` to add to what is
    /// there, or one row for all rows. Meanwhile `2 * k * pace` bytes from `ahead` on, which may be anywhere, are
    /// fetched towards the processor; `pace` is at most 64.
    ///
    /// # Safety
    /// `1 <= m <= ROWS`; `n` is a multiple of `COLUMNS`, at least that and at most [`PANEL`]; the operands are readable and writable at their strides, what sums start from included; `c`
    /// overlaps nothing else.
    #[expect(clippy::too_many_arguments, reason = "a product has this many operands")]
    unsafe fn tile(
        self,
        size: [usize; 2],
        k: usize,
        a: *const f32,
        a_stride: usize,
        b: *const f32,
        c: *mut f32,
        c_stride: usize,
        start: *const f32,
        ahead: *const f32,
        pace: usize,
    );
    /// As [`tile`](Isa::tile) for whole panels, with `a` transposed: the element of row i and term j is `a[j * a_stride + i]`; nothing is
    /// fetched ahead.
    ///
    /// # Safety
    /// As [`tile`](Isa::tile).
    #[expect(clippy::too_many_arguments, reason = "as `tile`")]
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
    );
}

/// What sums start from that are added to what is in `c`, or are not.
#[inline(always)]
pub(crate) fn from(c: *const f32, accumulate: bool) -> *const f32 {
    if accumulate { c } else { std::ptr::null() }
}

/// The start of the columns from `column` on.
#[inline(always)]
fn from_column(start: *const f32, column: usize) -> *const f32 {
    if start.is_null() { start } else { start.wrapping_add(column) }
}

/// A tile of `M` rows and two vectors of columns, kept in registers by the compiler; fetches nothing at a pace of 0.
/// `a_strides` are the distances between rows and between terms.
///
/// # Safety
/// As [`Isa::tile`], for `2 * LANES` columns of a panel.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "as `Isa::tile`")]
pub(crate) unsafe fn register_tile<I: Isa, const M: usize>(
    isa: I,
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
    // SAFETY: the caller's promise covers every element touched.
    unsafe {
        let mut sums = [[isa.splat(0.0); 2]; M];
        if !start.is_null() {
            let stride = if start == c.cast_const() { c_stride } else { 0 };
            for (i, row) in sums.iter_mut().enumerate() {
                let from = start.add(i * stride);
                *row = [isa.load(from), isa.load(from.add(I::LANES))];
            }
        }
        let (mut a, mut b, mut ahead) = (a, b, ahead);
        for _ in 0..k {
            let right = [isa.load(b), isa.load(b.add(I::LANES))];
            for (i, row) in sums.iter_mut().enumerate() {
                let left = isa.splat(*a.add(i * a_strides[0]));
                *row = [isa.fma(left, right[0], row[0]), isa.fma(left, right[1], row[1])];
            }
            if pace > 0 {
                isa.prefetch(ahead);
                isa.prefetch(ahead.wrapping_byte_add(pace));
                ahead = ahead.wrapping_byte_add(2 * pace);
            }
            a = a.wrapping_add(a_strides[1]);
            b = b.add(PANEL);
        }
        for (i, row) in sums.iter().enumerate() {
            isa.store(c.add(i * c_stride), row[0]);
            isa.store(c.add(i * c_stride + I::LANES), row[1]);
        }
    }
}
