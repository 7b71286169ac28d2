//! Convolutions over NHWC images as matrix products: pixels times filters.
//!
//! The rows of the product are the pixels of the result, all images together; its columns are output channels; its
//! terms are taps and input channels, in the order kernel row, kernel column, channel. In NHWC a row of the kernel
//! lies in one piece under a pixel, so the terms of a pixel are a few runs of contiguous elements.
//!
//! An item computes a block of pixels for a group of panels. It walks over the terms in blocks that stay in the cache:
//! copies the runs of its pixels into scratch, zero outside of the image, then multiplies. A 1x1 convolution needs no
//! copies; of one group it is a matrix product as it stands. Convolutions with one channel per group go to `depthwise`,
//! those to a few channels to `conv_dots`, and those of windows that overlap in long rows to `conv_strips`.
//!
//! Layout `f32_taps32_gG` of filters O, C, h, w of G groups: `[panel][h][w][C][32]`. The output channels of a group fill
//! its panels one after the other, the last one with zeros after them. Layout `f32_points32` of filters O, C, 1, 1 of one
//! group: `f32_kn32` of their transpose. Layout `points32 STORAGE`: the same of what is not signs, which `drawn` makes.

use margay_loops::{BatchAxis, Conv, MatLayout, MatMul, Needs, Packed, ProductTypes};
use margay_tensor::{DType, Signs, Storage, StoredTensor, Tensor};

use crate::block::{Block, Finish, Left, Right, epilogue_word, multiply};
use crate::drawn::Order;
use crate::isa::{Isa, PANEL};
use crate::matmul::even;
use crate::pack::{copy, fill, row_stride};
use crate::params::{Positions, argument, from_words, params, to_words};
use crate::prepared::expect_f32_operands;
use crate::{Class, conv_dots, conv_strips, depthwise, filters, matmul};
use crate::{Phase, Prepared};

/// The layout of filters as panels of taps, up to the number of groups.
const TAPS_LAYOUT: &str = "f32_taps32_g";

/// Name of the layout of filters of one tap.
pub(crate) const POINTS_LAYOUT: &str = "f32_points32";

params! {
    /// The extents of a convolution, and where its arguments are.
    Shape {
        batch: usize,
        in_channels: usize,
        out_channels: usize,
        groups: usize,
        in_size: [usize; 2],
        out_size: [usize; 2],
        kernel: [usize; 2],
        strides: [usize; 2],
        pads: [usize; 2],
        dilations: [usize; 2],
        epilogue: usize,
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
            batch: call.batch,
            in_channels: call.in_channels,
            out_channels: call.out_channels,
            groups: call.groups,
            in_size: call.in_size,
            out_size: call.out_size,
            kernel: call.kernel,
            strides: call.strides,
            pads: call.pads,
            dilations: call.dilations,
            epilogue: epilogue_word(&call.epilogue),
            x_at: at.next(),
            filters_at: at.next(),
            bias_at: at.next_if(call.epilogue.bias),
            residual_at: at.next_if(call.epilogue.residual),
            y_at: at.next(),
        }
    }

    /// The shape of a call that can be run; `Err` says why it cannot.
    pub(crate) fn checked(call: &Conv) -> Result<Shape, String> {
        if !call.channels_last {
            return Err("images lie in NCHW order, expected NHWC".to_owned());
        }
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
        Ok(Shape::new(call))
    }

    /// Filters that are no constant go into the workspace first, and are read there.
    pub(crate) fn place_filters(
        &mut self,
        class: Class,
        call: &Conv,
        depthwise: bool,
    ) -> (Vec<Phase>, usize) {
        if call.k_packed {
            return (Vec::new(), 0);
        }
        let workspace_at = self.y_at + 1;
        let (phase, len) = filters::phase(class, self, depthwise, workspace_at);
        // A workspace of no bytes is no argument; nobody reads it then.
        if len == 0 {
            return (Vec::new(), 0);
        }
        self.filters_at = workspace_at;
        (vec![phase], 4 * len)
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

    /// Pixels of the result, all images together.
    #[inline(always)]
    pub(crate) fn pixels(&self) -> usize {
        self.batch * self.out_size[0] * self.out_size[1]
    }

    /// Terms of a sum.
    #[inline(always)]
    pub(crate) fn terms(&self) -> usize {
        self.in_group() * self.taps()
    }

    /// Panels of filters, of all groups together.
    #[inline(always)]
    pub(crate) fn panels(&self) -> usize {
        self.groups * self.out_group().div_ceil(PANEL)
    }

    /// Items of a block of pixels that each compute so many panels of a group at most.
    pub(crate) fn parts(&self, panels: usize) -> usize {
        self.groups * self.out_group().div_ceil(PANEL).div_ceil(panels)
    }

    /// The output channels of a panel: the first one, and how many.
    #[inline(always)]
    pub(crate) fn channels(&self, panel: usize) -> (usize, usize) {
        let in_group = self.out_group().div_ceil(PANEL);
        let (group, first) = (panel / in_group, panel % in_group * PANEL);
        (group * self.out_group() + first, PANEL.min(self.out_group() - first))
    }

    /// Each filter is one tap on the pixel it belongs to.
    #[inline(always)]
    pub(crate) fn is_pointwise(&self) -> bool {
        self.taps() == 1 && self.strides == [1, 1] && self.pads == [0, 0] && self.in_size == self.out_size
    }

    /// The convolution is a matrix product of the images as they lie.
    pub(crate) fn is_product(&self) -> bool {
        self.groups == 1 && self.is_pointwise()
    }

    /// Each group is one channel.
    pub(crate) fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.in_group() == 1 && self.out_group() == 1
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
        Finish { bias: shift(bias, channel), word: self.epilogue, residual: shift(residual, at) }
    }
}

