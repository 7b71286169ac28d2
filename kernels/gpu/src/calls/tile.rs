//! Sums of products by tiles, with operations on f32, or on i32 where factors are integers.
//!
//! A block computes 64 x 64 results. It goes through the terms 16 at a time: its threads bring 64 x 16 elements of the left
//! operand and 16 x 64 of the right one into shared memory, and each of them then adds 16 products to each of its 4 x 4
//! results. What lies outside of an operand counts as 0. Terms are added in their order, by one fused operation each; sums of
//! integers wrap around.

use margay_loops::Arithmetic;

use super::product::{Along, Part, Sink};
use super::stored::Round;
use crate::value::{Element, Type, Value};
use crate::writer::Writer;

/// Rows and columns of results of a block.
pub(super) const TILE: usize = 64;
/// Terms that are in shared memory at once.
pub(super) const DEPTH: usize = 16;
/// Threads of a block.
pub(super) const THREADS: usize = 256;
/// Rows and columns of results of a thread.
const SIDE: usize = 4;
/// Elements from one row of shared memory to the next: more than there are, so that threads that write a column
/// reach different banks.
const PITCH: usize = TILE + 4;

/// Writes the sums of a block.
pub(super) fn write(w: &mut Writer, part: &Part<'_>, sink: &Sink<'_>) {
    let int = |w: &mut Writer, n: usize| w.int(Type::I32, n as i64);
    let one = int(w, 1);
    let [first_row, first_column] = part.corner(w, [TILE; 2]);
    let left = w.shared(DEPTH * PITCH * 4);
    let right = w.shared(DEPTH * PITCH * 4);
    let thread = w.thread();
    let (side, wide) = (int(w, SIDE), int(w, TILE / SIDE));
    let (down, over) = (w.divide(thread, wide), w.remainder(thread, wide));
    let (down, over) = (w.imul(down, side), w.imul(over, side));
    let lanes = Type { lanes: SIDE, ..part.shape.sums() };
    let is_float = lanes.element == Element::F32;
    let nothing = if is_float { w.float(lanes, 0.0) } else { w.int(lanes, 0) };
    let step = int(w, DEPTH);
    let (term, sums) = w.begin_for(part.first, part.end, step, &[nothing; SIDE]);
    // The tiles of the round before have been read.
    w.barrier();
    let round = Round { term, terms: DEPTH, column: first_column, columns: TILE, thread };
    part.operands.begin(w, &round);
    bring(w, thread, left, part.operands.left_along(), [first_row, term], &|w, row, term| {
        let held = part.left(w, row, term);
        part.left_factor(w, held)
    });
    bring(w, thread, right, part.operands.right_along(), [first_column, term], &|w, column, term| {
        let held = part.right(w, term, column);
        part.right_factor(w, held)
    });
    w.barrier();
    let mut sums = sums;
    for depth in 0..DEPTH {
        let line = int(w, depth * PITCH);
        let at = w.iadd(line, down);
        let address = w.element(left, at, lanes.element);
        let of_rows = w.load(lanes, address);
        let at = w.iadd(line, over);
        let address = w.element(right, at, lanes.element);
        let of_columns = w.load(lanes, address);
        for (row, sum) in sums.iter_mut().enumerate() {
            let x = w.lane(of_rows, row);
            let x = w.splat(x, SIDE);
            *sum = match is_float {
                true => w.fma(x, of_columns, *sum),
                false => {
                    let product = w.imul(x, of_columns);
                    w.iadd(*sum, product)
                }
            };
        }
    }
    let sums = w.end_for(&sums);
    let mut row = w.iadd(first_row, down);
    for sum in sums {
        let mut column = w.iadd(first_column, over);
        for lane in 0..SIDE {
            let x = w.lane(sum, lane);
            part.give(w, [row, column], x, sink);
            column = w.iadd(column, one);
        }
        row = w.iadd(row, one);
    }
}

/// Brings a tile of an operand into shared memory, terms one after the other: 64 results wide from `first` on, 16 terms deep.
fn bring(
    w: &mut Writer,
    thread: Value,
    to: Value,
    along: Along,
    [first, term]: [Value; 2],
    read: &dyn Fn(&mut Writer, Value, Value) -> Value,
) {
    let int = |w: &mut Writer, n: usize| w.int(Type::I32, n as i64);
    let pitch = int(w, PITCH);
    let width = int(w, if along == Along::Results { TILE } else { DEPTH });
    let (slow, fast) = (w.divide(thread, width), w.remainder(thread, width));
    for round in 0..TILE * DEPTH / THREADS {
        let further = match along {
            Along::Results => int(w, round * THREADS / TILE),
            Along::Terms => int(w, round * THREADS / DEPTH),
        };
        let slow = w.iadd(slow, further);
        let (i, depth) = if along == Along::Results { (fast, slow) } else { (slow, fast) };
        let (at, of) = (w.iadd(first, i), w.iadd(term, depth));
        let x = read(w, at, of);
        let line = w.imul(depth, pitch);
        let at = w.iadd(line, i);
        let address = w.element(to, at, x.ty.element);
        w.store(x, address);
    }
}
