//! Convolutions with one channel per group over NHWC images, computed directly: lanes are channels.
//!
//! An item is a block of lines of one image. Layout `f32_channels` of filters C, 1, h, w: `[h][w][C]`.

use margay_loops::{Conv, Needs, Packed};
use margay_tensor::{DType, Tensor};

use crate::Class;
use crate::block::{ACTIVATION, finish_vector, load_first, store_first};
use crate::conv::Shape;
use crate::isa::Isa;
use crate::math::with_activation;
use crate::params::{argument, from_words, params, to_words};
use crate::{Phase, Prepared};

/// Name of the layout of filters, channels innermost.
pub(crate) const LAYOUT: &str = "f32_channels";

/// Neighbouring pixels whose sums are in registers together.
const PIXELS: usize = 6;

params! {
    /// One convolution: an item is a block of lines of one image.
    Params {
        shape: Shape,
        /// Lines of a block.
        lines: usize,
    }
}

/// How a class runs the convolution, whose groups are single channels.
pub(crate) fn prepare(class: Class, call: &Conv, mut shape: Shape) -> Prepared {
    // Loads bound this kernel: a quarter of the speed of a product.
    let item_flops = class.item_flops() / 4;
    let line_flops = (2 * shape.out_size[1] * shape.out_channels * shape.taps()).max(1);
    let lines = (item_flops / line_flops).clamp(1, shape.out_size[0].max(1));
    let (mut phases, workspace_bytes) = shape.place_filters(class, call, true);
    phases.push(Phase {
        kernel: class.kernels().depthwise,
        params: to_words(&Params { shape, lines }),
        items: call.batch * shape.out_size[0].div_ceil(lines),
        grain: 1,
    });
    let packed = Packed { operand: 1, layout: LAYOUT.into(), bytes: 4 * call.out_channels * shape.taps() };
    Prepared {
        phases,
        scratch_bytes: 0,
        needs: Needs { workspace_bytes, packed: if call.k_packed { vec![packed] } else { Vec::new() } },
    }
}

/// The bytes of filters in the layout `f32_channels`.
pub(crate) fn pack_filters(values: &[f32], channels: usize) -> Vec<u8> {
    let taps = values.len() / channels.max(1);
    let at = |i: usize| values[i % channels * taps + i / channels];
    (0..values.len()).flat_map(|i| at(i).to_ne_bytes()).collect()
}

/// The tensor of filters behind `f32_channels`.
pub(crate) fn unpack_filters(shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    let elements = shape.iter().product::<usize>();
    let channels = shape.first().copied().unwrap_or(0);
    if bytes.len() != 4 * elements {
        return Err(format!("expected {} packed bytes, found {}", 4 * elements, bytes.len()));
    }
    let taps = elements / channels.max(1);
    let at = |i: usize| 4 * (i % taps * channels + i / taps);
    let out: Vec<u8> = (0..elements).flat_map(|i| bytes[at(i)..at(i) + 4].iter().copied()).collect();
    Tensor::from_bytes(DType::F32, shape, &out).map_err(|e| e.to_string())
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 3;

/// The convolution.
///
/// Arguments: X, filters (in `f32_channels`, or row-major), bias if any, residual if any (layout of Y), Y, workspace if
/// any. Any alignment of 4 bytes; Y overlaps nothing. Images, channels and sizes may be 0.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`prepare`].
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
        let s = &p.shape;
        let blocks = s.out_size[0].div_ceil(p.lines);
        for item in begin as usize..end as usize {
            let (first, image) = (item % blocks * p.lines, item / blocks);
            for line in first..(first + p.lines).min(s.out_size[0]) {
                run_line(isa, s, args, image, line);
            }
        }
    }
}