params! {
    /// One convolution: an item is a block of pixels and of panels of one group.
    Params {
        shape: Shape,
        /// Pixels, panels and terms of a block.
        rows: usize,
        panels: usize,
        k_block: usize,
    }
}

/// Most pixels of a block: their terms stay in the second level of the cache.
const BLOCK_ROWS: usize = 140;

/// Panels for which a pixel is copied at least, where there are as many: copying does not show then.
const SHARING_PANELS: usize = 4;

/// Items that a few threads can balance.
const ENOUGH_ITEMS: usize = 12;

/// How a class runs a convolution; `Err` says why it cannot.
pub(crate) fn prepare(class: Class, call: &Conv) -> Result<Prepared, String> {
    let mut shape = Shape::checked(call)?;
    if let Some(signs) = signs(call).filter(|_| shape.is_product()) {
        let mut prepared = matmul::prepare_ordered(class, &as_product(call), Order::Columns)?;
        prepared.needs.packed.iter_mut().for_each(|p| p.layout = signs_layout(signs));
        return Ok(prepared);
    }
    expect_f32_operands(&call.types)?;
    if shape.is_depthwise() {
        return Ok(depthwise::prepare(class, call, shape));
    }
    if shape.is_product() {
        let mut prepared = matmul::prepare(class, &as_product(call))?;
        prepared.needs.packed.iter_mut().for_each(|p| p.layout = POINTS_LAYOUT.into());
        return Ok(prepared);
    }
    let (mut phases, workspace_bytes) = shape.place_filters(class, call, false);
    let (phase, scratch) = phase(class, shape);
    phases.push(phase);
    let packed = Packed {
        operand: 1,
        layout: taps_layout(shape.groups),
        bytes: 4 * shape.panels() * PANEL * shape.terms(),
    };
    Ok(Prepared {
        phases,
        scratch_bytes: 4 * scratch,
        needs: Needs { workspace_bytes, packed: if call.k_packed { vec![packed] } else { Vec::new() } },
    })
}

/// The phase that computes a convolution, and the elements of its scratch.
fn phase(class: Class, shape: Shape) -> (Phase, usize) {
    let empty = shape.pixels() * shape.terms() * shape.out_channels == 0;
    if empty || shape.is_pointwise() {
        return gathering(class, shape);
    }
    conv_dots::phase(class, shape)
        .or_else(|| conv_strips::phase(class, shape))
        .unwrap_or_else(|| gathering(class, shape))
}

