//! Bringing filters that are no constants into the workspace, in the layouts that convolutions read: see `conv` and
//! `depthwise`. Filters of one tap are a right operand of a product and go with those.

use crate::Class;
use crate::Phase;
use crate::conv::Shape;
use crate::isa::{Isa, PANEL};
use crate::params::{argument, from_words, params, to_words};

params! {
    /// Filters O, C, h, w: an item is a panel, or a run of channels of a depthwise convolution.
    Params {
        shape: Shape,
        depthwise: usize,
        /// The workspace.
        target: usize,
    }
}

/// Channels of an item of a depthwise convolution.
const CHANNELS: usize = 256;

/// The phase that fills the workspace, and its elements.
pub(crate) fn phase(class: Class, shape: &Shape, depthwise: bool, target: usize) -> (Phase, usize) {
    let (len, items) = match depthwise {
        true => (shape.out_channels * shape.taps(), shape.out_channels.div_ceil(CHANNELS)),
        false => (shape.panels() * PANEL * shape.terms(), shape.panels()),
    };
    let params = Params { shape: *shape, depthwise: usize::from(depthwise), target };
    (Phase { kernel: class.kernels().filters, params: to_words(&params), items, grain: 1 }, len)
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 3;

/// Brings filters into the workspace.
///
/// Arguments: those of the convolution; reads its filters, row-major, and writes the workspace.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`phase`].
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
        let (filters, target) = (argument(args, s.filters_at).cast_const(), argument(args, p.target));
        for item in begin as usize..end as usize {
            if p.depthwise == 0 {
                pack_panel(isa, s, item, filters, target);
                continue;
            }
            let first = item * CHANNELS;
            for channel in first..(first + CHANNELS).min(s.out_channels) {
                for tap in 0..s.taps() {
                    *target.add(tap * s.out_channels + channel) = *filters.add(channel * s.taps() + tap);
                }
            }
        }
    }
}

/// Writes panel `panel` of `f32_taps32_gG`.
///
/// # Safety
/// The filters are readable and the panel is writable.
#[inline(always)]
unsafe fn pack_panel<I: Isa>(isa: I, s: &Shape, panel: usize, filters: *const f32, target: *mut f32) {
    let (channel, columns) = s.channels(panel);
    let (terms, taps, in_group) = (s.terms(), s.taps(), s.in_group());
    // SAFETY: the filters of the panel are `columns` rows of `terms` elements.
    unsafe {
        let (from, to) = (filters.add(channel * terms), target.add(panel * terms * PANEL));
        for input in 0..in_group {
            for tap in 0..taps {
                let row = to.add((tap * in_group + input) * PANEL);
                for i in (columns - columns % I::LANES..PANEL).step_by(I::LANES) {
                    isa.store(row.add(i), isa.splat(0.0));
                }
                let column = from.add(input * taps + tap);
                for j in 0..columns {
                    *row.add(j) = *column.add(j * terms);
                }
            }
        }
    }
}
