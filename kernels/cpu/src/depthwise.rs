//! Convolutions with one input channel per group, computed directly.
//!
//! An item is a block of rows of one output channel. The input rows it needs are copied into scratch with their
//! padding, every `stride`-th column together, so that all taps read consecutive elements.

use margay_loops::{Conv, Packed, Phase, Prepared};

use crate::Class;
use crate::block::finish_row;
use crate::conv::{PLAIN_LAYOUT, Shape};
use crate::isa::{Isa, PANEL};
use crate::math::with_activation;
use crate::params::{argument, from_words, params, to_words};

params! {
    /// One convolution: an item is a block of rows of one output channel of one image.
    Params {
        shape: Shape,
        /// Output rows of a block.
        rows: usize,
    }
}

impl Params {
    /// Columns of an output row, in whole vectors of any class.
    #[inline(always)]
    fn row_len(&self) -> usize {
        self.shape.out_size[1].next_multiple_of(PANEL)
    }

    /// Columns of one part of an input row in scratch.
    #[inline(always)]
    fn part_len(&self) -> usize {
        let s = &self.shape;
        self.row_len() + (s.kernel[1] - 1) * s.dilations[1] / s.strides[1]
    }

    /// Input rows of a block.
    #[inline(always)]
    fn in_rows(&self) -> usize {
        let s = &self.shape;
        (self.rows - 1) * s.strides[0] + (s.kernel[0] - 1) * s.dilations[0] + 1
    }

    /// An output row, then the input rows.
    fn scratch(&self) -> usize {
        self.row_len() + self.in_rows() * self.shape.strides[1] * self.part_len()
    }
}

/// How a class runs the convolution, whose groups have one input channel each.
pub(crate) fn prepare(class: Class, call: &Conv, shape: Shape) -> Prepared {
    // Loads bound this kernel: an eighth of the speed of a product.
    let item_flops = class.item_flops() / 8;
    let row_flops = (2 * shape.out_size[1] * shape.taps()).max(1);
    let rows = (item_flops / row_flops).clamp(1, shape.out_size[0].max(1));
    let params = Params { shape, rows };
    Prepared {
        phases: vec![Phase {
            kernel: class.kernels().depthwise,
            params: to_words(&params),
            items: call.batch * call.out_channels * shape.out_size[0].div_ceil(rows),
            grain: (item_flops / (rows * row_flops)).max(1),
        }],
        scratch_bytes: 4 * params.scratch(),
        workspace_bytes: 0,
        packed: vec![Packed {
            operand: 1,
            layout: PLAIN_LAYOUT,
            bytes: 4 * call.out_channels * shape.taps(),
        }],
    }
}

/// The convolution.
///
/// Arguments: X, filters in `f32_plain`, bias if any, residual if any (layout of Y), Y. Any alignment of 4 bytes;
/// Y overlaps nothing.
///
/// # Safety
/// The contract of [`margay_loops::KernelFn`], with parameters from [`prepare`].
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
        let s = &p.shape;
        let blocks = s.out_size[0].div_ceil(p.rows);
        for item in begin as usize..end as usize {
            let (first, rest) = (item % blocks * p.rows, item / blocks);
            let (channel, image) = (rest % s.out_channels, rest / s.out_channels);
            let rows = p.rows.min(s.out_size[0] - first);
            let in_channel = image * s.in_channels + channel / s.out_group();
            let x = argument(args, s.x_at).add(in_channel * s.in_size[0] * s.in_size[1]);
            let at = (image * s.out_channels + channel) * s.pixels() + first * s.out_size[1];
            let filter = argument(args, s.filters_at).add(channel * s.taps());
            let y = argument(args, s.y_at).add(at);
            let finish = s.finish(args, channel, at);
            let strip = scratch.add(p.row_len());
            spread(p, x, first, strip);
            let bias = (!finish.bias.is_null()).then(|| *finish.bias);
            for row in 0..rows {
                sum_taps(isa, p, strip, filter, row, scratch);
                let shift = row * s.out_size[1];
                let y = y.add(shift);
                let residual =
                    if finish.residual.is_null() { finish.residual } else { finish.residual.add(shift) };
                with_activation!(s.activation, WORD => {
                    finish_row::<I, WORD>(isa, s.out_size[1], scratch, y, std::ptr::null(), bias, residual)
                });
            }
        }
    }
}

/// Copies the input rows of the block whose first output row is `first`: `[rows][stride][part]`, zero outside of
/// the image.
///
/// # Safety
/// `x` is a channel; `strip` has room for the rows of a block.
#[inline(always)]
unsafe fn spread(p: &Params, x: *const f32, first: usize, strip: *mut f32) {
    let s = &p.shape;
    let (stride, part) = (s.strides[1], p.part_len());
    for row in 0..p.in_rows() {
        // SAFETY: rows and columns outside of the image are not read, those beyond a part not written.
        unsafe {
            let to = strip.add(row * stride * part);
            std::ptr::write_bytes(to, 0, stride * part);
            let y = (first * s.strides[0] + row).wrapping_sub(s.pads[0]);
            if y >= s.in_size[0] {
                continue;
            }
            let from = x.add(y * s.in_size[1]);
            let columns = s.in_size[1].min((stride * part).saturating_sub(s.pads[1]));
            if stride == 1 {
                std::ptr::copy_nonoverlapping(from, to.add(s.pads[1]), columns);
                continue;
            }
            for phase in 0..stride.min(columns) {
                let at = phase + s.pads[1];
                let to = to.add(at % stride * part + at / stride);
                for (i, column) in (phase..columns).step_by(stride).enumerate() {
                    *to.add(i) = *from.add(column);
                }
            }
        }
    }
}

/// The sums of taps of output row `row` of a block.
///
/// # Safety
/// `strip` is filled by [`spread`]; `to` has room for a row in whole vectors.
#[inline(always)]
unsafe fn sum_taps<I: Isa>(
    isa: I,
    p: &Params,
    strip: *const f32,
    filter: *const f32,
    row: usize,
    to: *mut f32,
) {
    let s = &p.shape;
    let (stride, part) = (s.strides[1], p.part_len());
    // What a tap to the right adds to the part and to the column in it.
    let (part_step, column_step) = (s.dilations[1] % stride, s.dilations[1] / stride);
    for column in (0..s.out_size[1]).step_by(2 * I::LANES) {
        let mut sums = [isa.splat(0.0); 2];
        let mut weight = filter;
        for i in 0..s.kernel[0] {
            let line = (row * s.strides[0] + i * s.dilations[0]) * stride;
            let (mut which, mut shift) = (0, column);
            for _ in 0..s.kernel[1] {
                // SAFETY: `part_len` leaves room for every shift of a whole row of vectors.
                unsafe {
                    let from = strip.add((line + which) * part + shift);
                    let w = isa.splat(*weight);
                    sums[0] = isa.fma(w, isa.load(from), sums[0]);
                    sums[1] = isa.fma(w, isa.load(from.add(I::LANES)), sums[1]);
                    weight = weight.add(1);
                }
                which += part_step;
                shift += column_step;
                if which >= stride {
                    which -= stride;
                    shift += 1;
                }
            }
        }
        // SAFETY: `to` holds whole vectors.
        unsafe {
            isa.store(to.add(column), sums[0]);
            isa.store(to.add(column + I::LANES), sums[1]);
        }
    }
}
