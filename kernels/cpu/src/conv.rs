//! Convolutions as matrix products: the filters times panels of 32 pixels, gathered on the fly.
//!
//! An item computes a block of output channels for a block of pixels of one image and group. It walks over the
//! input channels in blocks that stay in the cache: gathers the taps of 32 pixels into a panel in scratch, then
//! multiplies. Convolutions with one input channel per group go to `depthwise`.
//!
//! Layout `f32_rows` of filters O, C, h, w: one row of C · h · w elements per output channel, rows at a distance
//! that is a multiple of 16 elements and never of 256. Layout `f32_plain` is row-major.

use margay_loops::{Conv, Packed, Phase, Prepared};
use margay_tensor::{DType, Tensor};

use crate::block::{Block, Finish, Left, Right, epilogue_word, multiply};
use crate::isa::{Isa, PANEL};
use crate::pack::row_stride;
use crate::params::{Positions, argument, from_words, params, to_words};
use crate::{Class, depthwise};

/// Name of the layout of filters as rows of a matrix.
pub(crate) const ROWS_LAYOUT: &str = "f32_rows";

/// Name of the layout of depthwise filters.
pub(crate) const PLAIN_LAYOUT: &str = "f32_plain";

params! {
    /// The extents of a convolution, and where its arguments are.
    Shape {
        in_channels: usize,
        out_channels: usize,
        groups: usize,
        in_size: [usize; 2],
        out_size: [usize; 2],
        kernel: [usize; 2],
        strides: [usize; 2],
        pads: [usize; 2],
        dilations: [usize; 2],
        activation: usize,
        x_at: usize,
        filters_at: usize,
        bias_at: usize,
        residual_at: usize,
        y_at: usize,
    }
}

impl Shape {
    pub(crate) fn new(call: &Conv) -> Shape {
        let mut at = Positions::default();
        Shape {
            in_channels: call.in_channels,
            out_channels: call.out_channels,
            groups: call.groups,
            in_size: call.in_size,
            out_size: call.out_size,
            kernel: call.kernel,
            strides: call.strides,
            pads: call.pads,
            dilations: call.dilations,
            activation: epilogue_word(&call.epilogue),
            x_at: at.next(),
            filters_at: at.next(),
            bias_at: at.next_if(call.epilogue.bias),
            residual_at: at.next_if(call.epilogue.residual),
            y_at: at.next(),
        }
    }

    /// Input channels of a group.
    #[inline(always)]
    pub(crate) fn in_group(&self) -> usize {
        self.in_channels / self.groups
    }

    /// Output channels of a group.
    #[inline(always)]
    pub(crate) fn out_group(&self) -> usize {
        self.out_channels / self.groups
    }

    /// Taps of a filter per channel.
    #[inline(always)]
    pub(crate) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Pixels of an output channel.
    #[inline(always)]
    pub(crate) fn pixels(&self) -> usize {
        self.out_size[0] * self.out_size[1]
    }

    /// The epilogue of the output that begins at `channel` and at element `at`.
    ///
    /// # Safety
    /// `args` are those of the call.
    #[inline(always)]
    pub(crate) unsafe fn finish(&self, args: *const *mut u8, channel: usize, at: usize) -> Finish {
        // SAFETY: the positions are those of the call.
        let (bias, residual) = unsafe { (argument(args, self.bias_at), argument(args, self.residual_at)) };
        let shift = |p: *mut f32, by| if p.is_null() { p } else { p.wrapping_add(by) }.cast_const();
        Finish {
            bias: shift(bias, channel),
            bias_by_row: true,
            activation: self.activation,
            residual: shift(residual, at),
        }
    }
}

params! {
    /// One convolution: an item is a block of pixels and of output channels of one image and group.
    Params {
        shape: Shape,
        /// Output channels, panels of pixels, and input channels of a block.
        rows: usize,
        panels: usize,
        channels: usize,
    }
}

/// Most terms gathered at once: a panel of this depth stays in the first level of the cache.
const GATHERED_TERMS: usize = 256;

/// How a class runs a convolution; `Err` says why it cannot.
pub(crate) fn prepare(class: Class, call: &Conv) -> Result<Prepared, String> {
    let divides = |channels: usize| call.groups > 0 && channels.is_multiple_of(call.groups);
    if !divides(call.in_channels) || !divides(call.out_channels) {
        return Err(format!(
            "{} groups do not divide {} and {} channels",
            call.groups, call.in_channels, call.out_channels
        ));
    }
    if call.strides.contains(&0) || call.kernel.contains(&0) {
        return Err("strides and kernel sizes must be positive".to_owned());
    }
    let shape = Shape::new(call);
    if shape.in_group() == 1 {
        return Ok(depthwise::prepare(class, call, shape));
    }
    let terms = shape.in_group() * shape.taps();
    let panels = shape.pixels().div_ceil(PANEL);
    let channels = (class.k_block().min(GATHERED_TERMS) / shape.taps()).clamp(1, shape.in_group().max(1));

    // Enough panels that the filters are not read for a few pixels only; then as many output channels as make an item,
    // but enough that gathering does not show.
    let per_panel = 2 * PANEL * terms.max(1);
    let wanted = class.item_flops() / (per_panel * shape.out_group().max(1));
    let block = even(panels, wanted.max(4));
    let rows = even(shape.out_group(), (class.item_flops() / (per_panel * block)).max(64));

    let params = Params { shape, rows, panels: block, channels };
    let items = call.batch * call.groups * shape.out_group().div_ceil(rows) * panels.div_ceil(block);
    Ok(Prepared {
        phases: vec![Phase { kernel: class.kernels().conv, params: to_words(&params), items, grain: 1 }],
        scratch_bytes: 4 * PANEL * channels * shape.taps(),
        workspace_bytes: 0,
        packed: vec![Packed {
            operand: 1,
            layout: ROWS_LAYOUT,
            bytes: 4 * call.out_channels * row_stride(terms),
        }],
    })
}

