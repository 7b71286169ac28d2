//! Products of any source: what kernels of all forms are made of, and the sums that are split.
//!
//! A kernel computes the sums of a product, or parts of them. Where sums are split their parts lie in the workspace, and a
//! second kernel adds them in order before it does what is left: nothing depends on which block comes first.

use margay_loops::{Arithmetic, Comparison, KernelCall};
use margay_tensor::DType;

use super::epilogue::{widened, zero};
use super::schedule::{Form, Schedule, Shape};
use super::stored::Round;
use super::{Arguments, Written, few_rows, matrix_units, tile};
use crate::operations::is_signed;
use crate::target::GpuTarget;
use crate::value::{Element, Type, Value};
use crate::writer::Writer;

/// How threads are spread over a tile of an operand, so that neighbours read neighbours in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Along {
    /// Neighbouring threads read neighbouring rows of the left operand, or columns of the right one.
    Results,
    /// Neighbouring threads read neighbouring terms.
    Terms,
}

/// A call that is a product.
pub(super) trait Product {
    /// The call itself.
    fn call(&self) -> KernelCall;

    /// Bytes at the begin of the workspace that its operands are in, or its results.
    fn kept_bytes(&self) -> usize;

    /// Its extents and types.
    fn shape(&self) -> Shape;

    /// The operands of one of its repetitions. The arguments of the call are taken.
    fn operands<'p>(
        &'p self,
        w: &mut Writer,
        args: &mut Arguments,
        repetition: Value,
    ) -> Box<dyn Operands + 'p>;
}

/// What one product is made of. Positions are I32, and inside of its extents where they are handed over.
pub(super) trait Operands {
    /// Makes what the right operand needs for a round of terms. Every thread of the block takes part, between two barriers.
    fn begin(&self, w: &mut Writer, round: &Round);

    /// How the left operand is read.
    fn left_along(&self) -> Along;

    /// How the right operand is read.
    fn right_along(&self) -> Along;

    /// The element of the left operand of a row and a term, as it lies in memory.
    fn left(&self, w: &mut Writer, row: Value, term: Value) -> Value;

    /// The element of the right operand of a term and a column, as it lies in memory.
    fn right(&self, w: &mut Writer, term: Value, column: Value) -> Value;

    /// Does what is left to do with a sum.
    fn finish(&self, w: &mut Writer, row: Value, column: Value, sum: Value);
}

/// What a block computes: sums over the terms from `first` to `end` for tile number `tile`.
pub(super) struct Part<'p> {
    pub(super) shape: &'p Shape,
    pub(super) operands: &'p dyn Operands,
    /// Tiles are numbered along columns first.
    pub(super) tile: Value,
    pub(super) first: Value,
    pub(super) end: Value,
}

/// What takes a row, a column and their sum.
pub(super) type Sink<'s> = dyn Fn(&mut Writer, Value, Value, Value) + 's;

