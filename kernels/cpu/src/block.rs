//! What the families share: products of a block with packed panels, and what happens before the store.

use std::mem::MaybeUninit;

use margay_loops::Epilogue;

use crate::isa::{Isa, MAX_ROWS, PANEL};
use crate::math::{activate, activation_word, with_activation};

/// What is applied to a finished block: `activation(x + bias) + residual`, or `activation(x + bias + residual)`.
#[derive(Clone, Copy)]
pub(crate) struct Finish {
    /// One element per column; null for none.
    pub(crate) bias: *const f32,
    /// The word of [`epilogue_word`].
    pub(crate) word: usize,
    /// A matrix with the strides of the result; null for none.
    pub(crate) residual: *const f32,
}

impl Finish {
    /// Whether it changes anything.
    #[inline(always)]
    fn is_identity(&self) -> bool {
        self.bias.is_null() && self.word & (ACTIVATION | STREAMED) == 0 && self.residual.is_null()
    }

    /// Whether it leaves sums as they are.
    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.bias.is_null() && self.word & ACTIVATION == 0 && self.residual.is_null()
    }

    /// Whether it adds a bias and does nothing else.
    #[inline(always)]
    fn is_bias(&self) -> bool {
        !self.bias.is_null() && self.word & ACTIVATION == 0 && self.residual.is_null()
    }

    /// The same for the block that begins at a row and column of this one.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, col: usize, stride: usize) -> Finish {
        let shift = |p: *const f32, by: usize| if p.is_null() { p } else { p.wrapping_add(by) };
        Finish { bias: shift(self.bias, col), residual: shift(self.residual, row * stride + col), ..*self }
    }
}

/// The bits of [`epilogue_word`] that hold an activation.
pub(crate) const ACTIVATION: usize = 15;

/// The bit of [`epilogue_word`] that puts the residual before the activation.
const RESIDUAL_FIRST: usize = 16;

/// The bit of a word that asks for whole tiles to be stored past the caches: results far larger than those, none of
/// whose sums is read back. Where the result is not aligned to lines of the cache they are stored as usual.
pub(crate) const STREAMED: usize = 32;

/// The word for the activation of an epilogue, and for what comes before it.
pub(crate) fn epilogue_word(epilogue: &Epilogue) -> usize {
    activation_word(epilogue.activation) + if epilogue.residual_first { RESIDUAL_FIRST } else { 0 }
}

/// The left operand of a block: rows with contiguous columns.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    /// The first element.
    pub(crate) at: *const f32,
    /// Distance between rows.
    pub(crate) stride: usize,
    /// Rows.
    pub(crate) rows: usize,
}

/// The right operand of a block: panels of 32 columns.
#[derive(Clone, Copy)]
pub(crate) struct Right {
    /// The first row of the first panel.
    pub(crate) at: *const f32,
    /// Distance between panels.
    pub(crate) stride: usize,
    /// Columns, all panels together.
    pub(crate) cols: usize,
}

/// The result of a block.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// The first element.
    pub(crate) at: *mut f32,
    /// Distance between rows.
    pub(crate) stride: usize,
}

impl Block {
    /// Whether whole panels of every row begin at a line of the cache.
    #[inline(always)]
    fn is_aligned(&self) -> bool {
        self.at.addr().is_multiple_of(LINE_BYTES) && (4 * self.stride).is_multiple_of(LINE_BYTES)
    }
}

/// Bytes of a line of the cache.
const LINE_BYTES: usize = 64;

/// `c = finish((accumulate ? c : 0) + a[rows][k] · b[k][cols])`; `finish` of `None` leaves the sums.
///
/// # Safety
/// The operands are readable and writable at their strides; panels are readable in full width; `c` overlaps
/// nothing else.
#[inline(always)]
pub(crate) unsafe fn multiply<I: Isa>(
    isa: I,
    k: usize,
    a: Left,
    b: Right,
    c: Block,
    accumulate: bool,
    finish: Option<&Finish>,
) {
    let next = b.at.wrapping_add(b.cols.div_ceil(PANEL) * b.stride);
    // SAFETY: the caller's promise.
    unsafe { multiply_before(isa, k, a, b, c, accumulate, finish, next) }
}

/// As [`multiply`]; `next`, which may be anywhere, is read after the last panel.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a product has this many operands")]
pub(crate) unsafe fn multiply_before<I: Isa>(
    isa: I,
    k: usize,
    a: Left,
    b: Right,
    c: Block,
    accumulate: bool,
    finish: Option<&Finish>,
    next: *const f32,
) {
    // SAFETY: the caller's promise.
    unsafe { multiply_between(isa, k, a, b, c, accumulate, finish, next, || {}) }
}

