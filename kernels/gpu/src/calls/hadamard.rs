//! Walsh–Hadamard transforms of rows, with the operations of the processor in its order: the same bits.
//!
//! Stages add and subtract elements that are 1, 2, 4, … apart. A block has a piece of up to 8192 elements in shared memory, of one
//! row or of several short ones, scales it and does the stages within it. Of longer rows the stages that are left are done four
//! at a time, each time by a kernel of its own: a thread has the 16 elements that they join in registers, and nobody else has any
//! of them.

use margay_loops::{Arithmetic, Comparison, Hadamard, KernelCall};

use super::{Arguments, Written, schedule};
use crate::target::GpuTarget;
use crate::value::{Element, Type, Value};
use crate::writer::Writer;

/// Threads of a block.
const THREADS: usize = 256;
/// The fewest and the most elements of a block: two for each thread, and what fits into shared memory everywhere.
const PIECES: [usize; 2] = [2 * THREADS, 8192];
/// Stages of a kernel behind the first, at most.
const STAGES: u32 = 4;

/// Whether there is a kernel, and if not, why.
pub(super) fn supports(c: &Hadamard) -> Result<(), String> {
    match c.len.is_power_of_two() {
        true => Ok(()),
        false => Err(format!("rows of {} elements, expected a power of two", c.len)),
    }
}

/// Elements of a block in the first kernel.
fn piece(c: &Hadamard) -> usize {
    c.len.clamp(PIECES[0], PIECES[1])
}

/// The stages of each kernel behind the first: the distance that the first of them joins, and how many there are.
fn later(c: &Hadamard) -> Vec<(usize, u32)> {
    let mut kernels = Vec::new();
    let mut distance = piece(c);
    while distance < c.len {
        let stages = (c.len / distance).ilog2().min(STAGES);
        kernels.push((distance, stages));
        distance <<= stages;
    }
    kernels
}

/// The kernels, one launched after the other.
pub(super) fn write_kernels(c: &Hadamard) -> Vec<Written> {
    let later = later(c).into_iter().map(|(distance, stages)| write_later(c, distance, stages));
    std::iter::once(write_first(c)).chain(later).collect()
}

/// Predicted seconds: every kernel reads and writes all elements.
pub(super) fn seconds(c: &Hadamard, target: GpuTarget) -> f64 {
    let (rates, kernels) = (target.rates(), 1 + later(c).len());
    let moved = schedule::bytes(&KernelCall::Hadamard(c.clone())) as f64 / rates.bytes;
    kernels as f64 * (rates.launch + moved)
}

fn int(w: &mut Writer, n: usize) -> Value {
    w.int(Type::I32, n as i64)
}

/// `x` with a zero bit before its last so many bits.
fn spread(w: &mut Writer, x: Value, bits: u32) -> Value {
    let mask = w.int(x.ty, (1i64 << bits) - 1);
    let low = w.and(x, mask);
    let high = w.isub(x, low);
    let high = w.shift_left(high, 1);
    w.iadd(high, low)
}

/// The number of a thread among all, as a position.
fn number(w: &mut Writer, ty: Type) -> Value {
    let (block, thread) = (w.block_number(), w.thread());
    let (block, thread) = (w.resize(block, ty.element, false), w.resize(thread, ty.element, false));
    let threads = w.int(ty, THREADS as i64);
    let first = w.imul(block, threads);
    w.iadd(first, thread)
}