impl Part<'_> {
    /// An element of the left operand as it lies in memory; zero where it has none.
    pub(super) fn left(&self, w: &mut Writer, row: Value, term: Value) -> Value {
        self.inside(w, [row, term], self.shape.rows, self.shape.left, &|w| self.operands.left(w, row, term))
    }

    /// An element of the right operand as it lies in memory; zero where it has none.
    pub(super) fn right(&self, w: &mut Writer, term: Value, column: Value) -> Value {
        let read = |w: &mut Writer| self.operands.right(w, term, column);
        self.inside(w, [column, term], self.shape.columns, self.shape.right, &read)
    }

    fn inside(
        &self,
        w: &mut Writer,
        [at, term]: [Value; 2],
        extent: usize,
        dtype: DType,
        read: &dyn Fn(&mut Writer) -> Value,
    ) -> Value {
        let (extent, none) = (w.int(Type::I32, extent as i64), zero(w, dtype));
        let is_result = w.compare_ints(Comparison::Less, at, extent);
        let is_term = w.compare_ints(Comparison::Less, term, self.end);
        let inside = w.and(is_result, is_term);
        w.begin_if(inside, &[none.ty]);
        let x = read(w);
        w.otherwise(&[x]);
        w.end_if(&[none])[0]
    }

    /// An element of the left operand as the f32 or the i32 that is multiplied.
    pub(super) fn left_factor(&self, w: &mut Writer, held: Value) -> Value {
        if self.shape.left.is_int() {
            return w.resize(held, Element::I32, is_signed(self.shape.left));
        }
        let x = widened(w, held, self.shape.left);
        match self.shape.left_rounded {
            to if to == self.shape.left => x,
            to => w.round_half(x, to),
        }
    }

    /// An element of the right operand as the f32 or the i32 that is multiplied.
    pub(super) fn right_factor(&self, w: &mut Writer, held: Value) -> Value {
        if self.shape.right.is_int() {
            return w.resize(held, Element::I32, is_signed(self.shape.right));
        }
        widened(w, held, self.shape.right)
    }

    /// Hands a sum on, if it belongs to a result.
    pub(super) fn give(&self, w: &mut Writer, [row, column]: [Value; 2], sum: Value, sink: &Sink<'_>) {
        let rows = w.int(Type::I32, self.shape.rows as i64);
        let columns = w.int(Type::I32, self.shape.columns as i64);
        let inside = w.compare_ints(Comparison::Less, row, rows);
        let across = w.compare_ints(Comparison::Less, column, columns);
        let inside = w.and(inside, across);
        w.begin_if(inside, &[]);
        sink(w, row, column, sum);
        w.end_if(&[]);
    }

    /// The first row and column of the tile, of tiles of a size.
    pub(super) fn corner(&self, w: &mut Writer, [rows, columns]: [usize; 2]) -> [Value; 2] {
        let across = w.int(Type::I32, self.shape.columns.div_ceil(columns) as i64);
        let (down, over) = (w.divide(self.tile, across), w.remainder(self.tile, across));
        let (rows, columns) = (w.int(Type::I32, rows as i64), w.int(Type::I32, columns as i64));
        [w.imul(down, rows), w.imul(over, columns)]
    }
}

/// The bytes of workspace for parts of the sums of a product.
pub(super) fn parts_bytes(product: &dyn Product, target: GpuTarget) -> usize {
    let shape = product.shape();
    Schedule::of(&shape, &product.call(), target).workspace_bytes(&shape)
}

/// The kernels of a product.
pub(super) fn write(product: &dyn Product, target: GpuTarget) -> Vec<Written> {
    let shape = product.shape();
    let schedule = Schedule::of(&shape, &product.call(), target);
    let mut kernels = vec![write_sums(product, &shape, schedule)];
    if schedule.parts > 1 {
        kernels.push(write_join(product, &shape, schedule));
    }
    kernels
}

/// Quotient and remainder of the number of a block.
fn divided(w: &mut Writer, number: Value, by: usize) -> [Value; 2] {
    let by = w.int(Type::I32, by as i64);
    [w.divide(number, by), w.remainder(number, by)]
}

