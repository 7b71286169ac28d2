//! Host tensors.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::{DType, Element, Map};

/// A dense row-major tensor in host memory. Cloning is cheap: the bytes are shared.
///
/// The bytes are owned or lie in a mapped file; in a file they may be misaligned, so typed access
/// goes through [`Tensor::to_vec`] or [`Tensor::as_slice`], which copies only where it must.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Bytes,
    hash: Arc<OnceLock<ContentHash>>,
}

#[derive(Clone)]
enum Bytes {
    /// Words, so that every element type is aligned; the byte length is `len`.
    Owned {
        words: Arc<Vec<u64>>,
        len: usize,
    },
    Mapped {
        map: Arc<Map>,
        range: Range<usize>,
    },
}

/// Identifies the contents of a tensor: type, shape and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// Identifies bytes that are no tensor.
    pub fn of(bytes: &[u8]) -> ContentHash {
        ContentHash(*blake3::hash(bytes).as_bytes())
    }

    /// The raw digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A content hash being made of parts.
pub(crate) struct Hashing(blake3::Hasher);

impl Hashing {
    /// Begins with what kind of contents follow.
    pub(crate) fn new(kind: &str) -> Hashing {
        let mut h = blake3::Hasher::new();
        h.update(kind.as_bytes());
        Hashing(h)
    }

    pub(crate) fn update(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    pub(crate) fn finish(self) -> ContentHash {
        ContentHash(*self.0.finalize().as_bytes())
    }
}

impl fmt::Display for ContentHash {
    /// The first twelve hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A tensor cannot be made from, or read as, what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The number of bytes does not fit type and shape (the caller's fault).
    #[error("{dtype} tensor of shape {shape:?} needs {expected} bytes, found {found}")]
    Length {
        /// Element type.
        dtype: DType,
        /// Extents.
        shape: Vec<usize>,
        /// Bytes that type and shape ask for; `usize::MAX` when the product overflows.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// Elements were asked for as another type than they have (the caller's fault).
    #[error("expected elements of type {expected}, found {found}")]
    DType {
        /// The type asked for.
        expected: DType,
        /// The type of the tensor.
        found: DType,
    },
}

/// The number of bytes of a tensor, or `None` if it overflows.
fn byte_len(dtype: DType, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.bytes(), |n, &d| n.checked_mul(d))
}

impl Tensor {
    fn new(dtype: DType, shape: &[usize], bytes: Bytes, found: usize) -> Result<Tensor, TensorError> {
        match byte_len(dtype, shape) {
            Some(n) if n == found => {
                Ok(Tensor { dtype, shape: shape.to_vec(), bytes, hash: Arc::new(OnceLock::new()) })
            }
            n => Err(TensorError::Length {
                dtype,
                shape: shape.to_vec(),
                expected: n.unwrap_or(usize::MAX),
                found,
            }),
        }
    }

    /// A tensor from little-endian row-major bytes, which are copied.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor, TensorError> {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Tensor::new(dtype, shape, Bytes::Owned { words: Arc::new(words), len: bytes.len() }, bytes.len())
    }

    /// A tensor over a byte range of a mapped file. The range must lie inside the map.
    pub fn from_map(
        dtype: DType,
        shape: &[usize],
        map: Arc<Map>,
        range: Range<usize>,
    ) -> Result<Tensor, TensorError> {
        let found = map.get(range.clone()).map_or(0, <[u8]>::len);
        Tensor::new(dtype, shape, Bytes::Mapped { map, range }, found)
    }

    /// Says that the elements are not read for a while: see [`Map::rest`].
    pub fn rest(&self) {
        if let Bytes::Mapped { map, range } = &self.bytes {
            map.rest(range.clone());
        }
    }

    /// A tensor holding a copy of `data`.
    pub fn from_slice<T: Element>(shape: &[usize], data: &[T]) -> Result<Tensor, TensorError> {
        Tensor::from_bytes(T::DTYPE, shape, bytemuck::cast_slice(data))
    }