/// The phase that copies pixels for every tap, and the elements of its scratch.
fn gathering(class: Class, shape: Shape) -> (Phase, usize) {
    let rows = even(shape.pixels(), BLOCK_ROWS);
    let blocks = shape.pixels().div_ceil(rows);
    let panels = shared_panels(&shape, blocks);
    let params = Params { shape, rows, panels, k_block: even(shape.terms(), class.k_block()) };
    let phase = Phase {
        kernel: class.kernels().conv,
        params: to_words(&params),
        items: blocks * shape.parts(panels),
        grain: 1,
    };
    (phase, if shape.is_pointwise() { 0 } else { rows * row_stride(params.k_block) })
}

/// Panels of an item where there are so many blocks of pixels: all of a group together, unless that leaves too few items.
pub(crate) fn shared_panels(shape: &Shape, blocks: usize) -> usize {
    let in_group = shape.out_group().div_ceil(PANEL);
    let parts = ENOUGH_ITEMS.div_ceil((blocks * shape.groups).max(1));
    even(in_group, in_group.div_ceil(parts).max(SHARING_PANELS))
}

/// What the layout of filters of one tap with signs begins with; their storage follows.
const SIGNS_PREFIX: &str = "points32 ";

/// The signs of filters of f32.
fn signs(call: &Conv) -> Option<Signs> {
    let plain = ProductTypes { right: Storage::plain(DType::F32), ..call.types };
    call.types.right.signs.filter(|signs| signs.axis < 2 && plain == ProductTypes::F32)
}

/// The layout of filters of one tap with signs.
fn signs_layout(signs: Signs) -> String {
    format!("{SIGNS_PREFIX}{}", Storage::with_signs(signs))
}

/// The signs of a layout.
pub(crate) fn signs_of_layout(layout: &str) -> Option<Signs> {
    Storage::parse(layout.strip_prefix(SIGNS_PREFIX)?)?.signs
}

/// A convolution of one tap as a product of pixels and filters.
pub(crate) fn as_product(call: &Conv) -> MatMul {
    let signs = call.types.right.signs.map(|signs| signs.along(1 - signs.axis.min(1)));
    MatMul {
        m: call.batch * call.out_size[0] * call.out_size[1],
        n: call.out_channels,
        k: call.in_channels,
        batch: Vec::<BatchAxis>::new(),
        a: MatLayout { row_stride: call.in_channels, col_stride: 1 },
        b: MatLayout { row_stride: 1, col_stride: call.in_channels },
        c_row_stride: call.out_channels,
        b_packed: call.k_packed,
        types: ProductTypes { right: Storage { signs, ..call.types.right }, ..call.types },
        epilogue: call.epilogue,
    }
}

/// The name of the layout of filters of so many groups.
fn taps_layout(groups: usize) -> String {
    format!("{TAPS_LAYOUT}{groups}")
}

/// The groups of filters in a layout as panels of taps.
pub(crate) fn groups_of_layout(layout: &str) -> Option<usize> {
    layout.strip_prefix(TAPS_LAYOUT)?.parse().ok().filter(|groups| *groups > 0)
}

/// The bytes of constant filters in the layout that [`prepare`] names.
pub(crate) fn pack_constant(call: &Conv, stored: &StoredTensor) -> Result<Vec<u8>, String> {
    if stored.storage().signs != call.types.right.signs {
        return Err(format!("expected filters stored {}, found {}", call.types.right, stored.storage()));
    }
    let Some(signs) = signs(call) else { return pack_numbers(call, stored.elements()) };
    // The others are filters of their own.
    let mut others = call.clone();
    let channels = if signs.axis == 0 { &mut others.out_channels } else { &mut others.in_channels };
    *channels = channels.saturating_sub(signs.len());
    pack_numbers(&others, stored.elements())
}

