//! Reading artifacts.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use margay_loops::Backend;
use margay_tensor::{DType, Map, StoredTensor, Tensor};

use crate::header::{Header, Section};
use crate::wire::{self, Limits};
use crate::{ArtifactError, Description, StoredConstant};

/// An artifact, mapped into memory. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Artifact {
    path: PathBuf,
    map: Arc<Map>,
    header: Header,
    description: Arc<Description>,
}

impl Artifact {
    /// Maps a file and checks everything but weights and sources. Nothing is run. What the description says of memory, of
    /// inputs and of outputs is what the code was made for, even where its hash was put right after a change: the code
    /// section holds a hash of it.
    pub fn open(path: &Path) -> Result<Artifact, ArtifactError> {
        let map =
            Map::open(path).map_err(|source| ArtifactError::Read { path: path.to_path_buf(), source })?;
        Artifact::from_map(map, path)
    }

    /// The artifact that a file with these bytes would hold. The bytes are copied; `name` stands for the file
    /// in errors.
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Artifact, ArtifactError> {
        let memory = |source| ArtifactError::Memory { bytes: bytes.len(), source };
        Artifact::from_map(Map::copy_of(bytes).map_err(memory)?, Path::new(name))
    }

    fn from_map(map: Map, path: &Path) -> Result<Artifact, ArtifactError> {
        let header = Header::decode(path, &map)?;
        for section in [Section::Description, Section::Code] {
            if *blake3::hash(&map[header.range(section)]).as_bytes() != header.hash(section) {
                return Err(altered(path, section.name().to_owned()));
            }
        }
        let limits = Limits {
            code: header.range(Section::Code).len(),
            source: header.range(Section::Source).len(),
            weights: header.range(Section::Weights).len(),
        };
        let description = wire::decode(&map[header.range(Section::Description)], limits)
            .map_err(|problem| ArtifactError::Malformed { path: path.to_path_buf(), problem })?;
        let code = &map[header.range(Section::Code)];
        for (i, entry) in description.entries.iter().enumerate() {
            for section in &entry.sections {
                let seal = wire::seal(&entry.parts, section, &description.constants);
                if !code[..section.code.start].ends_with(&seal) {
                    let part = format!("description of the code of entry {i}");
                    return Err(altered(path, part));
                }
            }
        }
        let description = Arc::new(description);
        Ok(Artifact { path: path.to_path_buf(), map: Arc::new(map), header, description })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of its contents.
    pub fn description(&self) -> &Arc<Description> {
        &self.description
    }

    /// The code section.
    pub fn code(&self) -> &[u8] {
        &self.map[self.header.range(Section::Code)]
    }

    /// The weights section, on a page boundary; not checked.
    pub fn weights(&self) -> &[u8] {
        &self.map[self.header.range(Section::Weights)]
    }

    /// The mapped file and where in it the weights section lies, for those who outlive the artifact.
    pub fn weights_map(&self) -> (Arc<Map>, Range<usize>) {
        (Arc::clone(&self.map), self.header.range(Section::Weights))
    }

    /// Size of the file.
    pub fn file_bytes(&self) -> usize {
        self.header.file_bytes
    }

    /// Checks the hash of every constant; reads the whole weights section.
    pub fn verify_weights(&self) -> Result<(), ArtifactError> {
        self.description.constants.iter().try_for_each(|c| self.constant_bytes(c).map(drop))
    }

    /// Checks the hash of every constant of i64 or i32: code may read memory at positions that such a constant holds.
    ///
    /// # Errors
    /// As [`verify_weights`](Artifact::verify_weights).
    pub fn verify_positions(&self) -> Result<(), ArtifactError> {
        let positions = |c: &&StoredConstant| matches!(c.dtype, DType::I64 | DType::I32);
        self.description.constants.iter().filter(positions).try_for_each(|c| self.constant_bytes(c).map(drop))
    }

    /// The stored bytes of a constant of this artifact, checked.
    fn constant_bytes(&self, constant: &StoredConstant) -> Result<&[u8], ArtifactError> {
        let bytes = &self.weights()[constant.range.clone()];
        match *blake3::hash(bytes).as_bytes() == constant.hash {
            true => Ok(bytes),
            false => Err(altered(&self.path, format!("constant `{}`", constant.names.join("`, `")))),
        }
    }

    /// The constant at a position of [`Description::constants`], checked, as the stored tensor it was made from.
    /// One that is stored row-major and as it is stays in the file; a packed one is unpacked by `backend`, which its
    /// layout names.
    ///
    /// # Panics
    /// If there is no such position.
    pub fn constant(&self, index: usize, backend: &dyn Backend) -> Result<StoredTensor, ArtifactError> {
        let constant = &self.description.constants[index];
        let bytes = self.constant_bytes(constant)?;
        if let Some(layout) = &constant.layout {
            let stored = backend.unpack(&layout.name, &constant.shape, bytes).map_err(|source| {
                let name = constant.names.join("`, `");
                ArtifactError::Unpack { path: self.path.clone(), name, source }
            })?;
            // A layout knows its elements, not what they are called in the graph.
            return Ok(match stored.storage().is_plain(constant.dtype) {
                true => stored.elements().clone().into(),
                false => stored,
            });
        }
        let malformed = |e: String| ArtifactError::Malformed {
            path: self.path.clone(),
            problem: format!("`{}`: {e}", constant.names.join("`, `")),
        };
        if !constant.storage.is_plain(constant.dtype) {
            return StoredTensor::from_bytes(constant.dtype, &constant.shape, constant.storage, bytes)
                .map_err(|e| malformed(e.to_string()));
        }
        let begin = self.header.range(Section::Weights).start;
        let range = begin + constant.range.start..begin + constant.range.end;
        Tensor::from_map(constant.dtype, &constant.shape, Arc::clone(&self.map), range)
            .map(StoredTensor::from)
            .map_err(|e| malformed(e.to_string()))
    }

    /// A piece of source, checked; `None` if there is none of that name.
    pub fn source(&self, name: &str) -> Result<Option<&[u8]>, ArtifactError> {
        let Some(piece) = self.description.sources.get(name) else { return Ok(None) };
        let section = &self.map[self.header.range(Section::Source)];
        let bytes = &section[piece.range.clone()];
        match *blake3::hash(bytes).as_bytes() == piece.hash {
            true => Ok(Some(bytes)),
            false => Err(altered(&self.path, format!("source `{name}`"))),
        }
    }
}

fn altered(path: &Path, part: String) -> ArtifactError {
    ArtifactError::Altered { path: path.to_path_buf(), part }
}
