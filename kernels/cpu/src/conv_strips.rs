//! Convolutions over NHWC images as products that read windows where they overlap.
//!
//! An item computes a few rows of pixels of one image, or a part of one row, for a group of panels. It copies the part of the image that their
//! windows reach into scratch, zero outside of the image: a *strip*, in which each pixel is once, where `conv` copies it
//! for every tap. Windows of neighbours overlap there, so that the terms of a row of pixels are rows of a product whose
//! distance is that of the windows. Channels go through the strip in blocks that stay in the second level of the cache.
//!
//! Filters lie as those of `conv`.

use crate::block::{Block, Left, Right, multiply};
use crate::conv::{self, Shape};
use crate::isa::{Isa, PANEL};
use crate::matmul::even;
use crate::pack::{self, row_stride};
use crate::params::{argument, from_words, params, to_words};
use crate::{Class, Phase};

params! {
    /// One convolution: an item is a block of pixels of an image and of panels of one group.
    Params {
        shape: Shape,
        strips: Strips,
        panels: usize,
    }
}

params! {
    /// How images are cut into strips.
    Strips {
        /// Rows and columns of the result of a block.
        block: [usize; 2],
        /// Input channels of a block.
        channels: usize,
        /// Distance between pixels of a strip.
        stride: usize,
    }
}

/// Most pixels of a block of several rows.
const BLOCK_PIXELS: usize = 256;

/// Most pixels of a row of a block.
const BLOCK_COLUMNS: usize = 512;

/// A part of the result: the first row or column, and how many.
type Part = [usize; 2];

/// Elements of a strip that stays in the cache, unless so few channels as are worth it have more.
const STRIP: usize = 1 << 16;

/// Most elements of a strip, in multiples of [`STRIP`].
const MOST_STRIPS: usize = 4;

/// Pixels of a row below which tiles of rows are too low.
const LEAST_ROW: usize = 8;

/// Terms of a product below which reading and writing its sums takes longer than adding to them.
const LEAST_TERMS: usize = 24;

impl Strips {
    /// Strips of whole channels where these fit; `None` where they would be far larger than the cache, or than copies for every tap
    /// together, as for taps far apart.
    pub(crate) fn new(s: &Shape) -> Option<Strips> {
        let columns = even(s.out_size[1], BLOCK_COLUMNS);
        let block = [even(s.out_size[0], (BLOCK_PIXELS / columns).max(1)), columns];
        let whole = Strips { block, channels: s.in_group(), stride: s.in_group() };
        let most = (STRIP / whole.pixels(s).max(1)).max(PANEL / 2);
        let channels = even(s.in_group(), most).next_multiple_of(PANEL / 2).min(s.in_group());
        // Neighbours at a power of two would push each other out of the cache.
        let strips = match channels == s.in_group() && !channels.is_multiple_of(256) {
            true => whole,
            false => Strips { block, channels, stride: row_stride(channels) },
        };
        let pixels = strips.pixels(s);
        let fits = pixels <= block[0] * block[1] * s.taps()
            && pixels.saturating_mul(strips.stride) <= MOST_STRIPS * STRIP;
        fits.then_some(strips)
    }

    /// What windows of so many rows, or columns, of the result reach.
    #[inline(always)]
    fn reach(s: &Shape, axis: usize, count: usize) -> usize {
        count.saturating_sub(1) * s.strides[axis] + (s.kernel[axis] - 1) * s.dilations[axis] + 1
    }

    /// Columns of the strip of a block.
    #[inline(always)]
    fn width(&self, s: &Shape) -> usize {
        Strips::reach(s, 1, self.block[1])
    }

    /// Pixels of the strip of a block.
    pub(crate) fn pixels(&self, s: &Shape) -> usize {
        Strips::reach(s, 0, self.block[0]).saturating_mul(self.width(s))
    }

    /// Blocks of an image.
    #[inline(always)]
    pub(crate) fn blocks(&self, s: &Shape) -> usize {
        s.out_size[0].div_ceil(self.block[0]) * s.out_size[1].div_ceil(self.block[1])
    }

    /// The rows and the columns of a block of an image.
    #[inline(always)]
    pub(crate) fn place(&self, s: &Shape, block: usize) -> [Part; 2] {
        let across = s.out_size[1].div_ceil(self.block[1]);
        let part = |axis: usize, number: usize| {
            let first = number * self.block[axis];
            [first, self.block[axis].min(s.out_size[axis] - first)]
        };
        [part(0, block / across), part(1, block % across)]
    }

    /// Taps of a row of the kernel that are one run of terms.
    #[inline(always)]
    pub(crate) fn joined(&self, s: &Shape) -> usize {
        let together = [self.channels, self.stride] == [s.in_group(); 2] && s.dilations[1] == 1;
        if together { s.kernel[1] } else { 1 }
    }

    /// Where the terms of a tap begin in a strip for the first pixel of its row `row`, and the distance of those of the next
    /// pixel.
    #[inline(always)]
    pub(crate) fn window(&self, s: &Shape, row: usize, tap: usize) -> [usize; 2] {
        let (ky, kx) = (tap / s.kernel[1], tap % s.kernel[1]);
        let pixel = (row * s.strides[0] + ky * s.dilations[0]) * self.width(s) + kx * s.dilations[1];
        [pixel * self.stride, s.strides[1] * self.stride]
    }
}