fn pack_numbers(call: &Conv, tensor: &Tensor) -> Result<Vec<u8>, String> {
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
    let values = tensor.as_slice::<f32>().map_err(|e| e.to_string())?;
    if shape.is_depthwise() {
        return Ok(depthwise::pack_filters(&values, call.out_channels));
    }
    let panels = shape.panels();
    let (terms, taps) = (shape.terms(), shape.taps());
    let mut bytes = vec![0; 4 * panels * PANEL * terms];
    for (channel, filter) in values.chunks_exact(terms.max(1)).enumerate() {
        let (panel, column) = place(shape.out_group(), channel);
        for (i, x) in filter.iter().enumerate() {
            let term = i % taps * shape.in_group() + i / taps;
            let at = 4 * ((panel * terms + term) * PANEL + column);
            bytes[at..at + 4].copy_from_slice(&x.to_ne_bytes());
        }
    }
    Ok(bytes)
}

/// The panel of an output channel and its column there, with so many channels in a group.
fn place(out_group: usize, channel: usize) -> (usize, usize) {
    let (group, channel) = (channel / out_group, channel % out_group);
    (group * out_group.div_ceil(PANEL) + channel / PANEL, channel % PANEL)
}

/// The filters with signs behind panels of what is not signs.
pub(crate) fn unpack_signs(signs: Signs, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, String> {
    let others = unpack(1, &Storage::with_signs(signs).elements_shape(shape), bytes)?;
    let stored = StoredTensor::with_signs(others, signs).map_err(|e| e.to_string())?;
    match stored.shape() == shape {
        true => Ok(stored),
        false => Err(format!("{shape:?} has no room for {}", stored.storage())),
    }
}

/// The tensor of filters behind panels, of so many groups.
pub(crate) fn unpack(groups: usize, shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    let [channels, in_group, window @ ..] = shape else {
        return Err(format!("expected filters, found {shape:?}"));
    };
    let taps = window.iter().product::<usize>();
    let terms = in_group * taps;
    let out_group = channels / groups;
    if !channels.is_multiple_of(groups)
        || bytes.len() != 4 * PANEL * terms * groups * out_group.div_ceil(PANEL)
    {
        return Err(format!("{} packed bytes do not hold filters {shape:?}", bytes.len()));
    }
    let mut out = Vec::with_capacity(4 * channels * terms);
    for channel in (0..*channels).filter(|_| terms > 0) {
        let (panel, column) = place(out_group, channel);
        for i in 0..terms {
            let term = i % taps * in_group + i / taps;
            let at = 4 * ((panel * terms + term) * PANEL + column);
            out.extend_from_slice(&bytes[at..at + 4]);
        }
    }
    Tensor::from_bytes(DType::F32, shape, &out).map_err(|e| e.to_string())
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 3;

/// The convolution.
///
/// Arguments: X, filters (in `f32_taps32_gG`, or row-major), bias if any (one element per output channel), residual if
/// any (layout of Y), Y, workspace if any. Any alignment of 4 bytes; Y overlaps nothing. Images, channels and sizes may be 0.
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
        let s = &p.shape;
        let (pixels, terms, all_panels) = (s.pixels(), s.terms(), s.panels());
        let in_group = all_panels / s.groups;
        let (blocks, parts) = (pixels.div_ceil(p.rows), in_group.div_ceil(p.panels));
        let stride = row_stride(p.k_block);
        let filters = argument(args, s.filters_at);
        for item in begin as usize..end as usize {
            // Pixels vary fastest: consecutive items read the same filters.
            let (first, rest) = (item % blocks * p.rows, item / blocks);
            let (part, group) = (rest % parts, rest / parts);
            let rows = p.rows.min(pixels - first);
            let begin = group * in_group + part * p.panels;
            let end = (begin + p.panels).min((group + 1) * in_group);
            let x = argument(args, s.x_at).add(group * s.in_group());
            let mut done = 0;
            loop {
                let count = p.k_block.min(terms - done);
                let left = match s.is_pointwise() {
                    true => Left { at: x.add(first * s.in_channels + done), stride: s.in_channels, rows },
                    false => {
                        gather(isa, s, x, [first, rows], [done, done + count], scratch, stride);
                        Left { at: scratch, stride, rows }
                    }
                };
                let last = done + count == terms;
                for panel in begin..end {
                    let (channel, cols) = s.channels(panel);
                    let at = first * s.out_channels + channel;
                    let finish = s.finish(args, channel, at);
                    let right = Right {
                        at: filters.add((panel * terms + done) * PANEL),
                        stride: terms * PANEL,
                        cols,
                    };
                    let y = Block { at: argument(args, s.y_at).add(at), stride: s.out_channels };
                    multiply(isa, count, left, right, y, done > 0, last.then_some(&finish));
                }
                if last {
                    break;
                }
                done += count;
            }
        }
    }
}

