//! Products of few rows: each element of the right operand is read once, by neighbouring threads where it lies side by side.
//!
//! A block computes all rows of a strip of 32 columns. It goes through the terms 256 at a time, for which it brings the left
//! operand into shared memory, four rows side by side. Where columns of the right operand are neighbours, a thread has one
//! column, and the warps take turns with the terms; where terms are, a warp has four columns, and its threads take turns.
//! The sums of warps and of threads are joined in a fixed order.

use margay_loops::{Arithmetic, Comparison};

use super::product::{Along, Part, Sink};
use super::stored::Round;
use crate::WARP;
use crate::value::{Element, Type, Value};
use crate::writer::Writer;

/// The most rows.
pub(super) const MOST_ROWS: usize = 16;
/// Columns of a block.
pub(super) const STRIP: usize = WARP;
/// Threads of a block.
pub(super) const THREADS: usize = 256;
/// Terms that are in shared memory at once; every thread brings one of each row.
pub(super) const CHUNK: usize = THREADS;
const WARPS: usize = THREADS / WARP;
/// Rows that lie side by side in shared memory.
const SIDE: usize = 4;
/// Columns of a warp where its threads take turns with the terms.
const COLUMNS: usize = STRIP / WARPS;
/// Terms of a thread that are read before the first is used.
const AHEAD: usize = 4;

const LANES: Type = Type { element: Element::F32, lanes: SIDE };

/// Rows, rounded up to what is computed.
pub(super) fn padded(rows: usize) -> usize {
    rows.max(SIDE).next_power_of_two()
}

fn int(w: &mut Writer, n: usize) -> Value {
    w.int(Type::I32, n as i64)
}

/// Writes the sums of a block.
pub(super) fn write(w: &mut Writer, part: &Part<'_>, sink: &Sink<'_>) {
    let groups = padded(part.shape.rows) / SIDE;
    let thread = w.thread();
    let size = int(w, WARP);
    let strip = Strip {
        part,
        groups,
        held: w.shared(groups * CHUNK * SIDE * 4),
        sums: w.shared(WARPS * STRIP * groups * SIDE * 4),
        thread,
        lane: w.remainder(thread, size),
        warp: w.divide(thread, size),
        first_column: part.corner(w, [padded(part.shape.rows), STRIP])[1],
    };
    let along = part.operands.right_along();
    let sums_of_thread = match along {
        Along::Results => groups,
        Along::Terms => groups * COLUMNS,
    };
    let (step, nothing) = (int(w, CHUNK), w.float(LANES, 0.0));
    let (term, sums) = w.begin_for(part.first, part.end, step, &vec![nothing; sums_of_thread]);
    // What was brought in the round before has been read.
    w.barrier();
    let round = Round { term, terms: CHUNK, column: strip.first_column, columns: STRIP, thread };
    part.operands.begin(w, &round);
    strip.bring(w, term);
    w.barrier();
    let left = w.isub(part.end, term);
    let here = w.int_bound(false, true, left, step);
    let sums = match along {
        Along::Results => strip.by_columns(w, term, here, &sums),
        Along::Terms => strip.by_terms(w, term, here, &sums),
    };
    let sums = w.end_for(&sums);
    let parts = match along {
        Along::Results => strip.leave_columns(w, &sums),
        Along::Terms => strip.leave_terms(w, &sums),
    };
    w.barrier();
    strip.join(w, parts, sink);
}

/// A strip of columns, and the thread that works on it.
struct Strip<'p> {
    part: &'p Part<'p>,
    /// Groups of rows.
    groups: usize,
    /// The left operand: for each group and term the rows of the group.
    held: Value,
    /// Sums: for each part, group and column the rows of the group.
    sums: Value,
    thread: Value,
    lane: Value,
    warp: Value,
    first_column: Value,
}

