//! Tensors: element types, extents, and the four places their data may be in.
//!
//! Data lies in the file itself as raw bytes (a range of the map), in another file (external data, a range of
//! another map), or in one of five typed fields, which is copied. Whatever the place, there must be exactly as
//! much of it as element type and extents ask for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use margay_tensor::{DType, Element, Map, Tensor, TensorError};

use crate::wire::proto::{StringStringEntryProto, TensorProto};
use crate::{Narrow, Problem, map};

/// Greatest number of axes.
const MAX_AXES: usize = 64;
/// The values of `data_location`: in the model, and in another file.
const DEFAULT: i32 = 0;
const EXTERNAL: i32 = 1;

/// The number of the element type of bytes.
const UINT8: i32 = 2;

/// Where the data of tensors comes from.
pub(super) struct Store<'a> {
    map: &'a Arc<Map>,
    payloads: Vec<Range<usize>>,
    path: Option<&'a Path>,
    /// External files by resolved path; each is mapped once.
    files: BTreeMap<PathBuf, Arc<Map>>,
}

/// What a tensor is, whatever its data.
struct Header<'a> {
    name: &'a str,
    dtype: DType,
    dims: &'a [i64],
    extents: Vec<usize>,
    bytes: usize,
}

impl<'a> Store<'a> {
    /// `payloads` are ranges of `map`; `path` is the file it comes from.
    pub(super) fn new(map: &'a Arc<Map>, payloads: Vec<Range<usize>>, path: Option<&'a Path>) -> Store<'a> {
        Store { map, payloads, path, files: BTreeMap::new() }
    }

    /// The tensor of a message whose raw data was cut out by `wire`; elements of narrow types have a byte each.
    pub(super) fn tensor(&mut self, name: &str, mut proto: TensorProto) -> Result<Tensor, Problem> {
        let Some(narrow) = Narrow::numbered(proto.data_type) else { return self.plain(name, proto) };
        // What is packed is a list of bytes.
        let bytes = UINT8;
        let header = Header::new(name, bytes, &proto.dims)?;
        let (extents, packed) = (header.extents.clone(), (header.bytes * narrow.bits()).div_ceil(8));
        let dims = std::mem::replace(&mut proto.dims, vec![packed as i64]);
        proto.data_type = bytes;
        let packed = self.plain(name, proto)?;
        narrow.unpacked(&extents, packed.bytes()).ok_or_else(|| Problem::Length {
            tensor: name.to_owned(),
            dtype: narrow.carrier(),
            dims,
            unit: "bytes",
            expected: packed.len() as u64,
            found: packed.len() as u64,
        })
    }

    fn plain(&mut self, name: &str, proto: TensorProto) -> Result<Tensor, Problem> {
        if proto.segment.is_some() {
            return Err(Problem::Storage { tensor: name.to_owned(), found: "segments" });
        }
        let header = Header::new(name, proto.data_type, &proto.dims)?;
        let location = proto.data_location;
        if !matches!(location, DEFAULT | EXTERNAL) {
            return Err(header.field("the model or an external file", &format!("location number {location}")));
        }
        let raw = raw_index(&proto.raw_data).and_then(|i| self.payloads.get(i)).filter(|r| !r.is_empty());
        let places = [
            ("external_data", location == EXTERNAL),
            ("raw_data", raw.is_some()),
            ("float_data", !proto.float_data.is_empty()),
            ("int32_data", !proto.int32_data.is_empty()),
            ("int64_data", !proto.int64_data.is_empty()),
            ("double_data", !proto.double_data.is_empty()),
            ("uint64_data", !proto.uint64_data.is_empty()),
        ];
        let found: Vec<&str> = places.iter().filter(|(_, there)| *there).map(|(place, _)| *place).collect();
        match found[..] {
            [] => header.make(Tensor::from_bytes(header.dtype, &header.extents, &[])),
            ["external_data"] => self.external(&header, &proto.external_data),
            ["raw_data"] => header.mapped(self.map, raw.cloned().unwrap_or_default()),
            [place] if place == header.typed_field() => header.typed(&proto),
            [place] => {
                let expected = format!("`raw_data` or `{}`", header.typed_field());
                Err(header.field(&expected, &format!("`{place}`")))
            }
            _ => Err(header.field("one field", &format!("`{}`", found.join("` and `")))),
        }
    }

    /// A tensor in another file of the model's folder.
    fn external(
        &mut self,
        header: &Header<'_>,
        entries: &[StringStringEntryProto],
    ) -> Result<Tensor, Problem> {
        let location = header.entry(entries, "location")?;
        let Some(location) = location.filter(|l| !l.is_empty()) else {
            return Err(header.external("a location", "none".to_owned()));
        };
        let offset = header.number(entries, "offset", "a number as offset")?.unwrap_or(0);
        let length = header.number(entries, "length", "a number as length")?.unwrap_or(header.bytes as u64);
        if length != header.bytes as u64 {
            return Err(header.length("bytes", header.bytes, length));
        }
        let file = self.file(header, location)?;
        let start = usize::try_from(offset).ok().filter(|&o| o <= file.len());
        match start.and_then(|s| Some(s..s.checked_add(header.bytes)?)).filter(|r| r.end <= file.len()) {
            Some(range) => header.mapped(&file, range),
            None => Err(Problem::ExternalLength {
                tensor: header.name.to_owned(),
                location: location.to_owned(),
                offset,
                expected: header.bytes as u64,
                found: (file.len() as u64).saturating_sub(offset),
            }),
        }
    }

    /// Maps an external file, after making sure that it lies in the folder of the model once all links are
    /// followed, or in the [cache](hub_cache) that the folder belongs to.
    fn file(&mut self, header: &Header<'_>, location: &str) -> Result<Arc<Map>, Problem> {
        let [tensor, location] = [header.name, location].map(str::to_owned);
        let unreadable = |message: String| Problem::ExternalRead {
            tensor: tensor.clone(),
            location: location.clone(),
            message,
        };
        let relative = Path::new(&location);
        let plain = |c| matches!(c, Component::Normal(_) | Component::CurDir);
        if !relative.components().all(plain) {
            return Err(Problem::ExternalOutside { tensor, location });
        }
        let model = self.path.ok_or_else(|| unreadable("the model does not come from a file".to_owned()))?;
        let folder = match model.parent() {
            Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
            Some(folder) => folder,
            None => return Err(unreadable("the model has no folder".to_owned())),
        };
        let folder = folder.canonicalize().map_err(|e| unreadable(e.to_string()))?;
        let path = folder.join(relative).canonicalize().map_err(|e| unreadable(e.to_string()))?;
        if !path.starts_with(hub_cache(&folder).unwrap_or(&folder)) {
            return Err(Problem::ExternalOutside { tensor, location });
        }
        if let Some(file) = self.files.get(&path) {
            return Ok(file.clone());
        }
        let file = map::map_file(&path).map_err(|e| unreadable(e.to_string()))?;
        self.files.insert(path, file.clone());
        Ok(file)
    }
}

