//! Constant right operands of products in the layouts that kernels read.
//!
//! All of them are cut into panels of 32 columns, columns from n on zero, and depend neither on the class nor on the
//! other operand. For a matrix of k rows and n columns, with p = ceil(n / 32):
//!
//! - `f32_kn32`: f32 `[p][k][32]`.
//! - `bf16_kn32_pairs`: bf16 `[p][ceil(k / 2)][32][2]`: neighbouring terms of a column side by side, the last of an
//!   odd k with a zero.
//! - `int8_kn32`: the step of every column, f32 `[p][32]`, then int8 `[p][k][32]`.
//!
//! Unpacking a narrow layout gives the rounded numbers.

use margay_loops::precision::{bf16, from_bf16, int8, int8_scale};
use margay_loops::{MatMul, Precision};
use margay_tensor::{DType, Tensor};

use crate::isa::PANEL;
use crate::pack::{self, packed_len};

/// Name of the layout of pairs of bf16.
pub(crate) const BF16_LAYOUT: &str = "bf16_kn32_pairs";

/// Name of the layout of int8 with a step per column.
pub(crate) const INT8_LAYOUT: &str = "int8_kn32";

/// The layout of a precision and its bytes for a matrix.
pub(crate) fn layout(precision: Precision, k: usize, n: usize) -> (&'static str, usize) {
    match precision {
        Precision::F32 => (pack::LAYOUT, 4 * packed_len(k, n)),
        Precision::Bf16 => (BF16_LAYOUT, 4 * packed_len(k.div_ceil(2), n)),
        Precision::Int8 => (INT8_LAYOUT, 4 * packed_len(1, n) + packed_len(k, n)),
    }
}

/// The precision of a layout of products.
pub(crate) fn precision_of(name: &str) -> Option<Precision> {
    Precision::ALL.into_iter().find(|&p| layout(p, 0, 0).0 == name)
}

/// The bytes of a constant B in the layout of its precision.
pub(crate) fn pack_constant(call: &MatMul, tensor: &Tensor) -> Result<Vec<u8>, String> {
    let (ones, matrix) = tensor.shape().split_at(tensor.shape().len().saturating_sub(2));
    if tensor.dtype() != DType::F32 || matrix != [call.k, call.n] || ones.iter().any(|&d| d != 1) {
        return Err(format!(
            "expected a constant f32[{}, {}], found {}{:?}",
            call.k,
            call.n,
            tensor.dtype(),
            tensor.shape()
        ));
    }
    let values = tensor.as_slice::<f32>().map_err(|e| e.to_string())?;
    let mut bytes = vec![0; layout(call.precision, call.k, call.n).1];
    let places = Places { k: call.k, n: call.n };
    match call.precision {
        Precision::F32 => {
            for (at, x) in places.elements().zip(values.iter()) {
                bytes[4 * at..][..4].copy_from_slice(&x.to_ne_bytes());
            }
        }
        Precision::Bf16 => {
            for (at, x) in places.pairs().zip(values.iter()) {
                bytes[2 * at..][..2].copy_from_slice(&bf16(*x).to_ne_bytes());
            }
        }
        Precision::Int8 => {
            let (scales, elements) = bytes.split_at_mut(4 * packed_len(1, call.n));
            let column = |j: usize| values.iter().skip(j).step_by(call.n).copied();
            let steps: Vec<f32> = (0..call.n).map(|j| int8_scale(column(j))).collect();
            for (to, step) in scales.chunks_exact_mut(4).zip(&steps) {
                to.copy_from_slice(&step.to_ne_bytes());
            }
            for (at, (x, step)) in places.elements().zip(values.iter().zip(steps.iter().cycle())) {
                elements[at] = int8(*x, *step).to_ne_bytes()[0];
            }
        }
    }
    Ok(bytes)
}

/// The inverse of [`pack_constant`], up to the rounding of the precision.
pub(crate) fn unpack_constant(precision: Precision, shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    let (&[.., k, n], [ones @ .., _, _]) = (shape, shape) else {
        return Err(format!("expected two axes, found {shape:?}"));
    };
    if ones.iter().any(|&d| d != 1) {
        return Err(format!("expected one matrix, found {shape:?}"));
    }
    let expected = layout(precision, k, n).1;
    if bytes.len() != expected {
        return Err(format!("expected {expected} packed bytes, found {}", bytes.len()));
    }
    let places = Places { k, n };
    let word = |at: usize| bytes[4 * at..][..4].try_into().map_or(0.0, f32::from_ne_bytes);
    let half = |at: usize| bytes[2 * at..][..2].try_into().map_or(0, u16::from_ne_bytes);
    let values: Vec<f32> = match precision {
        Precision::F32 => places.elements().map(word).collect(),
        Precision::Bf16 => places.pairs().map(|at| from_bf16(half(at))).collect(),
        Precision::Int8 => {
            let elements = &bytes[4 * packed_len(1, n)..];
            let step = |number: usize| word(number % n.max(1));
            let byte = |at: usize| f32::from(i8::from_ne_bytes([elements[at]]));
            places.elements().enumerate().map(|(number, at)| byte(at) * step(number)).collect()
        }
    };
    Tensor::from_slice(shape, &values).map_err(|e| e.to_string())
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
