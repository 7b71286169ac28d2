//! Constants of 8-bit integers that stay as they are: weights whose numbers are integers times scales.
//!
//! Products read matrices with one scale for all or one for each column as they are stored. For anything else the back end
//! makes numbers when it compiles, without the limits that folding has.

use margay_ir::ops::{Const, Numbers};
use margay_ir::{Payload, Value};
use margay_tensor::{DType, Scales, StoredTensor, Tensor};

use super::super::Importer;
use super::super::call::Refusal;

/// f32 holds every whole number up to here.
const WHOLE_F32: f64 = (1u64 << 24) as f64;

/// The greatest distance of an 8-bit integer from its zero point.
const LARGEST: f64 = 255.0;

impl Importer<'_> {
    /// (q - zero) scale of a constant of 8-bit integers, as a constant that is stored in them. Scales and zero points are
    /// one for all or one for each position of an axis; no scale is one of 1. `None` if it is anything else.
    pub(super) fn kept(
        &mut self,
        q: Value,
        zero: Option<Value>,
        scale: Option<Value>,
        axis: usize,
    ) -> Result<Option<Value>, Refusal> {
        let Some(stored) = self.stored_integers(q, zero, scale, axis) else { return Ok(None) };
        let origin = self.graph.node(q.node).origin.clone();
        Ok(Some(self.graph.add(Const { payload: Payload::new(stored) }, &[], origin)?))
    }

    fn stored_integers(
        &self,
        q: Value,
        zero: Option<Value>,
        scale: Option<Value>,
        axis: usize,
    ) -> Option<StoredTensor> {
        let tensor = self.graph.constant(q)?.tensor();
        let shape = tensor.shape();
        let extent = shape.get(axis).copied().filter(|&extent| extent > 0)?;
        let part = |v: Value| {
            let part = self.graph.constant(v)?.tensor();
            (part.len() == 1 || part.shape() == [extent]).then_some(part)
        };
        let scale = match scale {
            None => Tensor::scalar(1f32),
            Some(scale) => part(scale)?.clone(),
        };
        let zeros = match zero {
            None => vec![0],
            Some(zero) => Numbers::of(part(zero)?).ok()?.ints(),
        };
        let signed = tensor.dtype() == DType::I8;
        if !(signed || tensor.dtype() == DType::U8) || scale.dtype() != DType::F32 {
            return None;
        }
        // One of each for all, or of both as many as there are positions.
        let count = scale.len().max(zeros.len());
        let scales = if count == 1 { Scales::Tensor } else { Scales::Axis(axis) };
        let steps: Vec<usize> =
            (0..shape.len()).map(|i| if count > 1 && i == axis { count } else { 1 }).collect();
        let numbers = Numbers::of(&scale).ok()?.floats();
        let numbers: Vec<f32> = (0..count).map(|i| numbers[i % numbers.len()] as f32).collect();
        let zeros: Vec<i16> =
            (0..count).map(|i| i16::try_from(zeros[i % zeros.len()])).collect::<Result<_, _>>().ok()?;
        let scale = Tensor::from_slice(&steps, &numbers).ok()?;
        // Without zero points where what is left fits.
        let stride: usize = shape[axis + 1..].iter().product();
        let less_zero = |(i, &byte): (usize, &u8)| {
            let q = if signed { i16::from(byte.cast_signed()) } else { i16::from(byte) };
            i8::try_from(q - zeros[i / stride.max(1) % extent % count])
        };
        let moved: Result<Vec<i8>, _> = tensor.bytes().iter().enumerate().map(less_zero).collect();
        match moved {
            Ok(moved) => {
                StoredTensor::quantized(Tensor::from_slice(shape, &moved).ok()?, (scales, scale), None).ok()
            }
            Err(_) => {
                let zeros = zeros.into_iter().map(i128::from).collect();
                let zeros = Numbers::Int(zeros).into_tensor(tensor.dtype(), &steps).ok()?;
                StoredTensor::quantized(tensor.clone(), (scales, scale), Some(zeros)).ok()
            }
        }
    }

    /// Whether sums of products of 8-bit integers with each column of a constant matrix of whole numbers are whole in f32,
    /// whatever the other integers are.
    pub(super) fn sums_are_whole(&self, matrix: Value) -> bool {
        let Some(tensor) = self.graph.constant(matrix).map(|p| p.stored().decode()) else { return false };
        let (&[_, columns], Ok(numbers)) = (tensor.shape(), tensor.to_vec::<f32>()) else { return false };
        let mut sums = vec![0f64; columns];
        for row in numbers.chunks_exact(columns.max(1)) {
            row.iter().zip(&mut sums).for_each(|(x, sum)| *sum += f64::from(x.abs()));
        }
        sums.iter().all(|sum| sum * LARGEST <= WHOLE_F32)
    }
}