/// Cuts `total` into equal parts of at most `most`, and says how large they are.
fn even(total: usize, most: usize) -> usize {
    total.div_ceil(total.div_ceil(most).max(1)).max(1)
}

/// The bytes of constant filters in the layout that [`prepare`] names.
pub(crate) fn pack_constant(call: &Conv, tensor: &Tensor) -> Result<Vec<u8>, String> {
    let shape = Shape::new(call);
    let expected = [call.out_channels, shape.in_group(), call.kernel[0], call.kernel[1]];
    let found = tensor.shape().iter().product::<usize>() == expected.iter().product::<usize>();
    if tensor.dtype() != DType::F32 || !found || tensor.shape().first() != Some(&call.out_channels) {
        return Err(format!(
            "expected constant filters f32{expected:?}, found {}{:?}",
            tensor.dtype(),
            tensor.shape()
        ));
    }
    if shape.in_group() == 1 {
        return Ok(tensor.bytes().to_vec());
    }
    let terms = shape.in_group() * shape.taps();
    let mut bytes = vec![0; 4 * call.out_channels * row_stride(terms)];
    if terms == 0 {
        return Ok(bytes);
    }
    for (to, row) in bytes.chunks_exact_mut(4 * row_stride(terms)).zip(tensor.bytes().chunks(4 * terms)) {
        to[..row.len()].copy_from_slice(row);
    }
    Ok(bytes)
}

/// The tensor of filters behind `f32_rows`.
pub(crate) fn unpack_rows(shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    let (&rows, rest) = shape.split_first().ok_or("expected filters, found a scalar")?;
    let terms = rest.iter().product::<usize>();
    if bytes.len() != 4 * rows * row_stride(terms) {
        return Err(format!("expected {} packed bytes, found {}", 4 * rows * row_stride(terms), bytes.len()));
    }
    let mut out = Vec::with_capacity(4 * rows * terms);
    bytes.chunks_exact(4 * row_stride(terms).max(1)).for_each(|row| out.extend_from_slice(&row[..4 * terms]));
    Tensor::from_bytes(DType::F32, shape, &out).map_err(|e| e.to_string())
}

/// The tensor of filters behind `f32_plain`.
pub(crate) fn unpack_plain(shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    Tensor::from_bytes(DType::F32, shape, bytes).map_err(|e| e.to_string())
}

/// The convolution.
///
/// Arguments: X, filters in `f32_rows`, bias if any (one element per output channel), residual if any (layout of
/// Y), Y. Any alignment of 4 bytes; Y overlaps nothing. Images, channels and sizes may be 0.
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
        let (taps, pixels, in_group, out_group) = (s.taps(), s.pixels(), s.in_group(), s.out_group());
        let plane = s.in_size[0] * s.in_size[1];
        let filter_stride = row_stride(in_group * taps);
        let blocks = pixels.div_ceil(PANEL).div_ceil(p.panels);
        let row_blocks = out_group.div_ceil(p.rows);
        for item in begin as usize..end as usize {
            // Pixels vary fastest: consecutive items read the same filters.
            let (first, rest) = (item % blocks * p.panels * PANEL, item / blocks);
            let (row, rest) = (rest % row_blocks * p.rows, rest / row_blocks);
            let (group, image) = (rest % s.groups, rest / s.groups);
            let rows = p.rows.min(out_group - row);
            let cols = (p.panels * PANEL).min(pixels - first);
            let channel = group * out_group + row;

            let x = argument(args, s.x_at).add((image * s.in_channels + group * in_group) * plane);
            let filters = argument(args, s.filters_at).add(channel * filter_stride);
            let at = (image * s.out_channels + channel) * pixels + first;
            let y = Block { at: argument(args, s.y_at).add(at), stride: pixels };
            let finish = s.finish(args, channel, at);
            let mut done = 0;
            loop {
                let channels = p.channels.min(in_group - done);
                let terms = channels * taps;
                let left = Left { at: filters.add(done * taps), stride: filter_stride, rows };
                let last = done + channels == in_group;
                for col in (0..cols).step_by(PANEL) {
                    gather(isa, s, x.add(done * plane), channels, first + col, scratch);
                    let right = Right { at: scratch, stride: 0, cols: PANEL.min(cols - col) };
                    let y = Block { at: y.at.add(col), stride: pixels };
                    let finish = finish.at(0, col, pixels);
                    multiply(isa, terms, left, right, y, done > 0, last.then_some(&finish));
                }
                if last {
                    break;
                }
                done += channels;
            }
        }
    }
}

