//! Constant right operands of products in the layouts that kernels read.
//!
//! All of them are cut into panels of 32 columns, columns from n on zero, and depend neither on the class nor on the
//! other operand. For a matrix of k rows and n columns, with p = ceil(n / 32):
//!
//! - `f32_kn32`: f32 `[p][k][32]`.
//! - `bf16_kn32_pairs`: bf16 `[p][ceil(k / 2)][32][2]`: neighbouring terms of a column side by side, the last of an
//!   odd k with a zero.
//! - `int8_kn32`: the step of every column, f32 `[p][32]`, then int8 `[p][k][32]`.
//! - `kn32 STORAGE`: elements of 3 or 4 bits in runs along the terms; `few_bits` says how. Or f32 with signs beside them:
//!   what is not signs, as `f32_kn32`.
//!
//! Packing rounds nothing: unpacking gives what was stored.

use margay_loops::MatMul;
use margay_tensor::{DType, Scales, Signs, Storage, StoredTensor, Tensor};

use crate::few_bits;
use crate::isa::PANEL;
use crate::pack::{self, packed_len};

/// What the layout of numbers with signs beside them begins with; the storage follows.
const SIGNS_PREFIX: &str = "kn32 ";

/// What a constant right operand consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// Numbers of f32.
    F32,
    /// Numbers of bf16.
    Bf16,
    /// Signed bytes with a scale per column.
    Int8,
    /// Elements of a few bits, in runs along the terms.
    FewBits(Storage),
    /// Numbers of f32 and signs beside them, which are drawn.
    Signs(Signs),
}

impl Format {
    /// The format of a storage of a matrix, if kernels read it. One scale for all is one for every column.
    pub(crate) fn of(storage: Storage) -> Option<Format> {
        if let Some(signs) = storage.signs {
            return (signs.axis < 2 && !signs.is_empty()).then_some(Format::Signs(signs));
        }
        match (storage.dtype, storage.scales, storage.zero_points) {
            (DType::F32, Scales::None, false) => Some(Format::F32),
            (DType::BF16, Scales::None, false) => Some(Format::Bf16),
            (DType::I8, Scales::Tensor | Scales::Axis(1), false)
                if !storage.is_packed() && storage.scale_type == DType::F32 =>
            {
                Some(Format::Int8)
            }
            _ => few_bits::serves(storage).then_some(Format::FewBits(storage)),
        }
    }

    /// The format of a layout of products.
    pub(crate) fn of_layout(name: &str) -> Option<Format> {
        let named = [Format::F32, Format::Bf16, Format::Int8].into_iter().find(|f| f.layout(0, 0).0 == name);
        let signs =
            || Format::of(Storage::parse(name.strip_prefix(SIGNS_PREFIX)?).filter(|s| s.signs.is_some())?);
        named.or_else(|| few_bits::of_layout(name).map(Format::FewBits)).or_else(signs)
    }

    /// The layout and its bytes for a matrix.
    pub(crate) fn layout(self, k: usize, n: usize) -> (String, usize) {
        match self {
            Format::F32 => (pack::LAYOUT.to_owned(), 4 * packed_len(k, n)),
            Format::Bf16 => ("bf16_kn32_pairs".to_owned(), 4 * packed_len(k.div_ceil(2), n)),
            Format::Int8 => ("int8_kn32".to_owned(), 4 * packed_len(1, n) + packed_len(k, n)),
            Format::FewBits(storage) => (few_bits::layout(storage), few_bits::Parts::of(storage, k, n).bytes),
            Format::Signs(signs) => {
                let storage = Storage::with_signs(signs);
                let others = storage.elements_shape(&[k, n]);
                (format!("{SIGNS_PREFIX}{storage}"), 4 * packed_len(others[0], others[1]))
            }
        }
    }
}

