//! Right operands that are constants in a narrow storage, or random signs: kernels read them as they are stored.
//!
//! Of a narrow storage an element is `(q - zero) scale`, computed in f32 as [`Storage`] says: codes, scales and zero points lie in
//! the bytes of the constant. Signs are made of the name of their stream and read nowhere. For each round of terms the threads
//! of a block make the blocks of the generator that the signs of the round are in, each once, and leave their bits in shared
//! memory: the same bits as on the processor (Philox4x32-10; Salmon et al., SC 2011).

use std::cell::Cell;

use margay_loops::{Arithmetic, Comparison, Packed};
use margay_tensor::random::Philox;
use margay_tensor::{DType, Scales, Signs, Storage, StoredTensor};

use super::epilogue::load;
use crate::value::{Element, Type, Value};
use crate::writer::Writer;

/// In front of the storage in the name of a layout.
const LAYOUT: &str = "stored ";

/// Signs of a block of the generator, and its words.
const BLOCK: usize = 128;
const WORDS: usize = 4;

/// Whether kernels read constants of a storage as they are stored.
pub(super) fn is_read(storage: &Storage) -> bool {
    storage.signs.is_some() || storage.scales != Scales::None
}

/// What a product needs of a constant of `k` rows and `n` columns.
pub(super) fn packed(storage: &Storage, shape: [usize; 2]) -> Packed {
    Packed { operand: 1, layout: format!("{LAYOUT}{storage}"), bytes: storage.layout(&shape).bytes }
}

/// The storage of a matrix as that of a tensor with so many axes before it, each of extent 1; `None` for axes beyond all numbers.
fn behind(storage: Storage, outer: usize) -> Option<Storage> {
    let scales = match storage.scales {
        Scales::Axis(axis) => Scales::Axis(axis.checked_add(outer)?),
        Scales::Block { axis, size } => Scales::Block { axis: axis.checked_add(outer)?, size },
        shared @ (Scales::None | Scales::Tensor) => shared,
    };
    let signs = match storage.signs {
        Some(signs) => Some(signs.along(signs.axis.checked_add(outer)?)),
        None => None,
    };
    Some(Storage { scales, signs, ..storage })
}

/// The bytes of a constant: as they are.
///
/// # Errors
/// Why they are not those that a product reads.
pub(super) fn pack(storage: &Storage, shape: [usize; 2], stored: &StoredTensor) -> Result<Vec<u8>, String> {
    let bytes = stored.to_bytes();
    let count: usize = stored.shape().iter().product();
    match count == shape[0] * shape[1] && bytes.len() == storage.layout(&shape).bytes {
        true => Ok(bytes),
        false => {
            Err(format!("{:?} stored {} for {shape:?} stored {storage}", stored.shape(), stored.storage()))
        }
    }
}