/// The cache of a model hub that a folder belongs to: `snapshots/REVISION` inside it holds links to files in `blobs`.
fn hub_cache(folder: &Path) -> Option<&Path> {
    let snapshots = folder.ancestors().find(|p| p.file_name().is_some_and(|name| name == "snapshots"))?;
    snapshots.parent().filter(|cache| cache.join("blobs").is_dir())
}

impl<'a> Header<'a> {
    fn new(name: &'a str, data_type: i32, dims: &'a [i64]) -> Result<Header<'a>, Problem> {
        let dtype = element_type("tensor", name, data_type)?;
        if dims.len() > MAX_AXES {
            return Err(Problem::Axes { tensor: name.to_owned(), limit: MAX_AXES, found: dims.len() });
        }
        let overflow = || Problem::Overflow { tensor: name.to_owned(), dtype, dims: dims.to_vec() };
        let mut extents = Vec::with_capacity(dims.len());
        let mut bytes = dtype.bytes();
        for (axis, &found) in dims.iter().enumerate() {
            if found < 0 {
                return Err(Problem::NegativeDim { tensor: name.to_owned(), axis, found });
            }
            let extent = usize::try_from(found).map_err(|_| overflow())?;
            bytes = bytes.checked_mul(extent).filter(|&b| isize::try_from(b).is_ok()).ok_or_else(overflow)?;
            extents.push(extent);
        }
        Ok(Header { name, dtype, dims, extents, bytes })
    }

    /// A tensor over a range of a map.
    fn mapped(&self, map: &Arc<Map>, range: Range<usize>) -> Result<Tensor, Problem> {
        let tensor = self.make(Tensor::from_map(self.dtype, &self.extents, map.clone(), range))?;
        if self.dtype == DType::Bool
            && let Some((index, &found)) = tensor.bytes().iter().enumerate().find(|(_, b)| **b > 1)
        {
            return Err(self.element(index, found.into()));
        }
        Ok(tensor)
    }

    /// The typed field that may hold elements of this type.
    fn typed_field(&self) -> &'static str {
        match self.dtype {
            DType::F32 => "float_data",
            DType::F64 => "double_data",
            DType::I64 => "int64_data",
            DType::U32 | DType::U64 => "uint64_data",
            DType::F16 | DType::BF16 | DType::Bool => "int32_data",
            DType::I8 | DType::U8 | DType::I16 | DType::U16 | DType::I32 => "int32_data",
        }
    }

    /// A tensor from its typed field.
    fn typed(&self, proto: &TensorProto) -> Result<Tensor, Problem> {
        let (int32, uint64) = (&proto.int32_data[..], &proto.uint64_data[..]);
        match self.dtype {
            DType::F32 => self.copied(&proto.float_data),
            DType::F64 => self.copied(&proto.double_data),
            DType::I64 => self.copied(&proto.int64_data),
            DType::U64 => self.copied(uint64),
            DType::I32 => self.copied(int32),
            DType::U32 => self.copied(&self.narrowed(uint64, |v| u32::try_from(v).ok())?),
            DType::I8 => self.copied(&self.narrowed(int32, |v| i8::try_from(v).ok())?),
            DType::U8 => self.copied(&self.narrowed(int32, |v| u8::try_from(v).ok())?),
            DType::I16 => self.copied(&self.narrowed(int32, |v| i16::try_from(v).ok())?),
            DType::U16 => self.copied(&self.narrowed(int32, |v| u16::try_from(v).ok())?),
            DType::F16 => self.copied(&self.narrowed(int32, |v| u16::try_from(v).ok().map(f16::from_bits))?),
            DType::BF16 => {
                self.copied(&self.narrowed(int32, |v| u16::try_from(v).ok().map(bf16::from_bits))?)
            }
            DType::Bool => {
                let bytes = self.narrowed(int32, |v| u8::try_from(v).ok().filter(|&b| b <= 1))?;
                self.make(Tensor::from_bytes(DType::Bool, &self.extents, &bytes))
            }
        }
    }

    fn copied<T: Element>(&self, elements: &[T]) -> Result<Tensor, Problem> {
        let expected = self.bytes / self.dtype.bytes();
        if elements.len() != expected {
            return Err(self.length("elements", expected, elements.len() as u64));
        }
        self.make(Tensor::from_slice(&self.extents, elements))
    }

    /// The elements of a field that is wider than they are.
    fn narrowed<S, T>(&self, wide: &[S], narrow: impl Fn(S) -> Option<T>) -> Result<Vec<T>, Problem>
    where
        S: Copy + Into<i128>,
    {
        let narrow = |(index, &v): (usize, &S)| narrow(v).ok_or_else(|| self.element(index, v.into()));
        wide.iter().enumerate().map(narrow).collect()
    }

    /// The entry of external data with this key.
    fn entry<'e>(
        &self,
        entries: &'e [StringStringEntryProto],
        key: &'static str,
    ) -> Result<Option<&'e str>, Problem> {
        let mut found = entries.iter().filter(|e| e.key == key).map(|e| e.value.as_str());
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(self.external("each key once", format!("`{key}` again"))),
            (value, None) => Ok(value),
        }
    }

    fn number(
        &self,
        entries: &[StringStringEntryProto],
        key: &'static str,
        expected: &'static str,
    ) -> Result<Option<u64>, Problem> {
        let value = self.entry(entries, key)?;
        value
            .map(|v| v.parse().map_err(|_| self.external(expected, format!("`{}`", v.escape_debug()))))
            .transpose()
    }

    fn make(&self, tensor: Result<Tensor, TensorError>) -> Result<Tensor, Problem> {
        tensor.map_err(|error| match error {
            TensorError::Length { found, .. } => self.length("bytes", self.bytes, found as u64),
            TensorError::DType { expected, found } => self.field(expected.name(), found.name()),
        })
    }

    fn length(&self, unit: &'static str, expected: usize, found: u64) -> Problem {
        Problem::Length {
            tensor: self.name.to_owned(),
            dtype: self.dtype,
            dims: self.dims.to_vec(),
            unit,
            expected: expected as u64,
            found,
        }
    }

    fn element(&self, index: usize, found: i128) -> Problem {
        Problem::Element { tensor: self.name.to_owned(), index, dtype: self.dtype, found }
    }

    fn field(&self, expected: &str, found: &str) -> Problem {
        let [tensor, expected, found] = [self.name, expected, found].map(str::to_owned);
        Problem::Field { tensor, expected, found }
    }

    fn external(&self, expected: &'static str, found: String) -> Problem {
        Problem::ExternalEntry { tensor: self.name.to_owned(), expected, found }
    }
}

