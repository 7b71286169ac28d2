//! Convolutions.

use margay_loops::{Conv, ConvKernelGradient};

use crate::Problem;
use crate::calls::{Arguments, Sums, finished, row_major};

/// A tap of a convolution: where it reads and what it belongs to.
struct Tap {
    /// Element of Y.
    y: usize,
    /// Element of X.
    x: usize,
    /// Element of K.
    k: usize,
}

/// The element of an image at a place (image, channel, row, column).
fn element(c: &Conv, [height, width]: [usize; 2], channels: usize, at: [usize; 4]) -> usize {
    let [image, channel, row, col] = at;
    match c.channels_last {
        true => ((image * height + row) * width + col) * channels + channel,
        false => ((image * channels + channel) * height + row) * width + col,
    }
}

/// Every product that a convolution adds up.
fn for_each_tap(c: &Conv, mut visit: impl FnMut(Tap)) {
    let (inner, outer) = (c.in_channels / c.groups, c.out_channels / c.groups);
    let ([height, width], [rows, cols], [kh, kw]) = (c.in_size, c.out_size, c.kernel);
    // The place that output `at` reads with tap `tap`, if it is no padding.
    let place = |axis: usize, at: usize, tap: usize| {
        (at * c.strides[axis] + tap * c.dilations[axis]).checked_sub(c.pads[axis])
    };
    for image in 0..c.batch {
        for row in 0..rows {
            for col in 0..cols {
                for o in 0..c.out_channels {
                    let y = element(c, c.out_size, c.out_channels, [image, o, row, col]);
                    for channel in 0..inner {
                        for i in 0..kh {
                            for j in 0..kw {
                                let at_row = place(0, row, i).filter(|&at| at < height);
                                let at_col = place(1, col, j).filter(|&at| at < width);
                                let (Some(at_row), Some(at_col)) = (at_row, at_col) else { continue };
                                let from = [image, o / outer * inner + channel, at_row, at_col];
                                let x = element(c, c.in_size, c.in_channels, from);
                                visit(Tap { y, x, k: ((o * inner + channel) * kh + i) * kw + j });
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The extents of images in their order.
fn extents(c: &Conv, [height, width]: [usize; 2], channels: usize) -> [usize; 4] {
    match c.channels_last {
        true => [c.batch, height, width, channels],
        false => [c.batch, channels, height, width],
    }
}

fn image(c: &Conv) -> [usize; 4] {
    extents(c, c.in_size, c.in_channels)
}

fn result(c: &Conv) -> [usize; 4] {
    extents(c, c.out_size, c.out_channels)
}

fn kernel(c: &Conv) -> [usize; 4] {
    [c.out_channels, c.in_channels / c.groups, c.kernel[0], c.kernel[1]]
}

pub(crate) fn run(c: &Conv, args: &mut Arguments<'_, '_>) -> Result<(), Problem> {
    let (x, k, zero) = (args.take(), args.take(), args.take_if(c.zero));
    let (offset, scale) = (args.take_if(c.epilogue.offset), args.take_if(c.epilogue.scale.is_some()));
    let (bias, residual) = (args.take_if(c.epilogue.bias), args.take_if(c.epilogue.residual));
    let out = args.take();
    let x = args.read(x, 0, &image(c), &row_major(&image(c)))?;
    let k = args.read(k, 0, &kernel(c), &row_major(&kernel(c)))?;
    let (extents, strides) = (result(c), row_major(&result(c)));
    let bias = bias.map(|b| args.read(b, 0, &[c.out_channels], &[1])).transpose()?;
    let added = residual.map(|r| args.read(r, 0, &extents, &strides)).transpose()?;
    let zero = zero.map(|zero| args.read(zero, 0, &[1], &[1])).transpose()?.map_or(0.0, |zero| zero[0]);
    let sums = Sums::of(&c.types, &c.epilogue, c.out_channels, [offset, scale], args)?;
    let mut y = vec![0.0; extents.iter().product()];
    for_each_tap(c, |tap| y[tap.y] += (x[tap.x] - zero) * k[tap.k]);
    for (at, y) in y.iter_mut().enumerate() {
        *y = sums.finished(*y, at % c.out_channels);
        let bias = bias.as_ref().map_or(0.0, |b| b[at % c.out_channels]);
        *y = finished(&c.epilogue, *y, bias, added.as_ref().map_or(0.0, |r| r[at]));
    }
    args.write(out, 0, &extents, &strides, &y)
}

pub(crate) fn kernel_gradient(c: &ConvKernelGradient, args: &mut Arguments<'_, '_>) -> Result<(), Problem> {
    let c = &c.forward;
    let (x, dy, out) = (args.take(), args.take(), args.take());
    let x = args.read(x, 0, &image(c), &row_major(&image(c)))?;
    let dy = args.read(dy, 0, &result(c), &row_major(&result(c)))?;
    let mut dk = vec![0.0; kernel(c).iter().product()];
    for_each_tap(c, |tap| dk[tap.k] += x[tap.x] * dy[tap.y]);
    args.write(out, 0, &kernel(c), &row_major(&kernel(c)), &dk)
}
