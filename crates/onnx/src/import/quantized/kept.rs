//! Matrices of 8-bit integers that stay as they are: constants whose numbers are integers times scales.
//!
//! A matrix with one scale for all or one for each column is what products read without making numbers of it first. Others
//! are left to formulas, which the passes fold.

use margay_ir::ops::{Const, Numbers};
use margay_ir::{Payload, Value};
use margay_tensor::{DType, Scales, StoredTensor, Tensor};

use super::super::Importer;
use super::super::call::Refusal;

/// f32 holds every whole number up to here.
const WHOLE_F32: u64 = 1 << 24;

/// The greatest distance of an 8-bit integer from its zero point.
const LARGEST: u64 = 255;

impl Importer<'_> {
    /// (q - zero) scale of a constant matrix of 8-bit integers, as a constant that is stored in them. Scales and zero
    /// points are one for all or one for each column; no scale is one of 1. `None` if it is anything else.
    pub(super) fn kept(
        &mut self,
        q: Value,
        zero: Option<Value>,
        scale: Option<Value>,
    ) -> Result<Option<Value>, Refusal> {
        let Some((elements, columns)) = self.bytes_less_zero(q, zero) else { return Ok(None) };
        let scales = match scale {
            None => (Scales::Tensor, Tensor::from_slice(&[1, 1], &[1f32])),
            Some(scale) => {
                let Some(payload) = self.graph.constant(scale).filter(|p| p.tensor().dtype() == DType::F32)
                else {
                    return Ok(None);
                };
                let tensor = payload.tensor();
                let kind = match tensor.len() {
                    1 => Scales::Tensor,
                    n if n == columns && tensor.shape().len() == 1 => Scales::Axis(1),
                    _ => return Ok(None),
                };
                (kind, Tensor::from_bytes(DType::F32, &[1, tensor.len()], tensor.bytes()))
            }
        };
        let invalid = |e: &dyn std::fmt::Display| Refusal::Invalid(e.to_string());
        let steps = (scales.0, scales.1.map_err(|e| invalid(&e))?);
        let stored = StoredTensor::quantized(elements, steps, None).map_err(|e| invalid(&e))?;
        let origin = self.graph.node(q.node).origin.clone();
        Ok(Some(self.graph.add(Const { payload: Payload::new(stored) }, &[], origin)?))
    }

    /// q - zero of a constant matrix as i8, and its columns, if all of them fit.
    fn bytes_less_zero(&self, q: Value, zero: Option<Value>) -> Option<(Tensor, usize)> {
        let payload = self.graph.constant(q)?;
        let tensor = payload.tensor();
        let &[rows, columns] = tensor.shape() else { return None };
        let signed = match tensor.dtype() {
            DType::I8 => true,
            DType::U8 => false,
            _ => return None,
        };
        let zeros = match zero {
            None => vec![0],
            Some(zero) => {
                let zeros = self.graph.constant(zero)?.tensor();
                let fits = zeros.len() == 1 || (zeros.len() == columns && zeros.shape().len() == 1);
                Numbers::of(Some(zeros).filter(|_| fits)?).ok()?.ints()
            }
        };
        let zeros: Vec<i16> = zeros.iter().map(|&z| i16::try_from(z)).collect::<Result<_, _>>().ok()?;
        let number = |(i, &byte): (usize, &u8)| {
            let q = if signed { i16::from(byte.cast_signed()) } else { i16::from(byte) };
            i8::try_from(q - zeros[if zeros.len() == 1 { 0 } else { i % columns }])
        };
        let values: Vec<i8> = tensor.bytes().iter().enumerate().map(number).collect::<Result<_, _>>().ok()?;
        Some((Tensor::from_slice(&[rows, columns], &values).ok()?, columns))
    }

    /// Whether sums of products of 8-bit integers with each column of a kept matrix without scales are whole in f32,
    /// whatever the other integers are.
    pub(super) fn sums_are_whole(&self, kept: Value) -> bool {
        let Some(stored) = self.graph.constant(kept).map(Payload::stored).filter(|s| !s.is_plain()) else {
            return false;
        };
        let &[_, columns] = stored.shape() else { return false };
        let mut sums = vec![0u64; columns];
        for row in stored.elements().bytes().chunks_exact(columns.max(1)) {
            for (sum, byte) in sums.iter_mut().zip(row) {
                *sum += u64::from(byte.cast_signed().unsigned_abs());
            }
        }
        sums.iter().all(|sum| sum * LARGEST <= WHOLE_F32)
    }
}
