//! What the families share: products of a block with packed panels, and what happens before the store.

use margay_loops::Epilogue;

use crate::isa::{Isa, MAX_ROWS, PANEL};
use crate::math::{activate, activation_word, with_activation};

/// What is applied to a finished block: `activation(x + bias) + residual`.
#[derive(Clone, Copy)]
pub(crate) struct Finish {
    /// One element per column, or per row if `bias_by_row`; null for none.
    pub(crate) bias: *const f32,
    /// Whether the bias belongs to rows.
    pub(crate) bias_by_row: bool,
    /// A word of [`activation_word`].
    pub(crate) activation: usize,
    /// A matrix with the strides of the result; null for none.
    pub(crate) residual: *const f32,
}

impl Finish {
    /// Whether it changes anything.
    #[inline(always)]
    fn is_identity(&self) -> bool {
        self.bias.is_null() && self.activation == 0 && self.residual.is_null()
    }

    /// The same for the block that begins at a row and column of this one.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, col: usize, stride: usize) -> Finish {
        let bias = if self.bias_by_row { row } else { col };
        let shift = |p: *const f32, by: usize| if p.is_null() { p } else { p.wrapping_add(by) };
        Finish { bias: shift(self.bias, bias), residual: shift(self.residual, row * stride + col), ..*self }
    }
}

/// The word for the activation of an epilogue.
pub(crate) fn epilogue_word(epilogue: &Epilogue) -> usize {
    activation_word(epilogue.activation)
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
    let finish = finish.filter(|f| !f.is_identity());
    let mut tile = Aligned([0.0; MAX_ROWS * PANEL]);
    let tile: *mut f32 = tile.0.as_mut_ptr();
    let mut col = 0;
    while col < b.cols {
        let cols = (b.cols - col).min(PANEL);
        let right = b.at.wrapping_add(col / PANEL * b.stride);
        let mut row = 0;
        while row < a.rows {
            // Tiles of nearly equal height: a last one of a single row would be slow.
            let rows = (a.rows - row).div_ceil((a.rows - row).div_ceil(I::ROWS));
            // SAFETY: the block's rows and columns bound every access; partial panels go through `tile`.
            unsafe {
                let left = a.at.add(row * a.stride);
                // The last rows fetch the next panel; rows before them what they will read themselves.
                let last = row + rows == a.rows && row > 0;
                let ahead = right.wrapping_add(if last { b.stride } else { AHEAD });
                let out = c.at.add(row * c.stride + col);
                let here = finish.map(|f| f.at(row, col, c.stride));
                if cols == PANEL {
                    isa.tile(rows, k, left, a.stride, right, out, c.stride, accumulate, ahead);
                    if let Some(f) = here {
                        apply(isa, rows, cols, (out, c.stride), (out, c.stride), &f);
                    }
                } else {
                    if accumulate {
                        for i in 0..rows {
                            std::ptr::copy_nonoverlapping(out.add(i * c.stride), tile.add(i * PANEL), cols);
                        }
                    }
                    isa.tile(rows, k, left, a.stride, right, tile, PANEL, accumulate, ahead);
                    let f = here.unwrap_or(Finish {
                        bias: std::ptr::null(),
                        bias_by_row: false,
                        activation: 0,
                        residual: std::ptr::null(),
                    });
                    apply(isa, rows, cols, (tile, PANEL), (out, c.stride), &f);
                }
            }
            row += rows;
        }
        col += PANEL;
    }
}

/// `c = (accumulate ? c : 0) + aᵀ · b` for a panel of 32 columns: `a` has `k` rows of `rows` elements, `b` has `k` and
/// `c` `rows` rows of 32.
///
/// # Safety
/// The operands are readable and writable at their strides; `c` overlaps nothing else.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a product has this many operands")]
pub(crate) unsafe fn multiply_turned<I: Isa>(
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
            isa.tile_turned(here, k, a.add(row), a_stride, b, c.add(row * PANEL), PANEL, accumulate);
        }
        row += here;
    }
}

/// How far ahead a panel is fetched, in elements.
const AHEAD: usize = 64 * PANEL;

#[repr(align(64))]
struct Aligned([f32; MAX_ROWS * PANEL]);

/// `to = activation(from + bias) + residual` for a tile; `from` and `to` are equal or disjoint.
///
/// # Safety
/// `rows` rows of `cols` elements are accessible at the strides; the residual has the stride of `to`.
#[inline(always)]
unsafe fn apply<I: Isa>(
    isa: I,
    rows: usize,
    cols: usize,
    from: (*const f32, usize),
    to: (*mut f32, usize),
    f: &Finish,
) {
    with_activation!(f.activation, WORD => {
        for i in 0..rows {
            // SAFETY: i < rows.
            unsafe {
                let residual = if f.residual.is_null() { f.residual } else { f.residual.add(i * to.1) };
                let by_row = f.bias_by_row && !f.bias.is_null();
                let bias = if by_row { std::ptr::null() } else { f.bias };
                let bias_of_row = by_row.then(|| *f.bias.add(i));
                let (from, to) = (from.0.add(i * from.1), to.0.add(i * to.1));
                finish_row::<I, WORD>(isa, cols, from, to, bias, bias_of_row, residual);
            }
        }
    })
}

/// One row of [`apply`].
///
/// # Safety
/// `cols` elements are accessible at every pointer that is not null.
#[inline(always)]
pub(crate) unsafe fn finish_row<I: Isa, const WORD: usize>(
    isa: I,
    cols: usize,
    from: *const f32,
    to: *mut f32,
    bias: *const f32,
    bias_of_row: Option<f32>,
    residual: *const f32,
) {
    let mut col = 0;
    while col < cols {
        let n = (cols - col).min(I::LANES);
        // SAFETY: n elements follow `col`.
        unsafe {
            let mut v = load_first(isa, from.add(col), n);
            if let Some(x) = bias_of_row {
                v = isa.add(v, isa.splat(x));
            }
            if !bias.is_null() {
                v = isa.add(v, load_first(isa, bias.add(col), n));
            }
            v = activate::<I, WORD>(isa, v);
            if !residual.is_null() {
                v = isa.add(v, load_first(isa, residual.add(col), n));
            }
            if n == I::LANES { isa.store(to.add(col), v) } else { isa.store_first(to.add(col), n, v) }
        }
        col += I::LANES;
    }
}

/// A vector whose first `n <= LANES` lanes are read, the others zero.
///
/// # Safety
/// `n` elements are readable at `p`.
#[inline(always)]
unsafe fn load_first<I: Isa>(isa: I, p: *const f32, n: usize) -> I::V {
    // SAFETY: the caller's promise.
    unsafe { if n == I::LANES { isa.load(p) } else { isa.merge(isa.splat(0.0), p, 0, n) } }
}