/// The bytes of a constant B in the layout of its format.
pub(crate) fn pack_constant(call: &MatMul, stored: &StoredTensor) -> Result<Vec<u8>, String> {
    let (ones, matrix) = stored.shape().split_at(stored.shape().len().saturating_sub(2));
    let storage = stored.storage();
    let signs = storage.signs.map(|signs| signs.along(signs.axis.wrapping_sub(ones.len())));
    let fits = storage.dtype == call.types.right.dtype && signs == call.types.right.signs;
    if matrix != [call.k, call.n] || ones.iter().any(|&d| d != 1) || !fits {
        return Err(format!(
            "expected a constant [{}, {}] stored {}, found {:?} stored {storage}",
            call.k,
            call.n,
            call.types.right,
            stored.shape(),
        ));
    }
    let format = Format::of(call.types.right).ok_or_else(|| format!("a constant stored {storage}"))?;
    let mut bytes = vec![0; format.layout(call.k, call.n).1];
    let others = call.types.right.elements_shape(&[call.k, call.n]);
    let places = Places { k: others[0], n: others[1] };
    let elements = stored.elements().bytes();
    match format {
        Format::F32 | Format::Signs(_) => {
            for (at, x) in places.elements().zip(elements.chunks_exact(4)) {
                bytes[4 * at..][..4].copy_from_slice(x);
            }
        }
        Format::Bf16 => {
            for (at, x) in places.pairs().zip(elements.chunks_exact(2)) {
                bytes[2 * at..][..2].copy_from_slice(x);
            }
        }
        Format::Int8 => {
            let (to_scales, to_elements) = bytes.split_at_mut(4 * packed_len(1, call.n));
            let scales = stored.scales().map(|s| s.to_vec::<f32>()).transpose().map_err(|e| e.to_string())?;
            let scales = scales.unwrap_or_default();
            if scales.len() != 1 && scales.len() != call.n {
                return Err(format!("expected {} scales, found {}", call.n, scales.len()));
            }
            for (to, scale) in to_scales.chunks_exact_mut(4).zip(scales.iter().cycle().take(call.n)) {
                to.copy_from_slice(&scale.to_ne_bytes());
            }
            for (at, x) in places.elements().zip(elements) {
                to_elements[at] = *x;
            }
        }
        Format::FewBits(storage) => few_bits::pack(storage, [call.k, call.n], stored, &mut bytes),
    }
    Ok(bytes)
}

/// The inverse of [`pack_constant`]; a scale for all comes back as one for every column.
pub(crate) fn unpack_constant(format: Format, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, String> {
    let (&[.., k, n], [ones @ .., _, _]) = (shape, shape) else {
        return Err(format!("expected two axes, found {shape:?}"));
    };
    if ones.iter().any(|&d| d != 1) {
        return Err(format!("expected one matrix, found {shape:?}"));
    }
    let expected = format.layout(k, n).1;
    if bytes.len() != expected {
        return Err(format!("expected {expected} packed bytes, found {}", bytes.len()));
    }
    let places = Places { k, n };
    match format {
        Format::F32 => {
            let word = |at: usize| bytes[4 * at..][..4].try_into().map_or(0.0, f32::from_ne_bytes);
            let values: Vec<f32> = places.elements().map(word).collect();
            Ok(Tensor::from_slice(shape, &values).map_err(|e| e.to_string())?.into())
        }
        Format::Bf16 => {
            let values: Vec<u8> = places.pairs().flat_map(|at| [bytes[2 * at], bytes[2 * at + 1]]).collect();
            StoredTensor::from_bytes(DType::F32, shape, Storage::plain(DType::BF16), &values)
                .map_err(|e| e.to_string())
        }
        Format::Int8 => {
            let (scales, elements) = bytes.split_at(4 * packed_len(1, n));
            let values: Vec<u8> = places.elements().map(|at| elements[at]).collect();
            let axis = shape.len() - 1;
            let mut scales_shape = vec![1; shape.len()];
            scales_shape[axis] = n;
            let tensor = |dtype, shape: &[usize], bytes: &[u8]| {
                Tensor::from_bytes(dtype, shape, bytes).map_err(|e| e.to_string())
            };
            let scales = tensor(DType::F32, &scales_shape, &scales[..4 * n])?;
            StoredTensor::quantized(tensor(DType::I8, shape, &values)?, (Scales::Axis(axis), scales), None)
                .map_err(|e| e.to_string())
        }
        Format::FewBits(storage) => few_bits::unpack(storage, shape, bytes),
        Format::Signs(signs) => {
            let signs = signs.along(signs.axis + shape.len() - 2);
            let others = Storage::with_signs(signs).elements_shape(shape);
            let others = unpack_constant(Format::F32, &others, bytes)?.elements().clone();
            let stored = StoredTensor::with_signs(others, signs).map_err(|e| e.to_string())?;
            match stored.shape() == shape {
                true => Ok(stored),
                false => Err(format!("{shape:?} has no room for {}", stored.storage())),
            }
        }
    }
}

/// Where the elements of a matrix lie, in row-major order.
#[derive(Clone, Copy)]
struct Places {
    k: usize,
    n: usize,
}

impl Places {
    /// In panels of rows.
    fn elements(self) -> impl Iterator<Item = usize> {
        let place = move |i: usize, j: usize| (j / PANEL * self.k + i) * PANEL + j % PANEL;
        (0..self.k).flat_map(move |i| (0..self.n).map(move |j| place(i, j)))
    }

    /// In panels of pairs of rows.
    fn pairs(self) -> impl Iterator<Item = usize> {
        let height = self.k.div_ceil(2);
        let place = move |i: usize, j: usize| ((j / PANEL * height + i / 2) * PANEL + j % PANEL) * 2 + i % 2;
        (0..self.k).flat_map(move |i| (0..self.n).map(move |j| place(i, j)))
    }
}
