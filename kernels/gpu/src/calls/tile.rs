//! Sums of products by tiles: what matrix products and convolutions are made of.
//!
//! A block computes 64 x 64 results. It goes through the terms 16 at a time: its threads bring 64 x 16 elements of the left
//! operand and 16 x 64 of the right one into shared memory, and each of them then adds 16 products to each of its 4 x 4
//! results. What lies outside of an operand counts as 0. Terms are added in their order, by one fused operation each.

use margay_loops::{Arithmetic, Comparison};

use crate::value::{Element, Type, Value};
use crate::writer::Writer;

/// Rows and columns of results of a block.
pub(super) const TILE: usize = 64;
/// Terms that are in shared memory at once.
const DEPTH: usize = 16;
/// Threads of a block.
pub(super) const THREADS: usize = 256;
/// Rows and columns of results of a thread.
pub(super) const SIDE: usize = 4;
/// Elements from one row of shared memory to the next: more than there are, so that threads that write a column
/// reach different banks.
const PITCH: usize = TILE + 4;

/// How threads are spread over a tile of an operand, so that neighbours read neighbours in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Along {
    /// Neighbouring threads read neighbouring rows of the left operand, or columns of the right one.
    Results,
    /// Neighbouring threads read neighbouring terms.
    Terms,
}

/// What a product is made of. Positions are I32, and inside of what [`extents`](Operands::extents) says where they are
/// handed over.
pub(super) trait Operands {
    /// Rows, columns and terms.
    fn extents(&self) -> [usize; 3];

    /// How the left operand is read.
    fn left_along(&self) -> Along;

    /// How the right operand is read.
    fn right_along(&self) -> Along;

    /// The element of the left operand of a row and a term, as an f32.
    fn left(&mut self, w: &mut Writer, row: Value, term: Value) -> Value;

    /// The element of the right operand of a term and a column, as an f32.
    fn right(&mut self, w: &mut Writer, term: Value, column: Value) -> Value;

    /// Does what is left to do with a sum.
    fn finish(&mut self, w: &mut Writer, row: Value, column: Value, sum: Value);
}

/// Blocks of a product.
pub(super) fn blocks([rows, columns, _]: [usize; 3]) -> usize {
    rows.div_ceil(TILE) * columns.div_ceil(TILE)
}

/// Writes a product. `tile` is the number of the tile of results, along columns first.
pub(super) fn product(w: &mut Writer, tile: Value, operands: &mut dyn Operands) {
    let [rows, columns, terms] = operands.extents();
    let int = |w: &mut Writer, n: usize| w.int(Type::I32, n as i64);
    let (zero, one) = (int(w, 0), int(w, 1));
    let (across, size) = (int(w, columns.div_ceil(TILE)), int(w, TILE));
    let (tile_row, tile_column) = (w.divide(tile, across), w.remainder(tile, across));
    let (first_row, first_column) = (w.imul(tile_row, size), w.imul(tile_column, size));
    let left = w.shared(DEPTH * PITCH * 4);
    let right = w.shared(DEPTH * PITCH * 4);
    let thread = w.thread();
    let (side, wide) = (int(w, SIDE), int(w, TILE / SIDE));
    let (down, over) = (w.divide(thread, wide), w.remainder(thread, wide));
    let (down, over) = (w.imul(down, side), w.imul(over, side));
    let lanes = Type { element: Element::F32, lanes: SIDE };
    let nothing = w.float(lanes, 0.0);
    let (end, step) = (int(w, terms), int(w, DEPTH));
    let (term, sums) = w.begin_for(zero, end, step, &[nothing; SIDE]);
    // The tiles of the round before have been read.
    w.barrier();
    let bounds = [rows, terms];
    bring(w, thread, left, operands.left_along(), [first_row, term], bounds, &mut |w, row, term| {
        operands.left(w, row, term)
    });
    let bounds = [columns, terms];
    bring(w, thread, right, operands.right_along(), [first_column, term], bounds, &mut |w, column, term| {
        operands.right(w, term, column)
    });
    w.barrier();
    let mut sums = sums;
    for depth in 0..DEPTH {
        let line = int(w, depth * PITCH);
        let at = w.iadd(line, down);
        let address = w.element(left, at, Element::F32);
        let of_rows = w.load(lanes, address);
        let at = w.iadd(line, over);
        let address = w.element(right, at, Element::F32);
        let of_columns = w.load(lanes, address);
        for (row, sum) in sums.iter_mut().enumerate() {
            let x = w.lane(of_rows, row);
            let x = w.splat(x, SIDE);
            *sum = w.fma(x, of_columns, *sum);
        }
    }
    let sums = w.end_for(&sums);
    let (rows, columns) = (int(w, rows), int(w, columns));
    let mut row = w.iadd(first_row, down);
    for sum in sums {
        let mut column = w.iadd(first_column, over);
        for lane in 0..SIDE {
            let inside = w.compare_ints(Comparison::Less, row, rows);
            let across = w.compare_ints(Comparison::Less, column, columns);
            let inside = w.and(inside, across);
            w.begin_if(inside, &[]);
            let x = w.lane(sum, lane);
            operands.finish(w, row, column, x);
            w.end_if(&[]);
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
    [results, terms]: [usize; 2],
    read: &mut dyn FnMut(&mut Writer, Value, Value) -> Value,
) {
    let int = |w: &mut Writer, n: usize| w.int(Type::I32, n as i64);
    let (results, terms, pitch, zero) =
        (int(w, results), int(w, terms), int(w, PITCH), w.float(Type::F32, 0.0));
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
        let inside = w.compare_ints(Comparison::Less, at, results);
        let inner = w.compare_ints(Comparison::Less, of, terms);
        let inside = w.and(inside, inner);
        w.begin_if(inside, &[Type::F32]);
        let x = read(w, at, of);
        w.otherwise(&[x]);
        let x = w.end_if(&[zero])[0];
        let line = w.imul(depth, pitch);
        let at = w.iadd(line, i);
        let address = w.element(to, at, Element::F32);
        w.store(x, address);
    }
}
