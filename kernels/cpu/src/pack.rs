//! Packing a matrix into panels of 32 columns, the layout every product reads its right operand in.
//!
//! Layout `f32_kn32` of a matrix of k rows and n columns: `[ceil(n / 32)][k][32]`, columns from n on zero. It
//! depends neither on the class nor on the other operand.

use margay_loops::Phase;

use crate::Class;
use crate::isa::{Isa, PANEL};
use crate::params::{argument, from_words, params, to_words};

/// Name of the layout of a packed right operand.
pub(crate) const LAYOUT: &str = "f32_kn32";

/// Elements of a packed matrix.
pub(crate) fn packed_len(k: usize, n: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * k
}

params! {
    /// Matrices to be packed into the workspace: an item is a group of panels of one of them.
    Params {
        /// Rows and columns of a matrix.
        k: usize,
        n: usize,
        /// Strides of rows and columns.
        row_stride: usize,
        col_stride: usize,
        /// Axes over which there are several matrices, outermost first, and their strides.
        extents: [usize; 4],
        strides: [usize; 4],
        /// Panels of an item.
        panels: usize,
        /// Arguments read and written, and where in the latter to begin.
        source: usize,
        target: usize,
        target_offset: usize,
    }
}

impl Params {
    /// The phase that packs; elements per item are chosen here.
    pub(crate) fn phase(mut self, class: Class) -> Phase {
        let panels = self.n.div_ceil(PANEL);
        self.panels = (65_536 / (self.k * PANEL).max(1)).clamp(1, panels.max(1));
        let items = self.extents.iter().product::<usize>() * panels.div_ceil(self.panels);
        Phase { kernel: class.kernels().pack, params: to_words(&self), items, grain: 1 }
    }
}

/// Packs matrices into the workspace.
///
/// Arguments: those of the call; reads `source`, writes `target`, which must not overlap. Any alignment. `k` or
/// `n` may be 0.
///
/// # Safety
/// The contract of [`margay_loops::KernelFn`], with parameters from [`Params`].
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
        let panels = p.n.div_ceil(PANEL);
        let groups = panels.div_ceil(p.panels).max(1);
        let (source, target) = (argument(args, p.source), argument(args, p.target).add(p.target_offset));
        for item in begin as usize..end as usize {
            let (matrix, group) = (item / groups, item % groups);
            let from = source.add(batch_offset(matrix, &p.extents, &p.strides));
            let to = target.add(matrix * packed_len(p.k, p.n));
            for panel in group * p.panels..((group + 1) * p.panels).min(panels) {
                pack_panel(
                    isa,
                    p.k,
                    p.n,
                    panel,
                    (from, [p.row_stride, p.col_stride]),
                    to.add(panel * p.k * PANEL),
                );
            }
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
pub(crate) unsafe fn pack_panel<I: Isa>(
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
                isa.transpose8(from.add(i + j * strides[1]), strides[1], to.add(i * to_stride + j), to_stride);
            }
        }
        for i in 0..rows {
            let first = if i < whole[0] { whole[1] } else { 0 };
            (first..cols).for_each(|j| element(i, j));
        }
    }
}