/// The constant of a shape that bytes of a layout are.
///
/// # Errors
/// What does not fit.
pub(super) fn unpack(layout: &str, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, String> {
    let storage = layout.strip_prefix(LAYOUT).and_then(Storage::parse);
    let outer = shape.len().checked_sub(2).ok_or("it is no matrix")?;
    let storage = storage.and_then(|storage| behind(storage, outer));
    let storage = storage.ok_or_else(|| format!("unknown layout `{layout}`"))?;
    StoredTensor::from_bytes(DType::F32, shape, storage, bytes).map_err(|e| e.to_string())
}

/// A round of terms that a block brings at once.
pub(super) struct Round {
    /// The first term, and how many there are.
    pub(super) term: Value,
    pub(super) terms: usize,
    /// The first column of the tile, and how many it has.
    pub(super) column: Value,
    pub(super) columns: usize,
    /// The number of the thread in its block.
    pub(super) thread: Value,
}

/// Bits of signs in shared memory.
#[derive(Clone, Copy)]
struct Bits {
    array: Value,
    /// The term and the column of the first of them.
    term: Value,
    column: Value,
    /// Blocks of the generator for each term.
    blocks: usize,
}

/// A constant of `k` rows and `n` columns as kernels read it.
pub(super) struct Constant {
    storage: Storage,
    shape: [usize; 2],
    base: Value,
    /// The type of positions in memory.
    ty: Type,
    bits: Cell<Option<Bits>>,
}

/// The type of positions in a constant where `ty` is that of elements in memory: the numbers of its bytes have to fit, and where
/// codes lie across bytes those of its bits. Signs are numbered in I32; [`Storage`] admits no more of them.
fn positions(storage: &Storage, shape: [usize; 2], ty: Type) -> Type {
    let bytes = storage.layout(&shape).bytes;
    let counted = if storage.bits < 8 { bytes.saturating_mul(8) } else { bytes };
    if counted > i32::MAX as usize { Type::I64 } else { ty }
}

fn int(w: &mut Writer, n: usize) -> Value {
    w.int(Type::I32, n as i64)
}

impl Constant {
    pub(super) fn new(storage: Storage, shape: [usize; 2], base: Value, ty: Type) -> Constant {
        let ty = positions(&storage, shape, ty);
        Constant { storage, shape, base, ty, bits: Cell::new(None) }
    }

    /// Makes what the elements of a round need; every thread of the block takes part.
    pub(super) fn begin(&self, w: &mut Writer, round: &Round) {
        let Some(signs) = self.storage.signs.filter(|signs| !signs.is_empty()) else { return };
        let blocks = self.blocks_of_term(&signs, round.columns);
        let all = round.terms * blocks;
        let array = w.shared(4 * WORDS * all);
        let (all, by, step) = (int(w, all), int(w, blocks), int(w, w.block()));
        let (number, _) = w.begin_for(round.thread, all, step, &[]);
        let (line, further) = (w.divide(number, by), w.remainder(number, by));
        let term = w.iadd(round.term, line);
        let block = self.first_block(w, &signs, term, round.column);
        let block = w.iadd(block, further);
        let words = philox(w, signs.seed, signs.stream, block);
        for (i, word) in words.into_iter().enumerate() {
            let (by, i) = (int(w, WORDS), int(w, i));
            let at = w.imul(number, by);
            let at = w.iadd(at, i);
            let address = w.element(array, at, Element::I32);
            w.store(word, address);
        }
        w.end_for(&[]);
        w.barrier();
        let (term, column) = (round.term, round.column);
        self.bits.set(Some(Bits { array, term, column, blocks }));
    }

    /// Blocks of the generator that the signs of so many columns beside each other are in, at most.
    fn blocks_of_term(&self, signs: &Signs, columns: usize) -> usize {
        let aligned = self.line(signs).is_multiple_of(BLOCK)
            && (signs.axis == 0 || signs.from.is_multiple_of(columns))
            && BLOCK.is_multiple_of(columns);
        if aligned { 1 } else { columns.div_ceil(BLOCK) + 1 }
    }

    /// Signs of a term.
    fn line(&self, signs: &Signs) -> usize {
        if signs.axis == 0 { self.shape[1] } else { signs.len() }
    }

    /// The number of the sign of a term and a column, or of the first one behind that.
    fn number(&self, w: &mut Writer, signs: &Signs, term: Value, column: Value) -> Value {
        let (zero, line) = (int(w, 0), int(w, self.line(signs)));
        let from = int(w, signs.from);
        let (term, column) = match signs.axis {
            0 => {
                let term = w.isub(term, from);
                (w.int_bound(true, true, term, zero), column)
            }
            _ => {
                let column = w.isub(column, from);
                (term, w.int_bound(true, true, column, zero))
            }
        };
        let at = w.imul(term, line);
        w.iadd(at, column)
    }

    /// The block of the generator that the first sign of a term from a column on is in.
    fn first_block(&self, w: &mut Writer, signs: &Signs, term: Value, column: Value) -> Value {
        let (first, by) = (self.number(w, signs, term, column), int(w, BLOCK));
        w.divide(first, by)
    }

    /// An element, in f32.
    pub(super) fn element(&self, w: &mut Writer, term: Value, column: Value) -> Value {
        let Some(signs) = self.storage.signs else { return self.decoded(w, term, column) };
        let axis = signs.axis;
        let position = if axis == 0 { term } else { column };
        let (from, to) = (int(w, signs.from), int(w, signs.to));
        if signs.is_empty() {
            return self.number_at(w, [term, column], self.shape[1]);
        }
        if signs.len() == self.shape[axis] {
            return self.sign(w, &signs, term, column);
        }
        let behind = w.compare_ints(Comparison::GreaterOrEqual, position, from);
        let before = w.compare_ints(Comparison::Less, position, to);
        let is_sign = w.and(behind, before);
        w.begin_if(is_sign, &[Type::F32]);
        let sign = self.sign(w, &signs, term, column);
        w.otherwise(&[sign]);
        // What is not signs lies as if they were not there.
        let count = int(w, signs.len());
        let nearer = w.isub(position, count);
        let position = w.choose(behind, nearer, position);
        let number = match axis {
            0 => self.number_at(w, [position, column], self.shape[1]),
            _ => self.number_at(w, [term, position], self.shape[1] - signs.len()),
        };
        w.end_if(&[number])[0]
    }

    /// A number that is stored, of rows of a width.
    fn number_at(&self, w: &mut Writer, at: [Value; 2], width: usize) -> Value {
        let at = self.position(w, at, width);
        load(w, self.base, at, DType::F32)
    }

    /// `row * width + column`.
    fn position(&self, w: &mut Writer, at: [Value; 2], width: usize) -> Value {
        let [row, column] = at.map(|x| w.resize(x, self.ty.element, false));
        let width = w.int(self.ty, width as i64);
        let at = w.imul(row, width);
        w.iadd(at, column)
    }

    fn sign(&self, w: &mut Writer, signs: &Signs, term: Value, column: Value) -> Value {
        let bits = self.bits.get().expect("signs are made before they are read");
        let number = self.number(w, signs, term, column);
        let block = self.first_block(w, signs, term, bits.column);
        let of_block = int(w, BLOCK);
        let before = w.imul(block, of_block);
        let here = w.isub(number, before);
        let line = w.isub(term, bits.term);
        let of_line = int(w, bits.blocks * WORDS);
        let line = w.imul(line, of_line);
        let word = w.shift_right(here, 5);
        let at = w.iadd(line, word);
        let address = w.element(bits.array, at, Element::I32);
        let word = w.load(Type::I32, address);
        let (mask, one) = (int(w, 31), int(w, 1));
        let bit = w.and(here, mask);
        let bit = w.int_shift(false, word, bit);
        let bit = w.and(bit, one);
        // A set bit is -1.
        let bit = w.shift_left(bit, 31);
        let size = w.int(Type::I32, i64::from(signs.size().to_bits()));
        let signed = w.xor(bit, size);
        w.float_of_bits(signed)
    }

    /// An element of a narrow storage.
    fn decoded(&self, w: &mut Writer, term: Value, column: Value) -> Value {
        let [_, n] = self.shape;
        let layout = self.storage.layout(&self.shape);
        let at = self.position(w, [term, column], n);
        let code = self.code(w, 0, layout.elements, at);
        let mut number = w.float_from_int(code);
        let group = match self.storage.scales {
            Scales::None => return number,
            Scales::Tensor => w.int(self.ty, 0),
            Scales::Axis(axis) => w.resize([term, column][axis], self.ty.element, false),
            Scales::Block { axis, size } => {
                let by = int(w, size);
                match axis {
                    0 => {
                        let run = w.divide(term, by);
                        self.position(w, [run, column], n)
                    }
                    _ => {
                        let run = w.divide(column, by);
                        self.position(w, [term, run], n.div_ceil(size))
                    }
                }
            }
        };
        if self.storage.zero_points {
            let zero = self.code(w, layout.zero_points_at, layout.bytes - layout.zero_points_at, group);
            let zero = w.float_from_int(zero);
            number = w.fsub(number, zero);
        }
        let before = w.int(self.ty, layout.scales_at as i64);
        let scales = w.element(self.base, before, Element::I8);
        let scale = super::epilogue::read(w, scales, group, self.storage.scale_type);
        w.fmul(number, scale)
    }

    /// The code at a position among those that begin at a byte and take so many.
    fn code(&self, w: &mut Writer, begin: usize, bytes: usize, at: Value) -> Value {
        let signed = self.storage.dtype == DType::I8;
        let byte = |w: &mut Writer, at: Value| {
            let begin = w.int(self.ty, begin as i64);
            let at = w.iadd(begin, at);
            let address = w.element(self.base, at, Element::I8);
            w.load(Type::scalar(Element::I8), address)
        };
        let width = self.storage.bits;
        if width == 8 {
            let held = byte(w, at);
            return w.resize(held, Element::I32, signed);
        }
        let by = w.int(self.ty, i64::from(width));
        let first = w.imul(at, by);
        let (place, seven) = (w.shift_right(first, 3), w.int(self.ty, 7));
        let shift = w.and(first, seven);
        let shift = w.resize(shift, Element::I32, false);
        let low = byte(w, place);
        let mut word = w.resize(low, Element::I32, false);
        if !8u32.is_multiple_of(width) {
            // The byte behind the last one is none of the constant, and none of its bits counts.
            let (one, last) = (w.int(self.ty, 1), w.int(self.ty, bytes as i64 - 1));
            let next = w.iadd(place, one);
            let next = w.int_bound(false, true, next, last);
            let high = byte(w, next);
            let high = w.resize(high, Element::I32, false);
            let high = w.shift_left(high, 8);
            word = w.or(word, high);
        }
        let word = w.int_shift(false, word, shift);
        let word = w.shift_left(word, 32 - width);
        match signed {
            true => w.shift_right_signed(word, 32 - width),
            false => w.shift_right(word, 32 - width),
        }
    }
}

/// The words of a block of a stream of the generator.
fn philox(w: &mut Writer, seed: u64, stream: u64, block: Value) -> [Value; 4] {
    let word = |w: &mut Writer, x: u32| w.int(Type::I32, i64::from(x));
    let zero = int(w, 0);
    let mut counter = [block, zero, word(w, stream as u32), word(w, (stream >> 32) as u32)];
    let mut key = [seed as u32, (seed >> 32) as u32];
    for round in 0..Philox::ROUNDS {
        if round > 0 {
            key = [0, 1].map(|i| key[i].wrapping_add(Philox::WEYL[i]));
        }
        let products = [0, 1].map(|i| {
            let factor = w.int(Type::I64, i64::from(Philox::MULTIPLIERS[i]));
            let x = w.resize(counter[2 * i], Element::I64, false);
            let product = w.imul(factor, x);
            let high = w.shift_right(product, 32);
            [w.resize(high, Element::I32, false), w.resize(product, Element::I32, false)]
        });
        let mixed = [0, 1].map(|i| {
            let key = word(w, key[i]);
            let x = w.xor(products[1 - i][0], counter[2 * i + 1]);
            w.xor(x, key)
        });
        counter = [mixed[0], products[1][1], mixed[1], products[0][1]];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(text: &str) -> Storage {
        Storage::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn positions_of_large_constants_have_64_bits() {
        let wide = |text: &str, shape| positions(&storage(text), shape, Type::I32) == Type::I64;
        // 900 million codes: their bytes can be counted with 31 bits, and the bits of more than two for each cannot.
        let shape = [30_000, 30_000];
        assert!(!wide("i8(tensor)", shape) && wide("i3(tensor)", shape) && wide("u4(tensor)", shape));
        assert!(!wide("i3(tensor)", [3_000, 3_000]));
        // Scales lie behind the codes.
        assert!(!wide("i8(tensor)", [46_000, 46_000]) && wide("i8(axis = 0, block = 16)", [46_000, 46_000]));
        assert_eq!(positions(&storage("i8(tensor)"), [500, 500], Type::I64), Type::I64);
    }

    #[test]
    fn a_layout_with_an_axis_beyond_all_numbers_is_refused() {
        for text in [
            format!("i8(axis = {})", usize::MAX),
            format!("u4(axis = {}, block = 16)", usize::MAX),
            Storage::with_signs(Signs::new(usize::MAX, [0, 4], [1, 2], 1.0)).to_string(),
        ] {
            let layout = format!("{LAYOUT}{text}");
            let refused = unpack(&layout, &[1, 4, 4], &[0; 64]);
            assert_eq!(refused.unwrap_err(), format!("unknown layout `{layout}`"));
        }
    }
}
