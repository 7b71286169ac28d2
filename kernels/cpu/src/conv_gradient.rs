//! Derivatives of convolutions by their kernel over NHWC images: transposed patches times cotangents.
//!
//! The rows of the product are the terms of the convolution, in the order of `conv`; its columns are output channels;
//! its sums go over pixels. They are cut into parts, so that few channels give enough items: an item sums one part of
//! the pixels for a block of terms and a group of panels, into a place of its own in the workspace. It copies the runs of
//! a block of pixels into scratch as the convolution does. A second phase adds the parts up in their order and puts them
//! where the kernel has them.
//!
//! With one channel per group lanes are channels, and each line adds to every tap.

use margay_loops::{ConvKernelGradient, Needs};

use crate::Class;
use crate::block::{load_first, multiply_transposed, store_first};
use crate::conv::{Shape, gather};
use crate::depthwise::inside;
use crate::isa::{Isa, PANEL};
use crate::matmul::even;
use crate::pack::{copy_matrix, row_stride};
use crate::params::{argument, from_words, params, to_words};
use crate::prepared::expect_f32_operands;
use crate::{Phase, Prepared};

/// Positions of the arguments.
const X: usize = 0;
const CHANGES: usize = 1;
const RESULT: usize = 2;
const WORKSPACE: usize = 3;

params! {
    /// One derivative: an item of the first phase is a part of the pixels, a block of terms and a group of panels; one
    /// of the second a panel.
    Params {
        shape: Shape,
        depthwise: usize,
        /// Whether this is the second phase.
        joins: usize,
        /// Parts, and blocks of pixels (or lines) in all of them.
        parts: usize,
        blocks: usize,
        /// Pixels, terms and panels of a block.
        rows: usize,
        terms: usize,
        panels: usize,
    }
}

/// Most pixels of a block, and most terms: the terms of a block stay in the second level of the cache.
const BLOCK_ROWS: usize = 140;
const BLOCK_TERMS: usize = 512;

/// Most panels that share the copies of pixels, and their sums the cache with them.
const SHARING_PANELS: usize = 4;

/// Items that a few threads can balance.
const ENOUGH_ITEMS: usize = 16;

/// How a class runs the derivative; `Err` says why it cannot.
pub(crate) fn prepare(class: Class, call: &ConvKernelGradient) -> Result<Prepared, String> {
    expect_f32_operands(&call.forward.types)?;
    let shape = Shape::checked(&call.forward)?;
    let depthwise = shape.is_depthwise();
    let in_group = shape.out_group().div_ceil(PANEL);
    let (terms, panels) = (even(shape.terms(), BLOCK_TERMS), even(in_group, SHARING_PANELS));
    let rows = even(shape.pixels(), BLOCK_ROWS);
    let (blocks, width, pieces, results) = match depthwise {
        true => {
            let vectors = shape.out_channels.div_ceil(PANEL);
            (shape.batch * shape.out_size[0], shape.out_channels * shape.taps(), vectors, vectors)
        }
        false => {
            let pieces = shape.groups * in_group.div_ceil(panels) * shape.terms().div_ceil(terms);
            (shape.pixels().div_ceil(rows), shape.panels() * shape.terms() * PANEL, pieces, shape.panels())
        }
    };
    let parts = ENOUGH_ITEMS.div_ceil(pieces.max(1)).min(blocks);
    let sums =
        Params { shape, depthwise: usize::from(depthwise), joins: 0, parts, blocks, rows, terms, panels };
    let phase = |params: Params, items| Phase {
        kernel: class.kernels().conv_gradient,
        params: to_words(&params),
        items,
        grain: 1,
    };
    Ok(Prepared {
        phases: vec![phase(sums, parts * pieces), phase(Params { joins: 1, ..sums }, results)],
        scratch_bytes: if depthwise { 0 } else { 4 * rows * (row_stride(terms) + PANEL) },
        needs: Needs { workspace_bytes: 4 * parts * width, packed: Vec::new() },
    })
}