/// As [`multiply_before`], with something else to do after every tile.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a product has this many operands")]
pub(crate) unsafe fn multiply_between<I: Isa>(
    isa: I,
    k: usize,
    a: Left,
    b: Right,
    c: Block,
    accumulate: bool,
    finish: Option<&Finish>,
    next: *const f32,
    mut between: impl FnMut(),
) {
    // Every tile of rows fetches its share of the panel that follows: memory is then read at an even pace.
    let tiles = a.rows.div_ceil(I::ROWS).max(1);
    let pace = ROW_BYTES.div_ceil(2 * tiles);
    let finish = finish.filter(|f| !f.is_identity());
    let mut tile = Aligned(MaybeUninit::uninit());
    let tile: *mut f32 = tile.0.as_mut_ptr().cast();
    let mut col = 0;
    while col < b.cols {
        let cols = (b.cols - col).min(PANEL);
        // A tile computes a few columns of the panel more than there are, at most.
        let width = cols.next_multiple_of(I::COLUMNS);
        let right = b.at.wrapping_add(col / PANEL * b.stride);
        let following = if col + PANEL < b.cols { right.wrapping_add(b.stride) } else { next };
        let mut row = 0;
        let mut share = 0;
        while row < a.rows {
            // Tiles of nearly equal height: a last one of a single row would be slow.
            let rows = (a.rows - row).div_ceil((a.rows - row).div_ceil(I::ROWS));
            // SAFETY: the block's rows and columns bound every access; partial panels go through `tile`.
            unsafe {
                let left = a.at.add(row * a.stride);
                // A single tile fetches what it will read itself.
                let ahead = match tiles {
                    1 => right.wrapping_add(AHEAD),
                    _ => following.wrapping_byte_add(share),
                };
                let out = c.at.add(row * c.stride + col);
                let here = finish.map(|f| f.at(row, col, c.stride));
                if let Some(f) = here.filter(|f| !f.residual.is_null()) {
                    fetch_rows(isa, rows, f.residual, c.stride);
                }
                let streamed = here.is_some_and(|f| f.word & STREAMED != 0) && !accumulate;
                if let Some(f) = here.filter(|_| streamed && cols == PANEL && c.is_aligned()) {
                    isa.tile(
                        [rows, PANEL],
                        k,
                        left,
                        a.stride,
                        right,
                        tile,
                        PANEL,
                        std::ptr::null(),
                        ahead,
                        pace,
                    );
                    if !f.is_plain() {
                        apply(isa, rows, cols, (tile, PANEL), (tile, PANEL), &f);
                    }
                    for i in 0..rows {
                        for j in (0..PANEL).step_by(I::LANES) {
                            isa.stream(out.add(i * c.stride + j), isa.load(tile.add(i * PANEL + j)));
                        }
                    }
                } else if cols == width {
                    let (start, rest) = start(out, accumulate, here);
                    isa.tile([rows, cols], k, left, a.stride, right, out, c.stride, start, ahead, pace);
                    if let Some(f) = rest {
                        apply(isa, rows, cols, (out, c.stride), (out, c.stride), &f);
                    }
                } else {
                    if accumulate {
                        for i in 0..rows {
                            std::ptr::copy_nonoverlapping(out.add(i * c.stride), tile.add(i * PANEL), cols);
                        }
                    }
                    let start = if accumulate { tile.cast_const() } else { std::ptr::null() };
                    isa.tile([rows, width], k, left, a.stride, right, tile, PANEL, start, ahead, pace);
                    let nothing = Finish { bias: std::ptr::null(), word: 0, residual: std::ptr::null() };
                    let f = here.unwrap_or(nothing);
                    apply(isa, rows, cols, (tile, PANEL), (out, c.stride), &f);
                }
            }
            between();
            row += rows;
            share += 2 * k * pace;
        }
        col += PANEL;
    }
}

/// What the sums of a whole tile start from, and what is left to be applied: a bias that nothing follows is no work
/// of its own.
#[inline(always)]
fn start(c: *const f32, accumulate: bool, finish: Option<Finish>) -> (*const f32, Option<Finish>) {
    match finish {
        Some(f) if !accumulate && f.is_bias() => (f.bias, None),
        _ if accumulate => (c, finish),
        _ => (std::ptr::null(), finish),
    }
}

/// Bytes of a row of a panel.
const ROW_BYTES: usize = 4 * PANEL;

