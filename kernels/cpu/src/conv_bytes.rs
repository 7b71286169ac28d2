//! Convolutions of 8-bit integers over NHWC images as products of bytes: pixels times filters.
//!
//! The rows of the product are the pixels of the result, its terms are taps and input channels in the order kernel row,
//! kernel column, channel, as in `conv`. An item copies the terms of a block of pixels into scratch, where pixels outside of
//! the image hold the zero of X, and multiplies it with all panels of a group. A convolution of one tap needs no copies.
//! There is one group.
//!
//! Layouts `i8_taps_quads` and `u8_taps_quads` of filters O, C, h, w: those of `bytes` for the matrix `[h w C, O]`.

use margay_loops::{Conv, Needs, Packed};
use margay_tensor::{DType, StoredTensor, Tensor};

use crate::bytes::{self, Rows, multiply, pack_matrix, place, right_is_signed};
use crate::conv::{Shape, as_product};
use crate::isa::{Isa, MAX_ROWS, PANEL};
use crate::matmul::even;
use crate::pack_bytes::{QUAD, Source, Workspace, packed_bytes, row_stride};
use crate::params::{ABSENT, argument, from_words, params, to_words};
use crate::{Class, Phase, Prepared};

params! {
    /// One convolution: an item is a block of pixels and of panels.
    Params {
        product: bytes::Params,
        shape: Shape,
    }
}

/// Whether a convolution is one of integers.
pub(crate) fn serves(call: &Conv) -> bool {
    call.types.left.is_int()
}

/// The layout of constant filters that are signed, or are not.
fn layout(signed: bool) -> &'static str {
    if signed { "i8_taps_quads" } else { "u8_taps_quads" }
}

/// Whether the filters of a layout of this module are signed.
pub(crate) fn of_layout(name: &str) -> Option<bool> {
    [true, false].into_iter().find(|&signed| layout(signed) == name)
}

/// Bytes of the pixels of a block, which stay in the second level of the cache.
const BLOCK_BYTES: usize = 1 << 18;

/// Items that a few threads can balance.
const ENOUGH_ITEMS: usize = 12;

/// Panels for which a pixel is copied at least, where there are as many.
const SHARING_PANELS: usize = 8;

/// How a class runs a convolution; `Err` says why it cannot.
pub(crate) fn prepare(class: Class, call: &Conv) -> Result<Prepared, String> {
    let shape = Shape::checked(call)?;
    if call.groups != 1 {
        return Err(format!("integers in one group, found {}", call.groups));
    }
    let signed = right_is_signed(&call.types, &call.epilogue)?;
    if shape.is_product() {
        let mut prepared = bytes::prepare_less(class, &as_product(call), call.zero)?;
        prepared.needs.packed.iter_mut().for_each(|p| p.layout = layout(signed).into());
        return Ok(prepared);
    }
    let (pixels, terms) = (shape.pixels(), shape.terms());
    let size = [pixels, call.out_channels, terms];
    let (mut product, workspace_at) = bytes::Params::new(size, &call.types, &call.epilogue, call.zero)?;
    product.a_row = row_stride(terms);
    product.rows =
        even(pixels, (BLOCK_BYTES / product.a_row.max(1)).clamp(MAX_ROWS, product.rows.max(MAX_ROWS)));
    let (panels, blocks) = (call.out_channels.div_ceil(PANEL), pixels.div_ceil(product.rows));
    let parts = ENOUGH_ITEMS.div_ceil(blocks.max(1));
    product.panels = even(panels, panels.div_ceil(parts).max(SHARING_PANELS));
    let mut workspace = Workspace::new(class, workspace_at);
    if !call.k_packed {
        let taps = shape.taps();
        let placed = workspace.panels(
            Source {
                at: product.b_at,
                size: [terms, call.out_channels],
                // The channels of a tap lie at the distance of all taps, and taps side by side.
                strides: [taps, terms],
                run: call.in_channels,
                run_stride: 1,
                extents: [1; 4],
                batch: [0; 4],
            },
            signed,
        );
        if workspace.bytes > 0 {
            (product.b_at, product.b_offset) = (workspace_at, placed.offset);
        }
    }
    let mut phases = if workspace.bytes > 0 { workspace.phases } else { Vec::new() };
    phases.push(Phase {
        kernel: class.kernels().conv_bytes,
        params: to_words(&Params { product, shape }),
        items: blocks * panels.div_ceil(product.panels),
        grain: 1,
    });
    let packed =
        Packed { operand: 1, layout: layout(signed).into(), bytes: packed_bytes(terms, call.out_channels) };
    Ok(Prepared {
        phases,
        scratch_bytes: product.rows * product.a_row,
        needs: Needs {
            workspace_bytes: workspace.bytes,
            packed: if call.k_packed { vec![packed] } else { Vec::new() },
        },
    })
}

/// The bytes of constant filters in the layout that [`prepare`] names.
pub(crate) fn pack_constant(call: &Conv, stored: &StoredTensor) -> Result<Vec<u8>, String> {
    let signed = right_is_signed(&call.types, &call.epilogue)?;
    let (channels, filters, taps) = (call.in_channels, call.out_channels, call.kernel[0] * call.kernel[1]);
    let elements = stored.elements().bytes();
    let fits = stored.storage() == call.types.right && stored.shape().first() == Some(&filters);
    if !fits || elements.len() != filters * channels * taps {
        return Err(format!(
            "expected constant filters [{filters}, {channels}, {:?}] of {}, found {:?} stored {}",
            call.kernel,
            call.types.right,
            stored.shape(),
            stored.storage()
        ));
    }
    let element = |i: usize, j: usize| elements[(j * channels + i % channels) * taps + i / channels];
    Ok(pack_matrix(signed, [channels * taps, filters], element))
}