impl Params {
    /// The blocks of a part.
    #[inline(always)]
    fn part(&self, part: usize) -> std::ops::Range<usize> {
        part * self.blocks / self.parts..(part + 1) * self.blocks / self.parts
    }
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 3;

/// The derivative.
///
/// Arguments: X, the cotangent of Y, the result in OIHW order, workspace if any. Any alignment of 4 bytes; the result
/// overlaps nothing. Images, channels and sizes may be 0.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`prepare`].
#[inline(always)]
pub(crate) unsafe fn run<I: Isa>(
    isa: I,
    params: *const u64,
    args: *const *mut u8,
    scratch: *mut f32,
    begin: u64,
    end: u64,
) {
    // SAFETY: the parameters are ours; the extents of the call bound every access.
    unsafe {
        let p = from_words::<Params>(params);
        for item in begin as usize..end as usize {
            match (p.joins != 0, p.depthwise != 0) {
                (false, false) => sum_terms(isa, p, args, item, scratch),
                (false, true) => sum_taps(isa, p, args, item),
                (true, false) => join_panel(isa, p, args, item),
                (true, true) => join_channels(isa, p, args, item),
            }
        }
    }
}

/// Sums a part of the pixels for a block of terms and a group of panels.
///
/// # Safety
/// The arguments are those of the call, the item is one of it; scratch has room for a block.
#[inline(always)]
unsafe fn sum_terms<I: Isa>(isa: I, p: &Params, args: *const *mut u8, item: usize, scratch: *mut f32) {
    let s = &p.shape;
    let (terms, all_panels) = (s.terms(), s.panels());
    let in_group = all_panels / s.groups;
    let (term_blocks, panel_groups) = (terms.div_ceil(p.terms), in_group.div_ceil(p.panels));
    let (from, rest) = (item % term_blocks * p.terms, item / term_blocks);
    let (panel_group, rest) = (rest % panel_groups, rest / panel_groups);
    let (group, part) = (rest % s.groups, rest / s.groups);
    let to = (from + p.terms).min(terms);
    let first_panel = group * in_group + panel_group * p.panels;
    let last_panel = (first_panel + p.panels).min((group + 1) * in_group);
    let stride = row_stride(p.terms);
    // SAFETY: pixels, terms and panels are in range; the sums of the part are the item's alone.
    unsafe {
        let changes = scratch.add(p.rows * stride);
        let x = argument(args, X).add(group * s.in_group());
        let sums = argument(args, WORKSPACE).add(part * all_panels * terms * PANEL);
        for block in p.part(part) {
            let first = block * p.rows;
            let rows = p.rows.min(s.pixels() - first);
            gather(isa, s, x, [first, rows], [from, to], scratch, stride);
            for panel in first_panel..last_panel {
                let (channel, cols) = s.channels(panel);
                if cols < PANEL {
                    std::ptr::write_bytes(changes, 0, rows * PANEL);
                }
                let source = argument(args, CHANGES).add(first * s.out_channels + channel);
                copy_matrix(isa, rows, cols, (source, [s.out_channels, 1]), (changes, PANEL));
                let sum = sums.add((panel * terms + from) * PANEL);
                multiply_transposed(
                    isa,
                    rows,
                    scratch,
                    stride,
                    to - from,
                    changes,
                    sum,
                    block > p.part(part).start,
                );
            }
        }
    }
}

/// Adds up the parts of a panel, and puts them where the kernel has them.
///
/// # Safety
/// As [`sum_terms`].
#[inline(always)]
unsafe fn join_panel<I: Isa>(isa: I, p: &Params, args: *const *mut u8, panel: usize) {
    let s = &p.shape;
    let (terms, panels) = (s.terms(), s.panels());
    let (channel, cols) = s.channels(panel);
    let mut row = [0.0; PANEL];
    // SAFETY: the parts have every term of the panel; the result has those of its channels.
    unsafe {
        let result = argument(args, RESULT).add(channel * terms);
        for term in 0..terms {
            for i in (0..PANEL).step_by(I::LANES) {
                let mut sum = isa.splat(0.0);
                for part in 0..p.parts {
                    let at = ((part * panels + panel) * terms + term) * PANEL + i;
                    sum = isa.add(sum, isa.load(argument(args, WORKSPACE).add(at)));
                }
                isa.store(row.as_mut_ptr().add(i), sum);
            }
            // Terms are taps of channels here, channels of taps there.
            let place = term % s.in_group() * s.taps() + term / s.in_group();
            for (j, x) in row[..cols].iter().enumerate() {
                *result.add(j * terms + place) = *x;
            }
        }
    }
}

/// Sums a part of the lines for 32 channels, one of which is a group, into `[tap][channel]`.
///
/// # Safety
/// As [`sum_terms`].
#[inline(always)]
unsafe fn sum_taps<I: Isa>(isa: I, p: &Params, args: *const *mut u8, item: usize) {
    let s = &p.shape;
    let channels = s.out_channels;
    let vectors = channels.div_ceil(PANEL);
    let (begin, part) = (item % vectors * PANEL, item / vectors);
    for channel in (begin..channels.min(begin + PANEL)).step_by(I::LANES) {
        let n = (channels - channel).min(I::LANES);
        // SAFETY: the taps are those inside of the image; the sums of the part are the item's alone.
        unsafe {
            let sums = argument(args, WORKSPACE).add(part * s.taps() * channels + channel);
            for tap in 0..s.taps() {
                store_first(isa, sums.add(tap * channels), n, isa.splat(0.0));
            }
            for line in p.part(part) {
                let (image, row) = (line / s.out_size[0], line % s.out_size[0]);
                let rows = inside(row * s.strides[0], s.pads[0], s.dilations[0], s.kernel[0], s.in_size[0]);
                let changes = argument(args, CHANGES).add(line * s.out_size[1] * channels + channel);
                for ky in rows[0]..rows[1] {
                    let y = row * s.strides[0] + ky * s.dilations[0] - s.pads[0];
                    let x =
                        argument(args, X).add((image * s.in_size[0] + y) * s.in_size[1] * channels + channel);
                    for kx in 0..s.kernel[1] {
                        let at = sums.add((ky * s.kernel[1] + kx) * channels);
                        let mut sum = load_first(isa, at, n);
                        let offset = kx * s.dilations[1];
                        // Columns of the result whose tap lies in the image.
                        let first = s.pads[1].saturating_sub(offset).div_ceil(s.strides[1]);
                        let last = (s.in_size[1] + s.pads[1]).saturating_sub(offset).div_ceil(s.strides[1]);
                        for col in first..last.min(s.out_size[1]) {
                            let from = x.add((col * s.strides[1] + offset - s.pads[1]) * channels);
                            let change = load_first(isa, changes.add(col * channels), n);
                            sum = isa.fma(load_first(isa, from, n), change, sum);
                        }
                        store_first(isa, at, n, sum);
                    }
                }
            }
        }
    }
}

/// Adds up the parts of 32 channels, one of which is a group.
///
/// # Safety
/// As [`sum_terms`].
#[inline(always)]
unsafe fn join_channels<I: Isa>(isa: I, p: &Params, args: *const *mut u8, item: usize) {
    let (taps, channels) = (p.shape.taps(), p.shape.out_channels);
    let begin = item * PANEL;
    let mut row = [0.0; PANEL];
    for channel in (begin..channels.min(begin + PANEL)).step_by(I::LANES) {
        let n = (channels - channel).min(I::LANES);
        for tap in 0..taps {
            let mut sum = isa.splat(0.0);
            // SAFETY: the parts have every tap of the channels, and so has the result.
            unsafe {
                for part in 0..p.parts {
                    let at = argument(args, WORKSPACE).add((part * taps + tap) * channels + channel);
                    sum = isa.add(sum, load_first(isa, at, n));
                }
                store_first(isa, row.as_mut_ptr(), n, sum);
                for (j, x) in row[..n].iter().enumerate() {
                    *argument(args, RESULT).add((channel + j) * taps + tap) = *x;
                }
            }
        }
    }
}