/// Copies the terms `from..to` of `rows` pixels from `first` on to rows of scratch, zero outside of the image.
///
/// # Safety
/// `x` begins at the group's first channel of the first pixel; scratch has `rows` rows at distance `stride`.
#[inline(always)]
pub(crate) unsafe fn gather<I: Isa>(
    isa: I,
    s: &Shape,
    x: *const f32,
    [first, rows]: [usize; 2],
    [from, to]: [usize; 2],
    scratch: *mut f32,
    stride: usize,
) {
    // The taps of a kernel row are neighbours, unless they are spread or other groups lie between them.
    let joined = s.groups == 1 && s.dilations[1] == 1;
    let taps = if joined { s.kernel[1] } else { 1 };
    let (runs_per_row, len) = (s.kernel[1] / taps, (taps * s.in_group()).max(1));
    let mut term = from;
    while term < to {
        let (run, begin) = (term / len, term % len);
        let end = len.min(begin + to - term);
        let run = Run { ky: run / runs_per_row, kx: run % runs_per_row, taps, begin, end };
        // SAFETY: the caller's promise; the row of scratch has the terms of the run.
        unsafe { gather_run(isa, s, x, [first, rows], run, scratch.add(term - from), stride) }
        term += end - begin;
    }
}

/// Terms of a pixel that lie in one piece.
#[derive(Clone, Copy)]
struct Run {
    /// The kernel row and column of the first tap, and their number.
    ky: usize,
    kx: usize,
    taps: usize,
    /// The elements of the taps that are wanted.
    begin: usize,
    end: usize,
}

/// Copies one run of `rows` pixels from `first` on.
///
/// # Safety
/// As [`gather`], for the elements of the run.
#[inline(always)]
unsafe fn gather_run<I: Isa>(
    isa: I,
    s: &Shape,
    x: *const f32,
    [first, rows]: [usize; 2],
    run: Run,
    mut to: *mut f32,
    stride: usize,
) {
    let [height, width] = s.in_size.map(|n| n as isize);
    let (channels, taps) = (s.in_channels as isize, run.taps as isize);
    let count = run.end - run.begin;
    let (mut line, mut col) = (first / s.out_size[1], first % s.out_size[1]);
    let mut left = rows;
    while left > 0 {
        let pixels = (s.out_size[1] - col).min(left);
        let (image, row) = (line / s.out_size[0], line % s.out_size[0]);
        let iy = (row * s.strides[0] + run.ky * s.dilations[0]) as isize - s.pads[0] as isize;
        let source = x
            .wrapping_add(image * s.in_size[0] * s.in_size[1] * s.in_channels + run.begin)
            .wrapping_offset(iy * width * channels);
        let mut ix = (col * s.strides[1] + run.kx * s.dilations[1]) as isize - s.pads[1] as isize;
        let inside = 0 <= iy && iy < height;
        for _ in 0..pixels {
            let from = source.wrapping_offset(ix * channels);
            // SAFETY: what is read lies inside of the image, what is written in the row of scratch.
            unsafe {
                if inside && 0 <= ix && ix + taps <= width {
                    copy(isa, from, to, count);
                } else {
                    // The part inside of the image.
                    let clamped = |tap: isize| {
                        let element = (tap.clamp(0, taps) * channels) as usize;
                        element.clamp(run.begin, run.end) - run.begin
                    };
                    let low = if inside { clamped(-ix) } else { count };
                    let high = if inside { clamped(width - ix).max(low) } else { count };
                    fill(isa, to, low);
                    copy(isa, from.wrapping_add(low), to.add(low), high - low);
                    fill(isa, to.add(high), count - high);
                }
            }
            to = to.wrapping_add(stride);
            ix += s.strides[1] as isize;
        }
        left -= pixels;
        (line, col) = (line + 1, 0);
    }
}
