//! How constants are stored: narrow elements, and the steps they count in.
//!
//! A [`Storage`] names a format; a [`StoredTensor`] is a tensor in it. The number behind element `q` is
//! `(q - zero) · scale`, computed in f32, with the scale and the zero point of its group; without scales it is the
//! element itself. [`StoredTensor::encode`] and [`StoredTensor::decode`] are the reference for whatever reads
//! such a constant.
//!
//! A part of a tensor may be [random signs](Signs), which are made of their name whenever they are read and take no bytes.
//!
//! Elements of 3 or 4 bits are bytes in host memory. As bytes of a file or of a program they follow each other bit by bit,
//! the lowest bit of the first element first.
//!
//! Deliberately absent: layouts of kernels. A back end packs stored tensors as it likes, without changing a number.

mod bits;
mod rounding;
mod signs;
mod stored;

use std::fmt;

use crate::DType;

pub use rounding::Grid;
pub use signs::Signs;
pub use stored::StoredTensor;

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

/// A format of storage. Prints as `f32`, `bf16`, `i8(axis = 1)`, `u8(tensor, zero points)`,
/// `u4(axis = 0, block = 32, bf16 scales, zero points)`,
/// `f32(signs, axis = 1, from = 16, to = 32, seed = 7, stream = 3, size = 0.25)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Storage {
    /// Type of the elements: a float type without scales, `i8` or `u8` with them.
    pub dtype: DType,
    /// Bits of an element: those of its type, or 3 or 4 of an `i8` or a `u8` with scales.
    pub bits: u32,
    /// Which elements share a scale.
    pub scales: Scales,
    /// Type of the scales: `f32` or `bf16`; `f32` where there are none.
    pub scale_type: DType,
    /// Whether every group has a zero point, an element that stands for 0; without one it is 0.
    pub zero_points: bool,
    /// The elements that are not stored but drawn; beside numbers of f32 alone.
    pub signs: Option<Signs>,
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
    /// First byte of the scales.
    pub scales_at: usize,
    /// First byte of the zero points, stored as the elements are.
    pub zero_points_at: usize,
    /// All bytes.
    pub bytes: usize,
}

/// Scales and zero points begin at multiples of this.
const PART_ALIGN: usize = 64;

impl Storage {
    /// Elements as they are.
    pub const fn plain(dtype: DType) -> Storage {
        let bits = 8 * dtype.bytes() as u32;
        Storage { dtype, bits, scales: Scales::None, scale_type: DType::F32, zero_points: false, signs: None }
    }

    /// Numbers of f32 with random signs in place of some.
    pub const fn with_signs(signs: Signs) -> Storage {
        Storage { signs: Some(signs), ..Storage::plain(DType::F32) }
    }

    /// Bytes, signed or not, with scales in f32 and no zero points.
    pub const fn bytes(dtype: DType, scales: Scales) -> Storage {
        Storage { scales, ..Storage::plain(dtype) }
    }

    /// Signed bytes with a scale for every position of an axis, no zero points.
    pub const fn int8(axis: usize) -> Storage {
        Storage::bytes(DType::I8, Scales::Axis(axis))
    }

    /// Numbers of a few bits in runs of [`BLOCK`](Storage::BLOCK) along an axis, each with a scale in bf16 and a zero point.
    pub const fn blocks(bits: u32, axis: usize) -> Storage {
        Storage {
            dtype: DType::U8,
            bits,
            scales: Scales::Block { axis, size: Storage::BLOCK },
            scale_type: DType::BF16,
            zero_points: true,
            signs: None,
        }
    }

    /// Elements of a run of [`blocks`](Storage::blocks).
    pub const BLOCK: usize = 64;

    /// Whether elements take fewer bits than their type has.
    pub fn is_packed(&self) -> bool {
        self.bits < 8
    }

    /// Whether a tensor of a type is stored as it is.
    pub fn is_plain(&self, dtype: DType) -> bool {
        *self == Storage::plain(dtype)
    }