/// One line of an image.
///
/// # Safety
/// `args` are those of the call; the line lies in the result.
#[inline(always)]
unsafe fn run_line<I: Isa>(isa: I, s: &Shape, args: *const *mut u8, image: usize, line: usize) {
    let (channels, width) = (s.in_channels, s.out_size[1]);
    // Kernel rows inside of the image.
    let rows = inside(line * s.strides[0], s.pads[0], s.dilations[0], s.kernel[0], s.in_size[0]);
    let all_taps = |col: usize| {
        inside(col * s.strides[1], s.pads[1], s.dilations[1], s.kernel[1], s.in_size[1]) == [0, s.kernel[1]]
    };
    for channel in (0..channels).step_by(I::LANES) {
        let n = (channels - channel).min(I::LANES);
        let mut col = 0;
        while col < width {
            // Blocks of nearly equal width: the sums of a single pixel would wait for each other.
            let count = (width - col).div_ceil((width - col).div_ceil(PIXELS));
            let whole = n == I::LANES && all_taps(col) && all_taps(col + count - 1);
            let place = [image, line, col];
            let mut sums = [isa.splat(0.0); PIXELS];
            // SAFETY: rows are those inside of the image.
            unsafe {
                match (count, whole) {
                    (1, true) => pixels::<I, 1>(isa, s, args, place, channel, rows, &mut sums),
                    (2, true) => pixels::<I, 2>(isa, s, args, place, channel, rows, &mut sums),
                    (3, true) => pixels::<I, 3>(isa, s, args, place, channel, rows, &mut sums),
                    (4, true) => pixels::<I, 4>(isa, s, args, place, channel, rows, &mut sums),
                    (5, true) => pixels::<I, 5>(isa, s, args, place, channel, rows, &mut sums),
                    (_, true) => pixels::<I, 6>(isa, s, args, place, channel, rows, &mut sums),
                    (1, false) => edge::<I, 1>(isa, s, args, place, channel, n, rows, &mut sums),
                    (2, false) => edge::<I, 2>(isa, s, args, place, channel, n, rows, &mut sums),
                    (3, false) => edge::<I, 3>(isa, s, args, place, channel, n, rows, &mut sums),
                    (4, false) => edge::<I, 4>(isa, s, args, place, channel, n, rows, &mut sums),
                    (5, false) => edge::<I, 5>(isa, s, args, place, channel, n, rows, &mut sums),
                    (_, false) => edge::<I, 6>(isa, s, args, place, channel, n, rows, &mut sums),
                }
                let pixel = (image * s.out_size[0] + line) * width + col;
                with_activation!(s.epilogue & ACTIVATION, WORD => {
                    for (i, sum) in sums.into_iter().enumerate().take(count) {
                        let at = (pixel + i) * channels + channel;
                        let v = finish_vector::<I, WORD>(isa, sum, n, &s.finish(args, channel, at));
                        store_first(isa, argument(args, s.y_at).add(at), n, v);
                    }
                });
            }
            col += count;
        }
    }
}

/// The taps of a window inside of an image; none as an empty range.
#[inline(always)]
pub(crate) fn inside(start: usize, pad: usize, dilation: usize, taps: usize, size: usize) -> [usize; 2] {
    let first = pad.saturating_sub(start).div_ceil(dilation);
    let end = (size + pad).saturating_sub(start).div_ceil(dilation).min(taps);
    [first.min(end), end]
}

/// Adds up `N` neighbouring pixels of which all taps of a kernel row lie inside of the image, in a vector of channels.
///
/// # Safety
/// As [`run_line`]; `rows` are the kernel rows inside of the image.
#[inline(always)]
unsafe fn pixels<I: Isa, const N: usize>(
    isa: I,
    s: &Shape,
    args: *const *mut u8,
    [image, line, col]: [usize; 3],
    channel: usize,
    rows: [usize; 2],
    out: &mut [I::V; PIXELS],
) {
    let channels = s.in_channels;
    let mut sums = [isa.splat(0.0); N];
    // SAFETY: the caller's promise.
    unsafe {
        let x = argument(args, s.x_at).add(image * s.in_size[0] * s.in_size[1] * channels + channel);
        let filters = argument(args, s.filters_at).add(channel);
        for ky in rows[0]..rows[1] {
            let y = line * s.strides[0] + ky * s.dilations[0] - s.pads[0];
            for kx in 0..s.kernel[1] {
                let w = isa.load(filters.add((ky * s.kernel[1] + kx) * channels));
                let at = col * s.strides[1] + kx * s.dilations[1] - s.pads[1];
                let from = x.add((y * s.in_size[1] + at) * channels);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = isa.fma(w, isa.load(from.add(i * s.strides[1] * channels)), *sum);
                }
            }
        }
    }
    out[..N].copy_from_slice(&sums);
}

/// Adds up `N` neighbouring pixels of any taps, in `n <= LANES` channels.
///
/// # Safety
/// As [`pixels`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a place in the convolution has this many numbers")]
unsafe fn edge<I: Isa, const N: usize>(
    isa: I,
    s: &Shape,
    args: *const *mut u8,
    [image, line, col]: [usize; 3],
    channel: usize,
    n: usize,
    rows: [usize; 2],
    out: &mut [I::V; PIXELS],
) {
    let channels = s.in_channels;
    let mut sums = [isa.splat(0.0); N];
    // SAFETY: the caller's promise; what lies outside of the image is not read.
    unsafe {
        let x = argument(args, s.x_at).add(image * s.in_size[0] * s.in_size[1] * channels + channel);
        let filters = argument(args, s.filters_at).add(channel);
        for ky in rows[0]..rows[1] {
            let y = line * s.strides[0] + ky * s.dilations[0] - s.pads[0];
            let from = x.add(y * s.in_size[1] * channels);
            for kx in 0..s.kernel[1] {
                let w = load_first(isa, filters.add((ky * s.kernel[1] + kx) * channels), n);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let at = ((col + i) * s.strides[1] + kx * s.dilations[1]).wrapping_sub(s.pads[1]);
                    if at < s.in_size[1] {
                        *sum = isa.fma(w, load_first(isa, from.add(at * channels), n), *sum);
                    }
                }
            }
        }
    }
    out[..N].copy_from_slice(&sums);
}
