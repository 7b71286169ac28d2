//! How constants are stored: narrow elements, and the steps they count in.
//!
//! A [`Storage`] names a format; a [`StoredTensor`] is a tensor in it. The number behind element `q` is
//! `(q - zero) · scale`, computed in f32, with the scale and the zero point of its group; without scales it is the
//! element itself. [`StoredTensor::encode`] and [`StoredTensor::decode`] are the reference for whatever reads
//! such a constant.
//!
//! Deliberately absent: layouts of kernels. A back end packs stored tensors as it likes, without changing a number.

use std::fmt;

use crate::tensor::Hashing;
use crate::{ContentHash, DType, Tensor, TensorError};

/// Which elements share a scale.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Scales {
    /// There are no scales: elements are numbers.
    None,
    /// All of them.
    Tensor,
    /// Those at one position of an axis.
    Axis(usize),
    /// Those in runs of `size` along an axis; the last run of an axis may be shorter.
    Block {
        /// The axis.
        axis: usize,
        /// Elements of a run.
        size: usize,
    },
}

/// A format of storage. Prints as `f32`, `bf16`, `i8(axis = 1)`, `u8(tensor, zero points)`, `i8(axis = 0, block = 32)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Storage {
    /// Type of the elements: a float type without scales, `i8` or `u8` with them.
    pub dtype: DType,
    /// Which elements share a scale.
    pub scales: Scales,
    /// Whether every group has a zero point, an element that stands for 0; without one it is 0.
    pub zero_points: bool,
}

/// A storage does not fit a tensor (the options' or the text's fault).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("storage {storage}: {why}")]
pub struct StorageError {
    /// The storage, as printed.
    pub storage: String,
    /// The reason.
    pub why: String,
}

/// Where the parts of a stored tensor lie in its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredLayout {
    /// Bytes of the elements, which come first.
    pub elements: usize,
    /// First byte of the scales, f32.
    pub scales_at: usize,
    /// First byte of the zero points, of the type of the elements.
    pub zero_points_at: usize,
    /// All bytes.
    pub bytes: usize,
}

/// Scales and zero points begin at multiples of this.
const PART_ALIGN: usize = 64;

impl Storage {
    /// Elements as they are.
    pub const fn plain(dtype: DType) -> Storage {
        Storage { dtype, scales: Scales::None, zero_points: false }
    }

    /// Signed bytes with a scale for every position of an axis, no zero points.
    pub const fn int8(axis: usize) -> Storage {
        Storage { dtype: DType::I8, scales: Scales::Axis(axis), zero_points: false }
    }

    /// Whether a tensor of a type is stored as it is.
    pub fn is_plain(&self, dtype: DType) -> bool {
        *self == Storage::plain(dtype)
    }

    /// Whether numbers of a type and shape can be stored so.
    pub fn check(&self, dtype: DType, shape: &[usize]) -> Result<(), StorageError> {
        let wrong = |why: String| Err(StorageError { storage: self.to_string(), why });
        let axis = match self.scales {
            _ if self.is_plain(dtype) => return Ok(()),
            Scales::None if !matches!(self.dtype, DType::F16 | DType::BF16) || self.zero_points => {
                return wrong(format!("{} without scales is for tensors of that type", self.dtype));
            }
            Scales::None | Scales::Tensor => None,
            Scales::Axis(axis) => Some(axis),
            Scales::Block { size: 0, .. } => return wrong("a block has at least one element".into()),
            Scales::Block { axis, .. } => Some(axis),
        };
        if self.scales != Scales::None && !matches!(self.dtype, DType::I8 | DType::U8) {
            return wrong(format!("elements with scales are i8 or u8, found {}", self.dtype));
        }
        if dtype != DType::F32 {
            return wrong(format!("numbers are f32, found {dtype}"));
        }
        if let Some(axis) = axis.filter(|&axis| axis >= shape.len()) {
            return wrong(format!("axis {axis} of a tensor with {} axes", shape.len()));
        }
        // Scales of an axis are as many as it is long, though the tensor be empty along another.
        let most = shape.iter().try_fold(4usize, |n, &d| n.checked_mul(d.max(1)));
        match most.filter(|&n| n <= isize::MAX as usize / 4) {
            Some(_) => Ok(()),
            None => wrong(format!("shape {shape:?} is more than memory can hold")),
        }
    }

