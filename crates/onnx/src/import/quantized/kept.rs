//! Constants of 8-bit integers that stay as they are: weights whose numbers are integers times scales.
//!
//! Products read matrices with one scale for all or one for each column as they are stored. For anything else the back end
//! makes numbers when it compiles, without the limits that folding has.

use margay_ir::ops::{Const, Numbers, ReduceKind};
use margay_ir::{Payload, Value};
use margay_tensor::{DType, Dim, Scales, StoredTensor, Tensor};

use super::super::Importer;
use super::super::call::Refusal;
use super::super::slices::slice_axes;

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

    /// A constant of 8-bit integers less its zero points, one for all or one for each position of an axis, as i8.
    ///
    /// Where that does not fit, what is left of the zero points is handed on as i32, and the constant has one more position
    /// on the axis, with ones: sums of products with these are what [`less_zero`](Importer::less_zero) needs.
    pub(super) fn signed(
        &mut self,
        q: Value,
        zero: Option<Value>,
        axis: usize,
    ) -> Result<Option<(Value, Option<Value>)>, Refusal> {
        let Some(stored) = self.stored_integers(q, zero, None, axis) else { return Ok(None) };
        let (origin, mut shape) = (self.graph.node(q.node).origin.clone(), stored.shape().to_vec());
        let Some(zeros) = stored.zero_points() else {
            return Ok(Some((self.leaf(stored.elements().clone(), origin)?, None)));
        };
        // As i8: the upper half of what is unsigned keeps its bits, the lower is moved down.
        let (flip, down) = if stored.storage().dtype == DType::U8 { (0x80, 128) } else { (0, 0) };
        let inner: usize = shape[axis + 1..].iter().product();
        let mut bytes = Vec::new();
        for part in stored.elements().bytes().chunks_exact((shape[axis] * inner).max(1)) {
            bytes.extend(part.iter().map(|byte| byte ^ flip));
            bytes.resize(bytes.len() + inner, 1);
        }
        shape[axis] += 1;
        let invalid = |e: &dyn std::fmt::Display| Refusal::Invalid(e.to_string());
        let extended = Tensor::from_bytes(DType::I8, &shape, &bytes).map_err(|e| invalid(&e))?;
        let zeros = Numbers::of(zeros).map_err(|e| invalid(&e))?.ints();
        let zeros: Vec<i32> = zeros.into_iter().map(|zero| zero as i32 - down).collect();
        let zeros = Tensor::from_slice(&[zeros.len()], &zeros).map_err(|e| invalid(&e))?;
        Ok(Some((self.leaf(extended, origin)?, Some(self.constant(zeros)?))))
    }

    /// Sums of products with a constant of [`signed`](Importer::signed), less its zero points along an axis: these times the
    /// sums of products with ones, which are last.
    pub(super) fn less_zero(
        &mut self,
        sums: Value,
        zero: Option<Value>,
        axis: usize,
    ) -> Result<Value, Refusal> {
        let Some(zero) = zero else { return Ok(sums) };
        let shape = self.ty(sums).shape.clone();
        let last = &shape[axis] - &Dim::from(1usize);
        let (start, whole) = (Dim::default(), shape[axis].clone());
        let columns = slice_axes(self, sums, &[axis], &[start], std::slice::from_ref(&last), &[1])?;
        let ones = slice_axes(self, sums, &[axis], &[last], &[whole], &[1])?;
        let zero = match self.ty(zero).shape[0].is(1) {
            true => zero,
            false => self.along(zero, axis, shape.len())?,
        };
        let product = self.times(ones, zero)?;
        self.minus(columns, product)
    }

    /// The sums of the columns of matrices of 8-bit integers as i32, `[…, 1, n]`, or `[n]` of a constant matrix, which is
    /// summed at once.
    pub(super) fn column_sums(&mut self, q: Value) -> Result<Value, Refusal> {
        if let Some(tensor) = self.graph.constant(q).map(Payload::tensor)
            && let (&[_, columns], Ok(Numbers::Int(numbers))) = (tensor.shape(), Numbers::of(tensor))
        {
            let mut sums = vec![0i128; columns];
            for row in numbers.chunks_exact(columns.max(1)) {
                row.iter().zip(&mut sums).for_each(|(x, sum)| *sum += x);
            }
            let sums = Numbers::Int(sums).into_tensor(DType::I32, &[columns]);
            return self.constant(sums.map_err(|e| Refusal::Invalid(e.to_string()))?);
        }
        let rows = self.ty(q).ndim() - 2;
        let wide = self.cast(q, DType::I32)?;
        self.joined(ReduceKind::Sum, wide, &[rows], true)
    }

    /// Whether a value is known to be 0 everywhere.
    pub(super) fn is_zero(&self, v: Value) -> bool {
        let numbers = self.graph.constant(v).and_then(|payload| Numbers::of(payload.tensor()).ok());
        numbers.is_some_and(|numbers| numbers.floats().iter().all(|x| *x == 0.0))
    }
}
