//! Bringing operands of products of bytes into the workspace: rows whose terms are a multiple of four, moved by 128 where
//! they are to be, and panels in the layout of `bytes`.

use crate::Class;
use crate::Phase;
use crate::isa::{Isa, PANEL};
use crate::pack::batch_offset;
use crate::params::{argument, from_words, params, to_words};

/// Terms that one instruction sums.
pub(crate) const QUAD: usize = 4;

/// Bytes of a quad of every column of a panel.
pub(crate) const QUAD_BYTES: usize = QUAD * PANEL;

/// Bytes of the sums of columns before the panels of `n` columns.
pub(crate) fn sums_bytes(n: usize) -> usize {
    4 * n.div_ceil(PANEL) * PANEL
}

/// Bytes of a packed matrix with its sums of columns.
pub(crate) fn packed_bytes(k: usize, n: usize) -> usize {
    sums_bytes(n) + n.div_ceil(PANEL) * k.div_ceil(QUAD) * QUAD_BYTES
}

/// Bytes between rows of `k` terms in the workspace: as rows of f32 that take as many.
pub(crate) fn row_stride(k: usize) -> usize {
    4 * crate::pack::row_stride(k.div_ceil(4))
}

/// What an operand becomes.
const PANELS: usize = 0;
const ROWS: usize = 1;