    /// The extents of scales and zero points for a tensor of a shape: as many axes, those of extent 1 shared, and
    /// one position per run along the axis of blocks. `None` without scales.
    pub fn scales_shape(&self, shape: &[usize]) -> Option<Vec<usize>> {
        match self.scales {
            Scales::None => None,
            Scales::Tensor => Some(vec![1; shape.len()]),
            Scales::Axis(at) => Some((0..shape.len()).map(|i| if i == at { shape[i] } else { 1 }).collect()),
            Scales::Block { axis, size } => Some(
                (0..shape.len())
                    .map(|i| if i == axis { shape[i].div_ceil(size) } else { shape[i] })
                    .collect(),
            ),
        }
    }

    /// Where the parts of a tensor of a shape lie.
    pub fn layout(&self, shape: &[usize]) -> StoredLayout {
        let elements = shape.iter().product::<usize>() * self.dtype.bytes();
        let Some(groups) = self.scales_shape(shape).map(|s| s.iter().product::<usize>()) else {
            return StoredLayout { elements, scales_at: elements, zero_points_at: elements, bytes: elements };
        };
        let scales_at = elements.next_multiple_of(PART_ALIGN);
        let end = scales_at + 4 * groups;
        match self.zero_points {
            false => StoredLayout { elements, scales_at, zero_points_at: end, bytes: end },
            true => {
                let zero_points_at = end.next_multiple_of(PART_ALIGN);
                let bytes = zero_points_at + groups * self.dtype.bytes();
                StoredLayout { elements, scales_at, zero_points_at, bytes }
            }
        }
    }

    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Storage> {
        let Some((dtype, rest)) = text.split_once('(') else {
            return DType::from_name(text).map(Storage::plain);
        };
        let mut storage = Storage::plain(DType::from_name(dtype)?);
        let (mut axis, mut block) = (None, None);
        for item in rest.strip_suffix(')')?.split(", ") {
            match item.split_once(" = ") {
                None if item == "tensor" => storage.scales = Scales::Tensor,
                None if item == "zero points" => storage.zero_points = true,
                Some(("axis", n)) => axis = Some(n.parse().ok()?),
                Some(("block", n)) => block = Some(n.parse().ok()?),
                _ => return None,
            }
        }
        match (axis, block) {
            (Some(axis), None) => storage.scales = Scales::Axis(axis),
            (Some(axis), Some(size)) => storage.scales = Scales::Block { axis, size },
            (None, None) => {}
            (None, Some(_)) => return None,
        }
        // One text for one storage.
        (storage.to_string() == text).then_some(storage)
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut items = match self.scales {
            Scales::None => vec![],
            Scales::Tensor => vec!["tensor".to_string()],
            Scales::Axis(axis) => vec![format!("axis = {axis}")],
            Scales::Block { axis, size } => vec![format!("axis = {axis}"), format!("block = {size}")],
        };
        if self.zero_points {
            items.push("zero points".into());
        }
        f.write_str(self.dtype.name())?;
        if items.is_empty() { Ok(()) } else { write!(f, "({})", items.join(", ")) }
    }
}

/// A tensor as it is stored. Cloning is cheap.
#[derive(Clone, PartialEq, Debug)]
pub struct StoredTensor {
    dtype: DType,
    storage: Storage,
    elements: Tensor,
    scales: Option<Tensor>,
    zero_points: Option<Tensor>,
}

impl From<Tensor> for StoredTensor {
    /// Stored as it is.
    fn from(tensor: Tensor) -> StoredTensor {
        let dtype = tensor.dtype();
        StoredTensor {
            dtype,
            storage: Storage::plain(dtype),
            elements: tensor,
            scales: None,
            zero_points: None,
        }
    }
}

impl StoredTensor {
    /// Numbers of f32 from elements with given steps. Scales, in f32, have the extents that
    /// [`scales_shape`](Storage::scales_shape) says; zero points have them too, and the type of the elements.
    pub fn quantized(
        elements: Tensor,
        scales: (Scales, Tensor),
        zero_points: Option<Tensor>,
    ) -> Result<StoredTensor, StorageError> {
        let storage =
            Storage { dtype: elements.dtype(), scales: scales.0, zero_points: zero_points.is_some() };
        storage.check(DType::F32, elements.shape())?;
        let shape = storage.scales_shape(elements.shape()).unwrap_or_default();
        let parts = [Some((&scales.1, DType::F32)), zero_points.as_ref().map(|z| (z, elements.dtype()))];
        for (part, dtype) in parts.into_iter().flatten() {
            if part.dtype() != dtype || part.shape() != shape {
                let why = format!("expected {dtype}{shape:?}, found {}{:?}", part.dtype(), part.shape());
                return Err(StorageError { storage: storage.to_string(), why });
            }
        }
        Ok(StoredTensor { dtype: DType::F32, storage, elements, scales: Some(scales.1), zero_points })
    }

