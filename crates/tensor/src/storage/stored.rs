//! Tensors as they are stored.

use half::{bf16, f16};

use super::rounding::Groups;
use super::{Scales, Signs, Storage, StorageError, bits};
use crate::tensor::Hashing;
use crate::{ContentHash, DType, Grid, Tensor, TensorError};

/// A tensor as it is stored. Cloning is cheap.
#[derive(Clone, PartialEq, Debug)]
pub struct StoredTensor {
    dtype: DType,
    shape: Vec<usize>,
    storage: Storage,
    elements: Tensor,
    scales: Option<Tensor>,
    zero_points: Option<Tensor>,
}

impl From<Tensor> for StoredTensor {
    /// Stored as it is.
    fn from(tensor: Tensor) -> StoredTensor {
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        StoredTensor {
            dtype,
            shape,
            storage: Storage::plain(dtype),
            elements: tensor,
            scales: None,
            zero_points: None,
        }
    }
}

impl StoredTensor {
    /// Numbers of f32 with random signs beside them, at the positions that these say.
    ///
    /// # Errors
    /// Elements of another type, and signs that do not fit them.
    pub fn with_signs(elements: Tensor, signs: Signs) -> Result<StoredTensor, StorageError> {
        let (storage, shape) = (Storage::with_signs(signs), signs.whole(elements.shape()));
        storage.check(elements.dtype(), &shape)?;
        Ok(StoredTensor { dtype: DType::F32, shape, storage, elements, scales: None, zero_points: None })
    }

    /// Numbers of f32 from bytes with given steps. Scales, in f32, have the extents that
    /// [`scales_shape`](Storage::scales_shape) says; zero points have them too, and the type of the elements.
    ///
    /// # Errors
    /// Parts that do not fit each other.
    pub fn quantized(
        elements: Tensor,
        scales: (Scales, Tensor),
        zero_points: Option<Tensor>,
    ) -> Result<StoredTensor, StorageError> {
        let storage = Storage::bytes(elements.dtype(), scales.0);
        let storage = Storage { zero_points: zero_points.is_some(), ..storage };
        StoredTensor::from_parts(storage, elements, scales.1, zero_points)
    }

    /// Numbers of f32 in a storage with scales, from its parts. Scales and zero points have the extents that
    /// [`scales_shape`](Storage::scales_shape) says; elements and zero points are bytes.
    ///
    /// # Errors
    /// Parts that do not fit the storage, and elements or zero points of more bits than it has.
    pub fn from_parts(
        storage: Storage,
        elements: Tensor,
        scales: Tensor,
        zero_points: Option<Tensor>,
    ) -> Result<StoredTensor, StorageError> {
        storage.check(DType::F32, elements.shape())?;
        let wrong = |why: String| Err(StorageError { storage: storage.to_string(), why });
        if elements.dtype() != storage.dtype || zero_points.is_some() != storage.zero_points {
            let found = if zero_points.is_some() { "" } else { "out" };
            return wrong(format!("found elements of {}, with{found} zero points", elements.dtype()));
        }
        let shape = storage.scales_shape(elements.shape()).unwrap_or_default();
        let zeros = zero_points.as_ref().map(|z| (z, storage.dtype));
        for (part, dtype) in [Some((&scales, storage.scale_type)), zeros].into_iter().flatten() {
            if part.dtype() != dtype || part.shape() != shape {
                let found = format!("{}{:?}", part.dtype(), part.shape());
                return wrong(format!("expected {dtype}{shape:?}, found {found}"));
            }
        }
        if storage.is_packed() {
            let [least, greatest] = storage.range();
            let value = |byte: u8| match storage.dtype {
                DType::I8 => i32::from(byte.cast_signed()),
                _ => i32::from(byte),
            };
            let parts = [Some(&elements), zero_points.as_ref()].into_iter().flatten();
            let mut found = parts.flat_map(Tensor::bytes).map(|byte| value(*byte));
            if let Some(found) = found.find(|q| !(least..=greatest).contains(q)) {
                return wrong(format!("elements are {least} to {greatest}, found {found}"));
            }
        }
        let shape = elements.shape().to_vec();
        Ok(StoredTensor { dtype: DType::F32, shape, storage, elements, scales: Some(scales), zero_points })
    }