/// The kernel that computes sums, or their parts.
fn write_sums(product: &dyn Product, shape: &Shape, schedule: Schedule) -> Written {
    let Schedule { form, parts, terms } = schedule;
    let mut args = Arguments::new(&product.call(), parts > 1 || product.kept_bytes() > 0);
    let (mut w, values) = Writer::new(args.params(), form.threads());
    args.values(&values);
    let blocks = form.blocks(shape);
    let number = w.block_number();
    let [number, part] = divided(&mut w, number, parts);
    let [repetition, tile] = divided(&mut w, number, blocks);
    let operands = product.operands(&mut w, &mut args, repetition);
    let all_terms = w.int(Type::I32, shape.terms as i64);
    let (first, end) = if parts == 1 {
        (w.int(Type::I32, 0), all_terms)
    } else {
        let of_part = w.int(Type::I32, terms as i64);
        let first = w.imul(part, of_part);
        let end = w.iadd(first, of_part);
        (first, w.int_bound(false, true, end, all_terms))
    };
    let part_of = Part { shape, operands: &*operands, tile, first, end };
    let sums = |w: &mut Writer, sink: &Sink<'_>| match form {
        Form::FewRows => few_rows::write(w, &part_of, sink),
        Form::Tiles => tile::write(w, &part_of, sink),
        Form::MatrixUnits(unit, tile) => matrix_units::write(w, &part_of, unit, tile, sink),
    };
    if parts == 1 {
        sums(&mut w, &|w, row, column, sum| operands.finish(w, row, column, sum));
    } else {
        let workspace = parts_in(&mut w, product, &args);
        let repetitions = w.int(Type::I32, shape.repetitions as i64);
        let line = w.imul(part, repetitions);
        let line = w.iadd(line, repetition);
        sums(&mut w, &|w, row, column, sum| {
            let at = position(w, shape, [line, row, column]);
            let address = w.element(workspace, at, sum.ty.element);
            w.store(sum, address);
        });
    }
    let threads = form.threads();
    Written { text: w.finish(), blocks: blocks * parts * shape.repetitions, threads }
}

/// The begin of the parts of sums in the workspace.
fn parts_in(w: &mut Writer, product: &dyn Product, args: &Arguments) -> Value {
    match product.kept_bytes() / 4 {
        0 => args.workspace(),
        elements => {
            let elements = w.int(Type::I32, elements as i64);
            w.element(args.workspace(), elements, Element::F32)
        }
    }
}

/// Where the part of a sum lies in the workspace: `(line * rows + row) * columns + column`.
fn position(w: &mut Writer, shape: &Shape, [line, row, column]: [Value; 3]) -> Value {
    let (rows, columns) = (w.int(Type::I32, shape.rows as i64), w.int(Type::I32, shape.columns as i64));
    let at = w.imul(line, rows);
    let at = w.iadd(at, row);
    let at = w.imul(at, columns);
    w.iadd(at, column)
}

/// Threads of a block that adds parts of sums.
const JOINING: usize = 256;

/// The kernel that adds the parts of each sum: a thread for each.
fn write_join(product: &dyn Product, shape: &Shape, schedule: Schedule) -> Written {
    let mut args = Arguments::new(&product.call(), true);
    let (mut w, values) = Writer::new(args.params(), JOINING);
    args.values(&values);
    let results = shape.rows * shape.columns * shape.repetitions;
    let (size, all) = (w.int(Type::I32, JOINING as i64), w.int(Type::I32, results as i64));
    let (block, thread) = (w.block_number(), w.thread());
    let first = w.imul(block, size);
    let at = w.iadd(first, thread);
    let is_there = w.compare_ints(Comparison::Less, at, all);
    w.begin_if(is_there, &[]);
    let [rest, column] = divided(&mut w, at, shape.columns);
    let [repetition, row] = divided(&mut w, rest, shape.rows);
    let operands = product.operands(&mut w, &mut args, repetition);
    let workspace = parts_in(&mut w, product, &args);
    let part = |w: &mut Writer, at: Value| {
        let ty = shape.sums();
        let address = w.element(workspace, at, ty.element);
        w.load(ty, address)
    };
    let sum = part(&mut w, at);
    let (one, parts) = (w.int(Type::I32, 1), w.int(Type::I32, schedule.parts as i64));
    let (number, sums) = w.begin_for(one, parts, one, &[sum]);
    let further = w.imul(number, all);
    let place = w.iadd(at, further);
    let x = part(&mut w, place);
    let sum = match shape.sums() {
        Type::F32 => w.fadd(sums[0], x),
        _ => w.iadd(sums[0], x),
    };
    let sum = w.end_for(&[sum])[0];
    operands.finish(&mut w, row, column, sum);
    w.end_if(&[]);
    Written { text: w.finish(), blocks: results.div_ceil(JOINING), threads: JOINING }
}