    /// The same numbers with position `order[i]` of the first axis in place `i`. `None` where runs along that axis share a
    /// scale, which another order would separate, and for an order that is none.
    pub fn reordered(&self, order: &[usize]) -> Option<StoredTensor> {
        let rows = *self.shape().first()?;
        let mut seen = vec![false; rows];
        for &row in order {
            if std::mem::replace(seen.get_mut(row)?, true) {
                return None;
            }
        }
        if order.len() != rows || matches!(self.storage.scales, Scales::Block { axis: 0, .. }) {
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

    /// Rounds numbers to a storage. A scale is the largest magnitude of its group over 127 (255 for `u8`); with zero
    /// points it is the width of the range of the group, 0 included, over 255. Where a number of a group is not
    /// finite, all of them become NaN.
    pub fn encode(tensor: &Tensor, storage: Storage) -> Result<StoredTensor, StorageError> {
        storage.check(tensor.dtype(), tensor.shape())?;
        if storage.is_plain(tensor.dtype()) {
            return Ok(tensor.clone().into());
        }
        let shape = tensor.shape();
        let numbers = tensor.as_slice::<f32>().expect("a storage that is not plain is for f32");
        let fits = "as many elements as the tensor";
        if storage.scales == Scales::None {
            let elements = match storage.dtype {
                DType::F16 => {
                    let halves: Vec<_> = numbers.iter().map(|&x| half::f16::from_f32(x)).collect();
                    Tensor::from_slice(shape, &halves)
                }
                _ => {
                    let halves: Vec<_> = numbers.iter().map(|&x| half::bf16::from_f32(x)).collect();
                    Tensor::from_slice(shape, &halves)
                }
            };
            let elements = elements.expect(fits);
            return Ok(StoredTensor {
                dtype: DType::F32,
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
        let limits = match (storage.dtype, storage.zero_points) {
            (DType::I8, false) => [-127.0, 127.0],
            (DType::I8, true) => [-128.0, 127.0],
            _ => [0.0, 255.0],
        };
        let steps: Vec<Step> = ranges.iter().map(|&r| Step::of(r, limits, storage.zero_points)).collect();
        let mut bytes = vec![0u8; numbers.len()];
        groups.visit(|at, group| {
            let q = steps[group].element(numbers[at], limits);
            bytes[at] = if storage.dtype == DType::I8 { q as i8 as u8 } else { q as u8 };
        });
        let scales: Vec<f32> = steps.iter().map(|s| s.scale).collect();
        let zeros: Vec<u8> = steps
            .iter()
            .map(|s| if storage.dtype == DType::I8 { s.zero as i8 as u8 } else { s.zero as u8 })
            .collect();
        let scales_shape = storage.scales_shape(shape).unwrap_or_default();
        Ok(StoredTensor {
            dtype: DType::F32,
            storage,
            elements: Tensor::from_bytes(storage.dtype, shape, &bytes).expect(fits),
            scales: Some(Tensor::from_slice(&scales_shape, &scales).expect("as many scales as groups")),
            zero_points: storage.zero_points.then(|| {
                Tensor::from_bytes(storage.dtype, &scales_shape, &zeros).expect("as many as groups")
            }),
        })
    }

    /// The numbers.
    pub fn decode(&self) -> Tensor {
        if self.is_plain() {
            return self.elements.clone();
        }
        let shape = self.elements.shape();
        let bytes = self.elements.bytes();
        let read = |r: Result<Vec<f32>, TensorError>| r.expect("the type was checked");
        let mut numbers: Vec<f32> = match self.storage.dtype {
            DType::F16 => {
                read(self.elements.as_slice::<half::f16>().map(|v| v.iter().map(|x| x.to_f32()).collect()))
            }
            DType::BF16 => {
                read(self.elements.as_slice::<half::bf16>().map(|v| v.iter().map(|x| x.to_f32()).collect()))
            }
            DType::I8 => bytes.iter().map(|&b| f32::from(b as i8)).collect(),
            _ => bytes.iter().map(|&b| f32::from(b)).collect(),
        };
        if let Some(scales) = &self.scales {
            let scales = read(scales.to_vec::<f32>());
            let zeros: Vec<f32> = match &self.zero_points {
                None => vec![0.0; scales.len()],
                Some(z) if z.dtype() == DType::I8 => z.bytes().iter().map(|&b| f32::from(b as i8)).collect(),
                Some(z) => z.bytes().iter().map(|&b| f32::from(b)).collect(),
            };
            Groups::of(&self.storage, shape)
                .visit(|at, group| numbers[at] = (numbers[at] - zeros[group]) * scales[group]);
        }
        Tensor::from_slice(shape, &numbers).expect("as many numbers as elements")
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
        self.elements.shape()
    }

    /// The format.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Whether the elements are the numbers.
    pub fn is_plain(&self) -> bool {
        self.storage.is_plain(self.dtype)
    }

    /// The elements, of the type of the storage.
    pub fn elements(&self) -> &Tensor {
        &self.elements
    }

    /// The scales, f32, with the extents of [`Storage::scales_shape`].
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
        let mut put =
            |at: usize, part: &Tensor| bytes[at..][..part.bytes().len()].copy_from_slice(part.bytes());
        put(0, &self.elements);
        self.scales.iter().for_each(|s| put(layout.scales_at, s));
        self.zero_points.iter().for_each(|z| put(layout.zero_points_at, z));
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
        let steps = storage.scales_shape(shape);
        Ok(StoredTensor {
            dtype,
            storage,
            elements: part(storage.dtype, shape, 0)?,
            scales: steps.as_ref().map(|s| part(DType::F32, s, layout.scales_at)).transpose()?,
            zero_points: (steps.as_ref().filter(|_| storage.zero_points))
                .map(|s| part(storage.dtype, s, layout.zero_points_at))
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

/// Scale and zero point of a group.
#[derive(Clone, Copy)]
struct Step {
    scale: f32,
    zero: f32,
}

impl Step {
    fn of([low, high]: [f32; 2], limits: [f32; 2], zero_points: bool) -> Step {
        if !low.is_finite() || !high.is_finite() {
            return Step { scale: f32::NAN, zero: 0.0 };
        }
        if !zero_points {
            return Step { scale: high.max(-low) / limits[1], zero: 0.0 };
        }
        let scale = (high / 255.0) - (low / 255.0);
        let zero = if scale > 0.0 { (limits[0] - low / scale).round_ties_even() } else { 0.0 };
        Step { scale, zero: zero.clamp(limits[0], limits[1]) }
    }

    /// The element nearest to a number, ties to even; the zero point where the scale is 0 or NaN.
    fn element(self, x: f32, [low, high]: [f32; 2]) -> f32 {
        match self.scale > 0.0 {
            true => ((x / self.scale).round_ties_even() + self.zero).clamp(low, high),
            false => self.zero,
        }
    }
}

/// How elements in row-major order fall into groups.
struct Groups {
    outer: usize,
    axis: usize,
    inner: usize,
    scales: Scales,
    count: usize,
}

impl Groups {
    fn of(storage: &Storage, shape: &[usize]) -> Groups {
        let count = storage.scales_shape(shape).map_or(0, |s| s.iter().product());
        let at = match storage.scales {
            Scales::Axis(axis) | Scales::Block { axis, .. } => axis,
            Scales::None | Scales::Tensor => {
                let all = shape.iter().product();
                return Groups { outer: 1, axis: 1, inner: all, scales: storage.scales, count };
            }
        };
        let product = |part: &[usize]| part.iter().product();
        Groups {
            outer: product(&shape[..at]),
            axis: shape[at],
            inner: product(&shape[at + 1..]),
            scales: storage.scales,
            count,
        }
    }

    /// Calls `f` with every element's position and group, in order.
    fn visit(&self, mut f: impl FnMut(usize, usize)) {
        let mut at = 0;
        for o in 0..self.outer {
            for i in 0..self.axis {
                // The group of the first of `inner` elements, and what each of the others adds.
                let (first, step) = match self.scales {
                    Scales::None | Scales::Tensor => (0, 0),
                    Scales::Axis(_) => (i, 0),
                    Scales::Block { size, .. } => ((o * self.axis.div_ceil(size) + i / size) * self.inner, 1),
                };
                for j in 0..self.inner {
                    f(at, first + j * step);
                    at += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