    /// The same numbers with whole bytes for elements.
    #[must_use]
    pub fn in_bytes(&self) -> StoredTensor {
        let bits = 8 * self.storage.dtype.bytes() as u32;
        StoredTensor { storage: Storage { bits, ..self.storage }, ..self.clone() }
    }

    /// The same numbers with position `order[i]` of the first axis in place `i`. `None` where runs along that axis share a
    /// scale, which another order would separate, of what has signs, and for an order that is none.
    pub fn reordered(&self, order: &[usize]) -> Option<StoredTensor> {
        let rows = *self.shape().first()?;
        let mut seen = vec![false; rows];
        for &row in order {
            if std::mem::replace(seen.get_mut(row)?, true) {
                return None;
            }
        }
        let separated = matches!(self.storage.scales, Scales::Block { axis: 0, .. });
        if order.len() != rows || separated || self.storage.signs.is_some() {
            return None;
        }
        let moved = |t: &Tensor| {
            if t.shape().first() != Some(&rows) || rows == 0 {
                return Some(t.clone());
            }
            let size = t.bytes().len() / rows;
            let bytes: Vec<u8> =
                order.iter().flat_map(|&row| &t.bytes()[row * size..][..size]).copied().collect();
            Tensor::from_bytes(t.dtype(), t.shape(), &bytes).ok()
        };
        let part = |t: &Option<Tensor>| t.as_ref().map_or(Some(None), |t| moved(t).map(Some));
        Some(StoredTensor {
            elements: moved(&self.elements)?,
            scales: part(&self.scales)?,
            zero_points: part(&self.zero_points)?,
            ..self.clone()
        })
    }

    /// Rounds numbers to a storage: each to the nearest of the [grid](Storage::grid) of its group's range, which 0 belongs
    /// to. Where a number of a group is not finite, all of them become NaN. Numbers in the places of signs become these.
    ///
    /// # Errors
    /// A storage that does not fit the tensor.
    pub fn encode(tensor: &Tensor, storage: Storage) -> Result<StoredTensor, StorageError> {
        storage.check(tensor.dtype(), tensor.shape())?;
        if storage.is_plain(tensor.dtype()) {
            return Ok(tensor.clone().into());
        }
        let shape = tensor.shape();
        let numbers = tensor.as_slice::<f32>().expect("a storage that is not plain is for f32");
        if let Some(signs) = storage.signs {
            let inner: usize = shape[signs.axis + 1..].iter().product();
            let others = numbers.iter().enumerate().filter(|(i, _)| {
                let position = i / inner.max(1) % shape[signs.axis].max(1);
                !(signs.from..signs.to).contains(&position)
            });
            let others: Vec<f32> = others.map(|(_, x)| *x).collect();
            let elements = Tensor::from_slice(&signs.others(shape), &others);
            return StoredTensor::with_signs(elements.expect("as many numbers as the shape holds"), signs);
        }
        let fits = "as many elements as the tensor";
        if storage.scales == Scales::None {
            let elements = match storage.dtype {
                DType::F16 => {
                    let halves: Vec<_> = numbers.iter().map(|&x| f16::from_f32(x)).collect();
                    Tensor::from_slice(shape, &halves)
                }
                _ => {
                    let halves: Vec<_> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
                    Tensor::from_slice(shape, &halves)
                }
            };
            let elements = elements.expect(fits);
            return Ok(StoredTensor {
                dtype: DType::F32,
                shape: shape.to_vec(),
                storage,
                elements,
                scales: None,
                zero_points: None,
            });
        }
        let groups = Groups::of(&storage, shape);
        let mut ranges = vec![[0f32; 2]; groups.count];
        groups.visit(|at, group| {
            let [low, high] = &mut ranges[group];
            let x = numbers[at];
            let x = if x.is_nan() { f32::INFINITY } else { x };
            (*low, *high) = (low.min(x), high.max(x));
        });
        let grids: Vec<Grid> = ranges.iter().map(|&range| storage.grid(range)).collect();
        let mut elements = vec![0f32; numbers.len()];
        groups.visit(|at, group| elements[at] = grids[group].element(numbers[at]));
        Ok(StoredTensor::on_grids(storage, shape, &elements, &grids))
    }

