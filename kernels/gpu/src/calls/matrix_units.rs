//! Sums of products by tiles, on matrix units: a warp multiplies 16 rows with 8 columns at once.
//!
//! A block goes through the terms 16 words of 32 bits at a time, with one factor of tf32 or two of 16 bits in a word. Both operands
//! lie in shared memory by results: 16 words of one row or column side by side, so that what a thread hands to the units
//! are words. Rows of shared memory are 20 words apart: the 32 words that a warp reads at once lie in different banks.
//!
//! Which thread hands over and receives what is that of `mma.m16n8k8` for tf32 and `mma.m16n8k16` for 16-bit floats in NVIDIA's
//! document "Parallel Thread Execution ISA". In words the two are the same.

use margay_loops::Arithmetic;
use margay_tensor::DType;

use super::product::{Along, Part, Sink};
use super::stored::Round;
use crate::WARP;
use crate::unit::Unit;
use crate::value::{Element, Type, Value};
use crate::writer::Writer;

/// Words of a row or column that are in shared memory at once.
pub(super) const WORDS: usize = 16;
/// Words from one row or column to the next.
const PITCH: usize = WORDS + 4;
/// Rows, columns and words of terms that the units multiply at once.
const ROWS: usize = 16;
const COLUMNS: usize = 8;
const STEP: usize = 8;
/// Threads of a warp that hand over words of one row, and rows that they do so for.
const QUAD: usize = 4;
const QUADS: usize = WARP / QUAD;
/// Sums that a thread receives of what is multiplied at once.
const SUMS: usize = 4;

/// The results of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tile {
    /// 64 x 64, by four warps.
    Small,
    /// 128 x 128, by eight warps.
    Large,
}

impl Tile {
    /// Every size.
    pub(super) const ALL: [Tile; 2] = [Tile::Small, Tile::Large];

    /// Warps down and across.
    fn warps(self) -> [usize; 2] {
        match self {
            Tile::Small => [2, 2],
            Tile::Large => [2, 4],
        }
    }

    /// What a warp computes, down and across, in units of what is multiplied at once.
    fn of_warp(self) -> [usize; 2] {
        match self {
            Tile::Small => [2, 4],
            Tile::Large => [4, 4],
        }
    }

    /// Rows and columns.
    pub(super) fn results(self) -> [usize; 2] {
        let ([down, across], [rows, columns]) = (self.warps(), self.of_warp());
        [down * rows * ROWS, across * columns * COLUMNS]
    }

    /// Threads of a block.
    pub(super) fn threads(self) -> usize {
        self.warps().iter().product::<usize>() * WARP
    }
}

fn int(w: &mut Writer, n: usize) -> Value {
    w.int(Type::I32, n as i64)
}

/// `x * by + further`.
fn scaled(w: &mut Writer, x: Value, by: usize, further: Value) -> Value {
    let by = int(w, by);
    let x = w.imul(x, by);
    w.iadd(x, further)
}

/// `x + by`.
fn after(w: &mut Writer, x: Value, by: usize) -> Value {
    let by = int(w, by);
    w.iadd(x, by)
}

/// Writes the sums of a block.
pub(super) fn write(w: &mut Writer, part: &Part<'_>, unit: Unit, tile: Tile, sink: &Sink<'_>) {
    let [rows, columns] = tile.results();
    let [first_row, first_column] = part.corner(w, tile.results());
    let thread = w.thread();
    let left = Held { array: w.shared(rows * PITCH * 4), results: rows, along: part.operands.left_along() };
    let right =
        Held { array: w.shared(columns * PITCH * 4), results: columns, along: part.operands.right_along() };
    let block = Block { unit, tile, thread };
    let warp = Warp::new(w, tile, thread);
    let [down, across] = tile.of_warp();
    let nothing = w.float(Type::F32, 0.0);
    let step = int(w, WORDS * unit.terms_of_word());
    let (term, sums) = w.begin_for(part.first, part.end, step, &vec![nothing; down * across * SUMS]);
    // The tiles of the round before have been read.
    w.barrier();
    let terms = WORDS * unit.terms_of_word();
    part.operands.begin(w, &Round { term, terms, column: first_column, columns, thread });
    block.bring(w, &left, [first_row, term], &|w, row, term| {
        let held = part.left(w, row, term);
        factor(w, unit, held, part.shape.left, |w| part.left_factor(w, held))
    });
    block.bring(w, &right, [first_column, term], &|w, column, term| {
        let held = part.right(w, term, column);
        factor(w, unit, held, part.shape.right, |w| part.right_factor(w, held))
    });
    w.barrier();
    let mut sums = sums;
    for step in 0..WORDS / STEP {
        let of_rows: Vec<[Value; 4]> = (0..down).map(|i| warp.of_rows(w, left.array, i, step)).collect();
        let of_columns: Vec<[Value; 2]> =
            (0..across).map(|j| warp.of_columns(w, right.array, j, step)).collect();
        for (i, &a) in of_rows.iter().enumerate() {
            for (j, &b) in of_columns.iter().enumerate() {
                let at = (i * across + j) * SUMS;
                let c = [sums[at], sums[at + 1], sums[at + 2], sums[at + 3]];
                let d = w.multiply(unit, a, b, c);
                sums[at..at + SUMS].copy_from_slice(&d);
            }
        }
    }
    let sums = w.end_for(&sums);
    for (number, sums) in sums.chunks(SUMS).enumerate() {
        let row = after(w, warp.row, number / across * ROWS);
        let row = w.iadd(first_row, row);
        let below = after(w, row, QUADS);
        let column = after(w, warp.column_of_sums, number % across * COLUMNS);
        let column = w.iadd(first_column, column);
        let beside = after(w, column, 1);
        let places = [[row, column], [row, beside], [below, column], [below, beside]];
        for (place, &sum) in places.into_iter().zip(sums) {
            part.give(w, place, sum, sink);
        }
    }
}

