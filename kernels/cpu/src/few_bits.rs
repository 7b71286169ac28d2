//! The layout of constant right operands whose elements have 3 or 4 bits, in runs of terms that share a scale.
//!
//! For a matrix of k rows and n columns in runs of b rows, with p = ceil(n / 32) panels and r = ceil(k / b) runs, one part
//! after another, each from a multiple of 64 bytes on:
//!
//! - scales, f32 or bf16 `[p][r][32]`;
//! - zero points, where there are any, in words as elements of 4 bits are: `[p][ceil(r / 8)][32]`;
//! - elements in words of 32 bits, those of a word along the terms. Of 4 bits, eight make a word, the first in its lowest
//!   bits: `[p][ceil(k / 8)][32]`. Of 3 bits, 32 make three words, `[p][ceil(k / 32)][3][32]`: the lower two bits of the
//!   first 16, those of the others, and the upper bits of all, that of term t at bit t + 2 of the 32, around the end.
//!
//! Signed elements and zero points have half of their values added, so that none is negative. Columns and terms from n and
//! k on are zeros.

use margay_tensor::{DType, Scales, Storage, StoredTensor, Tensor};

use crate::isa::PANEL;

/// What layouts of this kind begin with; the storage follows.
const PREFIX: &str = "kn32 ";

/// Terms of a word of elements of 4 bits.
const NIBBLES: usize = 8;

/// Terms of three words of elements of 3 bits.
const TRIPLES: usize = 32;

/// Parts begin at multiples of this, in bytes.
const ALIGN: usize = 64;

/// Whether kernels read a storage of a matrix.
pub(crate) fn serves(storage: Storage) -> bool {
    let Scales::Block { axis: 0, size } = storage.scales else { return false };
    storage.is_packed() && size.is_multiple_of(terms(storage.bits))
}

/// The name of the layout of a storage.
pub(crate) fn layout(storage: Storage) -> String {
    format!("{PREFIX}{storage}")
}

/// The storage of a layout.
pub(crate) fn of_layout(name: &str) -> Option<Storage> {
    Storage::parse(name.strip_prefix(PREFIX)?).filter(|storage| serves(*storage))
}

/// Terms that are stored together.
fn terms(bits: u32) -> usize {
    if bits == 3 { TRIPLES } else { NIBBLES }
}

/// Words of a column of so many elements.
fn words(bits: u32, count: usize) -> usize {
    count.div_ceil(terms(bits)) * if bits == 3 { 3 } else { 1 }
}

/// Where the parts of a matrix lie, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    /// The zero points.
    pub(crate) zeros_at: usize,
    /// The elements.
    pub(crate) elements_at: usize,
    /// All of them.
    pub(crate) bytes: usize,
    /// Runs of terms.
    pub(crate) runs: usize,
    /// Words of a column of a panel: of zero points, and of elements.
    pub(crate) words: [usize; 2],
}

impl Parts {
    /// The parts of a matrix of k rows and n columns.
    pub(crate) fn of(storage: Storage, k: usize, n: usize) -> Parts {
        let Scales::Block { size, .. } = storage.scales else {
            unreachable!("`serves` holds of the storages of this layout")
        };
        let (panels, runs) = (n.div_ceil(PANEL), k.div_ceil(size));
        let words = [if storage.zero_points { words(4, runs) } else { 0 }, words(storage.bits, k)];
        let part = |words: usize| (4 * panels * words * PANEL).next_multiple_of(ALIGN);
        let zeros_at = (storage.scale_type.bytes() * panels * runs * PANEL).next_multiple_of(ALIGN);
        let elements_at = zeros_at + part(words[0]);
        Parts { zeros_at, elements_at, bytes: elements_at + part(words[1]), runs, words }
    }
}

/// The element that stands for 0 where there are no zero points, once nothing is negative.
pub(crate) fn middle(storage: Storage) -> u8 {
    if storage.dtype == DType::I8 { 1 << (storage.bits - 1) } else { 0 }
}

/// The bits of an element: pairs of a word of its column and a shift there, the lowest bits first, and how many bits lie there.
fn places(bits: u32, at: usize) -> [(usize, u32, u32); 2] {
    if bits == 3 {
        let (three, t) = (at / TRIPLES * 3, at % TRIPLES);
        [(three + t / 16, 2 * (t as u32 % 16), 2), (three + 2, (t as u32 + 2) % 32, 1)]
    } else {
        [(at / NIBBLES, 4 * (at as u32 % 8), 4), (0, 0, 0)]
    }
}