/// Scales, and does the stages within a piece.
fn write_first(c: &Hadamard) -> Written {
    let mut args = Arguments::new(&KernelCall::Hadamard(c.clone()), false);
    let (mut w, values) = Writer::new(args.params(), THREADS);
    args.values(&values);
    let (x, y, ty) = (args.take(), args.take(), args.index());
    let (size, all) = (piece(c), c.rows * c.len);
    let held = w.shared(4 * size);
    let (thread, block) = (w.thread(), w.block_number());
    let (pieces, end) = (w.int(ty, size as i64), w.int(ty, all as i64));
    let block = w.resize(block, ty.element, false);
    let first = w.imul(block, pieces);
    let (scale, none) = (w.float(Type::F32, f64::from(1.0 / (c.len as f32).sqrt())), w.float(Type::F32, 0.0));
    let (limit, step) = (int(&mut w, size), int(&mut w, THREADS));
    // Rows are whole in a piece, or a piece in a row, so that none of what is joined lies beyond the end alone.
    let place = |w: &mut Writer, offset: Value| {
        let wide = w.resize(offset, ty.element, false);
        let at = w.iadd(first, wide);
        let inside = w.compare_ints(Comparison::Less, at, end);
        (at, inside)
    };
    let (offset, _) = w.begin_for(thread, limit, step, &[]);
    let (at, inside) = place(&mut w, offset);
    w.begin_if(inside, &[Type::F32]);
    let from = w.element(x, at, Element::F32);
    let value = w.load(Type::F32, from);
    let value = w.fmul(value, scale);
    w.otherwise(&[value]);
    let value = w.end_if(&[none])[0];
    let to = w.element(held, offset, Element::F32);
    w.store(value, to);
    w.end_for(&[]);
    let pairs = int(&mut w, size / 2);
    for stage in 0..c.len.min(size).ilog2() {
        w.barrier();
        let (pair, _) = w.begin_for(thread, pairs, step, &[]);
        let low = spread(&mut w, pair, stage);
        let distance = int(&mut w, 1 << stage);
        let high = w.iadd(low, distance);
        let places = [low, high].map(|at| w.element(held, at, Element::F32));
        let [a, b] = places.map(|at| w.load(Type::F32, at));
        let (sum, difference) = (w.fadd(a, b), w.fsub(a, b));
        w.store(sum, places[0]);
        w.store(difference, places[1]);
        w.end_for(&[]);
    }
    w.barrier();
    let (offset, _) = w.begin_for(thread, limit, step, &[]);
    let (at, inside) = place(&mut w, offset);
    w.begin_if(inside, &[]);
    let from = w.element(held, offset, Element::F32);
    let value = w.load(Type::F32, from);
    let to = w.element(y, at, Element::F32);
    w.store(value, to);
    w.end_if(&[]);
    w.end_for(&[]);
    Written { text: w.finish(), blocks: all.div_ceil(size), threads: THREADS }
}

/// Does so many stages of all rows, of which the first joins elements that are `distance` apart.
fn write_later(c: &Hadamard, distance: usize, stages: u32) -> Written {
    let mut args = Arguments::new(&KernelCall::Hadamard(c.clone()), false);
    let (mut w, values) = Writer::new(args.params(), THREADS);
    args.values(&values);
    let (_, y, ty) = (args.take(), args.take(), args.index());
    let joined = 1usize << stages;
    let threads = c.rows * c.len / joined;
    let number = number(&mut w, ty);
    let end = w.int(ty, threads as i64);
    let inside = w.compare_ints(Comparison::Less, number, end);
    w.begin_if(inside, &[]);
    // The bits of the distances that are joined are free.
    let low = w.int(ty, distance as i64 - 1);
    let low = w.and(number, low);
    let high = w.isub(number, low);
    let high = w.shift_left(high, stages);
    let first = w.iadd(high, low);
    let places: Vec<Value> = (0..joined)
        .map(|i| {
            let further = w.int(ty, (i * distance) as i64);
            let at = w.iadd(first, further);
            w.element(y, at, Element::F32)
        })
        .collect();
    let mut values: Vec<Value> = places.iter().map(|&at| w.load(Type::F32, at)).collect();
    for stage in 0..stages {
        let half = 1 << stage;
        for i in (0..joined).filter(|i| i & half == 0) {
            let (a, b) = (values[i], values[i + half]);
            (values[i], values[i + half]) = (w.fadd(a, b), w.fsub(a, b));
        }
    }
    for (value, at) in values.into_iter().zip(places) {
        w.store(value, at);
    }
    w.end_if(&[]);
    Written { text: w.finish(), blocks: threads.div_ceil(THREADS), threads: THREADS }
}