/// Fetches what the end of a tile reads, so that it is there when the tile is done.
#[inline(always)]
fn fetch_rows<I: Isa>(isa: I, rows: usize, at: *const f32, stride: usize) {
    for i in 0..rows {
        let row = at.wrapping_add(i * stride);
        isa.prefetch_near(row);
        isa.prefetch_near(row.wrapping_add(PANEL / 2));
    }
}

/// `c = (accumulate ? c : 0) + aᵀ · b` for a panel of 32 columns: `a` has `k` rows of `rows` elements, `b` has `k` and
/// `c` `rows` rows of 32.
///
/// # Safety
/// The operands are readable and writable at their strides; `c` overlaps nothing else.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a product has this many operands")]
pub(crate) unsafe fn multiply_transposed<I: Isa>(
    isa: I,
    k: usize,
    a: *const f32,
    a_stride: usize,
    rows: usize,
    b: *const f32,
    c: *mut f32,
    accumulate: bool,
) {
    let mut row = 0;
    while row < rows {
        let here = (rows - row).div_ceil((rows - row).div_ceil(I::ROWS));
        // SAFETY: the rows lie in the operands.
        unsafe {
            isa.tile_transposed(here, k, a.add(row), a_stride, b, c.add(row * PANEL), PANEL, accumulate);
        }
        row += here;
    }
}

/// How far ahead a panel is fetched, in elements.
const AHEAD: usize = 64 * PANEL;

#[repr(align(64))]
struct Aligned(MaybeUninit<[f32; MAX_ROWS * PANEL]>);

/// `to = finish(from)` for a tile; `from` and `to` are equal or disjoint.
///
/// # Safety
/// `rows` rows of `cols` elements are accessible at the strides; the residual has the stride of `to`.
#[inline(always)]
pub(crate) unsafe fn apply<I: Isa>(
    isa: I,
    rows: usize,
    cols: usize,
    from: (*const f32, usize),
    to: (*mut f32, usize),
    f: &Finish,
) {
    with_activation!(f.word & ACTIVATION, WORD => {
        for i in 0..rows {
            // SAFETY: i < rows.
            unsafe {
                let residual = if f.residual.is_null() { f.residual } else { f.residual.add(i * to.1) };
                let (from, to) = (from.0.add(i * from.1), to.0.add(i * to.1));
                finish_row::<I, WORD>(isa, cols, from, to, &Finish { residual, ..*f });
            }
        }
    })
}

/// One row of [`apply`]; the residual is that of the row.
///
/// # Safety
/// `cols` elements are accessible at every pointer that is not null.
#[inline(always)]
unsafe fn finish_row<I: Isa, const WORD: usize>(
    isa: I,
    cols: usize,
    from: *const f32,
    to: *mut f32,
    f: &Finish,
) {
    let mut col = 0;
    while col < cols {
        let n = (cols - col).min(I::LANES);
        // SAFETY: n elements follow `col`.
        unsafe {
            let v = finish_vector::<I, WORD>(isa, load_first(isa, from.add(col), n), n, &f.at(0, col, 0));
            store_first(isa, to.add(col), n, v);
        }
        col += I::LANES;
    }
}

/// The first `n <= LANES` elements of a block, which `f` begins at.
///
/// # Safety
/// `n` elements are readable at every pointer of `f` that is not null.
#[inline(always)]
pub(crate) unsafe fn finish_vector<I: Isa, const WORD: usize>(
    isa: I,
    mut v: I::V,
    n: usize,
    f: &Finish,
) -> I::V {
    // SAFETY: the caller's promise.
    unsafe {
        if !f.bias.is_null() {
            v = isa.add(v, load_first(isa, f.bias, n));
        }
        if !f.residual.is_null() && f.word & RESIDUAL_FIRST != 0 {
            v = isa.add(v, load_first(isa, f.residual, n));
        }
        v = activate::<I, WORD>(isa, v);
        if !f.residual.is_null() && f.word & RESIDUAL_FIRST == 0 {
            v = isa.add(v, load_first(isa, f.residual, n));
        }
    }
    v
}

/// A vector whose first `n <= LANES` lanes are read, the others zero.
///
/// # Safety
/// `n` elements are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_first<I: Isa>(isa: I, p: *const f32, n: usize) -> I::V {
    // SAFETY: the caller's promise.
    unsafe { if n == I::LANES { isa.load(p) } else { isa.merge(isa.splat(0.0), p, 0, n) } }
}

/// Writes the first `n <= LANES` lanes.
///
/// # Safety
/// `n` elements are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store_first<I: Isa>(isa: I, p: *mut f32, n: usize, v: I::V) {
    // SAFETY: the caller's promise.
    unsafe { if n == I::LANES { isa.store(p, v) } else { isa.store_first(p, n, v) } }
}