/// The index that `wire` left in place of raw data.
fn raw_index(raw_data: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(raw_data.try_into().ok()?)).ok()
}

/// The number of the element type of texts.
pub(crate) const TEXTS: i32 = 8;

/// The element type with this number in ONNX. `what` is "tensor" or "value", for the error.
pub(crate) fn element_type(what: &'static str, name: &str, number: i32) -> Result<DType, Problem> {
    let found = match number {
        1 => return Ok(DType::F32),
        2 => return Ok(DType::U8),
        3 => return Ok(DType::I8),
        4 => return Ok(DType::U16),
        5 => return Ok(DType::I16),
        6 => return Ok(DType::I32),
        7 => return Ok(DType::I64),
        9 => return Ok(DType::Bool),
        10 => return Ok(DType::F16),
        11 => return Ok(DType::F64),
        12 => return Ok(DType::U32),
        13 => return Ok(DType::U64),
        16 => return Ok(DType::BF16),
        TEXTS => "STRING",
        14 => "COMPLEX64",
        15 => "COMPLEX128",
        17 => "FLOAT8E4M3FN",
        18 => "FLOAT8E4M3FNUZ",
        19 => "FLOAT8E5M2",
        20 => "FLOAT8E5M2FNUZ",
        21 => "UINT4",
        22 => "INT4",
        23 => "FLOAT4E2M1",
        24 => "FLOAT8E8M0",
        25 => "UINT2",
        26 => "INT2",
        27 => "FLOAT6E2M3",
        28 => "FLOAT6E3M2",
        found => return Err(Problem::UnknownElementType { what, name: name.to_owned(), found }),
    };
    Err(Problem::ElementType { what, name: name.to_owned(), found })
}