    /// Numbers of f32 in a storage with scales, from elements in row-major order and the grid of each group.
    ///
    /// # Panics
    /// For another number of elements or groups than the shape has.
    pub fn on_grids(storage: Storage, shape: &[usize], elements: &[f32], grids: &[Grid]) -> StoredTensor {
        let byte = |q: f32| if storage.dtype == DType::I8 { (q as i8).cast_unsigned() } else { q as u8 };
        let bytes: Vec<u8> = elements.iter().map(|q| byte(*q)).collect();
        let fits = "as many elements as the tensor has, and as many grids as groups";
        let steps = storage.scales_shape(shape).unwrap_or_default();
        let scales: Vec<f32> = grids.iter().map(|g| g.scale).collect();
        let scales = match storage.scale_type {
            DType::BF16 => {
                Tensor::from_slice(&steps, &scales.iter().map(|&s| bf16::from_f32(s)).collect::<Vec<_>>())
            }
            _ => Tensor::from_slice(&steps, &scales),
        };
        let zeros: Vec<u8> = grids.iter().map(|g| byte(g.zero)).collect();
        let zeros = storage.zero_points.then(|| Tensor::from_bytes(storage.dtype, &steps, &zeros));
        StoredTensor {
            dtype: DType::F32,
            shape: shape.to_vec(),
            storage,
            elements: Tensor::from_bytes(storage.dtype, shape, &bytes).expect(fits),
            scales: Some(scales.expect(fits)),
            zero_points: zeros.map(|zeros| zeros.expect(fits)),
        }
    }

    /// The numbers.
    pub fn decode(&self) -> Tensor {
        if self.is_plain() {
            return self.elements.clone();
        }
        let shape = &self.shape[..];
        let bytes = self.elements.bytes();
        if let Some(signs) = self.storage.signs {
            let others = self.elements.to_vec::<f32>().expect("the type was checked");
            let numbers = Tensor::from_slice(shape, &signs.filled(shape, &others));
            return numbers.expect("as many numbers as the shape holds");
        }
        let read = |r: Result<Vec<f32>, TensorError>| r.expect("the type was checked");
        let mut numbers: Vec<f32> = match self.storage.dtype {
            DType::F16 => {
                read(self.elements.as_slice::<f16>().map(|v| v.iter().map(|x| x.to_f32()).collect()))
            }
            DType::BF16 => {
                read(self.elements.as_slice::<bf16>().map(|v| v.iter().map(|x| x.to_f32()).collect()))
            }
            DType::I8 => bytes.iter().map(|&b| f32::from(b as i8)).collect(),
            _ => bytes.iter().map(|&b| f32::from(b)).collect(),
        };
        if let Some((scales, zeros)) = self.steps() {
            Groups::of(&self.storage, shape)
                .visit(|at, group| numbers[at] = (numbers[at] - zeros[group]) * scales[group]);
        }
        Tensor::from_slice(shape, &numbers).expect("as many numbers as elements")
    }

    /// Scales and zero points as numbers, one of each per group; `None` without scales.
    pub fn steps(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        let scales = self.scales.as_ref()?;
        let scales: Vec<f32> = match scales.dtype() {
            DType::BF16 => scales.as_slice::<bf16>().map(|v| v.iter().map(|x| x.to_f32()).collect()),
            _ => scales.to_vec::<f32>(),
        }
        .expect("the type was checked");
        let zeros: Vec<f32> = match &self.zero_points {
            None => vec![0.0; scales.len()],
            Some(z) if z.dtype() == DType::I8 => {
                z.bytes().iter().map(|b| f32::from(b.cast_signed())).collect()
            }
            Some(z) => z.bytes().iter().map(|&b| f32::from(b)).collect(),
        };
        Some((scales, zeros))
    }

    /// The same numbers as f32, where they are 16-bit floats; these are how they are stored then.
    #[must_use]
    pub fn widened(&self) -> StoredTensor {
        StoredTensor { dtype: self.dtype.computed(), ..self.clone() }
    }

