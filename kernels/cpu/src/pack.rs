//! Bringing operands into the workspace in the layout that products read.
//!
//! A right operand is packed into panels of 32 columns. See `constants` for the layout. A left
//! operand whose rows are not contiguous, or lie so that they fight for the same sets of the cache, is copied to rows
//! at a better distance; one that is to be rounded is rounded on the way.

use crate::Class;
use crate::Phase;
use crate::isa::{Isa, PANEL};
use crate::params::{argument, from_words, params, to_words};

/// Name of the layout of a packed right operand.
pub(crate) const LAYOUT: &str = "f32_kn32";

/// Elements of a packed matrix.
pub(crate) fn packed_len(k: usize, n: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * k
}

/// Elements between rows of a left operand of `k` columns in the workspace.
pub(crate) fn row_stride(k: usize) -> usize {
    let stride = k.next_multiple_of(16);
    if stride.is_multiple_of(256) { stride + 16 } else { stride }
}

/// What an operand becomes: panels; rows; rows of numbers rounded to bf16; rows of bf16, two to an element, the last
/// of an odd number with a zero.
const PANELS: usize = 0;
const ROWS: usize = 1;
const ROUNDED: usize = 2;
const PAIRS: usize = 3;

params! {
    /// Matrices to be brought into the workspace: an item is a group of panels, or of rows, of one of them.
    Params {
        /// `PANELS`, `ROWS`, `ROUNDED` or `PAIRS`; the columns of the last two are contiguous.
        layout: usize,
        /// Rows and columns of a matrix.
        rows: usize,
        cols: usize,
        /// Strides of rows and columns.
        row_stride: usize,
        col_stride: usize,
        /// Axes over which there are several matrices, outermost first, and their strides.
        extents: [usize; 4],
        strides: [usize; 4],
        /// Panels or rows of an item.
        group: usize,
        /// Arguments read and written, and where in them to begin.
        source: usize,
        source_offset: usize,
        target: usize,
        target_offset: usize,
    }
}

/// Strided matrices among the arguments of a call.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    /// Position of the argument.
    pub(crate) at: usize,
    /// Rows and columns of a matrix, and their strides.
    pub(crate) size: [usize; 2],
    pub(crate) strides: [usize; 2],
    /// Axes over which there are several, outermost first, and their strides; a stride of 0 repeats a matrix.
    pub(crate) extents: [usize; 4],
    pub(crate) batch: [usize; 4],
}

/// Operands in the workspace, and the phases that bring them there.
pub(crate) struct Workspace {
    class: Class,
    /// Position of the workspace among the arguments.
    pub(crate) at: usize,
    /// Elements in use.
    pub(crate) len: usize,
    /// One phase per operand.
    pub(crate) phases: Vec<Phase>,
}

/// Where an operand is in the workspace.
pub(crate) struct Placed {
    /// The first element.
    pub(crate) offset: usize,
    /// Strides of the batch axes.
    pub(crate) batch: [usize; 4],
}

impl Workspace {
    /// An empty one, for the argument at a position.
    pub(crate) fn new(class: Class, at: usize) -> Workspace {
        Workspace { class, at, len: 0, phases: Vec::new() }
    }

    /// Packs right operands into panels.
    pub(crate) fn panels(&mut self, source: Source) -> Placed {
        let [rows, cols] = source.size;
        let group = 65_536 / (rows * PANEL).max(1);
        self.add(PANELS, source, 0, cols.div_ceil(PANEL), group, packed_len(rows, cols))
    }

    /// Copies left operands to rows at the distance [`row_stride`].
    pub(crate) fn rows(&mut self, source: Source) -> Placed {
        self.add_rows(ROWS, source, 0, source.size[1])
    }

    /// Rounds left operands to bf16. With `pairs` an element of the result is two of them, and rows lie at the
    /// [`row_stride`] of so many elements; else they are as [`rows`](Workspace::rows) leaves them.
    pub(crate) fn rounded(&mut self, mut source: Source, pairs: bool) -> Placed {
        let [_, cols] = source.size;
        let mut source_offset = 0;
        if source.strides[1] != 1 {
            let placed = self.rows(source);
            source.at = self.at;
            source_offset = placed.offset;
            source.strides = [row_stride(cols), 1];
            source.batch = placed.batch;
        }
        match pairs {
            true => self.add_rows(PAIRS, source, source_offset, cols.div_ceil(2)),
            false => self.add_rows(ROUNDED, source, source_offset, cols),
        }
    }