/// The bits of a factor as the units take it. `widened` gives it as an f32.
fn factor(
    w: &mut Writer,
    unit: Unit,
    held: Value,
    dtype: DType,
    widened: impl FnOnce(&mut Writer) -> Value,
) -> Value {
    let half = match unit {
        Unit::Tf32 => {
            let x = widened(w);
            return if dtype == DType::F32 { rounded_to_tf32(w, x) } else { w.bits(x) };
        }
        Unit::Bf16 => DType::BF16,
        Unit::F16 => DType::F16,
    };
    if dtype == half {
        return w.resize(held, Element::I32, false);
    }
    let x = widened(w);
    w.narrow_half(x, half)
}

/// The bits of the number with 10 bits behind the point that is nearest to x, ties away from zero. The units would
/// drop the other bits.
fn rounded_to_tf32(w: &mut Writer, x: Value) -> Value {
    let bits = w.bits(x);
    let (half, mask) = (w.int(Type::I32, 0x1000), w.int(Type::I32, !0x1fff));
    let rounded = w.iadd(bits, half);
    let rounded = w.and(rounded, mask);
    // Rounding could make the last bits of what is no number those of a number.
    let quiet = w.int(Type::I32, 0x7fc0_0000);
    let is_nan = w.compare(margay_loops::Comparison::Unordered, x, x);
    w.choose(is_nan, quiet, rounded)
}

/// An operand in shared memory.
struct Held {
    array: Value,
    /// Its rows or columns.
    results: usize,
    /// How it is read.
    along: Along,
}

struct Block {
    unit: Unit,
    tile: Tile,
    thread: Value,
}

impl Block {
    /// Brings a tile of an operand into shared memory. `factor` reads one of a row or column and a term, as bits.
    fn bring(
        &self,
        w: &mut Writer,
        to: &Held,
        [first, term]: [Value; 2],
        factor: &dyn Fn(&mut Writer, Value, Value) -> Value,
    ) {
        let threads = self.tile.threads();
        let width = if to.along == Along::Results { to.results } else { WORDS };
        let by = int(w, width);
        let (slow, fast) = (w.divide(self.thread, by), w.remainder(self.thread, by));
        let of_word = self.unit.terms_of_word();
        for round in 0..to.results * WORDS / threads {
            let slow = after(w, slow, round * threads / width);
            let (result, word) = if to.along == Along::Results { (fast, slow) } else { (slow, fast) };
            let at = w.iadd(first, result);
            let mut bits = None;
            for number in 0..of_word {
                let further = int(w, number);
                let of = scaled(w, word, of_word, further);
                let of = w.iadd(term, of);
                let x = factor(w, at, of);
                bits = Some(match bits {
                    None => x,
                    Some(low) => {
                        let high = w.shift_left(x, 16);
                        w.or(low, high)
                    }
                });
            }
            let place = scaled(w, result, PITCH, word);
            let address = w.element(to.array, place, Element::I32);
            w.store(bits.expect("a word has terms"), address);
        }
    }
}

/// A thread of a warp: which words it hands over, and which sums it receives.
struct Warp {
    /// The row in the tile of its first words and of its first two sums.
    row: Value,
    /// The column in the tile of its words.
    column: Value,
    /// The column in the tile of its first sum; the second is beside it.
    column_of_sums: Value,
    /// The word of its row or column that it hands over first.
    word: Value,
}

impl Warp {
    fn new(w: &mut Writer, tile: Tile, thread: Value) -> Warp {
        let (size, quad) = (int(w, WARP), int(w, QUAD));
        let (warp, lane) = (w.divide(thread, size), w.remainder(thread, size));
        let (group, word) = (w.divide(lane, quad), w.remainder(lane, quad));
        let across = int(w, tile.warps()[1]);
        let (down, over) = (w.divide(warp, across), w.remainder(warp, across));
        let [rows, columns] = tile.of_warp();
        let column = scaled(w, over, columns * COLUMNS, group);
        let two = int(w, 2);
        let pair = w.imul(word, two);
        Warp {
            row: scaled(w, down, rows * ROWS, group),
            column,
            column_of_sums: scaled(w, over, columns * COLUMNS, pair),
            word,
        }
    }

    /// The words of the left operand: of a row and the one 8 below, each of the first and of the second four words.
    fn of_rows(&self, w: &mut Writer, array: Value, number: usize, step: usize) -> [Value; 4] {
        let row = after(w, self.row, number * ROWS);
        let below = after(w, row, QUADS);
        let word = after(w, self.word, step * STEP);
        let further = after(w, word, QUAD);
        [(row, word), (below, word), (row, further), (below, further)]
            .map(|(row, word)| held(w, array, row, word))
    }

    /// The words of the right operand: of a column, of the first and of the second four words.
    fn of_columns(&self, w: &mut Writer, array: Value, number: usize, step: usize) -> [Value; 2] {
        let column = after(w, self.column, number * COLUMNS);
        let word = after(w, self.word, step * STEP);
        let further = after(w, word, QUAD);
        [word, further].map(|word| held(w, array, column, word))
    }
}

fn held(w: &mut Writer, array: Value, result: Value, word: Value) -> Value {
    let at = scaled(w, result, PITCH, word);
    let address = w.element(array, at, Element::I32);
    w.load(Type::I32, address)
}
