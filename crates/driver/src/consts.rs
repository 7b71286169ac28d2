//! `consts.safetensors`: what the text of graphs only names, in a file beside them.
//!
//! A constant has the name that the text prints for it, such as `#5be1c0aa12ef`. One that is not stored as it is has an entry
//! for each of its parts: `NAME stored i8(axis = 1)` for the elements, with `, scales` and `, zero points` behind it for the
//! others. A constant that some graph holds as it is stands in the file that way alone: the text says how it is stored, and
//! the reader rounds it again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use margay_ir::{Graph, TensorType, text};
use margay_tensor::random::{Philox, stream_of};
use margay_tensor::{DType, Storage, StoredTensor, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};

use crate::DriverError;

/// The name of the file.
const FILE: &str = "consts.safetensors";

const STORED: &str = " stored ";
const SCALES: &str = ", scales";
const ZERO_POINTS: &str = ", zero points";

/// Constants that are to be written.
#[derive(Default)]
pub(crate) struct Consts(BTreeMap<String, StoredTensor>);

impl Consts {
    /// Adds those of a graph that its text only names.
    pub(crate) fn add(&mut self, g: &Graph) {
        for payload in text::named_constants(g) {
            let stored = match payload.storage().signs {
                // The name is that of what lies beside the signs.
                Some(_) => StoredTensor::from(payload.stored().elements().clone()),
                None => payload.stored().clone(),
            };
            match self.0.entry(payload.key().to_string()) {
                Entry::Vacant(entry) => {
                    entry.insert(stored);
                }
                Entry::Occupied(mut entry) if stored.is_plain() && !entry.get().is_plain() => {
                    entry.insert(stored);
                }
                Entry::Occupied(_) => {}
            }
        }
    }

    /// Writes them into a folder; nothing where there are none.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), DriverError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let path = folder.join(FILE);
        let failed =
            |why: String| DriverError::Write { path: path.clone(), source: std::io::Error::other(why) };
        let mut views = Vec::new();
        for (key, constant) in &self.0 {
            let name = match constant.is_plain() {
                true => key.clone(),
                false => format!("{key}{STORED}{}", constant.storage()),
            };
            let parts = [
                ("", Some(constant.elements())),
                (SCALES, constant.scales()),
                (ZERO_POINTS, constant.zero_points()),
            ];
            for (part, tensor) in parts {
                let Some(tensor) = tensor else { continue };
                let view = TensorView::new(dtype_of(tensor.dtype()), tensor.shape().to_vec(), tensor.bytes());
                views.push((format!("{name}{part}"), view.map_err(|e| failed(e.to_string()))?));
            }
        }
        serialize_to_file(views, None, &path).map_err(|e| failed(e.to_string()))
    }
}

/// A graph that was read from its text.
pub struct Read {
    /// The graph.
    pub graph: Graph,
    /// The file in which its constants were looked up.
    pub consts: PathBuf,
    /// Constants that are not in it and hold random numbers, which depend on their names alone.
    pub made_up: usize,
}

/// Reads the text of a graph. Constants that it only names are looked up in `consts.safetensors` beside it.
///
/// # Errors
/// [`DriverError::Read`] for files that cannot be read or are no safetensors, and [`DriverError::Text`].
pub fn read_graph(path: &Path) -> Result<Read, DriverError> {
    let io = |path: &Path, source| DriverError::Read { path: path.to_path_buf(), source };
    let source = std::fs::read_to_string(path).map_err(|e| io(path, e))?;
    let consts = path.with_file_name(FILE);
    let bytes = match std::fs::read(&consts) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(io(&consts, e)),
    };
    let file = bytes.as_deref().map(SafeTensors::deserialize).transpose();
    let file = file.map_err(|e| io(&consts, std::io::Error::other(e)))?;
    let made_up = std::cell::Cell::new(0);
    let resolve = |key: &str, ty: &TensorType| {
        file.as_ref().and_then(|file| find(file, key)).or_else(|| {
            made_up.set(made_up.get() + 1);
            random(key, ty).map(Into::into)
        })
    };
    let graph = text::parse(&source, &resolve)
        .map_err(|error| DriverError::Text { path: path.to_path_buf(), error })?;
    Ok(Read { graph, made_up: made_up.get(), consts })
}

fn find(file: &SafeTensors<'_>, key: &str) -> Option<StoredTensor> {
    let tensor = |name: &str| {
        let view = file.tensor(name).ok()?;
        let dtype = DType::from_name(&view.dtype().to_string().to_lowercase())?;
        Tensor::from_bytes(dtype, view.shape(), view.data()).ok()
    };
    if let Some(plain) = tensor(key) {
        return Some(plain.into());
    }
    let storages = file.names().into_iter().filter_map(|name| name.strip_prefix(key)?.strip_prefix(STORED));
    let storage = storages.into_iter().find_map(Storage::parse)?;
    let name = format!("{key}{STORED}{storage}");
    let elements = tensor(&name)?;
    match tensor(&format!("{name}{SCALES}")) {
        None => Some(StoredTensor::from(elements).widened()),
        Some(scales) => {
            let zero_points = tensor(&format!("{name}{ZERO_POINTS}"));
            StoredTensor::from_parts(storage, elements, scales, zero_points).ok()
        }
    }
}

fn dtype_of(dtype: DType) -> Dtype {
    match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::I8 => Dtype::I8,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::U8 => Dtype::U8,
        DType::U16 => Dtype::U16,
        DType::U32 => Dtype::U32,
        DType::U64 => Dtype::U64,
        DType::Bool => Dtype::BOOL,
    }
}

/// Numbers that depend on the name alone: normal with a small deviation, or zero where the type is no `f32` or `f64`.
fn random(key: &str, ty: &TensorType) -> Option<Tensor> {
    const LIMIT: usize = 1 << 28;
    let shape = ty.extents()?;
    let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= LIMIT)?;
    let stream = Philox::new(0, stream_of(key));
    match ty.dtype {
        DType::F32 => {
            let mut data = vec![0f32; len];
            stream.fill_normal_f32(0, &mut data);
            data.iter_mut().for_each(|v| *v *= 0.05);
            Tensor::from_slice(&shape, &data).ok()
        }
        DType::F64 => {
            let mut data = vec![0f64; len];
            stream.fill_normal_f64(0, &mut data);
            data.iter_mut().for_each(|v| *v *= 0.05);
            Tensor::from_slice(&shape, &data).ok()
        }
        other => Tensor::zeros(other, &shape).ok(),
    }
}