params! {
    /// Matrices to be brought into the workspace: an item is a group of panels, or of rows, of one of them.
    Params {
        /// `PANELS` or `ROWS`.
        layout: usize,
        /// Whether elements of panels are signed; whether those of rows are moved by 128.
        flag: usize,
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
        /// Rows of panels lie at their stride in runs of so many, and the runs at another.
        run: usize,
        run_stride: usize,
        /// Axes over which there are several matrices, outermost first, and their strides.
        extents: [usize; 4],
        strides: [usize; 4],
        /// Panels or rows of an item.
        group: usize,
        source: usize,
        target: usize,
        /// Where the first matrix begins, and how many bytes each takes.
        target_offset: usize,
        matrix_bytes: usize,
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
    /// Rows that lie at their stride, and the stride of runs of them; all rows where there is one.
    pub(crate) run: usize,
    pub(crate) run_stride: usize,
    /// Axes over which there are several, outermost first, and their strides; a stride of 0 repeats a matrix.
    pub(crate) extents: [usize; 4],
    pub(crate) batch: [usize; 4],
}

/// Operands in the workspace, and the phases that bring them there.
pub(crate) struct Workspace {
    class: Class,
    at: usize,
    /// Bytes in use.
    pub(crate) bytes: usize,
    /// One phase per operand.
    pub(crate) phases: Vec<Phase>,
}

/// Where an operand is in the workspace, in bytes.
pub(crate) struct Placed {
    /// The first element.
    pub(crate) offset: usize,
    /// Strides of the batch axes.
    pub(crate) batch: [usize; 4],
}

impl Workspace {
    /// An empty one, for the argument at a position.
    pub(crate) fn new(class: Class, at: usize) -> Workspace {
        Workspace { class, at, bytes: 0, phases: Vec::new() }
    }

    /// Rows at the distance [`row_stride`], filled up with zeros to a multiple of four.
    pub(crate) fn rows(&mut self, source: Source, moved: bool) -> Placed {
        let [rows, cols] = source.size;
        let group = (1 << 17) / cols.max(1);
        self.add([ROWS, usize::from(moved)], source, [rows, group], rows * row_stride(cols))
    }

    /// Panels of right operands.
    pub(crate) fn panels(&mut self, source: Source, signed: bool) -> Placed {
        let [rows, cols] = source.size;
        let parts = [cols.div_ceil(PANEL), (1 << 16) / (rows * PANEL).max(1)];
        self.add([PANELS, usize::from(signed)], source, parts, packed_bytes(rows, cols))
    }

    /// Adds a phase for matrices of so many parts, which take so many bytes each.
    fn add(
        &mut self,
        [layout, flag]: [usize; 2],
        source: Source,
        [parts, group]: [usize; 2],
        matrix_bytes: usize,
    ) -> Placed {
        let (extents, batch) = (source.extents, source.batch);
        let matrix_bytes = matrix_bytes.next_multiple_of(64);
        // Only distinct matrices are stored.
        let distinct: [usize; 4] =
            std::array::from_fn(|i| if batch[i] == 0 { extents[i].min(1) } else { extents[i] });
        let mut placed = Placed { offset: self.bytes, batch: [0; 4] };
        let mut stride = matrix_bytes;
        for i in (0..4).rev() {
            if batch[i] != 0 {
                placed.batch[i] = stride;
            }
            stride *= distinct[i];
        }
        self.bytes += stride;
        let params = Params {
            layout,
            flag,
            rows: source.size[0],
            cols: source.size[1],
            row_stride: source.strides[0],
            col_stride: source.strides[1],
            run: source.run.max(1),
            run_stride: source.run_stride,
            extents: distinct,
            strides: batch,
            group: group.clamp(1, parts.max(1)),
            source: source.at,
            target: self.at,
            target_offset: placed.offset,
            matrix_bytes,
        };
        self.phases.push(Phase {
            kernel: self.class.kernels().pack_bytes,
            params: to_words(&params),
            items: distinct.iter().product::<usize>() * parts.div_ceil(params.group),
            grain: 1,
        });
        placed
    }
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 1;

/// Brings matrices into the workspace.
///
/// Arguments: those of the call; reads `source`, writes `target`, which must not overlap. Rows and columns may be 0.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`Params`].
#[inline(always)]
pub(crate) unsafe fn run<I: Isa>(
    _isa: I,
    params: *const u64,
    args: *const *mut u8,
    _scratch: *mut f32,
    begin: u64,
    end: u64,
) {
    // SAFETY: the parameters are ours; the extents of the call bound every access.
    unsafe {
        let p = from_words::<Params>(params);
        let source = argument(args, p.source).cast::<u8>();
        let target = argument(args, p.target).cast::<u8>().add(p.target_offset);
        let parts = if p.layout == PANELS { p.cols.div_ceil(PANEL) } else { p.rows };
        let groups = parts.div_ceil(p.group);
        for item in begin as usize..end as usize {
            let (matrix, first) = (item / groups, item % groups * p.group);
            let from = source.add(batch_offset(matrix, &p.extents, &p.strides)).cast_const();
            let to = target.add(matrix * p.matrix_bytes);
            for part in first..(first + p.group).min(parts) {
                if p.layout == ROWS {
                    let flip = if p.flag != 0 { 0x80 } else { 0 };
                    let row = from.add(part * p.row_stride);
                    copy_row(p.cols, (row, p.col_stride), to.add(part * row_stride(p.cols)), flip);
                    continue;
                }
                let panel_bytes = p.rows.div_ceil(QUAD) * QUAD_BYTES;
                let panel = to.add(sums_bytes(p.cols) + part * panel_bytes);
                let columns = (p.cols - part * PANEL).min(PANEL);
                let row = |i: usize| i / p.run * p.run_stride + i % p.run * p.row_stride;
                let at = |i: usize, j: usize| row(i) + (part * PANEL + j) * p.col_stride;
                let read = |i, j| from.add(at(i, j)).read();
                let write = |at, x| panel.add(at).write(x);
                panel.write_bytes(0, panel_bytes);
                let start = pack_columns(p.flag != 0, [p.rows, columns], read, write);
                to.add(4 * part * PANEL).cast::<[i32; PANEL]>().write_unaligned(start);
            }
        }
    }
}

/// Copies a row whose terms lie at a stride, with zeros up to a multiple of four; `flip` is added to every byte, modulo 256.
///
/// # Safety
/// The row is readable, and up to [`row_stride`] bytes are writable.
#[inline(always)]
unsafe fn copy_row(cols: usize, (from, stride): (*const u8, usize), to: *mut u8, flip: u8) {
    // SAFETY: j < cols; the stride of rows is a multiple of four.
    unsafe {
        if stride == 1 {
            for j in 0..cols {
                *to.add(j) = *from.add(j) ^ flip;
            }
        } else {
            for j in 0..cols {
                *to.add(j) = *from.add(j * stride) ^ flip;
            }
        }
        for j in cols..cols.next_multiple_of(QUAD) {
            *to.add(j) = 0;
        }
    }
}

/// Writes up to 32 columns of a matrix to where they lie in a panel, whose other bytes stay; gives what sums with them start
/// from where the left operand has been moved by 128: up, where the columns are signed, else down.
#[inline(always)]
pub(crate) fn pack_columns(
    signed: bool,
    [rows, columns]: [usize; 2],
    read: impl Fn(usize, usize) -> u8,
    mut write: impl FnMut(usize, u8),
) -> [i32; PANEL] {
    let mut start = [0i32; PANEL];
    for i in 0..rows {
        for (j, start) in start.iter_mut().enumerate().take(columns) {
            let x = read(i, j);
            write((i / QUAD * PANEL + j) * QUAD + i % QUAD, x);
            let change = if signed { -128 * i32::from(x.cast_signed()) } else { 128 * i32::from(x) };
            *start = start.wrapping_add(change);
        }
    }
    start
}