/// Neighbouring pixels of a panel that lie in one vector and one row of the output.
#[derive(Clone, Copy, Default)]
struct Segment {
    /// The first pixel in the panel, and their number.
    lane: usize,
    len: usize,
    /// What the first tap of the first pixel reads.
    y: isize,
    x: isize,
}

/// The pixels of a segment whose tap lies inside of the image.
#[derive(Clone, Copy, Default)]
struct Run {
    /// The vector of the panel, and its lanes.
    vector: usize,
    from: usize,
    to: usize,
    /// Where lane 0 of the vector would read in a channel, even if that is outside.
    base: isize,
}

/// Writes the panel of the 32 pixels from `first` on: `[channels][taps][32]`, zero outside of the image.
///
/// # Safety
/// `x` has `channels` planes; `to` is writable.
#[inline(always)]
unsafe fn gather<I: Isa>(isa: I, s: &Shape, x: *const f32, channels: usize, first: usize, to: *mut f32) {
    let plane = s.in_size[0] * s.in_size[1];
    let stride = s.strides[1];
    let mut segments = [Segment::default(); PANEL];
    let segments = segments_of_panel(s, first, I::LANES, &mut segments);
    let mut runs = [Run::default(); PANEL];
    for tap in 0..s.taps() {
        let runs = runs_of_tap(s, tap, segments, I::LANES, &mut runs);
        for channel in 0..channels {
            let from = x.wrapping_add(channel * plane);
            let to = to.wrapping_add((channel * s.taps() + tap) * PANEL);
            let mut next = 0;
            for vector in 0..PANEL / I::LANES {
                // SAFETY: runs hold only lanes inside of the image; `to` is a whole panel.
                unsafe {
                    let to = to.add(vector * I::LANES);
                    let mut v = isa.splat(0.0);
                    if stride != 1 {
                        isa.store(to, v);
                    }
                    while next < runs.len() && runs[next].vector == vector {
                        let run = runs[next];
                        let base = from.wrapping_offset(run.base);
                        if stride != 1 {
                            for lane in run.from..run.to {
                                *to.add(lane) = *base.wrapping_add(lane * stride);
                            }
                        } else if run.to - run.from == I::LANES {
                            v = isa.load(base);
                        } else {
                            v = isa.merge(v, base, run.from, run.to);
                        }
                        next += 1;
                    }
                    if stride == 1 {
                        isa.store(to, v);
                    }
                }
            }
        }
    }
}

/// The segments of the 32 pixels from `first` on, in order.
#[inline(always)]
fn segments_of_panel<'a>(
    s: &Shape,
    first: usize,
    lanes: usize,
    segments: &'a mut [Segment; PANEL],
) -> &'a [Segment] {
    let pixels = PANEL.min(s.pixels() - first);
    let (mut row, mut col) = (first / s.out_size[1], first % s.out_size[1]);
    let (mut lane, mut count) = (0, 0);
    while lane < pixels {
        let len = (s.out_size[1] - col).min(pixels - lane).min(lanes - lane % lanes);
        segments[count] = Segment {
            lane,
            len,
            y: (row * s.strides[0]) as isize - s.pads[0] as isize,
            x: (col * s.strides[1]) as isize - s.pads[1] as isize,
        };
        count += 1;
        lane += len;
        col += len;
        if col == s.out_size[1] {
            (row, col) = (row + 1, 0);
        }
    }
    &segments[..count]
}

/// The runs of a tap, in order.
#[inline(always)]
fn runs_of_tap<'a>(
    s: &Shape,
    tap: usize,
    segments: &[Segment],
    lanes: usize,
    runs: &'a mut [Run; PANEL],
) -> &'a [Run] {
    let dy = (tap / s.kernel[1] * s.dilations[0]) as isize;
    let dx = (tap % s.kernel[1] * s.dilations[1]) as isize;
    let stride = s.strides[1] as isize;
    let [height, width] = s.in_size.map(|size| size as isize);
    let mut count = 0;
    for segment in segments {
        let (y, x) = (segment.y + dy, segment.x + dx);
        if y < 0 || y >= height {
            continue;
        }
        let (mut from, mut to) = (0, segment.len as isize);
        if x < 0 {
            from = (-x + stride - 1) / stride;
        }
        if x + (to - 1) * stride >= width {
            to = if x < width { (width - x + stride - 1) / stride } else { 0 };
        }
        if from < to {
            let lane = (segment.lane % lanes) as isize;
            runs[count] = Run {
                vector: segment.lane / lanes,
                from: (lane + from) as usize,
                to: (lane + to) as usize,
                base: y * width + x - lane * stride,
            };
            count += 1;
        }
    }
    &runs[..count]
}
