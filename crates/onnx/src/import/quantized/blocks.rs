//! Constants of integers with a scale for every run along an axis, which stay as they are: weights of 4 bits.

use margay_ir::ops::{Const, Numbers};
use margay_ir::{Op, Payload, Value};
use margay_tensor::{DType, Scales, Storage, StoredTensor, Tensor};

use super::super::Importer;
use super::super::call::Refusal;
use crate::Narrow;

impl Importer<'_> {
    /// (q - zero) scale of a constant with scales and zero points for runs of `size` elements along an axis, as a constant that is
    /// stored so. `None` if it is anything else.
    pub(super) fn kept_blocks(
        &mut self,
        q: Value,
        zero: Option<Value>,
        scale: Value,
        [axis, size]: [usize; 2],
    ) -> Result<Option<Value>, Refusal> {
        let Some(stored) = self.stored_blocks(q, zero, scale, [axis, size]) else { return Ok(None) };
        let origin = self.graph.node(q.node).origin.clone();
        Ok(Some(self.graph.add(Const { payload: Payload::new(stored) }, &[], origin)?))
    }

    fn stored_blocks(
        &self,
        q: Value,
        zero: Option<Value>,
        scale: Value,
        [axis, size]: [usize; 2],
    ) -> Option<StoredTensor> {
        let bytes = |v: Value| self.graph.constant(v).map(Payload::tensor);
        let elements = bytes(q)?.clone();
        let bits = match self.narrow(q) {
            None => 8,
            Some(Narrow::I4 | Narrow::U4) => 4,
            Some(_) => return None,
        };
        let (scale_type, scales) = self.scales_of(scale)?;
        let dtype = elements.dtype();
        let storage = Storage {
            bits,
            scale_type,
            zero_points: zero.is_some(),
            ..Storage::bytes(dtype, Scales::Block { axis, size })
        };
        let zeros = match zero {
            Some(zero) => Some(bytes(zero)?.clone()),
            None => None,
        };
        StoredTensor::from_parts(storage, elements, scales, zeros).ok()
    }

    /// Constant scales of f32, or of bf16 that a node makes f32.
    fn scales_of(&self, v: Value) -> Option<(DType, Tensor)> {
        if let Some(payload) = self.graph.constant(v) {
            return Some((DType::F32, payload.tensor().clone())).filter(|(_, t)| t.dtype() == DType::F32);
        }
        let Op::Cast(cast) = self.graph.op(v.node) else { return None };
        let tensor = self.graph.constant(self.graph.inputs_of(v.node)[0])?.tensor();
        let narrow = cast.to == DType::F32 && tensor.dtype() == DType::BF16;
        narrow.then(|| (DType::BF16, tensor.clone()))
    }

    /// The weight of a `MatMulNBits` of 4 bits, \[terms, columns\]: of each column, bytes with two elements each, the lower bits
    /// first, in runs of `size` terms with one scale, and with one zero point or none for all, which stands for 8. `None` if it
    /// is no constant.
    pub(super) fn kept_columns(
        &mut self,
        packed: Value,
        scales: Value,
        zeros: Option<Value>,
        [terms, columns, size]: [usize; 3],
    ) -> Result<Option<Value>, Refusal> {
        let Some(stored) = self.stored_columns(packed, scales, zeros, [terms, columns, size]) else {
            return Ok(None);
        };
        let origin = self.graph.node(packed.node).origin.clone();
        Ok(Some(self.graph.add(Const { payload: Payload::new(stored) }, &[], origin)?))
    }

    fn stored_columns(
        &self,
        packed: Value,
        scales: Value,
        zeros: Option<Value>,
        [terms, columns, size]: [usize; 3],
    ) -> Option<StoredTensor> {
        let runs = terms.div_ceil(size);
        let constant = |v: Value| self.graph.constant(v).map(Payload::tensor);
        // Row `i` and column `j` of what lies column by column, two to a byte, each column from a whole byte on.
        let nibbles = |bytes: &[u8], per_column: usize, rows: usize| -> Option<Vec<u8>> {
            let places = (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j)));
            let nibble = |(i, j): (usize, usize)| {
                let at = j.checked_mul(per_column.div_ceil(2))?.checked_add(i / 2)?;
                Some(bytes.get(at)? >> (4 * (i % 2)) & 15)
            };
            places.map(nibble).collect()
        };
        let scales = Numbers::of(constant(scales)?).ok()?.floats();
        if Some(scales.len()) != columns.checked_mul(runs) {
            return None;
        }
        let elements = nibbles(constant(packed)?.bytes(), runs.checked_mul(size)?, terms)?;
        let scales: Vec<f32> = (0..runs)
            .flat_map(|i| (0..columns).map(move |j| (i, j)))
            .map(|(i, j)| scales[j * runs + i] as f32)
            .collect();
        let steps = [runs, columns];
        let blocks = Scales::Block { axis: 0, size };
        let (dtype, elements, zeros) = match zeros {
            // Less 8, nothing is left to be taken off.
            None => (DType::I8, elements.iter().map(|q| q.wrapping_sub(8)).collect(), None),
            Some(zeros) => {
                let zeros = constant(zeros)?;
                if zeros.dtype() != DType::U8 {
                    return None;
                }
                let zeros = nibbles(zeros.bytes(), runs, runs)?;
                (DType::U8, elements, Some(Tensor::from_slice(&steps, &zeros).ok()?))
            }
        };
        let storage = Storage { bits: 4, zero_points: zeros.is_some(), ..Storage::bytes(dtype, blocks) };
        let elements = Tensor::from_bytes(dtype, &[terms, columns], &elements).ok()?;
        let scales = Tensor::from_slice(&steps, &scales).ok()?;
        StoredTensor::from_parts(storage, elements, scales, zeros).ok()
    }
}