    /// Type of the numbers.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The format.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Whether the elements are the numbers.
    pub fn is_plain(&self) -> bool {
        self.storage.is_plain(self.dtype)
    }

    /// The elements that are stored, of the type of the storage, a byte for each of a few bits. With signs they have the
    /// extents of [`Storage::elements_shape`].
    pub fn elements(&self) -> &Tensor {
        &self.elements
    }

    /// The scales, with the extents of [`Storage::scales_shape`].
    pub fn scales(&self) -> Option<&Tensor> {
        self.scales.as_ref()
    }

    /// The zero points, of the type of the elements, with the extents of the scales.
    pub fn zero_points(&self) -> Option<&Tensor> {
        self.zero_points.as_ref()
    }

    /// All bytes, with elements, scales and zero points where [`Storage::layout`] says.
    pub fn to_bytes(&self) -> Vec<u8> {
        let layout = self.storage.layout(self.shape());
        let mut bytes = vec![0; layout.bytes];
        let mut put = |at: usize, part: &[u8]| bytes[at..][..part.len()].copy_from_slice(part);
        let mut put_elements = |at: usize, part: &Tensor| match self.storage.is_packed() {
            true => put(at, &bits::packed(part.bytes(), self.storage.bits)),
            false => put(at, part.bytes()),
        };
        put_elements(0, &self.elements);
        self.zero_points.iter().for_each(|z| put_elements(layout.zero_points_at, z));
        self.scales.iter().for_each(|s| put(layout.scales_at, s.bytes()));
        bytes
    }

    /// The inverse of [`to_bytes`](StoredTensor::to_bytes) for numbers of a type and shape.
    pub fn from_bytes(
        dtype: DType,
        shape: &[usize],
        storage: Storage,
        bytes: &[u8],
    ) -> Result<StoredTensor, StorageError> {
        storage.check(dtype, shape)?;
        let wrong = |why: String| StorageError { storage: storage.to_string(), why };
        let count = shape.iter().try_fold(dtype.bytes(), |n, &d| n.checked_mul(d));
        let layout = count.map(|_| storage.layout(shape)).filter(|l| l.bytes == bytes.len());
        let layout = layout
            .ok_or_else(|| wrong(format!("{} bytes are not those of {dtype}{shape:?}", bytes.len())))?;
        let part = |dtype: DType, shape: &[usize], at: usize| {
            let len = shape.iter().product::<usize>() * dtype.bytes();
            Tensor::from_bytes(dtype, shape, &bytes[at..at + len]).map_err(|e| wrong(e.to_string()))
        };
        let elements = |shape: &[usize], at: usize| {
            if !storage.is_packed() {
                return part(storage.dtype, shape, at);
            }
            let count: usize = shape.iter().product();
            let held = &bytes[at..at + bits::packed_len(count, storage.bits)];
            let held = bits::unpacked(held, storage.bits, storage.dtype == DType::I8, count);
            Tensor::from_bytes(storage.dtype, shape, &held).map_err(|e| wrong(e.to_string()))
        };
        let steps = storage.scales_shape(shape);
        Ok(StoredTensor {
            dtype,
            shape: shape.to_vec(),
            storage,
            elements: elements(&storage.elements_shape(shape), 0)?,
            scales: steps.as_ref().map(|s| part(storage.scale_type, s, layout.scales_at)).transpose()?,
            zero_points: (steps.as_ref().filter(|_| storage.zero_points))
                .map(|s| elements(s, layout.zero_points_at))
                .transpose()?,
        })
    }

    /// Identifies type, shape, storage and contents; the hash of the tensor itself where it is stored as it is.
    pub fn content_hash(&self) -> ContentHash {
        if self.is_plain() {
            return self.elements.content_hash();
        }
        let mut h = Hashing::new(&format!("{} stored {}", self.dtype, self.storage));
        [Some(&self.elements), self.scales.as_ref(), self.zero_points.as_ref()]
            .into_iter()
            .flatten()
            .for_each(|part| h.update(part.content_hash().as_bytes()));
        h.finish()
    }
}
