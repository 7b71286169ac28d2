//! Convolutions of NHWC images to a few output channels, as inner products of windows and filters.
//!
//! A tile of a product computes a whole vector of output channels for each term. With fewer of them, vectors go along the
//! terms instead, which lie in runs in a strip of the image (see `conv_strips`) and in filters that an item brings into rows.

use crate::block::{Finish, apply, load_first, store_first};
use crate::conv::Shape;
use crate::conv_strips::{Strips, fill};
use crate::isa::{Isa, PANEL};
use crate::params::{argument, from_words, params, to_words};
use crate::{Class, Phase};

params! {
    /// One convolution: an item is a block of pixels of an image and one group.
    Params {
        shape: Shape,
        strips: Strips,
    }
}

/// Most output channels of a group.
const MOST: usize = 8;

/// Vector operations that adding up the lanes of a sum is worth.
const SUM: usize = 8;

/// How a class runs a convolution, and the elements of its scratch; `None` where products are better.
pub(crate) fn phase(class: Class, shape: Shape) -> Option<(Phase, usize)> {
    let (strips, columns) = (Strips::new(&shape)?, shape.out_group());
    if columns > MOST || strips.channels < shape.in_group() {
        return None;
    }
    let taps = strips.joined(&shape);
    let vectors = shape.taps() / taps * (taps * shape.in_group()).div_ceil(class.lanes());
    let tile = shape.terms() * columns.next_multiple_of(class.columns()) / class.lanes();
    if columns * (vectors + SUM) >= tile {
        return None;
    }
    let phase = Phase {
        kernel: class.kernels().conv_dots,
        params: to_words(&Params { shape, strips }),
        items: shape.batch * strips.blocks(&shape) * shape.groups,
        grain: 1,
    };
    let filters = columns * shape.terms();
    Some((phase, strips.pixels(&shape) * strips.stride + filters + strips.block[1] * columns))
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 1;

/// The convolution.
///
/// Arguments: as those of `conv`.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`phase`] and as many elements of scratch.
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
        let (per_image, terms, columns) = (p.strips.blocks(s), s.terms(), s.out_group());
        let blocks = s.batch * per_image;
        let filters = scratch.add(p.strips.pixels(s) * p.strips.stride);
        let sums = filters.add(columns * terms);
        for item in begin as usize..end as usize {
            let (block, group) = (item % blocks, item / blocks);
            let (image, place) = (block / per_image, p.strips.place(s, block % per_image));
            let [[first, rows], [left, width]] = place;
            let channel = group * columns;
            let panel = argument(args, s.filters_at).add(group * terms * PANEL);
            for j in 0..columns {
                for term in 0..terms {
                    *filters.add(j * terms + term) = *panel.add(term * PANEL + j);
                }
            }
            let channels = [image, group * s.in_group(), s.in_group()];
            fill(isa, s, &p.strips, args, channels, place, scratch);
            for row in 0..rows {
                multiply_row(isa, s, &p.strips, scratch, [row, width], filters, sums);
                let pixel = (image * s.out_size[0] + first + row) * s.out_size[1] + left;
                let at = pixel * s.out_channels + channel;
                finish(
                    isa,
                    s,
                    [width, columns],
                    sums,
                    argument(args, s.y_at).add(at),
                    s.finish(args, channel, at),
                );
            }
        }
    }
}