/// How a class runs a convolution, and the elements of its scratch; `None` where copies for every tap are better.
pub(crate) fn phase(class: Class, shape: Shape) -> Option<(Phase, usize)> {
    // Without overlaps there is nothing to save.
    let apart = (0..2).all(|axis| shape.strides[axis] >= shape.kernel[axis]);
    if apart || shape.out_size[1] < LEAST_ROW {
        return None;
    }
    let strips = Strips::new(&shape)?;
    if strips.joined(&shape) * strips.channels < LEAST_TERMS {
        return None;
    }
    let blocks = shape.batch * strips.blocks(&shape);
    let panels = conv::shared_panels(&shape, blocks);
    let phase = Phase {
        kernel: class.kernels().conv_strips,
        params: to_words(&Params { shape, strips, panels }),
        items: blocks * shape.parts(panels),
        grain: 1,
    };
    Some((phase, strips.pixels(&shape) * strips.stride))
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
        let in_group = s.panels() / s.groups;
        let (per_image, parts) = (p.strips.blocks(s), in_group.div_ceil(p.panels));
        let blocks = s.batch * per_image;
        for item in begin as usize..end as usize {
            // Blocks vary fastest: consecutive items read the same filters.
            let (block, rest) = (item % blocks, item / blocks);
            let (part, group) = (rest % parts, rest / parts);
            let (image, place) = (block / per_image, p.strips.place(s, block % per_image));
            let panels = group * in_group + part * p.panels;
            let panels = panels..(panels + p.panels).min((group + 1) * in_group);
            let mut done = 0;
            while done < s.in_group() {
                let channels = p.strips.channels.min(s.in_group() - done);
                fill(isa, s, &p.strips, args, [image, group * s.in_group() + done, channels], place, scratch);
                for panel in panels.clone() {
                    add_panel(isa, s, &p.strips, args, scratch, image, place, [done, channels], panel);
                }
                done += channels;
            }
        }
    }
}

/// Adds what the channels of a strip contribute to the output channels of a panel; the last channels finish them.
///
/// # Safety
/// `args` are those of the call, and the strip is filled.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a place in the convolution has this many numbers")]
unsafe fn add_panel<I: Isa>(
    isa: I,
    s: &Shape,
    strips: &Strips,
    args: *const *mut u8,
    strip: *const f32,
    image: usize,
    [[first, rows], [left, columns]]: [Part; 2],
    [done, channels]: [usize; 2],
    panel: usize,
) {
    let taps = strips.joined(s);
    let (channel, cols) = s.channels(panel);
    for tap in (0..s.taps()).step_by(taps) {
        let last = tap + taps == s.taps() && done + channels == s.in_group();
        let term = panel * s.terms() + tap * s.in_group() + done;
        // SAFETY: the extents of the call bound every access.
        unsafe {
            let right =
                Right { at: argument(args, s.filters_at).add(term * PANEL), stride: s.terms() * PANEL, cols };
            for row in 0..rows {
                let [at, stride] = strips.window(s, row, tap);
                let a = Left { at: strip.add(at), stride, rows: columns };
                let pixel = (image * s.out_size[0] + first + row) * s.out_size[1] + left;
                let at = pixel * s.out_channels + channel;
                let y = Block { at: argument(args, s.y_at).add(at), stride: s.out_channels };
                let finish = s.finish(args, channel, at);
                multiply(isa, taps * channels, a, right, y, tap + done > 0, last.then_some(&finish));
            }
        }
    }
}

/// Fills a strip with `channels` channels of an image from `channel` on, as far as windows of a block reach.
///
/// # Safety
/// `args` are those of the call; the strip has room.
#[inline(always)]
pub(crate) unsafe fn fill<I: Isa>(
    isa: I,
    s: &Shape,
    strips: &Strips,
    args: *const *mut u8,
    [image, channel, channels]: [usize; 3],
    [[first, rows], [left, columns]]: [Part; 2],
    strip: *mut f32,
) {
    let (stride, width) = (strips.stride, strips.width(s));
    // Pixels that windows reach: before the image, inside of it, from one on, and in all.
    let (begin, count) = (left * s.strides[1], Strips::reach(s, 1, columns));
    let before = s.pads[1].saturating_sub(begin).min(count);
    let start = (begin + before).saturating_sub(s.pads[1]).min(s.in_size[1]);
    let inside = (s.in_size[1] - start).min(count - before);
    for row in 0..Strips::reach(s, 0, rows) {
        let line = (first * s.strides[0] + row).wrapping_sub(s.pads[0]);
        // SAFETY: what is read lies inside of the image, what is written in the row of the strip.
        unsafe {
            let to = strip.add(row * width * stride);
            if line >= s.in_size[0] {
                pack::fill(isa, to, count * stride);
                continue;
            }
            let pixel = (image * s.in_size[0] + line) * s.in_size[1] + start;
            let from = argument(args, s.x_at).add(pixel * s.in_channels + channel);
            pack::fill(isa, to, before * stride);
            if channels == stride && channels == s.in_channels {
                pack::copy(isa, from, to.add(before * stride), inside * stride);
            } else {
                for pixel in 0..inside {
                    pack::copy(
                        isa,
                        from.add(pixel * s.in_channels),
                        to.add((before + pixel) * stride),
                        channels,
                    );
                }
            }
            pack::fill(isa, to.add((before + inside) * stride), (count - before - inside) * stride);
        }
    }
}