/// The inverse of [`pack_constant`].
pub(crate) fn unpack_constant(signed: bool, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, String> {
    let &[filters, channels, ref window @ ..] = shape else {
        return Err(format!("expected filters, found {shape:?}"));
    };
    let taps = window.iter().product::<usize>();
    let terms = channels * taps;
    if bytes.len() != packed_bytes(terms, filters) {
        return Err(format!("{} packed bytes do not hold filters {shape:?}", bytes.len()));
    }
    let term = |i: usize| i % taps.max(1) * channels + i / taps.max(1);
    let elements: Vec<u8> = (0..filters)
        .flat_map(|j| (0..terms).map(move |i| bytes[place(terms, filters, term(i), j)]))
        .collect();
    let dtype = if signed { DType::I8 } else { DType::U8 };
    Tensor::from_bytes(dtype, shape, &elements).map(StoredTensor::from).map_err(|e| e.to_string())
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 1;

/// The convolution.
///
/// Arguments: X, filters (packed, or in the workspace), zero if any (one byte), then as those of a product of bytes. Y
/// overlaps no other argument.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`prepare`] and scratch for a block of pixels.
#[inline(always)]
pub(crate) unsafe fn run<I: Isa>(
    isa: I,
    params: *const u64,
    args: *const *mut u8,
    scratch: *mut f32,
    begin: u64,
    end: u64,
) {
    let scratch = scratch.cast::<u8>();
    // SAFETY: the parameters are ours; the extents of the call bound every access.
    unsafe {
        let Params { product: p, shape } = from_words::<Params>(params);
        let (blocks, panels) = (p.m.div_ceil(p.rows), p.n.div_ceil(PANEL));
        let x = argument(args, p.a_at).cast::<u8>().cast_const();
        let zero = if p.zero_at == ABSENT { 0 } else { *argument(args, p.zero_at).cast::<u8>() };
        for item in begin as usize..end as usize {
            let (first, panel) = (item % blocks * p.rows, item / blocks * p.panels);
            let rows = p.rows.min(p.m - first);
            for row in 0..rows {
                copy_pixel(shape, x, first + row, zero, p.flip(), scratch.add(row * p.a_row));
            }
            let block = Rows {
                a: scratch,
                b: argument(args, p.b_at).cast::<u8>().add(p.b_offset),
                c: first * p.c_row,
                rows,
                panels: [panel, (panel + p.panels).min(panels)],
            };
            multiply(isa, p, args, &block);
        }
    }
}

/// Writes what a pixel of the result reads, `zero` outside of the image, and zeros up to a multiple of four bytes; `flip` is
/// added to every byte, modulo 256.
///
/// # Safety
/// The image is readable, and the terms up to a multiple of four are writable.
#[inline(always)]
unsafe fn copy_pixel(shape: &Shape, x: *const u8, pixel: usize, zero: u8, flip: u8, to: *mut u8) {
    let ([height, width], [rows, cols], channels) = (shape.in_size, shape.out_size, shape.in_channels);
    let (image, row, col) = (pixel / (rows * cols), pixel / cols % rows, pixel % cols);
    let mut to = to;
    // SAFETY: places inside of the image are read; `to` moves over the terms once.
    unsafe {
        for i in 0..shape.kernel[0] {
            let at = (row * shape.strides[0] + i * shape.dilations[0]).wrapping_sub(shape.pads[0]);
            if at >= height {
                let run = shape.kernel[1] * channels;
                to.write_bytes(zero ^ flip, run);
                to = to.add(run);
                continue;
            }
            let line = x.add((image * height + at) * width * channels);
            let start = (col * shape.strides[1]).wrapping_sub(shape.pads[1]);
            let span = (shape.kernel[1] - 1) * shape.dilations[1];
            let inside = start < width && start + span < width;
            if inside && shape.dilations[1] == 1 {
                let run = shape.kernel[1] * channels;
                copy_run(line.add(start * channels), to, run, flip);
                to = to.add(run);
                continue;
            }
            for j in 0..shape.kernel[1] {
                let at = start.wrapping_add(j * shape.dilations[1]);
                match at < width {
                    true => copy_run(line.add(at * channels), to, channels, flip),
                    false => to.write_bytes(zero ^ flip, channels),
                }
                to = to.add(channels);
            }
        }
        let terms = shape.terms();
        to.write_bytes(0, terms.next_multiple_of(QUAD) - terms);
    }
}

/// Copies bytes; `flip` is added to each, modulo 256.
///
/// # Safety
/// They are readable and writable, and do not overlap.
#[inline(always)]
unsafe fn copy_run(from: *const u8, to: *mut u8, len: usize, flip: u8) {
    // SAFETY: the caller's promise.
    unsafe {
        if flip == 0 {
            std::ptr::copy_nonoverlapping(from, to, len);
            return;
        }
        for i in 0..len {
            *to.add(i) = *from.add(i) ^ flip;
        }
    }
}