    /// Rows of `width` elements.
    fn add_rows(&mut self, layout: usize, source: Source, source_offset: usize, width: usize) -> Placed {
        let [rows, cols] = source.size;
        let group = (65_536 / cols.max(1)).next_multiple_of(8);
        self.add(layout, source, source_offset, rows, group, rows * row_stride(width))
    }

    /// Adds a phase for matrices of `parts` panels or rows that take `len` elements each; the first begins at an offset
    /// of the argument.
    fn add(
        &mut self,
        layout: usize,
        source: Source,
        source_offset: usize,
        parts: usize,
        group: usize,
        len: usize,
    ) -> Placed {
        // Only distinct matrices are stored.
        let distinct =
            |i: usize| if source.batch[i] == 0 { source.extents[i].min(1) } else { source.extents[i] };
        let extents: [usize; 4] = std::array::from_fn(distinct);
        let mut placed = Placed { offset: self.len, batch: [0; 4] };
        let mut stride = len;
        for i in (0..4).rev() {
            if source.batch[i] != 0 {
                placed.batch[i] = stride;
            }
            stride *= extents[i];
        }
        self.len += stride.next_multiple_of(16);
        let params = Params {
            layout,
            rows: source.size[0],
            cols: source.size[1],
            row_stride: source.strides[0],
            col_stride: source.strides[1],
            extents,
            strides: source.batch,
            group: group.clamp(1, parts.max(1)),
            source: source.at,
            source_offset,
            target: self.at,
            target_offset: placed.offset,
        };
        self.phases.push(Phase {
            kernel: self.class.kernels().pack,
            params: to_words(&params),
            items: extents.iter().product::<usize>() * parts.div_ceil(params.group),
            grain: 1,
        });
        placed
    }
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 2;

/// Brings matrices into the workspace.
///
/// Arguments: those of the call; reads `source`, writes `target`, which must not overlap. Any alignment. Rows and
/// columns may be 0.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`Params`].
#[inline(always)]
pub(crate) unsafe fn run<I: Isa>(
    isa: I,
    params: *const u64,
    args: *const *mut u8,
    _scratch: *mut f32,
    begin: u64,
    end: u64,
) {
    // SAFETY: the parameters are ours; the extents of the call bound every access.
    unsafe {
        let p = from_words::<Params>(params);
        let source = argument(args, p.source).add(p.source_offset);
        let target = argument(args, p.target).add(p.target_offset);
        let strides = [p.row_stride, p.col_stride];
        let parts = if p.layout == PANELS { p.cols.div_ceil(PANEL) } else { p.rows };
        let groups = parts.div_ceil(p.group);
        for item in begin as usize..end as usize {
            let (matrix, first) = (item / groups, item % groups * p.group);
            let last = (first + p.group).min(parts);
            let from = source.add(batch_offset(matrix, &p.extents, &p.strides));
            let width = if p.layout == PAIRS { p.cols.div_ceil(2) } else { p.cols };
            let stride = row_stride(width);
            let rows = from.wrapping_add(first * p.row_stride);
            let to_rows = target.wrapping_add((matrix * p.rows + first) * stride);
            match p.layout {
                PANELS => {
                    let to = target.add(matrix * packed_len(p.rows, p.cols));
                    for panel in first..last {
                        let to = to.add(panel * p.rows * PANEL);
                        pack_panel(isa, p.rows, p.cols, panel, (from, strides), to);
                    }
                }
                ROWS => copy_matrix(isa, last - first, p.cols, (rows, strides), (to_rows, stride)),
                layout => {
                    for i in 0..last - first {
                        let (from, to) = (rows.add(i * p.row_stride), to_rows.add(i * stride));
                        round_row(isa, p.cols, from, to, layout == PAIRS);
                    }
                }
            }
        }
    }
}

/// Rounds a row to bf16, up to a whole number of vectors, with zeros at the end.
///
/// # Safety
/// `cols` elements are readable at `from`; as many and up to [`row_stride`] are writable at `to`, of halves if
/// `pairs`.
#[inline(always)]
unsafe fn round_row<I: Isa>(isa: I, cols: usize, from: *const f32, to: *mut f32, pairs: bool) {
    for j in (0..cols).step_by(I::LANES) {
        // SAFETY: the stride of the target is a multiple of every vector.
        unsafe {
            let v = match cols - j {
                n if n < I::LANES => isa.merge(isa.splat(0.0), from.add(j), 0, n),
                _ => isa.load(from.add(j)),
            };
            let v = isa.round_bf16(v);
            if pairs { isa.store_bf16(to.cast::<u16>().add(j), v) } else { isa.store(to.add(j), v) }
        }
    }
}

/// Where the matrix with the given row-major index over `extents` begins.
#[inline(always)]
pub(crate) fn batch_offset(mut index: usize, extents: &[usize; 4], strides: &[usize; 4]) -> usize {
    let mut offset = 0;
    for (extent, stride) in extents.iter().zip(strides).rev() {
        offset += index % extent * stride;
        index /= extent;
    }
    offset
}

/// Writes panel `panel` of a matrix of `k` rows and `n` columns to `to`, `[k][32]`.
///
/// # Safety
/// The matrix is readable at its strides, the panel writable; they do not overlap.
#[inline(always)]
unsafe fn pack_panel<I: Isa>(
    isa: I,
    k: usize,
    n: usize,
    panel: usize,
    (from, strides): (*const f32, [usize; 2]),
    to: *mut f32,
) {
    let columns = (n - panel * PANEL).min(PANEL);
    // SAFETY: the panel's columns lie in the matrix.
    unsafe {
        if columns < PANEL {
            std::ptr::write_bytes(to, 0, k * PANEL);
        }
        copy_matrix(isa, k, columns, (from.add(panel * PANEL * strides[1]), strides), (to, PANEL));
    }
}

/// `to[i * to_stride + j] = from[i * strides[0] + j * strides[1]]`.
///
/// # Safety
/// Both are readable and writable at their strides and do not overlap.
#[inline(always)]
pub(crate) unsafe fn copy_matrix<I: Isa>(
    isa: I,
    rows: usize,
    cols: usize,
    (from, strides): (*const f32, [usize; 2]),
    (to, to_stride): (*mut f32, usize),
) {
    // SAFETY: i < rows and j < cols everywhere; rows of a vector's length are inside as well.
    unsafe {
        if strides[1] == 1 {
            for i in 0..rows {
                let (from, to) = (from.add(i * strides[0]), to.add(i * to_stride));
                let whole = cols - cols % I::LANES;
                for j in (0..whole).step_by(I::LANES) {
                    isa.store(to.add(j), isa.load(from.add(j)));
                }
                if whole < cols {
                    let v = isa.merge(isa.splat(0.0), from.add(whole), 0, cols - whole);
                    isa.store_first(to.add(whole), cols - whole, v);
                }
            }
            return;
        }
        let element = |i: usize, j: usize| {
            *to.add(i * to_stride + j) = *from.add(i * strides[0] + j * strides[1]);
        };
        let whole = if strides[0] == 1 { [rows - rows % 8, cols - cols % 8] } else { [0, 0] };
        for i in (0..whole[0]).step_by(8) {
            for j in (0..whole[1]).step_by(8) {
                isa.transpose8(
                    from.add(i + j * strides[1]),
                    strides[1],
                    to.add(i * to_stride + j),
                    to_stride,
                );
            }
        }
        for i in 0..rows {
            let first = if i < whole[0] { whole[1] } else { 0 };
            (first..cols).for_each(|j| element(i, j));
        }
    }
}

/// Copies `n` elements.
///
/// # Safety
/// They are readable and writable, and do not overlap.
#[inline(always)]
pub(crate) unsafe fn copy<I: Isa>(isa: I, from: *const f32, to: *mut f32, n: usize) {
    let whole = n - n % I::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        for i in (0..whole).step_by(I::LANES) {
            isa.store(to.add(i), isa.load(from.add(i)));
        }
        if whole < n {
            let v = isa.merge(isa.splat(0.0), from.add(whole), 0, n - whole);
            isa.store_first(to.add(whole), n - whole, v);
        }
    }
}

/// Sets `n` elements to zero.
///
/// # Safety
/// They are writable.
#[inline(always)]
pub(crate) unsafe fn fill<I: Isa>(isa: I, to: *mut f32, n: usize) {
    let whole = n - n % I::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        for i in (0..whole).step_by(I::LANES) {
            isa.store(to.add(i), isa.splat(0.0));
        }
        if whole < n {
            isa.store_first(to.add(whole), n - whole, isa.splat(0.0));
        }
    }
}