impl Strip<'_> {
    /// Brings the terms from `term` on of all rows into shared memory.
    fn bring(&self, w: &mut Writer, term: Value) {
        let rows = self.groups * SIDE;
        for round in 0..rows {
            let (row, depth) = match self.part.operands.left_along() {
                Along::Terms => (int(w, round), self.thread),
                Along::Results => {
                    let (all, further) = (int(w, rows), int(w, round * (THREADS / rows)));
                    let (slow, row) = (w.divide(self.thread, all), w.remainder(self.thread, all));
                    (row, w.iadd(slow, further))
                }
            };
            let of = w.iadd(term, depth);
            let held = self.part.left(w, row, of);
            let x = self.part.left_factor(w, held);
            let (side, chunk) = (int(w, SIDE), int(w, CHUNK));
            let (group, inner) = (w.divide(row, side), w.remainder(row, side));
            let at = w.imul(group, chunk);
            let at = w.iadd(at, depth);
            let at = w.imul(at, side);
            let at = w.iadd(at, inner);
            let address = w.element(self.held, at, Element::F32);
            w.store(x, address);
        }
    }

    /// The rows of a group at a term of those that were brought.
    fn rows(&self, w: &mut Writer, group: usize, depth: Value) -> Value {
        let first = int(w, group * CHUNK);
        self.side_by_side(w, self.held, first, depth)
    }

    /// The vector number `first + further` of an array.
    fn side_by_side(&self, w: &mut Writer, array: Value, first: Value, further: Value) -> Value {
        let address = self.vector(w, array, first, further);
        w.load(LANES, address)
    }

    fn vector(&self, w: &mut Writer, array: Value, first: Value, further: Value) -> Value {
        let (at, side) = (w.iadd(first, further), int(w, SIDE));
        let at = w.imul(at, side);
        w.element(array, at, Element::F32)
    }

    /// Adds terms to the sums of a thread with one column: its warp takes every eighth term.
    fn by_columns(&self, w: &mut Writer, term: Value, here: Value, sums: &[Value]) -> Vec<Value> {
        let column = w.iadd(self.first_column, self.lane);
        let (zero, step) = (int(w, 0), int(w, WARPS * AHEAD));
        let (base, sums) = w.begin_for(zero, here, step, sums);
        let mut sums = sums;
        let mut read = Vec::with_capacity(AHEAD);
        for ahead in 0..AHEAD {
            let further = int(w, ahead * WARPS);
            let depth = w.iadd(base, further);
            let depth = w.iadd(depth, self.warp);
            let of = w.iadd(term, depth);
            read.push((depth, self.part.right(w, of, column)));
        }
        for (depth, held) in read {
            let x = self.part.right_factor(w, held);
            let x = w.splat(x, SIDE);
            for (group, sum) in sums.iter_mut().enumerate() {
                let rows = self.rows(w, group, depth);
                *sum = w.fma(rows, x, *sum);
            }
        }
        w.end_for(&sums)
    }

    /// Adds terms to the sums of a thread with four columns: it takes every 32nd term.
    fn by_terms(&self, w: &mut Writer, term: Value, here: Value, sums: &[Value]) -> Vec<Value> {
        let (zero, step) = (int(w, 0), int(w, WARP));
        let (base, sums) = w.begin_for(zero, here, step, sums);
        let depth = w.iadd(base, self.lane);
        let of = w.iadd(term, depth);
        let held: Vec<Value> = (0..COLUMNS)
            .map(|number| {
                let column = self.column_of_warp(w, number);
                let column = w.iadd(self.first_column, column);
                self.part.right(w, of, column)
            })
            .collect();
        let rows: Vec<Value> = (0..self.groups).map(|group| self.rows(w, group, depth)).collect();
        let mut added = Vec::with_capacity(sums.len());
        for (held, sums) in held.into_iter().zip(sums.chunks(self.groups)) {
            let x = self.part.right_factor(w, held);
            let x = w.splat(x, SIDE);
            for (&rows, &sum) in rows.iter().zip(sums) {
                added.push(w.fma(rows, x, sum));
            }
        }
        w.end_for(&added)
    }

    /// The column in the strip of a number among those of the warp.
    fn column_of_warp(&self, w: &mut Writer, number: usize) -> Value {
        let (columns, number) = (int(w, COLUMNS), int(w, number));
        let first = w.imul(self.warp, columns);
        w.iadd(first, number)
    }

    /// Leaves the sums of each warp in shared memory. Returns how many parts of a sum there are.
    fn leave_columns(&self, w: &mut Writer, sums: &[Value]) -> usize {
        let of_warp = int(w, self.groups * STRIP);
        let first = w.imul(self.warp, of_warp);
        for (group, &sum) in sums.iter().enumerate() {
            let line = int(w, group * STRIP);
            let line = w.iadd(first, line);
            let address = self.vector(w, self.sums, line, self.lane);
            w.store(sum, address);
        }
        WARPS
    }

    /// Leaves sums over the threads of a warp in shared memory. Returns how many parts of a sum there are.
    fn leave_terms(&self, w: &mut Writer, sums: &[Value]) -> usize {
        let joined: Vec<Vec<Value>> = sums.iter().map(|&sum| over_warp(w, sum)).collect();
        let zero = int(w, 0);
        let is_first = w.compare_ints(Comparison::Equal, self.lane, zero);
        w.begin_if(is_first, &[]);
        for (number, lanes) in joined.iter().enumerate() {
            let column = self.column_of_warp(w, number / self.groups);
            let line = int(w, number % self.groups * STRIP);
            for (lane, &x) in lanes.iter().enumerate() {
                let address = self.vector(w, self.sums, line, column);
                let lane = int(w, lane);
                let address = w.element(address, lane, Element::F32);
                w.store(x, address);
            }
        }
        w.end_if(&[]);
        1
    }

    /// Adds the parts of each sum in their order, and hands the sums on: neighbours have neighbouring columns.
    fn join(&self, w: &mut Writer, parts: usize, sink: &Sink<'_>) {
        let (zero, all, step) = (int(w, 0), int(w, self.part.shape.rows * STRIP), int(w, THREADS));
        let (first, _) = w.begin_for(zero, all, step, &[]);
        let at = w.iadd(first, self.thread);
        let (strip, side) = (int(w, STRIP), int(w, SIDE));
        let (row, column) = (w.divide(at, strip), w.remainder(at, strip));
        let (group, inner) = (w.divide(row, side), w.remainder(row, side));
        let line = w.imul(group, strip);
        let is_there = w.compare_ints(Comparison::Less, at, all);
        w.begin_if(is_there, &[]);
        let mut sum = w.float(Type::F32, 0.0);
        for number in 0..parts {
            let of_part = int(w, number * self.groups * STRIP);
            let line = w.iadd(line, of_part);
            let address = self.vector(w, self.sums, line, column);
            let address = w.element(address, inner, Element::F32);
            let x = w.load(Type::F32, address);
            sum = w.fadd(sum, x);
        }
        let column = w.iadd(self.first_column, column);
        self.part.give(w, [row, column], sum, sink);
        w.end_if(&[]);
        w.end_for(&[]);
    }
}

/// The sum over a warp of each lane of a vector, in every thread.
fn over_warp(w: &mut Writer, x: Value) -> Vec<Value> {
    let mut lanes: Vec<Value> = (0..SIDE).map(|lane| w.lane(x, lane)).collect();
    for lane in &mut lanes {
        let mut distance = WARP / 2;
        while distance > 0 {
            let other = w.shuffle(*lane, distance);
            *lane = w.fadd(*lane, other);
            distance /= 2;
        }
    }
    lanes
}
