//! The Walsh–Hadamard transform of rows.
//!
//! Its stages add and subtract elements that are 1, 2, 4, … apart. Rows lie one after the other, so those up to 32 are
//! done on blocks of 64 elements, whatever the length of a row: a block is eight by eight, its elements are exchanged so
//! that what is 1, 2 and 4 apart lies in different vectors, and exchanged back for 8, 16 and 32. Stages from 64 on work on
//! whole vectors of a row. What does not fill a block is done element by element. Every element goes through the same
//! operations on all these ways, so results do not depend on where a row lies.
//!
//! An item is a group of rows.

use margay_loops::{Hadamard, Needs};

use crate::isa::Isa;
use crate::params::{argument, from_words, params, to_words};
use crate::{Class, Phase, Prepared};

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 1;

/// Elements of a block: eight times eight.
const BLOCK: usize = 64;

/// Blocks that are done together in the widest vectors.
const MAX_BLOCKS: usize = 2;

params! {
    /// Rows to be transformed.
    Params {
        rows: usize,
        /// Length of a row.
        len: usize,
        /// Rows of an item; together they fill blocks, but for the last item.
        group: usize,
    }
}

/// How a class runs the call.
pub(crate) fn prepare(class: Class, call: &Hadamard) -> Result<Prepared, String> {
    let len = call.len;
    if !len.is_power_of_two() {
        return Err(format!("rows of {len} elements, expected a power of two"));
    }
    let row_flops = (len * (len.ilog2() as usize + 1)).max(1);
    // Memory bounds this kernel: a sixteenth of the speed of a product.
    let most = (class.item_flops() / 16 / row_flops).max(1);
    let group = if len < BLOCK { most.next_multiple_of(BLOCK) } else { most };
    let phase = Phase {
        kernel: class.kernels().hadamard,
        params: to_words(&Params { rows: call.rows, len, group }),
        items: call.rows.div_ceil(group),
        grain: 1,
    };
    let needs = Needs { workspace_bytes: 0, packed: Vec::new() };
    Ok(Prepared { phases: vec![phase], scratch_bytes: 0, needs })
}

/// The transform.
///
/// Arguments: X, Y. Any alignment of 4 bytes; Y overlaps nothing.
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
    // SAFETY: the parameters are ours; an item is a group of the rows of both arguments.
    unsafe {
        let p = from_words::<Params>(params);
        let scale = 1.0 / (p.len as f32).sqrt();
        for item in begin as usize..end as usize {
            let first = item * p.group;
            let rows = (p.rows - first).min(p.group);
            let (x, y) = (argument(args, 0).add(first * p.len), argument(args, 1).add(first * p.len));
            let elements = rows * p.len;
            let blocks = (I::LANES / 8).max(1);
            let mut at = 0;
            while at + blocks * BLOCK <= elements {
                near_stages(isa, x.add(at), y.add(at), p.len.min(BLOCK), scale);
                at += blocks * BLOCK;
            }
            plain_stages(x.add(at), y.add(at), elements - at, p.len.min(BLOCK), scale);
            for row in 0..rows {
                far_stages(isa, y.add(row * p.len), p.len);
            }
        }
    }
}

/// Scales blocks side by side, as many as fill vectors, and does the stages below `until`.
///
/// # Safety
/// The blocks are readable at `x` and writable at `y`, and do not overlap.
#[inline(always)]
unsafe fn near_stages<I: Isa>(isa: I, x: *const f32, y: *mut f32, until: usize, scale: f32) {
    let blocks = (I::LANES / 8).max(1);
    let width = 8 * blocks;
    let mut across = [0f32; MAX_BLOCKS * BLOCK];
    let mut along = [0f32; MAX_BLOCKS * BLOCK];
    let (across, along) = (across.as_mut_ptr(), along.as_mut_ptr());
    // SAFETY: eight rows of eight elements per block lie in the arrays at rows of `width`, and in a block at rows of 8.
    unsafe {
        for block in 0..blocks {
            isa.transpose8(x.add(block * BLOCK), 8, across.add(8 * block), width);
        }
        for i in (0..8 * width).step_by(I::LANES) {
            isa.store(across.add(i), isa.mul(isa.load(across.add(i)), isa.splat(scale)));
        }
        butterflies(isa, across, 8 * width, width, until.min(8) * width);
        for block in 0..blocks {
            isa.transpose8(across.add(8 * block), width, along.add(8 * block), width);
        }
        butterflies(isa, along, 8 * width, width, until / 8 * width);
        for (block, row) in (0..blocks).flat_map(|block| (0..8).map(move |row| (block, row))) {
            let from = along.add(row * width + 8 * block);
            std::ptr::copy_nonoverlapping(from, y.add(block * BLOCK + 8 * row), 8);
        }
    }
}

/// The same for what fills no blocks, element by element.
///
/// # Safety
/// `elements`, a multiple of `until`, are readable at `x` and writable at `y`, and do not overlap.
#[inline(always)]
unsafe fn plain_stages(x: *const f32, y: *mut f32, elements: usize, until: usize, scale: f32) {
    // SAFETY: positions are below `elements`, since `i` lacks the bit of the stage.
    unsafe {
        for i in 0..elements {
            *y.add(i) = *x.add(i) * scale;
        }
        let mut half = 1;
        while half < until {
            for i in (0..elements).filter(|i| i & half == 0) {
                let (a, b) = (*y.add(i), *y.add(i + half));
                *y.add(i) = a + b;
                *y.add(i + half) = a - b;
            }
            half *= 2;
        }
    }
}

/// The stages from a block on of one row.
///
/// # Safety
/// The row is readable and writable.
#[inline(always)]
unsafe fn far_stages<I: Isa>(isa: I, y: *mut f32, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { butterflies(isa, y, len, BLOCK, len) }
}

/// The stages of distances from `first` on, doubled each time, below `until`; `first` is a multiple of a vector.
///
/// # Safety
/// `len` elements are readable and writable at `y`; the last stage pairs elements within it.
#[inline(always)]
unsafe fn butterflies<I: Isa>(isa: I, y: *mut f32, len: usize, first: usize, until: usize) {
    let mut half = first;
    while half < until {
        for start in (0..len).step_by(2 * half) {
            for i in (start..start + half).step_by(I::LANES) {
                // SAFETY: `i + half` is below `start + 2 * half`, which is at most `len`.
                unsafe {
                    let (low, high) = (y.add(i), y.add(i + half));
                    let (a, b) = (isa.load(low), isa.load(high));
                    isa.store(low, isa.add(a, b));
                    isa.store(high, isa.sub(a, b));
                }
            }
        }
        half *= 2;
    }
}