/// Puts rows of a matrix of so many columns into words.
fn put(bits: u32, per_column: usize, columns: usize, values: impl Iterator<Item = u8>, to: &mut [u8]) {
    for (i, mut value) in values.enumerate() {
        let (row, column) = (i / columns, i % columns);
        for (word, shift, count) in places(bits, row).into_iter().filter(|place| place.2 > 0) {
            let at = 4 * ((column / PANEL * per_column + word) * PANEL + column % PANEL);
            let held = &mut to[at..at + 4];
            let part = u32::from(value) & ((1 << count) - 1);
            let word = held.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)) | part << shift;
            held.copy_from_slice(&word.to_le_bytes());
            value >>= count;
        }
    }
}

/// The inverse of [`put`].
fn take(bits: u32, per_column: usize, [rows, columns]: [usize; 2], from: &[u8]) -> Vec<u8> {
    let element = |i: usize| {
        let (row, column) = (i / columns, i % columns);
        let (mut value, mut held) = (0, 0);
        for (word, shift, count) in places(bits, row).into_iter().filter(|place| place.2 > 0) {
            let at = 4 * ((column / PANEL * per_column + word) * PANEL + column % PANEL);
            let word = from[at..at + 4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
            value |= ((word >> shift & ((1 << count) - 1)) as u8) << held;
            held += count;
        }
        value
    };
    (0..rows * columns).map(element).collect()
}

/// Writes a constant in its layout over zeros.
pub(crate) fn pack(storage: Storage, [k, n]: [usize; 2], stored: &StoredTensor, bytes: &mut [u8]) {
    let parts = Parts::of(storage, k, n);
    let width = storage.scale_type.bytes();
    let middle = middle(storage);
    let moved = |t: &Tensor| -> Vec<u8> { t.bytes().iter().map(|q| q.wrapping_add(middle)).collect() };
    for (i, scale) in stored.scales().iter().flat_map(|s| s.bytes().chunks_exact(width)).enumerate() {
        let (run, column) = (i / n, i % n);
        let at = width * ((column / PANEL * parts.runs + run) * PANEL + column % PANEL);
        bytes[at..at + width].copy_from_slice(scale);
    }
    if let Some(zeros) = stored.zero_points() {
        put(4, parts.words[0], n, moved(zeros).into_iter(), &mut bytes[parts.zeros_at..]);
    }
    let elements = moved(stored.elements()).into_iter();
    put(storage.bits, parts.words[1], n, elements, &mut bytes[parts.elements_at..]);
}

/// The inverse of [`pack`] for as many bytes as the matrix takes; further axes of the shape are of extent 1.
pub(crate) fn unpack(storage: Storage, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, String> {
    let (axis, [k, n]) = (shape.len() - 2, [shape[shape.len() - 2], shape[shape.len() - 1]]);
    let parts = Parts::of(storage, k, n);
    let Scales::Block { size, .. } = storage.scales else {
        return Err(format!("a constant stored {storage}"));
    };
    let storage = Storage { scales: Scales::Block { axis, size }, ..storage };
    let (middle, width) = (middle(storage), storage.scale_type.bytes());
    let steps = storage.scales_shape(shape).unwrap_or_default();
    let scale = |i: usize| {
        let (run, column) = (i / n, i % n);
        let at = width * ((column / PANEL * parts.runs + run) * PANEL + column % PANEL);
        bytes[at..at + width].to_vec()
    };
    let scales: Vec<u8> = (0..parts.runs * n).flat_map(scale).collect();
    let elements = |bits, words, rows, from: &[u8], shape: &[usize]| {
        let found = take(bits, words, [rows, n], from).into_iter();
        let found: Vec<u8> = found.map(|q| q.wrapping_sub(middle)).collect();
        Tensor::from_bytes(storage.dtype, shape, &found).map_err(|e| e.to_string())
    };
    let zeros = storage
        .zero_points
        .then(|| elements(4, parts.words[0], parts.runs, &bytes[parts.zeros_at..], &steps))
        .transpose()?;
    let elements = elements(storage.bits, parts.words[1], k, &bytes[parts.elements_at..], shape)?;
    let scales = Tensor::from_bytes(storage.scale_type, &steps, &scales).map_err(|e| e.to_string())?;
    StoredTensor::from_parts(storage, elements, scales, zeros).map_err(|e| e.to_string())
}