    /// A boolean tensor.
    pub fn from_bools(shape: &[usize], data: &[bool]) -> Result<Tensor, TensorError> {
        let bytes: Vec<u8> = data.iter().map(|&b| u8::from(b)).collect();
        Tensor::from_bytes(DType::Bool, shape, &bytes)
    }

    /// A tensor without axes.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor::from_slice(&[], &[value]).expect("one element fits a tensor without axes")
    }

    /// A tensor of zeros (`false` for booleans). Fails if its size overflows.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor, TensorError> {
        let len = byte_len(dtype, shape).ok_or(TensorError::Length {
            dtype,
            shape: shape.to_vec(),
            expected: usize::MAX,
            found: 0,
        })?;
        Tensor::new(dtype, shape, Bytes::Owned { words: Arc::new(vec![0; len.div_ceil(8)]), len }, len)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as little-endian row-major bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Owned { words, len } => &bytemuck::cast_slice(words)[..*len],
            Bytes::Mapped { map, range } => &map[range.clone()],
        }
    }

    /// The elements as `T`: borrowed where they are aligned, else a copy.
    pub fn as_slice<T: Element>(&self) -> Result<Cow<'_, [T]>, TensorError> {
        if T::DTYPE != self.dtype && !(T::DTYPE == DType::U8 && self.dtype == DType::Bool) {
            return Err(TensorError::DType { expected: T::DTYPE, found: self.dtype });
        }
        let bytes = self.bytes();
        Ok(match bytemuck::try_cast_slice(bytes) {
            Ok(slice) => Cow::Borrowed(slice),
            Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(bytes)),
        })
    }

    /// A copy of the elements.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, TensorError> {
        self.as_slice().map(Cow::into_owned)
    }

    /// The same elements under another shape of the same size.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Tensor, TensorError> {
        Tensor::new(self.dtype, shape, self.bytes.clone(), self.bytes().len())
    }

    /// Identifies type, shape and bytes. Computed once and kept.
    pub fn content_hash(&self) -> ContentHash {
        *self.hash.get_or_init(|| {
            let mut h = Hashing::new(self.dtype.name());
            h.update(&[self.shape.len() as u8]);
            self.shape.iter().for_each(|d| h.update(&(*d as u64).to_le_bytes()));
            h.update(self.bytes());
            self.rest();
            h.finish()
        })
    }

    /// Whether every element has the same bytes; the index of one such element is 0.
    pub fn is_splat(&self) -> bool {
        let size = self.dtype.bytes();
        let bytes = self.bytes();
        bytes.len() >= size && bytes.chunks_exact(size).all(|c| c == &bytes[..size])
    }
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes() == other.bytes()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({}{:?})", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_fit_the_shape() {
        let err = Tensor::from_bytes(DType::F32, &[2, 3], &[0; 20]).unwrap_err();
        assert_eq!(err.to_string(), "f32 tensor of shape [2, 3] needs 24 bytes, found 20");
        assert!(Tensor::zeros(DType::F64, &[usize::MAX, 2]).is_err());
    }

    #[test]
    fn hash_covers_type_and_shape() {
        let a = Tensor::from_slice(&[2, 1], &[1f32, 2.0]).unwrap();
        let b = a.reshaped(&[1, 2]).unwrap();
        assert_ne!(a.content_hash(), b.content_hash());
        assert_eq!(a.content_hash(), Tensor::from_slice(&[2, 1], &[1f32, 2.0]).unwrap().content_hash());
    }

    #[test]
    fn splat_is_seen() {
        assert!(Tensor::from_slice(&[3], &[2i64, 2, 2]).unwrap().is_splat());
        assert!(!Tensor::from_slice(&[3], &[2i64, 2, 1]).unwrap().is_splat());
        assert!(!Tensor::zeros(DType::F32, &[0]).unwrap().is_splat());
    }
}