/// The sums of a row of pixels, `[pixel][column]`.
///
/// # Safety
/// The strip, rows of filters, and sums of a row are readable and writable.
#[inline(always)]
unsafe fn multiply_row<I: Isa>(
    isa: I,
    s: &Shape,
    strips: &Strips,
    strip: *const f32,
    [row, width]: [usize; 2],
    filters: *const f32,
    sums: *mut f32,
) {
    let columns = s.out_group();
    let mut column = 0;
    while column < columns {
        let here = match columns - column {
            1 => 1,
            2 | 3 => 2,
            _ => 4,
        };
        // As many sums in each case as keep the arithmetic busy.
        let most = 8 / here;
        let mut pixel = 0;
        while pixel < width {
            let many = pixel + most <= width;
            // SAFETY: pixels and columns are those of the row.
            unsafe {
                let place = Place { strip, row, pixel, filters: filters.add(column * s.terms()) };
                let to = sums.add(pixel * columns + column);
                match (here, many) {
                    (1, true) => dots::<I, 8, 1>(isa, s, strips, place, to),
                    (1, false) => dots::<I, 1, 1>(isa, s, strips, place, to),
                    (2, true) => dots::<I, 4, 2>(isa, s, strips, place, to),
                    (2, false) => dots::<I, 1, 2>(isa, s, strips, place, to),
                    (_, true) => dots::<I, 2, 4>(isa, s, strips, place, to),
                    (_, false) => dots::<I, 1, 4>(isa, s, strips, place, to),
                }
            }
            pixel += if many { most } else { 1 };
        }
        column += here;
    }
}

/// Where inner products find their operands.
#[derive(Clone, Copy)]
struct Place {
    strip: *const f32,
    row: usize,
    pixel: usize,
    /// The row of the first column.
    filters: *const f32,
}

/// The inner products of `M` neighbouring windows and `N` filters.
///
/// # Safety
/// As [`multiply_row`].
#[inline(always)]
unsafe fn dots<I: Isa, const M: usize, const N: usize>(
    isa: I,
    s: &Shape,
    strips: &Strips,
    place: Place,
    to: *mut f32,
) {
    let (taps, terms, columns) = (strips.joined(s), s.terms(), s.out_group());
    let run = taps * s.in_group();
    let mut sums = [[isa.splat(0.0); N]; M];
    for tap in (0..s.taps()).step_by(taps) {
        let [at, stride] = strips.window(s, place.row, tap);
        for term in (0..run).step_by(I::LANES) {
            let n = (run - term).min(I::LANES);
            // SAFETY: the run lies in the strip and in the row of a filter.
            unsafe {
                let left = place.strip.add(at + place.pixel * stride + term);
                let right = place.filters.add(tap * s.in_group() + term);
                let right: [I::V; N] = std::array::from_fn(|j| load_first(isa, right.add(j * terms), n));
                for (i, row) in sums.iter_mut().enumerate() {
                    let left = load_first(isa, left.add(i * stride), n);
                    for (sum, right) in row.iter_mut().zip(right) {
                        *sum = isa.fma(left, right, *sum);
                    }
                }
            }
        }
    }
    for (i, row) in sums.into_iter().enumerate() {
        for (j, sum) in row.into_iter().enumerate() {
            // SAFETY: the pixels and columns are those of the row.
            unsafe { *to.add(i * columns + j) = isa.sum(sum) }
        }
    }
}

/// Finishes the sums of a row of pixels and writes them.
///
/// # Safety
/// The row of the result is writable, and `f` begins at it.
#[inline(always)]
unsafe fn finish<I: Isa>(
    isa: I,
    s: &Shape,
    [width, columns]: [usize; 2],
    sums: *const f32,
    y: *mut f32,
    f: Finish,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if s.out_channels > 1 {
            return apply(isa, width, columns, (sums, columns), (y, s.out_channels), &f);
        }
        // Pixels are neighbours, and share their bias.
        if f.bias.is_null() {
            return apply(isa, 1, width, (sums, width), (y, width), &f);
        }
        let bias = isa.splat(*f.bias);
        for pixel in (0..width).step_by(I::LANES) {
            let n = (width - pixel).min(I::LANES);
            let v = isa.add(load_first(isa, sums.add(pixel), n), bias);
            store_first(isa, y.add(pixel), n, v);
        }
        apply(isa, 1, width, (y, width), (y, width), &Finish { bias: std::ptr::null(), ..f });
    }
}