    /// Whether numbers of a type and shape can be stored so.
    pub fn check(&self, dtype: DType, shape: &[usize]) -> Result<(), StorageError> {
        let wrong = |why: String| Err(StorageError { storage: self.to_string(), why });
        if let Some(signs) = self.signs {
            return match Storage::with_signs(signs) == *self && dtype == DType::F32 {
                true => signs.check(shape).or_else(wrong),
                false => wrong(format!("signs are beside numbers of f32 as they are, found {dtype}")),
            };
        }
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
        let full = 8 * self.dtype.bytes() as u32;
        if self.bits != full && (self.scales == Scales::None || !matches!(self.bits, 3 | 4)) {
            return wrong(format!("{} bits are for elements with scales, 3 or 4", self.bits));
        }
        if !matches!(self.scale_type, DType::F32 | DType::BF16)
            || (self.scales == Scales::None && self.scale_type != DType::F32)
        {
            return wrong(format!("scales are f32 or bf16, found {}", self.scale_type));
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

    /// The extents of the elements that are stored of a tensor of a shape: all of them, or those that are not drawn.
    pub fn elements_shape(&self, shape: &[usize]) -> Vec<usize> {
        self.signs.map_or_else(|| shape.to_vec(), |signs| signs.others(shape))
    }

    /// Where the parts of a tensor of a shape lie.
    pub fn layout(&self, shape: &[usize]) -> StoredLayout {
        let bytes = |count: usize| match self.is_packed() {
            true => bits::packed_len(count, self.bits),
            false => count * self.dtype.bytes(),
        };
        let elements = bytes(self.elements_shape(shape).iter().product());
        let Some(groups) = self.scales_shape(shape).map(|s| s.iter().product::<usize>()) else {
            return StoredLayout { elements, scales_at: elements, zero_points_at: elements, bytes: elements };
        };
        let scales_at = elements.next_multiple_of(PART_ALIGN);
        let end = scales_at + self.scale_type.bytes() * groups;
        match self.zero_points {
            false => StoredLayout { elements, scales_at, zero_points_at: end, bytes: end },
            true => {
                let zero_points_at = end.next_multiple_of(PART_ALIGN);
                StoredLayout { elements, scales_at, zero_points_at, bytes: zero_points_at + bytes(groups) }
            }
        }
    }

    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Storage> {
        let Some((word, rest)) = text.split_once('(') else {
            return DType::from_name(text).map(Storage::plain);
        };
        let packed = |bits| {
            let dtype = if word.starts_with('i') { DType::I8 } else { DType::U8 };
            Storage { bits, ..Storage::plain(dtype) }
        };
        if let Some(signs) = rest.strip_suffix(')').and_then(Signs::parse) {
            let storage = Storage::with_signs(signs);
            return (storage.to_string() == text).then_some(storage);
        }
        let mut storage = match word {
            "i3" | "u3" => packed(3),
            "i4" | "u4" => packed(4),
            word => Storage::plain(DType::from_name(word)?),
        };
        let (mut axis, mut block) = (None, None);
        for item in rest.strip_suffix(')')?.split(", ") {
            match item.split_once(" = ") {
                None if item == "tensor" => storage.scales = Scales::Tensor,
                None if item == "bf16 scales" => storage.scale_type = DType::BF16,
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
        if self.scale_type != DType::F32 {
            items.push(format!("{} scales", self.scale_type));
        }
        if self.zero_points {
            items.push("zero points".into());
        }
        items.extend(self.signs.map(|signs| signs.to_string()));
        match self.is_packed() {
            true => write!(f, "{}{}", &self.dtype.name()[..1], self.bits)?,
            false => f.write_str(self.dtype.name())?,
        }
        if items.is_empty() { Ok(()) } else { write!(f, "({})", items.join(", ")) }
    }
}

#[cfg(test)]
mod tests;
